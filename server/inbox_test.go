package server

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// pendingRows stores n requests of one agent each that wait for members of dba. Even ones
// are of team support, every fifth one is for another entitlement.
func (w *world) pendingRows(t testing.TB, n int) (ids []string) {
	t.Helper()
	start := time.Now().Add(-time.Duration(n) * time.Second)
	var rows []*broker.Request
	for i := range n {
		r := oneRequest(start.Add(time.Duration(i)*time.Second), i)
		r.Status, r.Lapses = broker.RequestPending, time.Now().Add(time.Hour)
		if i%2 == 1 {
			r.Requester.Team = "billing"
		}
		if i%5 == 0 {
			r.Entitlement = "guarded-repository"
		}
		rows = append(rows, r)
		ids = append(ids, r.ID.String())
	}
	w.fill(t, n, func(i int) *broker.Request { return rows[i] })
	return ids
}

// askMany files n requests of one agent each.
func (w *world) askMany(t *testing.T, n int) (ids []string) {
	t.Helper()
	for i := range n {
		r := must[*api.Request](t)(w.as(fmt.Sprintf("%s/%d", agent, i)).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, Justification: "x"}))
		ids = append(ids, r.ID)
	}
	return ids
}

var rowLink = regexp.MustCompile(`<td class="what"><a href="/ui/requests/(req_[0-9a-v]{26})(/alike)?`)

// inboxIDs returns the requests that a page of the inbox lists, and the path of the next
// page.
func inboxIDs(page string) (ids []string, next string) {
	for _, m := range rowLink.FindAllStringSubmatch(page, -1) {
		ids = append(ids, m[1])
	}
	if before, _, found := strings.Cut(page, `" rel="next"`); found {
		next = html.UnescapeString(before[strings.LastIndexByte(before, '"')+1:])
	}
	return ids, next
}

// Every request that waits can be reached through the pages of the inbox, in each order,
// and each page is of bounded length.
func TestInboxPagesReachEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	want := w.pendingRows(t, 60)
	for _, order := range []string{"", "oldest", "newest", "deadline"} {
		var got []string
		pages := 0
		for path := "/ui/?order=" + order; path != ""; pages++ {
			status, _, page := b.visit(http.MethodGet, path, "")
			if status != http.StatusOK || !strings.Contains(page, "<title>(60) Inbox") || !strings.Contains(page, `data-count> 60<`) || len(page) > 100<<10 {
				t.Fatalf("%s: got %d, %d bytes\n%s", path, status, len(page), page)
			}
			ids, next := inboxIDs(page)
			if len(ids) > inboxRows {
				t.Errorf("%s: got %d rows, want at most %d", path, len(ids), inboxRows)
			}
			got = append(got, ids...)
			if path = next; next != "" {
				path = "/ui/" + next
			}
		}
		if pages != 3 {
			t.Errorf("order %q: got %d pages, want 3", order, pages)
		}
		expected := slices.Clone(want)
		if order == "newest" {
			slices.Reverse(expected)
		}
		if !slices.Equal(got, expected) {
			t.Errorf("order %q: got %d requests %q, want %q", order, len(got), got, expected)
		}
	}
}

// The page before the second one is the first one, and a page whose place is decided
// meanwhile continues behind it.
func TestInboxPageTurnsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	ids := w.askMany(t, 60)
	_, _, first := b.visit(http.MethodGet, "/ui/", "")
	_, next := inboxIDs(first)
	_, _, second := b.visit(http.MethodGet, "/ui/"+next, "")
	before, _, _ := strings.Cut(second, `" rel="prev"`)
	back := html.UnescapeString(before[strings.LastIndexByte(before, '"')+1:])
	_, _, again := b.visit(http.MethodGet, "/ui/"+back, "")
	if got, _ := inboxIDs(again); !slices.Equal(got, ids[:inboxRows]) {
		t.Errorf("the page before: got %q, want the first page", got)
	}
	digest := digestOf(t, b, ids[inboxRows-1]) // of the last request of the first page
	if status, _, page := b.visit(http.MethodPost, "/ui/requests/"+ids[inboxRows-1], formOf("do", "deny", "digest", digest, "comment", "no")); status != http.StatusSeeOther {
		t.Fatalf("denying: %d\n%s", status, page)
	}
	_, _, second = b.visit(http.MethodGet, "/ui/"+next, "")
	if got, _ := inboxIDs(second); !slices.Equal(got, ids[inboxRows:2*inboxRows]) {
		t.Errorf("the second page after a decision: got %q, want %q", got, ids[inboxRows:2*inboxRows])
	}
	if status, _, page := b.visit(http.MethodGet, "/ui/?after=x.y", ""); status != http.StatusBadRequest || !strings.Contains(page, "start at its first page") {
		t.Errorf("a malformed place: got %d", status)
	}
}

