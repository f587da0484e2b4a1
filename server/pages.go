package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/server/ui"
)

// UI is the audience of the pages. Browsers need a listener with a certificate of
// the public web.
const UI Audience = "ui"

// Cookies. Their prefix makes browsers restrict them to this host and to secure
// connections, with path "/" (RFC 6265bis, section 4.1.3.2).
const (
	sessionCookie = "__Host-broker-session"
	loginCookie   = "__Host-broker-login"
)

// pagePolicy lets a page load its own files and send forms to its own origin.
const pagePolicy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// page renders a page.
func (c *call) page(name, title, tab string, data any) (reply, error) {
	return c.pageOf(http.StatusOK, ui.Page{Name: name, Title: title, Tab: tab, Data: data})
}

func (c *call) pageOf(status int, p ui.Page) (reply, error) {
	p.Base = c.s.external.Path
	if c.session != nil {
		p.Viewer = &ui.Viewer{ID: c.who.ID, Name: c.who.Person.Name, NewPasskey: c.s.newPasskeys(c)}
		p.Viewer.Waiting = c.s.waitingFor(c)
		p.Viewer.MayKill = c.s.cfg.Broker.May(c.r.Context(), c.caller(), broker.ActionBlock)
		p.Viewer.HasReviews = len(c.s.cfg.Broker.Rules().Campaigns) > 0
		p.Viewer.MaySeeOverview = c.maySeeOverview()
		p.Viewer.MaySeeIdentities = c.s.cfg.Inventory.MayList(c.r.Context(), c.caller())
		p.Viewer.Suppliers = c.s.cfg.Suppliers.Concern(c.r.Context(), c.caller())
	}
	body, err := ui.Render(p)
	if err != nil {
		return reply{}, err
	}
	return reply{status: status, body: body, mediaType: "text/html; charset=utf-8"}, nil
}

// redirect sends the browser to another page.
func (c *call) redirect(where string) (reply, error) {
	return reply{status: http.StatusSeeOther, header: http.Header{"Location": {where}}}, nil
}

// home redirects the root to the inbox.
func (s *Server) home(c *call) (reply, error) { return c.redirect(s.to("/ui/")) }

// to returns the path of a page as the browser sees it.
func (s *Server) to(path string) string { return s.external.Path + path }

// failedPage renders an error, or redirects to the login.
func (c *call) failedPage(err error) reply {
	m := errorRowOf(err)
	if errors.Is(err, broker.ErrUnauthenticated) && (c.r.Method == http.MethodGet || c.r.Method == http.MethodHead) {
		answer, _ := c.redirect(c.s.to("/ui/login?next=" + url.QueryEscape(c.r.URL.RequestURI())))
		return answer
	}
	p := c.problemOf(err)
	answer, rendering := c.pageOf(m.status, ui.Page{Name: "error", Title: m.title, Data: errorPage{p.Detail, p.Reasons, string(p.Code), c.id}})
	if rendering != nil {
		return reply{status: http.StatusInternalServerError, body: []byte("internal error\n"), mediaType: "text/plain"}
	}
	answer.code = p.Code
	return answer
}

type errorPage struct {
	Detail     string
	Reasons    []string
	Code, Call string
}

// A pendingLogin is the sealed state that the browser keeps while it is at the
// provider.
type pendingLogin struct {
	Provider string    `json:"provider"`
	State    []byte    `json:"state"`
	Next     string    `json:"next"`
	Expires  time.Time `json:"expires"`
}

const loginFor = 10 * time.Minute

// login lists the providers, or redirects to the chosen one.
func (s *Server) login(c *call) (reply, error) {
	query := c.r.URL.Query()
	next := safeNext(query.Get("next"))
	provider := query.Get("provider")
	if provider == "" && len(s.cfg.Providers) == 1 && !query.Has("out") && !query.Has("failed") {
		provider = s.cfg.Providers[0]
	}
	if provider == "" || s.cfg.People == nil {
		return c.page("login", "Log in", "", loginPage{s.cfg.Providers, next, query.Has("out"), loginFailures[query.Get("failed")]})
	}
	done, err := s.beginning.enter(c.r.Context(), c.sender())
	if err != nil {
		return reply{}, err
	}
	defer done(true)
	state, where, err := s.cfg.People.Begin(c.r.Context(), provider, query.Has("fresh"), c.now)
	if err != nil {
		return reply{}, err
	}
	sealed, err := json.Marshal(pendingLogin{provider, state, next, c.now.Add(loginFor)})
	if err != nil {
		return reply{}, err
	}
	c.setCookie(loginCookie, encodeBase64URL(s.cfg.Sealer.Seal("login", "cookie", sealed)), loginFor)
	return c.redirect(where)
}

type loginPage struct {
	Providers []string
	Next      string
	Out       bool
	Failed    string
}

// loginFailures are the messages for a failed login. They never repeat text of
// the provider's answer, which the author of a malicious link could choose.
var loginFailures = map[string]string{
	"provider": "Your provider did not log you in, or its answer was not valid. Try again.",
	"stale":    "Your provider must confirm your groups again before a terminal can act for you.",
	"expired":  "The login took too long or was started in another browser. Try again.",
}

