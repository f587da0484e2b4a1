package egress

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/api"
)

// A scrubber removes secrets from answers.
type scrubber interface {
	Response(*http.Response) error
}

// The secrets are those of all calls of a Transport. A host can return the credential of
// an earlier call, so each answer is searched for all of them.
type secrets struct {
	mu      sync.Mutex
	live    map[string]time.Time // when each expires
	current scrubber
}

// maxSecrets bounds the secrets that are remembered.
const maxSecrets = 4096

// keepSecret is how long a secret is remembered after its expiry.
const keepSecret = 10 * time.Minute

// scrubber returns a scrubber of all secrets, including those of the credential.
func (s *secrets) scrubber(g *grant, c *api.Credential) scrubber {
	s.mu.Lock()
	defer s.mu.Unlock()
	isNew := false
	for _, secret := range g.secretsOf(c) {
		if _, known := s.live[secret]; !known {
			isNew = true
		}
	}
	if !isNew && s.current != nil {
		return s.current
	}
	if s.live == nil {
		s.live = map[string]time.Time{}
	}
	now := time.Now()
	maps.DeleteFunc(s.live, func(_ string, until time.Time) bool { return now.After(until) })
	for _, secret := range g.secretsOf(c) {
		s.live[secret] = c.ExpiresAt.Add(keepSecret)
	}
	s.current = newScrubber(slices.Sorted(maps.Keys(s.live))...)
	return s.current
}

// plain is a scrubber of secrets in their own form.
type plain struct{ secrets []string }

func newScrubber(secrets ...string) scrubber { return &plain{secrets} }

func (p *plain) Response(r *http.Response) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	for _, secret := range p.secrets {
		body = bytes.ReplaceAll(body, []byte(secret), bytes.Repeat([]byte{'*'}, len(secret)))
		for _, values := range r.Header {
			for i := range values {
				values[i] = strings.ReplaceAll(values[i], secret, strings.Repeat("*", len(secret)))
			}
		}
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(body), r.Body}
	return nil
}
