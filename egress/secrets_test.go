package egress

import (
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// A credential in use is removed from answers, also one without expiry or past it, when
// another one is new.
func TestSecretsInUseAreNotForgotten(t *testing.T) {
	var s secrets
	credential := func(secret string, expires time.Time) *api.Credential {
		return &api.Credential{Type: "bearer", Secret: api.Secret{"token": secret}, ExpiresAt: expires}
	}
	now := time.Now()
	for _, c := range []*api.Credential{
		credential("without-any-expiry", time.Time{}), credential("expired-an-hour-ago", now.Add(-time.Hour)), credential("still-valid-today", now.Add(time.Hour)), credential("without-any-expiry", time.Time{}),
	} {
		secret := c.Secret["token"]
		if got := s.scrubber(nil, c, nil).String("x " + secret); strings.Contains(got, secret) {
			t.Errorf("got %q", got)
		}
	}
	if got := s.scrubber([]*api.Credential{credential("held-by-another-call", now.Add(time.Hour))}, credential("of-this-call", now), []string{"user:of-this-call"}).
		String("still-valid-today held-by-another-call of-this-call"); strings.Trim(got, "* ") != "" {
		t.Errorf("got %q", got)
	}
	if len(s.live) != 6 {
		t.Errorf("got %d secrets, want 6", len(s.live))
	}
}

func TestExpiredSecretsAreForgotten(t *testing.T) {
	s := secrets{live: map[string]time.Time{"long-gone-secret": time.Now().Add(-time.Second)}}
	s.scrubber(nil, &api.Credential{Type: "bearer", Secret: api.Secret{"token": "a-new-credential"}}, nil)
	if _, kept := s.live["long-gone-secret"]; kept || len(s.live) != 1 {
		t.Errorf("got %v", s.live)
	}
}
