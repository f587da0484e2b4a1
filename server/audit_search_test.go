package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

var listedRecord = regexp.MustCompile(`<li><a class="index" href="/ui/audit/(\d+)">.*?<span class="kind">([^<]+)</span>\s*<p>([^<]*)`)

// listedOn returns the records that a page of the log lists, as "kind: sentence".
func listedOn(page string) (list []string) {
	for _, m := range listedRecord.FindAllStringSubmatch(page, -1) {
		list = append(list, m[2]+": "+strings.TrimSpace(m[3]))
	}
	return list
}

// Auditors see records of all kinds, and search them. Others see only the requests that
// they may view.
func TestAuditSearch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.withoutScanLimit()
	ctx, me := t.Context(), w.as(agent)
	w.guarded(t, "the till is on fire")
	first := must[*api.Credential](t)(me.Collect(ctx, must[*api.Request](t)(me.Ask(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}})).ID))
	must[*api.Lease](t)(me.Revoke(ctx, first.Lease, "done"))
	cleo := newBrowser(t, w)
	cleo.logIn("login/cleo", "/ui/")
	if err := w.as(operator).Block(ctx, api.BlockChange{Selector: api.Selector{Holder: other}, Reason: "a leaked key", Unmatched: true}); err != nil {
		t.Fatal(err)
	}
	ada := newBrowser(t, w)
	ada.logIn(auditingPerson, "/ui/")
	for query, want := range map[string][]string{
		"?kind=block":                       {"Block placed (kill switch): The operator blocked the holder " + other + "."},
		"?kind=block.placed&who=" + other:   {"Block placed (kill switch): The operator blocked the holder " + other + "."},
		"?kind=session&who=login/cleo":      {"Login: login/cleo logged in."},
		"?q=ON+FIRE":                        {"Request filed: " + agent + " requested guarded (read); approval by 2 of dba is required."},
		"?entitlement=guarded":              {"Request filed: " + agent + " requested guarded (read); approval by 2 of dba is required."},
		"?kind=lease.issued":                {"Credential issued: " + agent + " received a credential for tickets (tickets:read)."},
		"?kind=log":                         {"Log opened: The log " + w.store.mustLog(t) + " was opened."},
		"?kind=key":                         nil,
		"?from=2001-01-01&to=2002-01-01":    nil,
		"?who=" + agent + "&kind=session":   nil,
		"?kind=block&q=no+such+text":        nil,
		"?kind=block&from=2001-01-01T10:00": {"Block placed (kill switch): The operator blocked the holder " + other + "."},
	} {
		status, _, page := ada.visit(http.MethodGet, "/ui/audit"+query, "")
		if got := listedOn(page); status != http.StatusOK || !slices.Equal(got, want) || !strings.Contains(page, "The search is complete.") {
			t.Errorf("%s: got %d and %q, want %q\n%s", query, status, got, want, page)
		}
	}
	if _, _, page := ada.visit(http.MethodGet, "/ui/audit", ""); len(listedOn(page)) < 7 {
		t.Errorf("without a filter: got %q", listedOn(page))
	}
	for query, shows := range map[string]string{
		"?kind=nothing": "there is no kind", "?from=yesterday": "from must be a time", "?before=-1": "the cursor must be", "?request=x": "This is not a request ID", "?who=" + strings.Repeat("x", 2049): "at most 2048",
	} {
		if status, _, page := ada.visit(http.MethodGet, "/ui/audit"+query, ""); status != http.StatusOK || !strings.Contains(page, shows) || !strings.Contains(page, `name="who"`) {
			t.Errorf("%.40s: got %d, want %q and the form\n%s", query, status, shows, page)
		}
	}
	if _, _, page := cleo.visit(http.MethodGet, "/ui/audit?kind=block", ""); strings.Contains(page, "blocked") || strings.Contains(page, `name="who"`) || !strings.Contains(page, "guarded") {
		t.Errorf("a person who is no auditor sees\n%s", page)
	}
}

