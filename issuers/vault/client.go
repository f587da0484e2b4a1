package vault

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"accessbroker.internal/broker"
)

// newClient returns a client that cfg alone configures. The library also reads
// VAULT_TOKEN, VAULT_NAMESPACE and VAULT_HEADERS, which are meant for terminals.
func newClient(cfg Config, transport http.RoundTripper, retries int) (*api.Client, error) {
	c, err := api.NewClient(&api.Config{
		Address: cfg.Address, HttpClient: &http.Client{Transport: transport}, MaxRetries: retries,
		MinRetryWait: 100 * time.Millisecond, MaxRetryWait: time.Second, Timeout: broker.IssueDeadline,
	})
	if err != nil {
		return nil, fmt.Errorf("configuring a client for Vault at %s: %w", cfg.Address, err)
	}
	c.ClearToken()
	c.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	if cfg.Namespace != "" {
		c.SetNamespace(cfg.Namespace)
	}
	return c, nil
}

func newTransport(cfg *tls.Config) http.RoundTripper {
	return bounded{&http.Transport{
		TLSClientConfig: cfg, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 32,
		IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
	}}
}

const maxAnswer = 1 << 20 // bytes

// bounded limits answers to maxAnswer bytes.
type bounded struct{ http.RoundTripper }

func (t bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// sentOnce keeps the transport from sending a request twice. By itself,
// http.Transport repeats a GET when a reused connection breaks, and Vault may
// have made a credential by then. It never repeats a request whose body it can't
// read again, so sentOnce gives bodiless requests an empty body of that kind.
type sentOnce struct{ http.RoundTripper }

func (t sentOnce) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.Body == http.NoBody {
		r = r.Clone(r.Context())
		r.Body, r.GetBody = io.NopCloser(strings.NewReader("")), nil
	}
	return t.RoundTripper.RoundTrip(r)
}

// withToken returns a client that sends token with every request. Like withClock,
// it copies the client and shares its connections, as one Issuer uses many tokens
// at once.
func withToken(c *api.Client, token string) *api.Client {
	return c.WithRequestCallbacks(func(r *api.Request) { r.ClientToken = token })
}

// withClock returns a client that stores in ahead how far Vault's clock is ahead of
// ours, to the second.
func withClock(c *api.Client, ahead *time.Duration) *api.Client {
	return c.WithResponseCallbacks(func(r *api.Response) { *ahead = clockAhead(r) })
}

func clockAhead(r *api.Response) time.Duration {
	date, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil {
		return 0
	}
	return time.Until(date)
}

// A request is a call that creates a credential.
type request struct {
	path string
	data map[string]any // nil: the path is read
	wrap time.Duration  // TTL of the wrapping token; zero: the answer is not wrapped
	late time.Duration  // by how much the credential may outlive its lease
}

// An answer is Vault's response, with the time that its clock is ahead of ours.
type answer struct {
	*api.Secret
	ahead time.Duration
}

// leaseEnd returns when the credential's Vault lease ends.
func (a *answer) leaseEnd() time.Time {
	return time.Now().Add(time.Duration(a.LeaseDuration) * time.Second)
}

// after returns the time that is d from now by Vault's clock, rounded up.
func (a *answer) after(d time.Duration) time.Time {
	return time.Now().Add(a.ahead + time.Second + d)
}

// send sends a request.
func send(ctx context.Context, c *api.Client, token string, r request) (*answer, error) {
	a, status := &answer{}, 0
	logical := c.WithRequestCallbacks(func(q *api.Request) {
		if q.ClientToken = token; r.wrap > 0 {
			q.WrapTTL = fmt.Sprintf("%ds", int64(r.wrap/time.Second))
		}
	}).WithResponseCallbacks(func(p *api.Response) {
		a.ahead, status = clockAhead(p), p.StatusCode
	}).Logical()
	var err error
	if r.data == nil {
		a.Secret, err = read(ctx, logical, r.path)
	} else {
		a.Secret, err = logical.WriteWithContext(ctx, r.path, r.data)
	}
	var response *api.ResponseError
	switch {
	case status >= 400 && !errors.As(err, &response):
		// The library took the body of a 404 for an answer, or could not read it.
		return nil, classify(&api.ResponseError{StatusCode: status})
	case err != nil:
		return nil, classify(err)
	case status == http.StatusNoContent:
		a.Secret = &api.Secret{}
	case a.Secret == nil:
		return nil, errUnreadable
	}
	return a, nil
}

// read reads a path. Unlike the library's other ways to read, the raw one
// returns the error of an answer with status 404.
func read(ctx context.Context, c *api.Logical, path string) (*api.Secret, error) {
	resp, err := c.ReadRawWithContext(ctx, path)
	if resp != nil {
		defer func() { _ = resp.Body.Close() }()
	}
	if err != nil {
		return nil, err
	}
	return api.ParseSecret(resp.Body)
}

// A fault is an error of Vault. It omits Vault's own text, which may repeat the
// request or come from plugins that call other systems.
type fault struct {
	kind   error // ErrIssuerRefused or ErrIssuerUnavailable
	status int   // HTTP; 0: no answer
	text   string
}

func (e *fault) Error() string { return fmt.Sprintf("%v: %s", e.kind, e.text) }
func (e *fault) Unwrap() error { return e.kind }

var errUnreadable = &fault{broker.ErrIssuerUnavailable, 0, "Vault's answer can't be read"}

// status returns the HTTP status that Vault answered; 0 if there is none.
func status(err error) int {
	var f *fault
	if errors.As(err, &f) {
		return f.status
	}
	return 0
}

// withoutKind returns a fault's text as an error that matches neither
// ErrIssuerRefused nor ErrIssuerUnavailable.
func withoutKind(err error) error {
	var f *fault
	if errors.As(err, &f) {
		return errors.New(f.text)
	}
	return err
}

// classify turns an error of the library into a fault; nil stays nil.
func classify(err error) error {
	var response *api.ResponseError
	var network *url.Error
	var syntax *json.SyntaxError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &response):
		return &fault{faultKind(response.StatusCode), response.StatusCode, fmt.Sprintf("Vault answered %d, %s", response.StatusCode, knownMessage(response))}
	case errors.Is(err, context.DeadlineExceeded):
		return &fault{broker.ErrIssuerUnavailable, 0, "Vault did not answer in time"}
	case errors.As(err, &network):
		return &fault{broker.ErrIssuerUnavailable, 0, "Vault can't be reached: " + network.Err.Error()}
	case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF):
		return errUnreadable
	}
	return &fault{broker.ErrIssuerUnavailable, 0, "the call to Vault failed: " + err.Error()}
}

// faultKind separates a refusal from a Vault that can't answer: 429 is a quota,
// 472 and 473 are standbys, and 5xx is sealed or worse.
func faultKind(status int) error {
	if status == http.StatusTooManyRequests || status == 472 || status == 473 || status >= 500 {
		return broker.ErrIssuerUnavailable
	}
	return broker.ErrIssuerRefused
}

// knownMessage returns which of Vault's own, fixed messages an error contains,
// or the text of its status.
func knownMessage(e *api.ResponseError) string {
	all := strings.Join(e.Errors, "; ")
	for _, message := range []string{
		"permission denied", "invalid token", "invalid accessor", "no handler for route", "unsupported path", "unsupported operation",
		"Vault is sealed", "unknown role", "missing client token", "token not found", "lease not found", "service unavailable",
	} {
		if strings.Contains(all, message) {
			return message
		}
	}
	return http.StatusText(e.StatusCode)
}
