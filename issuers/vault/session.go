package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"golang.org/x/sync/singleflight"

	"accessbroker.internal/broker"
)

// A Login says how the broker proves itself to a Vault. Exactly one way
// is set; none is for an agent that adds its own token.
type Login struct {
	JWT   *JWTLogin
	Cert  *CertLogin
	Token func() (string, error) // asked again when the token that it gave no longer serves
}

// JWTLogin logs in by the jwt method, with the broker's JWT-SVID.
type JWTLogin struct {
	Mount, Role, Audience string
	SVID                  func(ctx context.Context, audience string) (string, error)
}

// CertLogin logs in by the cert method, with the broker's X.509-SVID, which
// the TLS configuration presents.
type CertLogin struct{ Mount, Role string }

// A vaultSession is the broker's own token of a Vault. It logs in when a token
// is needed, renews in Run, and logs in again when a token no longer serves.
type vaultSession struct {
	login  Login
	call   func(ctx context.Context, token, method, path string, body any) (*vaultAnswer, error)
	log    *slog.Logger
	name   string
	flight singleflight.Group

	mu      sync.Mutex
	token   string
	made    time.Time // of the login; a renewal is none
	ends    time.Time // zero: never
	renewal time.Time // when to renew; zero: not
}

const (
	loginDeadline = 10 * time.Second
	loginPause    = 5 * time.Second // between logins because a token was refused
)

// get gives a token that serves, as far as is known.
func (s *vaultSession) get(ctx context.Context) (string, error) {
	if s.login.JWT == nil && s.login.Cert == nil && s.login.Token == nil {
		return "", nil // the agent has one
	}
	s.mu.Lock()
	token, serves := s.token, s.token != "" && (s.ends.IsZero() || time.Now().Before(s.ends))
	s.mu.Unlock()
	if serves {
		return token, nil
	}
	return s.again(ctx)
}

// again logs in, once for all who wait for it.
func (s *vaultSession) again(ctx context.Context) (string, error) {
	done := s.flight.DoChan("login", func() (any, error) {
		// Not the first caller's context: others wait for the same login.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loginDeadline)
		defer cancel()
		return s.enter(ctx)
	})
	select {
	case <-ctx.Done():
		return "", fmt.Errorf("%w: logging in to %s: %w", broker.ErrIssuerUnavailable, s.name, ctx.Err())
	case r := <-done:
		token, _ := r.Val.(string)
		return token, r.Err
	}
}

// refused says that the Vault refused a token. It gives another one if there
// is reason to believe that the token was at fault, and not its policies.
func (s *vaultSession) refused(ctx context.Context, token string) (string, bool) {
	s.mu.Lock()
	current, fresh := s.token, time.Since(s.made) < loginPause
	s.mu.Unlock()
	if token == "" || fresh && current == token {
		return "", false
	}
	if current != token {
		return current, true
	}
	other, err := s.again(ctx)
	return other, err == nil && other != token
}

func (s *vaultSession) enter(ctx context.Context) (string, error) {
	answer, err := s.present(ctx)
	if err != nil {
		// A login that fails says nothing about what a caller asked for.
		return "", fmt.Errorf("%w: logging in to %s: %w", broker.ErrIssuerUnavailable, s.name, unclassified(err))
	}
	s.keep(answer)
	s.mu.Lock()
	s.made = time.Now()
	s.mu.Unlock()
	s.log.InfoContext(ctx, "logged in", "issuer", s.name, "ttl", (time.Duration(answer.LeaseDuration) * time.Second).String(), "renewable", answer.Renewable)
	return answer.ClientToken, nil
}

// present proves the broker, and gives its token.
func (s *vaultSession) present(ctx context.Context) (*api.SecretAuth, error) {
	switch l := s.login; {
	case l.JWT != nil:
		svid, err := l.JWT.SVID(ctx, l.JWT.Audience)
		if err != nil {
			return nil, fmt.Errorf("getting a JWT-SVID: %w", err)
		}
		return s.auth(s.call(ctx, "", http.MethodPost, "auth/"+l.JWT.Mount+"/login", map[string]string{"role": l.JWT.Role, "jwt": svid}))
	case l.Cert != nil:
		return s.auth(s.call(ctx, "", http.MethodPost, "auth/"+l.Cert.Mount+"/login", map[string]string{"name": l.Cert.Role}))
	}
	token, err := s.login.Token()
	if err != nil {
		return nil, err
	}
	answer, err := s.call(ctx, token, http.MethodGet, "auth/token/lookup-self", nil)
	if err != nil {
		return nil, fmt.Errorf("looking up the token: %w", err)
	}
	ttl, _ := answer.Data["ttl"].(json.Number)
	seconds, _ := ttl.Int64()
	renewable, _ := answer.Data["renewable"].(bool)
	return &api.SecretAuth{ClientToken: token, LeaseDuration: int(seconds), Renewable: renewable}, nil
}

func (s *vaultSession) auth(answer *vaultAnswer, err error) (*api.SecretAuth, error) {
	if err != nil {
		return nil, err
	}
	if answer.Auth == nil || answer.Auth.ClientToken == "" {
		return nil, errors.New("the answer holds no token")
	}
	return answer.Auth, nil
}

// keep remembers the token. It counts as ended a little before it ends, and is
// renewed after two thirds of its life.
func (s *vaultSession) keep(a *api.SecretAuth) {
	now, life := time.Now(), time.Duration(a.LeaseDuration)*time.Second
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.ends, s.renewal = a.ClientToken, time.Time{}, time.Time{}
	if life > 0 {
		s.ends = now.Add(life - min(life/10, 10*time.Second))
		s.renewal = now.Add(life * 2 / 3)
	}
}

// renew gives the token more time, or replaces it by a new login.
func (s *vaultSession) renew(ctx context.Context) error {
	s.mu.Lock()
	token, due := s.token, !s.renewal.IsZero() && !time.Now().Before(s.renewal)
	s.mu.Unlock()
	if token == "" || !due {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, loginDeadline)
	defer cancel()
	auth, err := s.auth(s.call(ctx, token, http.MethodPost, "auth/token/renew-self", struct{}{}))
	if err == nil {
		left := time.Duration(auth.LeaseDuration) * time.Second
		s.mu.Lock()
		worthwhile := time.Now().Add(left).After(s.ends.Add(left / 2))
		s.mu.Unlock()
		if worthwhile {
			s.keep(&api.SecretAuth{ClientToken: token, LeaseDuration: auth.LeaseDuration})
			return nil
		}
	}
	// It can't be renewed, or not for long any more: its last renewal is over.
	_, err = s.again(ctx)
	return err
}
