package token

import (
	"errors"
	"hash/maphash"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
)

// Two tokens with the same fast hash are told apart.
func TestRememberedTokenIsTheSameToken(t *testing.T) {
	now := time.Now()
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), now)
	issuer := New(testIssuer, testAudience, keys)
	one, two := issuertest.Lease(now), issuertest.Lease(now)
	first, second := mint(t, issuer, one), mint(t, issuer, two)
	if _, err := issuer.Inspect(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	known, _ := keys.verified.get(maphash.String(tokenSeed, first))
	keys.verified.put(maphash.String(tokenSeed, second), known) // as if the hashes collided
	keys.verified.put(maphash.String(tokenSeed, "forged"), known)
	if id, err := issuer.Inspect(t.Context(), second); err != nil || id != two.ID || one.ID == two.ID {
		t.Errorf("got %s, %v, want %s", id, err, two.ID)
	}
	if id, err := issuer.Inspect(t.Context(), "forged"); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a forged token: got %s, %v", id, err)
	}
}

// A remembered token is inspected like a new one: issuer and audience count, another
// text with the same claims is not remembered, and a retired key ends the memory.
func TestInspectRemembersVerifiedTokens(t *testing.T) {
	now := time.Now()
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), now)
	issuer, other := New(testIssuer, testAudience, keys), New(testIssuer, "https://other.test", keys)
	l := issuertest.Lease(now)
	token := mint(t, issuer, l)
	if n := keys.verified.len(); n != 1 {
		t.Errorf("%d tokens are remembered, want the minted one", n)
	}
	keys.verified = verifiedTokens{} // as after a restart
	for range 2 {
		if id, err := issuer.Inspect(t.Context(), token); err != nil || id != l.ID {
			t.Fatalf("got %s, %v, want %s", id, err, l.ID)
		}
		if _, err := other.Inspect(t.Context(), token); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("the issuer of another audience: got %v", err)
		}
	}
	if n := keys.verified.len(); n != 1 {
		t.Errorf("%d tokens are remembered, want 1", n)
	}
	for name, bad := range map[string]string{
		"trailing text": token + "A", "leading space": " " + token, "another case": strings.ToUpper(token), "without signature": token[:strings.LastIndex(token, ".")+1],
	} {
		if _, err := issuer.Inspect(t.Context(), bad); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if n := keys.verified.len(); n != 1 {
		t.Errorf("%d tokens are remembered after invalid ones, want 1", n)
	}
	retired := *(*keys.ring.Load())[0]
	retired.row.Retires = now.Add(-time.Second)
	keys.ring.Store(&[]*signingKey{&retired})
	if _, err := issuer.Inspect(t.Context(), token); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("after its key was retired: got %v", err)
	}
}

// len returns the number of remembered tokens.
func (v *verifiedTokens) len() (n int) {
	for i := range v.places {
		if v.places[i].key != nil {
			n++
		}
	}
	return n
}

func TestNewestTokenOfAPlaceIsRemembered(t *testing.T) {
	var v verifiedTokens
	for n := range uint64(2 * maxVerified) {
		v.put(n, inspected{key: new(signingKey)})
		if _, ok := v.get(n); !ok {
			t.Fatalf("token %d is forgotten at once", n)
		}
	}
	if n := v.len(); n != maxVerified {
		t.Errorf("%d tokens are remembered, want %d", n, maxVerified)
	}
	if _, ok := v.get(0); ok {
		t.Error("the replaced token is remembered")
	}
}

func BenchmarkInspect(b *testing.B) {
	now := time.Now()
	keys := openKeys(b, testConfig(b, issuertest.Store(b), "ES256"), now)
	issuer := New(testIssuer, testAudience, keys)
	token := mint(b, issuer, issuertest.Lease(now))
	b.Run("remembered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := issuer.Inspect(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("of another issuer", func(b *testing.B) {
		other := New(testIssuer, "https://other.test", keys)
		for b.Loop() {
			if _, err := other.Inspect(b.Context(), token); err == nil {
				b.Fatal("accepted")
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			clear(keys.verified.places)
			if _, err := issuer.Inspect(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
}
