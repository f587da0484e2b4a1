package broker_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// person returns a person who has just logged in at the provider.
func person(name string, now time.Time, groups ...string) broker.Identity {
	return broker.Identity{
		ID: "login/" + name, Kind: broker.KindPerson, Proof: broker.Proof{SHA256: audit.Digest{9}, Expires: now.Add(5 * time.Minute)},
		Person: &broker.Person{Provider: "login", Groups: groups, Claimed: now, Login: now, Name: name},
	}
}

// approver returns a person in a broker session.
func approver(name string, now time.Time, groups ...string) broker.Identity {
	who := person(name, now, groups...)
	who.Proof = broker.Proof{Method: broker.MethodSession, SHA256: audit.Digest{8}, Expires: now.Add(time.Hour)}
	return who
}

// closePolicies returns policies that let agents close tickets under obligations.
func closePolicies(annotations string) string {
	return `@id("agents-close") ` + annotations + ` permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets");
@id("batch") @approval("1 of support") permit (principal in Path::"spiffe://acme.test/batch", action == Action::"request", resource == Entitlement::"tickets");
@id("people") @approval("1 of support") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets");
@id("break-glass") @break_glass("security") @review_within("1h") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets") when { context.scopes.contains("tickets:read") };
@id("not-fay") @reason("fay is on leave") forbid (principal == Person::"login/fay", action == Action::"approve", resource);`
}

// peopleWorld returns a world in which people approve requests to close tickets.
func peopleWorld(t *testing.T, annotations string) *world {
	t.Helper()
	w := newWorld(t, worldConfig{policies: closePolicies(annotations), issuers: map[string]broker.Issuer{"tickets": signer{}, "db": &system{live: map[string]time.Time{}}}})
	t.Cleanup(func() { w.verify(t) })
	return w
}

func (w *world) ask(t *testing.T, ask broker.Ask) *broker.Request {
	t.Helper()
	r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (w *world) vote(t *testing.T, who broker.Identity, r *broker.Request, v broker.Vote, at time.Time) (*broker.Request, error) {
	t.Helper()
	if v.Digest.IsZero() {
		v.Digest = r.Digest
	}
	return w.broker.Vote(t.Context(), broker.Self(who, at), r.ID, v)
}

// The votes of most tests. A denial needs a reason.
var (
	yes    = broker.Vote{Approve: true}
	denial = broker.Vote{Comment: "not now"}
)

// The record of a request that needs approval names the accountable people, so that
// an auditor can detect an approval by one of them. Other requests do not name them.
func TestRecordNamesTheAccountable(t *testing.T) {
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}})
	w.ask(t, withReason(read("tickets:close"), "ticket 4711"))
	w.ask(t, read("tickets:read"))
	var named [][]string
	for _, r := range w.records(t) {
		if r.Kind == audit.RequestCreated {
			named = append(named, r.Request.Accountable)
		}
	}
	if len(named) != 2 || !slices.Equal(named[0], []string{"login/ana"}) || named[1] != nil {
		t.Errorf("got accountable people %q, want login/ana in the first record only", named)
	}
}

