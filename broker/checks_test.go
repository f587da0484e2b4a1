package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// adoptChanged puts other rules into force: those of the policies and the test
// groups, with a change.
func (w *world) adoptChanged(t *testing.T, policies string, change func(*broker.Rules)) {
	t.Helper()
	rules := testRules(t, policies)
	change(rules)
	rules.Revision[0] ^= 1
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, rules); err != nil {
		t.Fatal(err)
	}
}

func TestApproversOnlyNarrow(t *testing.T) {
	for name, test := range map[string]struct {
		vote broker.Vote
		want error
	}{
		"a requested scope and another":      {broker.Vote{Approve: true, Scopes: []string{"tickets:comment", "tickets:read"}}, broker.ErrInvalidScope},
		"a scope twice":                      {broker.Vote{Approve: true, Scopes: []string{"tickets:read", "tickets:read"}}, broker.ErrInvalidScope},
		"one of two scopes":                  {broker.Vote{Approve: true, Scopes: []string{"tickets:read"}}, nil},
		"less than the issuer's minimum":     {broker.Vote{Approve: true, TTL: time.Minute}, broker.ErrInvalidTTL},
		"the issuer's minimum":               {broker.Vote{Approve: true, TTL: 2 * time.Minute}, nil},
		"a comment of the largest size":      {broker.Vote{Approve: true, Comment: strings.Repeat("x", broker.MaxComment)}, nil},
		"a comment above the largest size":   {broker.Vote{Approve: true, Comment: strings.Repeat("x", broker.MaxComment+1)}, broker.ErrInvalidRequest},
		"a fraction of a second":             {broker.Vote{Approve: true, TTL: 5*time.Minute + time.Millisecond}, broker.ErrInvalidTTL},
		"the duration, a fraction of second": {broker.Vote{Approve: true, Duration: time.Minute + time.Millisecond}, broker.ErrInvalidTTL},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, ``)
			w.adoptChanged(t, closePolicies(`@approval("1 of support")`), func(r *broker.Rules) { r.Catalogue["tickets"].MinTTL = 2 * time.Minute })
			r := w.ask(t, read("tickets:close", "tickets:read"))
			if _, err := w.vote(t, approver("ben", noon), r, test.vote, noon); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// If the requester's team has members by claims, stale claims may hide that the
// approver is one of them.
func TestExcludedTeamByClaims(t *testing.T) {
	policies := closePolicies(`@approval("1 of support") @exclude_team("yes")`)
	w := peopleWorld(t, ``)
	w.adopt(t, policies, strings.ReplaceAll(testGroups, "agents: {members: [login/ben]}", "agents: {claims: [{provider: login, group: agents}]}"))
	stale := approver("cleo", noon)
	stale.Person.Claimed = noon.Add(-broker.ClaimsFor - time.Second)
	for _, test := range []struct {
		name string
		who  broker.Identity
		want error
	}{
		{"stale claims", stale, broker.ErrLoginStale},
		{"a member by a claim", approver("cleo", noon, "agents"), broker.ErrOwnRequest},
		{"no member", approver("cleo", noon), nil},
	} {
		r := w.ask(t, read("tickets:close"))
		if _, err := w.vote(t, test.who, r, yes, noon); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
}

// Members of an excluded team do not count as possible approvers.
func TestQuorumWithoutExcludedTeam(t *testing.T) {
	for need, want := range map[string]error{
		"1 of agents":  broker.ErrNobodyCanApprove, // only ben, who is in the team
		"2 of support": broker.ErrNobodyCanApprove, // ana is accountable, ben is in the team
		"1 of support": nil,
	} {
		w := peopleWorld(t, `@approval("`+need+`") @exclude_team("yes")`)
		if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:close"), broker.IdempotencyKey{}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", need, err, want)
		}
	}
}

