package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"golang.org/x/sync/singleflight"

	"accessbroker.internal/broker"
)

// Login configures how the broker authenticates to Vault. At most one field is set;
// without any, a Vault agent at the address adds its own token.
type Login struct {
	JWT   *JWTLogin
	Cert  *CertLogin
	Token func() (string, error) // called again when its last token is no longer accepted
}

// JWTLogin logs in through the jwt auth method with the broker's JWT-SVID.
type JWTLogin struct {
	Mount, Role, Audience string
	SVID                  func(ctx context.Context, audience string) (string, error)
}

// CertLogin logs in through the cert auth method with the broker's X.509-SVID,
// which Config.TLS presents.
type CertLogin struct{ Mount, Role string }

// A session manages the broker's own token. It logs in when a token is first
// needed, renews it from Run, and logs in again when Vault no longer accepts it.
type session struct {
	login  Login
	client *api.Client // without a token
	log    *slog.Logger
	name   string // of the issuer
	flight singleflight.Group

	mu       sync.Mutex
	token    string
	index    string    // X-Vault-Index of the login
	loggedIn time.Time // a renewal does not count
	ends     time.Time // zero: never
	renewal  time.Time // when to renew; zero: never
}

const (
	loginDeadline = 10 * time.Second
	loginPause    = 5 * time.Second // at least, between logins that a refused token causes
)

// get returns a token that has not expired.
func (s *session) get(ctx context.Context) (access, error) {
	if s.login.JWT == nil && s.login.Cert == nil && s.login.Token == nil {
		return access{}, nil // the agent has one
	}
	s.mu.Lock()
	as, current := s.access(false), s.token != "" && (s.ends.IsZero() || time.Now().Before(s.ends))
	s.mu.Unlock()
	if current {
		return as, nil
	}
	return s.logIn(ctx)
}

// access returns the token. Nodes may not know it yet if it is new: if the caller
// replaced another one by it, or a cluster made it moments ago. The caller holds mu.
func (s *session) access(replaced bool) access {
	return access{s.token, s.index, replaced || s.index != "" && s.fresh()}
}

func (s *session) fresh() bool { return time.Since(s.loggedIn) < loginPause }

// logIn logs in, once for all callers that wait for it.
func (s *session) logIn(ctx context.Context) (access, error) {
	done := s.flight.DoChan("login", func() (any, error) {
		// Detached: the end of the first caller must not fail the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loginDeadline)
		defer cancel()
		return s.newToken(ctx)
	})
	select {
	case <-ctx.Done():
		return access{}, fmt.Errorf("%w: logging in to %s: %w", broker.ErrIssuerUnavailable, s.name, ctx.Err())
	case r := <-done:
		as, _ := r.Val.(access)
		return as, r.Err
	}
}

// replace returns another token after Vault no longer accepted this one. If Vault
// did not say that the token is gone, and the token is fresh, replace returns false:
// then the token's policies are at fault.
func (s *session) replace(ctx context.Context, token string, gone bool) (access, bool) {
	s.mu.Lock()
	current, fresh := s.access(true), s.fresh()
	s.mu.Unlock()
	if token == "" || fresh && current.token == token && !gone {
		return access{}, false
	}
	if current.token != token {
		return current, true
	}
	next, err := s.logIn(ctx)
	next.young = true
	return next, err == nil && next.token != token
}

func (s *session) newToken(ctx context.Context) (access, error) {
	auth, index, err := s.authenticate(ctx)
	if err != nil {
		return access{}, s.notLoggedIn(err)
	}
	s.keep(auth)
	s.mu.Lock()
	s.loggedIn, s.index = time.Now(), index
	as := s.access(false)
	s.mu.Unlock()
	s.log.InfoContext(ctx, "logged in to Vault", "issuer", s.name, "ttl", (time.Duration(auth.LeaseDuration) * time.Second).String(), "renewable", auth.Renewable)
	return as, nil
}

