package dpop

import (
	"strings"
	"testing"
)

// A remembered header verifies only what its key has signed, and never another key's proof.
func TestRememberedHeaderIsThatOfItsKey(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"ES256", "Ed25519", "PS256"} {
		v, c, other := newVerifier(t, external, 1), newClient(t, alg), newClient(t, alg)
		text := c.sign(t, c.header(), claims(v.Nonce(noon)))
		first, err := v.headers.parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if len(v.headers.now) != 1 {
			t.Fatalf("%s: %d headers are remembered, want 1", alg, len(v.headers.now))
		}
		again, err := v.headers.parse(c.sign(t, c.header(), claims(v.Nonce(noon))))
		if err != nil || again.thumbprint != first.thumbprint {
			t.Errorf("%s: got %+v, %v, want the thumbprint %s", alg, again, err, first.thumbprint)
		}
		if p, err := v.headers.parse(other.sign(t, c.header(), claims(v.Nonce(noon)))); err == nil {
			t.Errorf("%s: another key's signature is accepted as that of %s", alg, p.thumbprint)
		}
		if p, err := v.headers.parse(other.sign(t, other.header(), claims(v.Nonce(noon)))); err != nil || p.thumbprint == first.thumbprint {
			t.Errorf("%s: another key: got %+v, %v", alg, p, err)
		}
		body := text[strings.IndexByte(text, '.'):]
		if _, err := v.headers.parse("=" + text); err == nil {
			t.Errorf("%s: a header that is not base64url is accepted", alg)
		}
		if _, err := v.headers.parse(body); err == nil {
			t.Errorf("%s: an empty header is accepted", alg)
		}
	}
}

// A header that no valid signature came with is not remembered: anyone can send it.
func TestHeadersAreBounded(t *testing.T) {
	t.Parallel()
	v, c, other := newVerifier(t, external, 1), newClient(t, "ES256"), newClient(t, "ES256")
	if _, err := v.headers.parse(other.sign(t, c.header(), claims(v.Nonce(noon)))); err == nil || len(v.headers.now) != 0 {
		t.Errorf("got %v, and %d headers are remembered", err, len(v.headers.now))
	}
	var s headers
	s.keep(strings.Repeat("x", maxHeader+1), &header{})
	if len(s.now) != 0 {
		t.Error("a long header is remembered")
	}
	h := &header{algorithm: "ES256"}
	s.keep("used", h)
	for n := range 5 * maxHeaders {
		s.keep(strings.Repeat("x", n%maxHeader)+strings.Repeat("y", n/maxHeader), &header{})
		if s.find("used") != h {
			t.Fatalf("a header that is used is forgotten after %d others", n)
		}
		if len(s.now) > maxHeaders || len(s.earlier) > maxHeaders {
			t.Fatalf("got %d and %d headers, want at most %d in each generation", len(s.now), len(s.earlier), maxHeaders)
		}
	}
	if s.earlier == nil {
		t.Error("no generation was full")
	}
}