// digestOf returns the digest on the page of a request.
func digestOf(t *testing.T, b *browser, id string) string {
	t.Helper()
	_, _, page := b.visit(http.MethodGet, "/ui/requests/"+id, "")
	_, rest, found := strings.Cut(page, `name="digest" value="`)
	if !found {
		t.Fatalf("the page of %s has no form\n%s", id, page)
	}
	digest, _, _ := strings.Cut(rest, `"`)
	return digest
}

// The filters of the inbox and of the API select the same requests.
func TestInboxFilters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	ids := w.pendingRows(t, 20)
	glass := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, BreakGlass: true, Justification: "the Till is on fire"}))
	pick := func(f func(i int) bool) (picked []string) {
		for i, id := range ids {
			if f(i) {
				picked = append(picked, id)
			}
		}
		return picked
	}
	client := w.as(w.session(t, "login/cleo").Reveal())
	for query, test := range map[string]struct {
		filter api.RequestFilter
		want   []string
	}{
		"entitlement=guarded-repository":              {api.RequestFilter{Entitlement: "guarded-repository"}, pick(func(i int) bool { return i%5 == 0 })},
		"team=billing":                                {api.RequestFilter{Team: "billing"}, pick(func(i int) bool { return i%2 == 1 })},
		"team=billing&entitlement=guarded-repository": {api.RequestFilter{Team: "billing", Entitlement: "guarded-repository"}, pick(func(i int) bool { return i%10 == 5 })},
		"requester=" + url.QueryEscape(agent+"/7"):    {api.RequestFilter{Requester: agent + "/7"}, ids[7:8]},
		"q=TILL": {api.RequestFilter{Text: "TILL"}, []string{glass.ID}},
		"q=" + url.QueryEscape("fire till tickets"): {api.RequestFilter{Text: "fire till tickets"}, []string{glass.ID}},
		"risk=high":    {api.RequestFilter{Risk: "high"}, []string{glass.ID}},
		"risk=low":     {api.RequestFilter{Risk: "low"}, nil},
		"team=nowhere": {api.RequestFilter{Team: "nowhere"}, nil},
		"entitlement=guarded&risk=medium&requester=acme.test%2Fagent%2Ftriage%2F8": {api.RequestFilter{Entitlement: "guarded", Risk: "medium", Requester: agent + "/8"}, ids[8:9]},
	} {
		status, _, page := b.visit(http.MethodGet, "/ui/?"+query, "")
		got, _ := inboxIDs(page)
		if status != http.StatusOK || !slices.Equal(got, test.want) {
			t.Errorf("%s: got %d, %q, want %q", query, status, got, test.want)
		}
		if f := test.filter; f.Requester == "" {
			test.filter.Requester = "*"
		}
		listed := must[*api.RequestPage](t)(client.Requests(t.Context(), test.filter))
		var fromAPI []string
		for _, r := range listed.Requests {
			fromAPI = append(fromAPI, r.ID)
		}
		slices.Reverse(fromAPI) // the newest is first
		if !slices.Equal(fromAPI, test.want) {
			t.Errorf("%s: the API lists %q, want %q", query, fromAPI, test.want)
		}
		test.filter.Inbox, test.filter.Requester = true, strings.TrimSuffix(test.filter.Requester, "*")
		waiting := must[*api.RequestPage](t)(client.Requests(t.Context(), test.filter))
		var inInbox []string
		for _, r := range waiting.Requests {
			inInbox = append(inInbox, r.ID)
		}
		if !slices.Equal(inInbox, test.want) {
			t.Errorf("%s: the inbox of the API has %q, want %q", query, inInbox, test.want)
		}
	}
	for name, want := range map[string][]string{"TRIAGE": append(slices.Clone(ids), glass.ID), "triag": append(slices.Clone(ids), glass.ID), "triage/7": nil, "nowhere": nil} {
		_, _, page := b.visit(http.MethodGet, "/ui/?order=oldest&requester="+url.QueryEscape(name), "")
		if got, _ := inboxIDs(page); !slices.Equal(got, want) {
			t.Errorf("the requester %q: got %q, want %q", name, got, want)
		}
	}
	if status, _, page := b.visit(http.MethodGet, "/ui/?risk=huge", ""); status != http.StatusBadRequest || !strings.Contains(page, "risk must be low, medium or high") {
		t.Errorf("an unknown risk: got %d\n%s", status, page)
	}
}

