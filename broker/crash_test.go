package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// system is an issuer that keeps its credentials in memory. A credential works
// until it is revoked or expires.
type system struct {
	mu   sync.Mutex
	made int
	live map[string]time.Time // by handle
}

func (s *system) Prepare(_ context.Context, o broker.Order) (broker.Prepared, error) {
	return broker.Prepared{
		Handle: []byte("handle of " + o.Lease.ID.String()),
		Key:    broker.NewSecret(map[string]string{"key": "key of " + o.Lease.ID.String()}),
	}, nil
}

func (s *system) Issue(_ context.Context, o broker.Order) (broker.Credential, []byte, error) {
	l := o.Lease
	if o.Entitlement == nil || o.Key.Reveal()["key"] != "key of "+l.ID.String() {
		return broker.Credential{}, nil, errors.New("the order differs from the prepared one")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	s.live[string(l.Handle)] = l.Expires
	secret := fmt.Sprintf("password-%d-of-%s", s.made, l.ID)
	return broker.Credential{
		Type: "userpass", Expires: l.Expires, Hash: audit.Digest{1},
		Secret: broker.NewSecret(map[string]string{"username": "u", "password": secret}),
	}, nil, nil
}

func (s *system) Revoke(_ context.Context, l broker.Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, string(l.Handle))
	return nil
}

func (s *system) working(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, end := range s.live {
		if now.Before(end) {
			n++
		}
	}
	return n
}

var errFault = errors.New("injected fault")

// fault strikes one step of a flow: a transaction of the store or a call to the
// issuer. The step fails, or it succeeds and its answer is lost. A deadly fault
// kills the process, so that no later step runs.
type fault struct {
	mu     sync.Mutex
	armed  bool
	at     int // the step to strike, counted from 1
	after  bool
	deadly bool
	step   int
	dead   bool
	struck string // the name of the struck step
}

// do runs a step, or fails instead of it if the fault strikes before the step.
// Both return the name of the step.
func (f *fault) do(step, fails func() (string, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return errFault
	}
	if f.armed {
		f.step++
	}
	if !f.armed || f.step != f.at {
		_, err := step()
		return err
	}
	if f.dead = f.deadly; f.after {
		f.struck, _ = step()
	} else {
		f.struck, _ = fails()
	}
	return errFault
}

// call is do for a call to the issuer.
func (f *fault) call(name string, call func() error) error {
	return f.do(
		func() (string, error) { return name, call() },
		func() (string, error) { return name, errFault })
}

// faultyStore and faultySystem inject a fault between the broker and the real
// store and issuer. A running store always knows the outcome of an Update, so
// only a deadly fault can lose its answer.
type faultyStore struct {
	broker.Store
	f *fault
}

func (s faultyStore) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if s.f.after && !s.f.deadly {
		return s.Store.Update(ctx, reads, f)
	}
	// A transaction is named after the records that it appends, so it must run to
	// the end even if it fails.
	update := func(result error) (string, error) {
		name := "store"
		err := s.Store.Update(ctx, reads, func(tx broker.Tx) error {
			names := &namingTx{Tx: tx, name: "store"}
			if err := f(names); err != nil {
				return err
			}
			name = names.name
			return result
		})
		return name, err
	}
	return s.f.do(
		func() (string, error) { return update(nil) },
		func() (string, error) { return update(errFault) })
}

// namingTx names a transaction after the records that it appends.
type namingTx struct {
	broker.Tx
	name string
}

func (tx *namingTx) Append(e *audit.Entry) {
	tx.name += " " + string(e.Kind())
	tx.Tx.Append(e)
}

func (s faultyStore) View(ctx context.Context, f func(broker.Tx) error) error {
	if s.f.dead {
		return errFault
	}
	return s.Store.View(ctx, f)
}

type faultySystem struct {
	broker.Issuer
	f *fault
}

func (s faultySystem) Prepare(ctx context.Context, o broker.Order) (p broker.Prepared, err error) {
	fault := s.f.call("prepare", func() error { p, err = s.Issuer.Prepare(ctx, o); return err })
	return p, fault
}

func (s faultySystem) Issue(ctx context.Context, o broker.Order) (c broker.Credential, handle []byte, err error) {
	fault := s.f.call("issue", func() error { c, handle, err = s.Issuer.Issue(ctx, o); return err })
	return c, handle, fault
}

func (s faultySystem) Revoke(ctx context.Context, l broker.Lease) error {
	return s.f.call("revoke", func() error { return s.Issuer.Revoke(ctx, l) })
}

