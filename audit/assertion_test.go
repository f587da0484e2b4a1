package audit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"accessbroker.internal/internal/softkey"
)

func newKey(t *testing.T) (key *softkey.Key, public []byte) {
	t.Helper()
	key, err := softkey.New("broker.test", "https://broker.test")
	if err != nil {
		t.Fatal(err)
	}
	if public, err = key.Public(); err != nil {
		t.Fatal(err)
	}
	return key, public
}

func sign(t *testing.T, key *softkey.Key, challenge Digest) *SignatureFacts {
	t.Helper()
	data, client, signature, err := key.Sign(challenge[:])
	if err != nil {
		t.Fatal(err)
	}
	return &SignatureFacts{AuthenticatorData: data, ClientData: client, Credential: key.ID, Nonce: digest(42), Signature: signature}
}

func TestAssertionVerifyRejectsChanges(t *testing.T) {
	challenge := digest(5)
	for name, change := range map[string]func(k *softkey.Key, s *SignatureFacts){
		"another site":       func(k *softkey.Key, _ *SignatureFacts) { k.Origin = "https://broker.test.evil.test" },
		"a site without TLS": func(k *softkey.Key, _ *SignatureFacts) { k.Origin = "http://broker.test" },
		"another party":      func(k *softkey.Key, _ *SignatureFacts) { k.RP = "evil.test" },
		"no user verified":   func(k *softkey.Key, _ *SignatureFacts) { k.Flags = softkey.Present },
		"no user present":    func(k *softkey.Key, _ *SignatureFacts) { k.Flags = softkey.Verified },
		"no data":            func(_ *softkey.Key, s *SignatureFacts) { s.AuthenticatorData = nil },
		"truncated data":     func(_ *softkey.Key, s *SignatureFacts) { s.AuthenticatorData = s.AuthenticatorData[:33] },
		"no client data":     func(_ *softkey.Key, s *SignatureFacts) { s.ClientData = nil },
		"other client data":  func(_ *softkey.Key, s *SignatureFacts) { s.ClientData = append(s.ClientData, ' ') },
		"no signature":       func(_ *softkey.Key, s *SignatureFacts) { s.Signature = nil },
		"one more flag":      func(_ *softkey.Key, s *SignatureFacts) { s.AuthenticatorData[32] |= 0x80 },
		"a creation, embedded": func(_ *softkey.Key, s *SignatureFacts) {
			s.ClientData = []byte(strings.Replace(string(s.ClientData), "webauthn.get", "webauthn.create", 1))
		},
	} {
		key, public := newKey(t)
		unsigned := &SignatureFacts{AuthenticatorData: make([]byte, 37)}
		change(key, unsigned) // changes the key's settings, before it signs
		s := sign(t, key, challenge)
		if err := s.Verify(challenge, public, "broker.test"); err == nil {
			change(key, s) // changes the assertion
		}
		if err := s.Verify(challenge, public, "broker.test"); err == nil {
			t.Errorf("%s: the assertion verifies", name)
		}
	}
	for _, origin := range []string{"https://broker.test", "https://broker.test:8443", "https://pages.broker.test"} {
		key, public := newKey(t)
		key.Origin = origin
		s := sign(t, key, challenge)
		if err := s.Verify(challenge, public, "broker.test"); err != nil {
			t.Errorf("%s: %v", origin, err)
		}
		if err := s.Verify(challenge, nil, "broker.test"); err == nil {
			t.Error("the assertion verifies without a key")
		}
	}
}

// A valid signature over other data is not a signature of the challenge.
func TestAssertionOfAnotherChallenge(t *testing.T) {
	key, public := newKey(t)
	s := sign(t, key, digest(5))
	if err := s.Verify(digest(6), public, "broker.test"); err == nil || err.Error() != "it signs something else" {
		t.Errorf("got %v", err)
	}
	_, other := newKey(t)
	if err := s.Verify(digest(5), other, "broker.test"); !errors.Is(err, errSignature) {
		t.Errorf("another key: got %v, want %v", err, errSignature)
	}
}

func TestCounterOfAssertion(t *testing.T) {
	data := append(make([]byte, 33), 1, 2, 3, 4)
	for n, want := range map[int]uint32{37: 0x01020304, 36: 0, 0: 0} {
		if got := (&SignatureFacts{AuthenticatorData: data[:n]}).Counter(); got != want {
			t.Errorf("%d bytes: got %d, want %d", n, got, want)
		}
	}
}

func TestOriginsOfARelyingParty(t *testing.T) {
	for _, test := range []struct {
		origin, rp string
		want       bool
	}{
		{"https://broker.test", "broker.test", true},
		{"http://broker.test", "broker.test", false},
		{"http://localhost:8443", "localhost", true},
		{"ftp://localhost", "localhost", false},
		{"http://localhost.evil.test", "evil.test", false},
		{"https://[", "broker.test", false},
		{"https://a.broker.test:8443", "broker.test", true},
		{"https://Broker.test", "broker.test", false},
		{"https://broker.test/", "broker.test", false},
		{"https://broker.test?", "broker.test", false},
		{"https://broker.test#", "broker.test", false},
		{"https://x@broker.test", "broker.test", false},
		{"https://broker.test.", "broker.test", false},
		{"HTTPS://broker.test", "broker.test", false},
		{"https://", "", false},
		{"https://evilbroker.test", "broker.test", false},
	} {
		if got := originOf(test.origin, test.rp); got != test.want {
			t.Errorf("%s for %s: got %t, want %t", test.origin, test.rp, got, test.want)
		}
	}
}

