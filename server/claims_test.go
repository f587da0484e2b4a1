package server

import (
	"crypto/sha256"
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

// newClaimsWorld returns a world in which the providers' claims decide who is in the
// groups dba and support.
func newClaimsWorld(t *testing.T) (*world, *testPeople) {
	t.Helper()
	people := &testPeople{}
	w := newWorld(t, func(c *Config) {
		withPeople(c)
		c.People = people
	})
	rules := testRules()
	dba := rules.Groups["dba"]
	dba.Claimed = true
	rules.Groups["dba"] = dba
	rules.Groups["support"] = broker.Group{Claimed: true}
	if err := w.cfg.Broker.SetRules(t.Context(), broker.Self(broker.Identity{ID: operator, Kind: broker.KindOperator}, time.Now()), rules); err != nil {
		t.Fatal(err)
	}
	return w, people
}

// session opens a session whose claims are stale. The groups are the old claims.
func (w *world) session(t *testing.T, id string, groups ...string) session.Token {
	t.Helper()
	now := time.Now()
	who := (&testPeople{}).person(id, now)
	who.Person.Groups, who.Person.Claimed = groups, now.Add(-broker.ClaimsFor-time.Minute)
	in := broker.NewSession{Who: who, Client: broker.ClientBrowser, Tokens: []byte("s3cret-refresh")}
	token, _, err := w.cfg.Sessions.Open(t.Context(), in, now)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// A vote with stale claims refreshes them first. Without a refresh, the vote is refused
// if it depends on the claims.
func TestVoteRefreshesClaims(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		person, why string
		before, now []string
		refuses     bool
		want        error // nil: the vote counts
	}{
		"member before and after":            {"login/lea", "x", []string{"dba"}, []string{"dba"}, false, nil},
		"new member":                         {"login/lea", "x", nil, []string{"dba"}, false, nil},
		"former member":                      {"login/lea", "x", []string{"dba"}, nil, false, api.NotFound},
		"no answer":                          {"login/lea", "x", []string{"dba"}, []string{"dba"}, true, api.LoginStale},
		"new member of the requester's team": {"login/ben", outsiders, nil, []string{"support"}, false, api.OwnRequest},
		"former member of its team":          {"login/ben", outsiders, []string{"support"}, nil, false, nil},
		"no answer about its team":           {"login/ben", outsiders, nil, nil, true, api.LoginStale},
		"listed, no answer":                  {"login/ben", "x", nil, nil, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w, people := newClaimsWorld(t)
			people.groups, people.refuses = c.now, c.refuses
			r, token := w.guarded(t, c.why), w.session(t, c.person, c.before...)
			_, err := w.as(token.Reveal()).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest})
			if !errors.Is(err, c.want) || people.refreshes != 1 {
				t.Fatalf("got %d refreshes, %v", people.refreshes, err)
			}
			given := must[*api.Request](t)(w.as(agent).Request(t.Context(), r.ID)).Approvals.Given
			switch {
			case (len(given) == 1) != (c.want == nil):
				t.Errorf("given: %+v", given)
			case c.want == nil && given[0].At.Before(people.refreshedAt.Truncate(time.Microsecond)):
				t.Errorf("the vote is from %s, before the refresh at %s", given[0].At, people.refreshedAt)
			}
		})
	}
}

// A vote that does not depend on claims refreshes none.
func TestVoteWithoutClaims(t *testing.T) {
	t.Parallel()
	people := &testPeople{refuses: true}
	w := newWorld(t, func(c *Config) {
		withPeople(c)
		c.People = people
	})
	r, token := w.guarded(t, "x"), w.session(t, "login/ben")
	if _, err := w.as(token.Reveal()).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest}); err != nil || people.refreshes != 0 {
		t.Errorf("got %d refreshes, %v", people.refreshes, err)
	}
}

// reads returns functions that read a request and report whether it is visible.
func reads(t *testing.T, w *world, token session.Token, id string) map[string]func() bool {
	b := newBrowser(t, w)
	b.setSession(token)
	return map[string]func() bool{
		"API": func() bool {
			_, err := w.as(token.Reveal()).Request(t.Context(), id)
			if err != nil && !errors.Is(err, api.NotFound) {
				t.Error(err)
			}
			return err == nil
		},
		"page": func() bool {
			status, _, _ := b.visit(http.MethodGet, "/ui/requests/"+id, "")
			return status == http.StatusOK
		},
		"inbox": func() bool {
			_, _, page := b.visit(http.MethodGet, "/ui/", "")
			return strings.Contains(page, id)
		},
	}
}

