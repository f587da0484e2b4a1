package server

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// guarded files a request that members of dba must approve.
func (w *world) guarded(t *testing.T, why string) *api.Request {
	t.Helper()
	return must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, Justification: why}))
}

func formOf(pairs ...string) string {
	form := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	return form.Encode()
}

// Votes require a broker session. Other proofs are refused and change nothing.
func TestOnlySessionsVote(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	r := w.guarded(t, "x")
	vote := api.Vote{Decision: api.Approve, Digest: r.Digest}
	for _, caller := range []string{agent, other, auditor, operator} {
		if _, err := w.as(caller).Vote(t.Context(), r.ID, vote); !errors.Is(err, api.SessionRequired) {
			t.Errorf("%s: got %v", caller, err)
		}
	}
	token := must[*api.Credential](t)(w.as(agent).Collect(t.Context(), must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}})).ID)).Secret["token"]
	for name, bearer := range map[string]string{"an access token": token, "an ID token": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJiZW4ifQ.c2ln", "an invalid session token": "abs_" + strings.Repeat("A", 43)} {
		if _, err := w.as(bearer).Vote(t.Context(), r.ID, vote); !errors.Is(err, api.Unauthenticated) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if now := must[*api.Request](t)(w.as(agent).Request(t.Context(), r.ID)); now.Version != r.Version {
		t.Errorf("the request changed: %+v", now)
	}
}

func TestVoteOnPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	if _, _, page := b.visit(http.MethodGet, "/ui/", ""); !strings.Contains(page, "Your inbox is empty") {
		t.Errorf("an empty inbox: %s", page)
	}
	r := w.guarded(t, `<script>alert(1)</script>`)
	path := "/ui/requests/" + r.ID
	if _, _, page := b.visit(http.MethodGet, "/ui/", ""); !strings.Contains(page, path) || strings.Contains(page, "<script>alert") || !strings.Contains(page, "&lt;script&gt;alert") {
		t.Errorf("the inbox: %s", page)
	}
	good := formOf("do", "approve", "digest", r.Digest, "scope.read", "on", "comment", "as agreed", "ttl", "5m")
	for name, test := range map[string]struct {
		form   string
		header []string
		status int
		shows  string
	}{
		"cross-origin by Origin":          {good, []string{"Origin", "https://evil.test"}, http.StatusForbidden, "cross_origin"},
		"cross-origin by Sec-Fetch-Site":  {good, []string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden, "cross_origin"},
		"another digest":                  {strings.Replace(good, r.Digest, strings.Repeat("0", 64), 1), nil, http.StatusConflict, "read it again"},
		"no digest":                       {formOf("do", "approve", "scope.read", "on"), nil, http.StatusBadRequest, "digest"},
		"no action":                       {formOf("digest", r.Digest), nil, http.StatusBadRequest, "names no action"},
		"no scope":                        {formOf("do", "approve", "digest", r.Digest), nil, http.StatusBadRequest, "at least one scope"},
		"longer TTL":                      {strings.Replace(good, "ttl=5m", "ttl=5h", 1), nil, http.StatusBadRequest, "shorten ttl"},
		"malformed TTL":                   {strings.Replace(good, "ttl=5m", "ttl=soon", 1), nil, http.StatusBadRequest, "such as 10m"},
		"withdrawal of another's request": {formOf("do", "withdraw"), nil, http.StatusNotFound, "there is no such request, or you may not view it"},
	} {
		status, _, page := b.visit(http.MethodPost, path, test.form, test.header...)
		if status != test.status || !strings.Contains(page, test.shows) {
			t.Errorf("%s: %d, want %d and %q\n%s", name, status, test.status, test.shows, page)
		}
	}
	if _, _, page := b.visit(http.MethodPost, path, formOf("do", "approve", "digest", r.Digest, "ttl", "3m")); !strings.Contains(page, "<details open>") || !strings.Contains(page, `name="scope.read" value="on">`) || !strings.Contains(page, `value="3m"`) {
		t.Errorf("a refused form loses its contents\n%s", page)
	}
	if status, where, _ := b.visit(http.MethodPost, path, good); status != http.StatusSeeOther || where != path+"?done=approve" {
		t.Fatalf("approving: %d to %q", status, where)
	}
	if status, _, page := b.visit(http.MethodPost, path, good); status != http.StatusConflict || !strings.Contains(page, "you have decided already") {
		t.Errorf("the form a second time: got %d", status)
	}
	now := must[*api.Request](t)(w.as(agent).Request(t.Context(), r.ID))
	if len(now.Approvals.Given) != 1 || now.Approvals.Given[0].TTL.Std() != 5*time.Minute || now.Approvals.Given[0].Comment != "as agreed" || now.Approvals.Given[0].Scopes != nil {
		t.Errorf("got %+v", now.Approvals)
	}
	for page, shows := range map[string]string{path: "login/ben", path + "/log": "approval given", "/ui/access": "You hold no credentials", "/ui/leases": "Leases", "/ui/audit": "guarded", "/ui/entitlements": "Policy does not let you request anything"} {
		if status, _, text := b.visit(http.MethodGet, page, ""); status != http.StatusOK || !strings.Contains(text, shows) {
			t.Errorf("%s: got %d, want %q\n%s", page, status, shows, text)
		}
	}
	zoe := newBrowser(t, w)
	zoe.logIn("login/zoe", "/ui/")
	for _, page := range []string{path, path + "/log", "/ui/requests/req_nothing", "/ui/audit/0", "/ui/audit/-1", "/ui/entitlements/guarded"} {
		if status, _, _ := zoe.visit(http.MethodGet, page, ""); status != http.StatusNotFound {
			t.Errorf("an unrelated person at %s: got %d", page, status)
		}
	}
	if status, _, _ := zoe.visit(http.MethodPost, "/ui/kill", formOf("kind", "holder", "name", agent, "reason", "x")); status != http.StatusForbidden {
		t.Errorf("an unrelated person at the kill switch: got %d", status)
	}
}