// The kinds of keys that passkeys use verify; weaker ones do not.
func TestKindsOfPublicKeys(t *testing.T) {
	message := []byte("message")
	hash := sha256.Sum256(message)
	signECDSA := func(c elliptic.Curve) (crypto.PublicKey, []byte) {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := ecdsa.SignASN1(rand.Reader, key, hash[:])
		if err != nil {
			t.Fatal(err)
		}
		return key.Public(), signature
	}
	signRSA := func(bits int) (crypto.PublicKey, []byte) {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, hash[:])
		if err != nil {
			t.Fatal(err)
		}
		return key.Public(), signature
	}
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		sign func() (crypto.PublicKey, []byte)
		want bool
	}{
		{"P-256", func() (crypto.PublicKey, []byte) { return signECDSA(elliptic.P256()) }, true},
		{"P-384", func() (crypto.PublicKey, []byte) { return signECDSA(elliptic.P384()) }, false},
		{"Ed25519", func() (crypto.PublicKey, []byte) { return edPublic, ed25519.Sign(edKey, message) }, true},
		{"RSA of 2048 bits", func() (crypto.PublicKey, []byte) { return signRSA(2048) }, true},
		{"RSA of 1024 bits", func() (crypto.PublicKey, []byte) { return signRSA(1024) }, false},
	} {
		public, signature := test.sign()
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		if err := verifySignature(der, message, signature); (err == nil) != test.want {
			t.Errorf("%s: got %v, want a valid signature: %t", test.name, err, test.want)
		}
		if err := verifySignature(der, []byte("another"), signature); !errors.Is(err, errSignature) {
			t.Errorf("%s: another message: got %v, want %v", test.name, err, errSignature)
		}
	}
}

// The documented form of a challenge lets auditors verify signatures with their own
// tools.
func TestChallengesHaveTheDocumentedForm(t *testing.T) {
	f := ApprovalFacts{Decision: "unjustified", Digest: digest(1), Comment: digest(2), Groups: []string{"dba"}}
	object := fmt.Sprintf(`{"comment":"%s","decision":"unjustified","digest":"%s","nonce":"%s","person":"login/ana","request":"req_1"}`, digest(2), digest(1), digest(3))
	for domain, challenge := range map[string]func(person, request string, nonce Digest) Digest{
		"accessbroker/approval/v1\n": f.Challenge, "accessbroker/review/v1\n": f.ReviewChallenge,
	} {
		if got, want := challenge("login/ana", "req_1", digest(3)), Digest(sha256.Sum256([]byte(domain+object))); got != want {
			t.Errorf("%q: got %s, want %s", domain, got, want)
		}
	}
}

// Parsers may not read what was signed differently.
func TestClientDataIsStrict(t *testing.T) {
	const good = `{"type":"webauthn.get","challenge":"AAAA","origin":"https://broker.test","crossOrigin":false,"topOrigin":"x","extra":{"a":[1]}}`
	c, err := ParseClientData([]byte(good))
	if err != nil || c.Type != "webauthn.get" || len(c.Challenge) != 3 || c.Origin != "https://broker.test" || c.CrossOrigin {
		t.Fatalf("got %+v, %v", c, err)
	}
	for _, change := range [][2]string{
		{`"extra"`, `"origin":"https://evil.test","extra"`}, {`"origin"`, `"Origin"`}, {`"https://broker.test"`, `"https://broker.test\ud800"`}, {`"https://broker.test"`, `7`},
		{`"AAAA"`, `"AAAA="`}, {`"AAAA"`, `"AAA\n"`}, {`"AAAA"`, `"AAAB\r\n"`}, {`"AAAA"`, `"AB"`}, {`"AAAA"`, `null`}, {`false`, `"false"`}, {`false`, `null`}, {`{"type"`, "\ufeff{\"type\""}, {`}}`, `}}x`}, {`"webauthn.get"`, `["webauthn.get"]`},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if c, err := ParseClientData([]byte(text)); text == good || err == nil {
			t.Errorf("%s: got %+v", text, c)
		}
	}
}

// FuzzClientData compares with encoding/json.
func FuzzClientData(f *testing.F) {
	f.Add([]byte(`{"type":"webauthn.get","challenge":"AAAA","origin":"https://broker.test","crossOrigin":false}`))
	f.Add([]byte(`{"type":"webauthn.create","challenge":"","origin":"","Origin":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseClientData(b)
		if err != nil {
			return
		}
		var other map[string]any
		if err := json.Unmarshal(b, &other); err != nil || other["type"] != c.Type || other["origin"] != c.Origin || other["challenge"] != base64.RawURLEncoding.EncodeToString(c.Challenge) || (other["crossOrigin"] == true) != c.CrossOrigin {
			t.Fatalf("%q: got %+v, encoding/json %v, %v", b, c, other, err)
		}
	})
}
