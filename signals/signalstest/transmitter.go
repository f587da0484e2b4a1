// Package signalstest is a transmitter of shared signals for tests. It has the endpoints
// of SSF 1.0 (sections 7 and 8), poll delivery (RFC 8936) and push delivery (RFC 8935),
// and can also send what a transmitter must not send.
package signalstest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Event types.
const (
	SessionRevoked   = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
	CredentialChange = "https://schemas.openid.net/secevent/caep/event-type/credential-change"
	AccountDisabled  = "https://schemas.openid.net/secevent/risc/event-type/account-disabled"
	AccountEnabled   = "https://schemas.openid.net/secevent/risc/event-type/account-enabled"
	AccountPurged    = "https://schemas.openid.net/secevent/risc/event-type/account-purged"
	Verification     = "https://schemas.openid.net/secevent/ssf/event-type/verification"
	StreamUpdated    = "https://schemas.openid.net/secevent/ssf/event-type/stream-updated"
)

// Paths of a Transmitter's endpoints.
const (
	KeysPath   = "/jwks.json"
	PollPath   = "/ssf/poll"
	VerifyPath = "/ssf/verification"
	StatusPath = "/ssf/status"
	StreamPath = "/ssf/stream"
)

// A Transmitter is an http.Handler. It is safe for concurrent use.
type Transmitter struct {
	Issuer   string
	Audience string
	StreamID string
	Token    string       // bearer token that its endpoints require
	Client   *http.Client // for pushes

	key *rsa.PrivateKey

	mu     sync.Mutex
	queue  []queued
	acked  []string
	errs   map[string]SetError
	status string
	push   *target
	polls  int
	failed int // status of the endpoints; zero: they work
}

type queued struct{ id, token string }

type target struct{ url, token string }

// A SetError is an error that the receiver reported.
type SetError struct {
	Err         string `json:"err"`
	Description string `json:"description"`
}

// keys are made once, because making one takes long.
var keys = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// New returns a transmitter for an audience. Set Issuer to its URL before the first event.
func New(audience string) *Transmitter {
	return &Transmitter{
		Audience: audience, StreamID: "stream-1", Token: rand.Text(), Client: &http.Client{Timeout: 30 * time.Second},
		key: keys(), errs: map[string]SetError{}, status: "enabled",
	}
}

// PushTo makes the transmitter push its events to an address instead of keeping them for
// polls.
func (x *Transmitter) PushTo(url, token string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.push = &target{url, token}
}

// Fail makes the endpoints answer with a status; zero mends them.
func (x *Transmitter) Fail(status int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failed = status
}

// Polls returns the number of answered polls.
func (x *Transmitter) Polls() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.polls
}

// Acked returns the ids that the receiver acknowledged.
func (x *Transmitter) Acked() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.acked)
}

// Errors returns the errors that the receiver reported, by id.
func (x *Transmitter) Errors() map[string]SetError {
	x.mu.Lock()
	defer x.mu.Unlock()
	return maps.Clone(x.errs)
}

// Claims returns the claims of a token with one event. A nil payload is empty.
func (x *Transmitter) Claims(event string, subject, payload any) map[string]any {
	if payload == nil {
		payload = map[string]any{}
	}
	return map[string]any{
		"iss": x.Issuer, "aud": x.Audience, "jti": rand.Text(), "iat": time.Now().Unix(), "txn": rand.Text(),
		"sub_id": subject, "events": map[string]any{event: payload},
	}
}

// Person returns the subject for a person of an issuer.
func Person(issuer, sub string) map[string]any {
	return map[string]any{"format": "iss_sub", "iss": issuer, "sub": sub}
}

// Sign signs claims as a security event token.
func (x *Transmitter) Sign(claims map[string]any) string {
	return x.SignAs(map[string]any{"typ": "secevent+jwt", "alg": "RS256", "kid": "key-1"}, claims)
}

// SignAs signs claims with a header. The signature is always RS256.
func (x *Transmitter) SignAs(header, claims map[string]any) string {
	return x.sign(encode(header) + "." + encode(claims))
}

// Raw signs a payload that need not be JSON.
func (x *Transmitter) Raw(payload string) string {
	return x.sign(encode(map[string]any{"typ": "secevent+jwt", "alg": "RS256", "kid": "key-1"}) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload)))
}

