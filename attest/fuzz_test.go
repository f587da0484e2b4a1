package attest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// FuzzJWT verifies arbitrary tokens. Only tokens that were signed byte for byte may
// verify, and no error may contain a part of the token.
func FuzzJWT(f *testing.F) {
	w := newWorld(f)
	now := time.Now()
	good := map[string]bool{}
	for _, form := range forms {
		token := w.sign(w.fill(form.header, now), w.fill(form.claims, now))
		good[token] = form.want == ""
		f.Add(token)
	}
	f.Add(strings.Repeat(".", MaxTokenSize))
	f.Add(`{"payload":"","signatures":[]}`)
	f.Fuzz(func(t *testing.T, token string) {
		who, err := w.verifier.jwt(token, now)
		if err == nil {
			if !good[token] || who.ID != triage {
				t.Errorf("%q: got identity %+v", token, who)
			}
			return
		}
		var failure *Failure
		if !errors.As(err, &failure) || !errors.Is(err, broker.ErrUnauthenticated) || failure.Cause == "" || who.ID != "" {
			t.Errorf("%q: got %v and identity %+v, want a Failure", token, err, who)
		}
		for part := range strings.SplitSeq(token, ".") {
			if len(part) > 24 && strings.Contains(err.Error(), part) {
				t.Errorf("the error %v contains a part of the token", err)
			}
		}
	})
}

// FuzzClaims verifies tokens with a valid signature over arbitrary text. If such a
// token verifies, the identity and the expiry must be within bounds.
func FuzzClaims(f *testing.F) {
	w := newWorld(f)
	now := time.Now()
	for _, form := range forms {
		f.Add(w.fill(form.header, now), w.fill(form.claims, now))
	}
	f.Fuzz(func(t *testing.T, header, claims string) {
		signer := &world{t: t, ca: w.ca}
		who, err := w.verifier.jwt(signer.sign(header, claims), now)
		switch {
		case err != nil:
			var failure *Failure
			if !errors.As(err, &failure) || who.ID != "" {
				t.Errorf("got %v and identity %+v, want a Failure", err, who)
			}
		case who.TrustDomain != "acme.test" || !strings.HasPrefix(who.ID, "spiffe://acme.test/") || len(who.Paths) == 0:
			t.Errorf("got identity %+v", who)
		case !who.Proof.Valid(now) || who.Proof.Expires.Sub(now) > MaxLifetime+Leeway:
			t.Errorf("got expiry %s", who.Proof.Expires)
		}
	})
}
