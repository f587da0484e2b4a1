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
	loggedIn time.Time // a renewal does not count
	ends     time.Time // zero: never
	renewal  time.Time // when to renew; zero: never
}

const (
	loginDeadline = 10 * time.Second
	loginPause    = 5 * time.Second // at least, between logins that a refused token causes
)

// get returns a token that has not expired.
func (s *session) get(ctx context.Context) (string, error) {
	if s.login.JWT == nil && s.login.Cert == nil && s.login.Token == nil {
		return "", nil // the agent has one
	}
	s.mu.Lock()
	token, current := s.token, s.token != "" && (s.ends.IsZero() || time.Now().Before(s.ends))
	s.mu.Unlock()
	if current {
		return token, nil
	}
	return s.logIn(ctx)
}

// logIn logs in, once for all callers that wait for it.
func (s *session) logIn(ctx context.Context) (string, error) {
	done := s.flight.DoChan("login", func() (any, error) {
		// Detached: the end of the first caller must not fail the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loginDeadline)
		defer cancel()
		return s.newToken(ctx)
	})
	select {
	case <-ctx.Done():
		return "", fmt.Errorf("%w: logging in to %s: %w", broker.ErrIssuerUnavailable, s.name, ctx.Err())
	case r := <-done:
		token, _ := r.Val.(string)
		return token, r.Err
	}
}

// replace returns another token after Vault refused this one with 403. It
// returns false if the token is fresh: then its policies are at fault.
func (s *session) replace(ctx context.Context, token string) (string, bool) {
	s.mu.Lock()
	current, fresh := s.token, time.Since(s.loggedIn) < loginPause
	s.mu.Unlock()
	if token == "" || fresh && current == token {
		return "", false
	}
	if current != token {
		return current, true
	}
	next, err := s.logIn(ctx)
	return next, err == nil && next != token
}

func (s *session) newToken(ctx context.Context) (string, error) {
	auth, err := s.authenticate(ctx)
	if err != nil {
		// A refused login is the operator's problem, not the caller's: it must
		// not look like a refusal of the request.
		return "", fmt.Errorf("%w: logging in to %s: %w", broker.ErrIssuerUnavailable, s.name, withoutKind(err))
	}
	s.keep(auth)
	s.mu.Lock()
	s.loggedIn = time.Now()
	s.mu.Unlock()
	s.log.InfoContext(ctx, "logged in to Vault", "issuer", s.name, "ttl", (time.Duration(auth.LeaseDuration) * time.Second).String(), "renewable", auth.Renewable)
	return auth.ClientToken, nil
}

// authenticate returns a token for the broker.
func (s *session) authenticate(ctx context.Context) (*api.SecretAuth, error) {
	switch l := s.login; {
	case l.JWT != nil:
		svid, err := l.JWT.SVID(ctx, l.JWT.Audience)
		if err != nil {
			return nil, fmt.Errorf("fetching a JWT-SVID: %w", err)
		}
		return s.present(ctx, l.JWT.Mount, map[string]any{"role": l.JWT.Role, "jwt": svid})
	case l.Cert != nil:
		return s.present(ctx, l.Cert.Mount, map[string]any{"name": l.Cert.Role})
	}
	return s.lookUp(ctx)
}

// present logs in through the auth method at mount.
func (s *session) present(ctx context.Context, mount string, proof map[string]any) (*api.SecretAuth, error) {
	return authOf(s.client.Logical().WriteWithContext(ctx, "auth/"+mount+"/login", proof))
}

// lookUp reads the TTL of the token that Login.Token returns.
func (s *session) lookUp(ctx context.Context) (*api.SecretAuth, error) {
	token, err := s.login.Token()
	if err != nil {
		return nil, err
	}
	found, err := withToken(s.client, token).Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking up the token: %w", classify(err))
	}
	ttl, err := found.TokenTTL()
	if err != nil {
		return nil, errors.New("looking up the token: its ttl can't be read")
	}
	renewable, _ := found.TokenIsRenewable() // unknown: log in again instead
	return &api.SecretAuth{ClientToken: token, LeaseDuration: int(ttl / time.Second), Renewable: renewable}, nil
}

func authOf(secret *api.Secret, err error) (*api.SecretAuth, error) {
	switch {
	case err != nil:
		return nil, classify(err)
	case secret == nil || secret.Auth == nil || secret.Auth.ClientToken == "":
		return nil, errors.New("the answer contains no token")
	}
	return secret.Auth, nil
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
	token, due := s.token, !s.renewal.IsZero() && !time.Now().Before(s.renewal)
	s.mu.Unlock()
	if token == "" || !due {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, loginDeadline)
	defer cancel()
	if auth, err := authOf(withToken(s.client, token).Auth().Token().RenewSelfWithContext(ctx, 0)); err == nil && s.extends(auth) {
		s.keep(&api.SecretAuth{ClientToken: token, LeaseDuration: auth.LeaseDuration})
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
