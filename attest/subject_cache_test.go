package attest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker"
)

const providerURL = "https://login.acme.test"

// A delegationWorld is a provider without a network, which issues the access tokens of people.
type delegationWorld struct {
	*world
	people *People
	keys   string // the published JWK Set
	down   bool
}

func newDelegationWorld(t *testing.T) *delegationWorld {
	t.Helper()
	d := &delegationWorld{world: &world{t: t, ca: newCA(t, "acme.test")}}
	d.publishKeys()
	d.people = must(NewPeople(ProviderConfig{
		Name: "login", Issuer: providerURL, ClientID: "broker", GroupsClaim: "groups",
		Delegation: DelegationConfig{Audiences: []string{"broker-agents"}, IDJAGs: true, Audience: audienceURL, Clients: map[string][]string{"mcp-client": {triage}}},
	}))
	d.people.providers["login"].client = &http.Client{Transport: roundTripFunc(func(r *http.Request) (*http.Response, error) {
		body := d.keys
		if strings.HasPrefix(r.URL.Path, "/.well-known/") {
			body = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q,"authorization_endpoint":%q,"token_endpoint":%q}`, providerURL, providerURL+"/keys", providerURL+"/a", providerURL+"/t")
		}
		if d.down {
			return nil, errors.New("down")
		}
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body))}, nil
	})}
	return d
}

// publishKeys publishes the current keys, and no others.
func (d *delegationWorld) publishKeys() {
	d.t.Helper()
	keys, _ := keysOf(d.t.(*testing.T), must(d.ca.Bundle()))
	var list []map[string]any
	for _, k := range keys {
		if k["use"] == "jwt-svid" {
			k["use"] = "sig"
			list = append(list, k)
		}
	}
	text, err := json.Marshal(map[string]any{"keys": list})
	check(d.t, err)
	d.keys = string(text)
}

// personToken returns a token that is valid for a time, with further claims.
func (d *delegationWorld) personToken(typ string, valid time.Duration, more string) string {
	aud := "broker-agents"
	if typ != "at+jwt" {
		aud = audienceURL
	}
	now := time.Now()
	header := d.fill(strings.Replace(goodHeader, "JWT", typ, 1), now)
	return d.sign(header, fmt.Sprintf(`{"iss":%q,"sub":"ana","aud":%q,"client_id":"mcp-client","jti":"1","groups":["dba"],"iat":%d,"exp":%d%s}`,
		providerURL, aud, now.Unix(), now.Add(valid).Unix(), more))
}

func (d *delegationWorld) prove(token string, method broker.Method) error {
	_, err := d.people.SubjectToken(d.t.Context(), broker.SubjectToken{Token: token, Method: method, Actor: broker.Identity{ID: triage, TrustDomain: "acme.test"}, At: time.Now()})
	return err
}

func (d *delegationWorld) remembered() (n int) {
	for i := range d.people.subjects.shards {
		n += len(d.people.subjects.shards[i].index)
	}
	return n
}

func subjectCause(err error) Cause {
	var failure *Failure
	if errors.As(err, &failure) {
		return failure.Cause
	}
	return ""
}

// A remembered access token is as valid as an unknown one: its key must still be published,
// it must not have expired, and it must be for the actor.
func TestRememberedSubjectTokenIsChecked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDelegationWorld(t)
		token := d.personToken("at+jwt", time.Hour, "")
		short := d.personToken("at+jwt", 5*time.Minute, "")
		check(t, d.prove(token, broker.MethodAccessToken)) // fetches the keys
		for range 2 {
			check(t, d.prove(token, broker.MethodAccessToken))
			check(t, d.prove(short, broker.MethodAccessToken))
		}
		if n := d.remembered(); n != 2 {
			t.Fatalf("got %d remembered tokens, want 2", n)
		}
		other := broker.SubjectToken{Token: token, Method: broker.MethodAccessToken, Actor: broker.Identity{ID: triage + "s", TrustDomain: "acme.test"}, At: time.Now()}
		if _, err := d.people.SubjectToken(t.Context(), other); subjectCause(err) != CauseActor {
			t.Errorf("another actor: got %v", err)
		}
		if err := d.prove(token, broker.MethodIDJAG); subjectCause(err) != CauseType {
			t.Errorf("as an ID-JAG: got %v", err)
		}
		changed := token[:len(token)-8] + strings.ToUpper(token[len(token)-8:]) + "A"
		if err := d.prove(changed, broker.MethodAccessToken); err == nil {
			t.Error("a token with another signature is accepted")
		}
		time.Sleep(5 * time.Minute)
		if err := d.prove(short, broker.MethodAccessToken); subjectCause(err) != CauseExpired {
			t.Errorf("expired: got %v", err)
		}
		check(t, d.ca.RotateJWT())
		d.ca.RetireJWT()
		d.publishKeys()
		time.Sleep(jwks.Fresh - 5*time.Minute)
		if err := d.prove(token, broker.MethodAccessToken); subjectCause(err) != CauseSignature {
			t.Errorf("a withdrawn key: got %v", err)
		}
		check(t, d.prove(d.personToken("at+jwt", time.Hour, ""), broker.MethodAccessToken))
	})
}

// An unknown key makes the broker fetch the keys. What was verified with withdrawn ones does
// not count from then on.
func TestFetchedKeysForgetSubjectTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDelegationWorld(t)
		token := d.personToken("at+jwt", time.Hour, "")
		for range 2 {
			check(t, d.prove(token, broker.MethodAccessToken))
		}
		check(t, d.ca.RotateJWT())
		d.ca.RetireJWT()
		d.publishKeys()
		time.Sleep(jwks.FetchInterval)
		check(t, d.prove(token, broker.MethodAccessToken)) // until the keys are fetched
		check(t, d.prove(d.personToken("at+jwt", time.Hour, ""), broker.MethodAccessToken))
		if err := d.prove(token, broker.MethodAccessToken); subjectCause(err) != CauseSignature {
			t.Errorf("a withdrawn key: got %v", err)
		}
	})
}

// A provider that is down keeps remembered tokens working for as long as its keys are trusted.
func TestRememberedSubjectTokenWithoutProvider(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDelegationWorld(t)
		token := d.personToken("at+jwt", 2*time.Hour, "")
		for range 2 {
			check(t, d.prove(token, broker.MethodAccessToken))
		}
		d.down = true
		time.Sleep(jwks.MaxAge - time.Minute)
		check(t, d.prove(token, broker.MethodAccessToken))
		time.Sleep(2 * time.Minute)
		if err := d.prove(token, broker.MethodAccessToken); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("keys that are too old: got %v", err)
		}
	})
}

// Only what is used again and takes little memory is remembered.
func TestSubjectTokensAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDelegationWorld(t)
		for name, test := range map[string]struct {
			typ, more string
			method    broker.Method
		}{
			"an ID-JAG":   {"oauth-id-jag+jwt", "", broker.MethodIDJAG},
			"large":       {"at+jwt", `,"x":"` + strings.Repeat("x", maxCachedSubject) + `"`, broker.MethodAccessToken},
			"many scopes": {"at+jwt", `,"scope":"a` + strings.Repeat(" a", maxCachedScopes) + `"`, broker.MethodAccessToken},
		} {
			token := d.personToken(test.typ, 5*time.Minute, test.more)
			for range 3 {
				check(t, d.prove(token, test.method))
			}
			if n := d.remembered(); n != 0 {
				t.Errorf("%s: got %d remembered tokens, want none", name, n)
			}
		}
	})
}
