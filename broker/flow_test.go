package broker_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// signer stands in for the token issuer, without cryptography. A token contains the
// ID of its lease.
type signer struct{}

func (signer) Prepare(context.Context, broker.Order) (broker.Prepared, error) {
	return broker.Prepared{}, nil
}
func (s signer) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	c, err := s.Mint(ctx, o.Lease)
	return c, nil, err
}
func (signer) Revoke(context.Context, broker.Lease) error { return broker.ErrNotRevocable }
func (signer) Mint(_ context.Context, l broker.Lease) (broker.Credential, error) {
	token := "token " + l.ID.String()
	return broker.Credential{
		Type: "bearer", Expires: l.Expires, Hash: sha256.Sum256([]byte(token)),
		Secret: broker.NewSecret(map[string]string{"token": token}),
	}, nil
}

func (signer) Inspect(_ context.Context, token string) (broker.LeaseID, error) {
	if len(token) < 6 {
		return broker.LeaseID{}, broker.ErrNotFound
	}
	return broker.ParseLeaseID(token[6:])
}

func tokenWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}, "db": &system{live: map[string]time.Time{}}}})
	t.Cleanup(func() { w.verify(t) })
	return w
}

func read(scopes ...string) broker.Ask { return broker.Ask{Entitlement: "tickets", Scopes: scopes} }

// kinds returns the kinds of all records except those of the log and the rules.
func (w *world) kinds(t *testing.T) (kinds []audit.Kind) {
	t.Helper()
	for _, r := range w.records(t) {
		if r.Kind != audit.PolicyLoaded && r.Kind != audit.LogOpened {
			kinds = append(kinds, r.Kind)
		}
	}
	return kinds
}

func wantKinds(t *testing.T, w *world, want ...audit.Kind) {
	t.Helper()
	if got := w.kinds(t); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got records %v, want %v", got, want)
	}
}

func TestAskAndCollectWritesOneRecord(t *testing.T) {
	w := tokenWorld(t)
	issued, r, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read", "tickets:comment"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	wantKinds(t, w, audit.LeaseIssued)
	record := w.records(t)[issued.Receipt.Index]
	if record.Lease.ID != issued.Lease.ID.String() || record.Request.ID != r.ID.String() || !record.Decision.Permit ||
		record.Lease.Credential != sha256.Sum256([]byte(issued.Credential.Secret.Reveal()["token"])) {
		t.Errorf("got %+v, want the permitted request and its lease", record)
	}
	if want := noon.Add(10 * time.Minute); !issued.Lease.Expires.Equal(want) {
		t.Errorf("got expiry %s, want %s", issued.Lease.Expires, want)
	}
}

func TestDenialsShareARecord(t *testing.T) {
	w := tokenWorld(t)
	var first broker.RequestID
	for i := range 50 {
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon.Add(time.Duration(i)*time.Second)), broker.Ask{Entitlement: "nothing"}, broker.IdempotencyKey{})
		var refusal *broker.Refusal
		if !errors.As(err, &refusal) || !errors.Is(err, broker.ErrDenied) || refusal.RequestID.IsZero() {
			t.Fatalf("unknown entitlement: got %v, want %v with a request ID", err, broker.ErrDenied)
		}
		if first.IsZero() {
			first = refusal.RequestID
		}
		if refusal.RequestID != first {
			t.Fatalf("denial %d: got request %s, want %s", i, refusal.RequestID, first)
		}
	}
	wantKinds(t, w, audit.RequestDenied)
	if r, err := w.broker.Request(t.Context(), broker.Self(agent(noon), noon), first); err != nil || r.State(noon) != broker.RequestDenied {
		t.Errorf("got %+v, %v, want a denied request", r, err)
	}
	// The other denials are counted at the end of the minute or when the broker stops.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.broker.Run(ctx); err != nil {
		t.Fatal(err)
	}
	wantKinds(t, w, audit.RequestDenied, audit.RequestDenied)
	if records := w.records(t); records[len(records)-1].Count != 49 {
		t.Errorf("second record: got count %d, want 49", records[len(records)-1].Count)
	}
}

