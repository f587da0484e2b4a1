package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A slow system makes a credential only when it is told to go on.
type slow struct {
	system
	asked chan struct{}
	goOn  chan struct{}
}

func startSlow() *slow {
	return &slow{system: system{live: map[string]time.Time{}}, asked: make(chan struct{}, 10), goOn: make(chan struct{}, 10)}
}

func (s *slow) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	s.asked <- struct{}{}
	<-s.goOn
	return s.system.Issue(ctx, o)
}

// Whatever is decided while an upstream makes a credential, holds for that one
// as well: it is ended there, and never answered.
func TestDecidedWhileAnUpstreamWorks(t *testing.T) {
	operator := broker.Identity{ID: "admin-socket/0", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: noon.Add(time.Hour)}}
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, w *world) error
		want      error
	}{
		"the kill switch": {func(t *testing.T, w *world) error {
			_, err := w.broker.RevokeAll(t.Context(), broker.Self(operator, noon), broker.Selector{Holder: agent(noon).ID}, "incident", audit.Digest{}, true)
			return err
		}, broker.ErrBlocked},
		"a block": {func(t *testing.T, w *world) error {
			return w.broker.Block(t.Context(), broker.Self(operator, noon), broker.Selector{Issuer: "db"}, "incident")
		}, broker.ErrBlocked},
		"rules that forbid it": {func(t *testing.T, w *world) error {
			rules := testRules(t, strings.Replace(testPolicies, `spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"db"`, `spiffe://acme.test/other", action == Action::"request", resource == Entitlement::"db"`, 1))
			return w.broker.SetRules(t.Context(), broker.Self(operator, noon), rules)
		}, broker.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			sys := startSlow()
			w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": sys, "tickets": signer{}}})
			answer := make(chan error)
			go func() {
				_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
				answer <- err
			}()
			<-sys.asked
			if err := test.meanwhile(t, w); err != nil {
				t.Fatal(err)
			}
			close(sys.goOn)
			if err := <-answer; !errors.Is(err, test.want) {
				t.Errorf("the caller is told %v, want %v", err, test.want)
			}
			if n := sys.working(noon); n > 0 {
				t.Errorf("%d credentials work", n)
			}
			if w.count(t, broker.LeaseActive) > 0 {
				t.Error("its lease is active")
			}
			w.verify(t)
		})
	}
}

// A decision under rules that were replaced meanwhile is not logged after their
// replacement.
func TestIssuingWhileRulesAreReplaced(t *testing.T) {
	w := tokenWorld(t)
	forbidden := testRules(t, strings.Replace(testPolicies, `@id("agents-tickets")`, "@id(\"nothing\")\nforbid (principal, action, resource);\n@id(\"agents-tickets\")", 1))
	const callers = 8
	issuing, done := make(chan struct{}, callers), make(chan struct{})
	for range callers {
		go func() {
			defer func() { done <- struct{}{} }()
			for n := 0; ; n++ {
				_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
				if errors.Is(err, broker.ErrDenied) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n == 0 {
					issuing <- struct{}{}
				}
			}
		}()
	}
	for range callers {
		<-issuing
	}
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, forbidden); err != nil {
		t.Fatal(err)
	}
	for range callers {
		<-done
	}
	issued, replaced := 0, false
	for _, r := range w.records(t) {
		replaced = replaced || r.Kind == audit.PolicyLoaded && r.Rules.Revision == forbidden.Revision
		if r.Kind != audit.LeaseIssued {
			continue
		}
		if issued++; replaced {
			t.Fatal("a lease was issued under rules that were replaced")
		}
	}
	if issued < callers || !replaced {
		t.Errorf("%d leases were issued (rules replaced: %t)", issued, replaced)
	}
}

// One Idempotency-Key is not worth more credentials than a limit allows.
func TestRepeatsAreCounted(t *testing.T) {
	w := tokenWorld(t)
	who := workload("spiffe://acme.test/limited/a", noon)
	again := broker.NewIdempotencyKey(who.ID, "POST", "/v1/credentials", "key", []byte("body"))
	issued := 0
	for range 20 {
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(who, noon), read("tickets:read"), again)
		if err == nil {
			issued++
		} else if !errors.Is(err, broker.ErrLimit) {
			t.Fatal(err)
		}
	}
	// Three are counted, and two repeats of the first are forgiven.
	if issued != 5 {
		t.Errorf("%d credentials were issued under a limit of 3 an hour", issued)
	}
}

