package attest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// FuzzJWT takes tokens of any bytes. Nothing gets in that was not signed as it
// stands, and no refusal repeats what it refuses.
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
				t.Errorf("%q proved %+v", token, who)
			}
			return
		}
		var failure *Failure
		if !errors.As(err, &failure) || !errors.Is(err, broker.ErrUnauthenticated) || failure.Cause == "" || who.ID != "" {
			t.Errorf("%q: %v is not a failure, or proved %+v", token, err, who)
		}
		for part := range strings.SplitSeq(token, ".") {
			if len(part) > 24 && strings.Contains(err.Error(), part) {
				t.Errorf("%v repeats the token", err)
			}
		}
	})
}

// FuzzClaims takes claims of any text under a signature that holds: what
// decides must be read as the library reads it, or not at all.
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
				t.Errorf("%v is not a failure, or proved %+v", err, who)
			}
		case who.TrustDomain != "acme.test" || !strings.HasPrefix(who.ID, "spiffe://acme.test/") || len(who.Paths) == 0:
			t.Errorf("proved %+v", who)
		case !who.Proof.Valid(now) || who.Proof.Expires.Sub(now) > MaxLifetime:
			t.Errorf("proved until %s", who.Proof.Expires)
		}
	})
}
