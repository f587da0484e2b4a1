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

// challengeOf returns the challenge of the browser's options.
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

func TestPasskeyEnrolment(t *testing.T) {
	t.Parallel()
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
			t.Errorf("the options do not exclude the existing passkey: %s", options)
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
		t.Errorf("got passkey %+v, %v", made, err)
	}
	// The enrolled key verifies its signatures.
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
		"user not verified": func(k *softkey.Key, _ *[]byte) broker.Identity { k.Flags = softkey.Present; return ana },
		"user not present":  func(k *softkey.Key, _ *[]byte) broker.Identity { k.Flags = softkey.Verified; return ana },
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
			t.Errorf("%s: got no error", name)
		}
	}
	if _, err := p.Finish(ana, state, response, now.Add(broker.SignWithin)); err == nil {
		t.Error("got no error after the deadline")
	}
	for _, bad := range []string{"", "{}", "[]", `{"id":"x"}`, strings.Repeat("[", 10000)} {
		if _, err := p.Finish(ana, state, []byte(bad), now); err == nil {
			t.Errorf("response %.20q: got no error", bad)
		}
	}
}

// The authenticator shows the display name.
func TestPasskeyDisplayName(t *testing.T) {
	t.Parallel()
	p, err := attest.NewPasskeys("broker.acme.test", "https://broker.acme.test")
	if err != nil {
		t.Fatal(err)
	}
	for want, person := range map[string]*broker.Person{"Ana": {Name: "Ana"}, "login/ana": {}, "login/ana ": nil} {
		options, _, err := p.Begin(broker.Identity{ID: "login/ana", Kind: broker.KindPerson, Person: person}, nil, time.Now())
		if err != nil || !strings.Contains(string(options), `"displayName":"`+strings.TrimSpace(want)+`"`) {
			t.Errorf("person %+v: got %s, %v", person, options, err)
		}
	}
}
