package broker_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// delegationPolicies let people use the tickets through agents, and agents have sub-agents.
const delegationPolicies = `
@id("people") @delegates("2") @max_ttl("12m")
permit (principal in Group::"support", action == Action::"request", resource == Entitlement::"tickets")
when { context has actor } unless { context.scopes.contains("tickets:close") };

@id("people-close") @delegates("2") @approval("1 of security")
permit (principal in Group::"support", action == Action::"request", resource == Entitlement::"tickets")
when { context has actor && context.scopes.contains("tickets:close") };

@id("agents") @delegates("2")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets");

@id("other-agents")
permit (principal in Path::"spiffe://acme.test/other", action == Action::"request", resource == Entitlement::"tickets");
`

const (
	triage = "spiffe://acme.test/agent/triage"
	search = "spiffe://acme.test/agent/search"
	fetch  = "spiffe://acme.test/agent/fetch"
	deep   = "spiffe://acme.test/agent/deep"
)

// proofs counts the proofs of people, each of which is another token.
var proofs atomic.Uint64

// onBehalf returns the delegation that package attest would return for a person's ID-JAG.
func onBehalf(name string, now time.Time) *broker.Delegation {
	who := person(name, now)
	who.Proof.Method = broker.MethodIDJAG
	binary.BigEndian.PutUint64(who.Proof.SHA256[1:], proofs.Add(1))
	return &broker.Delegation{Subject: who}
}

func delegated(d *broker.Delegation, scopes ...string) broker.Ask {
	ask := read(scopes...)
	ask.Delegation = d
	return ask
}

func delegationWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, worldConfig{policies: delegationPolicies, issuers: map[string]broker.Issuer{"tickets": signer{}, "db": &system{live: map[string]time.Time{}}}})
	t.Cleanup(func() { w.verify(t) })
	return w
}

// get collects a token at once.
func (w *world) get(t *testing.T, who string, ask broker.Ask, now time.Time) *broker.Issued {
	t.Helper()
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(workload(who, now), now), ask, broker.IdempotencyKey{})
	if err != nil || issued == nil {
		t.Fatalf("%s: got %v, %v", who, issued, err)
	}
	return issued
}

// exchange exchanges the token of another workload.
func (w *world) exchange(t *testing.T, who string, from *broker.Issued, now time.Time, scopes ...string) (*broker.Issued, error) {
	t.Helper()
	caller := broker.Self(workload(who, now), now)
	d, err := broker.DelegationOf(t.Context(), w.broker, caller, token(from))
	if err != nil {
		return nil, err
	}
	issued, _, err := w.broker.AskAndCollect(t.Context(), caller, delegated(d, scopes...), broker.IdempotencyKey{})
	return issued, err
}

func token(from *broker.Issued) string { return from.Credential.Secret.Reveal()["token"] }

// active reports whether a token is active, as its resource server sees it.
func (w *world) active(t *testing.T, issued *broker.Issued, now time.Time) bool {
	t.Helper()
	in, err := w.broker.Introspect(t.Context(), broker.Self(workload("spiffe://acme.test/tickets", now), now), token(issued))
	if err != nil {
		t.Fatal(err)
	}
	return in != nil
}

// An agent gets what policy permits both to it and to the person. The lease and the record
// name both, with both decisions.
func TestDelegationIsDecidedOnBothSides(t *testing.T) {
	w := delegationWorld(t)
	issued := w.get(t, triage, delegated(onBehalf("ana", noon), "tickets:read"), noon)
	l := issued.Lease
	if l.Holder != triage || l.Subject != "login/ana" || len(l.Actors) != 0 || !l.Parent.IsZero() {
		t.Errorf("got %+v", l)
	}
	record := w.records(t)[issued.Receipt.Index]
	if record.Caller.ID != triage || record.Subject == nil || record.Subject.ID != "login/ana" || record.Subject.Method != string(broker.MethodIDJAG) || record.Subject.Proof.IsZero() {
		t.Errorf("got caller %+v, subject %+v", record.Caller, record.Subject)
	}
	if record.Delegated == nil || !record.Delegated.Permit || !slices.Equal(record.Delegated.Policies, []string{"people"}) || !slices.Equal(record.Decision.Policies, []string{"agents"}) {
		t.Errorf("got decision %+v, delegated %+v", record.Decision, record.Delegated)
	}
	if record.Decision.MaxTTL != 12*time.Minute {
		t.Errorf("got max_ttl %s, want the sum of both sides", record.Decision.MaxTTL)
	}
}