// A caller who may not request an entitlement cannot find out whether it exists, or
// what is wrong with the request.
func TestUnknownAndForbiddenEntitlementsLookAlike(t *testing.T) {
	w := tokenWorld(t)
	stranger := workload("spiffe://acme.test/stranger", noon)
	answer := func(ask broker.Ask) string {
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(stranger, noon), ask, broker.IdempotencyKey{})
		var refusal *broker.Refusal
		if !errors.As(err, &refusal) {
			t.Fatalf("%+v: got %v, want a refusal", ask, err)
		}
		return fmt.Sprintf("%s %v %s %v %+v", refusal.Err, refusal.Reasons, refusal.Detail, refusal.DeniedBy, refusal.Allowed)
	}
	want := answer(broker.Ask{Entitlement: "nothing"})
	for _, ask := range []broker.Ask{
		{Entitlement: "tickets"},
		{Entitlement: "tickets", Scopes: []string{"tickets:read"}},
		{Entitlement: "tickets", Scopes: []string{"no:scope"}},
		{Entitlement: "tickets", Scopes: []string{"tickets:read"}, TTL: 99 * time.Hour},
		{Entitlement: "tickets", Scopes: []string{"tickets:read"}, Parameters: map[string]string{"p": "v"}},
	} {
		if got := answer(ask); got != want {
			t.Errorf("%+v: got %q, want %q as for an unknown entitlement", ask, got, want)
		}
	}
}

func TestRefusalShowsReasonsAndLimits(t *testing.T) {
	w := tokenWorld(t)
	evil := workload("spiffe://acme.test/agent/evil/x", noon)
	_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(evil, noon), read("tickets:read"), broker.IdempotencyKey{})
	var refusal *broker.Refusal
	if !errors.As(err, &refusal) || len(refusal.Reasons) != 1 || refusal.Reasons[0] != "this path is under investigation" {
		t.Errorf("forbidden: got %+v, %v, want the reason of the forbid", refusal, err)
	}
	_, _, err = w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, TTL: time.Hour}, broker.IdempotencyKey{})
	if !errors.As(err, &refusal) || !errors.Is(err, broker.ErrInvalidTTL) || refusal.Allowed.MaxTTL != 15*time.Minute {
		t.Errorf("ttl too long: got %+v, %v, want %v with the maximum of 15m", refusal, err, broker.ErrInvalidTTL)
	}
}

func TestPendingRequestIsReusedUntilItLapses(t *testing.T) {
	w := tokenWorld(t)
	ask := read("tickets:close")
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrJustificationRequired) {
		t.Fatalf("without a justification: got %v, want %v", err, broker.ErrJustificationRequired)
	}
	ask.Justification = "the queue is stuck"
	_, first, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{})
	if err != nil || first.State(noon) != broker.RequestPending {
		t.Fatalf("got %+v, %v, want a pending request", first, err)
	}
	_, same, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon.Add(time.Minute)), ask, broker.IdempotencyKey{})
	if err != nil || same.ID != first.ID {
		t.Errorf("identical request: got %s, %v, want %s", same.ID, err, first.ID)
	}
	wantKinds(t, w, audit.RequestCreated)
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), first.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrPending) {
		t.Errorf("collecting a pending request: got %v, want %v", err, broker.ErrPending)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(workload("spiffe://acme.test/agent/other", noon), noon), first.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("collecting another workload's request: got %v, want %v", err, broker.ErrNotFound)
	}
	later := noon.Add(broker.PendingFor)
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(later), later), first.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrLapsed) {
		t.Errorf("collecting a lapsed request: got %v, want %v", err, broker.ErrLapsed)
	}
	if _, again, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(later), later), ask, broker.IdempotencyKey{}); err != nil || again.ID == first.ID {
		t.Errorf("requesting again after the lapse: got %v, %v, want a new request", again, err)
	}
}

func TestTooManyPending(t *testing.T) {
	w := tokenWorld(t)
	var last *broker.Request
	for i := range 21 {
		ask := read("tickets:close")
		ask.Justification = fmt.Sprint("reason ", i)
		_, r, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{})
		if i < 20 && err != nil || i == 20 && !errors.Is(err, broker.ErrTooManyPending) {
			t.Fatalf("pending request %d: got %v, want %v from the 21st on", i, err, broker.ErrTooManyPending)
		}
		if i < 20 {
			last = r
		}
	}
	if _, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), noon), last.ID); err != nil {
		t.Fatal(err)
	}
	ask := read("tickets:close")
	ask.Justification = "another"
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{}); err != nil {
		t.Errorf("after withdrawing one: %v", err)
	}
}

