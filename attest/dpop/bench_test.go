package dpop

import "testing"

// BenchmarkCheck measures a proof by the algorithm of its key. Almost all of it is the
// verification of the signature.
func BenchmarkCheck(b *testing.B) {
	for _, alg := range []string{"ES256", "Ed25519", "PS256"} {
		b.Run(alg, func(b *testing.B) {
			v, c := newVerifier(b, external, 1), newClient(b, alg)
			proof := c.sign(b, c.header(), claims(v.Nonce(noon)))
			b.ReportAllocs()
			for b.Loop() {
				v.seen = seen{}
				if _, err := v.Check(request(proof), noon); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