// CallbackPath returns the path of a provider's redirect URI. With several
// providers each has its own, so that none can receive the code of another
// (mix-up attack, RFC 9700, section 4.4.2.2).
func CallbackPath(providers []string, name string) string {
	if len(providers) == 1 {
		return "/ui/login/callback"
	}
	return "/ui/login/" + name + "/callback"
}

// callbackOf reports whether a provider's answer may arrive at the named
// callback. The callback of a single provider has no name.
func (s *Server) callbackOf(provider, named string) bool {
	return named == provider || named == "" && len(s.cfg.Providers) == 1
}

// callback handles the browser's return from the provider.
func (s *Server) callback(c *call) (reply, error) {
	cookie, err := c.r.Cookie(loginCookie)
	c.setCookie(loginCookie, "", -1)
	if err != nil || s.cfg.People == nil {
		return c.redirect(s.to("/ui/login?failed=expired"))
	}
	pending, err := s.openLogin(cookie.Value)
	if err != nil || !c.now.Before(pending.Expires) {
		return c.redirect(s.to("/ui/login?failed=expired"))
	}
	if !s.callbackOf(pending.Provider, c.r.PathValue("provider")) {
		s.loggingIn.failed(c.sender())
		s.cfg.Logger.WarnContext(c.r.Context(), "a login answer arrived at another provider's callback", "call_id", c.id, "provider", pending.Provider)
		return c.redirect(s.to("/ui/login?failed=provider"))
	}
	// A login cookie is enough to send answers, each of which makes the broker call
	// the provider.
	done, err := s.loggingIn.enter(c.r.Context(), c.sender())
	if err != nil {
		return reply{}, err
	}
	failed := true // also if Finish panics
	defer func() { done(failed) }()
	c.now = time.Now()
	in, err := s.cfg.People.Finish(c.r.Context(), pending.State, c.r.URL.Query(), c.now)
	if failed = err != nil; failed {
		s.cfg.Logger.WarnContext(c.r.Context(), "a login failed", "call_id", c.id, "provider", pending.Provider, "err", err)
		return c.redirect(s.to("/ui/login?failed=provider"))
	}
	in.Client = broker.ClientBrowser
	token, session, err := s.cfg.Sessions.Open(c.r.Context(), in, c.now)
	if err != nil {
		return reply{}, err
	}
	// The browser's earlier session ends: a login never takes over a session.
	if old, ok := c.sessionToken(); ok {
		_ = s.cfg.Sessions.Close(c.r.Context(), old, c.now) // it also expires by itself
	}
	c.who = session.Who
	c.setCookie(sessionCookie, token.Reveal(), session.Expires.Sub(c.now))
	return c.redirect(s.to(pending.Next))
}

func (s *Server) openLogin(text string) (p pendingLogin, err error) {
	sealed, err := decodeBase64URL(text)
	if err != nil {
		return p, err
	}
	raw, err := s.cfg.Sealer.Open("login", "cookie", sealed)
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(raw, &p)
}

// logout ends the browser's session.
func (s *Server) logout(c *call) (reply, error) {
	if token, ok := c.sessionToken(); ok {
		if err := s.cfg.Sessions.Close(c.r.Context(), token, c.now); err != nil {
			return reply{}, err
		}
	}
	c.setCookie(sessionCookie, "", -1)
	return c.redirect(s.to("/ui/login?out"))
}

// setCookie sets a cookie; a negative lifetime deletes it.
func (c *call) setCookie(name, value string, lasts time.Duration) {
	age := int(lasts / time.Second)
	if lasts < 0 {
		age = -1
	}
	http.SetCookie(c.w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: age, Secure: true, HttpOnly: true,
		// Lax: a link in a message opens the page without a new login, while posts
		// from other sites carry no cookie.
		SameSite: http.SameSiteLaxMode,
	})
}

// safeNext returns the page to open after a login if it is one of the broker's
// own, else the inbox. It prevents open redirects, and rejects backslashes
// because browsers treat them as slashes.
func safeNext(next string) string {
	const home = "/ui/"
	u, err := url.Parse(next)
	if err != nil || u.IsAbs() || u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, home) ||
		strings.ContainsAny(next, "\\\r\n\t") || strings.Contains(u.Path, "//") || strings.Contains(u.Path, "..") || strings.HasPrefix(u.Path, "/ui/log") {
		return home
	}
	return u.RequestURI()
}

// staticFile serves an embedded file. Its name changes with its content, so it can
// be cached for ever.
func (s *Server) staticFile(c *call) (reply, error) {
	f, ok := ui.Static(c.r.PathValue("file"))
	if !ok {
		return reply{}, refuse(broker.ErrNotFound, "no such file")
	}
	return c.document("static/"+c.r.PathValue("file"), f.Content, f.MediaType, http.Header{"Cache-Control": {"public, max-age=31536000, immutable"}})
}