// mustLog returns the name of the log.
func (s *countingStore) mustLog(t *testing.T) string {
	t.Helper()
	l, err := s.Log(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l.Origin
}

// withoutScanLimit lets callers read as many lists as they like.
func (w *world) withoutScanLimit() { w.limits.scan = newAdmission(1e6, 100) }

// A page links to the next one, with the same filter, until the search is complete. The
// page is small, however long the log is.
func TestAuditSearchPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.withoutScanLimit()
	for range 130 {
		if _, _, err := w.as(agent).AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}}); err != nil {
			t.Fatal(err)
		}
	}
	ada := newBrowser(t, w)
	ada.logIn(auditingPerson, "/ui/")
	older := regexp.MustCompile(`<a href="(\?[^"]+)">Search older records</a>`)
	n := 0
	for pages, query := 1, "?entitlement=tickets&kind=lease"; ; pages++ {
		_, _, page := ada.visit(http.MethodGet, "/ui/audit"+strings.ReplaceAll(query, "&amp;", "&"), "")
		n += len(listedOn(page))
		if len(page) > 100_000 {
			t.Errorf("a page has %d bytes", len(page))
		}
		if pages > 1 != strings.Contains(page, "Newest records") {
			t.Errorf("page %d links to the first, or does not", pages)
		}
		m := older.FindStringSubmatch(page)
		if m == nil {
			if pages != 3 {
				t.Errorf("got %d pages", pages)
			}
			break
		}
		if !strings.Contains(page, "Searched back to record ") {
			t.Errorf("page %d does not state how far it searched", pages)
		}
		query = m[1]
	}
	if n != 130 {
		t.Errorf("the pages list %d records", n)
	}
}

// A record is shown as a sentence and a table. An erased text stays erased.
func TestRecordPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	r := w.guarded(t, "line\n<b>&Status: approved")
	ada := newBrowser(t, w)
	ada.logIn(auditingPerson, "/ui/")
	_, _, list := ada.visit(http.MethodGet, "/ui/audit?q="+r.ID, "")
	m := listedRecord.FindStringSubmatch(list)
	if m == nil {
		t.Fatalf("the request is not listed\n%s", list)
	}
	_, _, page := ada.visit(http.MethodGet, "/ui/audit/"+m[1], "")
	for _, shows := range []string{
		agent + " requested guarded (read); approval by 2 of dba is required.", `<dt>Scopes</dt><dd>read</dd>`, `<a href="/ui/requests/` + r.ID + `/log">` + r.ID + `</a>`,
		`<a href="/ui/audit?entitlement=guarded">guarded</a>`, `href="/ui/audit?who=spiffe%3A%2F%2Facme.test%2Fagent%2Ftriage"`, "Written by a person or workload, not verified", "Salt of the justification", "&lt;b&gt;",
	} {
		if !strings.Contains(page, strings.ReplaceAll(shows, `">`+r.ID, `">`+r.ID)) {
			t.Errorf("the page lacks %q\n%s", shows, page)
		}
	}
	if strings.Index(page, "<h2>Caller</h2>") > strings.Index(page, "<h2>As it is in the log</h2>") || strings.Contains(page, "<b>") {
		t.Errorf("the JSON comes first, or a text is not escaped\n%s", page)
	}
	// Its requester's accountable person may read it and is no auditor.
	ana := newBrowser(t, w)
	ana.logIn("login/ana", "/ui/")
	if status, _, page := ana.visit(http.MethodGet, "/ui/audit/"+m[1], ""); status != http.StatusOK || strings.Contains(page, "/ui/audit?") || strings.Contains(page, ">Search the log<") {
		t.Errorf("a party of the record: got %d\n%s", status, page)
	}
	f := fieldsOf(&audit.Record{Kind: audit.BlockPlaced, Block: &audit.BlockFacts{Selector: "issuer x", Reason: audit.Digest{7}}}, nil, true)
	if got := f[len(f)-1].Fields[1]; !got.Erased || got.Quote != "" || got.Hash == "" {
		t.Errorf("an erased text: %+v", got)
	}
}

