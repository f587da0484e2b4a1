package server

import (
	"encoding/csv"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// driveInventory reads the inventory as an auditor, and an agent's entry as the agent.
func (w *world) driveInventory(t *testing.T) {
	ctx := t.Context()
	page := must[*api.IdentityPage](t)(w.as(operator).Identities(ctx, api.IdentityFilter{Kind: "agent", Text: "TRIAGE"}))
	if len(page.Identities) != 1 || page.Identities[0].ID != agent || page.Identities[0].Requestable != 3 || page.Identities[0].Used == 0 || page.Identities[0].Credentials30 == 0 {
		t.Errorf("got %+v", page.Identities)
	}
	whole := must[*api.KnownIdentity](t)(w.as(auditor).Identity(ctx, agent))
	if len(whole.Permits) != 1 || whole.Permits[0].Policy != "p" || len(whole.Uses) < 3 || whole.Uses[2].Scope != "tickets:read" || whole.Uses[2].Credentials == 0 || !whole.Uses[2].Requestable {
		t.Errorf("got %+v", whole)
	}
	own := must[*api.KnownIdentity](t)(w.as(agent).Identity(ctx, agent))
	if len(own.Permits) != 1 || own.Permits[0].Policy != "" || own.Permits[0].File != "" {
		t.Errorf("the agent sees the policies %+v", own.Permits)
	}
	unused := must[*api.UnusedReport](t)(w.as(operator).Unused(ctx, time.Time{}))
	if len(unused.Permits) != 0 || !slices.ContainsFunc(unused.Scopes, func(u api.UnusedThing) bool { return u.Policy == "p" && u.Scope == "tickets:close" }) {
		t.Errorf("unused: %+v", unused)
	}
	resp := w.do(http.MethodGet, "/v1/identities.csv?kind=agent", "", "", "Authorization", "Bearer "+auditor)
	rows, err := csv.NewReader(resp.Body).ReadAll()
	if err != nil || resp.StatusCode != http.StatusOK || len(rows) != 3 || rows[0][0] != "id" {
		t.Errorf("the CSV: %d, %q, %v", resp.StatusCode, rows, err)
	}
}

// Only the inventory's readers see all of it. An identity sees its own entry, and people
// that of those for whom they are accountable.
func TestInventoryIsForItsReaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.withoutScanLimit()
	w.issue(agent, "tickets", "tickets:read")
	ctx := t.Context()
	for who, want := range map[string][2]error{
		auditor: {nil, nil}, agent: {api.Denied, nil}, other: {api.Denied, api.NotFound}, partner: {api.Denied, api.NotFound}, operator: {nil, nil},
	} {
		_, err := w.as(who).Identities(ctx, api.IdentityFilter{})
		_, one := w.as(who).Identity(ctx, agent)
		_, unused := w.as(who).Unused(ctx, time.Time{})
		if !errors.Is(err, want[0]) || !errors.Is(unused, want[0]) || !errors.Is(one, want[1]) {
			t.Errorf("%s: the list %v, unused %v, the agent's entry %v; want %v", who, err, unused, one, want)
		}
	}
	for person, want := range map[string]error{"login/ana": nil, "login/ben": api.NotFound} {
		if _, err := w.asPerson(t, person).Identity(ctx, agent); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", person, err, want)
		}
	}
	for _, id := range []string{"", "spiffe://acme.test/never", "login/never", "no id", "spiffe://acme.test/../x"} {
		if _, err := w.as(auditor).Identity(ctx, id); !errors.Is(err, api.NotFound) {
			t.Errorf("%q: got %v", id, err)
		}
	}
	for _, bad := range []string{"kind=robot", "problem=ugly", "limit=100000", "q=" + strings.Repeat("x", 300), "since=x"} {
		for _, path := range []string{"/v1/identities?", "/v1/identities.csv?"} {
			if resp := w.do(http.MethodGet, path+bad, "", "", "Authorization", "Bearer "+auditor); resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%s%s: got %d", path, bad, resp.StatusCode)
			}
		}
	}
}

// Pages follow one another without a gap, in the API, on the page and in the file.
func TestInventoryPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.withoutScanLimit()
	for n := range 120 {
		w.seen(t, "spiffe://acme.test/w/"+strings.Repeat("x", n%7)+string(rune('a'+n%26))+string(rune('a'+n/26)), broker.KindWorkload)
	}
	var ids []string
	f := api.IdentityFilter{Limit: 50, Text: "/w/"}
	for pages := 0; ; pages++ {
		page := must[*api.IdentityPage](t)(w.as(auditor).Identities(t.Context(), f))
		for _, i := range page.Identities {
			ids = append(ids, i.ID)
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			if pages != 2 {
				t.Errorf("%d pages", pages+1)
			}
			break
		}
	}
	if len(ids) != 120 || !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != 120 {
		t.Errorf("got %d ids", len(ids))
	}
	b := newBrowser(t, w)
	b.logIn(auditingPerson, "/ui/")
	shown := 0
	for path, n := "/ui/identities?q=%2Fw%2F", 0; path != ""; n++ {
		status, _, page := b.visit(http.MethodGet, path, "")
		if status != http.StatusOK || n > 5 {
			t.Fatalf("%s: %d\n%s", path, status, page)
		}
		shown += strings.Count(page, `<th scope="row">`)
		_, rest, more := strings.Cut(page, `<a href="?`)
		for more && !strings.HasPrefix(rest[strings.IndexByte(rest, '"'):], `" rel="next"`) {
			_, rest, more = strings.Cut(rest, `<a href="?`)
		}
		if path = ""; more {
			path = "/ui/identities?" + strings.ReplaceAll(rest[:strings.IndexByte(rest, '"')], "&amp;", "&")
		}
	}
	if shown != 120 {
		t.Errorf("the pages show %d identities", shown)
	}
	status, _, file := b.visit(http.MethodGet, "/ui/identities.csv?q=%2Fw%2F", "")
	if status != http.StatusOK || strings.Count(file, "\n") != 121 {
		t.Errorf("the file: %d\n%s", status, file)
	}
}

