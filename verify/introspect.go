package verify

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/url"
	"sync"
	"time"
)

// activeTokens asks the issuer whether tokens are active (RFC 7662).
type activeTokens struct {
	v *Verifier

	mu    sync.Mutex
	until map[[32]byte]time.Time // tokens that were active, by their SHA-256
}

const maxActive = 1 << 16

// check introspects a token. It fails closed: without an answer, the token is refused.
func (a *activeTokens) check(ctx context.Context, c *Claims, token string, now time.Time) error {
	id := sha256.Sum256([]byte(token))
	if a.isKnown(id, now) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	answer, err := a.introspect(ctx, token, now)
	if err != nil {
		return unavailable("introspecting the token", err)
	}
	if active, ok := answer.get("active"); !ok || active.kind != 't' {
		return invalid("it is revoked")
	}
	// The answer must be about this token.
	for name, want := range map[string]string{"iss": c.Issuer, "sub": c.Subject, "client_id": c.ClientID, "jti": c.ID} {
		if got, has := answer.get(name); has && (got.kind != '"' || got.text != want) {
			return invalid("the introspection is about another token")
		}
	}
	a.remember(id, now, min(a.v.cfg.Introspection.CacheFor, c.Expires.Sub(now)))
	return nil
}

func (a *activeTokens) isKnown(id [32]byte, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Before(a.until[id])
}

func (a *activeTokens) remember(id [32]byte, now time.Time, lasts time.Duration) {
	if lasts <= 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil || len(a.until) >= maxActive {
		a.until = map[[32]byte]time.Time{} // forgetting costs an introspection
	}
	a.until[id] = now.Add(lasts)
}

func (a *activeTokens) introspect(ctx context.Context, token string, now time.Time) (answer value, err error) {
	address, bearer := a.v.cfg.Introspection.URL, ""
	if address == "" {
		m, err := a.v.keys.metadata(ctx, now)
		if err != nil {
			return answer, err
		}
		if address = m.introspection; address == "" {
			return answer, errors.New("the issuer has no introspection endpoint")
		}
	}
	if authorize := a.v.cfg.Introspection.Authorize; authorize != nil {
		if bearer, err = authorize(ctx); err != nil {
			return answer, err
		}
	}
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	resp, err := a.v.post(ctx, address, form, bearer)
	if err != nil {
		return answer, err
	}
	if resp.status != 200 || !resp.hasType("application/json") {
		return answer, errors.New("the answer is not an introspection")
	}
	return parseObject(resp.body)
}
