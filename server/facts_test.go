package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// asPerson returns a client with a new session of a person.
func (w *world) asPerson(t *testing.T, person string) *api.Client {
	t.Helper()
	token, _, err := w.cfg.Sessions.Open(t.Context(), broker.NewSession{Who: (&testPeople{}).person(person, time.Now())}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return w.as(token.Reveal())
}

// What other processes stored about people is in memory before a person's call decides. A
// call is not answered without it.
func TestPeopleAreFollowedBeforeTheyAct(t *testing.T) {
	t.Parallel()
	calls, failure := 0, error(nil)
	w := newWorld(t, func(c *Config) {
		withPeople(c)
		c.Follow = func(context.Context) error {
			calls++
			return failure
		}
	})
	ben := w.asPerson(t, "login/ben")
	if _, err := ben.WhoAmI(t.Context()); err != nil || calls != 1 {
		t.Errorf("a person: got %v after %d calls, want 1", err, calls)
	}
	if _, err := w.as(agent).WhoAmI(t.Context()); err != nil || calls != 1 {
		t.Errorf("a workload: got %v after %d calls, want 1", err, calls)
	}
	failure = broker.Unavailable(errors.New("the database is away"))
	if _, err := ben.WhoAmI(t.Context()); !errors.Is(err, api.Unavailable) {
		t.Errorf("without the database: got %v, want %s", err, api.Unavailable)
	}
}

// Approvers get the facts in the API and on the page. Others do not.
func TestApproversGetFacts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { withPeople(c); c.TicketURL = "https://tracker.acme.test/{ticket}" })
	must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, Justification: "before"}))
	filed := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, Justification: "x", Ticket: "INC/1"}))
	ben := w.asPerson(t, "login/ben")
	seen := must[*api.Request](t)(ben.Request(t.Context(), filed.ID))
	f := seen.Facts
	if f == nil {
		t.Fatal("the approver gets no facts")
	}
	if f.Description != "the guarded database" || f.Owner != "dba" || f.Revocation != "at_expiry" || f.Effect != "a token for https://guarded.acme.test with read" {
		t.Errorf("the entitlement: %+v", f)
	}
	if len(f.ScopeTexts) != 1 || f.ScopeTexts["read"] != "read <all> rows" {
		t.Errorf("the scopes: %q", f.ScopeTexts)
	}
	if f.Proof.Method != "jwt-svid" || f.Proof.ExpiresAt.IsZero() || f.From != "127.0.0.1" || f.TicketURL != "https://tracker.acme.test/INC%2F1" {
		t.Errorf("the requester: %+v", f)
	}
	if len(f.History) != 1 || f.History[0] != (api.RequestHistory{Entitlement: "tickets", Asked: 1, Granted: 1}) || f.HistoryPartial {
		t.Errorf("the history: %+v", f.History)
	}
	if len(seen.Decision.Policies) != 1 || len(seen.Accountable) != 1 {
		t.Errorf("policies %q, accountable %q", seen.Decision.Policies, seen.Accountable)
	}

	// The page shows them too.
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	_, _, page := b.visit(http.MethodGet, "/ui/requests/"+filed.ID, "")
	for _, fact := range []string{"the guarded database", "owner dba", "read &lt;all&gt; rows", f.Effect, "SPIFFE token (JWT-SVID), from 127.0.0.1", f.TicketURL, "not revocable; it expires by itself"} {
		if !strings.Contains(page, fact) {
			t.Errorf("the page does not show %q", fact)
		}
	}

	// The requester's owner sees the request without its policies.
	ana := w.asPerson(t, "login/ana")
	if r := must[*api.Request](t)(ana.Request(t.Context(), filed.ID)); r.Facts == nil || len(r.Decision.Policies) > 0 {
		t.Errorf("the owner sees the policies %q", r.Decision.Policies)
	}
	for client, want := range map[*api.Client]int{ben: 1, ana: 0} {
		list := must[*api.RequestPage](t)(client.Requests(t.Context(), api.RequestFilter{Requester: agent, Entitlement: "guarded"})).Requests
		if len(list) == 0 {
			t.Error("got no requests in the list")
		}
		for _, r := range list {
			if len(r.Decision.Policies) != want {
				t.Errorf("in a list: policies %q, want %d", r.Decision.Policies, want)
			}
		}
	}
	if !strings.Contains(page, "Policies:") {
		t.Error("the page does not show the policies to an approver")
	}
	b.logIn("login/ana", "/ui/")
	if _, _, page := b.visit(http.MethodGet, "/ui/requests/"+filed.ID, ""); !strings.Contains(page, "the guarded database") || strings.Contains(page, "Policies:") {
		t.Error("the page shows the policies to the owner")
	}

	// The requester, workloads that may view the request, lists and other answers have none.
	for name, r := range map[string]*api.Request{
		"requester":             must[*api.Request](t)(w.as(agent).Request(t.Context(), filed.ID)),
		"workload":              must[*api.Request](t)(w.as(auditor).Request(t.Context(), filed.ID)),
		"answer to the request": filed,
		"answer to the denial":  must[*api.Request](t)(ben.Vote(t.Context(), filed.ID, api.Vote{Decision: api.Deny, Digest: filed.Digest, Comment: "not now"})),
	} {
		if r.Facts != nil {
			t.Errorf("%s gets the facts: %+v", name, r.Facts)
		}
	}
	list := must[*api.RequestPage](t)(ben.Requests(t.Context(), api.RequestFilter{Requester: agent}))
	if text, err := json.Marshal(list); err != nil || len(list.Requests) == 0 || strings.Contains(string(text), `"facts"`) {
		t.Errorf("a list: %v %s", err, text)
	}
	if _, err := w.asPerson(t, "login/zoe").Request(t.Context(), filed.ID); err == nil {
		t.Error("an unrelated person sees the request")
	}
}
