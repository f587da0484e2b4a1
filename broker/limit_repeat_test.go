package broker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// ending is a system whose issuer has another answer to each revocation.
type ending struct {
	*system
	err error // nil: the credential is revoked
}

func (e ending) Revoke(ctx context.Context, l broker.Lease) error {
	if e.err != nil {
		return e.err
	}
	return e.system.Revoke(ctx, l)
}

// endings are the issuers of the tests below. A repeat is free only if the
// credential of the lost answer has really ended.
var endings = []struct {
	name        string
	entitlement string
	err         error
	ends        bool
}{
	{"token", "tickets", nil, false},
	{"confirmed", "db", nil, true},
	{"queued", "db", broker.ErrQueued, false},
	{"only time", "db", broker.ErrNotRevocable, false},
	{"failing", "db", broker.ErrIssuerUnavailable, false},
}

const boundPolicies = `
@id("seven")
@limit("7 per 1h")
permit (principal in Path::"spiffe://acme.test/limited", action == Action::"request", resource);

@id("three")
@max_active("3")
permit (principal in Path::"spiffe://acme.test/active", action == Action::"request", resource);

@id("glass")
@break_glass("security")
@limit("7 per 1h")
permit (principal in Path::"spiffe://acme.test/glass", action == Action::"request", resource);
`

type boundWorld struct {
	*world
	system *system
	who    broker.Identity
	ask    broker.Ask
}

func newBoundWorld(t *testing.T, path, entitlement string, err error) *boundWorld {
	s := &system{live: map[string]time.Time{}}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}, "db": ending{s, err}}, policies: boundPolicies})
	b := &boundWorld{w, s, workload("spiffe://acme.test/"+path+"/a", noon), broker.Ask{Entitlement: entitlement}}
	if entitlement == "tickets" {
		b.ask = read("tickets:read")
	}
	b.ask.BreakGlass = path == "glass"
	t.Cleanup(func() { w.verify(t) })
	return b
}

func (w *boundWorld) key(flow string, n int) broker.IdempotencyKey {
	return broker.NewIdempotencyKey(w.who.ID, "POST", "/"+flow, fmt.Sprint(n), nil)
}

// working counts the credentials that work until they expire, of those issued.
func (w *boundWorld) working(issued int) int {
	if w.ask.Entitlement == "tickets" {
		return issued // resource servers may verify only the signature
	}
	return w.system.working(noon)
}

// A flow issues with a key. Each key stands for another call.
var boundFlows = map[string]func(t *testing.T, w *boundWorld) (issue func(n int) error){
	"ask and collect": func(t *testing.T, w *boundWorld) func(int) error {
		return func(n int) error {
			_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(w.who, noon), w.ask, w.key("credentials", n))
			return err
		}
	},
	"collect": func(t *testing.T, w *boundWorld) func(int) error {
		r, err := w.broker.Ask(t.Context(), broker.Self(w.who, noon), w.ask, broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		return func(n int) error {
			_, err := w.broker.Collect(t.Context(), broker.Self(w.who, noon), r.ID, w.key("collect", n))
			return err
		}
	},
}

// Seven keys that are each repeated do not get more working credentials than
// @limit("7 per 1h") allows.
func TestRepeatsCountUnlessTheLostCredentialEnded(t *testing.T) {
	const limit, repeats = 7, 3
	for _, path := range []string{"limited", "glass"} {
		for _, e := range endings {
			for flow, start := range boundFlows {
				t.Run(path+"/"+e.name+"/"+flow, func(t *testing.T) {
					w := newBoundWorld(t, path, e.entitlement, e.err)
					issue, issued := start(t, w), 0
					for range 1 + repeats {
						for n := range limit {
							if err := issue(n); err == nil {
								issued++
							} else if !errors.Is(err, broker.ErrLimit) {
								t.Fatal(err)
							}
						}
					}
					want := limit
					if e.ends {
						want = 3 * limit // two repeats of each call are free
					}
					if working := w.working(issued); issued != want || working > limit {
						t.Errorf("got %d credentials, of which %d work, want %d and at most %d", issued, working, want, limit)
					}
				})
			}
		}
	}
}