func TestWhoMayApprove(t *testing.T) {
	workloadOfAna := agent(noon)
	stale := approver("ben", noon)
	stale.Proof.Expires = noon
	provider := person("ben", noon) // by an ID token, without a session
	lead := approver("lea", noon, "leads")
	lead.Person.Claimed = noon.Add(-broker.ClaimsFor - time.Second)
	other := approver("lea", noon, "leads")
	other.ID, other.Person.Provider = "partner/lea", "partner"
	silent := approver("cleo", noon)
	silent.Person.Claimed = noon.Add(-broker.ClaimsFor - time.Second)
	for name, test := range map[string]struct {
		annotations string
		who         broker.Identity
		vote        broker.Vote
		want        error
	}{
		"member":                                     {`@approval("1 of support")`, approver("ben", noon), yes, nil},
		"member, denying":                            {`@approval("1 of support")`, approver("ben", noon), denial, nil},
		"denial without a reason":                    {`@approval("1 of support")`, approver("ben", noon), broker.Vote{}, broker.ErrCommentRequired},
		"silent denial":                              {`@approval("1 of support") @silent_denial("yes")`, approver("ben", noon), broker.Vote{}, nil},
		"accountable person":                         {`@approval("1 of support")`, approver("ana", noon), yes, broker.ErrOwnRequest},
		"accountable person, denying":                {`@approval("1 of support")`, approver("ana", noon), denial, broker.ErrOwnRequest},
		"the agent":                                  {`@approval("1 of support")`, workloadOfAna, yes, broker.ErrSessionRequired},
		"person without a session":                   {`@approval("1 of support")`, provider, yes, broker.ErrSessionRequired},
		"expired session":                            {`@approval("1 of support")`, stale, yes, broker.ErrProofExpired},
		"operator on the admin socket":               {`@approval("1 of support")`, root, yes, broker.ErrSessionRequired},
		"member of another group":                    {`@approval("1 of support")`, approver("dan", noon), yes, broker.ErrNotFound},
		"forbidden by policy":                        {`@approval("1 of leads")`, approver("fay", noon, "leads"), yes, broker.ErrNotApprover},
		"member by a claim":                          {`@approval("1 of leads")`, approver("lea", noon, "leads"), yes, nil},
		"member by a stale claim":                    {`@approval("1 of leads")`, lead, yes, broker.ErrLoginStale},
		"same claim of another provider":             {`@approval("1 of leads")`, other, yes, broker.ErrNotFound},
		"owner group":                                {`@approval("1 of owner")`, approver("cleo", noon), yes, nil},
		"another digest":                             {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Digest: audit.Digest{1}}, broker.ErrStaleDigest},
		"required comment missing":                   {`@approval("1 of support") @comment("required")`, approver("ben", noon), yes, broker.ErrCommentRequired},
		"required comment":                           {`@approval("1 of support") @comment("required")`, approver("ben", noon), broker.Vote{Approve: true, Comment: "ok"}, nil},
		"required signature missing":                 {`@approval("1 of support") @signed("required")`, approver("ben", noon), yes, broker.ErrSignatureRequired},
		"denial without a signature":                 {`@approval("1 of support") @signed("required")`, approver("ben", noon), denial, nil},
		"silent denial, comment required to approve": {`@approval("1 of support") @comment("required") @silent_denial("yes")`, approver("ben", noon), broker.Vote{}, nil},
		"comment with control characters":            {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Comment: "a\x1b[2J"}, broker.ErrInvalidRequest},
		"comment with a bidi override":               {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Comment: "a\u202eb"}, broker.ErrInvalidRequest},
		"comment of 64 KiB":                          {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Comment: strings.Repeat("x", 1<<16)}, broker.ErrInvalidRequest},
		"longer ttl":                                 {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, TTL: time.Hour}, broker.ErrInvalidTTL},
		"longer duration":                            {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Duration: 2 * time.Hour}, broker.ErrInvalidTTL},
		"negative ttl":                               {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, TTL: -time.Second}, broker.ErrInvalidTTL},
		"scope that was not requested":               {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Scopes: []string{"tickets:comment"}}, broker.ErrInvalidScope},
		"narrowing denial":                           {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Comment: "no", TTL: time.Minute}, broker.ErrInvalidRequest},
		"member of the excluded team":                {`@approval("1 of support") @exclude_team("yes")`, approver("ben", noon), yes, broker.ErrOwnRequest},
		"member of another team":                     {`@approval("1 of support") @exclude_team("yes")`, approver("cleo", noon), yes, nil},
		"listed member with stale claims":            {`@approval("1 of support")`, silent, yes, nil},
		"member of an uninvolved group":              {`@approval("1 of security")`, approver("cleo", noon), yes, broker.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, test.annotations)
			r := w.ask(t, read("tickets:read"))
			before := len(w.kinds(t))
			_, err := w.vote(t, test.who, r, test.vote, noon)
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			after := len(w.kinds(t))
			if test.want != nil && after != before {
				t.Errorf("refused vote: got records %v, want %d", w.kinds(t), before)
			}
			if test.want == nil && after != before+1 {
				t.Errorf("vote: got %d new records, want 1", after-before)
			}
		})
	}
}

