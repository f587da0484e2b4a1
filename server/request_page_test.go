package server

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// inOrder reports the first of the texts that the page lacks after the ones before.
func inOrder(t *testing.T, page string, texts ...string) {
	t.Helper()
	rest := page
	for _, text := range texts {
		_, after, found := strings.Cut(rest, text)
		if !found {
			t.Fatalf("the page lacks %q after the texts before\n%s", text, page)
		}
		rest = after
	}
}

// A request's page is a decision: the facts come before the buttons, in the source and so
// on a phone. A requester's text of any kind stays in its box.
func TestRequestPageIsOrderedAsDecision(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.guarded(t, "an earlier one")
	r := w.guarded(t, strings.Repeat("\n", 21)+"Status: approved"+strings.Repeat("\nx", 100))
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	_, _, page := b.visit(http.MethodGet, "/ui/requests/"+r.ID, "")
	inOrder(t, page, "Who requests it", agent, "What it permits", "read &lt;all&gt; rows", "Why</h2>", "Written by the requester, not verified", "Status: approved",
		"Show all", "What the requester had before", "<strong>1</strong> requested", "earlier request req_", "no credential was collected",
		`value="approve"`, `value="deny"`, "Timeline</h2>", "waiting for approval")
	start, _, _ := strings.Cut(page, "Show all")
	if lines := strings.Count(start[strings.Index(start, "not verified"):], "\n"); lines > 12 {
		t.Errorf("the text takes %d lines before the reader opens it", lines)
	}
}

// A denial needs a reason on the page too, and the refused form keeps its contents.
func TestPageDenialNeedsReason(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	for why, test := range map[string]struct {
		comment, shows string
		status         int
	}{
		"strictly": {"", "state in comment why you deny it", http.StatusBadRequest}, "strictly, with blanks": {" \n ", "state in comment why you deny it", http.StatusBadRequest},
		"with a reason": {"use the replica", "", http.StatusSeeOther}, quietly: {"", "", http.StatusSeeOther},
	} {
		r := w.guarded(t, why)
		path := "/ui/requests/" + r.ID
		_, _, page := b.visit(http.MethodGet, path, "")
		if asks := strings.Contains(page, "to deny, state the reason") && strings.Contains(page, `class="danger" data-requires="comment"`); asks == (why == quietly) {
			t.Errorf("%s: the page asks for a reason: %t", why, asks)
		}
		status, _, answer := b.visit(http.MethodPost, path, formOf("do", "deny", "digest", r.Digest, "comment", test.comment, "ttl", "3m"))
		if status != test.status || !strings.Contains(answer, test.shows) || status == http.StatusBadRequest && !strings.Contains(answer, `value="3m"`) {
			t.Errorf("%s: got %d, want %d and %q\n%s", why, status, test.status, test.shows, answer)
		}
		now := must[*api.Request](t)(w.as(agent).Request(t.Context(), r.ID))
		if denied := now.Status == api.StatusDenied; denied != (test.status == http.StatusSeeOther) {
			t.Errorf("%s: the request is %s", why, now.Status)
		}
	}
}

// After a decision the page offers the next one and the way back, with the filter of the
// inbox.
func TestPageOffersNextDecision(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	first, second := w.guarded(t, "first"), w.guarded(t, "second")
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	filter := "?inbox=" + url.QueryEscape("entitlement=guarded&order=oldest")
	const inbox = `href="/ui/?entitlement=guarded&amp;order=oldest"`
	_, _, page := b.visit(http.MethodGet, "/ui/requests/"+first.ID+filter, "")
	if !strings.Contains(page, inbox) || strings.Contains(page, "Next: ") {
		t.Errorf("before the decision: no way back to the inbox, or a next request\n%s", page)
	}
	decide := func(r *api.Request) string {
		t.Helper()
		status, where, _ := b.visit(http.MethodPost, "/ui/requests/"+r.ID+filter, formOf("do", "approve", "digest", r.Digest, "scope.read", "on"))
		if status != http.StatusSeeOther || !strings.HasPrefix(where, "/ui/requests/"+r.ID+"?done=approve&inbox=") {
			t.Fatalf("approving: %d to %q", status, where)
		}
		_, _, page := b.visit(http.MethodGet, where, "")
		return page
	}
	page = decide(first)
	inOrder(t, page, "You approved this request.", `href="/ui/requests/`+second.ID+filter+`">Next: guarded for acme.test/agent/triage</a>`, inbox, "1 decision waits here")
	if page = decide(second); !strings.Contains(page, "Nothing else waits here.") || !strings.Contains(page, inbox) || strings.Contains(page, "Next: ") {
		t.Errorf("after the last decision\n%s", page)
	}
	ana := newBrowser(t, w)
	ana.logIn("login/ana", "/ui/")
	if _, _, page := ana.visit(http.MethodGet, "/ui/requests/"+first.ID+filter, ""); strings.Contains(page, "Back to the inbox") {
		t.Error("a person who decides nothing is led to the inbox")
	}
}