// Of what was ended, nothing new comes: neither by the grant of a request that
// was revoked, nor by renewing a lease that was.
func TestWhatWasRevokedStaysSo(t *testing.T) {
	w := tokenWorld(t)
	operator := broker.Identity{ID: "admin-socket/0", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: noon.Add(time.Hour)}}
	collected := func() (*broker.Request, *broker.Issued) {
		t.Helper()
		r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		issued, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		return r, issued
	}
	r, _ := collected()
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(operator, noon), broker.Selector{Request: r.ID}, "incident", audit.Digest{}, true); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon.Add(time.Second)), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrGrantEnded) {
		t.Errorf("collecting by a request that was revoked: %v", err)
	}
	_, issued := collected()
	if _, err := w.broker.Revoke(t.Context(), broker.Self(operator, noon), issued.Lease.ID, "incident"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Renew(t.Context(), broker.Self(agent(noon), noon), issued.Lease.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNotRenewable) {
		t.Errorf("renewing what was revoked: %v", err)
	}
	waiting := read("tickets:close")
	waiting.Justification = "duplicates"
	pending, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), waiting, broker.IdempotencyKey{})
	if err != nil || pending.State(noon) != broker.RequestPending {
		t.Fatalf("%+v, %v", pending, err)
	}
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(operator, noon), broker.Selector{Request: pending.ID}, "incident", audit.Digest{}, true); err != nil {
		t.Fatal(err)
	}
	if got, err := w.broker.Request(t.Context(), broker.Self(agent(noon), noon), pending.ID); err != nil || got.State(noon) != broker.RequestDenied {
		t.Errorf("a pending request that was revoked is %d, %v", got.Status, err)
	}
}

// An issuer that can do something about a credential is told, even where it
// can't say that it is over at once.
func TestTheKillSwitchTellsWhoeverCanAct(t *testing.T) {
	operator := broker.Identity{ID: "admin-socket/0", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: noon.Add(time.Hour)}}
	sys := &system{live: map[string]time.Time{}}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": sys, "tickets": signer{}}})
	w.rules.Catalogue["db"].Revocation = broker.RevokedAtExpiry
	for _, end := range []func(*broker.Issued) error{
		func(*broker.Issued) error {
			_, err := w.broker.RevokeAll(t.Context(), broker.Self(operator, noon), broker.Selector{Issuer: "db"}, "incident", audit.Digest{}, true)
			return errors.Join(err, w.broker.Lift(t.Context(), broker.Self(operator, noon), broker.Selector{Issuer: "db"}, "over"))
		},
		func(i *broker.Issued) error {
			_, err := w.broker.Renew(t.Context(), broker.Self(agent(noon), noon), i.Lease.ID, broker.IdempotencyKey{})
			return err
		},
	} {
		issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		if err := end(issued); err != nil {
			t.Fatal(err)
		}
		if _, err := w.broker.Reap(t.Context(), noon); err != nil {
			t.Fatal(err)
		}
		if _, works := sys.live[string(issued.Lease.Handle)]; works {
			t.Error("its credential still works, though its issuer could have ended it")
		}
	}
}

// A grant that policy has shortened since is as short for what is collected
// late.
func TestShortenedGrant(t *testing.T) {
	w := tokenWorld(t)
	r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	shorter := testRules(t, strings.Replace(testPolicies, `@id("agents-tickets")`, "@id(\"agents-tickets\")\n@max_duration(\"30m\")", 1))
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, shorter); err != nil {
		t.Fatal(err)
	}
	late := noon.Add(25 * time.Minute)
	who := agent(late)
	issued, err := w.broker.Collect(t.Context(), broker.Self(who, late), r.ID, broker.IdempotencyKey{})
	if err != nil || issued.Lease.Expires.After(noon.Add(30*time.Minute)) {
		t.Errorf("collected 25 minutes into a grant of 30: until %s, %v", issued.Lease.Expires, err)
	}
}

// A denial that could not be recorded is not answered as one that was, however
// many there are.
func TestDenialsWithoutAStore(t *testing.T) {
	f := &switchable{}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, wrap: func(s broker.Store) broker.Store { f.Store = s; return f }})
	f.down = true
	for i := range 200 {
		ask := read("tickets:read")
		ask.Justification = fmt.Sprint("attempt ", i)
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(workload("spiffe://acme.test/stranger", noon), noon), ask, broker.IdempotencyKey{})
		if !errors.Is(err, broker.ErrUnavailable) {
			t.Fatalf("denial %d without a record answers %v", i, err)
		}
	}
}

// switchable is a store that can be down for writing.
type switchable struct {
	broker.Store
	down bool
}

func (s *switchable) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if s.down {
		return fmt.Errorf("%w: down", broker.ErrUnavailable)
	}
	return s.Store.Update(ctx, reads, f)
}