func (x *Transmitter) sign(message string) string {
	sum := sha256.Sum256([]byte(message))
	signature, err := rsa.SignPKCS1v15(rand.Reader, x.key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return message + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func encode(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// Send signs claims and delivers the token. It returns the status and body of a push, or
// zero if the token waits for a poll.
func (x *Transmitter) Send(ctx context.Context, claims map[string]any) (status int, body string, err error) {
	id, _ := claims["jti"].(string)
	return x.SendToken(ctx, id, x.Sign(claims))
}

// SendToken is Send for a token, which waits for a poll under an id.
func (x *Transmitter) SendToken(ctx context.Context, id, token string) (status int, body string, err error) {
	x.mu.Lock()
	to := x.push
	if to == nil {
		x.queue = append(x.queue, queued{id, token})
	}
	x.mu.Unlock()
	if to == nil {
		return 0, "", nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.url, strings.NewReader(token))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/secevent+jwt")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Authorization", "Bearer "+to.token)
	resp, err := x.Client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(text), err
}

// ServeHTTP serves the transmitter's endpoints.
func (x *Transmitter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	failed := x.failed
	x.mu.Unlock()
	switch {
	case failed != 0:
		w.WriteHeader(failed)
	case r.URL.Path == KeysPath:
		answer(w, http.StatusOK, x.jwks())
	case strings.HasPrefix(r.URL.Path, "/.well-known/ssf-configuration"):
		answer(w, http.StatusOK, x.metadata())
	case r.Header.Get("Authorization") != "Bearer "+x.Token:
		w.Header().Set("WWW-Authenticate", "Bearer")
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == PollPath && r.Method == http.MethodPost:
		x.poll(w, r)
	case r.URL.Path == VerifyPath && r.Method == http.MethodPost:
		x.verify(w, r)
	case r.URL.Path == StatusPath && r.Method == http.MethodGet:
		x.mu.Lock()
		defer x.mu.Unlock()
		answer(w, http.StatusOK, map[string]any{"stream_id": x.StreamID, "status": x.status})
	case r.URL.Path == StreamPath && r.Method == http.MethodGet:
		answer(w, http.StatusOK, x.stream())
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the receiver may have left
}

func (x *Transmitter) jwks() any {
	number := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	return map[string]any{"keys": []any{map[string]any{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "key-1", "n": number(x.key.N.Bytes()), "e": number([]byte{1, 0, 1}),
	}}}
}

// JWKS returns the JWK Set.
func (x *Transmitter) JWKS() []byte {
	text, err := json.Marshal(x.jwks())
	if err != nil {
		panic(err)
	}
	return text
}

// metadata is the transmitter's configuration (SSF, section 7.1).
func (x *Transmitter) metadata() any {
	return map[string]any{
		"spec_version": "1_0", "issuer": x.Issuer, "jwks_uri": x.Issuer + KeysPath,
		"delivery_methods_supported": []string{"urn:ietf:rfc:8935", "urn:ietf:rfc:8936"},
		"configuration_endpoint":     x.Issuer + StreamPath, "status_endpoint": x.Issuer + StatusPath, "verification_endpoint": x.Issuer + VerifyPath,
		"authorization_schemes": []any{map[string]any{"spec_urn": "urn:ietf:rfc:6749"}}, "default_subjects": "ALL",
	}
}

// stream is the configuration of the stream (SSF, section 8.1.1).
func (x *Transmitter) stream() any {
	x.mu.Lock()
	defer x.mu.Unlock()
	delivery := map[string]any{"method": "urn:ietf:rfc:8936", "endpoint_url": x.Issuer + PollPath}
	if x.push != nil {
		delivery = map[string]any{"method": "urn:ietf:rfc:8935", "endpoint_url": x.push.url}
	}
	events := []string{SessionRevoked, CredentialChange, AccountDisabled, AccountEnabled, AccountPurged}
	return map[string]any{"stream_id": x.StreamID, "iss": x.Issuer, "aud": x.Audience, "events_supported": events, "events_delivered": events, "delivery": delivery}
}

// poll answers a poll (RFC 8936, section 2).
func (x *Transmitter) poll(w http.ResponseWriter, r *http.Request) {
	var body struct {
		MaxEvents *int                `json:"maxEvents"`
		Ack       []string            `json:"ack"`
		SetErrs   map[string]SetError `json:"setErrs"`
	}
	if err := readJSON(r, &body); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.polls++
	x.acked = append(x.acked, body.Ack...)
	maps.Copy(x.errs, body.SetErrs)
	x.queue = slices.DeleteFunc(x.queue, func(q queued) bool {
		_, wrong := body.SetErrs[q.id]
		return wrong || slices.Contains(body.Ack, q.id)
	})
	most := len(x.queue)
	if body.MaxEvents != nil {
		most = min(most, *body.MaxEvents)
	}
	sets := map[string]string{}
	for _, q := range x.queue[:most] {
		sets[q.id] = q.token
	}
	answer(w, http.StatusOK, map[string]any{"sets": sets, "moreAvailable": len(x.queue) > most})
}

func readJSON(r *http.Request, into any) error {
	text, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return err
	}
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		return fmt.Errorf("the body is %q", got)
	}
	return json.NewDecoder(bytes.NewReader(text)).Decode(into)
}

// verify accepts a request for a verification event, and sends the event (SSF, section
// 8.1.4).
func (x *Transmitter) verify(w http.ResponseWriter, r *http.Request) {
	var body struct {
		StreamID string `json:"stream_id"`
		State    string `json:"state"`
	}
	switch err := readJSON(r, &body); {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
		return
	case body.StreamID != x.StreamID:
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.WriteHeader(http.StatusNoContent)
	claims := x.Claims(Verification, map[string]any{"format": "opaque", "id": x.StreamID}, map[string]any{"state": body.State})
	_, _, _ = x.Send(context.WithoutCancel(r.Context()), claims) // a lost event is requested again
}