// A request's page offers the decision to approvers and tells others that they cannot
// decide. Pressing Enter in a field must not approve: the form's first button, which it
// presses, is disabled (WHATWG HTML, section 4.10.22.2).
func TestRequestPageOffersDecision(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	r := w.guarded(t, "x")
	for person, shows := range map[string]string{"login/ana": "You cannot decide this request", "login/ben": `<button name="do" value="approve"`} {
		b := newBrowser(t, w)
		b.logIn(person, "/ui/")
		_, _, page := b.visit(http.MethodGet, "/ui/requests/"+r.ID, "")
		if !strings.Contains(page, shows) {
			t.Errorf("%s: the page lacks %q\n%s", person, shows, page)
		}
		_, form, found := strings.Cut(page, `<form class="decide"`)
		if canDecide := person == "login/ben"; found != canDecide {
			t.Errorf("%s: has the form: %t, want %t", person, found, canDecide)
		}
		if first := strings.Index(form, "<button"); found && !strings.HasPrefix(form[first:], "<button disabled hidden>") {
			t.Errorf("Enter in a field presses %.60s", form[first:])
		}
	}
}

// The root redirects to the pages, and unknown pages are answered with a page. On
// listeners without pages the API answers both.
func TestUnknownPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	if status, where, _ := b.visit(http.MethodGet, "/", ""); status != http.StatusSeeOther || where != "/ui/" {
		t.Errorf("the root: %d to %q", status, where)
	}
	if status, where, _ := b.visit(http.MethodGet, "/ui/nope", ""); status != http.StatusSeeOther || !strings.HasPrefix(where, "/ui/login?") {
		t.Errorf("an unknown page without a session: %d to %q", status, where)
	}
	b.logIn("login/ben", "/ui/")
	for _, path := range []string{"/ui/nope", "/ui/requests/req_0/nope"} {
		if status, _, page := b.visit(http.MethodGet, path, ""); status != http.StatusNotFound || !strings.Contains(page, "no such page") || !strings.Contains(page, "<html") {
			t.Errorf("%s: got %d, want 404\n%s", path, status, page)
		}
	}
	if status, _, page := b.visit(http.MethodGet, "/nope", ""); status != http.StatusNotFound || !strings.Contains(page, `"code":"not_found"`) {
		t.Errorf("/nope: %d\n%s", status, page)
	}
	for _, path := range []string{"/", "/ui/", "/ui/nope"} {
		if resp := w.do(http.MethodGet, path, "", ""); resp.StatusCode != http.StatusNotFound || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s without pages: %d, %s", path, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
	}
}

// A redirect to the login and a pending request are not logged as warnings.
func TestWaitingIsNoWarning(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	if status, _, _ := newBrowser(t, w).visit(http.MethodGet, "/ui/", ""); status != http.StatusSeeOther {
		t.Fatalf("the inbox without a session: got %d", status)
	}
	if _, err := w.as(agent).Collect(t.Context(), w.guarded(t, "x").ID); !errors.Is(err, api.Pending) {
		t.Fatal(err)
	}
	log := w.log.String()
	for _, line := range []string{"level=INFO msg=request", "code=pending"} {
		if !strings.Contains(log, line) {
			t.Errorf("the log lacks %s:\n%s", line, log)
		}
	}
	if strings.Contains(log, "level=WARN") {
		t.Errorf("the log has a warning:\n%s", log)
	}
}

// The event stream announces changes, and does not count as use of the session.
func TestEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+"/ui/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.client.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%v, %v", resp, err)
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || lines.Text() != "retry: 5000" {
		t.Fatalf("the stream begins with %q", lines.Text())
	}
	w.guarded(t, "x")
	for lines.Scan() && lines.Text() != "event: changed" {
	}
	if lines.Text() != "event: changed" {
		t.Fatalf("got no event: %v", lines.Err())
	}
	anyone := newBrowser(t, w)
	if status, _, _ := anyone.visit(http.MethodGet, "/ui/events", ""); status != http.StatusNoContent {
		t.Errorf("without a session: %d", status)
	}
	for _, c := range []struct {
		path, header string
		background   bool
	}{{"/ui/events", "", true}, {"/ui/", "1", true}, {"/ui/", "", false}} {
		call := &call{route: route{audience: UI, path: c.path}, r: &http.Request{Method: http.MethodGet, Header: http.Header{"Broker-Background": {c.header}}}}
		if call.background() != c.background {
			t.Errorf("%+v: got %t", c, !c.background)
		}
	}
}

// Peek does not extend a session's idle time.
func TestPeekDoesNotExtendSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	now := time.Now()
	token, _, err := w.cfg.Sessions.Open(t.Context(), broker.NewSession{Who: (&testPeople{}).person("login/ben", now)}, now)
	if err != nil {
		t.Fatal(err)
	}
	near, over := now.Add(session.DefaultIdle-time.Minute), now.Add(session.DefaultIdle+time.Minute)
	if _, err := w.cfg.Sessions.Peek(t.Context(), token, near); err != nil {
		t.Fatal(err)
	}
	if _, err := w.cfg.Sessions.Get(t.Context(), token, over); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("after a Peek within the idle time: %v", err)
	}
}
