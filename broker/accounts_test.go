package broker_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// corp returns a person in a broker session, who logged in at another provider.
func corp(name string, now time.Time, groups ...string) broker.Identity {
	who := approver(name, now, groups...)
	who.ID, who.Person.Provider = "corp/"+name, "corp"
	return who
}

// linkedWorld is peopleWorld, in which ana, ben, cleo and gus have accounts at two
// providers.
func linkedWorld(t *testing.T, annotations string) *world {
	t.Helper()
	w := peopleWorld(t, annotations)
	w.link(t, closePolicies(annotations))
	return w
}

const linkedGroups = `
support: {members: [login/ana, login/ben, login/cleo, corp/ana, corp/ben, corp/cleo, corp/gus], claims: [], notify: []}
security: {members: [login/ben, login/dan, corp/ben, corp/cleo], notify: []}
agents: {members: [login/ben]}
`

var aliases = [][]string{{"login/ana", "corp/ana"}, {"login/ben", "corp/ben"}, {"corp/cleo", "login/cleo"}, {"login/gus", "corp/gus"}}

func (w *world) link(t *testing.T, policies string) {
	t.Helper()
	rules := testRulesWith(t, policies, linkedGroups)
	rules.People = mustLink(t, aliases)
	for i := range rules.Labels {
		rules.Labels[i].Accountable = rules.People.Expand(rules.Labels[i].Accountable)
	}
	rules.Revision[0] ^= 1 // the revision covers the accounts
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, rules); err != nil {
		t.Fatal(err)
	}
}

func mustLink(t *testing.T, aliases [][]string) broker.People {
	t.Helper()
	people, err := broker.NewPeople(aliases)
	if err != nil {
		t.Fatal(err)
	}
	return people
}

func TestNewPeopleRefusesAccounts(t *testing.T) {
	many := []string{}
	for i := range 9 {
		many = append(many, "login/"+strings.Repeat("x", i+1))
	}
	for want, aliases := range map[string][][]string{
		"links no accounts":           {{"login/ana"}},
		"is not a person":             {{"login/ana", "spiffe://acme.test/agent"}},
		`"corp/ana" is listed twice`:  {{"login/ana", "corp/ana"}, {"login/ben", "corp/ana"}},
		`"login/ana" is listed twice`: {{"login/ana", "login/ana"}},
		"at most 8":                   {many},
		"of 700 bytes in total":       {{"login/" + strings.Repeat("x", 250), "corp/" + strings.Repeat("x", 250), "idp/" + strings.Repeat(`"`, 100)}},
	} {
		if _, err := broker.NewPeople(aliases); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100q: got %v, want %q", aliases, err, want)
		}
	}
	people := mustLink(t, aliases)
	if !people.Same("corp/ana", "login/ana") || people.Same("login/ana", "login/ben") || !people.Same("x/y", "x/y") || people.Same("corp/ana", "corp/ben") {
		t.Error("Same does not match the accounts")
	}
	if got := people.Expand([]string{"corp/ben", "x/y", "login/ben"}); !slices.Equal(got, []string{"login/ben", "corp/ben", "x/y"}) {
		t.Errorf("got %q", got)
	}
}

// A person with two accounts gives one approval, over all groups.
func TestLinkedAccountsApproveOnce(t *testing.T) {
	w := linkedWorld(t, `@approval("1 of support, 1 of security")`)
	r := w.ask(t, read("tickets:close"))
	r, err := w.vote(t, approver("ben", noon), r, yes, noon)
	if err != nil || r.Status != broker.RequestPending {
		t.Fatalf("the first approval: got %v, %v, want a pending request", r, err)
	}
	if _, err := w.vote(t, corp("ben", noon), r, yes, noon); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("the other account: got %v, want %v", err, broker.ErrAlreadyVoted)
	}
	if vote, _ := w.broker.CanDecide(broker.Self(corp("ben", noon), noon), r); vote {
		t.Error("the other account may decide")
	}
	if in, err := w.broker.Inbox(t.Context(), broker.Self(corp("ben", noon), noon), broker.InboxQuery{}); err != nil || in.Total != 0 {
		t.Errorf("the inbox of the other account: got %+v, %v", in, err)
	}
	if r, err = w.vote(t, corp("cleo", noon), r, yes, noon); err != nil || r.Status != broker.RequestApproved {
		t.Fatalf("another person: got %v, %v, want an approved request", r, err)
	}
	var voters [][]string
	for _, record := range w.records(t) {
		if record.Approval != nil {
			voters = append(voters, record.Caller.Accounts)
		}
	}
	if len(voters) != 2 || !slices.Equal(voters[0], aliases[1]) || !slices.Equal(voters[1], aliases[2]) {
		t.Errorf("got the accounts %q in the records", voters)
	}
	// The other account may turn the approval into a denial.
	again := w.ask(t, withReason(read("tickets:close"), "again"))
	if again, err = w.vote(t, approver("ben", noon), again, yes, noon); err != nil {
		t.Fatal(err)
	}
	if again, err = w.vote(t, corp("ben", noon), again, denial, noon); err != nil || again.Status != broker.RequestDenied || len(again.Approvals) != 1 {
		t.Errorf("a denial by the other account: got %+v, %v", again, err)
	}
}

