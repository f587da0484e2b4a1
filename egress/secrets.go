package egress

import (
	"maps"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/egress/scrub"
)

// The secrets are those of all calls of a Transport, and of all credentials at hand. A
// host can return the credential of an earlier call, so each answer is searched for all
// of them.
type secrets struct {
	mu      sync.Mutex
	live    map[string]time.Time // when each can be forgotten
	current *scrub.Scrubber
}

// keepSecret is how long a secret is remembered after its expiry, and after its last use:
// clocks of hosts differ. Each secret takes about 40 KB while it is remembered.
const keepSecret = 2 * time.Minute

// scrubber returns a scrubber of all secrets, including those of the credentials and the
// further ones, which a credential of an entitlement makes.
func (s *secrets) scrubber(held []*api.Credential, c *api.Credential, further []string) *scrub.Scrubber {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	isNew := s.current == nil
	note := func(secret string, expires time.Time) {
		if _, known := s.live[secret]; !known {
			isNew = true
		}
		if expires.Before(now) { // a credential in use, whatever its expiry
			expires = now
		}
		s.live[secret] = expires.Add(keepSecret)
	}
	if s.live == nil {
		s.live = map[string]time.Time{}
	}
	for _, c := range append(held, c) {
		for _, secret := range scrub.Secrets(c) {
			note(secret, c.ExpiresAt)
		}
	}
	for _, secret := range further {
		note(secret, c.ExpiresAt)
	}
	if isNew {
		maps.DeleteFunc(s.live, func(_ string, until time.Time) bool { return now.After(until) })
		s.current = scrub.New(slices.Sorted(maps.Keys(s.live))...)
	}
	return scrub.Following(s.newest)
}

// newest returns the scrubber of all secrets so far.
func (s *secrets) newest() *scrub.Scrubber {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}
