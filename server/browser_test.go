package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/broker/session"
)

// setSession puts a session into the browser.
func (b *browser) setSession(token session.Token) {
	b.t.Helper()
	at, err := url.Parse(b.base)
	if err != nil {
		b.t.Fatal(err)
	}
	b.client.Jar.SetCookies(at, []*http.Cookie{{Name: sessionCookie, Value: token.Reveal(), Path: "/", Secure: true}})
}

// get calls a route of the pages with the route's method.
func (b *browser) get(rt route, header ...string) *http.Response {
	b.t.Helper()
	path := strings.NewReplacer("{$}", "", "{id}", "req_0", "{name}", "guarded", "{index}", "0", "{provider}", "login", "{file}", "none").Replace(rt.path)
	if rt.path == "/ui/terminal" {
		path += "?port=50000&state=s&challenge=" + strings.Repeat("A", 43)
	}
	req, err := http.NewRequestWithContext(b.t.Context(), rt.method, b.base+path, strings.NewReader(""))
	if err != nil {
		b.t.Fatal(err)
	}
	if rt.method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp
}

// Every page runs only the broker's scripts, cannot be framed, is not cached, and sends
// no referrer.
func TestPageHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	for _, loggedIn := range []bool{false, true} {
		b := newBrowser(t, w)
		for _, rt := range pages {
			if loggedIn && rt.path == "/ui/events" {
				continue // a stream does not end
			}
			if loggedIn {
				b.setSession(w.session(t, "login/ben"))
			}
			resp := b.get(rt)
			is := func(name, want string) {
				t.Helper()
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s %s, logged in %t, answers %d with %s: %q", rt.method, rt.path, loggedIn, resp.StatusCode, name, got)
				}
			}
			is("X-Content-Type-Options", "nosniff")
			is("Referrer-Policy", "no-referrer")
			is("Cache-Control", "no-store")
			is("Cross-Origin-Opener-Policy", "same-origin")
			is("Strict-Transport-Security", "max-age=31536000")
			policy := map[string]string{}
			for directive := range strings.SplitSeq(resp.Header.Get("Content-Security-Policy"), ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(directive), " ")
				policy[name] = value
			}
			for name, want := range map[string]string{
				"default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self'", "connect-src": "'self'", "frame-ancestors": "'none'", "base-uri": "'none'", "form-action": "'self'",
			} {
				if loggedIn && rt.method == http.MethodGet && rt.path == "/ui/terminal" && name == "form-action" {
					want = "'self' http://127.0.0.1:50000" // where the form redirects
				}
				if policy[name] != want {
					t.Errorf("%s %s, logged in %t: %s %q, want %q", rt.method, rt.path, loggedIn, name, policy[name], want)
				}
			}
			if len(policy) != 8 {
				t.Errorf("%s %s: the policy has other directives: %v", rt.method, rt.path, policy)
			}
		}
	}
}

// Every form refuses requests that another site made the browser send.
func TestPagesRefuseCrossOrigin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	forms := slices.DeleteFunc(slices.Clone(pages), func(rt route) bool { return rt.method == http.MethodGet })
	if len(forms) == 0 {
		t.Fatal("the pages have no forms")
	}
	for _, rt := range forms {
		for _, header := range [][]string{{"Origin", "https://evil.test"}, {"Origin", "null"}, {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}} {
			b.setSession(w.session(t, "login/ben"))
			if resp := b.get(rt, header...); resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s %s with %v: got %d, want 403", rt.method, rt.path, header, resp.StatusCode)
			}
		}
	}
}

// cookies returns the cookies that an answer sets.
func (b *browser) cookies(method, path string) map[string]*http.Cookie {
	b.t.Helper()
	all := map[string]*http.Cookie{}
	for _, c := range b.get(route{method: method, path: path}, "Origin", b.base).Cookies() {
		all[c.Name] = c
	}
	return all
}

