package signals

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/internal/outbound"
	"accessbroker.internal/internal/retryafter"
)

// Defaults and bounds of a Config.
const (
	DefaultMaxAge    = 24 * time.Hour
	DefaultPollEvery = 15 * time.Second
)

// A Config describes a transmitter. Apply, Issuer, Audience and keys are required, and so
// is one of Tokens and Poll.
type Config struct {
	Name     string
	Issuer   string // exactly as in its tokens
	Audience string // of its tokens for this receiver
	Subjects Subjects
	MaxAge   time.Duration // of a token; zero: DefaultMaxAge

	KeysURL string     // of its JWK Set; or
	Keys    []jwks.Key // its keys

	Tokens       []Secret // bearer tokens of pushes; a push needs one of them
	Poll         *Poll
	Verification *Verification

	Roots        *x509.CertPool // of the transmitter's endpoints; nil: the system's
	AllowPrivate bool           // its endpoints may have private addresses
	Log          *slog.Logger

	// Apply applies an event. An error means that the broker is at fault.
	Apply func(context.Context, signal.Event, time.Time) (signal.Outcome, error)
	// Observe counts what became of a token. kind is empty if it is not known.
	Observe func(transmitter string, kind signal.Kind, outcome signal.Outcome)
	// Polled is called after each poll that the transmitter answered.
	Polled func(ctx context.Context, transmitter string, now time.Time) error
	// Expect stores that a verification with this state was requested.
	Expect func(ctx context.Context, transmitter, state string, now time.Time) error
}

// A Secret returns a secret. It is called for each use, so that another program can
// replace the secret.
type Secret func() (string, error)

// Poll describes the endpoint from which events are fetched (RFC 8936).
type Poll struct {
	Endpoint string
	Token    Secret        // bearer token; nil: none
	Every    time.Duration // zero: DefaultPollEvery
}

// Verification describes how verification events are requested (SSF, section 8.1.4.2).
type Verification struct {
	Endpoint string
	StreamID string
	Token    Secret // bearer token; nil: none
	Every    time.Duration
}

// A Transmitter receives the events of one transmitter. It is safe for concurrent use.
type Transmitter struct {
	cfg    Config
	client *http.Client
	remote *jwks.Remote // nil: cfg.Keys are used
	slots  chan struct{}
}

// New returns a Transmitter. It makes no calls.
func New(cfg Config) *Transmitter {
	if cfg.MaxAge == 0 {
		cfg.MaxAge = DefaultMaxAge
	}
	t := &Transmitter{cfg: cfg, client: outbound.Client(cfg.Roots, cfg.AllowPrivate), slots: make(chan struct{}, pushesAtOnce)}
	if cfg.KeysURL != "" {
		t.remote = jwks.NewRemote(t.fetchKeys, t.logKeys)
	}
	return t
}

// Name returns the name of the transmitter.
func (t *Transmitter) Name() string { return t.cfg.Name }

// receive verifies a token and applies its event. If id is not empty, it must be that of
// the token. A *Rejection is for the transmitter to mend; another error means that the
// token must be sent again.
func (t *Transmitter) receive(ctx context.Context, token, id string, now time.Time) error {
	var e signal.Event
	c, err := t.verify(ctx, token, now)
	if err == nil && id != "" && c.id != id {
		err = malformed("the token was delivered under another id than its own (jti)")
	}
	if err == nil {
		e, err = t.event(c, now)
	}
	outcome, err := t.apply(ctx, e, err, now)
	t.cfg.Observe(t.cfg.Name, e.Kind, outcome)
	if rejection := (*Rejection)(nil); errors.As(err, &rejection) {
		t.cfg.Log.WarnContext(ctx, "a security event was rejected", "transmitter", t.cfg.Name, "outcome", outcome, "reason", rejection.Detail)
	} else if err != nil {
		t.cfg.Log.ErrorContext(ctx, "a security event could not be processed", "transmitter", t.cfg.Name, "err", err)
	}
	return err
}

// apply applies an event unless reading it failed.
func (t *Transmitter) apply(ctx context.Context, e signal.Event, failed error, now time.Time) (signal.Outcome, error) {
	var rejection *Rejection
	var ignored *unknown
	switch {
	case errors.As(failed, &rejection):
		return rejection.Outcome, failed
	case errors.As(failed, &ignored):
		// A receiver must not report events about subjects that it does not know (SSF,
		// section 9.3).
		return ignored.outcome, nil
	case failed != nil:
		return signal.Failed, failed
	}
	outcome, err := t.cfg.Apply(ctx, e, now)
	switch {
	case err != nil:
		return signal.Failed, err
	case outcome == signal.WrongState:
		return outcome, &Rejection{outcome, codeInvalidState, detailWrongState}
	case outcome == signal.Full:
		return outcome, errFull
	}
	return outcome, nil
}

var errFull = errors.New(detailTooManyAreHeld)

const maxAnswer = 4 << 20 // bytes

// fetchKeys fetches the JWK Set.
func (t *Transmitter) fetchKeys(ctx context.Context) (*jwks.Set, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), outbound.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.cfg.KeysURL, http.NoBody)
	if err != nil {
		return nil, err
	}
	body, err := t.call(req, nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	return jwks.Parse(body, "", "sig")
}

func (t *Transmitter) logKeys(set *jwks.Set, err error) {
	if err != nil {
		t.cfg.Log.Warn("the transmitter's keys can't be read", "transmitter", t.cfg.Name, "err", err)
		return
	}
	for _, l := range set.LeftOut {
		t.cfg.Log.Warn("a key of the transmitter is left out", "transmitter", t.cfg.Name, "key", l.String())
	}
}

// post sends JSON to an endpoint of the transmitter.
func (t *Transmitter) post(ctx context.Context, url string, token Secret, body any, statuses ...int) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return t.call(req, token, statuses...)
}

// A statusError is an answer with an unexpected status.
type statusError struct {
	status int
	after  time.Duration // Retry-After; zero: none
}

func (e *statusError) Error() string { return fmt.Sprintf("the transmitter answered %d", e.status) }

var errLongAnswer = fmt.Errorf("the answer of the transmitter is longer than %d bytes", maxAnswer)

// call returns the body of the answer if its status is one of statuses. Its errors
// contain no URL and no secret.
func (t *Transmitter) call(req *http.Request, token Secret, statuses ...int) ([]byte, error) {
	if token != nil {
		secret, err := token()
		if err != nil {
			return nil, fmt.Errorf("reading the bearer token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("calling the transmitter: %w", outbound.Cause(err))
	}
	defer func() { _ = resp.Body.Close() }()
	expected := false
	for _, status := range statuses {
		expected = expected || resp.StatusCode == status
	}
	if !expected {
		return nil, &statusError{resp.StatusCode, retryafter.Parse(resp.Header)}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = errLongAnswer
	}
	return body, err
}