func TestClaimsAge(t *testing.T) {
	w := peopleWorld(t, ``)
	listed := `support: {members: [login/ana, login/ben, login/cleo], claims: []}
security: {members: [login/ben]}
agents: {members: [login/ben]}
`
	claimed := func(age time.Duration) broker.Caller {
		who := approver("lea", noon)
		who.Person.Claimed = noon.Add(-age)
		return broker.Self(who, noon)
	}
	for _, test := range []struct {
		name   string
		groups string
		caller broker.Caller
		stale  bool
	}{
		{"at the bound", testGroups, claimed(broker.ClaimsFor), false},
		{"above the bound", testGroups, claimed(broker.ClaimsFor + time.Second), true},
		{"only listed members", listed, claimed(time.Hour), false},
		{"a workload", testGroups, broker.Self(agent(noon), noon), false},
	} {
		w.adopt(t, closePolicies(``), test.groups)
		age, stale := w.broker.ClaimsAge(test.caller)
		if stale != test.stale {
			t.Errorf("%s: got age %s, stale %t, want %t", test.name, age, stale, test.stale)
		}
		if p := test.caller.Subject.Person; p == nil && age != 0 || p != nil && age != noon.Sub(p.Claimed) {
			t.Errorf("%s: got age %s", test.name, age)
		}
	}
}

// A doubtfulPolicy permits, and returns an error too.
type doubtfulPolicy struct{ broker.Policy }

func (p doubtfulPolicy) Decide(ctx context.Context, q broker.Query, now time.Time) (broker.Decision, error) {
	d, err := p.Policy.Decide(ctx, q, now)
	return d, errors.Join(err, errors.New("evaluating a policy"))
}

// A policy error denies the call, even if the decision permits.
func TestPolicyErrorDenies(t *testing.T) {
	policies := closePolicies(`@approval("1 of support")`)
	w := peopleWorld(t, ``)
	w.adopt(t, policies, testGroups)
	pending, granted := w.ask(t, read("tickets:close")), w.ask(t, read("tickets:comment"))
	if _, err := w.vote(t, approver("cleo", noon), granted, yes, noon); err != nil {
		t.Fatal(err)
	}
	w.adoptChanged(t, policies, func(r *broker.Rules) { r.Policy = doubtfulPolicy{r.Policy} })
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("requesting: got %v, want %v", err, broker.ErrDenied)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), granted.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNoLongerAllowed) {
		t.Errorf("collecting: got %v, want %v", err, broker.ErrNoLongerAllowed)
	}
	if _, err := w.vote(t, approver("ben", noon), pending, yes, noon); !errors.Is(err, broker.ErrNotApprover) {
		t.Errorf("approving: got %v, want %v", err, broker.ErrNotApprover)
	}
	if offers, err := w.broker.Entitlements(t.Context(), broker.Self(agent(noon), noon)); err != nil || len(offers) != 0 {
		t.Errorf("got offers %+v, %v, want none", offers, err)
	}
}

// A grant is not collected if the entitlement has changed since.
func TestCollectAfterTheEntitlementChanged(t *testing.T) {
	policies := closePolicies(`@approval("1 of support")`)
	for name, test := range map[string]struct {
		change func(*broker.Entitlement)
		want   error
	}{
		"the effect":      {func(e *broker.Entitlement) { e.Effect = audit.Digest{9} }, broker.ErrNeedsNewRequest},
		"a removed scope": {func(e *broker.Entitlement) { e.Scopes = []string{"tickets:comment", "tickets:read"} }, broker.ErrNeedsNewRequest},
		"the owner":       {func(e *broker.Entitlement) { e.Owner = "security" }, nil},
	} {
		w := peopleWorld(t, `@approval("1 of support")`)
		r := w.ask(t, read("tickets:close"))
		if _, err := w.vote(t, approver("cleo", noon), r, yes, noon); err != nil {
			t.Fatal(err)
		}
		w.adoptChanged(t, policies, func(rules *broker.Rules) { test.change(rules.Catalogue["tickets"]) })
		if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

// If policy allows less time than at the approval, a ttl that the requester chose
// needs a new request, and others are cut. The grant ends by the new duration.
func TestCollectUnderShorterLimits(t *testing.T) {
	shorter := closePolicies(`@approval("1 of support") @max_ttl("5m") @max_duration("20m")`)
	for name, test := range map[string]struct {
		ttl   time.Duration
		after time.Duration
		want  error
	}{
		"a chosen ttl above the limit": {10 * time.Minute, 0, broker.ErrNeedsNewRequest},
		"a chosen ttl at the limit":    {5 * time.Minute, 0, nil},
		"no chosen ttl":                {0, 0, nil},
		"before the new end":           {0, 20*time.Minute - time.Second, nil},
		"at the new end":               {0, 20 * time.Minute, broker.ErrGrantEnded},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, `@approval("1 of support")`)
			ask := read("tickets:close")
			ask.TTL = test.ttl
			r := w.ask(t, ask)
			if _, err := w.vote(t, approver("cleo", noon), r, yes, noon); err != nil {
				t.Fatal(err)
			}
			w.adopt(t, shorter, testGroups)
			at := noon.Add(test.after)
			issued, err := w.broker.Collect(t.Context(), broker.Self(agent(at), at), r.ID, broker.IdempotencyKey{})
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && issued.Lease.Expires.Sub(at) != 5*time.Minute {
				t.Errorf("got a credential for %s, want 5m", issued.Lease.Expires.Sub(at))
			}
		})
	}
}