// seen appends a record that an identity caused.
func (w *world) seen(t testing.TB, id string, kind broker.Kind) {
	t.Helper()
	entry, err := audit.Record{Kind: audit.SessionClosed, Caller: &audit.Party{ID: id, Kind: string(kind), Method: "jwt-svid"}}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.store.Update(t.Context(), nil, func(tx broker.Tx) error { tx.Append(entry); return nil }); err != nil {
		t.Fatal(err)
	}
}

// A cell that a spreadsheet would take for a formula becomes text.
func TestInventoryFileHasNoFormulas(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@SUM(A1)": "'@SUM(A1)", "\t=1": "'\t=1", "\r=1": "'\r=1", "|cmd": "'|cmd", "%0A": "'%0A",
		"spiffe://acme.test/a": "spiffe://acme.test/a", "": "", "a=1": "a=1", `"x",y`: `"x",y`,
	} {
		var out strings.Builder
		if err := api.WriteIdentities(&out, []api.KnownIdentity{{ID: text, Team: text, Sponsor: text}}, false); err != nil {
			t.Fatal(err)
		}
		r := csv.NewReader(strings.NewReader(out.String()))
		row, err := r.Read()
		if want = strings.ReplaceAll(want, "\r\n", "\n"); err != nil || row[0] != want || row[2] != want || row[5] != want {
			t.Errorf("%q: got %q, want %q (%v)", text, row, want, err)
		}
	}
}

func TestIdentityPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.issue(agent, "tickets", "tickets:read")
	b := newBrowser(t, w)
	b.logIn(auditingPerson, "/ui/")
	status, _, page := b.visit(http.MethodGet, "/ui/identities", "")
	if status != http.StatusOK {
		t.Fatalf("got %d", status)
	}
	for _, shows := range []string{`href="/ui/identity?id=spiffe%3a%2f%2facme.test%2fagent%2ftriage"`, "login/ana", "1 of 3 scopes", "team support", `href="/ui/identities.csv?"`} {
		if !strings.Contains(page, shows) {
			t.Errorf("the list lacks %q\n%s", shows, page)
		}
	}
	status, _, page = b.visit(http.MethodGet, "/ui/identity?id="+url.QueryEscape(agent), "")
	for _, shows := range []string{"<dd>3 scopes</dd>", "SPIFFE token (JWT-SVID)", "<strong>p</strong>", "p.cedar:1", "agents read", "tickets:close", `href="/ui/audit?who=`, "127.0.0.1"} {
		if status != http.StatusOK || !strings.Contains(page, shows) {
			t.Errorf("%d: the page lacks %q\n%s", status, shows, page)
		}
	}
	accountable := newBrowser(t, w)
	accountable.logIn("login/ana", "/ui/")
	status, _, page = accountable.visit(http.MethodGet, "/ui/identity?id="+url.QueryEscape(agent), "")
	if status != http.StatusOK || strings.Contains(page, "p.cedar") || strings.Contains(page, `href="/ui/identities"`+"\n") {
		t.Errorf("the accountable person: %d\n%s", status, page)
	}
	for _, path := range []string{"/ui/identities", "/ui/identities.csv"} {
		if status, _, _ := accountable.visit(http.MethodGet, path, ""); status != http.StatusForbidden {
			t.Errorf("%s for an accountable person: %d", path, status)
		}
	}
	if status, _, page := b.visit(http.MethodGet, "/ui/identities?kind=robot", ""); status != http.StatusBadRequest || !strings.Contains(page, "kind must be") || !strings.Contains(page, "<form") {
		t.Errorf("a wrong filter: %d\n%s", status, page)
	}
}

// The page stays small with the longest identities.
func TestInventoryPageIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	for n := range 60 {
		w.seen(t, "spiffe://acme.test/"+strings.Repeat("a", 1990)+string(rune('a'+n%26))+string(rune('a'+n/26)), broker.KindWorkload)
	}
	b := newBrowser(t, w)
	b.logIn(auditingPerson, "/ui/")
	status, _, page := b.visit(http.MethodGet, "/ui/identities?q=aaaa", "")
	if n := strings.Count(page, `<th scope="row">`); status != http.StatusOK || len(page) > 100_000 || n < 3 || n > 20 || !strings.Contains(page, `rel="next"`) {
		t.Errorf("%d: %d rows on a page of %d bytes", status, n, len(page))
	}
}
