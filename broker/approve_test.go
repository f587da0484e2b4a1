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

// person is a person as a provider has just authenticated them.
func person(name string, now time.Time, groups ...string) broker.Identity {
	return broker.Identity{
		ID: "login/" + name, Kind: broker.KindPerson, Proof: broker.Proof{SHA256: audit.Digest{9}, Expires: now.Add(5 * time.Minute)},
		Person: &broker.Person{Provider: "login", Groups: groups, Claimed: now, Login: now, Name: name},
	}
}

// approver is a person in a session of the broker's.
func approver(name string, now time.Time, groups ...string) broker.Identity {
	who := person(name, now, groups...)
	who.Proof = broker.Proof{Method: broker.MethodSession, SHA256: audit.Digest{8}, Expires: now.Add(time.Hour)}
	return who
}

// closing are policies that let agents close tickets under obligations.
func closing(annotations string) string {
	return `@id("agents-close") ` + annotations + ` permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets");
@id("nobody-answers") @approval("1 of support") permit (principal in Path::"spiffe://acme.test/batch", action == Action::"request", resource == Entitlement::"tickets");
@id("people") @approval("1 of support") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets");
@id("glass") @break_glass("security") @review_within("1h") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets") when { context.scopes.contains("tickets:read") };
@id("not-fay") @reason("fay is on leave") forbid (principal == Person::"login/fay", action == Action::"approve", resource);`
}

// people makes a world in which people have to approve.
func peopleWorld(t *testing.T, annotations string) *world {
	t.Helper()
	w := newWorld(t, worldConfig{policies: closing(annotations), issuers: map[string]broker.Issuer{"tickets": signer{}, "db": &system{live: map[string]time.Time{}}}})
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

var yes = broker.Vote{Approve: true}

// The record of a request that people must approve says who may not, so that an
// auditor finds it if they did; others need not say so.
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
		t.Errorf("%q", named)
	}
}

