package attest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/internal/strictjson"
)

// A keySet holds the public keys of an OpenID provider. It implements oidc.KeySet. It is
// safe for concurrent use.
type keySet struct {
	p      *provider
	remote *jwks.Remote

	mu  sync.Mutex
	url string // guarded by mu
}

func newKeySet(p *provider) *keySet {
	s := &keySet{p: p}
	s.remote = jwks.NewRemote(func(ctx context.Context) (*jwks.Set, error) { return p.fetchKeys(ctx, s.address()) }, s.log)
	return s
}

func (s *keySet) address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.url
}

// setURL sets the address of the keys. Keys of another address are dropped.
func (s *keySet) setURL(url string) {
	s.mu.Lock()
	changed := s.url != url
	s.url = url
	s.mu.Unlock()
	if changed {
		s.remote.Reset()
	}
}

// log logs the outcome of a fetch.
func (s *keySet) log(set *jwks.Set, err error) {
	if err != nil {
		s.p.log.Warn("the provider's keys can't be read", "provider", s.p.cfg.Name, "err", err)
		return
	}
	s.p.log.Warn("keys of the provider are left out", "provider", s.p.cfg.Name, "count", len(set.LeftOut), "keys", describe(set.LeftOut))
}

// VerifySignature verifies a token and returns its payload, which is strict JSON.
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	signed, err := jwks.ParseCompact(token)
	if err != nil {
		return nil, err
	}
	if err := s.verify(ctx, signed); err != nil {
		return nil, err
	}
	return signed.Payload, checkPayload(signed.Payload)
}

// verify verifies the signature of a token.
func (s *keySet) verify(ctx context.Context, signed *jwks.Signed) error {
	err := s.remote.Verify(ctx, signed)
	if failed := (*jwks.FetchError)(nil); errors.As(err, &failed) {
		return s.p.unavailable("reading its keys", failed.Err)
	}
	return err
}

// source describes the keys for metrics. ok is false if none were fetched yet.
func (s *keySet) source(now time.Time) (source KeySource, ok bool) {
	k, ok := s.remote.Status(now)
	return KeySource{Name: s.p.cfg.Name, Keys: map[string]int{"sig": k.Keys}, LeftOut: countReasons(k.LeftOut), Age: k.Age}, ok
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
		if err := checkCase(m.Name); err != nil {
			return err
		}
	}
	return nil
}

// checkCase returns an error for the name of a claim in another case.
func checkCase(claim string) error {
	if !strings.ContainsFunc(claim, func(r rune) bool { return r < '_' || r > 'z' }) {
		return nil // in lower case, as all of them
	}
	for _, name := range claimNames {
		if claim != name && strings.EqualFold(claim, name) {
			return fmt.Errorf("the payload of the token has the claim %q in another case", name)
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
