package attest_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/attest"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/softkey"
)

var ana = broker.Identity{ID: "login/ana", Kind: broker.KindPerson, Person: &broker.Person{Name: "Ana"}}

// challengeOf reads the challenge out of what the browser is given.
func challengeOf(t *testing.T, options []byte) []byte {
	t.Helper()
	var o struct {
		PublicKey struct {
			Challenge string
			RP        struct{ ID string }
			User      struct{ ID, Name string }
		}
	}
	if err := json.Unmarshal(options, &o); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(o.PublicKey.Challenge)
	if err != nil || len(raw) < 16 || o.PublicKey.RP.ID != "broker.acme.test" || strings.Contains(o.PublicKey.User.ID, "ana") {
		t.Fatalf("options %s: %v", options, err)
	}
	return raw
}

func TestPasskeyIsEnrolled(t *testing.T) {
	const origin = "https://broker.acme.test:8443"
	p, err := attest.NewPasskeys("broker.acme.test", origin)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	begin := func() (challenge, state []byte) {
		options, state, err := p.Begin(ana, []broker.Passkey{{ID: []byte("old")}}, now)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(options), base64.RawURLEncoding.EncodeToString([]byte("old"))) {
			t.Errorf("the passkeys that there are are not excluded: %s", options)
		}
		return challengeOf(t, options), state
	}
	key, err := softkey.New("broker.acme.test", origin)
	if err != nil {
		t.Fatal(err)
	}
	challenge, state := begin()
	response, err := key.Create(challenge)
	if err != nil {
		t.Fatal(err)
	}
	made, err := p.Finish(ana, state, response, now)
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil || string(made.Public) != string(public) || string(made.ID) != string(key.ID) || made.RP != "broker.acme.test" {
		t.Errorf("enrolled %+v, %v", made, err)
	}
	// What it signs is verified by what was enrolled.
	data, client, signature, err := key.Sign(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	signed := audit.SignatureFacts{AuthenticatorData: data, ClientData: client, Signature: signature}
	if err := signed.Verify(audit.Digest{}, made.Public, made.RP); err != nil {
		t.Error(err)
	}

	for name, change := range map[string]func(*softkey.Key, *[]byte) broker.Identity{
		"another challenge": func(_ *softkey.Key, challenge *[]byte) broker.Identity { *challenge = make([]byte, 32); return ana },
		"another site":      func(k *softkey.Key, _ *[]byte) broker.Identity { k.Origin = "https://evil.test"; return ana },
		"another RP":        func(k *softkey.Key, _ *[]byte) broker.Identity { k.RP = "evil.test"; return ana },
		"nobody verified":   func(k *softkey.Key, _ *[]byte) broker.Identity { k.Flags = softkey.Present; return ana },
		"nobody present":    func(k *softkey.Key, _ *[]byte) broker.Identity { k.Flags = softkey.Verified; return ana },
		"another person": func(*softkey.Key, *[]byte) broker.Identity {
			return broker.Identity{ID: "login/ben", Kind: broker.KindPerson}
		},
	} {
		bad, err := softkey.New("broker.acme.test", origin)
		if err != nil {
			t.Fatal(err)
		}
		challenge, state := begin()
		who := change(bad, &challenge)
		response, err := bad.Create(challenge)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Finish(who, state, response, now); err == nil {
			t.Errorf("%s: it is enrolled", name)
		}
	}
	if _, err := p.Finish(ana, state, response, now.Add(broker.SignWithin)); err == nil {
		t.Error("an enrolment that took too long")
	}
	for _, bad := range []string{"", "{}", "[]", `{"id":"x"}`, strings.Repeat("[", 10000)} {
		if _, err := p.Finish(ana, state, []byte(bad), now); err == nil {
			t.Errorf("%.20q is enrolled", bad)
		}
	}
}