// Every kind has a name, a group and a sentence, whatever the record lacks.
func TestEveryKindIsReadable(t *testing.T) {
	groups := 0
	for _, g := range kindChoices() {
		if g.Title == "" || len(g.Kinds) == 0 {
			t.Errorf("the group %+v", g)
		}
		groups += len(g.Kinds)
	}
	if groups != len(audit.Kinds()) || len(kindTitles) != groups || len(sentences) != groups {
		t.Errorf("%d of %d kinds can be chosen; %d have names and %d sentences", groups, len(audit.Kinds()), len(kindTitles), len(sentences))
	}
	full := filledRecord(t)
	for _, kind := range audit.Kinds() {
		for name, r := range map[string]audit.Record{"full": full, "empty": {}} {
			r.Kind = kind
			text := sentence(&r)
			if !strings.HasSuffix(text, ".") || strings.Contains(text, "  ") || strings.Contains(text, "%!") || len(text) < 12 {
				t.Errorf("%s, %s: %q", kind, name, text)
			}
		}
	}
	if got := sentence(&audit.Record{Kind: "later.kind"}); got != "later.kind." {
		t.Errorf("a kind of a later version: %q", got)
	}
}

// filledRecord returns a record with a value in every field.
func filledRecord(t *testing.T) (r audit.Record) {
	t.Helper()
	n := 0
	var fill func(v reflect.Value, name string)
	fill = func(v reflect.Value, name string) {
		n++
		switch x := v.Addr().Interface().(type) {
		case *time.Time:
			*x = time.Date(2020, 1, 1, 0, 0, n, 0, time.UTC)
			return
		case *time.Duration:
			*x = time.Duration(n) * time.Second
			return
		case *audit.Digest:
			*x = audit.Digest{byte(n), 1}
			return
		case *[]byte:
			*x = fmt.Appendf(nil, "bytes %d", n)
			return
		case *map[string]audit.Digest:
			*x = map[string]audit.Digest{"file": {byte(n), 2}}
			return
		case *map[string]audit.Opening, *audit.Kind, *netip.Addr: // not in the leaf
			return
		}
		switch v.Kind() {
		case reflect.String:
			v.SetString(fmt.Sprintf("%s-%d", name, n))
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Int, reflect.Int64:
			v.SetInt(int64(n))
		case reflect.Uint8:
			v.SetUint(uint64(n))
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), name)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fill(v.Index(0), name)
		case reflect.Array:
			for i := range v.Len() {
				fill(v.Index(i), name)
			}
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i), v.Type().Field(i).Name)
			}
		default:
			t.Fatalf("%s has the kind %s", name, v.Kind())
		}
	}
	fill(reflect.ValueOf(&r).Elem(), "record")
	r.Kind = audit.RequestCreated
	return r
}

// The table of a record shows every value that the record has.
func TestRecordTableIsComplete(t *testing.T) {
	r := filledRecord(t)
	shown := map[string]bool{}
	for _, g := range fieldsOf(&r, nil, true) {
		for _, f := range g.Fields {
			for text := range strings.SplitSeq(f.Text, ", ") {
				shown[strings.ReplaceAll(text, " ", "_")] = true
			}
			shown[f.Hash], shown[f.Time.String()] = true, true
		}
	}
	values := 0
	var check func(v reflect.Value, name string)
	check = func(v reflect.Value, name string) {
		want := ""
		switch x := v.Interface().(type) {
		case time.Time:
			want = x.String()
		case time.Duration:
			want = strings.ReplaceAll(spoken(x), " ", "_")
		case audit.Digest:
			want = x.String()
		case audit.Trace:
			want = x.String()
		case string:
			want = x
		case map[string]audit.Opening, audit.Kind, netip.Addr, bool, int, []byte:
			return
		default:
			switch v.Kind() {
			case reflect.Pointer:
				check(v.Elem(), name)
			case reflect.Slice:
				check(v.Index(0), name)
			case reflect.Map:
				check(v.MapIndex(v.MapKeys()[0]), name)
			case reflect.Struct:
				for i := range v.NumField() {
					check(v.Field(i), name+"."+v.Type().Field(i).Name)
				}
			}
			return
		}
		values++
		if !shown[want] {
			t.Errorf("%s: %q is not shown", name, want)
		}
	}
	check(reflect.ValueOf(r), "record")
	if values < 60 {
		t.Errorf("only %d values were checked", values)
	}
}