// Reading with stale claims refreshes them, at most once in a while. Without a refresh
// the old claims count.
func TestReadRefreshesClaims(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, now []string
		refuses     bool
		sees        bool
	}{
		"new member":              {nil, []string{"dba"}, false, true},
		"member before and after": {[]string{"dba"}, []string{"dba"}, false, true},
		"former member":           {[]string{"dba"}, nil, false, false},
		"old member, no answer":   {[]string{"dba"}, nil, true, true},
		"no member, no answer":    {nil, []string{"dba"}, true, false},
	} {
		for _, way := range []string{"API", "page", "inbox"} {
			t.Run(name+"/"+way, func(t *testing.T) {
				w, people := newClaimsWorld(t)
				people.groups, people.refuses = c.now, c.refuses
				r, token := w.guarded(t, "x"), w.session(t, "login/lea", c.before...)
				look := reads(t, w, token, r.ID)[way]
				for range 3 {
					if sees := look(); sees != c.sees {
						t.Errorf("visible: %t", sees)
					}
				}
				if people.refreshes != 1 {
					t.Errorf("got %d refreshes", people.refreshes)
				}
				if !c.refuses {
					return
				}
				_, err := w.as(token.Reveal()).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest})
				if want := map[bool]error{true: api.LoginStale, false: api.NotFound}[c.sees]; !errors.Is(err, want) || people.refreshes != 2 {
					t.Errorf("got %d refreshes, the vote: %v", people.refreshes, err)
				}
			})
		}
	}
}

// Background requests of a page, and rules without claimed groups, cause no refresh.
func TestReadsWithoutRefresh(t *testing.T) {
	t.Parallel()
	w, people := newClaimsWorld(t)
	r, token := w.guarded(t, "x"), w.session(t, "login/lea", "dba")
	b := newBrowser(t, w)
	b.setSession(token)
	if status, _, _ := b.visit(http.MethodGet, "/ui/requests/"+r.ID, "", "Broker-Background", "1"); status != http.StatusOK || people.refreshes != 0 {
		t.Errorf("in the background: got %d, %d refreshes", status, people.refreshes)
	}
	if err := w.cfg.Broker.SetRules(t.Context(), broker.Self(broker.Identity{ID: operator, Kind: broker.KindOperator}, time.Now()), testRules()); err != nil {
		t.Fatal(err)
	}
	if reads(t, w, token, r.ID)["page"](); people.refreshes != 0 {
		t.Errorf("without claimed groups: got %d refreshes", people.refreshes)
	}
}

// Reading does not wait long for a provider. A vote waits for the refresh that a reader
// started.
func TestProviderHangs(t *testing.T) {
	t.Parallel()
	w, people := newClaimsWorld(t)
	w.refreshes.patience = time.Millisecond
	people.groups, people.hold = []string{"dba"}, make(chan struct{})
	r, token := w.guarded(t, "x"), w.session(t, "login/lea", "dba")
	for name, look := range reads(t, w, token, r.ID) {
		if !look() {
			t.Errorf("%s waits for the provider", name)
		}
	}
	voted := make(chan error)
	go func() {
		_, err := w.as(token.Reveal()).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest})
		voted <- err
	}()
	close(people.hold)
	if err := <-voted; err != nil || people.refreshes != 1 {
		t.Errorf("got %d refreshes, %v", people.refreshes, err)
	}
}

// A panic during a refresh is logged without its value. Reading continues with the old
// claims, and votes are refused.
func TestProviderPanics(t *testing.T) {
	t.Parallel()
	w, people := newClaimsWorld(t)
	people.panics = true
	r, token := w.guarded(t, "x"), w.session(t, "login/lea", "dba")
	for name, look := range reads(t, w, token, r.ID) {
		if !look() {
			t.Errorf("%s: the request is not visible", name)
		}
	}
	if _, err := w.as(token.Reveal()).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest}); !errors.Is(err, api.Internal) {
		t.Errorf("the vote: %v", err)
	}
	if !strings.Contains(w.log.String(), "msg=panic") || strings.Contains(w.log.String(), "at the provider") {
		t.Errorf("the log is %s", w.log)
	}
}

// A session has at most one refresh at a time. Readers reuse a recent one; votes start a
// new one.
func TestRefreshesJoin(t *testing.T) {
	t.Parallel()
	a, hold, runs := newRefreshes(), make(chan struct{}), 0
	run := func() error { runs++; <-hold; return broker.ErrUnavailable }
	one, other := broker.SessionKey{1}, broker.SessionKey{2}
	first := a.join(one, 0, run)
	if a.join(one, 0, run) != first || a.join(one, time.Hour, run) != first {
		t.Error("two refreshes run at once")
	}
	wrong := a.join(other, time.Hour, func() error { return broker.ErrLoginStale })
	if <-wrong.over; wrong == first || !errors.Is(wrong.err, broker.ErrLoginStale) {
		t.Errorf("another session's: %v", wrong.err)
	}
	close(hold)
	if <-first.over; runs != 1 || !errors.Is(first.err, broker.ErrUnavailable) {
		t.Errorf("got %d refreshes, %v", runs, first.err)
	}
	if a.join(one, time.Hour, run) != first {
		t.Error("a reader starts another refresh")
	}
	if next := a.join(one, 0, run); next == first {
		t.Error("a vote starts no refresh")
	} else if <-next.over; runs != 2 {
		t.Errorf("got %d refreshes, want 2", runs)
	}
}