func TestWhoMayApprove(t *testing.T) {
	workloadOfAna := agent(noon)
	stale := approver("ben", noon)
	stale.Proof.Expires = noon
	provider := person("ben", noon) // an ID token's, not a session's
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
		"a member":                             {`@approval("1 of support")`, approver("ben", noon), yes, nil},
		"a member, to say no":                  {`@approval("1 of support")`, approver("ben", noon), broker.Vote{}, nil},
		"who answers for the agent":            {`@approval("1 of support")`, approver("ana", noon), yes, broker.ErrOwnRequest},
		"who answers for the agent says no":    {`@approval("1 of support")`, approver("ana", noon), broker.Vote{}, broker.ErrOwnRequest},
		"the agent itself":                     {`@approval("1 of support")`, workloadOfAna, yes, broker.ErrSessionRequired},
		"a person who is in no session":        {`@approval("1 of support")`, provider, yes, broker.ErrSessionRequired},
		"a session that has ended":             {`@approval("1 of support")`, stale, yes, broker.ErrProofExpired},
		"root on the admin socket":             {`@approval("1 of support")`, root, yes, broker.ErrSessionRequired},
		"somebody of another group":            {`@approval("1 of support")`, approver("dan", noon), yes, broker.ErrNotFound},
		"whom policy forbids":                  {`@approval("1 of leads")`, approver("fay", noon, "leads"), yes, broker.ErrNotApprover},
		"by a claim":                           {`@approval("1 of leads")`, approver("lea", noon, "leads"), yes, nil},
		"by a claim that is old":               {`@approval("1 of leads")`, lead, yes, broker.ErrLoginStale},
		"by the same claim of another":         {`@approval("1 of leads")`, other, yes, broker.ErrNotFound},
		"the owner's group":                    {`@approval("1 of owner")`, approver("cleo", noon), yes, nil},
		"another digest":                       {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Digest: audit.Digest{1}}, broker.ErrStaleDigest},
		"no comment where one is demanded":     {`@approval("1 of support") @comment("required")`, approver("ben", noon), yes, broker.ErrCommentRequired},
		"a comment where one is demanded":      {`@approval("1 of support") @comment("required")`, approver("ben", noon), broker.Vote{Approve: true, Comment: "ok"}, nil},
		"no signature where one is demanded":   {`@approval("1 of support") @signed("required")`, approver("ben", noon), yes, broker.ErrSignatureRequired},
		"a no needs none":                      {`@approval("1 of support") @signed("required") @comment("required")`, approver("ben", noon), broker.Vote{}, nil},
		"a comment of control characters":      {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Comment: "a\x1b[2J"}, broker.ErrInvalidRequest},
		"a comment that turns text around":     {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Comment: "a\u202eb"}, broker.ErrInvalidRequest},
		"a comment of 64 KiB":                  {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Comment: strings.Repeat("x", 1<<16)}, broker.ErrInvalidRequest},
		"more time":                            {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, TTL: time.Hour}, broker.ErrInvalidTTL},
		"longer to collect":                    {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Duration: 2 * time.Hour}, broker.ErrInvalidTTL},
		"negative time":                        {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, TTL: -time.Second}, broker.ErrInvalidTTL},
		"a scope that was not asked for":       {`@approval("1 of support")`, approver("ben", noon), broker.Vote{Approve: true, Scopes: []string{"tickets:comment"}}, broker.ErrInvalidScope},
		"a no that narrows":                    {`@approval("1 of support")`, approver("ben", noon), broker.Vote{TTL: time.Minute}, broker.ErrInvalidRequest},
		"a member of the team":                 {`@approval("1 of support") @exclude_team("yes")`, approver("ben", noon), yes, broker.ErrOwnRequest},
		"somebody of another team":             {`@approval("1 of support") @exclude_team("yes")`, approver("cleo", noon), yes, nil},
		"listed, and the provider is silent":   {`@approval("1 of support")`, silent, yes, nil},
		"an unknown request is told of nobody": {`@approval("1 of security")`, approver("cleo", noon), yes, broker.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, test.annotations)
			r := w.ask(t, read("tickets:read"))
			before := len(w.kinds(t))
			_, err := w.vote(t, test.who, r, test.vote, noon)
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			after := len(w.kinds(t))
			if test.want != nil && after != before {
				t.Errorf("a refused vote left a record: %v", w.kinds(t))
			}
			if test.want == nil && after != before+1 {
				t.Errorf("a vote left %d records", after-before)
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
		"more than there are besides her":   {`@approval("3 of support")`, agent(noon), broker.ErrNobodyCanApprove},
		"as many as there are besides her":  {`@approval("2 of support")`, agent(noon), nil},
		"the same people twice":             {`@approval("2 of support, 2 of security")`, agent(noon), broker.ErrNobodyCanApprove},
		"two groups that share one":         {`@approval("1 of support, 2 of security")`, agent(noon), nil},
		"a group that a provider fills":     {`@approval("5 of leads")`, agent(noon), nil},
		"a workload nobody answers for":     {``, workload("spiffe://acme.test/batch", noon), broker.ErrNobodyAccountable},
		"the manager of who has none":       {`@approval("1 of manager")`, agent(noon), broker.ErrNobodyCanApprove},
		"people who are their own approver": {``, approver("ben", noon), nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, test.annotations)
			_, err := w.broker.Ask(t.Context(), broker.Self(test.who, noon), read("tickets:read"), broker.IdempotencyKey{})
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

// Whom policy forbids to approve is nobody who could, when a request is filed:
// but only where no moment, and nothing that a provider may say, changes that.
func TestPolicyForbidsThemToApprove(t *testing.T) {
	forbid := func(who, when string) string {
		return "@id(\"not-them\") forbid (" + who + `, action == Action::"approve", resource) ` + when + ";"
	}
	ben := `principal == Person::"login/ben"`
	broken := glass("tickets:read")
	var crowd []string
	for i := range 60 {
		crowd = append(crowd, fmt.Sprintf("login/p%d", i))
	}
	for name, test := range map[string]struct {
		annotations, forbid string
		ask                 broker.Ask
		want                error
	}{
		"the only one":                     {`@approval("1 of agents")`, forbid(ben, ""), read("tickets:read"), broker.ErrNobodyCanApprove},
		"the only one, of this":            {`@approval("1 of agents")`, forbid(ben, `when { resource.scopes.contains("tickets:read") }`), read("tickets:read"), broker.ErrNobodyCanApprove},
		"the only one, of something else":  {`@approval("1 of agents")`, forbid(ben, `when { resource.scopes.contains("tickets:close") }`), read("tickets:read"), nil},
		"one of two":                       {`@approval("1 of support")`, forbid(ben, ""), read("tickets:read"), nil},
		"one of two who are needed":        {`@approval("2 of support")`, forbid(ben, ""), read("tickets:read"), broker.ErrNobodyCanApprove},
		"who fits both needs":              {`@approval("1 of agents, 1 of security")`, forbid(ben, ""), read("tickets:read"), broker.ErrNobodyCanApprove},
		"a group, which lists him":         {`@approval("1 of agents")`, forbid(`principal in Group::"security"`, ""), read("tickets:read"), broker.ErrNobodyCanApprove},
		"at this time of day":              {`@approval("1 of agents")`, forbid(ben, `when { context.now < datetime("2026-11-24") }`), read("tickets:read"), nil},
		"by what a provider may still say": {`@approval("1 of agents")`, forbid(ben, `unless { principal in Group::"leads" }`), read("tickets:read"), nil},
		"by whose list is all there is":    {`@approval("1 of agents")`, forbid(ben, `unless { principal in Group::"crowd" }`), read("tickets:read"), broker.ErrNobodyCanApprove},
		"whom a provider may add to":       {`@approval("1 of leads")`, forbid("principal", ""), read("tickets:read"), nil},
		"more than are asked about":        {`@approval("1 of crowd")`, forbid("principal", ""), read("tickets:read"), nil},
		"who reviews":                      {``, forbid(`principal in Group::"security"`, ""), broken, broker.ErrNobodyCanApprove},
		"one of those who review":          {``, forbid(ben, ""), broken, nil},
		"who reviews in place of approval": {`@approval("1 of agents")`, forbid(ben, ""), broken, broker.ErrNobodyCanApprove},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, ``)
			w.adopt(t, closing(test.annotations)+test.forbid, testGroups+"crowd: {members: ["+strings.Join(crowd, ", ")+"]}\n")
			r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), test.ask, broker.IdempotencyKey{})
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if err == nil && !test.ask.BreakGlass && r.Status != broker.RequestPending {
				t.Errorf("%+v", r)
			}
		})
	}
}