func TestNobodyCanApprove(t *testing.T) {
	for name, test := range map[string]struct {
		annotations string
		who         broker.Identity
		want        error
	}{
		"more than can approve":                  {`@approval("3 of support")`, agent(noon), broker.ErrNobodyCanApprove},
		"as many as can approve":                 {`@approval("2 of support")`, agent(noon), nil},
		"same people in both groups":             {`@approval("2 of support, 2 of security")`, agent(noon), broker.ErrNobodyCanApprove},
		"two groups with one common member":      {`@approval("1 of support, 2 of security")`, agent(noon), nil},
		"group filled by a provider":             {`@approval("5 of leads")`, agent(noon), nil},
		"workload without an accountable person": {``, workload("spiffe://acme.test/batch", noon), broker.ErrNobodyAccountable},
		"requester without a manager":            {`@approval("1 of manager")`, agent(noon), broker.ErrNobodyCanApprove},
		"requester in the approving group":       {``, approver("ben", noon), nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, test.annotations)
			_, err := w.broker.Ask(t.Context(), broker.Self(test.who, noon), read("tickets:read"), broker.IdempotencyKey{})
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// A request is refused if policy forbids so many people to approve that the quorum
// cannot be reached. A forbid that depends on the time, or on claims that may still
// change, does not count.
func TestForbiddenApproversDoNotCount(t *testing.T) {
	forbid := func(who, when string) string {
		return "@id(\"not-them\") forbid (" + who + `, action == Action::"approve", resource) ` + when + ";"
	}
	ben := `principal == Person::"login/ben"`
	broken := breakGlass("tickets:read")
	var crowd []string
	for i := range 60 {
		crowd = append(crowd, fmt.Sprintf("login/p%d", i))
	}
	for name, test := range map[string]struct {
		annotations, forbid string
		ask                 broker.Ask
		want                error
	}{
		"only approver":                     {`@approval("1 of agents")`, forbid(ben, ""), read("tickets:read"), broker.ErrNobodyCanApprove},
		"only approver, for these scopes":   {`@approval("1 of agents")`, forbid(ben, `when { resource.scopes.contains("tickets:read") }`), read("tickets:read"), broker.ErrNobodyCanApprove},
		"only approver, for other scopes":   {`@approval("1 of agents")`, forbid(ben, `when { resource.scopes.contains("tickets:close") }`), read("tickets:read"), nil},
		"one of two approvers":              {`@approval("1 of support")`, forbid(ben, ""), read("tickets:read"), nil},
		"one of two required approvers":     {`@approval("2 of support")`, forbid(ben, ""), read("tickets:read"), broker.ErrNobodyCanApprove},
		"only common member of two groups":  {`@approval("1 of agents, 1 of security")`, forbid(ben, ""), read("tickets:read"), broker.ErrNobodyCanApprove},
		"group that lists the approver":     {`@approval("1 of agents")`, forbid(`principal in Group::"security"`, ""), read("tickets:read"), broker.ErrNobodyCanApprove},
		"by the time":                       {`@approval("1 of agents")`, forbid(ben, `when { context.now < datetime("2026-11-24") }`), read("tickets:read"), nil},
		"by claims that may change":         {`@approval("1 of agents")`, forbid(ben, `unless { principal in Group::"leads" }`), read("tickets:read"), nil},
		"by a group without claims":         {`@approval("1 of agents")`, forbid(ben, `unless { principal in Group::"crowd" }`), read("tickets:read"), broker.ErrNobodyCanApprove},
		"group filled by a provider":        {`@approval("1 of leads")`, forbid("principal", ""), read("tickets:read"), nil},
		"group too large to check":          {`@approval("1 of crowd")`, forbid("principal", ""), read("tickets:read"), nil},
		"every reviewer":                    {``, forbid(`principal in Group::"security"`, ""), broken, broker.ErrNobodyCanApprove},
		"one of the reviewers":              {``, forbid(ben, ""), broken, nil},
		"reviewer in place of the approver": {`@approval("1 of agents")`, forbid(ben, ""), broken, broker.ErrNobodyCanApprove},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, ``)
			w.adopt(t, closePolicies(test.annotations)+test.forbid, testGroups+"crowd: {members: ["+strings.Join(crowd, ", ")+"]}\n")
			r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), test.ask, broker.IdempotencyKey{})
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && !test.ask.BreakGlass && r.Status != broker.RequestPending {
				t.Errorf("got %+v, want a pending request", r)
			}
		})
	}
}