// Cookies are restricted to this host (RFC 6265bis, section 4.1.3.2), hidden from
// scripts, and not sent by other sites.
func TestCookies(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, newWorld(t, withPeople))
	begun := b.cookies(http.MethodGet, "/ui/login?provider=login")
	done := b.cookies(http.MethodGet, "/ui/login/callback?state=state-1&code=login/ben")
	out := b.cookies(http.MethodPost, "/ui/logout")
	for when, c := range map[string]*http.Cookie{
		"a login begins": begun[loginCookie], "the end of the login deletes its cookie": done[loginCookie], "session": done[sessionCookie], "logout deletes the session": out[sessionCookie],
	} {
		if c == nil || !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode {
			t.Errorf("%s: got %v", when, c)
			continue
		}
		if gone := strings.Contains(when, "deletes"); gone != (c.MaxAge < 0 && c.Value == "") || !gone && c.MaxAge <= 0 {
			t.Errorf("%s: got a lifetime of %d s and the value %q", when, c.MaxAge, c.Value)
		}
	}
	if value := begun[loginCookie].Value; strings.Contains(value, "state-1") || strings.Contains(value, encodeBase64URL([]byte("state-1"))) {
		t.Error("the state of a login is readable")
	}
}

// A login always ends on a page of the broker.
func TestNoOpenRedirect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	for _, next := range []string{
		"//evil.test", "//evil.test/ui/", `/\evil.test`, `\\evil.test`, "https:evil.test", "https://evil.test/ui/", "http:/evil.test/ui/", "///evil.test/ui/",
		"/ui//evil.test", "/ui/../../evil.test", "/ui/%2e%2e//evil.test", "/%09/evil.test", "/\t/evil.test", "javascript:alert(1)", "data:text/html,x", "ui/", "@evil.test/ui/", "https://broker.acme.test@evil.test/ui/",
	} {
		w.beginning = newTurns(beginLimits())
		if where := b.logIn("login/ben", next); where != "/ui/" {
			t.Errorf("next=%q leads to %q", next, where)
		}
	}
}

// Invalid session tokens from an address are limited, and valid ones are still accepted.
func TestFailuresSpareSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	token := w.session(t, "login/ben")
	limited := 0
	w.holdClocks()
	for i := range 2 * failuresBurst {
		resp := w.do(http.MethodGet, "/v1/whoami", "", "", "Authorization", fmt.Sprintf("Bearer %s%042dA", session.TokenPrefix, i))
		switch resp.StatusCode {
		case http.StatusTooManyRequests:
			limited++
		case http.StatusUnauthorized:
		default:
			t.Fatalf("an invalid session token: got %d", resp.StatusCode)
		}
	}
	if limited == 0 {
		t.Error("invalid tokens are not limited")
	}
	if who, err := w.as(token.Reveal()).WhoAmI(t.Context()); err != nil || who.ID != "login/ben" {
		t.Errorf("a valid session: got %+v, %v", who, err)
	}
}

// A provider may log out many people at once, even if its address sent forged tokens.
func TestManyLogouts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	for range 2 * failuresBurst {
		if status, _, _ := b.visit(http.MethodPost, "/ui/login/login/logged-out", "logout_token=forged", "Origin", ""); status != http.StatusBadRequest {
			t.Fatalf("a forged logout token: %d", status)
		}
	}
	for i := range 100 {
		id := fmt.Sprintf("p%d", i)
		token := w.session(t, "login/"+id)
		if status, _, _ := b.visit(http.MethodPost, "/ui/login/login/logged-out", "logout_token=logout+"+id, "Origin", ""); status != http.StatusOK {
			t.Fatalf("logout %d: %d", i, status)
		}
		if _, err := w.as(token.Reveal()).WhoAmI(t.Context()); !errors.Is(err, api.Unauthenticated) {
			t.Fatalf("session %d: %v", i, err)
		}
	}
}

// User codes are short, so one person may try only a few.
func TestUserCodeGuessesAreLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.setSession(w.session(t, "login/eve"))
	w.holdClocks()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		w.limits.codes.callers = newLRU[string, *callerState](maxRemembered)
		limited := false
		for range 2 * codesPerSecond {
			status, _, _ := b.visit(method, "/ui/device?code=BCDF-GHJK", formOf("code", "BCDF-GHJK", "decision", "allow"))
			limited = limited || status == http.StatusTooManyRequests
		}
		if !limited {
			t.Errorf("%s: guesses are not limited", method)
		}
	}
}
