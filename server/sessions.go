package server

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
	"accessbroker.internal/server/inbound"
)

// People logs people in with OpenID providers. It is safe for concurrent use.
type People interface {
	// Begin begins a login. The browser keeps the state, sealed, and is redirected
	// to where. fresh makes the provider authenticate the person again, even if it
	// still has a session.
	Begin(ctx context.Context, provider string, fresh bool, now time.Time) (state []byte, where string, err error)

	// Finish verifies the provider's answer and returns the person.
	Finish(ctx context.Context, state []byte, callback url.Values, now time.Time) (broker.NewSession, error)

	// Refresh fetches a person's claims from the provider again. It returns the
	// updated identity and the tokens for the next refresh.
	Refresh(ctx context.Context, who broker.Identity, tokens []byte, now time.Time) (broker.Identity, []byte, error)
}

// sessionToken returns the session token of the call, if any: the bearer token, or
// on pages the cookie.
func (c *call) sessionToken() (session.Token, bool) {
	if c.route.audience == UI {
		cookie, err := c.r.Cookie(sessionCookie)
		if err != nil {
			return session.Token{}, false
		}
		return session.ParseToken(cookie.Value)
	}
	scheme, text, _ := strings.Cut(c.r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") {
		return session.Token{}, false
	}
	return session.ParseToken(text)
}

// enterSession authenticates a person by a session token.
func (c *call) enterSession(token session.Token) error {
	if c.r.TLS != nil && len(c.r.TLS.PeerCertificates) > 0 && c.route.audience != UI {
		return broker.ErrTwoIdentities
	}
	enter := c.s.cfg.Sessions.Get
	if c.background() {
		enter = c.s.cfg.Sessions.Peek
	}
	s, err := enter(c.r.Context(), token, c.now)
	if errors.Is(err, broker.ErrUnauthenticated) {
		c.unproved = true
		return c.noSession(err)
	}
	if err != nil {
		return err
	}
	c.who, c.session, c.token = s.Who, s, token
	return c.follow()
}

// follow lets the call know what other processes stored about people before the call.
func (c *call) follow() error {
	if c.s.cfg.Follow == nil {
		return nil
	}
	return c.s.cfg.Follow(c.r.Context())
}

// noSession counts an invalid session token as a failure of its address. Valid
// tokens are never refused for failures of others at the same address: the lookup
// by hash is cheap.
func (c *call) noSession(err error) error {
	if c.route.audience == UI {
		return err // the browser is redirected to the login
	}
	if limited := c.s.failures.check(c.from); limited != nil {
		return limited
	}
	c.s.failures.count(c.from)
	return err
}

// background reports whether a page sent the request by itself. Such requests must
// not keep a session from becoming idle.
func (c *call) background() bool {
	return c.route.audience == UI && (c.route.path == "/ui/events" || c.r.Method == http.MethodGet && c.r.Header.Get("Broker-Background") != "")
}

// beginDevice begins a terminal's login with a user code (as in RFC 8628). It needs
// no authentication, so its rate is limited by address.
func (s *Server) beginDevice(c *call, _ nothing) (reply, error) {
	if s.cfg.People == nil {
		return reply{}, refuse(broker.ErrNotFound, "people cannot log in: no provider is configured")
	}
	done, err := s.beginning.enter(c.r.Context(), c.sender())
	if err != nil {
		return reply{}, err
	}
	defer done(true)
	from := "an unknown address" // the page says where the terminal is
	if c.from.IsValid() {
		from = c.from.String()
	}
	d, err := s.cfg.Sessions.BeginDevice(c.r.Context(), from, c.now)
	if err != nil {
		return reply{}, err
	}
	return ok(api.DeviceLogin{
		DeviceCode: d.DeviceCode, UserCode: d.UserCode, VerificationURI: s.pageURL("/ui/device"),
		VerificationURIComplete: s.pageURL("/ui/device?code=" + url.QueryEscape(d.UserCode)),
		ExpiresIn:               int(time.Until(d.Expires) / time.Second), Interval: int(session.PollEvery / time.Second),
	})
}

// openSession exchanges a terminal's login code or device code for a session.
func (s *Server) openSession(c *call, body api.Login) (reply, error) {
	polled, err := s.polling.enter(c.r.Context(), c.sender())
	if err != nil {
		return reply{}, err
	}
	polled(true)
	var token session.Token
	var opened *broker.Session
	done, err := s.loggingIn.enter(c.r.Context(), c.sender())
	if err != nil {
		return reply{}, err
	}
	defer func() { done(errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrSlowDown)) }()
	c.now = time.Now()
	switch {
	case (body.Code == "") == (body.DeviceCode == "") || len(body.Code)+len(body.DeviceCode)+len(body.Verifier) > 512:
		err = refuse(broker.ErrInvalidRequest, "send code and verifier, or device_code")
	case body.Code != "":
		token, opened, err = s.cfg.Sessions.RedeemCode(c.r.Context(), body.Code, body.Verifier, c.now)
	default:
		token, opened, err = s.cfg.Sessions.RedeemDevice(c.r.Context(), body.DeviceCode, c.now)
	}
	if err != nil {
		return reply{}, err
	}
	return c.created("", api.Session{
		Token: token.Reveal(), Person: opened.Who.ID, Name: opened.Who.Person.Name, ExpiresAt: opened.Expires.UTC(),
		IdleAfter: api.Duration(s.cfg.Sessions.Idle()),
	})
}

// closeSession ends the caller's session.
func (s *Server) closeSession(c *call, _ nothing) (reply, error) {
	if c.session == nil {
		return reply{}, broker.ErrSessionRequired
	}
	if err := s.cfg.Sessions.Close(c.r.Context(), c.token, c.now); err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, nil
}

// backChannelLogout ends the sessions that a provider's logout token names (OpenID
// Connect Back-Channel Logout 1.0, section 2.5).
func (s *Server) backChannelLogout(c *call) (reply, error) {
	if s.cfg.LogoutToken == nil {
		return reply{}, refuse(broker.ErrNotFound, "no provider is configured")
	}
	leave, err := s.limits.provider.enter(inbound.Network(c.from).String())
	if err != nil {
		return reply{}, err
	}
	defer leave()
	token, err := s.cfg.LogoutToken(c.r.Context(), c.r.PathValue("provider"), c.form.get("logout_token"), c.now)
	if err != nil {
		c.s.cfg.Logger.WarnContext(c.r.Context(), "a logout token is invalid", "call_id", c.id, "err", err)
		return reply{}, refuse(broker.ErrInvalidRequest, "the logout token is invalid")
	}
	if err := s.cfg.Sessions.EndSessions(c.r.Context(), token, c.now); err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK}, nil
}

// challengeOf reads a PKCE challenge (RFC 7636, section 4.2).
func challengeOf(text string) (audit.Digest, error) {
	raw, err := decodeBase64URL(text)
	if err != nil || len(raw) != len(audit.Digest{}) {
		return audit.Digest{}, refuse(broker.ErrInvalidRequest, "challenge must be the base64url-encoded SHA-256 of the verifier")
	}
	return audit.Digest(raw), nil
}