// Silence on either side denies, and the record shows both decisions.
func TestDelegationSilenceDenies(t *testing.T) {
	for name, test := range map[string]struct {
		who, subject string
		subjects     bool // policy permits the subject
	}{
		"person": {triage, "zoe", false},
		"agent":  {"spiffe://acme.test/batch", "ana", true},
		"both":   {"spiffe://acme.test/batch", "zoe", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := delegationWorld(t)
			_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(workload(test.who, noon), noon), delegated(onBehalf(test.subject, noon), "tickets:read"), broker.IdempotencyKey{})
			if !errors.Is(err, broker.ErrDenied) {
				t.Fatalf("got %v, want a denial", err)
			}
			all := w.records(t)
			record := all[len(all)-1]
			if record.Kind != audit.RequestDenied || record.Subject == nil || record.Subject.ID != "login/"+test.subject || record.Decision.Permit || record.Delegated == nil || record.Delegated.Permit != test.subjects {
				t.Errorf("got %+v, subject %+v, delegated %+v", record, record.Subject, record.Delegated)
			}
		})
	}
}

// A proof with an ID counts once, also for calls at the same time and after a restart. A dry
// run does not use it up, and neither does a denial.
func TestProofCountsOnce(t *testing.T) {
	w := delegationWorld(t)
	single := func() *broker.Delegation {
		d := onBehalf("ana", noon)
		d.ID, d.IDUntil = "https://login.acme.test jti-1", noon.Add(5*time.Minute)
		return d
	}
	dry := delegated(single(), "tickets:read")
	dry.DryRun = true
	if _, err := w.broker.Ask(t.Context(), broker.Self(workload(triage, noon), noon), dry, broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Ask(t.Context(), broker.Self(workload("spiffe://acme.test/batch", noon), noon), delegated(single(), "tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrDenied) {
		t.Fatalf("got %v, want a denial", err)
	}
	const callers = 8
	answers := make(chan error, callers)
	for range callers {
		go func() {
			_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(workload(triage, noon), noon), delegated(single(), "tickets:read"), broker.IdempotencyKey{})
			answers <- err
		}()
	}
	issued := 0
	for range callers {
		if err := <-answers; err == nil {
			issued++
		} else if !errors.Is(err, broker.ErrProofReplayed) {
			t.Errorf("got %v, want %v", err, broker.ErrProofReplayed)
		}
	}
	if issued != 1 {
		t.Errorf("got %d tokens for one proof, want 1", issued)
	}
	for _, scope := range []string{"tickets:read", "tickets:close"} { // a grant, and a request that waits for people
		if _, err := w.restart(t, map[string]broker.Issuer{"tickets": signer{}}).Ask(t.Context(), broker.Self(workload(search, noon), noon), delegated(single(), scope), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrProofReplayed) {
			t.Errorf("%s: got %v, want %v", scope, err, broker.ErrProofReplayed)
		}
	}
}

// A proof for an identical ask that waits is used up, too.
func TestProofIsUsedUpByAReusedRequest(t *testing.T) {
	w := delegationWorld(t)
	ask := func(id string) (*broker.Request, error) {
		d := onBehalf("ana", noon)
		d.ID, d.IDUntil = id, noon.Add(5*time.Minute)
		return w.broker.Ask(t.Context(), broker.Self(workload(triage, noon), noon), delegated(d, "tickets:close"), broker.IdempotencyKey{})
	}
	first, err := ask("one")
	if err != nil {
		t.Fatal(err)
	}
	again, err := ask("two")
	if err != nil || again.ID != first.ID || !again.Reused {
		t.Errorf("got %v, %v, want the waiting request", again, err)
	}
	for _, id := range []string{"one", "two"} {
		if _, err := ask(id); !errors.Is(err, broker.ErrProofReplayed) {
			t.Errorf("%s: got %v, want %v", id, err, broker.ErrProofReplayed)
		}
	}
}

// What the proof does not allow is refused: other actors, scopes and resources, and callers
// that are no workloads.
func TestProofBoundsTheAsk(t *testing.T) {
	for name, test := range map[string]struct {
		change func(d *broker.Delegation, ask *broker.Ask)
		want   error
	}{
		"another actor":  {func(d *broker.Delegation, _ *broker.Ask) { d.MayAct = []string{search} }, broker.ErrActorNotAllowed},
		"no actor":       {func(d *broker.Delegation, _ *broker.Ask) { d.MayAct = []string{} }, broker.ErrActorNotAllowed},
		"wider scope":    {func(d *broker.Delegation, _ *broker.Ask) { d.Scopes = []string{"tickets:comment"} }, broker.ErrInvalidScope},
		"no scope":       {func(d *broker.Delegation, _ *broker.Ask) { d.Scopes = []string{} }, broker.ErrInvalidScope},
		"other resource": {func(d *broker.Delegation, _ *broker.Ask) { d.Resource = "https://other.acme.test" }, broker.ErrInvalidTarget},
		"expired":        {func(d *broker.Delegation, _ *broker.Ask) { d.Subject.Proof.Expires = noon }, broker.ErrProofExpired},
		"itself":         {func(d *broker.Delegation, _ *broker.Ask) { d.Subject = workload(triage, noon) }, broker.ErrDelegation},
		"a workload":     {func(d *broker.Delegation, _ *broker.Ask) { d.Subject = workload(search, noon) }, broker.ErrDelegation},
		"made-up chain":  {func(d *broker.Delegation, _ *broker.Ask) { d.Actors = []string{search} }, nil}, // the domain derives it
		"named actor":    {func(d *broker.Delegation, _ *broker.Ask) { d.MayAct = []string{search, triage} }, nil},
		"own scopes": {func(d *broker.Delegation, ask *broker.Ask) {
			d.Scopes, ask.Scopes = []string{"other", "tickets:read"}, nil
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := delegationWorld(t)
			ask := delegated(onBehalf("ana", noon), "tickets:read")
			test.change(ask.Delegation, &ask)
			issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(workload(triage, noon), noon), ask, broker.IdempotencyKey{})
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && (len(issued.Lease.Actors) > 0 || !slices.Equal(issued.Lease.Scopes, []string{"tickets:read"})) {
				t.Errorf("got %+v", issued.Lease)
			}
		})
	}
	w := delegationWorld(t)
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(approver("ben", noon), noon), delegated(onBehalf("ana", noon), "tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrDelegation) {
		t.Errorf("a person: got %v, want %v", err, broker.ErrDelegation)
	}
}

