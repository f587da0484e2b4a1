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
)

// claims begins a world in which providers make people members of dba.
func claims(t *testing.T) (*world, *testPeople) {
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
	if err := w.cfg.Broker.SetRules(t.Context(), rules, broker.Identity{ID: operator, Kind: broker.KindOperator}, time.Now()); err != nil {
		t.Fatal(err)
	}
	return w, people
}

// session opens a session of somebody whose provider said long ago that they
// are in the groups.
func (w *world) session(t *testing.T, id string, groups ...string) broker.SessionToken {
	t.Helper()
	now := time.Now()
	who := (&testPeople{}).person(id, now)
	who.Person.Groups, who.Person.Claimed = groups, now.Add(-broker.ClaimsFor-time.Minute)
	in := broker.LoggedIn{Who: who, Client: broker.ClientBrowser, Tokens: []byte("s3cret-refresh")}
	token, _, err := w.cfg.Broker.OpenSession(t.Context(), in, now)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Whoever votes by what their provider said long ago votes by what it says now:
// whatever that changes, and not at all if it says nothing.
func TestClaimsAreAskedForAgain(t *testing.T) {
	for name, c := range map[string]struct {
		person, why string
		before, now []string
		refuses     bool
		want        error // nil: the vote counts
	}{
		"still a member":           {"login/lea", "x", []string{"dba"}, []string{"dba"}, false, nil},
		"a member by now":          {"login/lea", "x", nil, []string{"dba"}, false, nil},
		"no member any more":       {"login/lea", "x", []string{"dba"}, nil, false, api.NotFound},
		"nobody knows":             {"login/lea", "x", []string{"dba"}, []string{"dba"}, true, api.LoginStale},
		"of the requester's team":  {"login/ben", outsiders, nil, []string{"support"}, false, api.OwnRequest},
		"no more of its team":      {"login/ben", outsiders, []string{"support"}, nil, false, nil},
		"nobody knows of its team": {"login/ben", outsiders, nil, nil, true, api.LoginStale},
		"listed, and nobody knows": {"login/ben", "x", nil, nil, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w, people := claims(t)
			people.groups, people.refuses = c.now, c.refuses
			r, token := w.guarded(t, c.why), w.session(t, c.person, c.before...)
			_, err := w.as(token.Reveal()).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest})
			if !errors.Is(err, c.want) || people.asked != 1 {
				t.Fatalf("asked %d times: %v", people.asked, err)
			}
			given := must[*api.Request](t)(w.as(agent).Request(t.Context(), r.ID)).Approvals.Given
			switch {
			case (len(given) == 1) != (c.want == nil):
				t.Errorf("given: %+v", given)
			case c.want == nil && given[0].At.Before(people.said.Truncate(time.Microsecond)):
				t.Errorf("the vote is of %s, before the provider said who may give it, at %s", given[0].At, people.said)
			}
		})
	}
}

// What nothing rests on, no provider is asked for.
func TestClaimsOfNoUse(t *testing.T) {
	people := &testPeople{refuses: true}
	w := newWorld(t, func(c *Config) {
		withPeople(c)
		c.People = people
	})
	r, token := w.guarded(t, "x"), w.session(t, "login/ben")
	if _, err := w.as(token.Reveal()).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest}); err != nil || people.asked != 0 {
		t.Errorf("asked %d times: %v", people.asked, err)
	}
}

