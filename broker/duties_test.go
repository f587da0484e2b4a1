package broker_test

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/storetest"
	"accessbroker.internal/store"
)

// A counted system counts the calls of several processes for each lease.
type counted struct {
	system
	name  string
	calls *calls
}

type calls struct {
	sync.Mutex
	of map[broker.LeaseID]int
	by map[string]int
}

func (c *counted) Revoke(ctx context.Context, l broker.Lease) error {
	c.calls.Lock()
	c.calls.of[l.ID]++
	c.calls.by[c.name]++
	c.calls.Unlock()
	return c.system.Revoke(ctx, l)
}

// A process is a broker with a store of its own on a shared database.
type process struct {
	*broker.Broker
	store *store.Store
	kill  func() // as kill -9 does: its claims stay
}

func startProcess(t *testing.T, url, name string, ended *calls) *process {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: url, Replica: name})
	if err != nil {
		t.Fatal(err)
	}
	if s.Head().Epoch == 0 {
		check.OpenLog(t, s, noon)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	p := &process{store: s}
	p.kill = sync.OnceFunc(func() {
		cancel()
		<-done
		_ = s.Close()
	})
	t.Cleanup(p.kill)
	issuers := map[string]broker.Issuer{}
	for _, issuer := range []string{"db", "tickets"} {
		issuers[issuer] = &counted{system: system{live: map[string]time.Time{}}, name: name, calls: ended}
	}
	p.Broker = start(t, broker.Config{Store: s, Issuers: issuers, Blocks: s.Blocks, Duties: store.DutiesOf(s)}, testRules(t, testPolicies))
	return p
}

func (c *calls) snapshot() (of map[broker.LeaseID]int, by map[string]int) {
	c.Lock()
	defer c.Unlock()
	return maps.Clone(c.of), maps.Clone(c.by)
}

// Several processes share the due leases of an issuer, and call it once for each lease. When
// one dies, the others end its share.
func TestProcessesShareDueLeases(t *testing.T) {
	storetest.OnlyPostgres(t)
	url := storetest.Empty(t)
	ended := &calls{of: map[broker.LeaseID]int{}, by: map[string]int{}}
	a := startProcess(t, url, "a", ended)
	b := startProcess(t, url, "b", ended)
	issued := 0
	later := noon.Add(time.Hour)
	round := func(list ...*process) {
		t.Helper()
		for range 16 {
			if _, _, err := list[0].AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{}); err != nil {
				t.Fatal(err)
			}
			issued++
		}
		var group sync.WaitGroup
		for _, p := range list {
			group.Go(func() {
				if _, err := p.Reap(t.Context(), later); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	until := func(what string, list []*process, holds func(of map[broker.LeaseID]int, by map[string]int) bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			round(list...)
			if of, by := ended.snapshot(); holds(of, by) {
				return
			} else if time.Now().After(end) {
				t.Fatalf("after a minute: %s: %d of %d leases ended, %v", what, len(of), issued, by)
			}
		}
	}
	until("both processes end leases", []*process{a, b}, func(_ map[broker.LeaseID]int, by map[string]int) bool { return by["a"] > 0 && by["b"] > 0 })
	until("all leases have ended", []*process{a, b}, func(of map[broker.LeaseID]int, _ map[string]int) bool { return len(of) == issued })
	a.kill()
	until("the rest ends the leases of one that died", []*process{b}, func(of map[broker.LeaseID]int, _ map[string]int) bool { return len(of) == issued })
	of, _ := ended.snapshot()
	for id, n := range of {
		if n != 1 {
			t.Errorf("lease %s: got %d calls of its issuer, want 1", id, n)
		}
	}
}
