package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// testPeople is a provider that logs in the person whom the callback names.
type testPeople struct {
	groups      []string // the claimed groups after a refresh
	refuses     bool     // makes refreshes fail
	panics      bool     // makes refreshes panic
	refreshes   int
	refreshedAt time.Time     // of the last refresh
	hold        chan struct{} // if not nil, refreshes wait until it is closed
}

func (p *testPeople) Begin(_ context.Context, provider string, _ bool, _ time.Time) ([]byte, string, error) {
	return []byte("state-1"), "https://login.test/authorize?provider=" + provider, nil
}

func (p *testPeople) Finish(_ context.Context, state []byte, callback url.Values, now time.Time) (broker.NewSession, error) {
	if string(state) != "state-1" || callback.Get("state") != "state-1" {
		return broker.NewSession{}, errors.New("another state")
	}
	return broker.NewSession{Who: p.person(callback.Get("code"), now), SID: "sid-1", Tokens: []byte("s3cret-refresh")}, nil
}

func (p *testPeople) Refresh(_ context.Context, who broker.Identity, tokens []byte, now time.Time) (broker.Identity, []byte, error) {
	p.refreshes++
	if p.panics {
		panic("at the provider")
	}
	if p.hold != nil {
		<-p.hold
	}
	for begun := time.Now(); !time.Now().After(begun.Add(time.Millisecond)); { // takes at least a millisecond
	}
	p.refreshedAt = time.Now()
	if string(tokens) != "s3cret-refresh" || p.refuses {
		return who, nil, errors.New("the provider refuses")
	}
	person := *who.Person
	person.Claimed, person.Groups = now, p.groups
	who.Person = &person
	return who, tokens, nil
}

func (p *testPeople) person(id string, now time.Time) broker.Identity {
	return broker.Identity{
		ID: id, Kind: broker.KindPerson, Proof: broker.Proof{SHA256: sha256.Sum256([]byte(id)), Expires: now.Add(time.Hour)},
		Person: &broker.Person{Provider: "login", Name: "Ben <b>", Claimed: now, Login: now},
	}
}

// A browser is a client of the pages.
type browser struct {
	t      testing.TB
	client *http.Client
	base   string
}

func withPeople(c *Config) {
	c.People, c.Providers = &testPeople{}, []string{"login"}
	c.LogoutToken = func(_ context.Context, provider, token string, now time.Time) (broker.LogoutToken, error) {
		name, ok := strings.CutPrefix(token, "logout ")
		if !ok {
			return broker.LogoutToken{}, errors.New("no such token")
		}
		return broker.LogoutToken{Provider: provider, Sub: name, ID: token, Issued: now}, nil
	}
}

func newBrowser(t testing.TB, w *world) *browser {
	t.Helper()
	server := httptest.NewTLSServer(w.Handler(UI, API))
	t.Cleanup(server.Close)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := server.Client()
	client.Jar = jar
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &browser{t, client, server.URL}
}

// visit makes a call and returns the status, the Location and the page.
func (b *browser) visit(method, path, form string, header ...string) (status int, where, page string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.base+path, strings.NewReader(form))
	if err != nil {
		b.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", b.base)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Location"), string(text)
}

func (b *browser) logIn(person, next string) (where string) {
	b.t.Helper()
	if status, where, _ := b.visit(http.MethodGet, "/ui/login?provider=login&next="+url.QueryEscape(next), ""); status != http.StatusSeeOther || !strings.HasPrefix(where, "https://login.test/authorize") {
		b.t.Fatalf("beginning the login: %d to %q", status, where)
	}
	status, where, _ := b.visit(http.MethodGet, "/ui/login/callback?state=state-1&code="+url.QueryEscape(person), "")
	if status != http.StatusSeeOther {
		b.t.Fatalf("after the login: %d", status)
	}
	return where
}

func TestLogin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	if status, where, _ := b.visit(http.MethodGet, "/ui/", ""); status != http.StatusSeeOther || where != "/ui/login?next=%2Fui%2F" {
		t.Fatalf("without a session: %d to %q", status, where)
	}
	if where := b.logIn("login/ben", "/ui/device?code=BCDF-GHJK"); where != "/ui/device?code=BCDF-GHJK" {
		t.Errorf("after the login the browser is sent to %q", where)
	}
	status, _, page := b.visit(http.MethodGet, "/ui/", "")
	if status != http.StatusOK || !strings.Contains(page, "Ben &lt;b&gt;") {
		t.Errorf("the inbox: %d %s", status, page)
	}
	if status, where, _ := b.visit(http.MethodPost, "/ui/logout", ""); status != http.StatusSeeOther || where != "/ui/login?out" {
		t.Errorf("logging out: %d to %q", status, where)
	}
	if status, _, _ := b.visit(http.MethodGet, "/ui/", ""); status != http.StatusSeeOther {
		t.Errorf("after logging out the inbox answers %d", status)
	}
	if strings.Contains(w.log.String(), "s3cret") || strings.Contains(w.log.String(), session.TokenPrefix) {
		t.Error("the log has a secret")
	}
}

