package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxAnswer   = 4 << 20 // bytes
	maxAttempts = 3
	maxPause    = 5 * time.Second // a longer Retry-After ends the retries
)

// A call describes one call of an endpoint.
type call struct {
	method    string
	path      string
	query     url.Values
	body      any        // JSON
	form      url.Values // alternative to body
	anonymous bool       // send no proof
	keyed     bool       // send an idempotency key, which makes the call safe to retry
	retry     bool       // the call is safe to retry without a key
	bound     bool       // the endpoint accepts proofs of possession
}

// raw is a response body that is not JSON.
type raw []byte

// fetch makes a call that returns a T on every success.
func fetch[T any](ctx context.Context, c *Client, call call) (*T, error) {
	out := new(T)
	if err := c.do(ctx, call, out); err != nil {
		return nil, err
	}
	return out, nil
}

// do makes a call that decodes every success into out, which may be nil.
func (c *Client) do(ctx context.Context, call call, out any) error {
	_, err := c.doEither(ctx, call, out, out)
	return err
}

// doEither makes a call, decodes status 202 into accepted and other successes into
// out, and returns the status. All attempts share one idempotency key, so that the
// broker recognizes the second as a repetition of the first.
func (c *Client) doEither(ctx context.Context, call call, out, accepted any) (int, error) {
	key := ""
	if call.keyed {
		key = rand.Text()
	}
	for attempt := 1; ; attempt++ {
		status, err := c.once(ctx, call, key, out, accepted)
		if err == nil || attempt == maxAttempts || !(call.keyed || call.retry) {
			return status, err
		}
		pause, retry := retryPause(err, attempt)
		if !retry || !sleep(ctx, pause) {
			return status, err
		}
	}
}

// retryPause reports whether another attempt within seconds may succeed, and
// returns the pause before it.
func retryPause(err error, attempt int) (time.Duration, bool) {
	if !Transient(err) {
		return 0, false
	}
	pause := time.Duration(attempt*attempt) * 200 * time.Millisecond
	var answer *Error
	if !errors.As(err, &answer) {
		var lost *lostError
		return pause, errors.As(err, &lost)
	}
	switch {
	case answer.Code == SlowDown: // other limits last longer than a few seconds
	case answer.Status == http.StatusBadGateway, answer.Status == http.StatusServiceUnavailable, answer.Status == http.StatusGatewayTimeout:
	default:
		return 0, false
	}
	return max(pause, answer.RetryAfter), answer.RetryAfter <= maxPause
}

// sleep reports whether d has passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// A lostError means that the connection failed: the broker may or may not have
// handled the call.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

func (c *Client) once(ctx context.Context, call call, key string, out, accepted any) (int, error) {
	resp, body, err := c.send(ctx, call, key)
	switch {
	case resp == nil:
		return 0, err
	case err != nil:
		return resp.StatusCode, err
	}
	if len(body) > maxAnswer {
		return resp.StatusCode, fmt.Errorf("the answer of %s is longer than %d bytes", call.path, maxAnswer)
	}
	return resp.StatusCode, c.read(call, resp, body, out, accepted)
}

func (c *Client) read(call call, resp *http.Response, body []byte, out, accepted any) error {
	notReady := call.path == "/readyz" && resp.StatusCode == http.StatusServiceUnavailable
	if resp.StatusCode/100 != 2 && !notReady {
		return readError(resp, body)
	}
	if resp.StatusCode == http.StatusAccepted {
		out = accepted
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *raw:
		*out = body
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("reading the answer of %s: %w: %w", call.path, ErrNotBroker, err)
	}
	if !complete(out) {
		return fmt.Errorf("reading the answer of %s: %w", call.path, ErrNotBroker)
	}
	return nil
}

// ErrNotBroker means that the response is not one of the broker's API.
var ErrNotBroker = errors.New("it is not a response of the broker's API")

// complete reports whether out has the fields that every response of its type has.
func complete(out any) bool {
	switch out := out.(type) {
	case *Identity:
		return out.ID != ""
	case *Request:
		return out.Status != ""
	case *Credential:
		return out.Lease != ""
	case *Lease:
		return out.ID != ""
	case *Session:
		return out.Token != ""
	}
	return true
}

// readError returns the *Error for a problem document (RFC 9457), an OAuth error
// (RFC 6749, section 5.2), or any other response, for example of a proxy.
func readError(resp *http.Response, body []byte) *Error {
	e := &Error{Status: resp.StatusCode, Title: http.StatusText(resp.StatusCode), RetryAfter: retryAfter(resp.Header)}
	e.Instance = resp.Header.Get("X-Request-Id")
	var doc struct {
		Problem
		OAuth        string `json:"error"`
		Description  string `json:"error_description"`
		DeferralCode Token  `json:"deferral_code"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return e
	}
	e.Code, e.OAuth = Code(firstNonEmpty(string(doc.Code), doc.OAuth)), doc.OAuth
	e.Title = firstNonEmpty(doc.Title, e.Title)
	e.Detail = firstNonEmpty(doc.Detail, doc.Description)
	e.DeferralCode = doc.DeferralCode
	e.Reasons, e.DeniedBy, e.Allowed, e.RequestID = doc.Reasons, doc.DeniedBy, doc.Allowed, doc.RequestID
	return e
}

// maxRetryAfter bounds what a Retry-After can state.
const maxRetryAfter = 24 * time.Hour

// retryAfter returns the pause that an answer states, in seconds or as a date (RFC 9110,
// section 10.2.3); proxies use both. A date counts by the clock of the server that wrote it.
// Zero means not stated.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

func (c *Client) request(ctx context.Context, call call, key string) (*http.Request, error) {
	target, err := c.url(call)
	if err != nil {
		return nil, err
	}
	body, contentType, err := call.payload()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, call.method, target.String(), body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	if trace, ok := ctx.Value(traceKey{}).(string); ok {
		req.Header.Set("Traceparent", trace)
	}
	if c.Token == nil || call.anonymous {
		return req, nil
	}
	token, err := c.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("getting the caller's token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return req, nil
}

type traceKey struct{}

// WithTraceparent returns a context whose calls state the trace that they belong to, as
// a traceparent (W3C Trace Context). The broker records it.
func WithTraceparent(ctx context.Context, traceparent string) context.Context {
	return context.WithValue(ctx, traceKey{}, traceparent)
}

// TraceparentOf returns the trace that WithTraceparent set, or "".
func TraceparentOf(ctx context.Context) string {
	text, _ := ctx.Value(traceKey{}).(string)
	return text
}

func (call call) payload() (io.Reader, string, error) {
	switch {
	case call.form != nil:
		return strings.NewReader(call.form.Encode()), "application/x-www-form-urlencoded", nil
	case call.body != nil:
		text, err := json.Marshal(call.body)
		return bytes.NewReader(text), "application/json", err
	}
	return nil, "", nil
}

// url returns the URL of a call. It rejects plain HTTP except to this machine,
// because others on the network could read the proof and the credential.
func (c *Client) url(call call) (*url.URL, error) {
	base, err := url.Parse(c.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("reading the broker's URL: %w", err)
	}
	if base.Scheme != "https" && !(base.Scheme == "http" && loopback(base.Hostname())) {
		return nil, fmt.Errorf("the broker's URL is %q: it must begin with https:// (http:// is only for this machine)", c.BaseURL)
	}
	target := base.JoinPath(call.path)
	target.RawQuery = call.query.Encode()
	return target, nil
}

func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