// A link to a request can't lead the way back to another place.
func TestWayBackIsTheInbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	r := w.guarded(t, "x")
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	for _, state := range []string{"https://evil.test/", "//evil.test", "/../x?y=z", "q=%zz", "javascript:alert(1)", "done=approve.7", "after=x"} {
		_, _, page := b.visit(http.MethodGet, "/ui/requests/"+r.ID+"?inbox="+url.QueryEscape(state), "")
		if !strings.Contains(page, `<p class="back"><a href="/ui/">Back to the inbox</a>`) || !strings.Contains(page, `action="/ui/requests/`+r.ID+`"`) {
			t.Errorf("%s: the page leads elsewhere\n%s", state, page)
		}
	}
}

// A message about a form is true of the request, because anyone can write a link with it.
func TestDoneMessagesAreTrue(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	r := w.guarded(t, "x")
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	said := func(done string) bool {
		_, _, page := b.visit(http.MethodGet, "/ui/requests/"+r.ID+"?done="+done, "")
		return strings.Contains(page, `role="status"><p>Y`)
	}
	all := []string{"approve", "deny", "withdraw", "justified", "unjustified", "asked", "x"}
	for _, done := range all {
		if said(done) {
			t.Errorf("before any form, the page confirms %s", done)
		}
	}
	b.visit(http.MethodPost, "/ui/requests/"+r.ID, formOf("do", "approve", "digest", r.Digest, "scope.read", "on"))
	for _, done := range all {
		if got := said(done); got != (done == "approve") {
			t.Errorf("after an approval, the page confirms %s: %t", done, got)
		}
	}
}

// The page tells the requester how to go on, and that the request is filed only while it
// waits.
func TestPageOfOwnRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn(asker, "/ui/")
	status, where, _ := b.visit(http.MethodPost, "/ui/entitlements/guarded", formOf("scope.read", "on", "why", "x"))
	if status != http.StatusSeeOther || !strings.HasSuffix(where, "?done=asked") {
		t.Fatalf("filing: %d to %q", status, where)
	}
	id := strings.TrimSuffix(strings.TrimPrefix(where, "/ui/requests/"), "?done=asked")
	_, _, page := b.visit(http.MethodGet, where, "")
	inOrder(t, page, "Your request is filed.", "Your request waits for approval.", "<code data-copy>broker collect "+id+" --wait 30m</code>", "Withdraw this request")
	for _, person := range []string{"login/ben", "login/cleo"} {
		client := w.asPerson(t, person)
		seen := must[*api.Request](t)(client.Request(t.Context(), id))
		must[*api.Request](t)(client.Vote(t.Context(), id, api.Vote{Decision: api.Approve, Digest: seen.Digest}))
	}
	_, _, page = b.visit(http.MethodGet, where, "")
	inOrder(t, page, "Your request is granted.", "<code data-copy>broker collect "+id+"</code>")
	if strings.Contains(page, "is filed") || strings.Contains(page, "Withdraw") {
		t.Errorf("the granted request\n%s", page)
	}
	ben := newBrowser(t, w)
	ben.logIn("login/ben", "/ui/")
	if _, _, page := ben.visit(http.MethodGet, "/ui/requests/"+id, ""); strings.Contains(page, "broker collect") {
		t.Error("another person is told how to collect")
	}
}