// Filter and page of the inbox survive a decision: the links to requests carry them, and
// so does the way back.
func TestInboxFilterSurvivesDecision(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	w.askMany(t, 4)
	_, _, page := b.visit(http.MethodGet, "/ui/?team=support&order=newest", "")
	ids, _ := inboxIDs(page)
	link := "/ui/requests/" + ids[0] + "?inbox=order%3dnewest%26team%3dsupport"
	if !strings.Contains(page, `href="`+link) {
		t.Fatalf("the inbox lacks the link %s\n%s", link, page)
	}
	status, where, _ := b.visit(http.MethodPost, link, formOf("do", "deny", "digest", digestOf(t, b, ids[0]), "comment", "no"))
	if status != http.StatusSeeOther || !strings.HasSuffix(where, "inbox=order%3Dnewest%26team%3Dsupport") {
		t.Errorf("after a decision: %d to %q", status, where)
	}
	for state, want := range map[string]string{
		"team=billing&order=newest": "/ui/?order=newest&team=billing", "": "/ui/", "https://evil.test": "/ui/", "team=billing&next=//evil.test": "/ui/?team=billing", "after=zz": "/ui/",
	} {
		c := &call{s: w.Server, r: &http.Request{URL: &url.URL{RawQuery: url.Values{"inbox": {state}}.Encode()}}}
		if got := c.backToInbox(); got != want {
			t.Errorf("back to %q: got %q, want %q", state, got, want)
		}
	}
}

// alikeForm returns the fields of the form on a page of identical requests.
func alikeForm(page, do, comment string) url.Values {
	form := url.Values{"do": {do}, "comment": {comment}}
	for _, m := range regexp.MustCompile(`name="(digest\.req_[0-9a-v]{26})" value="([0-9a-f]{64})"`).FindAllStringSubmatch(page, -1) {
		form.Set(m[1], m[2])
	}
	return form
}

// Requests of one caller that differ only in their texts share a row, and are decided
// together: each by a vote of its own on the digest that was shown.
func TestIdenticalRequestsAreDecidedTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	var ids []string
	for i := range 4 {
		ids = append(ids, w.guarded(t, fmt.Sprintf("ticket %d\nis a duplicate", i)).ID)
	}
	lone := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, Justification: "longer", Duration: api.Duration(30 * time.Minute)}))
	_, _, page := b.visit(http.MethodGet, "/ui/?risk=medium", "")
	if rows, _ := inboxIDs(page); !slices.Equal(rows, []string{ids[0], lone.ID}) || !strings.Contains(page, "4 identical") || !strings.Contains(page, "<title>(5) Inbox") {
		t.Fatalf("got rows %q\n%s", rows, page)
	}
	path := "/ui/requests/" + ids[0] + "/alike?inbox=risk%3dmedium"
	_, _, page = b.visit(http.MethodGet, path, "")
	form := alikeForm(page, "approve", "as agreed")
	for i, id := range ids {
		if r := must[*api.Request](t)(w.as(agent).Request(t.Context(), id)); form.Get("digest."+id) != r.Digest || !strings.Contains(page, fmt.Sprintf("ticket %d", i)) {
			t.Errorf("the page does not show request %d with its digest %s", i, r.Digest)
		}
	}
	if _, there := form["digest."+lone.ID]; there {
		t.Error("a request for another duration is in the group")
	}
	form.Set("digest."+ids[1], strings.Repeat("0", 64))
	if _, err := w.as(agent).Withdraw(t.Context(), ids[2]); err != nil {
		t.Fatal(err)
	}
	status, _, page := b.visit(http.MethodPost, path, form.Encode())
	if status != http.StatusConflict || !strings.Contains(page, "read it again") || !strings.Contains(page, "no longer pending") || strings.Count(page, `<li class="done">`) != 2 || strings.Count(page, `<li class="failed"`) != 2 {
		t.Errorf("a partial failure: got %d\n%s", status, page)
	}
	if !strings.Contains(page, "<h1>1 request waits</h1>") || strings.Contains(page, "1 times") {
		t.Errorf("one request is left\n%s", page)
	}
	for i, want := range []int{1, 0, 0, 1} {
		if r := must[*api.Request](t)(w.as(agent).Request(t.Context(), ids[i])); len(r.Approvals.Given) != want || want == 1 && r.Approvals.Given[0].Comment != "as agreed" {
			t.Errorf("request %d: got %+v, want %d approvals", i, r.Approvals.Given, want)
		}
	}
	status, where, _ := b.visit(http.MethodPost, path, alikeForm(page, "deny", "use the replica").Encode())
	if status != http.StatusSeeOther || where != "/ui/?done=deny.1&risk=medium" {
		t.Errorf("denying the rest: %d to %q", status, where)
	}
	if _, _, page := b.visit(http.MethodGet, where, ""); !strings.Contains(page, "1 request denied.") {
		t.Errorf("the inbox does not confirm the decision\n%s", page)
	}
	if status, where, _ := b.visit(http.MethodGet, path, ""); status != http.StatusSeeOther || !strings.HasPrefix(where, "/ui/requests/"+ids[0]) {
		t.Errorf("a group that is decided: got %d to %q", status, where)
	}
}