// notLoggedIn returns the error of a login as one of an unavailable issuer. A refused
// login is the operator's problem, not the caller's: it must not look like a refusal
// of the request.
func (s *session) notLoggedIn(err error) error {
	var f *fault
	if !errors.As(err, &f) {
		return fmt.Errorf("%w: logging in to %s: %w", broker.ErrIssuerUnavailable, s.name, err)
	}
	g := *f
	g.kind, g.text = broker.ErrIssuerUnavailable, fmt.Sprintf("logging in to %s: %s", s.name, f.text)
	return &g
}

// authenticate returns a token for the broker, and the index of the answer that had
// it.
func (s *session) authenticate(ctx context.Context) (*api.SecretAuth, string, error) {
	switch l := s.login; {
	case l.JWT != nil:
		svid, err := l.JWT.SVID(ctx, l.JWT.Audience)
		if err != nil {
			return nil, "", fmt.Errorf("fetching a JWT-SVID: %w", err)
		}
		return s.present(ctx, l.JWT.Mount, map[string]any{"role": l.JWT.Role, "jwt": svid})
	case l.Cert != nil:
		return s.present(ctx, l.Cert.Mount, map[string]any{"name": l.Cert.Role})
	}
	auth, err := s.lookUp(ctx)
	return auth, "", err
}

// present logs in through the auth method at mount.
func (s *session) present(ctx context.Context, mount string, proof map[string]any) (*api.SecretAuth, string, error) {
	a, err := send(ctx, s.client, access{}, request{path: "auth/" + mount + "/login", data: proof})
	if err != nil {
		return nil, "", err
	}
	auth, err := authOf(a)
	return auth, a.index, err
}

// lookUp reads the TTL of the token that Login.Token returns.
func (s *session) lookUp(ctx context.Context) (*api.SecretAuth, error) {
	token, err := s.login.Token()
	if err != nil {
		return nil, err
	}
	found, err := send(ctx, s.client, access{token: token}, request{path: "auth/token/lookup-self"})
	if err != nil {
		return nil, fmt.Errorf("looking up the token: %w", err)
	}
	ttl, err := found.TokenTTL()
	if err != nil {
		return nil, errors.New("looking up the token: its ttl can't be read")
	}
	renewable, _ := found.TokenIsRenewable() // unknown: log in again instead
	return &api.SecretAuth{ClientToken: token, LeaseDuration: int(ttl / time.Second), Renewable: renewable}, nil
}

func authOf(a *answer) (*api.SecretAuth, error) {
	if a.Auth == nil || a.Auth.ClientToken == "" {
		return nil, errors.New("the answer contains no token")
	}
	return a.Auth, nil
}

// keep stores a token. The session stops using it shortly before it expires,
// and renews it after two thirds of its TTL.
func (s *session) keep(a *api.SecretAuth) {
	now, ttl := time.Now(), time.Duration(a.LeaseDuration)*time.Second
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.ends, s.renewal = a.ClientToken, time.Time{}, time.Time{}
	if ttl > 0 {
		s.ends = now.Add(ttl - min(ttl/10, 10*time.Second))
		s.renewal = now.Add(ttl * 2 / 3)
	}
}

// renew extends the token if that is due, and logs in again if the extension
// fails or gains little: a token has a maximum TTL.
func (s *session) renew(ctx context.Context) error {
	s.mu.Lock()
	as, due := s.access(false), !s.renewal.IsZero() && !time.Now().Before(s.renewal)
	s.mu.Unlock()
	if as.token == "" || !due {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, loginDeadline)
	defer cancel()
	if a, err := send(ctx, s.client, as, request{path: "auth/token/renew-self", data: map[string]any{}}); err == nil && a.Auth != nil && s.extends(a.Auth) {
		s.keep(&api.SecretAuth{ClientToken: as.token, LeaseDuration: a.Auth.LeaseDuration})
		return nil
	}
	_, err := s.logIn(ctx)
	return err
}

// extends reports whether at least half of a renewed token's TTL was gained.
func (s *session) extends(renewed *api.SecretAuth) bool {
	left := time.Duration(renewed.LeaseDuration) * time.Second
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(left).After(s.ends.Add(left / 2))
}