// Tokens that are bound to a client certificate are issued only over a certificate that is
// valid. They may outlive it, because they are also bound to its SPIFFE ID.
func TestBoundTokens(t *testing.T) {
	w := tokenWorld(t)
	w.adoptChanged(t, testPolicies, func(r *broker.Rules) { r.Catalogue["tickets"].Binding = broker.BindingMTLS })
	collect := func(method broker.Method, left time.Duration) (*broker.Issued, error) {
		who := agent(noon)
		who.Proof = broker.Proof{Method: method, SHA256: audit.Digest{3}, Expires: noon.Add(left)}
		issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(who, noon), read("tickets:read"), broker.IdempotencyKey{})
		return issued, err
	}
	if _, err := collect(broker.MethodJWTSVID, time.Hour); !errors.Is(err, broker.ErrBindingRequiresMTLS) {
		t.Errorf("with a JWT-SVID: got %v, want %v", err, broker.ErrBindingRequiresMTLS)
	}
	for _, left := range []time.Duration{time.Hour, 3 * time.Minute} {
		issued, err := collect(broker.MethodX509SVID, left)
		if err != nil {
			t.Fatal(err)
		}
		if l := issued.Lease; l.Confirm != (audit.Digest{3}) || l.Expires.Sub(noon) != 10*time.Minute {
			t.Errorf("a certificate valid for %s: got a token for %s bound to %v, want 10m", left, l.Expires.Sub(noon), l.Confirm)
		}
	}
	if _, err := collect(broker.MethodX509SVID, -time.Second); !errors.Is(err, broker.ErrProofExpired) {
		t.Errorf("with an expired certificate: got %v, want %v", err, broker.ErrProofExpired)
	}
}

// The digest of a preview names exactly the selector and the selected leases.
func TestPreviewDigest(t *testing.T) {
	w := tokenWorld(t)
	issue := func() {
		t.Helper()
		if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
			t.Fatal(err)
		}
	}
	preview := func(s broker.Selector) audit.Digest {
		t.Helper()
		p, err := w.broker.Preview(t.Context(), broker.Self(root, noon), s)
		if err != nil {
			t.Fatal(err)
		}
		return p.Digest
	}
	holder, under := broker.Selector{Holder: "spiffe://acme.test/agent/triage"}, broker.Selector{Under: "spiffe://acme.test/agent"}
	issue()
	before := preview(holder)
	if before != preview(holder) {
		t.Error("two previews of the same leases differ")
	}
	if before == preview(under) {
		t.Error("another selector has the same digest")
	}
	issue()
	if before == preview(holder) {
		t.Error("another lease has the same digest")
	}
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), holder, "incident", broker.Consent{Seen: before}); !errors.Is(err, broker.ErrPreviewStale) {
		t.Errorf("got %v, want %v", err, broker.ErrPreviewStale)
	}
}