// allowTerminal allows a terminal on its page. It returns where the browser is sent and
// a function that redeems the terminal's session.
func (b *browser) allowTerminal(w *world, device bool) (where string, redeem func() (*api.Session, error)) {
	b.t.Helper()
	ctx, client := b.t.Context(), w.as("")
	if device {
		d := must[*api.DeviceLogin](b.t)(client.BeginDevice(ctx))
		_, where, _ := b.visit(http.MethodPost, "/ui/device", formOf("code", d.UserCode, "decision", "allow"))
		return where, func() (*api.Session, error) { return client.OpenSession(ctx, api.Login{DeviceCode: d.DeviceCode}) }
	}
	verifier := strings.Repeat("v", 43)
	sum := sha256.Sum256([]byte(verifier))
	_, where, _ = b.visit(http.MethodPost, "/ui/terminal", formOf("port", "50000", "challenge", encodeBase64URL(sum[:]), "state", "s", "decision", "allow"))
	return where, func() (*api.Session, error) {
		u, err := url.Parse(where)
		if err != nil {
			return nil, err
		}
		return client.OpenSession(ctx, api.Login{Code: u.Query().Get("code"), Verifier: verifier})
	}
}

// Allowing a terminal refreshes the claims, so its session begins with current groups.
func TestTerminalBeginsWithFreshClaims(t *testing.T) {
	t.Parallel()
	for _, device := range []bool{false, true} {
		for _, member := range []bool{false, true} {
			w, people := newClaimsWorld(t)
			if member {
				people.groups = []string{"dba"}
			}
			b := newBrowser(t, w)
			b.setSession(w.session(t, "login/lea", "dba"))
			_, redeem := b.allowTerminal(w, device)
			s := must[*api.Session](t)(redeem())
			r := w.guarded(t, "x")
			_, err := w.as(s.Token).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest})
			if member && err != nil || !member && !errors.Is(err, api.NotFound) {
				t.Errorf("device %t, member %t: %v", device, member, err)
			}
			if people.refreshes != 1 {
				t.Errorf("device %t: got %d refreshes, want 1", device, people.refreshes)
			}
		}
	}
}

// If the refresh fails, the person logs in again and returns to the terminal's page. A
// terminal with stale claims would ask for a new login for ever.
func TestTerminalNeverBeginsStale(t *testing.T) {
	t.Parallel()
	for _, device := range []bool{false, true} {
		w, people := newClaimsWorld(t)
		people.refuses = true
		b := newBrowser(t, w)
		b.setSession(w.session(t, "login/lea", "dba"))
		where, redeem := b.allowTerminal(w, device)
		u, err := url.Parse(where)
		if err != nil || u.Path != "/ui/login" || u.Query().Get("failed") != "stale" {
			t.Fatalf("device %t: the browser is sent to %q", device, where)
		}
		if s, err := redeem(); err == nil {
			t.Fatalf("device %t: the terminal has a session of %s", device, s.Person)
		}
		next := u.Query().Get("next")
		if status, _, page := b.visit(http.MethodGet, where, ""); status != http.StatusOK || !strings.Contains(page, "must confirm your groups again") || !strings.Contains(strings.ToLower(page), strings.ToLower(url.QueryEscape(next))) {
			t.Errorf("device %t: the login page: %d", device, status)
		}
		if back := b.logIn("login/lea", next); back != next {
			t.Errorf("device %t: after the login the browser is sent to %q, not %q", device, back, next)
		}
		if status, _, page := b.visit(http.MethodGet, next, ""); status != http.StatusOK || !strings.Contains(page, "Allow") {
			t.Errorf("device %t: back at the terminal: %d", device, status)
		}
		if _, redeem := b.allowTerminal(w, device); must[*api.Session](t)(redeem()).Person != "login/lea" {
			t.Errorf("device %t: after the login the terminal gets no session", device)
		}
	}
}

// A terminal's session cannot allow another terminal, even as a browser's cookie.
func TestTerminalAllowsNoTerminal(t *testing.T) {
	t.Parallel()
	w, people := newClaimsWorld(t)
	people.groups = []string{"dba"}
	b := newBrowser(t, w)
	b.setSession(w.session(t, "login/lea"))
	_, redeem := b.allowTerminal(w, false)
	token, _ := session.ParseToken(must[*api.Session](t)(redeem()).Token)
	thief := newBrowser(t, w)
	thief.setSession(token)
	for _, device := range []bool{false, true} {
		_, redeem := thief.allowTerminal(w, device)
		if s, err := redeem(); err == nil {
			t.Errorf("device %t: got a session until %s", device, s.ExpiresAt)
		}
	}
}
