package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A system makes and ends credentials, as somebody else's server would. What
// it handed out lives until it is ended there or its time is over.
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
		return broker.Credential{}, nil, errors.New("the order is not what was prepared")
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

// A fault strikes one step of all that a broker does outside of itself, before
// the step happens or after. A deadly fault takes the process with it: nothing
// after it happens.
type fault struct {
	mu     sync.Mutex
	at     int
	after  bool
	deadly bool
	step   int
	dead   bool
	struck string
}

func (f *fault) do(name string, step func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return errFault
	}
	f.step++
	if f.step != f.at {
		return step()
	}
	f.struck, f.dead = name, f.deadly
	if f.after {
		_ = step() // it happened, and its answer is lost
	}
	return errFault
}

// faultyStore and faultySystem put a fault between the broker and the real
// thing. A store that lives always knows what became of an Update: only death
// can come after it.
type faultyStore struct {
	broker.Store
	f *fault
}

func (s faultyStore) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if s.f.after && !s.f.deadly {
		return s.Store.Update(ctx, reads, f)
	}
	return s.f.do("update", func() error { return s.Store.Update(ctx, reads, f) })
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
	fault := s.f.do("prepare", func() error { p, err = s.Issuer.Prepare(ctx, o); return err })
	return p, fault
}

func (s faultySystem) Issue(ctx context.Context, o broker.Order) (c broker.Credential, handle []byte, err error) {
	fault := s.f.do("issue", func() error { c, handle, err = s.Issuer.Issue(ctx, o); return err })
	return c, handle, fault
}

func (s faultySystem) Revoke(ctx context.Context, l broker.Lease) error {
	return s.f.do("revoke", func() error { return s.Issuer.Revoke(ctx, l) })
}

// Whatever step fails, whether it happened or not, and whether the broker
// lives on or is killed and started again: within 30 seconds no credential
// works that nobody was answered, and none works without its record.
func TestEveryStepFailsOnce(t *testing.T) {
	flows := map[string]func(ctx context.Context, b *broker.Broker, now time.Time) (answered int){
		"collect": func(ctx context.Context, b *broker.Broker, now time.Time) int {
			if issued, _, err := b.AskAndCollect(ctx, broker.Self(agent(now), now), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{}); err == nil && issued != nil {
				return 1
			}
			return 0
		},
		"collect and renew": func(ctx context.Context, b *broker.Broker, now time.Time) int {
			issued, _, err := b.AskAndCollect(ctx, broker.Self(agent(now), now), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
			if err != nil {
				return 0
			}
			// Whichever of the two is held: the old one, or the one in its place.
			_, _ = b.Renew(ctx, broker.Self(agent(now), now), issued.Lease.ID, broker.IdempotencyKey{})
			return 1
		},
		"collect and give back": func(ctx context.Context, b *broker.Broker, now time.Time) int {
			issued, _, err := b.AskAndCollect(ctx, broker.Self(agent(now), now), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
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
				for at := 2; ; at++ { // the first step loads the rules
					f := &fault{at: at, after: strings.Contains("happened killed after", kind), deadly: strings.HasPrefix(kind, "killed")}
					if !strikes(t, f, flow) {
						break
					}
				}
			})
		}
	}
}

// strikes runs a flow under a fault, then a broker without, and checks what is
// left. It says false once the fault comes too late to strike.
func strikes(t *testing.T, f *fault, flow func(context.Context, *broker.Broker, time.Time) int) bool {
	ctx := t.Context()
	sys := &system{live: map[string]time.Time{}}
	w := newWorld(t, worldConfig{
		issuers: map[string]broker.Issuer{"db": faultySystem{sys, f}},
		wrap:    func(s broker.Store) broker.Store { return faultyStore{s, f} },
	})
	answered := flow(ctx, w.broker, noon)
	struck := f.struck
	if n := sys.working(noon.Add(time.Second)); !f.deadly && answered == 0 && struck != "" && struck != "revoke" && n > 0 {
		t.Errorf("step %d (%s): the broker lives, answered nothing, and %d credentials work", f.step, struck, n)
	}
	// The broker lives on, or another starts on the same store.
	f.at, f.dead, f.after = -1, false, false
	again := w.restart(t, map[string]broker.Issuer{"db": sys})
	for _, after := range []time.Duration{time.Second, 5 * time.Second, 30 * time.Second} {
		if _, err := again.Reap(ctx, noon.Add(after)); err != nil {
			t.Fatal(err)
		}
	}
	working, active := sys.working(noon.Add(31*time.Second)), w.count(t, broker.LeaseActive)
	// At most what somebody holds still works; a lost answer lives until its
	// lease is given back or expires, and its lease says so.
	if working > active {
		t.Errorf("step %d (%s): %d credentials work, %d leases are active", f.step, struck, working, active)
	}
	if answered > 0 && !f.deadly && !strings.Contains(struck, "revoke") && struck != "" && working > 1 {
		t.Errorf("step %d (%s): %d credentials work, one was answered", f.step, struck, working)
	}
	if _, err := again.Reap(ctx, noon.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := len(sys.live); n > 0 {
		t.Errorf("step %d (%s): %d credentials were never ended", f.step, struck, n)
	}
	w.verify(t)
	return struck != ""
}