// A login opens a new session and ends the browser's previous one, so that a session
// that an attacker planted does not survive (session fixation).
func TestSessionFixation(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, newWorld(t, withPeople))
	at, err := url.Parse(b.base)
	if err != nil {
		t.Fatal(err)
	}
	b.logIn("login/eve", "/ui/")
	planted := b.client.Jar.Cookies(at)
	b.logIn("login/ben", "/ui/")
	mine := b.client.Jar.Cookies(at)
	if len(planted) != 1 || len(mine) != 1 || planted[0].Value == mine[0].Value {
		t.Fatalf("cookies before %v and after %v", planted, mine)
	}
	b.client.Jar.SetCookies(at, []*http.Cookie{{Name: planted[0].Name, Value: planted[0].Value, Path: "/", Secure: true}})
	if status, _, _ := b.visit(http.MethodGet, "/ui/", ""); status != http.StatusSeeOther {
		t.Errorf("the planted session is still open: got %d", status)
	}
}

func TestLoginRefusals(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, newWorld(t, withPeople))
	if _, where, _ := b.visit(http.MethodGet, "/ui/login/callback?state=state-1&code=login/ben", ""); where != "/ui/login?failed=expired" {
		t.Errorf("a callback without a login leads to %q", where)
	}
	b.visit(http.MethodGet, "/ui/login?provider=login", "")
	if _, where, _ := b.visit(http.MethodGet, "/ui/login/callback?state=forged&code=login/ben", ""); where != "/ui/login?failed=provider" {
		t.Errorf("a forged state leads to %q", where)
	}
	if _, where, _ := b.visit(http.MethodGet, "/ui/login/callback?state=state-1&code=login/ben", ""); where != "/ui/login?failed=expired" {
		t.Errorf("the login a second time leads to %q", where)
	}
	b.logIn("login/ben", "/ui/")
	for _, header := range [][]string{
		{"Origin", "https://evil.test"}, {"Sec-Fetch-Site", "cross-site"}, {"Origin", "null"},
	} {
		if status, _, page := b.visit(http.MethodPost, "/ui/logout", "", header...); status != http.StatusForbidden || !strings.Contains(page, "cross_origin") {
			t.Errorf("a post with %v: %d", header, status)
		}
	}
}

func TestSafeNext(t *testing.T) {
	t.Parallel()
	for next, want := range map[string]string{
		"/ui/requests/req_1?tab=2": "/ui/requests/req_1?tab=2", "": "/ui/", "/ui/": "/ui/",
		"https://evil.test/ui/": "/ui/", "//evil.test/ui/": "/ui/", "/\\evil.test": "/ui/", "/ui/\\evil": "/ui/", "/v1/requests": "/ui/",
		"/ui/../v1": "/ui/", "/ui//evil.test": "/ui/", "javascript:alert(1)": "/ui/", "/ui/\r\nSet-Cookie: a=b": "/ui/",
		"/ui/logout": "/ui/", "/ui/login?provider=x": "/ui/", "/ui/%2e%2e/v1": "/ui/", "https:/ui/": "/ui/", "///ui/": "/ui/",
	} {
		if got := safeNext(next); got != want {
			t.Errorf("safeNext(%q) = %q, want %q", next, got, want)
		}
	}
}

// Each of several providers has its own callback. An answer at any other callback is
// refused without being verified (RFC 9700, section 4.4.2.2).
func TestSeveralProviders(t *testing.T) {
	t.Parallel()
	finished := 0
	w := newWorld(t, func(c *Config) {
		withPeople(c)
		c.People, c.Providers = &countedPeople{finished: &finished}, []string{"login", "partner"}
	})
	b := newBrowser(t, w)
	const answer = "?state=state-1&code=login/ben"
	for _, path := range []string{"/ui/login/callback", "/ui/login/partner/callback", "/ui/login/none/callback"} {
		b.visit(http.MethodGet, "/ui/login?provider=login", "")
		if _, where, _ := b.visit(http.MethodGet, path+answer, ""); where != "/ui/login?failed=provider" || finished != 0 {
			t.Errorf("an answer at %s: to %q, verified %d times", path, where, finished)
		}
	}
	b.visit(http.MethodGet, "/ui/login?provider=login", "")
	if _, where, _ := b.visit(http.MethodGet, CallbackPath([]string{"login", "partner"}, "login")+answer, ""); where != "/ui/" || finished != 1 {
		t.Errorf("an answer at the right callback: to %q", where)
	}
	if path := CallbackPath([]string{"login"}, "login"); path != "/ui/login/callback" {
		t.Errorf("the callback of a single provider is %s", path)
	}
}

type countedPeople struct {
	testPeople
	finished *int
}

func (p *countedPeople) Finish(ctx context.Context, state []byte, callback url.Values, now time.Time) (broker.NewSession, error) {
	*p.finished++
	return p.testPeople.Finish(ctx, state, callback, now)
}