// Limits are enforced for 64 concurrent callers.
func TestLimitsUnderConcurrency(t *testing.T) {
	for path, want := range map[string]struct {
		n   int
		err error
	}{
		"spiffe://acme.test/limited/a": {3, broker.ErrLimit},
		"spiffe://acme.test/active/a":  {2, broker.ErrMaxActive},
	} {
		t.Run(path, func(t *testing.T) {
			w := tokenWorld(t)
			who := workload(path, noon)
			var mu sync.Mutex
			var got []*broker.Issued
			var all sync.WaitGroup
			for range 64 {
				all.Go(func() {
					issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(who, noon), read("tickets:read"), broker.IdempotencyKey{})
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						got = append(got, issued)
					} else if !errors.Is(err, want.err) {
						t.Errorf("got %v, want %v", err, want.err)
					}
				})
			}
			all.Wait()
			if len(got) != want.n {
				t.Fatalf("got %d credentials, want %d", len(got), want.n)
			}
			if _, err := w.broker.Revoke(t.Context(), broker.Self(who, noon), got[0].Lease.ID, ""); err != nil {
				t.Fatal(err)
			}
			_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(who, noon), read("tickets:read"), broker.IdempotencyKey{})
			if freed := want.err == broker.ErrMaxActive; (err == nil) != freed {
				t.Errorf("after returning one: got %v, want success %t", err, freed)
			}
		})
	}
}

func TestRepeatedCollectReplaces(t *testing.T) {
	w := tokenWorld(t)
	r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	again := broker.NewIdempotencyKey(r.Requester.ID, "POST", "/v1/requests/x/credentials", "key-1", nil)
	first, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, again)
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon.Add(time.Second)), r.ID, again)
	if err != nil || second.Lease.Replaces != first.Lease.ID {
		t.Fatalf("repeated call: got %+v, %v, want a replacement of %s", second, err, first.Lease.ID)
	}
	old, err := w.broker.Lease(t.Context(), broker.Self(agent(noon), noon), first.Lease.ID)
	if err != nil || old.Status != broker.LeaseRevoked || old.EndHow != broker.EndAnswerLost || old.Revocation != broker.RevokedAtExpiry {
		t.Errorf("lease of the lost answer: got %+v, %v, want it revoked at expiry", old, err)
	}
	other := broker.NewIdempotencyKey(r.Requester.ID, "POST", "/v1/requests/x/credentials", "key-1", []byte("{}"))
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, other); !errors.Is(err, broker.ErrIdempotencyMismatch) {
		t.Errorf("the same key with another body: got %v, want %v", err, broker.ErrIdempotencyMismatch)
	}
}

func TestLaterCollectionsEndWithTheGrant(t *testing.T) {
	w := tokenWorld(t)
	r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	late := noon.Add(59 * time.Minute)
	first, err := w.broker.Collect(t.Context(), broker.Self(agent(late), late), r.ID, broker.IdempotencyKey{})
	if err != nil || first.Lease.Expires.Sub(late) != 10*time.Minute {
		t.Fatalf("first: got %+v, %v, want the full ttl", first, err)
	}
	second, err := w.broker.Collect(t.Context(), broker.Self(agent(late), late), r.ID, broker.IdempotencyKey{})
	if err != nil || !second.Lease.Expires.Equal(r.CollectUntil) {
		t.Fatalf("second: got %+v, %v, want the end of the grant", second, err)
	}
	over := noon.Add(time.Hour)
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(over), over), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrGrantEnded) {
		t.Errorf("after the grant: got %v, want %v", err, broker.ErrGrantEnded)
	}
}

func TestCollectEvaluatesPolicyAgain(t *testing.T) {
	w := tokenWorld(t)
	r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		policies string
		want     error
	}{
		{`@id("none") forbid (principal, action, resource);`, broker.ErrNoLongerAllowed},
		{`@id("people") @approval("1 of support") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource);`, broker.ErrNeedsNewRequest},
		{`@id("why") @justification("required") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource);`, broker.ErrNeedsNewRequest},
	} {
		if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, testRules(t, c.policies)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.policies, err, c.want)
		}
	}
}

func TestRenewReplacesTheLease(t *testing.T) {
	w := tokenWorld(t)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	at := noon.Add(5 * time.Minute)
	renewed, err := w.broker.Renew(t.Context(), broker.Self(agent(at), at), issued.Lease.ID, broker.IdempotencyKey{})
	if err != nil || renewed.Lease.Replaces != issued.Lease.ID || !renewed.Lease.Expires.Equal(at.Add(10*time.Minute)) {
		t.Fatalf("got %+v, %v, want a replacement of %s for 10m", renewed, err, issued.Lease.ID)
	}
	if _, err := w.broker.Renew(t.Context(), broker.Self(agent(at), at), issued.Lease.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNotRenewable) {
		t.Errorf("renewing the replaced lease: got %v, want %v", err, broker.ErrNotRenewable)
	}
	if _, err := w.broker.Renew(t.Context(), broker.Self(workload("spiffe://acme.test/agent/other", at), at), renewed.Lease.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("renewing another workload's lease: got %v, want %v", err, broker.ErrNotFound)
	}
	wantKinds(t, w, audit.LeaseIssued, audit.LeaseIssued)
}

