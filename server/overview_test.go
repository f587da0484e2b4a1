package server

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker/activity"
)

// The overview counts what happened. Policy decides who may see it. Names of
// people are for auditors.
func TestOverview(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	ctx, me := t.Context(), w.as(agent)
	for range 3 {
		if _, _, err := me.AskAndCollect(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := me.Ask(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:close"}}); err == nil {
		t.Fatal("the request was not denied")
	}
	granted, denied := w.guarded(t, "to be approved"), w.guarded(t, "to be denied")
	w.guarded(t, "to wait")
	for person, votes := range map[string]map[*api.Request]string{"login/ben": {granted: "approve"}, "login/cleo": {granted: "approve", denied: "deny"}} {
		b := newBrowser(t, w)
		b.logIn(person, "/ui/")
		for r, vote := range votes {
			if status, _, page := b.visit(http.MethodPost, "/ui/requests/"+r.ID, formOf("do", vote, "digest", r.Digest, "scope.read", "on", "comment", "no")); status != http.StatusSeeOther {
				t.Fatalf("%s votes %s: %d\n%s", person, vote, status, page)
			}
		}
	}
	for person, want := range map[string]struct {
		status int
		names  bool
	}{"login/ada": {http.StatusOK, true}, "login/una": {http.StatusOK, false}, "login/zoe": {http.StatusForbidden, false}, "login/ben": {http.StatusForbidden, false}} {
		b := newBrowser(t, w)
		b.logIn(person, "/ui/")
		status, _, page := b.visit(http.MethodGet, "/ui/overview", "")
		if status != want.status || strings.Contains(page, "login/cleo") != want.names {
			t.Errorf("%s: got %d\n%s", person, status, page)
		}
		if _, _, inbox := b.visit(http.MethodGet, "/ui/", ""); strings.Contains(inbox, `href="/ui/overview"`) != (want.status == http.StatusOK) {
			t.Errorf("%s: the navigation has the overview, or lacks it", person)
		}
		if status != http.StatusOK {
			continue
		}
		for _, shows := range []string{
			"<dt>Requested</dt><dd>7</dd>", "<dt>Granted</dt><dd>4</dd>", "<dt>Denied</dt><dd>2</dd>", "<dt>Lapsed</dt><dd>0</dd>", "<dt>Waiting now</dt><dd>1</dd>",
			"7 requests: 4 granted, 2 denied", "3 credentials;", "2 decisions; half took at most",
			`<th scope="row">Policy alone</th><td>3</td><td>1</td>`, `<th scope="row">People</th><td>1</td><td>1</td>`,
		} {
			if !strings.Contains(page, shows) {
				t.Errorf("%s: the page lacks %q\n%s", person, shows, page)
			}
		}
	}
}

// A hugeHistory has as much as a page can show, with hostile names.
type hugeHistory struct{ History }

const hostile = `</title><script>alert(1)</script>"'><b>`

func (hugeHistory) Activity(_ context.Context, from, now time.Time) (activity.Report, error) {
	r := activity.Report{Hours: activity.Hours{}, Lapsed: map[int64]int{}, Waiting: 10_000, Uncounted: 1234}
	for hour := activity.HourOf(from); hour <= activity.HourOf(now); hour++ {
		c := &activity.Counts{Requested: 9e6, Permitted: 5e6, Approved: 1e6, BreakGlass: 1e6, Denied: 1e6, Rejected: 1e6, Issued: 1e9, Votes: map[string]activity.Votes{}}
		for i := range 300 {
			c.Votes[fmt.Sprint(hostile, i)] = activity.Votes{Approved: i}
		}
		for _, bound := range activity.Bounds {
			c.Wait.Add(bound)
			c.Asked.Add(2 * bound)
			c.Due.Add(bound)
		}
		r.Hours[hour], r.Lapsed[hour] = c, 1e6
	}
	return r, nil
}

// However much there is to show, the page is small, escapes every text, and has no style
// attribute, which the content security policy forbids.
func TestOverviewOfMuch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { withPeople(c); c.History = hugeHistory{} })
	b := newBrowser(t, w)
	b.logIn(auditingPerson, "/ui/")
	for _, period := range []string{"24h", "7d", "30d"} {
		status, _, page := b.visit(http.MethodGet, "/ui/overview?period="+period, "")
		if status != http.StatusOK || len(page) > 100_000 {
			t.Errorf("%s: got %d and %d bytes", period, status, len(page))
		}
		if strings.Contains(page, "<script>alert") || strings.Contains(page, "<b>") || regexp.MustCompile(`<[^>]* style=`).MatchString(page) {
			t.Errorf("%s: a text is not escaped, or a style attribute", period)
		}
		for _, shows := range []string{"1,234 records of the log are not counted yet", "more people voted", "&lt;script&gt;", `role="img" aria-labelledby="requests-title"`, "<title>How long revocations took</title>"} {
			if !strings.Contains(page, shows) {
				t.Errorf("%s: the page lacks %q", period, shows)
			}
		}
		if n := strings.Count(page, "<svg viewBox=\"0 0 340 170\""); n != 4 {
			t.Errorf("%s: got %d charts", period, n)
		}
	}
	for path, want := range map[string]int{"/ui/overview?period=1y": http.StatusBadRequest, "/ui/overview?period=": http.StatusOK} {
		if status, _, _ := b.visit(http.MethodGet, path, ""); status != want {
			t.Errorf("%s: got %d, want %d", path, status, want)
		}
	}
}

// The steps of a period are those that end with the current one, and cover all of it.
func TestPeriodsEndNow(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 30, 0, 0, time.UTC)
	for name, want := range map[string]time.Time{
		"24h": time.Date(2026, 2, 28, 1, 0, 0, 0, time.UTC), "7d": time.Date(2026, 2, 22, 6, 0, 0, 0, time.UTC), "30d": time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC),
	} {
		for _, p := range periods {
			if p.Name == name && !p.from(now).Equal(want) {
				t.Errorf("%s begins at %s, want %s", name, p.from(now), want)
			}
		}
	}
	if len(periods) != 3 {
		t.Errorf("got %d periods", len(periods))
	}
}

func TestSpoken(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 ms", 42 * time.Millisecond: "42 ms", 1500 * time.Millisecond: "1 s", time.Minute: "1 min", 61 * time.Second: "1 min 1 s",
		90 * time.Minute: "1 h 30 min", 24 * time.Hour: "24 h", 50 * time.Hour: "2 d 2 h",
	} {
		if got := spoken(d); got != want {
			t.Errorf("%s: got %q, want %q", d, got, want)
		}
	}
}
