package e2e

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/tickets/ticketstest"
)

// ticketPolicies let agents read the orders for a ticket that is open, theirs or their
// owner's, and, where the ticket has one, in its change window.
const ticketPolicies = `
@id("ticketed")
@ticket_state("open")
@ticket_assignee("requester, accountable")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"orders-db-ro");

@id("changes")
@change_window("required")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"orders-db-ro")
when { context has ticket && context.ticket like "CHG*" };
`

// trackers are the three systems, as http.Handlers that follow the descriptions of their
// APIs.
type trackers struct{ jira, now, hub *ticketstest.System }

// serveTrackers serves the systems over TLS and returns the lines of the operator's file.
func serveTrackers(t testing.TB, w *world) (tr trackers, lines string) {
	t.Helper()
	tr = trackers{ticketstest.NewJira(false), ticketstest.NewServiceNow("change_request"), ticketstest.NewGitHub("acme/payments")}
	tr.jira.Auth, tr.now.Auth, tr.hub.Auth = "Basic YnJva2VyQGFjbWUudGVzdDpzM2NyZXQ=", "Basic YnJva2VyOnMzY3JldA==", "Bearer s3cret"
	urls := map[*ticketstest.System]string{}
	for _, s := range []*ticketstest.System{tr.jira, tr.now, tr.hub} {
		server := httptest.NewTLSServer(s)
		t.Cleanup(server.Close)
		urls[s] = server.URL
		w.write(t, "trackers.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	}
	w.write(t, "tracker.secret", "s3cret\n")
	w.write(t, "hook.secret", "0123456789abcdef\n")
	return tr, fmt.Sprintf(`
tickets:
  jira:
    jira: {url: %q, ca_file: trackers.pem, allow_private: true, username: broker@acme.test, password_file: tracker.secret}
    prefix: INC-
    people: {5b10ac8d: login/ana}
    webhook_secret_file: hook.secret
  changes:
    servicenow: {url: %q, ca_file: trackers.pem, allow_private: true, table: change_request, username: broker, password_file: tracker.secret}
    prefix: CHG
    people: {5137153c: login/ana}
    interval: 5s
  payments:
    github: {url: %q, ca_file: trackers.pem, allow_private: true, token_file: tracker.secret, repository: acme/payments}
    prefix: GH-
    people: {octocat: login/ana}
    interval: 5s
    stale_after: 20s
`, urls[tr.jira], urls[tr.now], urls[tr.hub])
}

// A database user of a real Vault ends with its ticket: by a webhook, by a look, at the end
// of the change window, and when the tracker has been silent for too long.
func TestTicketEndsDatabaseUsers(t *testing.T) {
	t.Parallel()
	l, s := labOf(t), spireOf(t)
	w := newBroker(t, s)
	tr, lines := serveTrackers(t, w)
	w.issuers = fmt.Sprintf(`
  vault: {vault: {address: "%s", ca_file: "%s", auth: {jwt: {role: broker}}, token_role: broker-leases}}`, l.vault.address(), l.vault.caFile())
	w.entitlements = `
  orders-db-ro: {issuer: vault, vault: {path: database/creds/orders-ro}, max_ttl: 30m}` + lines
	w.configure(t, []string{s.domain}, ticketPolicies)
	w.start(t)
	agent := w.mtlsClient(t, source(t, s))

	now := time.Now()
	tr.jira.Put(ticketstest.Ticket{ID: "INC-7", Title: "the till is stuck", Status: "In Progress", Assignee: "5b10ac8d", Name: "Ana"})
	tr.jira.Put(ticketstest.Ticket{ID: "INC-8", Title: "of another person", Status: "In Progress", Assignee: "5b10ffff", Name: "Mallory"})
	tr.now.Put(ticketstest.Ticket{ID: "CHG0030001", Status: "-1", Assignee: "5137153c", Name: "Ana", From: now.Add(-time.Hour), Until: now.Add(time.Hour)})
	tr.now.Put(ticketstest.Ticket{ID: "CHG0030002", Status: "-2", Assignee: "5137153c", Name: "Ana", From: now.Add(time.Hour), Until: now.Add(2 * time.Hour)})
	for _, number := range []string{"7", "8"} {
		tr.hub.Put(ticketstest.Ticket{ID: number, Title: "retry payments", Status: "open", Assignee: "octocat"})
	}

	for ticket, want := range map[string]api.Code{"INC-8": api.TicketUnfit, "CHG0030002": api.TicketUnfit, "INC-9": api.FactUnknown, "OPS-1": api.FactUnknown, "": api.TicketRequired} {
		_, _, err := agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-db-ro", Ticket: ticket})
		if !errors.Is(err, want) {
			t.Errorf("ticket %q: got %v, want %v", ticket, err, want)
		}
	}
	got := map[string]*api.Credential{}
	for _, ticket := range []string{"INC-7", "CHG0030001", "GH-7", "GH-8"} {
		c, _, err := agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-db-ro", Ticket: ticket})
		if err != nil {
			t.Fatalf("ticket %s: %v", ticket, err)
		}
		if err := l.works(c); err != nil {
			t.Fatalf("ticket %s: %v", ticket, err)
		}
		got[ticket] = c
	}
	ends := func(ticket, cause string) {
		t.Helper()
		eventually(t, "the end of the database user of "+ticket, 90*time.Second, func() error { return l.rejected(got[ticket]) })
		lease, err := agent.Lease(t.Context(), got[ticket].Lease)
		if err != nil || lease.EndHow != "fact_ended" || lease.EndedBy == nil || lease.EndedBy.Cause != cause {
			t.Errorf("the lease of %s: %+v, %v; want the cause %s", ticket, lease, err, cause)
		}
	}

	tr.jira.Change("INC-7", func(t *ticketstest.Ticket) { t.Status = "Done" })
	w.hook(t, agent, "jira", `{"webhookEvent": "jira:issue_updated", "issue": {"key": "INC-7"}}`)
	ends("INC-7", "ticket_closed")

	tr.hub.Change("7", func(t *ticketstest.Ticket) { t.Assignee = "mallory" })
	ends("GH-7", "ticket_reassigned")
	if err := l.works(got["GH-8"]); err != nil {
		t.Errorf("the user of another ticket: %v", err)
	}
	over := time.Now().Add(7 * time.Second).Truncate(time.Second)
	tr.now.Change("CHG0030001", func(t *ticketstest.Ticket) { t.Until = over })
	ends("CHG0030001", "change_window_over")
	if early := time.Until(over); early > 0 {
		t.Errorf("the change window's access ended %s early", early)
	}

	tr.hub.Break(func(w http.ResponseWriter, _ *http.Request) {
		http.Redirect(w, &http.Request{}, "http://169.254.169.254/latest/meta-data/", http.StatusFound)
	})
	ends("GH-8", "stale")
	if _, _, err := agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-db-ro", Ticket: "GH-8"}); !errors.Is(err, api.FactUnknown) {
		t.Errorf("a request while the tracker is down: got %v", err)
	}
	shown := w.records(t, "--kind", "fact.ended")
	for _, want := range []string{"ticket jira/INC-7", "ticket payments/8"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the log does not name %s:\n%s", want, shown)
		}
	}
}

// hook sends a webhook as Jira does.
func (w *world) hook(t testing.TB, c *api.Client, tracker, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/hooks/tickets/"+tracker, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Hub-Signature", ticketstest.Sign("0123456789abcdef", body))
	resp, err := c.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _ = resp.Body.Close(); resp.StatusCode != http.StatusNoContent {
		t.Errorf("the webhook: got %s", resp.Status)
	}
}
