package signals

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/internal/strictjson"
)

// FuzzToken reads payloads that the transmitter signed: whatever they are, they are an
// event about a person of the provider, or have no effect.
func FuzzToken(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	f.Add(`{"iss":"i","aud":"https://broker.acme.test","jti":"1","iat":1800000000,"sub_id":{"format":"email","email":"a@b.test"},"events":{"https://schemas.openid.net/secevent/risc/event-type/account-disabled":{}}}`)
	f.Fuzz(func(t *testing.T, payload string) {
		w := &world{outcomes: map[signal.Outcome]int{}}
		r := New(Config{
			Name: "okta", Issuer: "i", Audience: audience, Log: discard(), Apply: w.apply, Observe: w.observe,
			Subjects: Subjects{Provider: "login", Issuers: []string{provider}, Email: EmailSub, Opaque: OpaqueSub},
		})
		claims, err := strictObject(payload)
		var c claimSet
		if err == nil {
			c, err = r.readClaims(claims, now)
		}
		var e signal.Event
		if err == nil {
			e, err = r.event(c, now)
		}
		var rejection *Rejection
		var ignored *unknown
		if err != nil {
			if !errors.As(err, &rejection) && !errors.As(err, &ignored) {
				t.Fatalf("got %v", err)
			}
			return
		}
		if c.issued.After(now.Add(leeway)) || e.At.After(c.issued) || !isID(c.id) {
			t.Errorf("got the event %+v", e)
		}
		if e.Subject.Account != "" {
			if of, _, err := broker.ParsePerson(e.Subject.Account); err != nil || of != "login" {
				t.Errorf("got the account %q", e.Subject.Account)
			}
		}
	})
}

// FuzzSubject resolves subjects to accounts of the provider alone.
func FuzzSubject(f *testing.F) {
	f.Add(`{"format":"iss_sub","iss":"https://login.acme.test","sub":"ana"}`)
	f.Add(`{"format":"complex","user":{"format":"email","email":"a@b.test"},"session":{"format":"opaque","id":"s"}}`)
	f.Add(`{"format":"aliases","identifiers":[{"format":"opaque","id":"x"}]}`)
	s := Subjects{Provider: "login", Issuers: []string{provider}, Email: EmailSub, Opaque: OpaqueSub, Accounts: map[string]string{"x": "ana"}, Tenant: "t"}
	f.Fuzz(func(t *testing.T, text string) {
		subject, err := s.resolve(json.RawMessage(text))
		if err != nil {
			return
		}
		if subject == (signal.Subject{}) || subject.Account == "" && subject.SID == "" {
			t.Errorf("%q leads to nobody without an error", text)
		}
		if of, _, err := broker.ParsePerson(subject.Account); subject.Account != "" && (err != nil || of != "login") || strings.Contains(subject.SID, "\x00") && len(subject.SID) > maxID {
			t.Errorf("got %+v", subject)
		}
	})
}

func strictObject(payload string) (map[string]json.RawMessage, error) {
	claims, err := strictjson.Object([]byte(payload), maxDepth)
	if err != nil {
		return nil, malformed("the payload of the token %v", err)
	}
	return claims, nil
}
