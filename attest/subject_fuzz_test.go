package attest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker"
)

// FuzzSubjectClaims reads arbitrary claims of signed tokens. Whatever it accepts names an issuer's
// person, one audience, one client, and bounded times, and no error contains a part of the claims.
func FuzzSubjectClaims(f *testing.F) {
	const good = `{"iss":"https://login.acme.test","sub":"ana","aud":"https://broker.acme.test","client_id":"c","jti":"1","exp":1800000300,"iat":1800000000`
	for _, more := range []string{
		`}`, `,"resource":["https://a.test"],"scope":"a b"}`, `,"may_act":{"sub":"spiffe://acme.test/a"}}`, `,"cnf":{"jkt":"x"}}`, `,"sub":"eve"}`,
		`,"aud":["a","b"]}`, `,"azp":"d"}`, `,"exp":1e400}`, `,"nonce":"n"}`, `,"scope":"","act":{"act":{}}}`, `,"groups":["\ud800"]}`, `,"tenant":null}`, "",
	} {
		f.Add("oauth-id-jag+jwt", good+more)
		f.Add("at+jwt", good+more)
	}
	p := &provider{cfg: ProviderConfig{Name: "login", Issuer: "https://login.acme.test"}}
	actor := broker.Identity{ID: "spiffe://acme.test/a", TrustDomain: "acme.test"}
	f.Fuzz(func(t *testing.T, typ, claims string) {
		for method, k := range subjectKinds {
			c, err := k.readSubjectClaims(&jwks.Signed{Type: typ, Payload: []byte(claims)})
			if err == nil {
				_ = p.checkActor(k, &c, &broker.SubjectToken{Actor: actor})
				_ = k.checkConfirmation(c.raw["cnf"], &broker.SubjectToken{Actor: actor})
				_, err = p.subject(&c, time.Unix(1800000000, 0))
				if c.subject == "" || c.audience == "" || c.client == "" || c.subject == c.client || c.expires.IsZero() || c.issued.IsZero() {
					t.Errorf("%s: accepted %q", method, claims)
				}
				if method == broker.MethodIDJAG && c.id == "" || slices.Contains(c.scopes, "") || slices.Contains(c.resources, "") {
					t.Errorf("%s: accepted %q", method, claims)
				}
				if err == nil && checkSubject(c.subject) != nil {
					t.Errorf("%s: accepted the person of %q", method, claims)
				}
				continue
			}
			var failure *Failure
			if !errors.As(err, &failure) || errors.Is(err, broker.ErrUnauthenticated) || failure.Cause == "" {
				t.Errorf("%q: got %v, want a Failure", claims, err)
			}
			if len(claims) > 32 && strings.Contains(err.Error(), claims) {
				t.Errorf("the error %v contains the claims", err)
			}
		}
	})
}
