package broker_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

const viewPolicies = testPolicies + `
@id("viewers") permit (principal == Person::"login/vic", action == Action::"view", resource);
@id("auditors") permit (principal == Person::"login/vic", action == Action::"audit", resource);
`

// Lists and single reads show a request or a lease to its requester, to its
// approvers, and to people whom policy permits to view it, and to no one else.
func TestListsShowOnlyVisibleRows(t *testing.T) {
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, policies: viewPolicies})
	other := workload("spiffe://acme.test/agent/other", noon)
	var ids []broker.RequestID
	for _, who := range []broker.Identity{agent(noon), other} {
		issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(who, noon), read("tickets:read"), broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, issued.Request.ID)
	}
	pending := w.ask(t, withReason(read("tickets:close"), "ticket 4711"))
	ids = append(ids, pending.ID)
	expired := approver("ben", noon)
	expired.Proof.Expires = noon
	viewerExpired := approver("vic", noon)
	viewerExpired.Proof.Expires = noon
	for name, test := range map[string]struct {
		who      broker.Identity
		query    string
		requests []int // of ids
		leases   int
	}{
		"the requester, by default":         {agent(noon), "", []int{0, 2}, 1},
		"the requester, of everyone":        {agent(noon), broker.Everyone, []int{0, 2}, 1},
		"the requester, of another":         {agent(noon), other.ID, nil, 0},
		"another workload":                  {other, broker.Everyone, []int{1}, 1},
		"an approver":                       {approver("cleo", noon), broker.Everyone, []int{2}, 0},
		"an approver, by default":           {approver("cleo", noon), "", nil, 0},
		"an approver whose session is over": {expired, broker.Everyone, nil, 0},
		"a person of no group":              {approver("zoe", noon), broker.Everyone, nil, 0},
		"a viewer":                          {approver("vic", noon), broker.Everyone, []int{0, 1, 2}, 2},
		"a viewer, of one requester":        {approver("vic", noon), other.ID, []int{1}, 1},
		"a viewer whose session is over":    {viewerExpired, broker.Everyone, nil, 0},
		"an operator, by default":           {root, "", []int{0, 1, 2}, 2},
	} {
		caller := broker.Self(test.who, noon)
		page, next, err := w.broker.Requests(t.Context(), caller, broker.RequestQuery{Requester: test.query})
		if err != nil || !next.IsZero() || len(page) != len(test.requests) {
			t.Errorf("%s: got %d requests, next %s, %v, want %d", name, len(page), next, err, len(test.requests))
		}
		for _, r := range page {
			if !slices.ContainsFunc(test.requests, func(i int) bool { return ids[i] == r.ID }) {
				t.Errorf("%s: sees request %s", name, r.ID)
			}
			if one, err := w.broker.Request(t.Context(), caller, r.ID); err != nil || one.ID != r.ID {
				t.Errorf("%s: got %+v, %v", name, one, err)
			}
		}
		leases, _, err := w.broker.Leases(t.Context(), caller, broker.LeaseQuery{Holder: test.query})
		if err != nil || len(leases) != test.leases {
			t.Errorf("%s: got %d leases, %v, want %d", name, len(leases), err, test.leases)
		}
	}
	for _, id := range ids {
		if _, err := w.broker.Request(t.Context(), broker.Self(approver("zoe", noon), noon), id); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("got %v, want %v", err, broker.ErrNotFound)
		}
	}
	if _, err := w.broker.Lease(t.Context(), broker.Self(root, noon), broker.NewLeaseID(noon)); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("an unknown lease: got %v, want %v", err, broker.ErrNotFound)
	}
	if _, _, err := w.broker.Requests(t.Context(), broker.Self(root, noon), broker.RequestQuery{Requester: "ana"}); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("a name that nothing has: got %v, want %v", err, broker.ErrInvalidRequest)
	}
}

func TestMay(t *testing.T) {
	w := newWorld(t, worldConfig{policies: viewPolicies})
	expired := approver("vic", noon)
	expired.Proof.Expires = noon
	for name, test := range map[string]struct {
		who    broker.Identity
		action broker.Action
		want   bool
	}{
		"a permitted person":           {approver("vic", noon), broker.ActionAudit, true},
		"another action":               {approver("vic", noon), broker.ActionBlock, false},
		"another person":               {approver("ben", noon), broker.ActionAudit, false},
		"a person whose login is over": {expired, broker.ActionAudit, false},
		"the operator":                 {root, broker.ActionBlock, true},
	} {
		if got := w.broker.May(t.Context(), broker.Self(test.who, noon), test.action); got != test.want {
			t.Errorf("%s: got %t, want %t", name, got, test.want)
		}
	}
	w.adoptChanged(t, viewPolicies, func(r *broker.Rules) { r.Policy = doubtfulPolicy{r.Policy} })
	if w.broker.May(t.Context(), broker.Self(approver("vic", noon), noon), broker.ActionAudit) {
		t.Error("an error of policy permits")
	}
}

// Pages have a default size and a largest one, and lose no row between them.
func TestPages(t *testing.T) {
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, policies: testPolicies})
	const rows = 205
	for range rows {
		if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
			t.Fatal(err)
		}
	}
	caller := broker.Self(agent(noon), noon)
	for limit, want := range map[int]int{0: 50, -1: 50, 1: 1, 200: 200, 1000: 200} {
		requests, _, err := w.broker.Requests(t.Context(), caller, broker.RequestQuery{Limit: limit})
		if err != nil || len(requests) != want {
			t.Errorf("limit %d: got %d requests, %v, want %d", limit, len(requests), err, want)
		}
		leases, _, err := w.broker.Leases(t.Context(), caller, broker.LeaseQuery{Limit: limit})
		if err != nil || len(leases) != want {
			t.Errorf("limit %d: got %d leases, %v, want %d", limit, len(leases), err, want)
		}
	}
	seen := map[broker.RequestID]bool{}
	for q := (broker.RequestQuery{Limit: 60}); ; {
		page, next, err := w.broker.Requests(t.Context(), caller, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page {
			seen[r.ID] = true
		}
		if q.Before = next; next.IsZero() {
			break
		}
	}
	if len(seen) != rows {
		t.Errorf("got %d different requests on all pages, want %d", len(seen), rows)
	}
}

// A credential of a grant ends with the grant, or with the first credential's full
// time.
func TestEndOfAGrant(t *testing.T) {
	approved := broker.Request{Status: broker.RequestApproved, TTL: 10 * time.Minute, Duration: time.Hour, CollectUntil: noon.Add(time.Hour)}
	collected, early, pending := approved, approved, approved
	collected.FirstExpires, early.FirstExpires, pending.Status = noon.Add(65*time.Minute), noon.Add(10*time.Minute), broker.RequestPending
	for name, test := range map[string]struct {
		r    broker.Request
		want time.Time
	}{
		"not collected":             {approved, noon.Add(70 * time.Minute)},
		"collected just before":     {collected, noon.Add(65 * time.Minute)},
		"collected early":           {early, noon.Add(time.Hour)},
		"a request without a grant": {pending, time.Time{}},
	} {
		if got := test.r.Ends(); !got.Equal(test.want) {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}
