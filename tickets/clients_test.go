package tickets

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/tickets/ticketstest"
)

var night = time.Date(2026, 11, 29, 22, 0, 0, 0, time.UTC)

// serve serves a system on loopback and returns where it is.
func serve(t *testing.T, h http.Handler) Host {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return Host{URL: server.URL, AllowPrivate: true}
}

func secret(text string) func() (string, error) {
	return func() (string, error) { return text, nil }
}

// trackerOf returns a tracker of a source, whose tickets have any form.
func trackerOf(source Source, err error) *Tracker {
	if err != nil {
		panic(err)
	}
	return &Tracker{Name: "t", Source: source, Pattern: regexp.MustCompile(`^(.+)$`), People: map[string]string{"5b10ac8d82e05b22cc7d4ef5": "login/ana", "octocat": "login/ana", "ana": "login/ana", "5137153cc611227c000bbd1bd8cd2007": "login/ana"}}
}

// The systems and the ticket that they have: INC-7, INC0000007 or 7.
func systems(t *testing.T) map[string]struct {
	system  *ticketstest.System
	tracker *Tracker
	id      string
} {
	t.Helper()
	cloud, server, now, hub := ticketstest.NewJira(false), ticketstest.NewJira(true), ticketstest.NewServiceNow("incident"), ticketstest.NewGitHub("acme/payments")
	cloud.Auth, now.Auth, hub.Auth, server.Auth = "Basic YnJva2VyQGFjbWUudGVzdDpzM2NyZXQ=", "Basic YnJva2VyOnMzY3JldA==", "Bearer s3cret", "Bearer s3cret"
	title := "<b>till</b> is stuck & \u202ekcuts"
	cloud.Put(ticketstest.Ticket{ID: "INC-7", Title: title, Status: "In Progress", Assignee: "5b10ac8d82e05b22cc7d4ef5", Name: "Ana Alvarez", From: night, Until: night.Add(time.Hour)})
	server.Put(ticketstest.Ticket{ID: "INC-7", Title: title, Status: "In Progress", Assignee: "ana", Name: "Ana Alvarez", From: night, Until: night.Add(time.Hour)})
	now.Put(ticketstest.Ticket{ID: "INC0000007", Title: title, Status: "2", Assignee: "5137153cc611227c000bbd1bd8cd2007", Name: "Ana", From: night, Until: night.Add(time.Hour)})
	hub.Put(ticketstest.Ticket{ID: "7", Title: title, Status: "open", Assignee: "mallory,octocat"})
	host := func(h http.Handler, user string) Host {
		at := serve(t, h)
		at.Username, at.Secret = user, secret("s3cret")
		return at
	}
	window := [2]string{"customfield_10501", "customfield_10502"}
	return map[string]struct {
		system  *ticketstest.System
		tracker *Tracker
		id      string
	}{
		"jira":        {cloud, trackerOf(NewJira(JiraConfig{Host: host(cloud, "broker@acme.test"), AssigneeBy: "accountId", From: window[0], Until: window[1]})), "INC-7"},
		"jira server": {server, trackerOf(NewJira(JiraConfig{Host: host(server, ""), Server: true, AssigneeBy: "name", From: window[0], Until: window[1]})), "INC-7"},
		"servicenow":  {now, trackerOf(NewServiceNow(ServiceNowConfig{Host: host(now, "broker"), Table: "incident", AssigneeBy: "assigned_to", From: "start_date", Until: "end_date"})), "INC0000007"},
		"github":      {hub, trackerOf(NewGitHub(GitHubConfig{Host: host(hub, ""), Repository: "acme/payments", AssigneeBy: "login"})), "7"},
	}
}

func TestTrackersStateTheTicket(t *testing.T) {
	for name, s := range systems(t) {
		got, err := s.tracker.fetch(t.Context(), s.id)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Title != "<b>till</b> is stuck & \u202ekcuts" || !slices.Equal(got.States, []string{"open"}) || !slices.Equal(got.Assignees, []string{"login/ana"}) || got.Assignee == "" || got.Status == "" {
			t.Errorf("%s: got %+v", name, got)
		}
		wantFrom, wantUntil := night, night.Add(time.Hour)
		if name == "github" { // its issues have no window
			wantFrom, wantUntil = time.Time{}, time.Time{}
		}
		if !got.From.Equal(wantFrom) || !got.Until.Equal(wantUntil) {
			t.Errorf("%s: got window %s to %s, want %s to %s", name, got.From, got.Until, wantFrom, wantUntil)
		}
	}
}

