package scim_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/internal/outbound"
	"accessbroker.internal/issuers/issuertest"
	"accessbroker.internal/issuers/scim"
	"accessbroker.internal/store"
)

const holder = "spiffe://acme.test/agent/triage"

type fixture struct {
	*issuertest.SCIMServer
	url    string
	store  *store.Store
	ledger *membership.Ledger
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{SCIMServer: issuertest.NewSCIMServer(t, []string{"triage", "Trïage \"2\"", "bo"}, []string{"Sales", "sales"}), store: issuertest.Store(t)}
	system := httptest.NewServer(f.SCIMServer)
	t.Cleanup(system.Close)
	f.url = system.URL
	f.ledger = membership.New(membership.Config{Store: f.store, List: store.MembershipsIn(f.store).List, Pauses: []time.Duration{0}})
	return f
}

// issuer returns an issuer for a member's name. change may be nil.
func (f *fixture) issuer(name string, change func(*scim.Config)) *membership.Issuer {
	cfg := scim.Config{
		Name: "crm", URL: f.url, HTTP: outbound.Client(nil, true), Token: func() (string, error) { return f.Token, nil }, Match: "userName", Read: scim.ReadGroup,
		Ledger: f.ledger, Names: membership.Names{Accounts: map[string]string{holder: name}},
	}
	if change != nil {
		change(&cfg)
	}
	return scim.New(cfg)
}

func entitlement(spec scim.Spec) *broker.Entitlement {
	return &broker.Entitlement{Name: "sales", System: "crm", Spec: &spec}
}

// open stores a lease that is being issued, with the handle of Prepare.
func (f *fixture) open(t *testing.T, issuer *membership.Issuer, e *broker.Entitlement) broker.Lease {
	t.Helper()
	l := issuertest.Lease(time.Now())
	l.Holder, l.Issuer, l.Status, l.Deadline = holder, "crm", broker.LeaseIssuing, time.Now().Add(broker.IssueDeadline)
	prepared, err := issuer.Prepare(t.Context(), broker.Order{Lease: l, Entitlement: e})
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	l.Handle = prepared.Handle
	r := audit.Record{Kind: audit.LeaseOpened, Lease: &audit.LeaseFacts{ID: l.ID.String()}}
	if _, err := broker.Write(t.Context(), f.store, nil, r, func(tx broker.Tx) error { tx.Put(&l); return nil }); err != nil {
		t.Fatal(err)
	}
	return l
}

// Every way to find a user, a group and a role, against the contract of an issuer.
func TestIssuerConforms(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		member string
		spec   scim.Spec
		change func(*scim.Config)
	}{
		"user name":        {"TRIAGE", scim.Spec{Group: "Sales"}, nil},
		"name with quotes": {"Trïage \"2\"", scim.Spec{Group: "Sales"}, nil},
		"external id":      {"x-triage", scim.Spec{Group: "Sales"}, func(c *scim.Config) { c.Match = "externalId" }},
		"address":          {"triage@acme.test", scim.Spec{Group: "Sales"}, func(c *scim.Config) { c.Match = "emails" }},
		"id":               {"u-triage", scim.Spec{GroupID: "g-Sales"}, func(c *scim.Config) { c.Match = "id" }},
		"read by user":     {"triage", scim.Spec{Group: "Sales"}, func(c *scim.Config) { c.Read = scim.ReadUser }},
		"read by filter":   {"triage", scim.Spec{Group: "Sales"}, func(c *scim.Config) { c.Read = scim.ReadFilter }},
		"role":             {"triage", scim.Spec{Role: "auditor"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			issuer, e := f.issuer(test.member, test.change), entitlement(test.spec)
			issuertest.Conform(t, issuer, f.open(t, issuer, e), e)
			if patches := f.Patches(); len(patches) != 2 {
				t.Errorf("got %q, want one PATCH to add and one to remove", patches)
			}
			if got := append(f.Members("Sales"), f.Roles("triage")...); len(got) != 0 {
				t.Errorf("left behind: %q", got)
			}
		})
	}
}

