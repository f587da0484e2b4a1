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

// slowSystem issues a credential only when the test lets it proceed.
type slowSystem struct {
	system
	called  chan struct{}
	proceed chan struct{}
}

func newSlowSystem() *slowSystem {
	return &slowSystem{system: system{live: map[string]time.Time{}}, called: make(chan struct{}, 10), proceed: make(chan struct{}, 10)}
}

func (s *slowSystem) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	s.called <- struct{}{}
	<-s.proceed
	return s.system.Issue(ctx, o)
}

// A block or a rule that takes effect while the upstream issues a credential applies
// to that credential, too: it is revoked there and never returned.
func TestDecisionsWhileIssuing(t *testing.T) {
	operator := broker.Identity{ID: "admin-socket/0", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: noon.Add(time.Hour)}}
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, w *world) error
		want      error
	}{
		"kill switch": {func(t *testing.T, w *world) error {
			_, err := w.broker.RevokeAll(t.Context(), broker.Self(operator, noon), broker.Selector{Holder: agent(noon).ID}, "incident", broker.Consent{Force: true})
			return err
		}, broker.ErrBlocked},
		"block": {func(t *testing.T, w *world) error {
			return w.broker.Block(t.Context(), broker.Self(operator, noon), broker.Selector{Issuer: "db"}, "incident", false)
		}, broker.ErrBlocked},
		"forbidding rules": {func(t *testing.T, w *world) error {
			rules := testRules(t, strings.Replace(testPolicies, `spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"db"`, `spiffe://acme.test/other", action == Action::"request", resource == Entitlement::"db"`, 1))
			return w.broker.SetRules(t.Context(), broker.Self(operator, noon), rules)
		}, broker.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			sys := newSlowSystem()
			w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": sys, "tickets": signer{}}})
			answer := make(chan error)
			go func() {
				_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
				answer <- err
			}()
			<-sys.called
			if err := test.meanwhile(t, w); err != nil {
				t.Fatal(err)
			}
			close(sys.proceed)
			if err := <-answer; !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if n := sys.working(noon); n > 0 {
				t.Errorf("got %d working credentials, want 0", n)
			}
			if w.count(t, broker.LeaseActive) > 0 {
				t.Error("got an active lease, want none")
			}
			w.verify(t)
		})
	}
}

// A decision under old rules is never logged after the record of the new rules.
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
		t.Errorf("got %d leases, new rules recorded %t, want at least %d, true", issued, replaced, callers)
	}
}

// A revoked request issues nothing more, and a revoked lease cannot be renewed.
func TestRevokedRequestsAndLeasesStayRevoked(t *testing.T) {
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
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(operator, noon), broker.Selector{Request: r.ID}, "incident", broker.Consent{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon.Add(time.Second)), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrGrantEnded) {
		t.Errorf("collecting a revoked request: got %v, want %v", err, broker.ErrGrantEnded)
	}
	_, issued := collected()
	if _, err := w.broker.Revoke(t.Context(), broker.Self(operator, noon), issued.Lease.ID, "incident"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Renew(t.Context(), broker.Self(agent(noon), noon), issued.Lease.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNotRenewable) {
		t.Errorf("renewing a revoked lease: got %v, want %v", err, broker.ErrNotRenewable)
	}
	waiting := read("tickets:close")
	waiting.Justification = "duplicates"
	pending, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), waiting, broker.IdempotencyKey{})
	if err != nil || pending.State(noon) != broker.RequestPending {
		t.Fatalf("got %+v, %v, want a pending request", pending, err)
	}
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(operator, noon), broker.Selector{Request: pending.ID}, "incident", broker.Consent{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got, err := w.broker.Request(t.Context(), broker.Self(agent(noon), noon), pending.ID); err != nil || got.State(noon) != broker.RequestDenied {
		t.Errorf("revoked pending request: got status %d, %v, want %d", got.Status, err, broker.RequestDenied)
	}
}

// The broker calls the issuer to revoke a credential even if the entitlement does not
// promise immediate revocation.
func TestIssuerIsCalledWithoutImmediateRevocation(t *testing.T) {
	operator := broker.Identity{ID: "admin-socket/0", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: noon.Add(time.Hour)}}
	sys := &system{live: map[string]time.Time{}}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": sys, "tickets": signer{}}})
	w.rules.Catalogue["db"].Revocation = broker.RevokedAtExpiry
	for _, end := range []func(*broker.Issued) error{
		func(*broker.Issued) error {
			_, err := w.broker.RevokeAll(t.Context(), broker.Self(operator, noon), broker.Selector{Issuer: "db"}, "incident", broker.Consent{Force: true})
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
			t.Error("the credential still works, although its issuer could have revoked it")
		}
	}
}

// A shorter @max_duration applies to credentials that are collected later under an
// earlier grant.
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
		t.Errorf("collecting 25 minutes into a grant of 30: got expiry %s, %v, want at most 12:30", issued.Lease.Expires, err)
	}
}

// A denial that cannot be recorded returns ErrUnavailable, however many there are.
func TestDenialsWithoutAStore(t *testing.T) {
	f := &switchable{}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, wrap: func(s broker.Store) broker.Store { f.Store = s; return f }})
	f.down = true
	for i := range 200 {
		ask := read("tickets:read")
		ask.Justification = fmt.Sprint("attempt ", i)
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(workload("spiffe://acme.test/stranger", noon), noon), ask, broker.IdempotencyKey{})
		if !errors.Is(err, broker.ErrUnavailable) {
			t.Fatalf("denial %d without a record: got %v, want %v", i, err, broker.ErrUnavailable)
		}
	}
}

// switchable is a store that fails all writes while it is down.
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
