package server

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// The pages on which a person lets a terminal act in their name.

type terminalPage struct {
	Port      int
	Challenge string
	State     string
}

// readTerminal reads where the terminal listens: on the loopback interface, on an
// ephemeral port (RFC 8252, section 7.3).
func readTerminal(get func(string) string) (terminalPage, error) {
	port, err := strconv.Atoi(get("port"))
	if err != nil || port < 1024 || port > 65535 || len(get("state")) > 128 || !printable(get("state")) {
		return terminalPage{}, refuse(broker.ErrInvalidRequest, "this link is not from broker login: run broker login again")
	}
	if _, err := challengeOf(get("challenge")); err != nil {
		return terminalPage{}, err
	}
	return terminalPage{port, get("challenge"), get("state")}, nil
}

// terminal asks whether a terminal on this computer may act for the viewer.
func (s *Server) terminal(c *call) (reply, error) {
	p, err := readTerminal(c.r.URL.Query().Get)
	if err != nil {
		return reply{}, err
	}
	answer, err := c.page("terminal", "Log in a terminal", "", p)
	// The form redirects to the terminal, and browsers apply form-action to redirects.
	policy := strings.Replace(pagePolicy, "form-action 'self'", "form-action 'self' http://127.0.0.1:"+strconv.Itoa(p.Port), 1)
	answer.header = http.Header{"Content-Security-Policy": {policy}}
	return answer, err
}

// decideTerminal redirects to the terminal, with a code if the viewer allowed it.
func (s *Server) decideTerminal(c *call) (reply, error) {
	p, err := readTerminal(c.form.get)
	if err != nil {
		return reply{}, err
	}
	back := url.Values{"state": {p.State}}
	if c.form.get("decision") == "allow" {
		ready, err := c.readyToLetIn()
		if err != nil {
			return reply{}, err
		}
		if !ready {
			return c.logInFirst("/ui/terminal?" + url.Values{"port": {strconv.Itoa(p.Port)}, "challenge": {p.Challenge}, "state": {p.State}}.Encode())
		}
		challenge, err := challengeOf(p.Challenge)
		if err != nil {
			return reply{}, err
		}
		code, err := s.cfg.Sessions.NewLoginCode(c.r.Context(), c.session, challenge, c.now)
		if err != nil {
			return reply{}, err
		}
		back.Set("code", code)
	} else {
		back.Set("error", "access_denied")
	}
	return c.redirect("http://127.0.0.1:" + strconv.Itoa(p.Port) + "/?" + back.Encode())
}

// readyToLetIn reports whether the viewer's claims are fresh. A terminal holds no
// tokens of the provider and cannot refresh claims itself, so they are refreshed
// before it gets a session.
func (c *call) readyToLetIn() (bool, error) {
	age, stale := c.s.cfg.Broker.ClaimsAge(c.caller())
	if age <= time.Minute {
		return true, nil
	}
	fresh, err := c.refreshClaims(c.r.Context(), 0)
	return fresh || !stale, err
}

// logInFirst sends the viewer to a new login and then back. The login page shows a
// link instead of redirecting, because browsers apply form-action to redirects.
func (c *call) logInFirst(next string) (reply, error) {
	return c.redirect(c.s.to("/ui/login?" + url.Values{"failed": {"stale"}, "next": {next}}.Encode()))
}

type devicePage struct {
	Code   string
	From   string
	Began  time.Time
	Done   string
	Failed string
}

// device asks for the user code of a terminal, then for a decision on it.
func (s *Server) device(c *call) (reply, error) {
	code := c.r.URL.Query().Get("code")
	if code == "" || len(code) > 16 {
		return c.page("device", "Log in a terminal", "", devicePage{})
	}
	leave, err := c.typed()
	if err != nil {
		return reply{}, err
	}
	defer leave()
	l, err := s.cfg.Sessions.Device(c.r.Context(), code, c.now)
	if errors.Is(err, broker.ErrNotFound) {
		return c.page("device", "Log in a terminal", "", devicePage{Failed: "No terminal is waiting with this code. Check the code, or run broker login again."})
	}
	if err != nil {
		return reply{}, err
	}
	return c.page("device", "Log in a terminal", "", devicePage{Code: code, From: l.From, Began: l.Created})
}

// typed bounds how many codes one person tries.
func (c *call) typed() (leave func(), err error) { return c.s.limits.codes.enter(c.who.ID) }

// decideDevice allows or refuses a terminal.
func (s *Server) decideDevice(c *call) (reply, error) {
	allow, code := c.form.get("decision") == "allow", c.form.get("code")
	leave, err := c.typed()
	if err != nil {
		return reply{}, err
	}
	defer leave()
	if allow {
		ready, err := c.readyToLetIn()
		if err != nil {
			return reply{}, err
		}
		if !ready {
			return c.logInFirst("/ui/device?" + url.Values{"code": {code}}.Encode())
		}
	}
	if err := s.cfg.Sessions.DecideDevice(c.r.Context(), c.session, code, allow, c.now); err != nil {
		return reply{}, err
	}
	done := "The terminal was refused. You can close this page."
	if allow {
		done = "The terminal is logged in as you. You can close this page."
	}
	return c.page("device", "Log in a terminal", "", devicePage{Done: done})
}
