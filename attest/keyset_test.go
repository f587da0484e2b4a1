package attest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker"
)

// published is a provider of keys without a network.
type published struct {
	document string
	err      error
	fetches  int
}

func (p *published) RoundTrip(*http.Request) (*http.Response, error) {
	p.fetches++
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewBufferString(p.document))}, p.err
}

// A withdrawn key is out after ten minutes. Keys that can't be fetched again are trusted
// for at most an hour.
func TestProviderKeysAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "acme.test")
		w := &world{t: t, ca: ca}
		token := w.sign(w.fill(goodHeader, time.Now()), `{"sub":"ana"}`)
		set := func() string {
			keys, _ := keysOf(t, must(ca.Bundle()))
			var list []string
			for _, k := range keys {
				if k["use"] == "jwt-svid" {
					list = append(list, `{"kty":"EC","crv":"P-256","kid":"`+k["kid"].(string)+`","x":"`+k["x"].(string)+`","y":"`+k["y"].(string)+`"}`)
				}
			}
			return `{"keys":[` + strings.Join(list, ",") + `]}`
		}
		src := &published{document: set()}
		p := must(newProvider(ProviderConfig{Name: "login", Issuer: "https://login.acme.test"}))
		p.client = &http.Client{Transport: src}
		p.keys.setURL("https://login.acme.test/keys")
		verifies := func() bool {
			payload, err := p.keys.VerifySignature(t.Context(), token)
			return err == nil && string(payload) == `{"sub":"ana"}`
		}
		for range 3 {
			if !verifies() || src.fetches != 1 {
				t.Fatalf("got %d fetches, want 1", src.fetches)
			}
		}
		src.err = errors.New("down")
		time.Sleep(jwks.Fresh - time.Second)
		if !verifies() || src.fetches != 1 {
			t.Errorf("fresh keys: got %d fetches, want 1", src.fetches)
		}
		time.Sleep(2 * time.Second)
		if k, _ := p.keys.source(time.Now()); !verifies() || src.fetches != 2 || k.Age != 0 {
			t.Errorf("the provider is down: got %d fetches, want 2; %+v", src.fetches, k)
		}
		time.Sleep(jwks.MaxAge - jwks.Fresh - 10*time.Second)
		if k, _ := p.keys.source(time.Now()); !verifies() || k.Age < jwks.MaxAge-time.Minute {
			t.Errorf("shortly before the maximum age: %+v", k)
		}
		time.Sleep(20 * time.Second)
		if _, err := p.keys.VerifySignature(t.Context(), token); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("after the maximum age: got %v", err)
		}
		src.err = nil
		time.Sleep(jwks.FetchInterval)
		if !verifies() {
			t.Error("the provider is back: the token does not verify")
		}
		check(t, ca.RotateJWT())
		ca.RetireJWT()
		src.document = set()
		time.Sleep(jwks.Fresh)
		if _, err := p.keys.VerifySignature(t.Context(), token); err == nil || errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("a withdrawn key: got %v", err)
		}
		p.keys.setURL("https://login.acme.test/others")
		if k, ok := p.keys.source(time.Now()); ok {
			t.Errorf("another address: got %+v", k)
		}
	})
}

// Logins that wait for a provider that hangs do not wait for it one after another.
func TestHangingProviderIsAskedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		p := must(newProvider(ProviderConfig{Name: "login", Issuer: "https://login.acme.test"}))
		p.client = &http.Client{Transport: roundTripFunc(func(*http.Request) (*http.Response, error) {
			calls++
			time.Sleep(providerTimeout - time.Second)
			return nil, errors.New("down")
		})}
		w := &world{t: t, ca: newCA(t, "acme.test")}
		token := w.sign(w.fill(goodHeader, time.Now()), `{"sub":"ana"}`)
		p.keys.setURL("https://login.acme.test/keys")
		for range 3 { // the second and third have waited for the lock
			if _, err := p.keys.VerifySignature(t.Context(), token); !errors.Is(err, broker.ErrUnavailable) {
				t.Fatalf("keys: got %v", err)
			}
		}
		if calls != 1 {
			t.Errorf("got %d fetches of keys, want 1", calls)
		}
		began := time.Now()
		for range 3 {
			if _, err := p.discover(t.Context(), began.Add(5*time.Second)); !errors.Is(err, broker.ErrUnavailable) {
				t.Fatalf("metadata: got %v", err)
			}
			began = began.Add(time.Second)
		}
		if calls != 2 {
			t.Errorf("got %d fetches of metadata, want 1", calls-1)
		}
	})
}

// Parsers may not read the claims differently, even if the provider signed them.
func TestProviderTokenIsStrict(t *testing.T) {
	t.Parallel()
	for _, payload := range []string{`{"sub":"ana","sub":"eve"}`, `{"sub":"ana","SUB":"eve"}`, `{"sub":"\ud800"}`, `{"sub":"ana"}{}`, `["ana"]`, "\ufeff{}", `{"exp":1e999}`} {
		if err := checkPayload([]byte(payload)); err == nil {
			t.Errorf("%s: got no error", payload)
		}
	}
	check(t, checkPayload([]byte(`{"sub":"ana","Subject":"x","groups":["a","a"]}`)))
}