func TestClosedTicketsHaveNoState(t *testing.T) {
	all := systems(t)
	for name, closed := range map[string][]string{"jira": {"Done", "Odd"}, "jira server": {"Done"}, "servicenow": {"6", "7", "8"}, "github": {"closed"}} {
		for _, status := range closed {
			s := all[name]
			s.system.Change(s.id, func(t *ticketstest.Ticket) { t.Status = status })
			got, err := s.tracker.fetch(t.Context(), s.id)
			if err != nil || len(got.States) != 0 {
				t.Errorf("%s, status %s: got states %v, %v", name, status, got.States, err)
			}
			if f := got.Fact(); f.State != broker.FactEnded || f.Cause != broker.CauseTicketClosed {
				t.Errorf("%s, status %s: got fact %+v", name, status, f)
			}
		}
	}
}

func TestStatesOfTheOperator(t *testing.T) {
	for name, test := range map[string]struct {
		states map[string][]string
		answer Answer
		want   []string
	}{
		"own rule":                         {nil, Answer{Status: "In Review", Open: true}, []string{"open"}},
		"listed as open":                   {map[string][]string{"open": {"In Review"}}, Answer{Status: "In Review"}, []string{"open"}},
		"not listed as open":               {map[string][]string{"open": {"To Do"}}, Answer{Status: "In Review", Open: true}, nil},
		"closed wins":                      {map[string][]string{"closed": {"In Review"}}, Answer{Status: "In Review", Open: true}, nil},
		"two states":                       {map[string][]string{"implementing": {"Implement"}}, Answer{Status: "Implement", Open: true}, []string{"implementing", "open"}},
		"a state of a status that is done": {map[string][]string{"done": {"Done"}}, Answer{Status: "Done"}, []string{"done"}},
		"by the code":                      {map[string][]string{"open": {"-1"}}, Answer{Status: "Implement", Code: "-1"}, []string{"open"}},
		"another spelling":                 {map[string][]string{"open": {"in review"}}, Answer{Status: "In Review"}, nil},
	} {
		tracker := Tracker{States: test.states}
		if got := tracker.states(test.answer); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}

// What a tracker calls its people decides who may have access, so an assignee without an
// identity is none, and no name leads to another identity than its own.
func TestAssigneesAreIdentities(t *testing.T) {
	tracker := Tracker{People: map[string]string{"1": "login/ana", "2": "login/ana", "bot": "spiffe://acme.test/agent/triage"}, Person: "corp/{assignee}"}
	got := tracker.people([]string{"1", "2", "bot", "ben", "", "a\nb", "x/../y"})
	if want := []string{"corp/ben", "corp/x/../y", "login/ana", "spiffe://acme.test/agent/triage"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	tracker.Person = ""
	if got := tracker.people([]string{"ben", "login/ana"}); len(got) != 0 {
		t.Errorf("unlisted assignees: got %q", got)
	}
}

func TestUnknownTickets(t *testing.T) {
	all := systems(t)
	all["github"].system.Put(ticketstest.Ticket{ID: "8", Status: "open", Pull: true})
	all["github"].system.Put(ticketstest.Ticket{ID: "9", Status: "open", Deleted: true})
	all["jira"].system.Put(ticketstest.Ticket{ID: "INC-8", Status: "To Do", Moved: "OPS-1"})
	all["servicenow"].system.Put(ticketstest.Ticket{ID: "INC0000008", Status: "2"})
	tried := 0
	for name, ids := range map[string][]string{
		"jira": {"INC-9", "inc-7", "INC-8", "../issue/INC-7", "INC-7?x", "%49NC-7"}, "jira server": {"INC-9"}, "github": {"11", "8", "9", "07", "7/../7", "+7"},
		"servicenow": {"INC0000009", "INC0000009^ORnumber=INC0000007", "javascript:gs.getUserID()", "INC0000007^", "inc 7"},
	} {
		for _, id := range ids {
			tried++
			if got, err := all[name].tracker.fetch(t.Context(), id); !errors.Is(err, ErrNoTicket) {
				t.Errorf("%s, %q: got %+v, %v", name, id, got, err)
			}
		}
	}
	if tried == 0 {
		t.Error("nothing was tried")
	}
	for _, id := range []string{".", ".."} {
		if _, err := all["jira"].tracker.fetch(t.Context(), id); err == nil {
			t.Errorf("%q: got no error", id)
		}
	}
}

// A redirect is never followed, wherever it leads: to a metadata service, to another
// host, or to another path of the same host.
func TestRedirectsAreNotFollowed(t *testing.T) {
	reached := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer elsewhere.Close()
	for name, s := range systems(t) {
		for _, status := range []int{301, 302, 303, 307, 308} {
			for _, target := range []string{"http://169.254.169.254/latest/meta-data/iam/", elsewhere.URL, "/other"} {
				s.system.Break(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/other" {
						reached = true
					}
					http.Redirect(w, r, target, status)
				})
				_, err := s.tracker.fetch(t.Context(), s.id)
				var failure *Failure
				if name == "github" && status == 301 {
					if !errors.Is(err, ErrNoTicket) { // the issue was transferred
						t.Errorf("%s, %d to %s: got %v", name, status, target, err)
					}
				} else if !errors.As(err, &failure) || failure.Whole || strings.Contains(err.Error(), "169.254") {
					t.Errorf("%s, %d to %s: got %v", name, status, target, err)
				}
			}
		}
	}
	if reached {
		t.Error("a redirect was followed")
	}
}