// A sub-agent's token names the chain, and is narrower than the one that it exchanged.
func TestSubAgentsNarrow(t *testing.T) {
	w := delegationWorld(t)
	first := w.get(t, triage, delegated(onBehalf("ana", noon), "tickets:comment", "tickets:read"), noon)
	later := noon.Add(time.Minute)
	second, err := w.exchange(t, search, first, later, "tickets:read")
	if err != nil {
		t.Fatal(err)
	}
	third, err := w.exchange(t, fetch, second, later)
	if err != nil {
		t.Fatal(err)
	}
	if l := third.Lease; l.Subject != "login/ana" || !slices.Equal(l.Actors, []string{triage, search}) || l.Parent != second.Lease.ID || !slices.Equal(l.Scopes, []string{"tickets:read"}) || l.Expires.After(first.Lease.Expires) {
		t.Errorf("got %+v", l)
	}
	record := w.records(t)[third.Receipt.Index]
	if !slices.Equal(record.Caller.Actors, []string{triage, search}) || record.Subject.ID != "login/ana" || record.Request.Parent != second.Lease.ID.String() || record.Delegated == nil {
		t.Errorf("got %+v, caller %+v", record.Request, record.Caller)
	}
	for name, test := range map[string]struct {
		who    string
		from   *broker.Issued
		change func(*broker.Ask)
		want   error
	}{
		"depth":             {deep, third, func(*broker.Ask) {}, broker.ErrDelegation},
		"loop":              {triage, second, func(*broker.Ask) {}, broker.ErrDelegation},
		"own token":         {search, second, func(*broker.Ask) {}, broker.ErrDelegation},
		"wider scope":       {fetch, second, func(a *broker.Ask) { a.Scopes = []string{"tickets:comment"} }, broker.ErrInvalidScope},
		"longer time":       {fetch, second, func(a *broker.Ask) { a.TTL = 12 * time.Minute }, broker.ErrInvalidTTL},
		"other entitlement": {fetch, second, func(a *broker.Ask) { a.Entitlement, a.Scopes = "db", nil }, broker.ErrDelegation},
		"no @delegates":     {"spiffe://acme.test/other/x", first, func(a *broker.Ask) { a.Scopes = []string{"tickets:read"} }, broker.ErrDenied},
		"no permit":         {"spiffe://acme.test/batch", first, func(a *broker.Ask) { a.Scopes = []string{"tickets:read"} }, broker.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			caller := broker.Self(workload(test.who, later), later)
			d, err := broker.DelegationOf(t.Context(), w.broker, caller, token(test.from))
			if err != nil {
				t.Fatal(err)
			}
			ask := broker.Ask{Entitlement: "tickets", Delegation: d}
			test.change(&ask)
			if _, _, err := w.broker.AskAndCollect(t.Context(), caller, ask, broker.IdempotencyKey{}); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// A workload's own token starts a chain as well: the workload is the subject.
func TestSubAgentOfAWorkload(t *testing.T) {
	w := delegationWorld(t)
	own := w.get(t, triage, read("tickets:read"), noon)
	child, err := w.exchange(t, search, own, noon)
	if err != nil {
		t.Fatal(err)
	}
	grandchild, err := w.exchange(t, fetch, child, noon)
	if err != nil {
		t.Fatal(err)
	}
	if l := grandchild.Lease; l.Subject != triage || !slices.Equal(l.Actors, []string{search}) {
		t.Errorf("got %+v", l)
	}
	if _, err := w.exchange(t, deep, grandchild, noon); !errors.Is(err, broker.ErrDelegation) {
		t.Errorf("depth: got %v, want %v", err, broker.ErrDelegation)
	}
	if _, err := w.exchange(t, triage, grandchild, noon); !errors.Is(err, broker.ErrDelegation) {
		t.Errorf("loop to the subject: got %v, want %v", err, broker.ErrDelegation)
	}
}

// The end of any link ends everything below it: at once for resource servers, and durably.
func TestEndOfALinkEndsWhatIsBelow(t *testing.T) {
	operator := broker.Identity{ID: "admin-socket/0", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: noon.Add(time.Hour)}}
	at := broker.Self(operator, noon)
	chain := func(t *testing.T, w *world) (links [3]*broker.Issued) {
		links[0] = w.get(t, triage, delegated(onBehalf("ana", noon), "tickets:read"), noon)
		for i, who := range []string{search, fetch} {
			var err error
			if links[i+1], err = w.exchange(t, who, links[i], noon); err != nil {
				t.Fatal(err)
			}
		}
		return links
	}
	for name, test := range map[string]struct {
		end  func(t *testing.T, w *world, links [3]*broker.Issued) error
		left int // links that stay
	}{
		"root returned": {func(t *testing.T, w *world, links [3]*broker.Issued) error {
			_, err := w.broker.Revoke(t.Context(), broker.Self(workload(triage, noon), noon), links[0].Lease.ID, "")
			return err
		}, 0},
		"middle revoked": {func(t *testing.T, w *world, links [3]*broker.Issued) error {
			_, err := w.broker.Revoke(t.Context(), at, links[1].Lease.ID, "leak")
			return err
		}, 1},
		"middle renewed": {func(t *testing.T, w *world, links [3]*broker.Issued) error {
			_, err := w.broker.Renew(t.Context(), broker.Self(workload(search, noon), noon), links[1].Lease.ID, broker.IdempotencyKey{})
			return err
		}, 1},
		"root grant": {func(t *testing.T, w *world, links [3]*broker.Issued) error {
			_, err := w.broker.RevokeAll(t.Context(), at, broker.Selector{Request: links[0].Request.ID}, "incident", broker.Consent{Force: true})
			return err
		}, 0},
		"holder of the middle": {func(t *testing.T, w *world, _ [3]*broker.Issued) error {
			_, err := w.broker.RevokeAll(t.Context(), at, broker.Selector{Holder: search}, "incident", broker.Consent{Force: true})
			return err
		}, 1},
		"below the middle": {func(t *testing.T, w *world, _ [3]*broker.Issued) error {
			_, err := w.broker.RevokeAll(t.Context(), at, broker.Selector{Under: search}, "incident", broker.Consent{Force: true})
			return err
		}, 1},
		"person": {func(t *testing.T, w *world, _ [3]*broker.Issued) error {
			_, err := w.broker.RevokeAll(t.Context(), at, broker.Selector{Holder: "login/ana"}, "incident", broker.Consent{Force: true})
			return err
		}, 0},
		"person leaves": {func(t *testing.T, w *world, _ [3]*broker.Issued) error {
			return w.broker.Facts.Report(t.Context(), at, broker.StandingKey{Kind: broker.FactPerson, Name: "login/ana"}, broker.Fact{Source: "file", State: broker.FactEnded, Cause: "left"})
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := delegationWorld(t)
			links := chain(t, w)
			if err := test.end(t, w, links); err != nil {
				t.Fatal(err)
			}
			if name != "person leaves" { // the pass of the facts notes that end
				for i, link := range links {
					if got := w.active(t, link, noon); got != (i < test.left) {
						t.Errorf("before the pass, link %d: got active %t", i, got)
					}
				}
			}
			// Another process continues.
			next := w.restart(t, map[string]broker.Issuer{"tickets": signer{}})
			if err := next.Facts.End(t.Context(), noon); err != nil {
				t.Fatal(err)
			}
			ended := 0
			for _, l := range w.leases(t) {
				for i, link := range links {
					if l.ID == link.Lease.ID && l.HasEnded() != (i >= test.left) {
						t.Errorf("link %d: got ended %t, how %q", i, l.HasEnded(), l.EndHow)
					}
				}
				if l.HasEnded() {
					ended++
				}
			}
			if want := 3 - test.left; ended != want {
				t.Errorf("got %d ended leases, want %d", ended, want)
			}
			// What rested on the link does not come back.
			if _, err := next.Collect(t.Context(), broker.Self(workload(fetch, noon), noon), links[2].Request.ID, broker.IdempotencyKey{}); err == nil {
				t.Error("got a credential below the end")
			}
		})
	}
}

// A link that is revoked while sub-agents exchange its token leaves none of their tokens
// active.
func TestLinkEndsWhileChildrenAreIssued(t *testing.T) {
	issued := 0
	for round := range 5 {
		w := delegationWorld(t)
		root := w.get(t, triage, delegated(onBehalf("ana", noon), "tickets:read"), noon)
		middle, err := w.exchange(t, search, root, noon)
		if err != nil {
			t.Fatal(err)
		}
		const callers = 6
		begun, children := make(chan struct{}, callers), make(chan []*broker.Issued, callers)
		for i := range callers {
			go func() {
				var list []*broker.Issued
				for n := 0; ; n++ {
					child, err := w.exchange(t, fmt.Sprintf("%s/%d", fetch, i), middle, noon)
					if errors.Is(err, broker.ErrDelegation) {
						break
					}
					if err != nil {
						t.Error(err)
						break
					}
					if list = append(list, child); n == round {
						begun <- struct{}{}
					}
				}
				children <- list
			}()
		}
		for range callers {
			<-begun
		}
		if _, err := w.broker.Revoke(t.Context(), broker.Self(workload(triage, noon), noon), root.Lease.ID, ""); err != nil {
			t.Fatal(err)
		}
		for range callers {
			for _, child := range <-children {
				if issued++; w.active(t, child, noon) {
					t.Error("a token below a revoked link is active")
				}
			}
		}
		if err := w.broker.Facts.End(t.Context(), noon); err != nil {
			t.Fatal(err)
		}
		if n := w.count(t, broker.LeaseActive); n > 0 {
			t.Errorf("got %d active leases, want 0", n)
		}
	}
	if issued < 30 {
		t.Errorf("got %d tokens of sub-agents, want at least 30", issued)
	}
}

// The subject of a request and everyone who is accountable for a workload in its chain may not
// approve it.
func TestSeparationOfDutiesKnowsTheChain(t *testing.T) {
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, policies: strings.ReplaceAll(delegationPolicies, "1 of security", "1 of support")})
	t.Cleanup(func() { w.verify(t) })
	ask := func(t *testing.T, d *broker.Delegation, who string) *broker.Request {
		t.Helper()
		r, err := w.broker.Ask(t.Context(), broker.Self(workload(who, noon), noon), delegated(d, "tickets:close"), broker.IdempotencyKey{})
		if err != nil || r.State(noon) != broker.RequestPending {
			t.Fatalf("got %v, %v, want a pending request", r, err)
		}
		return r
	}
	vote := func(r *broker.Request, name string) error {
		_, err := w.broker.Vote(t.Context(), broker.Self(approver(name, noon), noon), r.ID, broker.Vote{Digest: r.Digest, Approve: true})
		return err
	}
	// Ana is accountable for the agents; ben is the subject.
	r := ask(t, onBehalf("ben", noon), triage)
	for name, want := range map[string]error{"ben": broker.ErrOwnRequest, "ana": broker.ErrOwnRequest} {
		if err := vote(r, name); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	if err := vote(r, "cleo"); err != nil {
		t.Fatal(err)
	}
	// The accountable people of an actor in the middle of the chain do not approve either.
	issued, err := w.broker.Collect(t.Context(), broker.Self(workload(triage, noon), noon), r.ID, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := broker.DelegationOf(t.Context(), w.broker, broker.Self(workload(search, noon), noon), token(issued))
	if err != nil {
		t.Fatal(err)
	}
	child := ask(t, d, search)
	for _, name := range []string{"ben", "ana"} {
		if err := vote(child, name); !errors.Is(err, broker.ErrOwnRequest) {
			t.Errorf("the sub-agent's request, %s: got %v, want %v", name, err, broker.ErrOwnRequest)
		}
	}
	// The end of the link ends the wait.
	if _, err := w.broker.Revoke(t.Context(), broker.Self(workload(triage, noon), noon), issued.Lease.ID, ""); err != nil {
		t.Fatal(err)
	}
	if err := vote(child, "cleo"); err == nil {
		t.Error("a request below an ended link was approved")
	}
	if err := w.broker.Facts.End(t.Context(), noon); err != nil {
		t.Fatal(err)
	}
	if child, err = w.broker.Request(t.Context(), broker.Self(workload(search, noon), noon), child.ID); err != nil || child.State(noon) != broker.RequestDenied || child.DeniedBy != broker.DeniedByFact {
		t.Errorf("got %+v, %v, want a request that the end of its link denied", child, err)
	}
}

// What changes about the subject between the ask and the collection counts.
func TestSubjectChangesBeforeCollecting(t *testing.T) {
	operator := broker.Identity{ID: "admin-socket/0", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: noon.Add(time.Hour)}}
	at := broker.Self(operator, noon)
	for name, test := range map[string]struct {
		change func(t *testing.T, w *world) error
		want   error
	}{
		"nothing": {func(*testing.T, *world) error { return nil }, nil},
		"blocked": {func(t *testing.T, w *world) error {
			return w.broker.Block(t.Context(), at, broker.Selector{Holder: "login/ana"}, "incident", false)
		}, broker.ErrBlocked},
		"left the group": {func(t *testing.T, w *world) error {
			w.adopt(t, delegationPolicies, strings.Replace(testGroups, "login/ana, login/ben", "login/ben", 1))
			return nil
		}, broker.ErrNoLongerAllowed},
		"employment ended": {func(t *testing.T, w *world) error {
			return w.broker.Facts.Report(t.Context(), at, broker.StandingKey{Kind: broker.FactPerson, Name: "login/ana"}, broker.Fact{Source: "file", State: broker.FactEnded, Cause: "left"})
		}, broker.ErrFactEnded},
	} {
		t.Run(name, func(t *testing.T) {
			w := delegationWorld(t)
			agents := broker.Self(workload(triage, noon), noon)
			r, err := w.broker.Ask(t.Context(), agents, delegated(onBehalf("ana", noon), "tickets:read"), broker.IdempotencyKey{})
			if err != nil {
				t.Fatal(err)
			}
			if err := test.change(t, w); err != nil {
				t.Fatal(err)
			}
			if _, err := w.broker.Collect(t.Context(), agents, r.ID, broker.IdempotencyKey{}); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// The person on whose behalf something is done sees it and ends it. Another person does not.
func TestSubjectViewsAndEnds(t *testing.T) {
	w := delegationWorld(t)
	issued := w.get(t, triage, delegated(onBehalf("ana", noon), "tickets:read"), noon)
	child, err := w.exchange(t, search, issued, noon)
	if err != nil {
		t.Fatal(err)
	}
	ana, zoe := broker.Self(approver("ana", noon), noon), broker.Self(approver("zoe", noon), noon)
	page, _, err := w.broker.Requests(t.Context(), ana, broker.RequestQuery{Requester: broker.Everyone, Subject: "login/ana"})
	if err != nil || len(page) != 2 {
		t.Errorf("got %d requests, %v, want 2", len(page), err)
	}
	for _, l := range []*broker.Lease{issued.Lease, child.Lease} {
		if _, err := w.broker.Lease(t.Context(), zoe, l.ID); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("another person: got %v", err)
		}
		if _, err := w.broker.Revoke(t.Context(), zoe, l.ID, "mine"); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("another person ends it: got %v", err)
		}
	}
	if _, err := w.broker.Revoke(t.Context(), ana, issued.Lease.ID, "I did not want this"); err != nil {
		t.Fatal(err)
	}
	if w.active(t, issued, noon) || w.active(t, child, noon) {
		t.Error("a token is active after the subject ended it")
	}
}

// The person on whose behalf an agent acts ends a request: while it waits, and after its
// approval with all that it led to, so that the agent collects nothing more.
func TestSubjectEndsRequests(t *testing.T) {
	w := delegationWorld(t)
	issued := w.get(t, triage, delegated(onBehalf("ana", noon), "tickets:read"), noon)
	child, err := w.exchange(t, search, issued, noon)
	if err != nil {
		t.Fatal(err)
	}
	id := issued.Lease.Request
	ana, zoe := broker.Self(approver("ana", noon), noon), broker.Self(approver("zoe", noon), noon)
	for name, other := range map[string]broker.Caller{"another person": zoe, "another agent": broker.Self(workload(fetch, noon), noon)} {
		if _, err := w.broker.Withdraw(t.Context(), other, id); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("%s: got %v, want not found", name, err)
		}
	}
	if !w.active(t, issued, noon) {
		t.Fatal("the token ended before its subject ended it")
	}
	for range 2 { // repeating it is no error
		r, err := w.broker.Withdraw(t.Context(), ana, id)
		if err != nil || r.State(noon) != broker.RequestEnded {
			t.Fatalf("got %v, %v, want an ended request", r, err)
		}
	}
	if w.active(t, issued, noon) || w.active(t, child, noon) {
		t.Error("a token is active after the subject ended the request")
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(workload(triage, noon), noon), id, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrGrantEnded) {
		t.Errorf("collecting again: got %v, want %v", err, broker.ErrGrantEnded)
	}
}

// Limits count for the side whose permit states them.
func TestLimitsCountForTheirSide(t *testing.T) {
	policies := strings.Replace(delegationPolicies, `@id("people") `, `@id("people") @limit("2 per 1h") `, 1)
	w := newWorld(t, worldConfig{policies: policies, issuers: map[string]broker.Issuer{"tickets": signer{}}})
	t.Cleanup(func() { w.verify(t) })
	for i, who := range []string{triage, search} {
		w.get(t, who, delegated(onBehalf("ana", noon), "tickets:read"), noon.Add(time.Duration(i)*time.Second))
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(workload(fetch, noon), noon), delegated(onBehalf("ana", noon), "tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrLimit) {
		t.Errorf("got %v, want %v for the person", err, broker.ErrLimit)
	}
	w.get(t, triage, delegated(onBehalf("ben", noon), "tickets:read"), noon)
	w.get(t, triage, read("tickets:read"), noon)
}

// Who may request a part of an entitlement only in an emergency knows it, also on behalf of a
// person: such a caller learns what is wrong with the request. Both sides must be permitted.
func TestErrorsOfBreakGlassOnlyEntitlements(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{policies: `
@id("ana") @break_glass("security") @review_within("1h") @delegates("2")
permit (principal == Person::"login/ana", action == Action::"request", resource == Entitlement::"tickets");
@id("agents") @break_glass("security") @review_within("1h") @delegates("2")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets");`,
		issuers: map[string]broker.Issuer{"tickets": signer{}}})
	t.Cleanup(func() { w.verify(t) })
	for name, want := range map[string]error{"ana": broker.ErrInvalidScope, "ben": broker.ErrDenied} {
		ask := delegated(onBehalf(name, noon), "tickets:delete")
		if _, err := w.broker.Ask(t.Context(), broker.Self(workload(triage, noon), noon), ask, broker.IdempotencyKey{}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
}
