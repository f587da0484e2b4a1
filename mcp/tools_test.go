package mcp_test

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/mcp"
)

type object = map[string]any

var closeTickets = object{"entitlement": "tickets-api", "scopes": []string{"tickets:close"}, "justification": "duplicates of INC-4711"}

// An agent lists its access, requests one that needs approval, learns of the approval, and
// returns the credential that its runtime has collected.
func TestToolsFromListToRelease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client := w.client(triage)
	s := connect(t, client, nil, mcp.Config{})

	listing := structured[mcp.Listing](t, call(t, s, "list_access", object{}))
	at := slices.IndexFunc(listing.Entitlements, func(e mcp.Entitlement) bool { return e.Name == "tickets-api" })
	if listing.Caller != triage || at < 0 || len(listing.Entitlements[at].Scopes) != 3 {
		t.Fatalf("got %+v", listing)
	}
	scopes := listing.Entitlements[at].Scopes
	if !slices.IsSortedFunc(scopes, func(a, b mcp.Scope) int { return cmp.Compare(a.Name, b.Name) }) || scopes[0].Conditions[0] != "needs approval by 1 person of the group support" {
		t.Errorf("got %+v", scopes)
	}
	if got := structured[mcp.Listing](t, call(t, s, "list_access", object{"search": "CLOSE tickets"})); len(got.Entitlements) != 1 || got.Entitlements[0].Name != "tickets-api" {
		t.Errorf("a search: got %+v", got)
	}
	if got := structured[mcp.Listing](t, call(t, s, "list_access", object{"entitlement": "tickets"})); len(got.Entitlements) != 0 || got.Summary == "" {
		t.Errorf("another name: got %+v", got)
	}

	asked := structured[mcp.Access](t, call(t, s, "request_access", closeTickets))
	if asked.Status != api.StatusPending || !slices.Equal(asked.WaitsFor, []string{"1 of the group support"}) || asked.Collect != "" {
		t.Fatalf("got %+v", asked)
	}
	again := structured[mcp.Access](t, call(t, s, "request_access", closeTickets))
	if again.Handle != asked.Handle || !again.Reused {
		t.Errorf("a repeated call: got %+v", again)
	}

	decided := make(chan mcp.Access)
	go func() {
		decided <- structured[mcp.Access](t, call(t, s, "access_status", object{"handle": asked.Handle, "wait_seconds": 30}))
	}()
	w.decide(w.person("ben"), asked.Handle, api.Approve, "checked")
	got := <-decided
	if got.Status != api.StatusApproved || got.Collect != "broker collect "+asked.Handle || !strings.Contains(got.Next, got.Collect) {
		t.Errorf("got %+v", got)
	}
	if want := []mcp.Quote{{From: "login/ben", Text: "checked"}}; !slices.Equal(got.Quotes[1:], want) {
		t.Errorf("got quotes %+v", got.Quotes)
	}

	credential, err := client.Collect(t.Context(), asked.Handle)
	must(t, err)
	held := call(t, s, "access_status", object{"handle": credential.Lease})
	if got := structured[mcp.Access](t, held); got.Handle != asked.Handle || len(got.Leases) != 1 || got.Leases[0].Status != api.LeaseActive {
		t.Errorf("got %+v", got)
	}
	if strings.Contains(textOf(held), credential.Secret["token"]) {
		t.Error("the credential is in the status")
	}
	released := structured[mcp.Release](t, call(t, s, "release_access", object{"handle": asked.Handle, "reason": "done"}))
	if len(released.Returned) != 1 || released.Returned[0].Handle != credential.Lease || released.Returned[0].Status != api.LeaseRevoked {
		t.Errorf("got %+v", released)
	}
	if mine := structured[mcp.Access](t, call(t, s, "access_status", object{})); len(mine.Requests) != 1 || mine.Requests[0].Handle != asked.Handle {
		t.Errorf("got %+v", mine.Requests)
	}
}
