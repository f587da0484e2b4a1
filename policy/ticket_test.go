package policy_test

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/policy"
)

// withTrackers loads policies of a broker whose trackers define states.
func withTrackers(t *testing.T, cedar string, states ...string) (*policy.Engine, error) {
	t.Helper()
	in := inputs(fstest.MapFS{"a.cedar": {Data: []byte(cedar)}, "groups.yaml": {Data: []byte(peopleGroups)}})
	in.Providers = []string{"login", "partner"}
	in.TicketStates, in.TicketWindows = states, true
	return policy.Load(in)
}

func ticketed(id, annotations string) string {
	return `@id("` + id + `") ` + annotations + ` permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api");` + "\n"
}

// The terms of all permits that apply add up.
func TestTicketTermsAddUp(t *testing.T) {
	t.Parallel()
	all := ticketed("a", `@ticket_state("open") @ticket_assignee("requester, accountable")`) + ticketed("b", `@ticket_state("implementing") @ticket_assignee("accountable")`) +
		ticketed("c", `@change_window("required") @ticket_assignee(" accountable,requester ")`) + ticketed("d", ``)
	e, err := withTrackers(t, all, "implementing", "open")
	if err != nil {
		t.Fatal(err)
	}
	got := decide(t, e, query(triage, "tickets-api", "tickets:read")).Obligations.TicketTerms
	if !slices.Equal(got.TicketStates, []string{"implementing", "open"}) || !slices.Equal(got.TicketAssignees, []string{"accountable", "accountable, requester"}) || !got.ChangeWindow {
		t.Errorf("got %+v", got)
	}
	x := e.Explain(t.Context(), query(triage, "tickets-api", "tickets:read"), noon)
	for _, line := range []string{"ticket_state: implementing", "ticket_state: open", "ticket_assignee: accountable", "ticket_assignee: accountable, requester", "change_window: required"} {
		if !slices.Contains(x.Obligations, line) {
			t.Errorf("the explanation %q lacks %q", x.Obligations, line)
		}
	}
	one, err := withTrackers(t, ticketed("d", ``), "open")
	if err != nil {
		t.Fatal(err)
	}
	if o := decide(t, one, query(triage, "tickets-api", "tickets:read")).Obligations; len(o.TicketStates)+len(o.TicketAssignees) > 0 || o.ChangeWindow {
		t.Errorf("a permit without terms: got %+v", o.TicketTerms)
	}
}

func TestBadTicketTermsDoNotLoad(t *testing.T) {
	t.Parallel()
	for annotations, want := range map[string]string{
		`@ticket_state("closed")`:                   "access never rests on a closed ticket",
		`@ticket_state("opened")`:                   `ticket state "opened" does not exist: did you mean "open"?`,
		`@ticket_state("open, implementing")`:       "write one state",
		`@ticket_state("")`:                         "write one state",
		`@ticket_state("Open")`:                     "write one state",
		`@ticket_assignee("")`:                      `write "requester", "accountable" or both`,
		`@ticket_assignee("requester,")`:            `write "requester", "accountable" or both`,
		`@ticket_assignee("owner")`:                 `write "requester", "accountable" or both`,
		`@ticket_assignee("requester, requester")`:  "appears twice",
		`@ticket_assignee("requester accountable")`: `write "requester", "accountable" or both`,
		`@change_window("yes")`:                     `write "required"`,
		`@change_windows("required")`:               "unknown annotation",
	} {
		if _, err := withTrackers(t, ticketed("x", annotations), "open"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", annotations, err, want)
		}
	}
	for _, annotations := range []string{`@ticket_state("open")`, `@ticket_assignee("requester")`, `@change_window("required")`} {
		if _, err := withTrackers(t, ticketed("x", annotations)); err == nil || !strings.Contains(err.Error(), "need a ticket system") {
			t.Errorf("%s without a tracker: got %v", annotations, err)
		}
	}
	if _, err := withTrackers(t, `@id("x") @ticket_state("open") permit (principal, action == Action::"view", resource);`, "open"); err == nil {
		t.Error("a permit for another action: got no error")
	}
}

// Break-glass access does without approvals, and not without the ticket.
func TestTicketTermsHoldForBreakGlass(t *testing.T) {
	t.Parallel()
	e, err := withTrackers(t, ticketed("glass", `@break_glass("support")`)+ticketed("close", `@approval("1 of support") @ticket_state("open") @change_window("required")`), "open")
	if err != nil {
		t.Fatal(err)
	}
	q := query(triage, "tickets-api", "tickets:close")
	q.BreakGlass = true
	if d := decide(t, e, q); !d.Permit || len(d.Obligations.Approvals) > 0 || !slices.Equal(d.Obligations.TicketStates, []string{"open"}) || !d.Obligations.ChangeWindow {
		t.Errorf("got %+v", d)
	}
}

func TestScenariosOfTickets(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{
		"a.cedar": {Data: []byte(ticketed("a", `@ticket("INC-[0-9]+") @ticket_state("open") @ticket_assignee("requester, accountable") @change_window("required")`))}, "groups.yaml": {Data: []byte(peopleGroups)},
	})
	scenarios := fstest.MapFS{"a_test.yaml": {Data: []byte(`scenarios:
  - name: with all terms
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets-api
    scopes: ["tickets:read"]
    ticket: INC-7
    expect: permit
    obligations: {ticket: ["INC-[0-9]+"], ticket_state: [open], ticket_assignee: ["requester, accountable"], change_window: required}
  - name: without terms
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets-api
    scopes: ["tickets:read"]
    expect: permit
    obligations: {ticket: ["INC-[0-9]+"]}
`)}}
	in.Providers = []string{"login", "partner"}
	in.TicketStates, in.TicketWindows = []string{"open"}, true
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	report, err := policy.Test(t.Context(), e, scenarios)
	if err != nil || report.Ran != 2 || len(report.Failures) != 1 || report.Failures[0].Name != "without terms" {
		t.Errorf("got %+v, %v", report, err)
	}
}

func TestWindowsNeedATrackerThatHasThem(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{"a.cedar": {Data: []byte(ticketed("x", `@change_window("required")`))}, "groups.yaml": {Data: []byte(peopleGroups)}})
	in.Providers, in.TicketStates = []string{"login", "partner"}, []string{"open"}
	if _, err := policy.Load(in); err == nil || !strings.Contains(err.Error(), "needs a ticket system with change windows") {
		t.Errorf("got %v", err)
	}
}
