package server

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/issuers/issuertest"
	"accessbroker.internal/issuers/scim"
	"accessbroker.internal/store"
)

// A crm is a system with groups, and the issuer of its memberships.
type crm struct {
	*issuertest.SCIMServer
	issuer *membership.Issuer
	ledger *membership.Ledger
}

// RoundTrip implements http.RoundTripper without a listener.
func (c *crm) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := httptest.NewRecorder()
	http.StripPrefix("/scim/v2", c.SCIMServer).ServeHTTP(answer, r)
	return answer.Result(), nil
}

// newCRM returns a system that knows the agent as triage, and people by their subject.
func newCRM(t testing.TB, s *store.Store, may func(context.Context, broker.Caller, broker.Action) bool) *crm {
	c := &crm{SCIMServer: issuertest.NewSCIMServer(t, []string{"triage", "ivy", "ana"}, []string{"Sales"})}
	c.ledger = membership.New(membership.Config{Store: s, List: store.MembershipsIn(s).List, May: may})
	c.issuer = scim.New(scim.Config{
		Name: "crm", URL: "https://crm.acme.test/scim/v2", HTTP: &http.Client{Transport: c}, Token: func() (string, error) { return c.Token, nil }, Match: "userName", Read: scim.ReadGroup,
		Ledger: c.ledger, Names: membership.Names{Accounts: map[string]string{agent: "triage"}, People: map[string]membership.Source{"login": membership.FromSubject}},
	})
	return c
}

// driveMemberships has the agent join a group of which it was removed and added again.
func (w *world) driveMemberships(t *testing.T) {
	ctx, me := t.Context(), w.as(agent)
	joined, _, err := me.AskAndCollect(ctx, api.Ask{Entitlement: "crm-sales"})
	if err != nil {
		t.Fatal(err)
	}
	if joined.Type != api.TypeMembership || joined.Secret != nil || joined.Membership == nil || *joined.Membership != (api.Joined{System: "crm", Group: "Sales"}) {
		t.Errorf("joined: got %+v", joined)
	}
	if got := w.crm.Members("Sales"); !slices.Equal(got, []string{"u-triage"}) {
		t.Errorf("members: got %q", got)
	}
	if l := must[*api.Lease](t)(me.Revoke(ctx, joined.Lease, "done")); l.Status != api.LeaseRevoked || l.Revocation != "immediate" {
		t.Errorf("returned: got %+v", l)
	}
	if got := w.crm.Members("Sales"); len(got) != 0 {
		t.Errorf("members after the return: got %q", got)
	}
	w.crm.Join("Sales", "triage")
	if err := w.crm.issuer.Compare(ctx); err != nil {
		t.Fatal(err)
	}
	page := must[*api.MembershipPage](t)(w.as(auditor).Memberships(ctx, api.MembershipFilter{Differs: true}))
	if len(page.Memberships) != 1 || page.Memberships[0].Difference != api.AddedAgain || page.Memberships[0].Holder != agent {
		t.Fatalf("differences: got %+v", page)
	}
	id := page.Memberships[0].ID
	if _, err := me.AcceptMembership(ctx, id, "mine"); !errors.Is(err, api.SessionRequired) {
		t.Errorf("accepted by a workload: got %v", err)
	}
	if _, err := w.as(operator).AcceptMembership(ctx, id, ""); !errors.Is(err, api.InvalidRequest) {
		t.Errorf("accepted without a reason: got %v", err)
	}
	if m := must[*api.Membership](t)(w.as(operator).AcceptMembership(ctx, id, "it is in sales now")); m.Difference != "" || !m.Existing {
		t.Errorf("accepted: got %+v", m)
	}
	if page := must[*api.MembershipPage](t)(w.as(operator).Memberships(ctx, api.MembershipFilter{Differs: true})); len(page.Memberships) != 0 {
		t.Errorf("differences after the acceptance: got %+v", page)
	}
}

// A caller without permissions sees its own memberships alone.
func TestMembershipsAreTheCallersOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	if _, _, err := w.as(agent).AskAndCollect(t.Context(), api.Ask{Entitlement: "crm-sales"}); err != nil {
		t.Fatal(err)
	}
	for who, want := range map[string]int{agent: 1, other: 0, auditor: 1, operator: 1} {
		page := must[*api.MembershipPage](t)(w.as(who).Memberships(t.Context(), api.MembershipFilter{}))
		if len(page.Memberships) != want {
			t.Errorf("%s sees %d memberships, want %d", who, len(page.Memberships), want)
		}
	}
	if page := must[*api.MembershipPage](t)(w.as(other).Memberships(t.Context(), api.MembershipFilter{Holder: agent})); len(page.Memberships) != 0 {
		t.Errorf("another holder's: got %+v", page)
	}
}

// A person requests a membership, begins and ends it without leaving the pages.
func TestPersonJoinsOnThePages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	ivy := newBrowser(t, w)
	ivy.logIn(asker, "/ui/")
	status, where, page := ivy.visit(http.MethodPost, "/ui/entitlements/crm-sales", "why=a+customer+calls")
	if status != http.StatusSeeOther || !strings.Contains(where, "done=asked") {
		t.Fatalf("the request: got %d %q\n%s", status, where, page)
	}
	path, _, _ := strings.Cut(strings.TrimPrefix(where, "https://broker.acme.test"), "?")
	if _, _, page = ivy.visit(http.MethodGet, path, ""); !strings.Contains(page, `value="join"`) {
		t.Fatalf("the page does not offer the membership\n%s", page)
	}
	status, where, page = ivy.visit(http.MethodPost, path, "do=join")
	if status != http.StatusSeeOther || !slices.Equal(w.crm.Members("Sales"), []string{"u-ivy"}) {
		t.Fatalf("joining: got %d %q with members %q\n%s", status, where, w.crm.Members("Sales"), page)
	}
	_, _, page = ivy.visit(http.MethodGet, path+"?done=join", "")
	if !strings.Contains(page, "You are a member now.") || strings.Contains(page, `value="join"`) {
		t.Errorf("after joining:\n%s", page)
	}
	if _, _, page = ivy.visit(http.MethodGet, "/ui/memberships", ""); !strings.Contains(page, "Sales") || !strings.Contains(page, "ivy") {
		t.Errorf("the page of memberships:\n%s", page)
	}
	_, _, page = ivy.visit(http.MethodGet, "/ui/access", "")
	lease := between(page, `action="/ui/leases/`, `"`)
	if status, where, _ := ivy.visit(http.MethodPost, "/ui/leases/"+lease, ""); status != http.StatusSeeOther || len(w.crm.Members("Sales")) != 0 {
		t.Errorf("the return: got %d %q with members %q", status, where, w.crm.Members("Sales"))
	}
	// Other credentials are not handed out on pages.
	_, where, _ = ivy.visit(http.MethodPost, "/ui/entitlements/tickets", "why=x&scope.tickets%3Aread=on")
	path, _, _ = strings.Cut(strings.TrimPrefix(where, "https://broker.acme.test"), "?")
	if status, _, page := ivy.visit(http.MethodPost, path, "do=join"); status != http.StatusBadRequest || strings.Contains(page, "s3cret") {
		t.Errorf("a token on a page: got %d\n%s", status, page)
	}
}

func between(text, before, after string) string {
	_, rest, _ := strings.Cut(text, before)
	found, _, _ := strings.Cut(rest, after)
	return found
}
