package audit

import (
	"crypto/sha256"
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
