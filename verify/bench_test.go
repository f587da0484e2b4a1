package verify

import (
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"testing"
)

// BenchmarkToken measures what a service spends on each call: nearly all of it is the
// signature.
//
//	go test ./verify -run '^$' -bench Token -benchmem
func BenchmarkToken(b *testing.B) {
	i := newIssuer(b)
	key := newECKey(b)
	jwk, err := parseObject(jsonOf(b, jwkOf(&key.PublicKey, "")))
	if err != nil {
		b.Fatal(err)
	}
	uri := i.list("1", make([]byte, 1<<17), nil)
	for name, token := range map[string]string{
		"plain":  i.token(nil),
		"listed": i.token(at(uri, 7)),
		"dpop":   i.token(object{"cnf": object{"jkt": thumbprint(&jwk)}}),
	} {
		b.Run(name, func(b *testing.B) {
			v := i.verifier(func(c *Config) { c.DPoP.Replays = forgetful{} })
			p := Presentation{}
			if name == "dpop" {
				sum := sha256.Sum256([]byte(token))
				p = Presentation{Scheme: "DPoP", Method: "GET", URL: calledURL, Proof: i.sign(
					object{"typ": "dpop+jwt", "alg": "ES256", "jwk": jwkOf(&key.PublicKey, "")},
					object{"jti": "1", "htm": "GET", "htu": calledURL, "iat": i.clock().Unix(), "ath": base64.RawURLEncoding.EncodeToString(sum[:])}, key)}
			}
			check := func() {
				if _, err := v.Token(b.Context(), token, p, "tickets:read"); err != nil {
					b.Fatal(err)
				}
			}
			check() // fetches the keys and the list
			b.ReportAllocs()
			for b.Loop() {
				check()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

// BenchmarkReplays measures how proofs are remembered.
func BenchmarkReplays(b *testing.B) {
	i := newIssuer(b)
	r := newReplays(i.clock)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		if n++; n%maxProofs == 0 {
			i.pass(defaultLasts)
		}
		if first, err := r.Use(b.Context(), sha256.Sum256(strconv.AppendInt(nil, int64(n), 10)), i.now.Add(defaultLasts)); !first || err != nil {
			b.Fatal(first, err)
		}
	}
}