// Two accounts of one person do not make a quorum.
func TestLinkedAccountsAreNoQuorum(t *testing.T) {
	w := linkedWorld(t, `@approval("4 of support")`) // ben, cleo and gus; ana is accountable
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:close"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNobodyCanApprove) {
		t.Errorf("got %v, want %v", err, broker.ErrNobodyCanApprove)
	}
	w.link(t, closePolicies(`@approval("3 of support")`))
	w.ask(t, read("tickets:close"))
}

// Two people are needed to deny, and one with two accounts is not two.
func TestLinkedAccountsDenyOnce(t *testing.T) {
	w := linkedWorld(t, `@approval("2 of support") @deny("2")`)
	r := w.ask(t, read("tickets:close"))
	if _, err := w.vote(t, approver("ben", noon), r, denial, noon); err != nil {
		t.Fatal(err)
	}
	if r, err := w.vote(t, corp("ben", noon), r, denial, noon); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("got %v, %v, want %v", r, err, broker.ErrAlreadyVoted)
	}
}

// Approvals that were given before the accounts were linked count once at collection.
func TestAccountsLinkedAfterApproval(t *testing.T) {
	policies := closePolicies(`@approval("2 of support")`)
	w := peopleWorld(t, `@approval("2 of support")`)
	w.adopt(t, policies, linkedGroups)
	r := w.ask(t, read("tickets:close"))
	for _, who := range []broker.Identity{approver("ben", noon), corp("ben", noon)} {
		var err error
		if r, err = w.vote(t, who, r, yes, noon); err != nil {
			t.Fatal(err)
		}
	}
	if r.Status != broker.RequestApproved {
		t.Fatalf("got %+v, want an approved request: the accounts are not linked yet", r)
	}
	w.link(t, policies)
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNeedsNewRequest) {
		t.Errorf("got %v, want %v", err, broker.ErrNeedsNewRequest)
	}
}