// What policy requires of one decision, it requires of each decision of a group.
func TestGroupedDecisionsMeetPolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	first := w.guarded(t, signIt)
	path := "/ui/requests/" + first.ID + "/alike"
	_, _, page := b.visit(http.MethodGet, path, "")
	cancelled := alikeForm(page, "approve", "x")
	cancelled.Set("unsigned."+first.ID, "on")
	for name, test := range map[string]struct {
		form   url.Values
		status int
		shows  string
	}{
		"without the required signature": {alikeForm(page, "approve", "x"), http.StatusConflict, "sign with your passkey"},
		"a cancelled signature":          {cancelled, http.StatusConflict, "signing was cancelled"},
		"denying without a reason":       {alikeForm(page, "deny", ""), http.StatusConflict, "state in comment why you deny it"},
		"no action":                      {alikeForm(page, "", "x"), http.StatusBadRequest, "names no action"},
		"nothing selected":               {url.Values{"do": {"approve"}}, http.StatusBadRequest, "select at least one request"},
		"a malformed digest":             {url.Values{"do": {"approve"}, "digest." + first.ID: {"x"}}, http.StatusConflict, "64 lower-case hexadecimal digits"},
		"a malformed ID":                 {url.Values{"do": {"approve"}, "digest.req_x": {"x"}}, http.StatusNotFound, ""},
	} {
		if status, _, page := b.visit(http.MethodPost, path, test.form.Encode()); status != test.status || !strings.Contains(page, test.shows) {
			t.Errorf("%s: got %d, want %d and %q\n%s", name, status, test.status, test.shows, page)
		}
	}
	if r := must[*api.Request](t)(w.as(agent).Request(t.Context(), first.ID)); len(r.Approvals.Given) != 0 {
		t.Errorf("a refused decision was recorded: %+v", r.Approvals)
	}
	stranger := newBrowser(t, w)
	stranger.logIn("login/zoe", "/ui/")
	if status, _, _ := stranger.visit(http.MethodGet, path, ""); status != http.StatusNotFound {
		t.Errorf("an unrelated person: got %d, want 404", status)
	}
}

// A page of the inbox learns how many requests are new, how many wait in all, and which
// of its rows wait no longer.
func TestInboxAnnouncesChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	ids := w.askMany(t, 3)
	_, _, page := b.visit(http.MethodGet, "/ui/?team=support", "")
	_, rest, _ := strings.Cut(page, `data-seen="`)
	seen, _, _ := strings.Cut(rest, `"`)
	changes := func(filter string) (out inboxChanges) {
		t.Helper()
		status, _, body := b.visit(http.MethodGet, "/ui/inbox/changes?"+filter+"&seen="+seen+"&shown="+strings.Join(ids, ","), "")
		if err := json.Unmarshal([]byte(body), &out); status != http.StatusOK || err != nil {
			t.Fatalf("got %d, %s", status, body)
		}
		return out
	}
	if got := changes(""); got.New != 0 || got.Total != 3 || len(got.Gone) != 0 {
		t.Errorf("without a change: got %+v", got)
	}
	w.guarded(t, "one more")
	w.guarded(t, "and one more")
	if status, _, page := b.visit(http.MethodPost, "/ui/requests/"+ids[1], formOf("do", "deny", "digest", digestOf(t, b, ids[1]), "comment", "no")); status != http.StatusSeeOther {
		t.Fatalf("denying: %d\n%s", status, page)
	}
	if got := changes(""); got.New != 2 || got.Total != 4 || !slices.Equal(got.Gone, ids[1:2]) {
		t.Errorf("after changes: got %+v, want 2 new of 4, and %s gone", got, ids[1])
	}
	if got := changes("team=billing"); got.New != 0 || got.Total != 4 {
		t.Errorf("with a filter: got %+v, want nothing new", got)
	}
	for _, query := range []string{"", "seen=x", "seen=1&shown=req_x", "seen=1&risk=huge"} {
		if status, _, body := b.visit(http.MethodGet, "/ui/inbox/changes?"+query, ""); status < 400 || !strings.Contains(body, `"code"`) {
			t.Errorf("%q: got %d, %s, want an error", query, status, body)
		}
	}
}