// The manager that a person's provider names may approve, and nobody else.
func TestManagerApproves(t *testing.T) {
	w := newWorld(t, worldConfig{policies: `@id("people") @approval("1 of manager") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets");`, issuers: map[string]broker.Issuer{"tickets": signer{}}})
	gus := approver("gus", noon)
	gus.Person.Manager = "login/mia"
	r, err := w.broker.Ask(t.Context(), broker.Self(gus, noon), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.vote(t, approver("ben", noon), r, yes, noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("somebody else: %v", err)
	}
	if _, err := w.vote(t, gus, r, yes, noon); !errors.Is(err, broker.ErrNotApprover) && !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("the requester: %v", err)
	}
	if r, err = w.vote(t, approver("mia", noon), r, yes, noon); err != nil || r.Status != broker.RequestApproved {
		t.Errorf("the manager: %v, %v", r, err)
	}
}

// What was granted is what is collected, and the clock starts at the last yes.
func TestGrantAsApproved(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support, 1 of security")`)
	ask := read("tickets:close", "tickets:read")
	ask.TTL, ask.Duration = 10*time.Minute, time.Hour
	r := w.ask(t, ask)
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrPending) {
		t.Fatalf("before anybody approved: %v", err)
	}
	r, err := w.vote(t, approver("cleo", noon), r, broker.Vote{Approve: true, Scopes: []string{"tickets:read"}, TTL: 5 * time.Minute}, noon.Add(10*time.Minute))
	if err != nil || r.Status != broker.RequestPending {
		t.Fatalf("%v, %v", r, err)
	}
	later := noon.Add(20 * time.Minute)
	r, err = w.vote(t, approver("dan", later), r, broker.Vote{Approve: true, Duration: 30 * time.Minute}, later)
	if err != nil || r.Status != broker.RequestApproved || !r.CollectUntil.Equal(later.Add(30*time.Minute)) {
		t.Fatalf("%+v, %v", r, err)
	}
	issued, err := w.broker.Collect(t.Context(), broker.Self(agent(later), later), r.ID, broker.IdempotencyKey{})
	if err != nil || !slices.Equal(issued.Lease.Scopes, []string{"tickets:read"}) || !issued.Lease.Expires.Equal(later.Add(5*time.Minute)) {
		t.Fatalf("%+v, %v", issued, err)
	}
	end := r.CollectUntil
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(end), end), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrGrantEnded) {
		t.Errorf("on the instant of its end: %v", err)
	}
	wantKinds(t, w, audit.RequestCreated, audit.ApprovalGiven, audit.RequestApproved, audit.LeaseIssued)
}