// A server that does not know the path of RFC 7644 gets the members to remove as a value.
func TestRemovalByValue(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Join("Sales", "bo")
	e := entitlement(scim.Spec{Group: "Sales"})
	issuer := f.issuer("triage", func(c *scim.Config) { c.RemoveByValue = true })
	var removed string
	f.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch || len(f.Patches()) == 0 {
			return false
		}
		body := make([]byte, 4096)
		n, _ := r.Body.Read(body)
		removed = string(body[:n])
		f.Leave("Sales", "triage")
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	l := f.open(t, issuer, e)
	if _, _, err := issuer.Issue(t.Context(), broker.Order{Lease: l, Entitlement: e}); err != nil {
		t.Fatal(err)
	}
	if err := issuer.Revoke(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if want := `{"op":"remove","path":"members","value":[{"value":"u-triage"}]}`; !strings.Contains(removed, want) {
		t.Errorf("got %s, want %s", removed, want)
	}
	if got := f.Members("Sales"); !slices.Equal(got, []string{"u-bo"}) {
		t.Errorf("members: got %q", got)
	}
}

// What a server may answer to a search. No answer leads to another user or group than the
// requested one.
func TestPrepareTrustsNoAnswer(t *testing.T) {
	t.Parallel()
	answer := func(status int, media, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", media)
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
			return true
		}
	}
	const json = "application/scim+json"
	for name, test := range map[string]struct {
		intercept func(http.ResponseWriter, *http.Request) bool
		want      error
	}{
		"filter ignored":  {answer(200, json, `{"totalResults":1,"Resources":[{"id":"u-boss","userName":"boss"}]}`), broker.ErrIssuerRefused},
		"two users":       {answer(200, json, `{"totalResults":2,"Resources":[{"id":"1","userName":"triage"},{"id":"2","userName":"triage"}]}`), broker.ErrIssuerRefused},
		"one of many":     {answer(200, json, `{"totalResults":7,"Resources":[{"id":"1","userName":"triage"}]}`), broker.ErrIssuerRefused},
		"deactivated":     {answer(200, json, `{"totalResults":1,"Resources":[{"id":"1","userName":"triage","active":false}]}`), broker.ErrIssuerRefused},
		"no id":           {answer(200, json, `{"totalResults":1,"Resources":[{"userName":"triage"}]}`), broker.ErrIssuerUnavailable},
		"long id":         {answer(200, json, `{"totalResults":1,"Resources":[{"id":"`+strings.Repeat("x", 300)+`","userName":"triage"}]}`), broker.ErrIssuerUnavailable},
		"dot segment":     {answer(200, json, `{"totalResults":1,"Resources":[{"id":"..","userName":"triage"}]}`), broker.ErrIssuerUnavailable},
		"none":            {answer(200, json, `{"totalResults":0}`), broker.ErrIssuerRefused},
		"not JSON":        {answer(200, json, `<html>`), broker.ErrIssuerUnavailable},
		"page of a proxy": {answer(200, "text/html", `{}`), broker.ErrIssuerUnavailable},
		"no total":        {answer(200, json, `{}`), broker.ErrIssuerUnavailable},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
			return true
		}, broker.ErrIssuerRefused},
		"wrong token":       {answer(401, json, `{"detail":"s3cret"}`), broker.ErrIssuerRefused},
		"too many requests": {answer(429, json, ``), broker.ErrIssuerUnavailable},
		"down":              {answer(503, json, ``), broker.ErrIssuerUnavailable},
		"10 MB": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", json)
			_, _ = fmt.Fprintf(w, `{"totalResults":1,"Resources":[{"id":"1","userName":"triage","x":"%s"}]}`, strings.Repeat("x", 10<<20))
			return true
		}, broker.ErrIssuerUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.Intercept = test.intercept
			l := issuertest.Lease(time.Now())
			l.Holder = holder
			p, err := f.issuer("triage", nil).Prepare(t.Context(), broker.Order{Lease: l, Entitlement: entitlement(scim.Spec{Group: "Sales"})})
			if !errors.Is(err, test.want) || err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("got %s, %v, want %v", p.Handle, err, test.want)
			}
		})
	}
}

