package brokertest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/signals/signalstest"
)

// newTransmitter returns a transmitter that serves its endpoints.
func newTransmitter(t *testing.T) *signalstest.Transmitter {
	t.Helper()
	x := signalstest.New("https://signals.acme.test")
	server := httptest.NewServer(x)
	t.Cleanup(server.Close)
	x.Issuer = server.URL
	return x
}

const pushToken = "s3cret-push-token-of-okta"

// pushes configures a transmitter that pushes events about the provider's people.
func (p *provider) pushes(x *signalstest.Transmitter) Provider {
	c := p.config("login")
	c.More = fmt.Sprintf("signals:\n  okta: {issuer: %q, audience: %q, jwks_uri: %q, allow_private: true, provider: login, push: {token_files: [push.token]}, page: support}\n",
		x.Issuer, x.Audience, x.Issuer+signalstest.KeysPath)
	c.Files = map[string]string{"push.token": pushToken}
	return c
}

// kinds returns the kinds of the records from an index on.
func (b *Broker) kinds(from int) (list []audit.Kind) {
	for _, r := range b.Records()[from:] {
		list = append(list, r.Kind)
	}
	return list
}

// A pushed event ends what it names; nothing else that a transmitter, or another sender,
// can send has an effect.
func TestPushedSecurityEvents(t *testing.T) {
	x, p := newTransmitter(t), newProvider(t, "ben", "broker")
	b := New(t, p.pushes(x))
	p.places[b.URL+"/ui/login/callback"] = true
	b.Secret(pushToken)
	x.Client = b.client(nil).HTTP
	_, session := b.browse("/ui/login?provider=login")
	if who, err := b.as(session).WhoAmI(t.Context()); err != nil || who.ID != "login/ben" {
		t.Fatalf("after the login: got %+v, %v", who, err)
	}
	send := func(claims map[string]any, token string, want int) {
		t.Helper()
		x.PushTo(b.URL+"/signals/okta", token)
		status, body, err := x.Send(t.Context(), claims)
		if err != nil || status != want {
			t.Fatalf("got %d %s, %v; want %d", status, body, err, want)
		}
	}
	ben := signalstest.Person(p.URL, "ben")
	before := len(b.Records())
	foreign := x.Claims(signalstest.AccountDisabled, ben, nil)
	foreign["aud"] = "https://other.test"
	old := x.Claims(signalstest.AccountDisabled, ben, nil)
	old["iat"] = time.Now().Add(-25 * time.Hour).Unix()
	future := x.Claims(signalstest.AccountDisabled, ben, nil)
	future["iat"] = time.Now().Add(time.Hour).Unix()
	send(foreign, pushToken, http.StatusBadRequest)
	send(old, pushToken, http.StatusBadRequest)
	send(future, pushToken, http.StatusBadRequest)
	send(x.Claims(signalstest.AccountDisabled, ben, nil), "s3cret-of-someone-else", http.StatusUnauthorized)
	send(x.Claims(signalstest.AccountDisabled, signalstest.Person("https://other.test", "ben"), nil), pushToken, http.StatusAccepted)
	send(x.Claims(signalstest.AccountDisabled, signalstest.Person(p.URL, "nobody"), nil), pushToken, http.StatusAccepted)
	if who, err := b.as(session).WhoAmI(t.Context()); err != nil || len(b.Records()) != before {
		t.Fatalf("after events that change nothing: got %+v, %v and the records %v", who, err, b.kinds(before))
	}

	disabled := x.Claims(signalstest.AccountDisabled, ben, map[string]any{"reason": "hijacking"})
	send(disabled, pushToken, http.StatusAccepted)
	if _, err := b.as(session).WhoAmI(t.Context()); err == nil {
		t.Error("the session is open after the account was disabled")
	}
	records := b.Records()[before:]
	if len(records) != 2 || records[0].Kind != audit.FactEnded || records[0].Fact.Source != "ssf:okta" || records[0].Fact.Cause != "account_disabled" ||
		records[1].Kind != audit.SessionClosed || records[1].Signal == nil || records[1].Signal.Transmitter != "okta" {
		t.Errorf("got records %+v", records)
	}
	send(disabled, pushToken, http.StatusAccepted)
	if got := len(b.Records()); got != before+2 {
		t.Errorf("after a replay: got the records %v", b.kinds(before+2))
	}
	send(x.Claims(signalstest.AccountEnabled, ben, map[string]any{"event_timestamp": time.Now().Unix()}), pushToken, http.StatusAccepted)
}

// A polled event takes effect and is acknowledged.
func TestPolledSecurityEvents(t *testing.T) {
	x, p := newTransmitter(t), newProvider(t, "ben", "broker")
	c := p.config("login")
	c.More = fmt.Sprintf("signals:\n  okta: {issuer: %q, audience: %q, keys_file: keys.json, allow_private: true, provider: login, poll: {endpoint: %q, token_file: poll.token, every: 1s}, stale_after: 1m, page: support}\n",
		x.Issuer, x.Audience, x.Issuer+signalstest.PollPath)
	c.Files = map[string]string{"poll.token": x.Token, "keys.json": string(x.JWKS())}
	b := New(t, c)
	b.Secret(x.Token)
	p.places[b.URL+"/ui/login/callback"] = true
	_, session := b.browse("/ui/login?provider=login")
	claims := x.Claims(signalstest.SessionRevoked, signalstest.Person(p.URL, "ben"), nil)
	if _, _, err := x.Send(t.Context(), claims); err != nil {
		t.Fatal(err)
	}
	await(t, "the acknowledgement", func() bool { return len(x.Acked()) == 1 })
	if _, err := b.as(session).WhoAmI(t.Context()); err == nil {
		t.Error("the session is open after it was revoked")
	}
	if got := x.Acked(); got[0] != claims["jti"] || len(x.Errors()) != 0 {
		t.Errorf("got acknowledgements %q and errors %v", got, x.Errors())
	}
	page, err := b.Client(Auditor).Standings(t.Context(), api.StandingFilter{Kind: "source"})
	if err != nil || len(page.Standings) != 1 || page.Standings[0].Name != "ssf:okta" || !page.Standings[0].Holds {
		t.Errorf("got %+v, %v", page, err)
	}
}

// await waits until is returns true.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s took too long", what)
		}
	}
}

// The push endpoint is no way around the broker's own rules for browsers and bodies.
func TestPushEndpointIsGuarded(t *testing.T) {
	x, p := newTransmitter(t), newProvider(t, "ben", "broker")
	b := New(t, p.pushes(x))
	for name, change := range map[string]func(*http.Request){
		"another site": func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"a long body": func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat("a", 1<<20))), -1
		},
		"another token": func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") },
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.URL+"/signals/okta", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+pushToken)
		r.Header.Set("Content-Type", "application/secevent+jwt")
		change(r)
		resp, err := b.client(nil).HTTP.Do(r)
		if err != nil && name == "a long body" {
			continue // the broker may answer and close the stream before it has read the body
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("%s: got %d", name, resp.StatusCode)
		}
	}
}
