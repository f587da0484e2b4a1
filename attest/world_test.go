package attest

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/attest/localca"
	"accessbroker.internal/broker"
)

const (
	audienceURL = "https://broker.acme.test"
	triage      = "spiffe://acme.test/agent/triage"
)

// A world is a trust domain, a source that reads its bundle from a file, and a
// verifier that records failures.
type world struct {
	t        testing.TB
	ca       *localca.CA
	bundle   string // the file
	source   *Source
	verifier *Verifier

	mu     sync.Mutex
	failed []string // "method cause"
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ca: newCA(t, "acme.test"), bundle: filepath.Join(t.TempDir(), "acme.json")}
	w.publish()
	w.source = open(t, Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": w.bundle}})
	w.verifier = w.verify(w.source)
	return w
}

func (w *world) verify(s *Source) *Verifier {
	return NewVerifier(VerifierConfig{Source: s, Audiences: []string{audienceURL}, OnFailure: func(m broker.Method, cause string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.failed = append(w.failed, string(m)+" "+cause)
	}})
}

// failures returns the failures since the last call.
func (w *world) failures() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.failed
	w.failed = nil
	return out
}

// publish writes the bundle file. The source reads it at the next poll.
func (w *world) publish() {
	w.t.Helper()
	bundle, err := w.ca.Bundle()
	check(w.t, err)
	check(w.t, os.WriteFile(w.bundle, bundle, 0o600))
}

func (w *world) token(id string, ttl time.Duration) string {
	w.t.Helper()
	token, err := w.ca.JWTSVID(id, ttl, audienceURL)
	check(w.t, err)
	return token
}

// sign returns a token with an arbitrary header and arbitrary claims.
func (w *world) sign(header, claims string) string {
	w.t.Helper()
	input := encode(header) + "." + encode(claims)
	_, signature, err := w.ca.SignBytes(input)
	check(w.t, err)
	return input + "." + encode(string(signature))
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func newCA(t testing.TB, domain string) *localca.CA {
	t.Helper()
	ca, err := localca.New(domain)
	check(t, err)
	return ca
}

func open(t testing.TB, cfg Config) *Source {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	check(t, err)
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// causeOf returns the cause of a failure, or "" for nil. It fails the test unless
// the error is a Failure with a detail for the caller.
func causeOf(t testing.TB, err error) Cause {
	t.Helper()
	if err == nil {
		return ""
	}
	var f *Failure
	var r *broker.Refusal
	if !errors.As(err, &f) || !errors.As(err, &r) || !errors.Is(err, broker.ErrUnauthenticated) || r.Detail == "" {
		t.Fatalf("got %v, want a Failure with a detail", err)
	}
	return f.Cause
}
