package server

import (
	"context"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// seenTickets are tickets at which the broker has looked.
type seenTickets struct{ list map[string]*broker.Ticket }

func (*seenTickets) Look(context.Context, string) (broker.StandingKey, *broker.Ticket, error) {
	return broker.StandingKey{}, nil, broker.ErrFactUnknown
}

func (s *seenTickets) Seen(ticket string) *broker.Ticket { return s.list[ticket] }

// Approvers see what the tracker stated. Its texts are quoted, and neither act nor hide
// anything.
func TestApproversSeeTheTicket(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	seen := time.Date(2026, 11, 29, 20, 0, 0, 0, time.UTC)
	w.tickets.list = map[string]*broker.Ticket{
		"INC-7": {
			Tracker: "jira", ID: "INC-7", Title: hostile + " \u202ekcuts si llit", Status: "In " + hostile, Assignee: hostile + "\u202e", States: []string{"implementing", "open"}, Assignees: []string{"login/ana"},
			From: seen.Add(2 * time.Hour), Until: seen.Add(4 * time.Hour), Looked: seen,
		},
		"INC-8": {Tracker: "jira", ID: "INC-8", Looked: seen},
		"INC-9": {Tracker: "jira", ID: "INC-9", Title: "till", Assignee: "Mallory", States: []string{"open"}, Looked: seen},
	}
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	pages := map[string]string{}
	for _, ticket := range []string{"INC-7", "INC-8", "INC-9", "INC-10"} {
		r := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, Justification: "x", Ticket: ticket}))
		_, _, pages[ticket] = b.visit(http.MethodGet, "/ui/requests/"+r.ID, "")
		facts := must[*api.Request](t)(w.asPerson(t, "login/ben").Request(t.Context(), r.ID)).Facts
		if got, want := facts.Ticket != nil, w.tickets.list[ticket] != nil; got != want {
			t.Errorf("%s: got a ticket %t in the facts, want %t", ticket, got, want)
		}
	}
	inOrder(t, pages["INC-7"], "<dt>Ticket</dt>", "<dt>In jira</dt>", "Written by people in jira, not verified", "&lt;/title&gt;&lt;script&gt;", `<span class="escaped">`, "implementing, open", "In &lt;/title&gt;", "assigned to login/ana", "change window", "22:00", "seen")
	inOrder(t, pages["INC-8"], "<dt>In jira</dt>", "closed", "assigned to nobody")
	inOrder(t, pages["INC-9"], "assigned to", "Mallory", "(not known here)")
	if strings.Contains(pages["INC-10"], "In jira") {
		t.Error("the page shows a ticket at which the broker has not looked")
	}
	for ticket, page := range maps.All(pages) {
		if strings.Contains(page, "<script>alert") || strings.Contains(page, "<b>") || strings.Contains(page, "\u202e") {
			t.Errorf("%s: the page has markup or hidden characters of the tracker", ticket)
		}
	}
}
