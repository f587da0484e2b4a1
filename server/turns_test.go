package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/server/inbound"
)

func senderOf(address string, conn any) sender {
	return sender{inbound.Network(netip.MustParseAddr(address)), fmt.Sprint(conn)}
}

// flood sends failing work without a pause until ctx ends, over as many connections, and
// counts what ran.
func flood(ctx context.Context, all *sync.WaitGroup, t *turns, address string, conns, perConn int) *atomic.Int64 {
	ran := new(atomic.Int64)
	for i := range conns * perConn {
		all.Go(func() {
			for ctx.Err() == nil {
				done, err := t.enter(ctx, senderOf(address, i%conns))
				if err == nil {
					ran.Add(1)
					time.Sleep(100 * time.Microsecond) // the work
					done(true)
				} else {
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	return ran
}

// While senders of failing work flood from one address, work that succeeds gets its turn
// there and elsewhere, and the failing work is bounded.
func TestTurnsUnderFlood(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		conns, perConn int
		networks       int
	}{
		"four threads":            {4, 1, 1},
		"many connections":        {500, 1, 1},
		"many streams":            {4, 100, 1},
		"connections and streams": {100, 10, 1},
		"many networks":           {4, 8, 50},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := verifyLimits()
				l.atOnce = 4
				turns := newTurns(l)
				ctx, stop := context.WithCancel(t.Context())
				var all sync.WaitGroup
				var floods []*atomic.Int64
				begun := time.Now()
				for n := range test.networks {
					floods = append(floods, flood(ctx, &all, turns, fmt.Sprintf("192.0.2.%d", n), test.conns, test.perConn))
				}
				time.Sleep(2 * time.Second)
				served := 0
				for i := range 40 {
					for _, address := range []string{"192.0.2.0", "198.51.100.1"} {
						start := time.Now()
						done, err := turns.enter(t.Context(), senderOf(address, fmt.Sprint("fresh ", i)))
						if err != nil {
							t.Errorf("%s, call %d: got %v after %v", address, i, err, time.Since(start))
							continue
						}
						served++
						done(false)
					}
				}
				stop()
				all.Wait()
				ran := int64(0)
				for _, f := range floods {
					ran += f.Load()
				}
				elapsed := time.Since(begun).Seconds()
				if most := float64(l.totalBurst) + float64(l.total)*elapsed; served != 80 || ran == 0 || float64(ran) > most+float64(l.atOnce) {
					t.Errorf("got %d calls served and %d failures, want 80 and at most %.0f", served, ran, most)
				}
				turns.mu.Lock()
				defer turns.mu.Unlock()
				if turns.running != 0 || turns.waiting != 0 || len(turns.queues) != 0 || len(turns.order) != 0 {
					t.Errorf("at the end: %d run, %d wait, %d queues, %d in order", turns.running, turns.waiting, len(turns.queues), len(turns.order))
				}
			})
		})
	}
}

// The failures of a network come at its rate, whatever it sends.
func TestTurnsBoundFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := verifyLimits()
		turns := newTurns(l)
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		ran := flood(ctx, &all, turns, "192.0.2.1", 50, 2)
		time.Sleep(10 * time.Second)
		stop()
		all.Wait()
		want := int64(l.burst) + 10*int64(l.network)
		if n := ran.Load(); n < want-int64(l.atOnce) || n > want+int64(l.atOnce) {
			t.Errorf("got %d failures in 10 s, want about %d", n, want)
		}
	})
}

// However many connections a network opens one after another, what is remembered of them
// is bounded.
func TestTurnsForgetConnections(t *testing.T) {
	t.Parallel()
	l := verifyLimits()
	l.atOnce = 1
	turns := newTurns(l)
	_, err := turns.enter(t.Context(), senderOf("192.0.2.1", "first"))
	if err != nil {
		t.Fatal(err)
	}
	turns.mu.Lock()
	defer turns.mu.Unlock()
	if turns.wait(senderOf("192.0.2.1", "stays")) == nil {
		t.Fatal("a call may not wait")
	}
	q := turns.queues[senderOf("192.0.2.1", "").network]
	for i := range 10 * l.perNetwork {
		call := turns.wait(senderOf("192.0.2.1", i))
		if call == nil || len(q.rounds) > 4*l.perNetwork {
			t.Fatalf("call %d: got %v, and %d connections remembered, want at most %d", i, call, len(q.rounds), 4*l.perNetwork)
		}
		turns.remove(q, call) // its client leaves
	}
	if q.rounds["stays"] != 1 {
		t.Errorf("a connection that waits was forgotten: got %v", q.rounds)
	}
}