// The end of a lease while the server fails, the group or the user is gone, and while a
// page of a proxy answers as if they were.
func TestRevokeConfirmsOnlyWhatItReads(t *testing.T) {
	t.Parallel()
	gone := func(map[string]any) bool { return false }
	for name, test := range map[string]struct {
		change    func(*issuertest.SCIMServer)
		intercept func(http.ResponseWriter, *http.Request) bool
		want      error
	}{
		"group deleted": {change: func(s *issuertest.SCIMServer) { s.Change("g-Sales", gone) }},
		"user deleted":  {change: func(s *issuertest.SCIMServer) { s.Change("u-triage", gone) }},
		"user renamed": {change: func(s *issuertest.SCIMServer) {
			s.Change("u-triage", func(u map[string]any) bool { u["userName"] = "sorting"; return true })
		}},
		"group renamed": {change: func(s *issuertest.SCIMServer) {
			s.Change("g-Sales", func(g map[string]any) bool { g["displayName"] = "Success"; return true })
		}},
		"page of a proxy": {intercept: func(w http.ResponseWriter, _ *http.Request) bool { http.NotFound(w, nil); return true }, want: broker.ErrIssuerRefused},
		"JSON of a proxy": {intercept: func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"message":"no route"}`))
			return true
		}, want: broker.ErrIssuerRefused},
		"read-only": {intercept: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPatch {
				issuertest.SCIMError(w, http.StatusForbidden, "mutability")
			}
			return r.Method == http.MethodPatch
		}, want: broker.ErrIssuerRefused},
		"down": {intercept: func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true }, want: broker.ErrIssuerUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			issuer, e := f.issuer("triage", nil), entitlement(scim.Spec{Group: "Sales"})
			l := f.open(t, issuer, e)
			if _, _, err := issuer.Issue(t.Context(), broker.Order{Lease: l, Entitlement: e}); err != nil {
				t.Fatal(err)
			}
			if test.change != nil {
				test.change(f.SCIMServer)
			}
			f.Intercept = test.intercept
			if err := issuer.Revoke(t.Context(), l); !errors.Is(err, test.want) {
				t.Errorf("Revoke: got %v, want %v", err, test.want)
			}
			f.Intercept = nil
			if err := issuer.Revoke(t.Context(), l); err != nil {
				t.Errorf("a later Revoke: %v", err)
			}
			if name != "group deleted" && len(f.Members("Sales")) != 0 {
				t.Errorf("members: got %q", f.Members("Sales"))
			}
		})
	}
}

// A server that hangs delays a call to its deadline, and no longer.
func TestHangingServerMeetsTheDeadline(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Intercept = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	l := issuertest.Lease(time.Now())
	l.Holder = holder
	_, err := f.issuer("triage", nil).Prepare(ctx, broker.Order{Lease: l, Entitlement: entitlement(scim.Spec{Group: "Sales"})})
	if !errors.Is(err, broker.ErrIssuerUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestSpecs(t *testing.T) {
	t.Parallel()
	for want, specs := range map[bool][]scim.Spec{
		true:  {{Group: "Sales"}, {GroupID: "1"}, {Role: "auditor"}},
		false: {{}, {Group: "a", Role: "b"}, {Group: "a", GroupID: "b"}, {GroupID: ".."}, {Group: strings.Repeat("x", 300)}},
	} {
		for _, s := range specs {
			if err := s.Check(); (err == nil) != want {
				t.Errorf("%+v: got %v, want valid %t", s, err, want)
			}
		}
	}
}