// GitHub answers for a transferred issue with a redirect, which is not followed.
func TestTransferredIssueIsUnknown(t *testing.T) {
	s := systems(t)["github"]
	s.system.Change("7", func(t *ticketstest.Ticket) { t.Moved = "1" })
	if _, err := s.tracker.fetch(t.Context(), "7"); !errors.Is(err, ErrNoTicket) {
		t.Errorf("got %v, want %v", err, ErrNoTicket)
	}
}

func TestLongAnswersAreNotRead(t *testing.T) {
	long := `{"key": "INC-7", "fields": {"summary": "` + strings.Repeat("x", 10<<20) + `"}}`
	for name, h := range map[string]http.HandlerFunc{
		"10 MB": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, long) },
		"10 MB compressed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = io.WriteString(z, long)
			_ = z.Close()
		},
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
					return
				}
			}
		},
		"not JSON":       func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>s3cret</html>") },
		"another type":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"key": 7, "fields": []}`) },
		"without fields": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"key": "INC-7"}`) },
		"without state": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"key": "INC-7", "fields": {"status": null}}`)
		},
		"deep": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("[", 100_000)) },
		"500":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"403":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
	} {
		for system, s := range systems(t) {
			s.system.Break(h)
			_, err := s.tracker.fetch(t.Context(), s.id)
			var failure *Failure
			if !errors.As(err, &failure) || failure.Whole || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s of %s: got %v, want a failure of this ticket alone", name, system, err)
			}
		}
	}
}

func TestBusyTrackersNameTheirPause(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		header map[string]string
		after  time.Duration
	}{
		"429":               {429, map[string]string{"Retry-After": "30"}, 30 * time.Second},
		"503":               {503, map[string]string{"Retry-After": "7"}, 7 * time.Second},
		"secondary limit":   {403, map[string]string{"Retry-After": "60"}, time.Minute},
		"429 without time":  {429, nil, 0},
		"a pause of a year": {429, map[string]string{"Retry-After": "31536000"}, time.Hour},
	} {
		s := systems(t)["github"]
		s.system.Break(func(w http.ResponseWriter, _ *http.Request) {
			for k, v := range test.header {
				w.Header().Set(k, v)
			}
			w.WriteHeader(test.status)
		})
		_, err := s.tracker.fetch(t.Context(), "7")
		var failure *Failure
		if !errors.As(err, &failure) || !failure.Whole || failure.After != test.after {
			t.Errorf("%s: got %+v", name, failure)
		}
	}
	limited := http.Header{"X-Ratelimit-Remaining": {"0"}, "X-Ratelimit-Reset": {"1"}}
	if got := reset(limited); got != 0 || !exhausted(limited) {
		t.Errorf("a limit that was lifted: got %s", got)
	}
}

func TestCredentialsThatFail(t *testing.T) {
	s := systems(t)["jira"]
	s.system.Auth = "Basic changed"
	_, err := s.tracker.fetch(t.Context(), "INC-7")
	var failure *Failure
	if !errors.As(err, &failure) || !failure.Whole || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
	source, err := NewJira(JiraConfig{Host: Host{URL: "https://jira.acme.test", Secret: func() (string, error) { return "", errors.New("no such file") }}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := source.Fetch(t.Context(), "INC-7"); !errors.As(err, &failure) || !failure.Whole {
		t.Errorf("a secret that can't be read: got %v", err)
	}
}

// Without allow_private, a tracker's name must not lead into the network of the broker.
func TestPrivateTrackersNeedPermission(t *testing.T) {
	called := false
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }))
	defer server.Close()
	source, err := NewGitHub(GitHubConfig{Host: Host{URL: server.URL}, Repository: "acme/payments"})
	if err != nil {
		t.Fatal(err)
	}
	var failure *Failure
	if _, err := source.Fetch(t.Context(), "7"); !errors.As(err, &failure) || called {
		t.Errorf("got %v, called %t", err, called)
	}
}

func TestHangingTrackersAreLeft(t *testing.T) {
	source, err := NewGitHub(GitHubConfig{Host: serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })), Repository: "acme/payments"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var failure *Failure
	if _, err := source.Fetch(ctx, "7"); !errors.As(err, &failure) || !failure.Whole {
		t.Errorf("got %v", err)
	}
}

func TestGenericTracker(t *testing.T) {
	var asked string
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.EscapedPath() + "?" + r.URL.RawQuery + " " + r.Header.Get("X-Api-Key") + r.Header.Get("Authorization")
		_, _ = io.WriteString(w, `{"data": {"id": 12345678901234567890, "a/b": "Stuck", "state": "open", "who": ["ana", 3], "window": {"from": "2026-11-29T22:00:00Z", "until": "2026-11-29T23:00:00+00:00"}}}`)
	}))
	host.Secret, host.Header = secret("s3cret"), "X-Api-Key"
	fields := Fields{ID: "/data/id", Title: "/data/a~1b", State: "/data/state", Assignee: "/data/who", From: "/data/window/from", Until: "/data/window/until"}
	for place, want := range map[string]string{"/t/{ticket}/x": "/t/12345678901234567890/x?", "/t?n={ticket}&a=b": "/t?n=12345678901234567890&a=b"} {
		at := host
		at.URL += place
		tracker := trackerOf(NewGeneric(GenericConfig{Host: at, Fields: fields}))
		got, err := tracker.fetch(t.Context(), "12345678901234567890")
		if err != nil || got.Title != "Stuck" || !slices.Equal(got.Assignees, []string{"login/ana"}) || !got.From.Equal(night) || !got.Until.Equal(night.Add(time.Hour)) {
			t.Errorf("%s: got %+v, %v", place, got, err)
		}
		if asked != want+" s3cret" {
			t.Errorf("%s: got call %q, want %q", place, asked, want)
		}
		for _, id := range []string{"a&b=c", "a/b", "a?b", "a#b", "%2e%2e", "a b"} {
			if _, err := tracker.fetch(t.Context(), id); !errors.Is(err, ErrNoTicket) {
				t.Errorf("%s, %q: got %v", place, id, err)
			}
			if path, query, _ := strings.Cut(asked, "?"); strings.Count(path, "/") != strings.Count(place, "/") && !strings.Contains(place, "?") || strings.Count(query, "&") != strings.Count(place, "&") {
				t.Errorf("%s, %q: got call %q", place, id, asked)
			}
		}
	}
	for name, c := range map[string]GenericConfig{
		"no place":              {Host{URL: "https://tracker.acme.test/t"}, fields},
		"two places":            {Host{URL: "https://tracker.acme.test/{ticket}/{ticket}"}, fields},
		"in the host":           {Host{URL: "https://{ticket}.acme.test/"}, fields},
		"as the whole host":     {Host{URL: "https://{ticket}"}, fields},
		"http":                  {Host{URL: "http://tracker.acme.test/{ticket}"}, fields},
		"no id":                 {Host{URL: "https://tracker.acme.test/{ticket}"}, Fields{State: "/s"}},
		"no state":              {Host{URL: "https://tracker.acme.test/{ticket}"}, Fields{ID: "/s"}},
		"a pointer without a /": {Host{URL: "https://tracker.acme.test/{ticket}"}, Fields{ID: "id", State: "/s"}},
	} {
		if _, err := NewGeneric(c); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

// A date without a time has no zone, so it is not an end of a window.
func TestWindowsThatAreNotWhole(t *testing.T) {
	for name, change := range map[string]func(*ticketstest.Ticket){
		"no end":       func(t *ticketstest.Ticket) { t.Until = time.Time{} },
		"no start":     func(t *ticketstest.Ticket) { t.From = time.Time{} },
		"backwards":    func(t *ticketstest.Ticket) { t.From, t.Until = t.Until, t.From },
		"of no length": func(t *ticketstest.Ticket) { t.From = t.Until },
	} {
		s := systems(t)["servicenow"]
		s.system.Change(s.id, change)
		got, err := s.tracker.fetch(t.Context(), s.id)
		if err != nil || !got.From.IsZero() || !got.Until.IsZero() {
			t.Errorf("%s: got window %s to %s, %v", name, got.From, got.Until, err)
		}
	}
	if at := jiraTime([]byte(`"2026-11-29"`)); !at.IsZero() {
		t.Errorf("a date: got %s", at)
	}
}

func TestLongTextsAreCut(t *testing.T) {
	s := systems(t)["jira"]
	s.system.Change("INC-7", func(t *ticketstest.Ticket) { t.Title, t.Status = strings.Repeat("ä", 1000), "In Progress" })
	got, err := s.tracker.fetch(t.Context(), "INC-7")
	if err != nil || len(got.Title) > maxTitle || !strings.HasSuffix(got.Title, "ä…") {
		t.Errorf("got %d bytes, %v", len(got.Title), err)
	}
}
