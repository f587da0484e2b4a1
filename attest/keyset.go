package attest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/internal/strictjson"
)

// Limits of a provider's keys.
const (
	keyInterval = time.Second      // shortest time between two fetches
	keysFresh   = 10 * time.Minute // after which they are fetched again, so that a withdrawn key goes
	keysMaxAge  = time.Hour        // after which they are no longer trusted if fetching fails
)

// A keySet holds the public keys of an OpenID provider. It implements oidc.KeySet. It is
// safe for concurrent use.
//
// It does not use go-oidc's key set, for which one broken key spoils all, and which
// keeps a withdrawn key until it sees an unknown kid.
type keySet struct {
	p    *provider
	last atomic.Pointer[keyState]

	mu    sync.Mutex // guards url, tried and changes of last; held during a fetch
	url   string
	tried time.Time // end of the last fetch
}

// A keyState is the outcome of the last fetch. It is immutable.
type keyState struct {
	keys    []jwks.Key // of the last successful fetch, like leftOut
	leftOut []jwks.LeftOut
	read    time.Time // last successful fetch
	failed  error     // of the last fetch
}

var errKeyRate = errors.New("the provider's keys were fetched less than a second ago")

func newKeySet(p *provider) *keySet {
	s := &keySet{p: p}
	s.last.Store(&keyState{})
	return s
}

// setURL sets the address of the keys. Keys of another address are dropped.
func (s *keySet) setURL(url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.url != url {
		s.url, s.tried = url, time.Time{}
		s.last.Store(&keyState{})
	}
}

// VerifySignature verifies a token and returns its payload, which is strict JSON. If no
// current key verifies the token, it fetches the keys again (OpenID Connect Core 1.0,
// section 10.1.1).
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	signed, err := jwks.ParseCompact(token)
	if err != nil {
		return nil, err
	}
	if s.last.Load().verify(signed, time.Now()) != nil {
		if err := s.verifyFresh(ctx, signed); err != nil {
			return nil, err
		}
	}
	return signed.Payload, checkPayload(signed.Payload)
}

var errKeysOld = errors.New("the keys are too old")

// verify verifies a token with keys that need no refresh.
func (k *keyState) verify(signed *jwks.Signed, now time.Time) error {
	if now.Sub(k.read) >= keysFresh {
		return errKeysOld
	}
	return signed.Verify(k.keys)
}

// verifyFresh verifies a token with the keys that it fetches. If that fails, the last
// keys are used until they are too old.
func (s *keySet) verifyFresh(ctx context.Context, signed *jwks.Signed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.last.Load().verify(signed, now) == nil { // fetched by another login
		return nil
	}
	fetchErr := s.fetch(ctx, now)
	k := s.last.Load()
	if now.Sub(k.read) >= keysMaxAge {
		return s.p.unavailable("reading its keys", fetchErr)
	}
	if err := signed.Verify(k.keys); err != nil {
		if fetchErr != nil { // the provider may have published another key meanwhile
			return s.p.unavailable("reading its keys", fetchErr)
		}
		return err
	}
	return nil
}

// fetch fetches the keys, at most once per keyInterval: anyone can send tokens with an
// unknown kid. The caller holds mu.
func (s *keySet) fetch(ctx context.Context, now time.Time) error {
	k := *s.last.Load()
	if now.Sub(s.tried) < keyInterval {
		return cmp.Or(k.failed, errKeyRate)
	}
	set, err := s.p.fetchKeys(ctx, s.url)
	s.tried = time.Now() // those who waited for a slow fetch use its outcome
	if k.failed = err; err != nil {
		s.p.log.Warn("the provider's keys can't be read", "provider", s.p.cfg.Name, "err", err)
		s.last.Store(&k)
		return err
	}
	if !slices.Equal(k.leftOut, set.LeftOut) {
		s.p.log.Warn("keys of the provider are left out", "provider", s.p.cfg.Name, "count", len(set.LeftOut), "keys", describe(set.LeftOut))
	}
	s.last.Store(&keyState{keys: set.Keys, leftOut: set.LeftOut, read: now})
	return nil
}

// source describes the keys for metrics. ok is false if none were fetched yet.
func (s *keySet) source(now time.Time) (source KeySource, ok bool) {
	k := s.last.Load()
	source = KeySource{Name: s.p.cfg.Name, Keys: map[string]int{"sig": len(k.keys)}, LeftOut: countReasons(k.leftOut)}
	if k.failed != nil {
		source.Age = now.Sub(k.read)
	}
	return source, !k.read.IsZero()
}

// fetchKeys fetches a JWK Set.
func (p *provider) fetchKeys(ctx context.Context, url string) (*jwks.Set, error) {
	body, _, err := p.get(ctx, url, func(*http.Request) {})
	if err != nil {
		return nil, err
	}
	return jwks.Parse(body, "", "sig")
}

// get fetches a document from the provider, and returns its media type.
func (p *provider) get(ctx context.Context, url string, prepare func(*http.Request)) (body []byte, mediaType string, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), providerTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, "", err
	}
	prepare(req)
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("the provider responded with %d", resp.StatusCode)
	}
	body, err = io.ReadAll(resp.Body) // limited by the transport
	mediaType, _, _ = strings.Cut(resp.Header.Get("Content-Type"), ";")
	return body, strings.ToLower(strings.TrimSpace(mediaType)), err
}

// claimNames are the claims that go-oidc reads. It ignores their case, so that "SUB"
// after "sub" would change the subject.
var claimNames = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "nonce", "at_hash", "jti", "sid", "events", "_claim_names", "_claim_sources", "email", "email_verified", "profile"}

// checkPayload returns an error if parsers may read the claims differently.
func checkPayload(payload []byte) error {
	members, err := strictjson.Members(payload, maxDepth)
	if err != nil {
		return fmt.Errorf("the payload of the token %w", err)
	}
	for _, m := range members {
		for _, name := range claimNames {
			if m.Name != name && strings.EqualFold(m.Name, name) {
				return fmt.Errorf("the payload of the token has the claim %q in another case", name)
			}
		}
	}
	return nil
}

// KeySources describes the keys of the providers that were used since the start.
func (p *People) KeySources(now time.Time) (list []KeySource) {
	for _, op := range p.providers {
		if k, ok := op.keys.source(now); ok {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, func(a, b KeySource) int { return strings.Compare(a.Name, b.Name) })
	return list
}
