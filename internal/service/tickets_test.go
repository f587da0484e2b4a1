package service_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest"
	"accessbroker.internal/tickets/ticketstest"
)

// ticketWorld is a world whose agents need a ticket to read tickets, and to close them.
func ticketWorld(t *testing.T) (*brokertest.World, *ticketstest.System) {
	t.Helper()
	jira := ticketstest.NewJira(false)
	jira.Auth = "Basic YnJva2VyQGFjbWUudGVzdDpzM2NyZXQ="
	jira.Put(ticketstest.Ticket{ID: "INC-7", Title: "<script>alert(1)</script> \u202ekcuts si llit", Status: "In Progress", Assignee: "5b10ac8d", Name: "Ana <b>Alvarez</b>"})
	jira.Put(ticketstest.Ticket{ID: "INC-8", Title: "of another person", Status: "In Progress", Assignee: "5b10ffff", Name: "Mallory"})
	server := httptest.NewTLSServer(jira)
	t.Cleanup(server.Close)
	w := brokertest.NewWorld(t)
	for name, text := range map[string]string{
		"jira.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})), "jira.secret": "s3cret\n", "hook.secret": "0123456789abcdef\n",
		"policies/ticketed.cedar": `@id("ticketed") @ticket("INC-[0-9]+") @ticket_state("open") @ticket_assignee("requester, accountable")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api");`,
	} {
		if err := os.WriteFile(filepath.Join(w.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.Edit("store:", fmt.Sprintf(`tickets:
  jira:
    jira: {url: %q, ca_file: jira.pem, allow_private: true, username: broker@acme.test, password_file: jira.secret}
    prefix: INC-
    people: {5b10ac8d: login/ana}
    webhook_secret_file: hook.secret
store:`, server.URL))
	w.StartIdentities()
	return w, jira
}

// The whole way: the operator's file, a tracker over TLS, a request that rests on its
// ticket, a webhook, and the end of the lease.
func TestTicketEndsTheLease(t *testing.T) {
	w, jira := ticketWorld(t)
	w.Start(io.Discard)
	agent := w.Agent()
	ask := api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, Justification: "triage"}
	for ticket, want := range map[string]api.Code{"": api.TicketRequired, "INC-8": api.TicketUnfit, "INC-9": api.FactUnknown} {
		ask.Ticket = ticket
		if _, _, err := agent.AskAndCollect(t.Context(), ask); !errors.Is(err, want) {
			t.Errorf("ticket %q: got %v, want %v", ticket, err, want)
		}
	}
	ask.Ticket = "INC-7"
	credential, _, err := agent.AskAndCollect(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	closing := ask
	closing.Scopes, closing.Justification = []string{"tickets:close"}, "duplicate"
	waiting, err := agent.Ask(t.Context(), closing)
	if err != nil {
		t.Fatal(err)
	}
	jira.Change("INC-7", func(t *ticketstest.Ticket) { t.Status = "Done" })
	const body = `{"webhookEvent": "jira:issue_updated", "issue": {"key": "INC-7"}}`
	for secret, want := range map[string]int{"guessed": http.StatusUnauthorized, "0123456789abcdef": http.StatusNoContent} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.URL()+"/hooks/tickets/jira", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Hub-Signature", ticketstest.Sign(secret, body))
		resp, err := agent.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != want {
			t.Errorf("a webhook with the secret %q: got status %d, want %d", secret, resp.StatusCode, want)
		}
	}
	brokertest.Eventually(t, "the end of the pending request", func() bool {
		r, err := agent.Request(t.Context(), waiting.ID)
		if err != nil {
			t.Fatal(err)
		}
		waiting = r
		return r.EndedBy != nil
	})
	if waiting.Status != "denied" || waiting.EndedBy.Cause != "ticket_closed" {
		t.Errorf("the pending request: %s, %+v", waiting.Status, waiting.EndedBy)
	}
	brokertest.Eventually(t, "the end of the lease", func() bool {
		l, err := agent.Lease(t.Context(), credential.Lease)
		if err != nil {
			t.Fatal(err)
		}
		return l.Status != "active" && l.EndHow == "fact_ended"
	})
	if _, _, err := agent.AskAndCollect(t.Context(), ask); !errors.Is(err, api.FactEnded) {
		t.Errorf("a new request: got %v, want %v", err, api.FactEnded)
	}
}