// A call that cannot wait is refused, and one whose client leaves ends.
func TestTurnsRefuse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := verifyLimits()
		l.atOnce, l.perConn, l.perNetwork, l.most = 1, 2, 3, 4
		turns := newTurns(l)
		done, err := turns.enter(t.Context(), senderOf("192.0.2.1", "a"))
		if err != nil {
			t.Fatal(err)
		}
		type outcome struct {
			name string
			err  error
		}
		outcomes := make(chan outcome, 10)
		enter := func(name, address, conn string) {
			go func() {
				done, err := turns.enter(t.Context(), senderOf(address, conn))
				outcomes <- outcome{name, err}
				if err == nil {
					done(false)
				}
			}()
			synctest.Wait()
		}
		turns.failed(senderOf("192.0.2.1", "bad"))
		enter("bad", "192.0.2.1", "bad")
		enter("a1", "192.0.2.1", "a")
		enter("a2", "192.0.2.1", "a")
		enter("a3", "192.0.2.1", "a")
		if got := <-outcomes; got.name != "a3" || !errors.Is(got.err, broker.ErrSlowDown) {
			t.Errorf("got %+v, want the third call of a connection refused", got)
		}
		enter("b", "192.0.2.1", "b")
		if got := <-outcomes; got.name != "bad" || !errors.Is(got.err, broker.ErrSlowDown) {
			t.Errorf("got %+v, want the failing connection to give way", got)
		}
		enter("elsewhere", "198.51.100.1", "x")
		enter("third", "203.0.113.1", "y")
		if got := <-outcomes; got.name != "a2" || !errors.Is(got.err, broker.ErrSlowDown) {
			t.Errorf("got %+v, want the largest network to give way", got)
		}
		done(false)
		var order []string
		for range 4 {
			got := <-outcomes
			if got.err != nil {
				t.Errorf("got %+v", got)
			}
			order = append(order, got.name)
		}
		if fmt.Sprint(order) != "[a1 elsewhere third b]" {
			t.Errorf("got the order %v, want the networks in turn", order)
		}
		done, err = turns.enter(t.Context(), senderOf("192.0.2.1", "a"))
		if err != nil {
			t.Fatal(err)
		}
		gone, leave := context.WithCancel(t.Context())
		go leave()
		if _, err := turns.enter(gone, senderOf("192.0.2.1", "b")); !errors.Is(err, context.Canceled) {
			t.Errorf("a client that leaves: got %v", err)
		}
		start := time.Now()
		if _, err := turns.enter(t.Context(), senderOf("192.0.2.1", "b")); !errors.Is(err, broker.ErrSlowDown) || time.Since(start) != l.longestWait {
			t.Errorf("after %v: got %v, want a refusal after %v", time.Since(start), err, l.longestWait)
		}
		done(false)
	})
}

// Networks of one wide network take turns with each other, however early some of them
// came and however many calls those send.
func TestNetworksOfOneWideNetworkTakeTurns(t *testing.T) {
	t.Parallel()
	l := verifyLimits()
	l.atOnce = 1
	turns := newTurns(l)
	done, err := turns.enter(t.Context(), senderOf("203.0.113.1", "runs"))
	if err != nil {
		t.Fatal(err)
	}
	const networks, each = 50, 10
	var calls [networks][each]*waitingCall
	turns.mu.Lock()
	for n := range networks {
		for i := range each {
			calls[n][i] = turns.wait(senderOf(fmt.Sprintf("192.0.2.%d", n), i))
			if calls[n][i] == nil {
				t.Fatalf("call %d of network %d may not wait", i, n)
			}
		}
	}
	turns.mu.Unlock()
	for round := range each {
		for range networks {
			done(false)
		}
		for n := range networks {
			served := 0
			for _, call := range calls[n] {
				served += len(call.ready)
			}
			if served != round+1 {
				t.Fatalf("after %d turns, network %d had %d, want %d", networks*(round+1), n, served, round+1)
			}
		}
	}
	done(false)
}