func TestLeasesShowTheTimeLeft(t *testing.T) {
	now := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	lease := broker.Lease{Opened: now.Add(-5 * time.Minute), Expires: now.Add(15 * time.Minute)}
	for _, test := range []struct {
		status     broker.LeaseStatus
		revocation broker.Revocation
		at         time.Duration
		left       int
		text       string
	}{
		{broker.LeaseActive, broker.RevokedImmediate, 0, 75, "15 min of 20 min left"},
		{broker.LeaseActive, broker.RevokedImmediate, -time.Hour, 100, "20 min of 20 min left"},
		{broker.LeaseActive, broker.RevokedImmediate, time.Hour, 0, ""},
		{broker.LeaseRevoking, broker.RevokedPending, 0, 75, "may work for 15 min more, of 20 min"},
		{broker.LeaseRevoked, broker.RevokedAtExpiry, 0, 75, "may work for 15 min more, of 20 min"},
		{broker.LeaseRevoked, broker.RevokedImmediate, 0, 0, ""},
		{broker.LeaseFailed, broker.RevokedImmediate, 0, 0, ""},
	} {
		l := lease
		l.Status, l.Revocation = test.status, test.revocation
		if got := viewLease(&l, now.Add(test.at)); got.Left != test.left || got.LeftText != test.text {
			t.Errorf("status %d, %s after %s: got %d, %q", test.status, test.revocation, test.at, got.Left, got.LeftText)
		}
	}
}

// The API returns the same search to auditors, a page at a time, and refuses others.
func TestAuditSearchInAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.withoutScanLimit()
	ctx := t.Context()
	for range 5 {
		if _, _, err := w.as(agent).AskAndCollect(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}}); err != nil {
			t.Fatal(err)
		}
	}
	f := api.AuditFilter{Kind: "lease", Who: agent, Entitlement: "tickets", Text: "LEASE.issued", From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour), Limit: 2}
	var got []int64
	for {
		page := must[*api.AuditPage](t)(w.as(auditor).SearchAudit(ctx, f))
		for _, r := range page.Records {
			got = append(got, r.Index)
			if one := must[*api.AuditRecord](t)(w.as(auditor).AuditRecord(ctx, r.Index)); string(one.Record) != string(r.Record) || r.Summary != agent+" received a credential for tickets (tickets:read)." {
				t.Errorf("got %s, %q", r.Record, r.Summary)
			}
		}
		if (page.Next == "") != page.SearchedTo.IsZero() {
			t.Errorf("next %q, searched to %s", page.Next, page.SearchedTo)
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			break
		}
	}
	if len(got) != 5 || !slices.IsSortedFunc(got, func(a, b int64) int { return int(b - a) }) {
		t.Errorf("found %v", got)
	}
	for _, who := range []string{agent, other, tickets} {
		if _, err := w.as(who).SearchAudit(ctx, api.AuditFilter{}); !errors.Is(err, api.Denied) {
			t.Errorf("%s: got %v", who, err)
		}
	}
	for name, f := range map[string]api.AuditFilter{"a kind": {Kind: "x"}, "a cursor": {Cursor: "0"}, "a limit": {Limit: 201}} {
		if _, err := w.as(auditor).SearchAudit(ctx, f); !errors.Is(err, api.InvalidRequest) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
