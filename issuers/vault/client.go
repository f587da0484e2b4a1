package vault

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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
		Address: cfg.Address, HttpClient: &http.Client{Transport: transport, CheckRedirect: byLibrary}, MaxRetries: retries,
		MinRetryWait: 100 * time.Millisecond, MaxRetryWait: time.Second, Timeout: broker.IssueDeadline, CheckRetry: repeats,
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

// byLibrary leaves redirects to the library. It follows one, as of a standby, and never
// to a server without TLS; net/http would send the token there.
func byLibrary(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// repeats reports whether a client with retries sends a request again. An answer that
// names a time to wait is the caller's to follow, and send repeats a request that met
// no node of the cluster, or one too early.
func repeats(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if isDial(err) {
		return false, nil
	}
	if resp != nil && (resp.Header.Get("Retry-After") != "" || resp.StatusCode == http.StatusPreconditionFailed) {
		return false, ctx.Err()
	}
	return api.DefaultRetryPolicy(ctx, resp, err)
}

func newTransport(cfg *tls.Config) http.RoundTripper {
	return bounded{most: maxAnswer, RoundTripper: &http.Transport{
		TLSClientConfig: cfg, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 32,
		IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
	}}
}

const (
	maxAnswer = 1 << 20 // bytes
	maxList   = 64 << 20
)

// bounded limits the size of answers.
type bounded struct {
	http.RoundTripper
	most int64
}

func (t bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, t.most), resp.Body}
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

// A fault is an error of Vault. It omits Vault's own text, which may repeat the
// request or come from plugins that call other systems.
type fault struct {
	kind   error // ErrIssuerRefused or ErrIssuerUnavailable
	status int   // HTTP; 0: no answer
	text   string
	retry  time.Duration // Vault's Retry-After; zero: none
	unsent bool          // there was no connection to send the request on
}

func (e *fault) Error() string { return fmt.Sprintf("%v: %s", e.kind, e.text) }

// Unwrap returns the kind, with Vault's time for the next attempt if it named one.
func (e *fault) Unwrap() error {
	if e.retry > 0 {
		return &broker.Refusal{Err: e.kind, Detail: "the issuer accepts no requests at the moment: try again in " + broker.FormatDuration(e.retry), Retry: e.retry}
	}
	return e.kind
}

// unsent reports whether a request was not even sent.
func unsent(err error) bool {
	var f *fault
	return errors.As(err, &f) && f.unsent
}

func isDial(err error) bool {
	var network *net.OpError
	return errors.As(err, &network) && network.Op == "dial"
}

// unprocessed reports whether Vault certainly created nothing: it refused the request,
// or did not begin to process it.
func unprocessed(err error) bool {
	switch status(err) {
	case http.StatusForbidden, http.StatusPreconditionFailed, http.StatusTooManyRequests:
		return true
	}
	return unsent(err) || errors.Is(err, broker.ErrIssuerRefused)
}

var errUnreadable = &fault{kind: broker.ErrIssuerUnavailable, text: "Vault's answer can't be read"}

// status returns the HTTP status that Vault answered; 0 if there is none.
func status(err error) int {
	var f *fault
	if errors.As(err, &f) {
		return f.status
	}
	return 0
}

// says reports whether Vault's answer has one of the messages of knownMessage.
func says(err error, message string) bool {
	var f *fault
	return errors.As(err, &f) && strings.HasSuffix(f.text, message)
}

// unavailable returns a fault as one of an unavailable Vault.
func unavailable(err error) error {
	var f *fault
	if !errors.As(err, &f) {
		return err
	}
	g := *f
	g.kind = broker.ErrIssuerUnavailable
	return &g
}

// classify turns an error of the library into a fault; nil stays nil. The answer asked
// to wait for retry.
func classify(err error, retry time.Duration) error {
	var response *api.ResponseError
	var network *url.Error
	var syntax *json.SyntaxError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &response):
		return &fault{kind: faultKind(response.StatusCode), status: response.StatusCode, text: fmt.Sprintf("Vault answered %d, %s", response.StatusCode, knownMessage(response)), retry: retry}
	case errors.Is(err, context.DeadlineExceeded):
		return &fault{kind: broker.ErrIssuerUnavailable, text: "Vault did not answer in time"}
	case errors.As(err, &network):
		return &fault{kind: broker.ErrIssuerUnavailable, text: "Vault can't be reached: " + network.Err.Error(), unsent: isDial(network.Err)}
	case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF):
		return errUnreadable
	}
	return &fault{kind: broker.ErrIssuerUnavailable, text: "the call to Vault failed: " + err.Error()}
}

// faultKind separates a refusal from a Vault that can't answer: 408 and 425 are from
// proxies, 412 is a node that lags behind, 429 is a quota, 472 and 473 are standbys,
// and 5xx is sealed or worse.
func faultKind(status int) error {
	switch status {
	case http.StatusRequestTimeout, http.StatusPreconditionFailed, http.StatusTooEarly, http.StatusTooManyRequests, 472, 473:
		return broker.ErrIssuerUnavailable
	}
	if status >= 500 {
		return broker.ErrIssuerUnavailable
	}
	return broker.ErrIssuerRefused
}

// Messages of Vault about a token that it does not know, or no longer: together with
// "permission denied", and while it creates another token.
const (
	invalidToken = "invalid token"
	noParent     = "parent token lookup failed"
)

// knownMessage returns which of Vault's own, fixed messages an error contains,
// or the text of its status.
func knownMessage(e *api.ResponseError) string {
	all := strings.Join(e.Errors, "; ")
	for _, message := range []string{
		invalidToken, "permission denied", noParent, "invalid accessor", "no handler for route", "unsupported path", "unsupported operation",
		"Vault is sealed", "unknown role", "missing client token", "token not found", "lease not found", "service unavailable",
	} {
		if strings.Contains(all, message) {
			return message
		}
	}
	return http.StatusText(e.StatusCode)
}