// Conflicts of interest cover all accounts of a person.
func TestLinkedAccountsHaveOneInterest(t *testing.T) {
	manager := `@id("people") @approval("1 of manager") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets");`
	gus := func() broker.Identity {
		who := approver("gus", noon)
		who.Person.Manager = "corp/cleo"
		return who
	}
	for name, test := range map[string]struct {
		policies string
		ask, who broker.Identity
		want     error
	}{
		"own request":               {closePolicies(``), approver("gus", noon), corp("gus", noon), broker.ErrOwnRequest},
		"own workload":              {closePolicies(`@approval("1 of support")`), agent(noon), corp("ana", noon), broker.ErrOwnRequest},
		"excluded team":             {closePolicies(`@approval("1 of support") @exclude_team("yes")`), agent(noon), corp("ben", noon), broker.ErrOwnRequest},
		"account that is forbidden": {closePolicies(`@approval("1 of support")`) + `@id("not-cleo") forbid (principal == Person::"login/cleo", action == Action::"approve", resource);`, agent(noon), corp("cleo", noon), broker.ErrNotApprover},
		"manager":                   {manager, gus(), approver("cleo", noon), nil},
		"another person":            {closePolicies(`@approval("1 of support") @exclude_team("yes")`), agent(noon), corp("cleo", noon), nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, ``)
			w.link(t, test.policies)
			r, err := w.broker.Ask(t.Context(), broker.Self(test.ask, noon), read("tickets:close"), broker.IdempotencyKey{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.vote(t, test.who, r, yes, noon); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// A review counts a person once, and excludes owners with all accounts.
func TestLinkedAccountsReviewOnce(t *testing.T) {
	w := linkedWorld(t, `@approval("1 of support")`)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), breakGlass("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	verdict := broker.Vote{Approve: true, Digest: issued.Request.Digest, Comment: "it was"}
	review := func(who broker.Identity) error {
		_, err := w.broker.Review(t.Context(), broker.Self(who, noon), issued.Request.ID, verdict)
		return err
	}
	for _, step := range []struct {
		who  broker.Identity
		want error
	}{
		{corp("ana", noon), broker.ErrOwnRequest}, {approver("ben", noon), nil}, {corp("ben", noon), broker.ErrAlreadyVoted}, {approver("cleo", noon), nil}, {approver("dan", noon), broker.ErrNoReview},
	} {
		if err := review(step.who); !errors.Is(err, step.want) {
			t.Errorf("%s: got %v, want %v", step.who.ID, err, step.want)
		}
	}
}

// A person cannot vouch for a passkey of the other account.
func TestLinkedAccountsDoNotVouch(t *testing.T) {
	w := linkedWorld(t, ``)
	key := w.enrols(t, "ben", noon)
	if _, err := w.sessions.PasskeyOf(t.Context(), broker.Self(corp("ben", noon), noon), "login/ben", key.ID); !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("the other account: got %v, want %v", err, broker.ErrOwnRequest)
	}
	if _, err := w.sessions.PasskeyOf(t.Context(), broker.Self(corp("cleo", noon), noon), "login/ben", key.ID); err != nil {
		t.Errorf("another person: %v", err)
	}
}

// A block of one account blocks the person: requests, sessions and logins with the other,
// and the kill switch ends the leases of both.
func TestBlockOfAccountBlocksPerson(t *testing.T) {
	w := linkedWorld(t, ``)
	w.link(t, `@id("people") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets");`)
	open := func(who broker.Identity) error {
		_, _, err := w.sessions.Open(t.Context(), broker.NewSession{Who: who, Client: broker.ClientBrowser}, noon)
		return err
	}
	other := corp("gus", noon)
	token, _, err := w.sessions.Open(t.Context(), broker.NewSession{Who: other, Client: broker.ClientBrowser}, noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(other, noon), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	killed, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), broker.Selector{Holder: "login/gus"}, "incident", broker.Consent{Force: true})
	if err != nil || killed.Leases != 1 || killed.Hits[0].Holder != "corp/gus" || !slices.Equal(killed.Accounts, aliases[3]) {
		t.Errorf("got %+v, %v, want the lease of the other account", killed, err)
	}
	if _, err := w.broker.Ask(t.Context(), broker.Self(other, noon), read("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrBlocked) {
		t.Errorf("a request: got %v, want %v", err, broker.ErrBlocked)
	}
	if _, err := w.sessions.Peek(t.Context(), token, noon); !errors.Is(err, broker.ErrBlocked) {
		t.Errorf("a session: got %v, want %v", err, broker.ErrBlocked)
	}
	if err := open(other); !errors.Is(err, broker.ErrBlocked) {
		t.Errorf("a login: got %v, want %v", err, broker.ErrBlocked)
	}
	if err := open(corp("ben", noon)); err != nil {
		t.Errorf("another person: %v", err)
	}
	if err := w.broker.Lift(t.Context(), broker.Self(root, noon), broker.Selector{Holder: "login/gus"}, "over"); err != nil {
		t.Fatal(err)
	}
	if err := open(other); err != nil {
		t.Errorf("after lifting the block: %v", err)
	}
}

// Limits count a person once, and so does the bound of pending requests.
func TestLimitsCountPersonOnce(t *testing.T) {
	w := linkedWorld(t, ``)
	w.link(t, `@id("people") @limit("2 per 1h") @max_active("2") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets") when { context.scopes == ["tickets:read"] };
@id("two") @max_active("1") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets") when { context.scopes == ["tickets:comment"] };`)
	collect := func(who broker.Identity, scope string) error {
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(who, noon), read(scope), broker.IdempotencyKey{})
		return err
	}
	for _, step := range []struct {
		who   broker.Identity
		scope string
		want  error
	}{
		{approver("gus", noon), "tickets:read", nil}, {corp("gus", noon), "tickets:read", nil}, {corp("gus", noon), "tickets:read", broker.ErrLimit}, {approver("gus", noon), "tickets:read", broker.ErrLimit},
		{corp("gus", noon), "tickets:comment", nil}, {approver("gus", noon), "tickets:comment", broker.ErrMaxActive}, {approver("ben", noon), "tickets:comment", nil},
	} {
		if err := collect(step.who, step.scope); !errors.Is(err, step.want) {
			t.Errorf("%s, %s: got %v, want %v", step.who.ID, step.scope, err, step.want)
		}
	}
}

// The record of a request names all accounts of the accountable people, so that an auditor
// detects an approval with any of them.
func TestRecordNamesAccountsOfAccountable(t *testing.T) {
	w := linkedWorld(t, `@approval("1 of support")`)
	w.ask(t, read("tickets:close"))
	created := slices.IndexFunc(w.records(t), func(r audit.Record) bool { return r.Kind == audit.RequestCreated })
	if created < 0 || !slices.Equal(w.records(t)[created].Request.Accountable, aliases[0]) {
		t.Errorf("got record %d, want the accounts %q", created, aliases[0])
	}
}
