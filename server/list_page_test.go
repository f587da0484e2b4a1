package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

func TestCutPage(t *testing.T) {
	t.Parallel()
	list := make([]int, 2*listRows+1)
	for i := range list {
		list[i] = i
	}
	for position, want := range map[string]struct {
		first, length  int
		previous, next string
	}{
		"": {0, listRows, "", "50"}, "50": {50, listRows, "0", "100"}, "100": {100, 1, "50", ""}, "20": {20, listRows, "0", "70"},
		"101": {0, listRows, "", "50"}, "-1": {0, listRows, "", "50"}, "x": {0, listRows, "", "50"},
	} {
		page, at := cutPage(list, position)
		if page[0] != want.first || len(page) != want.length || at.Previous != want.previous || at.Next != want.next || at.From != want.first+1 || at.To != want.first+want.length || at.Total != len(list) {
			t.Errorf("%q: got %d from %d, %+v; want %+v", position, len(page), page[0], at, want)
		}
	}
	if page, at := cutPage([]int(nil), "7"); len(page) != 0 || at.Previous != "" || at.Next != "" {
		t.Errorf("an empty list: got %v, %+v", page, at)
	}
}

// Every block in force can be reached through the pages of the kill switch.
func TestBlocksHavePages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	var want []string
	for i := range 2*listRows + 5 {
		name := fmt.Sprintf("spiffe://acme.test/agent/blocked-%03d", i)
		want = append(want, name)
		block := &broker.Block{Selector: broker.BlockKey{Kind: "holder", Name: name}, Reason: "test", By: "login/cleo", Since: time.Now().Add(time.Duration(i) * time.Second)}
		if err := w.store.Update(t.Context(), nil, func(tx broker.Tx) error { tx.Put(block); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(want) // the newest is first
	var got []string
	for _, path := range []string{"/ui/kill", "/ui/kill?blocks=50", "/ui/kill?blocks=100"} {
		_, _, page := b.visit(http.MethodGet, path, "")
		for _, part := range strings.Split(page, `<span class="who">spiffe://`)[1:] {
			name, _, _ := strings.Cut(part, "<")
			got = append(got, "spiffe://"+name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d blocks %q, want %d", len(got), got, len(want))
	}
}

// A catalogue of any length has pages and a search.
func TestEntitlementsHavePages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	rules := testRules()
	for i := range 120 {
		e := *rules.Catalogue["tickets"]
		e.Name, e.Audience = fmt.Sprintf("service-%03d", i), fmt.Sprintf("https://service-%d.acme.test", i)
		rules.Catalogue[e.Name] = &e
	}
	rules.Revision[0]++
	if err := w.cfg.Broker.SetRules(t.Context(), broker.Caller{At: time.Now()}, rules); err != nil {
		t.Fatal(err)
	}
	b := newBrowser(t, w)
	b.logIn(asker, "/ui/")
	names := map[string]bool{}
	pages := 0
	for path := "/ui/entitlements"; path != ""; pages++ {
		_, _, page := b.visit(http.MethodGet, path, "")
		if n := strings.Count(page, `<li class="card">`); n > listRows || len(page) > 100<<10 {
			t.Errorf("%s: got %d entitlements in %d bytes", path, n, len(page))
		}
		for _, part := range strings.Split(page, `<h2><a href="/ui/entitlements/`)[1:] {
			name, _, _ := strings.Cut(part, `"`)
			names[name] = true
		}
		_, next := inboxIDs(page)
		if path = next; next != "" {
			path = "/ui/entitlements" + next
		}
	}
	if want := len(rules.Catalogue); pages != 3 || len(names) != want {
		t.Errorf("got %d entitlements on %d pages, want %d on 3", len(names), pages, want)
	}
	if _, _, page := b.visit(http.MethodGet, "/ui/entitlements?q=SERVICE-07", ""); strings.Count(page, `<li class="card">`) != 10 {
		t.Errorf("a search: got\n%s", page)
	}
	if status, _, _ := b.visit(http.MethodGet, "/ui/entitlements?q="+strings.Repeat("x", 201), ""); status != http.StatusBadRequest {
		t.Errorf("a long search: got %d, want 400", status)
	}
}

// A page of the inbox stays below 100 KB even if every text of its requests is as long as
// possible and hides characters.
func TestInboxPageIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	var scopes []string
	for i := range broker.MaxScopes {
		scopes = append(scopes, fmt.Sprintf("%0128d", i))
	}
	w.fill(t, 2*inboxRows, func(i int) *broker.Request {
		r := oneRequest(time.Now(), i)
		r.Requester.ID = fmt.Sprintf("spiffe://acme.test/%s/%d", strings.Repeat("a/", 900), i)
		r.Status, r.Lapses, r.Scopes, r.Justification = broker.RequestPending, time.Now().Add(time.Hour), scopes, strings.Repeat("\u200b", 660)
		return r
	})
	for _, path := range []string{"/ui/", "/ui/?q=acme&order=newest&entitlement=guarded&team=support&risk=medium"} {
		status, _, page := b.visit(http.MethodGet, path, "")
		if rows, _ := inboxIDs(page); status != http.StatusOK || len(rows) != inboxRows || len(page) > 100<<10 {
			t.Errorf("%s: got %d with %d rows and %d bytes", path, status, len(rows), len(page))
		}
	}
}