// A person logs in a terminal in the browser. The provider's logout ends both sessions.
func TestTerminalLogin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	verifier := strings.Repeat("v", 43)
	sum := sha256.Sum256([]byte(verifier))
	form := url.Values{"port": {"50000"}, "challenge": {encodeBase64URL(sum[:])}, "state": {"s"}}
	if status, _, page := b.visit(http.MethodGet, "/ui/terminal?"+form.Encode(), ""); status != http.StatusOK || !strings.Contains(page, "broker login") {
		t.Fatalf("the terminal page: got %d", status)
	}
	form.Set("decision", "allow")
	_, where, _ := b.visit(http.MethodPost, "/ui/terminal", form.Encode())
	back, err := url.Parse(where)
	if err != nil || back.Host != "127.0.0.1:50000" || back.Query().Get("state") != "s" {
		t.Fatalf("the terminal gets %q", where)
	}
	client, code := w.as(""), back.Query().Get("code")
	if _, err := client.OpenSession(t.Context(), api.Login{Code: code, Verifier: "another"}); !errors.Is(err, api.NotFound) {
		t.Errorf("with another verifier: %v", err)
	}
	s := must[*api.Session](t)(client.OpenSession(t.Context(), api.Login{Code: code, Verifier: verifier}))
	if _, err := client.OpenSession(t.Context(), api.Login{Code: code, Verifier: verifier}); !errors.Is(err, api.NotFound) {
		t.Errorf("the code a second time: %v", err)
	}
	if who := must[*api.Identity](t)(w.as(s.Token).WhoAmI(t.Context())); who.ID != "login/ben" || who.Kind != "person" || who.Proof.Method != "session" {
		t.Errorf("whoami: %+v", who)
	}
	// The provider logs the person out.
	if status, _, _ := b.visit(http.MethodPost, "/ui/login/login/logged-out", "logout_token=forged", "Origin", ""); status != http.StatusBadRequest {
		t.Errorf("a forged logout token: %d", status)
	}
	if status, _, _ := b.visit(http.MethodPost, "/ui/login/login/logged-out", "logout_token=logout+ben", "Origin", ""); status != http.StatusOK {
		t.Errorf("a logout token: %d", status)
	}
	if _, err := w.as(s.Token).WhoAmI(t.Context()); !errors.Is(err, api.Unauthenticated) {
		t.Errorf("after the provider's logout: %v", err)
	}
}

// driveSessions logs in a terminal with a user code and logs it out.
func (w *world) driveSessions(t *testing.T) {
	ctx := t.Context()
	_, in, err := w.cfg.Sessions.Open(ctx, broker.NewSession{Who: (&testPeople{}).person("login/ben", time.Now()), Client: "browser"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	begun := must[*api.DeviceLogin](t)(w.as("").BeginDevice(ctx))
	if _, err := w.as("").OpenSession(ctx, api.Login{DeviceCode: begun.DeviceCode}); !errors.Is(err, api.Pending) {
		t.Errorf("before the decision: %v", err)
	}
	if _, err := w.as("").OpenSession(ctx, api.Login{DeviceCode: begun.DeviceCode}); !errors.Is(err, api.SlowDown) {
		t.Errorf("polling too fast: %v", err)
	}
	typed := strings.ToLower(strings.ReplaceAll(begun.UserCode, "-", " "))
	if err := w.cfg.Sessions.DecideDevice(ctx, in, typed, true, time.Now()); err != nil {
		t.Fatal(err)
	}
	s := must[*api.Session](t)(w.as("").OpenSession(ctx, api.Login{DeviceCode: begun.DeviceCode}))
	if err := w.as(s.Token).CloseSession(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.as(s.Token).WhoAmI(ctx); !errors.Is(err, api.Unauthenticated) {
		t.Errorf("after logging out: %v", err)
	}
}

// A login's cookie allows only a limited number of calls to the provider.
func TestCallbacksAreLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.visit(http.MethodGet, "/ui/login?provider=login&next=/ui/", "")
	base, err := url.Parse(b.base)
	if err != nil {
		t.Fatal(err)
	}
	cookies := b.client.Jar.Cookies(base)
	if len(cookies) != 1 || cookies[0].Name != loginCookie {
		t.Fatalf("the login's cookies: %v", cookies)
	}
	replay := *b.client
	replay.Jar = nil
	w.holdClocks()
	calls, burst := 0, w.loggingIn.limits.burst
	for range burst + 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.base+"/ui/login/callback?state=guessed&code=x", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.AddCookie(cookies[0])
		resp := must[*http.Response](t)(replay.Do(req))
		_ = resp.Body.Close()
		if resp.Header.Get("Location") == "/ui/login?failed=provider" {
			calls++
		}
	}
	if calls != burst {
		t.Errorf("got %d calls to the provider for %d callbacks, want %d", calls, burst+2, burst)
	}
}
