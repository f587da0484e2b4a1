package broker_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

func TestExtendsNamesOwnRequest(t *testing.T) {
	w := tokenWorld(t)
	own, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := w.broker.Ask(t.Context(), broker.Self(workload("spiffe://acme.test/agent/other", noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		ask  broker.Ask
		want error
	}{
		"the caller's own":            {broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, Extends: own.ID}, nil},
		"of another entitlement":      {broker.Ask{Entitlement: "db", Extends: own.ID}, broker.ErrInvalidRequest},
		"another caller's":            {broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, Extends: other.ID}, broker.ErrInvalidRequest},
		"a request that is not there": {broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, Extends: broker.NewRequestID(noon)}, broker.ErrInvalidRequest},
	} {
		if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), test.ask, broker.IdempotencyKey{}); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

// A denial names the scopes that policy would permit, and its record has the
// caller's kind.
func TestDenialNamesPermittedScopes(t *testing.T) {
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, policies: `@id("no-close")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets")
unless { context.scopes.contains("tickets:close") };`})
	for _, ask := range []struct {
		who  broker.Identity
		want []string
	}{
		{agent(noon), []string{"tickets:comment", "tickets:read"}},
		{workload("spiffe://acme.test/batch", noon), nil},
	} {
		r, err := w.broker.Ask(t.Context(), broker.Self(ask.who, noon), read("tickets:close", "tickets:read"), broker.IdempotencyKey{})
		var refusal *broker.Refusal
		if !errors.As(err, &refusal) || !errors.Is(err, broker.ErrDenied) || r != nil {
			t.Fatalf("got request %+v, %v, want only a denial", r, err)
		}
		if (refusal.Allowed != nil) != (ask.want != nil) || refusal.Allowed != nil && !slices.Equal(refusal.Allowed.Scopes, ask.want) {
			t.Errorf("%s: got allowed %+v, want scopes %q", ask.who.ID, refusal.Allowed, ask.want)
		}
	}
	records := slices.DeleteFunc(w.records(t), func(r audit.Record) bool { return r.Kind != audit.RequestDenied })
	if len(records) != 2 || records[0].Caller.Kind != string(broker.KindAgent) {
		t.Errorf("got records %+v, want a denial of an agent first", records)
	}
}

func TestAskIsRepeatedWithItsKey(t *testing.T) {
	w := tokenWorld(t)
	key := broker.NewIdempotencyKey("agent", "POST", "/v1/requests", "k", []byte("body"))
	ask := func(dry bool, key broker.IdempotencyKey) *broker.Request {
		t.Helper()
		a := read("tickets:read")
		a.DryRun = dry
		r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), a, key)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := ask(false, key)
	if again := ask(false, key); again.ID != first.ID {
		t.Errorf("got request %s, want %s", again.ID, first.ID)
	}
	if other := ask(false, broker.IdempotencyKey{}); other.ID == first.ID {
		t.Error("a call without a key is answered with an earlier request")
	}
	before := len(w.kinds(t))
	if dry := ask(true, key); !dry.ID.IsZero() || len(w.kinds(t)) != before {
		t.Errorf("a dry run with the key: got request %s, %d records", dry.ID, len(w.kinds(t))-before)
	}
	other := broker.NewIdempotencyKey("agent", "POST", "/v1/requests", "k", []byte("another body"))
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), other); !errors.Is(err, broker.ErrIdempotencyMismatch) {
		t.Errorf("another body: got %v, want %v", err, broker.ErrIdempotencyMismatch)
	}
}

