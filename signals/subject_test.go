package signals

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"accessbroker.internal/broker/signal"
)

func TestSubjects(t *testing.T) {
	plain := Subjects{Provider: "login", Issuers: []string{provider}}
	with := func(change func(*Subjects)) Subjects {
		s := plain
		change(&s)
		return s
	}
	listed := with(func(s *Subjects) {
		s.Accounts = map[string]string{"ana@acme.test": "00u1", "acct:ana@acme.test": "00u1", "+12065550100": "00u1", "did:example:1": "00u1", "bob@acme.test": "00u2"}
	})
	sessions := with(func(s *Subjects) { s.Opaque = OpaqueSession })
	subs := with(func(s *Subjects) { s.Opaque, s.Email = OpaqueSub, EmailSub })
	accounts := with(func(s *Subjects) { s.Email = EmailAccount })
	tenant := with(func(s *Subjects) { s.Tenant, s.Critical = "acme", []string{"tenant", "user", "device"} })
	person := func(name string) signal.Subject { return signal.Subject{Account: name} }
	const issSub = `{"format":"iss_sub","iss":"https://login.acme.test","sub":"ana"}`
	for name, c := range map[string]struct {
		subjects Subjects
		json     string
		want     signal.Subject
		outcome  signal.Outcome
	}{
		"iss_sub":                      {plain, issSub, person("login/ana"), ""},
		"iss_sub of a draft":           {plain, strings.Replace(issSub, `"format":"iss_sub"`, `"subject_type":"iss-sub"`, 1), person("login/ana"), ""},
		"another issuer":               {plain, `{"format":"iss_sub","iss":"https://login.acme.test/","sub":"ana"}`, signal.Subject{}, signal.ForeignSubject},
		"sub with a space":             {plain, `{"format":"iss_sub","iss":"https://login.acme.test","sub":"an a"}`, signal.Subject{}, signal.UnknownSubject},
		"sub of another provider":      {plain, `{"format":"iss_sub","iss":"https://login.acme.test","sub":"../other/ana"}`, person("login/../other/ana"), ""},
		"sub missing":                  {plain, `{"format":"iss_sub","iss":"https://login.acme.test"}`, signal.Subject{}, signal.Malformed},
		"sub a number":                 {plain, `{"format":"iss_sub","iss":"https://login.acme.test","sub":7}`, signal.Subject{}, signal.Malformed},
		"email unknown":                {plain, `{"format":"email","email":"ana@acme.test"}`, signal.Subject{}, signal.UnknownSubject},
		"email listed":                 {listed, `{"format":"email","email":"ana@acme.test"}`, person("login/00u1"), ""},
		"email is the sub":             {subs, `{"format":"email","email":"ana@acme.test"}`, person("login/ana@acme.test"), ""},
		"email of an account":          {accounts, `{"format":"email","email":"ana@acme.test"}`, signal.Subject{Email: "ana@acme.test"}, ""},
		"opaque unknown":               {plain, `{"format":"opaque","id":"x"}`, signal.Subject{}, signal.UnknownSubject},
		"opaque sub":                   {subs, `{"format":"opaque","id":"x"}`, person("login/x"), ""},
		"opaque session":               {sessions, `{"format":"opaque","id":"x"}`, signal.Subject{SID: "x"}, ""},
		"account listed":               {listed, `{"format":"account","uri":"acct:ana@acme.test"}`, person("login/00u1"), ""},
		"phone listed":                 {listed, `{"format":"phone_number","phone_number":"+12065550100"}`, person("login/00u1"), ""},
		"did listed":                   {listed, `{"format":"did","url":"did:example:1"}`, person("login/00u1"), ""},
		"did unknown":                  {listed, `{"format":"did","url":"did:example:2"}`, signal.Subject{}, signal.UnknownSubject},
		"jwt_id":                       {plain, `{"format":"jwt_id","iss":"https://login.acme.test","jti":"1"}`, signal.Subject{}, signal.UnknownSubject},
		"own format":                   {plain, `{"format":"catalog_item","catalog_id":"1"}`, signal.Subject{}, signal.UnknownSubject},
		"aliases":                      {listed, `{"format":"aliases","identifiers":[{"format":"email","email":"x@acme.test"},{"format":"email","email":"ana@acme.test"},{"format":"phone_number","phone_number":"+12065550100"}]}`, person("login/00u1"), ""},
		"aliases of two people":        {listed, `{"format":"aliases","identifiers":[{"format":"email","email":"ana@acme.test"},{"format":"email","email":"bob@acme.test"}]}`, signal.Subject{}, signal.Malformed},
		"aliases in aliases":           {listed, `{"format":"aliases","identifiers":[{"format":"aliases","identifiers":[]}]}`, signal.Subject{}, signal.Malformed},
		"aliases of another issuer":    {plain, `{"format":"aliases","identifiers":[{"format":"iss_sub","iss":"https://other.test","sub":"a"}]}`, signal.Subject{}, signal.ForeignSubject},
		"many aliases":                 {listed, `{"format":"aliases","identifiers":[` + strings.TrimSuffix(strings.Repeat(`{"format":"email","email":"ana@acme.test"},`, maxAliases+1), ",") + `]}`, signal.Subject{}, signal.Malformed},
		"no aliases":                   {listed, `{"format":"aliases","identifiers":[]}`, signal.Subject{}, signal.Malformed},
		"complex user":                 {plain, `{"format":"complex","user":` + issSub + `,"device":{"format":"opaque","id":"d"}}`, person("login/ana"), ""},
		"complex session":              {plain, `{"format":"complex","session":{"format":"opaque","id":"s"}}`, signal.Subject{SID: "s"}, ""},
		"complex user and session":     {plain, `{"format":"complex","user":` + issSub + `,"session":{"format":"opaque","id":"s"}}`, signal.Subject{Account: "login/ana", SID: "s"}, ""},
		"complex user is no session":   {sessions, `{"format":"complex","user":{"format":"opaque","id":"u"}}`, signal.Subject{}, signal.UnknownSubject},
		"complex device only":          {plain, `{"format":"complex","device":{"format":"opaque","id":"d"}}`, signal.Subject{}, signal.UnknownSubject},
		"complex group only":           {plain, `{"format":"complex","group":{"format":"opaque","id":"g"}}`, signal.Subject{}, signal.UnknownSubject},
		"complex in complex":           {plain, `{"format":"complex","user":{"format":"complex","user":` + issSub + `}}`, signal.Subject{}, signal.Malformed},
		"complex user not an object":   {plain, `{"format":"complex","user":"ana"}`, signal.Subject{}, signal.Malformed},
		"complex foreign user":         {plain, `{"format":"complex","user":{"format":"iss_sub","iss":"https://other.test","sub":"ana"},"session":{"format":"opaque","id":"s"}}`, signal.Subject{}, signal.ForeignSubject},
		"own tenant":                   {tenant, `{"format":"complex","user":` + issSub + `,"tenant":{"format":"opaque","id":"acme"}}`, person("login/ana"), ""},
		"another tenant":               {tenant, `{"format":"complex","user":` + issSub + `,"tenant":{"format":"opaque","id":"other"}}`, signal.Subject{}, signal.ForeignSubject},
		"critical member":              {tenant, `{"format":"complex","user":` + issSub + `,"device":{"format":"opaque","id":"d"}}`, signal.Subject{}, signal.Unsupported},
		"not an object":                {plain, `"ana"`, signal.Subject{}, signal.Malformed},
		"member twice":                 {plain, `{"format":"iss_sub","iss":"https://login.acme.test","sub":"ana","sub":"bob"}`, signal.Subject{}, signal.Malformed},
		"missing":                      {plain, ``, signal.Subject{}, signal.Malformed},
		"empty format":                 {plain, `{"format":""}`, signal.Subject{}, signal.Malformed},
		"long session":                 {plain, `{"format":"complex","session":{"format":"opaque","id":"` + strings.Repeat("s", maxID+1) + `"}}`, signal.Subject{}, signal.Malformed},
		"control character in the sub": {plain, `{"format":"iss_sub","iss":"https://login.acme.test","sub":"a\u0000"}`, signal.Subject{}, signal.UnknownSubject},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.subjects.resolve(json.RawMessage(c.json))
			var outcome signal.Outcome
			var rejection *Rejection
			var ignored *unknown
			switch {
			case errors.As(err, &rejection):
				outcome = rejection.Outcome
			case errors.As(err, &ignored):
				outcome = ignored.outcome
			case err != nil:
				t.Fatal(err)
			}
			if outcome != c.outcome || outcome == "" && got != c.want {
				t.Errorf("got %+v, %q; want %+v, %q", got, outcome, c.want, c.outcome)
			}
		})
	}
}