// The drawing shows every state of a request and of its credentials in words and in bars.
func TestTimelineDrawing(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	pending := broker.Request{Status: broker.RequestPending, Created: noon, Lapses: at(60)}
	granted := broker.Request{Status: broker.RequestApproved, Created: noon, Approved: at(4), CollectUntil: at(64)}
	later, direct, withdrawn, denied, policy := granted, granted, pending, pending, pending
	later.NotBefore, later.CollectUntil = at(30), at(90)
	direct.Approved = noon
	withdrawn.Status, withdrawn.Records = broker.RequestWithdrawn, []broker.RecordID{broker.NewRecordID(1, 0), broker.NewRecordID(1, 1)}
	denied.Status, denied.DeniedBy, denied.Approvals = broker.RequestDenied, broker.DeniedByPerson, []broker.Approval{{At: at(9)}}
	policy.Status, policy.DeniedBy = broker.RequestDenied, broker.DeniedByPolicy
	lease := broker.Lease{Status: broker.LeaseActive, Opened: at(10), Expires: at(20), Revocation: broker.RevokedImmediate}
	revoked, returned, failed, revoking := lease, lease, lease, lease
	revoked.Status, revoked.Ended = broker.LeaseRevoked, at(13)
	returned.Status, returned.Ended, returned.Revocation = broker.LeaseRevoked, at(13), broker.RevokedAtExpiry
	failed.Status, failed.Ended = broker.LeaseFailed, at(10)
	revoking.Status = broker.LeaseRevoking
	log := &writtenLog{records: []audit.Record{{Kind: audit.RequestCreated, Time: noon}, {Kind: audit.RequestWithdrawn, Time: at(7)}}}
	s := &Server{cfg: Config{Log: log}}
	for name, test := range map[string]struct {
		r      broker.Request
		leases []broker.Lease
		now    int
		want   string
	}{
		"pending":          {pending, nil, 5, "waiting for approval, lapses at 13:00:00; ends by 13:00:00"},
		"lapsed":           {pending, nil, 61, "waited 1h, lapsed; ended at 13:00:00"},
		"withdrawn":        {withdrawn, nil, 10, "waited 7m, withdrawn; ended at 12:07:00"},
		"denied":           {denied, nil, 10, "waited 9m, denied; ended at 12:09:00"},
		"denied by policy": {policy, nil, 10, "waited less than 1s, denied; ended at 12:00:00"},
		"granted":          {granted, nil, 5, "waited 4m, approved; granted, collectable until 13:04:00; ends by 13:04:00"},
		"granted directly": {direct, nil, 5, "needed no approval; granted, collectable until 13:04:00; ends by 13:04:00"},
		"not yet":          {later, nil, 5, "waited 4m, approved; collectable from 12:30:00 to 13:30:00; ends by 13:30:00"},
		"alive":            {granted, []broker.Lease{lease}, 15, "waited 4m, approved; granted, collectable until 13:04:00; credential is valid until 12:20:00; ends by 13:04:00"},
		"expired":          {granted, []broker.Lease{lease}, 70, "waited 4m, approved; granted, was collectable for 1h; credential was valid for 10m, expired; ended at 13:04:00"},
		"revoked":          {granted, []broker.Lease{revoked}, 15, "waited 4m, approved; granted, collectable until 13:04:00; credential was valid for 3m, revoked; ends by 13:04:00"},
		"returned":         {granted, []broker.Lease{returned}, 15, "waited 4m, approved; granted, collectable until 13:04:00; credential ended, but works until 12:20:00; ends by 13:04:00"},
		"failed":           {granted, []broker.Lease{failed}, 15, "waited 4m, approved; granted, collectable until 13:04:00; no credential was issued; ends by 13:04:00"},
		"being revoked":    {granted, []broker.Lease{revoking}, 15, "waited 4m, approved; granted, collectable until 13:04:00; credential is being revoked; ends by 13:04:00"},
		"many, newest first": {granted, []broker.Lease{lease, revoked, revoked, revoked, revoked, revoked, failed, failed}, 15,
			"waited 4m, approved; granted, collectable until 13:04:00; credential was valid for 3m, revoked (and 2 earlier)" + strings.Repeat("; credential was valid for 3m, revoked", 4) + "; credential is valid until 12:20:00; ends by 13:04:00"},
	} {
		var leases []*broker.Lease
		for _, l := range test.leases {
			leases = append(leases, &l)
		}
		a, err := s.axisOf(t.Context(), &test.r, leases, at(test.now))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := a.Alternative(); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
		for _, row := range a.Rows {
			for _, bar := range row.Bars {
				if bar.From.Before(a.Begin) || bar.To.After(a.End) && name != "denied by policy" || bar.To.Before(bar.From) {
					t.Errorf("%s: the bar %+v is not on the axis from %s to %s", name, bar, a.Begin, a.End)
				}
			}
		}
	}
}

// Links of lists with different targets have different names, even for requests that one
// caller filed within a second.
func TestLinksOfListsHaveNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	for minutes := range 4 { // with different TTLs, so that they do not share a row
		must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, Justification: "x", TTL: api.Duration(time.Duration(5+minutes) * time.Minute)}))
	}
	b := newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	link := regexp.MustCompile(`(?s)<td[^>]*><a href="(/ui/requests/[^"]*)">(.*?)</a>`)
	tag := regexp.MustCompile(`<[^>]*>`)
	for path, least := range map[string]int{"/ui/": 4} {
		_, _, page := b.visit(http.MethodGet, path, "")
		targets := map[string]string{}
		found := link.FindAllStringSubmatch(page, -1)
		for _, m := range found {
			name := tag.ReplaceAllString(m[2], "")
			if other, twice := targets[name]; twice && other != m[1] {
				t.Errorf("%s: %q leads to %s and to %s", path, name, other, m[1])
			}
			targets[name] = m[1]
		}
		if len(found) < least {
			t.Errorf("%s: got %d links, want at least %d\n%s", path, len(found), least, page)
		}
	}
}
