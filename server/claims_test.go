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
	if err := w.cfg.Broker.SetRules(t.Context(), broker.Self(broker.Identity{ID: operator, Kind: broker.KindOperator}, time.Now()), rules); err != nil {
		t.Fatal(err)
	}
	return w, people
}

// session opens a session of somebody whose provider said long ago that they
// are in the groups.
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

// Whoever votes by what their provider said long ago votes by what it says now:
// whatever that changes, and not at all if it says nothing.
func TestClaimsAreAskedForAgain(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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

// reads gives the ways in which somebody looks at a request.
func reads(t *testing.T, w *world, token session.Token, id string) map[string]func() bool {
	b := newBrowser(t, w)
	b.takes(token)
	return map[string]func() bool{
		"the call": func() bool {
			_, err := w.as(token.Reveal()).Request(t.Context(), id)
			if err != nil && !errors.Is(err, api.NotFound) {
				t.Error(err)
			}
			return err == nil
		},
		"the page": func() bool {
			status, _, _ := b.visit(http.MethodGet, "/ui/requests/"+id, "")
			return status == http.StatusOK
		},
		"the inbox": func() bool {
			_, _, page := b.visit(http.MethodGet, "/ui/", "")
			return strings.Contains(page, id)
		},
	}
}

// Whoever looks at a request by what their provider said long ago looks by what
// it says now; if it says nothing, by what it said, and the provider is not asked
// by every look.
func TestReadersHaveClaimsAskedForAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, now []string
		refuses     bool
		sees        bool
	}{
		"a member by now":              {nil, []string{"dba"}, false, true},
		"still a member":               {[]string{"dba"}, []string{"dba"}, false, true},
		"no member any more":           {[]string{"dba"}, nil, false, false},
		"a member, as far as is known": {[]string{"dba"}, nil, true, true},
		"none, as far as is known":     {nil, []string{"dba"}, true, false},
	} {
		for _, way := range []string{"the call", "the page", "the inbox"} {
			t.Run(name+" by "+way, func(t *testing.T) {
				w, people := claims(t)
				people.groups, people.refuses = c.now, c.refuses
				r, token := w.guarded(t, "x"), w.session(t, "login/lea", c.before...)
				look := reads(t, w, token, r.ID)[way]
				for range 3 {
					if sees := look(); sees != c.sees {
						t.Errorf("sees it: %t", sees)
					}
				}
				if people.asked != 1 {
					t.Errorf("the provider is asked %d times", people.asked)
				}
				if !c.refuses {
					return
				}
				_, err := w.as(token.Reveal()).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest})
				if want := map[bool]error{true: api.LoginStale, false: api.NotFound}[c.sees]; !errors.Is(err, want) || people.asked != 2 {
					t.Errorf("asked %d times, the vote: %v", people.asked, err)
				}
			})
		}
	}
}

// What a page asks by itself, and what rests on no provider, has none asked.
func TestReadersWhoHaveNobodyAsked(t *testing.T) {
	t.Parallel()
	w, people := claims(t)
	r, token := w.guarded(t, "x"), w.session(t, "login/lea", "dba")
	b := newBrowser(t, w)
	b.takes(token)
	if status, _, _ := b.visit(http.MethodGet, "/ui/requests/"+r.ID, "", "Broker-Background", "1"); status != http.StatusOK || people.asked != 0 {
		t.Errorf("in the background: %d, asked %d times", status, people.asked)
	}
	if err := w.cfg.Broker.SetRules(t.Context(), broker.Self(broker.Identity{ID: operator, Kind: broker.KindOperator}, time.Now()), testRules()); err != nil {
		t.Fatal(err)
	}
	if reads(t, w, token, r.ID)["the page"](); people.asked != 0 {
		t.Errorf("without groups that a provider fills: asked %d times", people.asked)
	}
}

// A provider that does not answer keeps nobody from reading; whoever votes waits
// for the very answer that a reader asked for.
func TestProvidersThatHang(t *testing.T) {
	t.Parallel()
	w, people := claims(t)
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
	if err := <-voted; err != nil || people.asked != 1 {
		t.Errorf("asked %d times: %v", people.asked, err)
	}
}

// A question that fails in a way that nobody thought of takes neither the broker
// down nor who reads, and no vote counts by it.
func TestProvidersThatPanic(t *testing.T) {
	t.Parallel()
	w, people := claims(t)
	people.panics = true
	r, token := w.guarded(t, "x"), w.session(t, "login/lea", "dba")
	for name, look := range reads(t, w, token, r.ID) {
		if !look() {
			t.Errorf("%s fails", name)
		}
	}
	if _, err := w.as(token.Reveal()).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest}); !errors.Is(err, api.Internal) {
		t.Errorf("the vote: %v", err)
	}
	if !strings.Contains(w.log.String(), "msg=panic") || strings.Contains(w.log.String(), "at the provider") {
		t.Errorf("it is logged as %s", w.log)
	}
}

// A session's provider is asked once at a time, whoever wants to know, and for
// readers not again so soon.
func TestAskings(t *testing.T) {
	t.Parallel()
	a, hold, asked := newRefreshes(), make(chan struct{}), 0
	ask := func() error { asked++; <-hold; return broker.ErrUnavailable }
	one, other := broker.SessionKey{1}, broker.SessionKey{2}
	first := a.join(one, 0, ask)
	if a.join(one, 0, ask) != first || a.join(one, time.Hour, ask) != first {
		t.Error("it is asked twice at once")
	}
	wrong := a.join(other, time.Hour, func() error { return broker.ErrLoginStale })
	if <-wrong.over; wrong == first || !errors.Is(wrong.err, broker.ErrLoginStale) {
		t.Errorf("another session's: %v", wrong.err)
	}
	close(hold)
	if <-first.over; asked != 1 || !errors.Is(first.err, broker.ErrUnavailable) {
		t.Errorf("asked %d times: %v", asked, first.err)
	}
	if a.join(one, time.Hour, ask) != first {
		t.Error("a reader asks again at once")
	}
	if again := a.join(one, 0, ask); again == first {
		t.Error("whoever votes is not heard")
	} else if <-again.over; asked != 2 {
		t.Errorf("asked %d times", asked)
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
	t.Parallel()
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
	t.Parallel()
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
		if status, _, page := b.visit(http.MethodGet, where, ""); status != http.StatusOK || !strings.Contains(page, "must confirm your groups again") || !strings.Contains(strings.ToLower(page), strings.ToLower(url.QueryEscape(next))) {
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
	t.Parallel()
	w, people := claims(t)
	people.groups = []string{"dba"}
	b := newBrowser(t, w)
	b.takes(w.session(t, "login/lea"))
	_, redeem := b.letIn(w, false)
	token, _ := session.ParseToken(must[*api.Session](t)(redeem()).Token)
	thief := newBrowser(t, w)
	thief.takes(token)
	for _, device := range []bool{false, true} {
		_, redeem := thief.letIn(w, device)
		if s, err := redeem(); err == nil {
			t.Errorf("device %t: it let in one that lasts until %s", device, s.ExpiresAt)
		}
	}
}