// Together, two approvals may not leave nothing.
func TestApprovalsThatLeaveNothing(t *testing.T) {
	w := peopleWorld(t, `@approval("2 of support")`)
	r := w.ask(t, read("tickets:close", "tickets:read"))
	if _, err := w.vote(t, approver("ben", noon), r, broker.Vote{Approve: true, Scopes: []string{"tickets:read"}}, noon); err != nil {
		t.Fatal(err)
	}
	if _, err := w.vote(t, approver("cleo", noon), r, broker.Vote{Approve: true, Scopes: []string{"tickets:close"}}, noon); !errors.Is(err, broker.ErrInvalidScope) {
		t.Errorf("%v", err)
	}
}

func TestOneVoiceEach(t *testing.T) {
	w := peopleWorld(t, `@approval("2 of support") @deny("2")`)
	r := w.ask(t, read("tickets:read"))
	ben, cleo := approver("ben", noon), approver("cleo", noon)
	r, err := w.vote(t, ben, r, yes, noon)
	if err != nil || r.Status != broker.RequestPending {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := w.vote(t, ben, r, yes, noon); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("twice: %v", err)
	}
	if r, err = w.vote(t, ben, r, broker.Vote{}, noon); err != nil || r.Status != broker.RequestPending {
		t.Errorf("a yes that became a no: %v, %v", r, err)
	}
	if _, err := w.vote(t, ben, r, yes, noon); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("a no that became a yes: %v", err)
	}
	if r, err = w.vote(t, cleo, r, broker.Vote{Comment: "no need"}, noon); err != nil || r.Status != broker.RequestDenied || r.DeniedBy != broker.DeniedByPerson {
		t.Errorf("the second no: %+v, %v", r, err)
	}
	_, err = w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{})
	var no *broker.Refusal
	if !errors.As(err, &no) || !errors.Is(err, broker.ErrDenied) || no.Detail != "this request was denied, by login/ben, by login/cleo: no need" || len(no.Reasons) > 0 {
		t.Errorf("collecting: %+v", no)
	}
	wantKinds(t, w, audit.RequestCreated, audit.ApprovalGiven, audit.ApprovalGiven, audit.RequestDenied)
}