// What a link says about the inbox is text: it leads nowhere else and runs nothing.
func TestInboxParametersAreText(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	id := w.askMany(t, 1)[0]
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	for _, bad := range []string{
		`"><script>alert(1)</script>`, `https://evil.test/`, `//evil.test`, `javascript:alert(1)`, `..%2f..%2fevil`, "a\r\nLocation: https://evil.test", `\evil.test`, strings.Repeat("x", 2100), "\u202e",
	} {
		for _, name := range []string{"q", "entitlement", "requester", "team", "risk", "order", "after", "before", "done", "inbox"} {
			state := url.Values{name: {bad}}.Encode()
			for _, path := range []string{"/ui/?" + state, "/ui/requests/" + id + "?inbox=" + url.QueryEscape(state), "/ui/requests/" + id + "?" + state} {
				status, where, page := b.visit(http.MethodGet, path, "")
				if status != http.StatusOK && status != http.StatusBadRequest {
					t.Errorf("%s: got %d %s", path, status, where)
				}
				if strings.Contains(page, "<script>alert") || strings.Contains(page, `href="//evil`) || strings.Contains(page, `href="https://evil`) || strings.Contains(page, `href="javascript:`) || strings.Contains(page, `href="\evil`) {
					t.Errorf("%s: the page has the parameter as markup or as a link", path)
				}
			}
			form := url.Values{"do": {"approve"}, "comment": {"x"}, "digest." + id: {strings.Repeat("0", 64)}}.Encode()
			_, to, _ := b.visit(http.MethodPost, "/ui/requests/"+id+"/alike?inbox="+url.QueryEscape(state), form)
			if to != "" && !strings.HasPrefix(to, "/ui/") {
				t.Errorf("%s=%q: a decision redirects to %q", name, bad, to)
			}
		}
	}
	r, err := w.as(agent+"/0").Request(t.Context(), id)
	if err != nil || r.Status != api.StatusPending {
		t.Errorf("got %+v, %v, want the request to be pending: no digest was right", r, err)
	}
}

// The page of identical requests neither shows nor decides what its viewer may not.
func TestAlikePageOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	ids := w.askMany(t, 2)
	first := must[*api.Request](t)(w.as(agent+"/0").Request(t.Context(), ids[0]))
	b := newBrowser(t, w)
	b.logIn("login/eve", "/ui/") // in no group
	form := url.Values{"do": {"approve"}, "comment": {"x"}, "digest." + ids[0]: {first.Digest}}.Encode()
	for _, visit := range [][2]string{{http.MethodGet, ""}, {http.MethodPost, form}} {
		for _, id := range append(ids, "req_00000000000000000000000000") {
			status, _, page := b.visit(visit[0], "/ui/requests/"+id+"/alike", visit[1])
			if status == http.StatusOK || status == http.StatusSeeOther && visit[0] == http.MethodPost || strings.Contains(page, agent) || strings.Contains(page, first.Digest) {
				t.Errorf("%s of %s: got %d and a page with the request: %t", visit[0], id, status, strings.Contains(page, agent))
			}
		}
	}
	if r := must[*api.Request](t)(w.as(agent+"/0").Request(t.Context(), ids[0])); r.Status != api.StatusPending || len(r.Approvals.Given) != 0 {
		t.Errorf("got status %s and votes %v, want a pending request without votes", r.Status, r.Approvals.Given)
	}
	// The number of decisions in a form has a bound.
	b.logIn("login/ben", "/ui/")
	many := url.Values{"do": {"deny"}, "comment": {"x"}}
	for range broker.MaxGroup + 1 {
		many.Set("digest."+broker.NewRequestID(time.Now()).String(), first.Digest)
	}
	if status, _, page := b.visit(http.MethodPost, "/ui/requests/"+ids[0]+"/alike", many.Encode()); status != http.StatusBadRequest || !strings.Contains(page, "at most 20 requests") {
		t.Errorf("%d requests: got %d, want 400", broker.MaxGroup+1, status)
	}
}
