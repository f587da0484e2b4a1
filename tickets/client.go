package tickets

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/internal/outbound"
	"accessbroker.internal/internal/retryafter"
)

const (
	callTimeout = 5 * time.Second // of one call, with its answer
	maxAnswer   = 1 << 20         // bytes of an answer
	userAgent   = "access-broker"
)

// A Host is where a tracker is, and how the broker proves itself there.
type Host struct {
	URL          string
	Roots        *x509.CertPool // nil: the system's
	AllowPrivate bool           // allow addresses that are not public, and http on loopback

	// Secret reads the password or token for each call, because another program may
	// renew it. Nil: the tracker needs none.
	Secret   func() (string, error)
	Username string // with a password (RFC 7617); empty: the secret is a token
	Header   string // that has the token; empty: a bearer token in Authorization (RFC 6750)

	Transport http.RoundTripper // for tests; nil: to public addresses, see package outbound
}

// A client calls one host.
type client struct {
	host Host
	base *url.URL
	http *http.Client
}

func newClient(h Host) (*client, error) {
	if err := outbound.CheckURL(h.URL, h.AllowPrivate); err != nil {
		return nil, err
	}
	base, err := url.Parse(h.URL)
	if err != nil {
		return nil, err
	}
	c := &client{host: h, base: base, http: outbound.Client(h.Roots, h.AllowPrivate)}
	if t, ok := c.http.Transport.(*http.Transport); ok {
		t.MaxConnsPerHost, t.MaxIdleConnsPerHost = lookAtOnce+pollAtOnce, lookAtOnce+pollAtOnce
	}
	if h.Transport != nil {
		c.http.Transport = h.Transport
	}
	return c, nil
}

// ErrNoTicket means that the tracker has no such ticket, or does not show it to the broker.
var ErrNoTicket = errors.New("the tracker has no such ticket")

// A Failure means that a tracker did not answer the question, so the ticket is unknown.
type Failure struct {
	Err   error
	Whole bool          // the tracker as a whole does not answer, not only for this ticket
	After time.Duration // when the tracker wants to be called again; zero: it did not say
	Moved bool          // it is elsewhere for good: 301 (RFC 9110, section 15.4.2)
}

func (f *Failure) Error() string { return f.Err.Error() }

func (f *Failure) Unwrap() error { return f.Err }

// path returns the URL of segments below the base. Every segment is escaped, so that none
// can lead to another path.
func (c *client) path(query url.Values, segments ...string) (string, error) {
	u := *c.base
	text := strings.TrimSuffix(u.EscapedPath(), "/")
	for _, s := range segments {
		if s == "" || s == "." || s == ".." {
			return "", fmt.Errorf("%q can't be a part of an address", s)
		}
		text += "/" + url.PathEscape(s)
	}
	u.RawPath = text
	var err error
	if u.Path, err = url.PathUnescape(text); err != nil {
		return "", err
	}
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// get calls a URL of the host and decodes the JSON of the answer into v.
func (c *client) get(ctx context.Context, address string, header http.Header, v any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil || req.URL.Host != c.base.Host || req.URL.Scheme != c.base.Scheme {
		return errors.New("the address is not one of the tracker's")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", userAgent)
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	if err := c.authorize(req); err != nil {
		return &Failure{Err: err, Whole: true}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return &Failure{Err: fmt.Errorf("calling the tracker: %w", outbound.Cause(err)), Whole: true}
	}
	defer func() { _ = resp.Body.Close() }()
	if err := checkStatus(resp); err != nil {
		return err
	}
	return decode(resp.Body, v)
}

// authorize adds the secret to a call.
func (c *client) authorize(req *http.Request) error {
	if c.host.Secret == nil {
		return nil
	}
	secret, err := c.host.Secret()
	switch {
	case err != nil:
		return err
	case c.host.Username != "":
		req.SetBasicAuth(c.host.Username, secret)
	case c.host.Header != "":
		req.Header.Set(c.host.Header, secret)
	default:
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	return nil
}

// checkStatus turns a status other than 200 into an error. A redirect is never followed:
// its target is not an address of the operator's file.
func checkStatus(resp *http.Response) error {
	failed := fmt.Errorf("the tracker answered %d", resp.StatusCode)
	switch s := resp.StatusCode; {
	case s == http.StatusOK:
		return nil
	case s == http.StatusNotFound, s == http.StatusGone:
		return ErrNoTicket
	case s/100 == 3:
		return &Failure{Err: fmt.Errorf("the tracker answered with a redirect (%d), which is not followed", s), Moved: s == http.StatusMovedPermanently}
	case s == http.StatusUnauthorized:
		return &Failure{Err: fmt.Errorf("%w: it does not accept the broker's credentials", failed), Whole: true}
	case s == http.StatusTooManyRequests, s == http.StatusServiceUnavailable, s == http.StatusForbidden && exhausted(resp.Header):
		return &Failure{Err: failed, Whole: true, After: max(retryafter.Parse(resp.Header), reset(resp.Header))}
	}
	return &Failure{Err: failed}
}

// exhausted reports whether a refusal is GitHub's rate limit, which has status 403 too.
func exhausted(h http.Header) bool {
	return h.Get("Retry-After") != "" || h.Get("X-RateLimit-Remaining") == "0"
}

// reset returns the time until GitHub's rate limit allows calls again.
func reset(h http.Header) time.Duration {
	seconds, err := strconv.ParseInt(h.Get("X-RateLimit-Reset"), 10, 64)
	if err != nil || h.Get("X-RateLimit-Remaining") != "0" {
		return 0
	}
	return min(max(time.Until(time.Unix(seconds, 0)), 0), retryafter.Max)
}

// decode reads a bounded answer. A longer one is as good as none.
func decode(body io.Reader, v any) error {
	text, err := io.ReadAll(io.LimitReader(body, maxAnswer+1))
	switch {
	case err != nil:
		return &Failure{Err: fmt.Errorf("reading the tracker's answer: %w", outbound.Cause(err)), Whole: true}
	case len(text) > maxAnswer:
		return &Failure{Err: fmt.Errorf("the tracker's answer is longer than %d bytes", maxAnswer)}
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // a long number is an id
	if err := d.Decode(v); err != nil || d.More() {
		return &Failure{Err: errors.New("the tracker's answer is not the expected JSON")} // without the text, which is the tracker's
	}
	return nil
}