// Time alone lets a request lapse, and lapsing never approves.
func TestLapsing(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support") @lapse_after("10m")`)
	r := w.ask(t, read("tickets:read"))
	end := noon.Add(10 * time.Minute)
	if _, err := w.vote(t, approver("ben", end), r, yes, end); !errors.Is(err, broker.ErrNotPending) {
		t.Errorf("on the instant: %v", err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(end), end), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrLapsed) {
		t.Errorf("collecting: %v", err)
	}
	if _, err := w.vote(t, approver("ben", noon), r, yes, end.Add(-time.Second)); err != nil {
		t.Errorf("a second before: %v", err)
	}
}

// Whoever is no longer in the group has no vote, whatever they were when they
// logged in; and what they said before goes on counting only if policy asks
// for nothing else.
func TestRulesChangeMeanwhile(t *testing.T) {
	t.Run("out of the group", func(t *testing.T) {
		w := peopleWorld(t, `@approval("1 of support")`)
		r := w.ask(t, read("tickets:read"))
		ben := approver("ben", noon)
		w.adopt(t, closing(`@approval("1 of support")`), strings.Replace(testGroups, "login/ben, login/cleo", "login/cleo", 1))
		if _, err := w.vote(t, ben, r, yes, noon); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("%v", err)
		}
	})
	for name, test := range map[string]struct {
		rules string
		want  error
	}{
		"asks for more":    {closing(`@approval("2 of support")`), broker.ErrNeedsNewRequest},
		"asks for others":  {closing(`@approval("1 of security")`), broker.ErrNeedsNewRequest},
		"asks for less":    {closing(``), nil},
		"permits no more":  {strings.Replace(closing(``), `"agents-close")  permit`, `"agents-close")  forbid`, 1), broker.ErrNoLongerAllowed},
		"wants a comment":  {closing(`@approval("1 of support") @comment("required")`), broker.ErrNeedsNewRequest},
		"wants signatures": {closing(`@approval("1 of support") @signed("required")`), broker.ErrNeedsNewRequest},
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
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

// An identical ask finds what waits, or was granted; another finds nothing.
func TestReuseAndExtension(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	ask := read("tickets:read")
	ask.Justification = "INC-1"
	first := w.ask(t, ask)
	if again := w.ask(t, ask); again.ID != first.ID || !again.Reused {
		t.Errorf("while it waits: %v", again)
	}
	if _, err := w.vote(t, approver("ben", noon), first, yes, noon); err != nil {
		t.Fatal(err)
	}
	if again := w.ask(t, ask); again.ID != first.ID || !again.Reused || again.Status != broker.RequestApproved {
		t.Errorf("while it is granted: %v", again)
	}
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{})
	if err != nil || issued == nil || issued.Request.ID != first.ID || !issued.Request.Reused {
		t.Errorf("asked and collected in one: %v, %v", issued, err)
	}
	ask.Extends = first.ID
	if more := w.ask(t, ask); more.ID == first.ID || more.Status != broker.RequestPending || more.Extends != first.ID {
		t.Errorf("an extension: %v", more)
	}
	ask.Extends = broker.NewRequestID(noon)
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{}); err == nil {
		t.Error("an extension of nothing")
	}
	later := first.Created.Add(3 * time.Hour)
	ask.Extends = broker.RequestID{}
	if r, err := w.broker.Ask(t.Context(), broker.Self(agent(later), later), ask, broker.IdempotencyKey{}); err != nil || r.ID == first.ID {
		t.Errorf("after the grant: %v, %v", r, err)
	}
}

func TestScheduledStart(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	ask := read("tickets:read")
	ask.NotBefore, ask.Duration = noon.Add(2*time.Hour), time.Hour
	r := w.ask(t, ask)
	r, err := w.vote(t, approver("ben", noon), r, yes, noon)
	if err != nil || !r.CollectUntil.Equal(ask.NotBefore.Add(time.Hour)) {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(ask.NotBefore.Add(-time.Second)), ask.NotBefore.Add(-time.Second)), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNotYet) {
		t.Errorf("before: %v", err)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(ask.NotBefore), ask.NotBefore), r.ID, broker.IdempotencyKey{}); err != nil {
		t.Errorf("on the instant: %v", err)
	}
}