// crashPoints lists the steps of each flow in order.
var crashPoints = map[string][]string{
	"collect": {"prepare", "store lease.opened", "issue", "store lease.issued"},
	"collect and renew": {
		"prepare", "store lease.opened", "issue", "store lease.issued",
		"prepare", "store lease.opened", "issue", "store lease.issued", "revoke", "store lease.revoked",
	},
	"collect and return": {"prepare", "store lease.opened", "issue", "store lease.issued", "revoke", "store lease.revoked"},
}

// A step of a flow fails, or succeeds with its answer lost, and the broker continues
// or is killed and restarted. Within 30 seconds, no undelivered credential works, and
// none works without its record. The test compares the struck steps with
// crashPoints, because a fault that strikes nothing proves nothing.
func TestEveryStepFailsOnce(t *testing.T) {
	collect := func(ctx context.Context, b *broker.Broker, now time.Time) (*broker.Issued, error) {
		issued, _, err := b.AskAndCollect(ctx, broker.Self(agent(now), now), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
		return issued, err
	}
	flows := map[string]func(ctx context.Context, b *broker.Broker, now time.Time) (answered int){
		"collect": func(ctx context.Context, b *broker.Broker, now time.Time) int {
			if issued, err := collect(ctx, b, now); err == nil && issued != nil {
				return 1
			}
			return 0
		},
		"collect and renew": func(ctx context.Context, b *broker.Broker, now time.Time) int {
			issued, err := collect(ctx, b, now)
			if err != nil {
				return 0
			}
			// The holder has one of the two: the old credential, or the new one.
			_, _ = b.Renew(ctx, broker.Self(agent(now), now), issued.Lease.ID, broker.IdempotencyKey{})
			return 1
		},
		"collect and return": func(ctx context.Context, b *broker.Broker, now time.Time) int {
			issued, err := collect(ctx, b, now)
			if err != nil {
				return 0
			}
			if _, err := b.Revoke(ctx, broker.Self(agent(now), now), issued.Lease.ID, "done"); err != nil {
				return 1
			}
			return 0
		},
	}
	for name, flow := range flows {
		for _, kind := range []string{"failed", "happened", "killed before", "killed after"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				var struck []string
				for at := 1; ; at++ {
					f := &fault{at: at, after: strings.Contains("happened killed after", kind), deadly: strings.HasPrefix(kind, "killed")}
					step := runWithFault(t, f, flow)
					if step == "" {
						break
					}
					struck = append(struck, step)
				}
				want := slices.Clone(crashPoints[name])
				if kind == "happened" { // a running store never loses the answer of an Update
					want = slices.DeleteFunc(want, func(step string) bool { return strings.HasPrefix(step, "store") })
				}
				if !slices.Equal(struck, want) || len(struck) == 0 {
					t.Errorf("struck %q, want %q", struck, want)
				}
			})
		}
	}
}

// runWithFault runs a flow under a fault, then a broker without one, and checks the
// remaining credentials and leases. It returns the name of the struck step, or ""
// if the flow has fewer steps.
func runWithFault(t *testing.T, f *fault, flow func(context.Context, *broker.Broker, time.Time) int) (struck string) {
	ctx := t.Context()
	sys := &system{live: map[string]time.Time{}}
	w := newWorld(t, worldConfig{
		issuers: map[string]broker.Issuer{"db": faultySystem{sys, f}},
		wrap:    func(s broker.Store) broker.Store { return faultyStore{s, f} },
	})
	f.armed = true
	answered := flow(ctx, w.broker, noon)
	struck = f.struck
	if n := sys.working(noon.Add(time.Second)); !f.deadly && answered == 0 && struck != "" && struck != "revoke" && n > 0 {
		t.Errorf("step %d (%s): the broker survived and returned no credential, but %d work", f.step, struck, n)
	}
	// The broker continues, or another starts on the same store.
	f.armed, f.dead, f.after = false, false, false
	again := w.restart(t, map[string]broker.Issuer{"db": sys})
	for _, after := range []time.Duration{time.Second, 5 * time.Second, 30 * time.Second} {
		if _, err := again.Reap(ctx, noon.Add(after)); err != nil {
			t.Fatal(err)
		}
	}
	working, active := sys.working(noon.Add(31*time.Second)), w.count(t, broker.LeaseActive)
	// At most one credential per active lease works: one whose answer was lost
	// works until its lease is returned or expires.
	if working > active {
		t.Errorf("step %d (%s): %d credentials work, %d leases are active", f.step, struck, working, active)
	}
	if answered > 0 && !f.deadly && struck != "revoke" && struck != "" && working > 1 {
		t.Errorf("step %d (%s): %d credentials work, one was returned", f.step, struck, working)
	}
	if _, err := again.Reap(ctx, noon.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := len(sys.live); n > 0 {
		t.Errorf("step %d (%s): %d credentials were never revoked", f.step, struck, n)
	}
	w.verify(t)
	return struck
}