// letIn lets a terminal in by the page, and gives where the browser is sent,
// and what redeems the terminal's session.
func (b *browser) letIn(w *world, device bool) (where string, redeem func() (*api.Session, error)) {
	b.t.Helper()
	ctx, anyone := b.t.Context(), w.as("")
	if device {
		d := must[*api.DeviceLogin](b.t)(anyone.BeginDevice(ctx))
		_, where, _ := b.visit(http.MethodPost, "/ui/device", formOf("code", d.UserCode, "decision", "allow"))
		return where, func() (*api.Session, error) { return anyone.OpenSession(ctx, api.Login{DeviceCode: d.DeviceCode}) }
	}
	verifier := strings.Repeat("v", 43)
	sum := sha256.Sum256([]byte(verifier))
	_, where, _ = b.visit(http.MethodPost, "/ui/terminal", formOf("port", "50000", "challenge", encodeBase64URL(sum[:]), "state", "s", "decision", "allow"))
	return where, func() (*api.Session, error) {
		u, err := url.Parse(where)
		if err != nil {
			return nil, err
		}
		return anyone.OpenSession(ctx, api.Login{Code: u.Query().Get("code"), Verifier: verifier})
	}
}

// A terminal begins with what the provider says when it is let in. So logging
// in again there gives it more time, and takes away what the provider took.
func TestTerminalsBeginFresh(t *testing.T) {
	for _, device := range []bool{false, true} {
		for _, member := range []bool{false, true} {
			w, people := claims(t)
			if member {
				people.groups = []string{"dba"}
			}
			b := newBrowser(t, w)
			b.takes(w.session(t, "login/lea", "dba"))
			_, redeem := b.letIn(w, device)
			s := must[*api.Session](t)(redeem())
			r := w.guarded(t, "x")
			_, err := w.as(s.Token).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest})
			if member && err != nil || !member && !errors.Is(err, api.NotFound) {
				t.Errorf("device %t, a member %t: %v", device, member, err)
			}
			if people.asked != 1 {
				t.Errorf("device %t: the provider is asked %d times", device, people.asked)
			}
		}
	}
}

// Where the provider says nothing, its person logs in again, and comes back to
// where the terminal waits: a terminal with old claims would send them around
// for ever.
func TestTerminalsNeverBeginStale(t *testing.T) {
	for _, device := range []bool{false, true} {
		w, people := claims(t)
		people.refuses = true
		b := newBrowser(t, w)
		b.takes(w.session(t, "login/lea", "dba"))
		where, redeem := b.letIn(w, device)
		u, err := url.Parse(where)
		if err != nil || u.Path != "/ui/login" || u.Query().Get("failed") != "stale" {
			t.Fatalf("device %t: the browser is sent to %q", device, where)
		}
		if s, err := redeem(); err == nil {
			t.Fatalf("device %t: the terminal acts as %s", device, s.Person)
		}
		next := u.Query().Get("next")
		if status, _, page := b.visit(http.MethodGet, where, ""); status != http.StatusOK || !strings.Contains(page, "say again which groups") || !strings.Contains(strings.ToLower(page), strings.ToLower(url.QueryEscape(next))) {
			t.Errorf("device %t: the login page: %d", device, status)
		}
		if back := b.logIn("login/lea", next); back != next {
			t.Errorf("device %t: after the login the browser is sent to %q, not %q", device, back, next)
		}
		if status, _, page := b.visit(http.MethodGet, next, ""); status != http.StatusOK || !strings.Contains(page, "Allow") {
			t.Errorf("device %t: back at the terminal: %d", device, status)
		}
		if _, redeem := b.letIn(w, device); must[*api.Session](t)(redeem()).Person != "login/lea" {
			t.Errorf("device %t: after the login nobody is let in", device)
		}
	}
}

// A terminal's session lets in no terminal, though it be shown as a browser's.
func TestTerminalsLetInNobody(t *testing.T) {
	w, people := claims(t)
	people.groups = []string{"dba"}
	b := newBrowser(t, w)
	b.takes(w.session(t, "login/lea"))
	_, redeem := b.letIn(w, false)
	token, _ := broker.ParseSessionToken(must[*api.Session](t)(redeem()).Token)
	thief := newBrowser(t, w)
	thief.takes(token)
	for _, device := range []bool{false, true} {
		_, redeem := thief.letIn(w, device)
		if s, err := redeem(); err == nil {
			t.Errorf("device %t: it let in one that lasts until %s", device, s.ExpiresAt)
		}
	}
}