// The manager named by the person's provider may approve; other people may not.
func TestManagerApproves(t *testing.T) {
	w := newWorld(t, worldConfig{policies: `@id("people") @approval("1 of manager") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets");`, issuers: map[string]broker.Issuer{"tickets": signer{}}})
	gus := approver("gus", noon)
	gus.Person.Manager = "login/mia"
	r, err := w.broker.Ask(t.Context(), broker.Self(gus, noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.vote(t, approver("ben", noon), r, yes, noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("another person: got %v, want %v", err, broker.ErrNotFound)
	}
	if _, err := w.vote(t, gus, r, yes, noon); !errors.Is(err, broker.ErrNotApprover) && !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("the requester: got %v, want %v or %v", err, broker.ErrNotApprover, broker.ErrOwnRequest)
	}
	if r, err = w.vote(t, approver("mia", noon), r, yes, noon); err != nil || r.Status != broker.RequestApproved {
		t.Errorf("the manager: got %v, %v, want an approved request", r, err)
	}
}

// A credential has the scopes and ttl that were approved, and the duration of the
// grant starts at the last approval.
func TestGrantAsApproved(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support, 1 of security")`)
	ask := read("tickets:close", "tickets:read")
	ask.TTL, ask.Duration = 10*time.Minute, time.Hour
	r := w.ask(t, ask)
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrPending) {
		t.Fatalf("before any approval: got %v, want %v", err, broker.ErrPending)
	}
	r, err := w.vote(t, approver("cleo", noon), r, broker.Vote{Approve: true, Scopes: []string{"tickets:read"}, TTL: 5 * time.Minute}, noon.Add(10*time.Minute))
	if err != nil || r.Status != broker.RequestPending {
		t.Fatalf("first approval: got %v, %v, want a pending request", r, err)
	}
	later := noon.Add(20 * time.Minute)
	r, err = w.vote(t, approver("dan", later), r, broker.Vote{Approve: true, Duration: 30 * time.Minute}, later)
	if err != nil || r.Status != broker.RequestApproved || !r.CollectUntil.Equal(later.Add(30*time.Minute)) {
		t.Fatalf("last approval: got %+v, %v, want a grant until %s", r, err, later.Add(30*time.Minute))
	}
	issued, err := w.broker.Collect(t.Context(), broker.Self(agent(later), later), r.ID, broker.IdempotencyKey{})
	if err != nil || !slices.Equal(issued.Lease.Scopes, []string{"tickets:read"}) || !issued.Lease.Expires.Equal(later.Add(5*time.Minute)) {
		t.Fatalf("got %+v, %v, want tickets:read until %s", issued, err, later.Add(5*time.Minute))
	}
	end := r.CollectUntil
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(end), end), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrGrantEnded) {
		t.Errorf("at the end of the grant: got %v, want %v", err, broker.ErrGrantEnded)
	}
	wantKinds(t, w, audit.RequestCreated, audit.ApprovalGiven, audit.RequestApproved, audit.LeaseIssued)
}