// A repeated renewal counts like a repeated collection.
func TestRepeatedRenewalsCount(t *testing.T) {
	for _, e := range endings {
		t.Run(e.name, func(t *testing.T) {
			w := newBoundWorld(t, "limited", e.entitlement, e.err)
			first, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(w.who, noon), w.ask, broker.IdempotencyKey{})
			if err != nil {
				t.Fatal(err)
			}
			issued := 1
			for range 20 {
				if _, err := w.broker.Renew(t.Context(), broker.Self(w.who, noon), first.Lease.ID, w.key("renew", 1)); err == nil {
					issued++
				} else if !errors.Is(err, broker.ErrLimit) {
					t.Fatal(err)
				}
			}
			want := 7
			if e.ends {
				want += 2
			}
			if issued != want {
				t.Errorf("got %d credentials, want %d", issued, want)
			}
		})
	}
}

// A lost credential that still works keeps its place under @max_active.
func TestRepeatsUnderMaxActive(t *testing.T) {
	for _, e := range endings {
		for flow, start := range boundFlows {
			t.Run(e.name+"/"+flow, func(t *testing.T) {
				w := newBoundWorld(t, "active", e.entitlement, e.err)
				issue, issued := start(t, w), 0
				for range 10 {
					err := issue(1)
					var refusal *broker.Refusal
					switch {
					case err == nil:
						issued++
					case !errors.Is(err, broker.ErrMaxActive):
						t.Fatal(err)
					case !errors.As(err, &refusal) || refusal.Retry <= 0 || refusal.Retry > 10*time.Minute:
						t.Errorf("got %+v, want a retry when the first credential expires", refusal)
					}
				}
				want := 3
				if e.ends {
					want = 10
				}
				if working := w.working(issued); issued != want || !e.ends && working != 3 || e.ends && working != 1 {
					t.Errorf("got %d credentials, of which %d work, want %d", issued, working, want)
				}
			})
		}
	}
}

// A returned credential keeps its place until its revocation is confirmed.
func TestPendingRevocationsKeepTheirPlace(t *testing.T) {
	for _, e := range endings {
		t.Run(e.name, func(t *testing.T) {
			w := newBoundWorld(t, "active", e.entitlement, e.err)
			ask := func() (*broker.Issued, error) {
				issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(w.who, noon), w.ask, broker.IdempotencyKey{})
				return issued, err
			}
			var last *broker.Issued
			for range 3 {
				var err error
				if last, err = ask(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := w.broker.Revoke(t.Context(), broker.Self(w.who, noon), last.Lease.ID, ""); err != nil {
				t.Fatal(err)
			}
			pending := errors.Is(e.err, broker.ErrQueued) || errors.Is(e.err, broker.ErrIssuerUnavailable)
			if _, err := ask(); errors.Is(err, broker.ErrMaxActive) != pending || !pending && err != nil {
				t.Errorf("after a return: got %v, want a refusal %t", err, pending)
			}
		})
	}
}

// Parallel repeats of parallel calls are bounded, too.
func TestParallelRepeatsAreBounded(t *testing.T) {
	for _, path := range []string{"limited", "active"} {
		for _, e := range endings {
			t.Run(path+"/"+e.name, func(t *testing.T) {
				w := newBoundWorld(t, path, e.entitlement, e.err)
				issue := boundFlows["ask and collect"](t, w)
				var all sync.WaitGroup
				var issued, refused atomic.Int64
				for i := range 64 {
					all.Go(func() {
						switch err := issue(i % 4); {
						case err == nil:
							issued.Add(1)
						case errors.Is(err, broker.ErrLimit), errors.Is(err, broker.ErrMaxActive), errors.Is(err, broker.ErrUnavailable), errors.Is(err, broker.ErrIssuerUnavailable):
							refused.Add(1)
						default:
							t.Error(err)
						}
					})
				}
				all.Wait()
				bound := map[string]int{"limited": 7, "active": 3}[path]
				if working := w.working(int(issued.Load())); issued.Load() == 0 || working > bound {
					t.Errorf("%d credentials were issued and %d refused; %d work, want at most %d", issued.Load(), refused.Load(), working, bound)
				}
			})
		}
	}
}