// The log and the list of blocks show each block that is placed or lifted.
func TestBlocksAreRecorded(t *testing.T) {
	w := tokenWorld(t)
	w.broker = w.restart(t, map[string]broker.Issuer{"tickets": signer{}, "db": &system{live: map[string]time.Time{}}})
	holder := broker.Selector{Holder: "spiffe://acme.test/agent/triage"}
	operator := broker.Self(root, noon)
	blocked := func(want bool) {
		t.Helper()
		if got, err := w.broker.Blocked(t.Context(), broker.Self(agent(noon), noon)); err != nil || got != want {
			t.Errorf("got blocked %t, %v, want %t", got, err, want)
		}
		if list, err := w.broker.Targets(t.Context(), operator); err != nil || (len(list.Blocks) == 1) != want {
			t.Errorf("got %+v, %v, want one block: %t", list, err, want)
		}
	}
	blocked(false)
	for range 2 { // the second one changes nothing
		if err := w.broker.Block(t.Context(), operator, holder, "incident", true); err != nil {
			t.Fatal(err)
		}
	}
	blocked(true)
	if err := w.broker.Lift(t.Context(), operator, holder, "over"); err != nil {
		t.Fatal(err)
	}
	blocked(false)
	if err := w.broker.Lift(t.Context(), operator, holder, "over"); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("lifting it twice: got %v, want %v", err, broker.ErrNotFound)
	}
	kinds := slices.DeleteFunc(w.kinds(t), func(k audit.Kind) bool { return k != audit.BlockPlaced && k != audit.BlockLifted })
	if !slices.Equal(kinds, []audit.Kind{audit.BlockPlaced, audit.BlockLifted}) {
		t.Errorf("got records %v", kinds)
	}
}

// The kill switch on a pending request denies it, notifies its approvers and frees
// its place in the queue.
func TestKillSwitchOnPendingRequest(t *testing.T) {
	r := &receiver{}
	w := peopleWorld(t, `@approval("1 of support")`).withChannel(t, r)
	var asked *broker.Request
	for n := 0; ; n++ {
		next, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), withReason(read("tickets:close"), fmt.Sprint("reason ", n)), broker.IdempotencyKey{})
		if errors.Is(err, broker.ErrTooManyPending) {
			break
		}
		if err != nil || n > 1000 {
			t.Fatalf("request %d: got %v, want a full queue", n, err)
		}
		asked = next
	}
	w.deliver(t, noon)
	r.calls = nil
	selector := broker.Selector{Request: asked.ID}
	for range 2 { // the second one changes nothing
		if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), selector, "incident", broker.Consent{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	w.deliver(t, noon)
	if got := r.events(); !slices.Equal(got, []broker.NoticeEvent{broker.NoticeDenied}) {
		t.Errorf("got events %v, want one denial", got)
	}
	if _, err := w.vote(t, approver("ben", noon), asked, yes, noon); !errors.Is(err, broker.ErrNotPending) {
		t.Errorf("a vote: got %v, want %v", err, broker.ErrNotPending)
	}
	w.ask(t, withReason(read("tickets:close"), "in the free place"))
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), withReason(read("tickets:close"), "one more"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrTooManyPending) {
		t.Errorf("above the bound: got %v, want %v", err, broker.ErrTooManyPending)
	}
}

// Leases of an entitlement that has left the catalogue can still be revoked.
func TestKillSwitchOnRemovedEntitlement(t *testing.T) {
	w := tokenWorld(t)
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	w.adoptChanged(t, testPolicies, func(r *broker.Rules) { delete(r.Catalogue, "db") })
	p, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), broker.Selector{Entitlement: "db"}, "incident", broker.Consent{Force: true})
	if err != nil || p.Leases != 1 || p.ByIssuer["db"] != 1 {
		t.Errorf("got %+v, %v, want one revoked lease", p, err)
	}
	if live := w.count(t, broker.LeaseActive); live != 0 {
		t.Errorf("%d leases are active", live)
	}
}