// Two calls with one key at the same moment file one request.
func TestKeyOvertakenByItsRepeat(t *testing.T) {
	var before func()
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, wrap: func(s broker.Store) broker.Store { return hookedStore{s, &before} }})
	key := broker.NewIdempotencyKey("agent", "POST", "/v1/requests", "k", nil)
	ask := func() *broker.Request {
		t.Helper()
		r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), key)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	var overtaking *broker.Request
	before = func() { overtaking = ask() }
	if r := ask(); overtaking == nil || r.ID != overtaking.ID {
		t.Errorf("got request %s, want %+v", r.ID, overtaking)
	}
	created := slices.DeleteFunc(w.kinds(t), func(k audit.Kind) bool { return k != audit.RequestCreated })
	if len(created) != 1 {
		t.Errorf("got %d requests, want 1", len(created))
	}
}

// An identical request is answered with the granted one for as long as the grant
// lasts, which is longer than the request could have been pending.
func TestGrantedRequestIsReused(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	r := w.ask(t, read("tickets:close"))
	approved := noon.Add(30 * time.Minute)
	if _, err := w.vote(t, approver("ben", approved), r, yes, approved); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		after time.Duration
		same  bool
	}{{75 * time.Minute, true}, {90 * time.Minute, false}} {
		at := noon.Add(test.after)
		next, err := w.broker.Ask(t.Context(), broker.Self(agent(at), at), read("tickets:close"), broker.IdempotencyKey{})
		if err != nil || (next.ID == r.ID) != test.same || next.Reused != test.same {
			t.Errorf("after %s: got %+v, %v, want the same request: %t", test.after, next, err, test.same)
		}
	}
}

// Only the first credential may outlive the grant, also if one call requested and
// collected it.
func TestLaterCredentialsEndWithTheGrant(t *testing.T) {
	w := tokenWorld(t)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if r := issued.Request; !r.FirstExpires.Equal(issued.Lease.Expires) {
		t.Errorf("got first expiry %s, want %s", r.FirstExpires, issued.Lease.Expires)
	}
	at := noon.Add(55 * time.Minute)
	later, err := w.broker.Collect(t.Context(), broker.Self(agent(at), at), issued.Request.ID, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if want := noon.Add(time.Hour); !later.Lease.Expires.Equal(want) {
		t.Errorf("got a credential until %s, want the end of the grant, %s", later.Lease.Expires, want)
	}
}

// The metrics count each decision, request, approval and issued credential.
func TestEventsAreObserved(t *testing.T) {
	var got []broker.Event
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, policies: closePolicies(`@approval("1 of support")`), observe: func(e broker.Event) { got = append(got, e) }})
	codes := func(kind broker.EventKind) (list []string) {
		for _, e := range got {
			if e.Kind == kind {
				list = append(list, e.Code)
			}
		}
		return list
	}
	r := w.ask(t, read("tickets:close"))
	if codes := codes(broker.EventRequest); !slices.Equal(codes, []string{"pending"}) {
		t.Errorf("got requests %q", codes)
	}
	if !slices.Contains(codes(broker.EventDecision), "permit") || slices.Contains(codes(broker.EventDecision), "deny") {
		t.Errorf("got decisions %q", codes(broker.EventDecision))
	}
	if _, err := w.broker.Ask(t.Context(), broker.Self(workload("spiffe://acme.test/other", noon), noon), read("tickets:close"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrDenied) {
		t.Fatal(err)
	}
	if codes := codes(broker.EventRequest); !slices.Equal(codes, []string{"pending", "denied"}) {
		t.Errorf("got requests %q", codes)
	}
	if !slices.Contains(codes(broker.EventDecision), "deny") {
		t.Errorf("got decisions %q", codes(broker.EventDecision))
	}
	at := noon.Add(time.Minute)
	if _, err := w.vote(t, approver("ben", at), r, yes, at); err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(got, func(e broker.Event) bool { return e.Kind == broker.EventApproved }); i < 0 || got[i].Took != time.Minute || got[i].Entitlement != "tickets" {
		t.Errorf("got %+v, want an approval after a minute", got)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(at), at), r.ID, broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(got, func(e broker.Event) bool { return e.Kind == broker.EventIssued }); i < 0 || got[i].TTL != 10*time.Minute {
		t.Errorf("got %+v, want an issued credential", got)
	}
}