// An approval that shares no scope with an earlier one is refused.
func TestApprovalsWithoutCommonScopes(t *testing.T) {
	w := peopleWorld(t, `@approval("2 of support")`)
	r := w.ask(t, read("tickets:close", "tickets:read"))
	if _, err := w.vote(t, approver("ben", noon), r, broker.Vote{Approve: true, Scopes: []string{"tickets:read"}}, noon); err != nil {
		t.Fatal(err)
	}
	if _, err := w.vote(t, approver("cleo", noon), r, broker.Vote{Approve: true, Scopes: []string{"tickets:close"}}, noon); !errors.Is(err, broker.ErrInvalidScope) {
		t.Errorf("got %v, want %v", err, broker.ErrInvalidScope)
	}
}

func TestEachPersonHasOneVote(t *testing.T) {
	w := peopleWorld(t, `@approval("2 of support") @deny("2")`)
	r := w.ask(t, read("tickets:read"))
	ben, cleo := approver("ben", noon), approver("cleo", noon)
	r, err := w.vote(t, ben, r, yes, noon)
	if err != nil || r.Status != broker.RequestPending {
		t.Fatalf("got %v, %v, want a pending request", r, err)
	}
	if _, err := w.vote(t, ben, r, yes, noon); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("approving twice: got %v, want %v", err, broker.ErrAlreadyVoted)
	}
	if r, err = w.vote(t, ben, r, denial, noon); err != nil || r.Status != broker.RequestPending {
		t.Errorf("changing an approval into a denial: got %v, %v, want a pending request", r, err)
	}
	if _, err := w.vote(t, ben, r, yes, noon); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("changing a denial into an approval: got %v, want %v", err, broker.ErrAlreadyVoted)
	}
	if r, err = w.vote(t, cleo, r, broker.Vote{Comment: "no need"}, noon); err != nil || r.Status != broker.RequestDenied || r.DeniedBy != broker.DeniedByPerson {
		t.Errorf("the second denial: got %+v, %v, want a denied request", r, err)
	}
	_, err = w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{})
	var no *broker.Refusal
	if !errors.As(err, &no) || !errors.Is(err, broker.ErrDenied) || no.Detail != "this request was denied, by login/ben: not now, by login/cleo: no need" || len(no.Reasons) > 0 {
		t.Errorf("collecting: got %+v, want the denial and its comments", no)
	}
	wantKinds(t, w, audit.RequestCreated, audit.ApprovalGiven, audit.ApprovalGiven, audit.RequestDenied)
}

// A request lapses without an event, and a lapsed request cannot be approved.
func TestRequestLapses(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support") @lapse_after("10m")`)
	r := w.ask(t, read("tickets:read"))
	end := noon.Add(10 * time.Minute)
	if _, err := w.vote(t, approver("ben", end), r, yes, end); !errors.Is(err, broker.ErrNotPending) {
		t.Errorf("approving at the lapse: got %v, want %v", err, broker.ErrNotPending)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(end), end), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrLapsed) {
		t.Errorf("collecting at the lapse: got %v, want %v", err, broker.ErrLapsed)
	}
	if _, err := w.vote(t, approver("ben", noon), r, yes, end.Add(-time.Second)); err != nil {
		t.Errorf("approving a second before the lapse: %v", err)
	}
}