func TestIntrospection(t *testing.T) {
	w := tokenWorld(t)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	token := issued.Credential.Secret.Reveal()["token"]
	active := func(who broker.Identity, now time.Time) bool {
		in, err := w.broker.Introspect(t.Context(), broker.Self(who, now), token)
		if err != nil {
			t.Fatal(err)
		}
		return in != nil
	}
	server := workload("spiffe://acme.test/tickets", noon)
	if !active(agent(noon), noon) || !active(server, noon) {
		t.Error("holder and resource server: got an inactive token, want an active one")
	}
	if active(workload("spiffe://acme.test/tickets/other", noon), noon) {
		t.Error("another caller: got an active token, want an inactive one")
	}
	if active(server, issued.Lease.Expires) {
		t.Error("at the expiry: got an active token, want an inactive one")
	}
	if err := w.broker.RevokeToken(t.Context(), broker.Self(server, noon), token); err != nil || !active(server, noon) {
		t.Errorf("revocation by the resource server: got %v, want no error and no effect", err)
	}
	if err := w.broker.RevokeToken(t.Context(), broker.Self(agent(noon), noon), token); err != nil || active(server, noon) {
		t.Errorf("revocation by the holder: got %v, want no error and an inactive token", err)
	}
}

func TestExpiredProofGetsNothing(t *testing.T) {
	w := tokenWorld(t)
	who := agent(noon.Add(-time.Hour))
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(who, noon), read("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrProofExpired) {
		t.Errorf("at the expiry of the proof: got %v, want %v", err, broker.ErrProofExpired)
	}
}

// A caller who varies a denied request each time cannot fill the log.
func TestDifferentDenialsAreBounded(t *testing.T) {
	w := tokenWorld(t)
	for i := range 500 {
		ask := broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, Justification: fmt.Sprint("attempt ", i)}
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(workload("spiffe://acme.test/stranger", noon), noon), ask, broker.IdempotencyKey{})
		if !errors.Is(err, broker.ErrDenied) {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.broker.Run(ctx); err != nil {
		t.Fatal(err)
	}
	records, counted := 0, 0
	for _, r := range w.records(t) {
		if r.Kind == audit.RequestDenied {
			records++
			counted += max(r.Count, 1)
		}
	}
	if records > 70 || counted != 500 {
		t.Errorf("got %d records that count %d denials, want at most 70 that count 500", records, counted)
	}
}

// A grant cannot be collected if the catalogue has changed its scopes.
func TestCatalogueChangesUnderAGrant(t *testing.T) {
	w := tokenWorld(t)
	r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	rules := *testRules(t, testPolicies)
	changed := *rules.Catalogue["tickets"]
	changed.Scopes = []string{"tickets:comment"}
	rules.Catalogue = broker.Catalogue{"tickets": &changed}
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, &rules); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNeedsNewRequest) {
		t.Errorf("with a removed scope: got %v, want %v", err, broker.ErrNeedsNewRequest)
	}
}

func TestRenewalsAreCounted(t *testing.T) {
	w := tokenWorld(t)
	who := workload("spiffe://acme.test/limited/a", noon)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(who, noon), read("tickets:read"), broker.IdempotencyKey{})
	for range 2 {
		if err != nil {
			t.Fatal(err)
		}
		issued, err = w.broker.Renew(t.Context(), broker.Self(who, noon), issued.Lease.ID, broker.IdempotencyKey{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Renew(t.Context(), broker.Self(who, noon), issued.Lease.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrLimit) {
		t.Errorf("fourth credential, by renewal: got %v, want %v", err, broker.ErrLimit)
	}
}

func TestInvalidSelectorsAreRefused(t *testing.T) {
	w := tokenWorld(t)
	operator := broker.Identity{ID: "root", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket}}
	for _, s := range []broker.Selector{
		{}, {Holder: "a", Issuer: "b"}, {Under: "spiffe://acme.test"}, {Under: "spiffe://acme.test/agent/"},
		{Holder: "acme.test/agent"}, {TrustDomain: "spiffe://acme.test"}, {Request: broker.NewRequestID(noon)},
	} {
		if err := w.broker.Block(t.Context(), broker.Self(operator, noon), s, "why", false); !errors.Is(err, broker.ErrInvalidRequest) {
			t.Errorf("%+v: got %v, want %v", s, err, broker.ErrInvalidRequest)
		}
	}
}