// A person who has left the group cannot vote, even in a session that began
// earlier. Earlier approvals count only while policy requires no other approvals.
func TestRulesChangeWhilePending(t *testing.T) {
	t.Run("approver left the group", func(t *testing.T) {
		w := peopleWorld(t, `@approval("1 of support")`)
		r := w.ask(t, read("tickets:read"))
		ben := approver("ben", noon)
		w.adopt(t, closePolicies(`@approval("1 of support")`), strings.Replace(testGroups, "login/ben, login/cleo", "login/cleo", 1))
		if _, err := w.vote(t, ben, r, yes, noon); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("got %v, want %v", err, broker.ErrNotFound)
		}
	})
	for name, test := range map[string]struct {
		rules string
		want  error
	}{
		"more approvals required": {closePolicies(`@approval("2 of support")`), broker.ErrNeedsNewRequest},
		"another group required":  {closePolicies(`@approval("1 of security")`), broker.ErrNeedsNewRequest},
		"no approval required":    {closePolicies(``), nil},
		"no longer permitted":     {strings.Replace(closePolicies(``), `"agents-close")  permit`, `"agents-close")  forbid`, 1), broker.ErrNoLongerAllowed},
		"comment required":        {closePolicies(`@approval("1 of support") @comment("required")`), broker.ErrNeedsNewRequest},
		"signature required":      {closePolicies(`@approval("1 of support") @signed("required")`), broker.ErrNeedsNewRequest},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, `@approval("1 of support")`)
			r := w.ask(t, read("tickets:close"))
			if _, err := w.vote(t, approver("cleo", noon), r, yes, noon); err != nil {
				t.Fatal(err)
			}
			w.adopt(t, test.rules, testGroups)
			_, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{})
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// An identical request returns the pending or approved one. Different requests,
// extensions and requests after the grant are new.
func TestReuseAndExtension(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	ask := read("tickets:read")
	ask.Justification = "INC-1"
	first := w.ask(t, ask)
	if again := w.ask(t, ask); again.ID != first.ID || !again.Reused {
		t.Errorf("while pending: got %v, want the reused request %s", again, first.ID)
	}
	if _, err := w.vote(t, approver("ben", noon), first, yes, noon); err != nil {
		t.Fatal(err)
	}
	if again := w.ask(t, ask); again.ID != first.ID || !again.Reused || again.Status != broker.RequestApproved {
		t.Errorf("while granted: got %v, want the reused request %s", again, first.ID)
	}
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{})
	if err != nil || issued == nil || issued.Request.ID != first.ID || !issued.Request.Reused {
		t.Errorf("requesting and collecting in one call: got %v, %v, want a credential of %s", issued, err, first.ID)
	}
	ask.Extends = first.ID
	if more := w.ask(t, ask); more.ID == first.ID || more.Status != broker.RequestPending || more.Extends != first.ID {
		t.Errorf("extension: got %v, want a new pending request", more)
	}
	ask.Extends = broker.NewRequestID(noon)
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{}); err == nil {
		t.Error("extending a request that does not exist: got no error")
	}
	later := first.Created.Add(3 * time.Hour)
	ask.Extends = broker.RequestID{}
	if r, err := w.broker.Ask(t.Context(), broker.Self(agent(later), later), ask, broker.IdempotencyKey{}); err != nil || r.ID == first.ID {
		t.Errorf("after the grant: got %v, %v, want a new request", r, err)
	}
}

func TestScheduledStart(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	ask := read("tickets:read")
	ask.NotBefore, ask.Duration = noon.Add(2*time.Hour), time.Hour
	r := w.ask(t, ask)
	r, err := w.vote(t, approver("ben", noon), r, yes, noon)
	if err != nil || !r.CollectUntil.Equal(ask.NotBefore.Add(time.Hour)) {
		t.Fatalf("got %+v, %v, want a grant until %s", r, err, ask.NotBefore.Add(time.Hour))
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(ask.NotBefore.Add(-time.Second)), ask.NotBefore.Add(-time.Second)), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNotYet) {
		t.Errorf("collecting before the start: got %v, want %v", err, broker.ErrNotYet)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(ask.NotBefore), ask.NotBefore), r.ID, broker.IdempotencyKey{}); err != nil {
		t.Errorf("collecting at the start: %v", err)
	}
}
