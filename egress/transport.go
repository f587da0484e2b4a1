package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
)

// Credentials supplies credentials. *agent.Keeper implements it.
type Credentials interface {
	// Credential returns the credential of an entitlement. It does not wait for approval:
	// the error is an *agent.PendingError while a request is pending.
	Credential(ctx context.Context, entitlement string) (*api.Credential, error)

	// Held returns the credentials that were obtained and may still work.
	Held() []*api.Credential

	// Rejected reports whether a call whose host rejected the credential is worth one
	// repetition with another credential.
	Rejected(ctx context.Context, c *api.Credential) bool
}

// A Transport makes calls under rules. It is an http.RoundTripper that follows no
// redirect: a caller who follows one makes another call, which is checked on its own. A
// Transport is safe for concurrent use.
type Transport struct {
	Policy      func() *Policy // the rules in force
	Credentials Credentials
	Meter       Meter                                                                // nil: calls are not counted, and none is made that must be recorded
	Resolver    Resolver                                                             // nil: the resolver of the system
	Roots       *x509.CertPool                                                       // nil: those of the system
	Dial        func(ctx context.Context, network, address string) (net.Conn, error) // nil: a net.Dialer

	mu      sync.Mutex
	pools   map[string]*http.Transport // by rule.pool, because rules allow different addresses
	secrets secrets
}

// RoundTrip makes a call under the rules of any entitlement. The error is a *Refusal.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) { return t.Do(r, "") }

// Do makes a call under the rules of an entitlement; "" is any of them. The error is a
// *Refusal.
func (t *Transport) Do(r *http.Request, entitlement string) (*http.Response, error) {
	return t.finish(r, call{entitlement: entitlement})
}

// finish makes a call, and closes its body if it is not made.
func (t *Transport) finish(r *http.Request, c call) (*http.Response, error) {
	resp, refusal := t.do(r, c)
	if refusal == nil {
		return resp, nil
	}
	if r.Body != nil {
		_ = r.Body.Close()
	}
	return nil, refusal
}

func (t *Transport) do(r *http.Request, c call) (*http.Response, *Refusal) {
	entitlement := c.entitlement
	refusal := c.read(r)
	var target Target
	if refusal == nil {
		target, refusal = t.Policy().match(c, t.holds)
	}
	if refusal != nil {
		t.count(Outcome{Entitlement: entitlement, Outcome: OutcomeRefused, Code: refusal.Code})
		return nil, refusal
	}
	x := t.exchange(r, target, c)
	resp, refusal := x.run()
	if refusal == nil && t.rejected(x, resp) {
		_ = resp.Body.Close()
		x = t.exchange(r, target, c)
		resp, refusal = x.run()
	}
	if refusal != nil {
		refusal.Entitlement = target.Entitlement
		x.finish(0, refusal)
		return nil, refusal
	}
	return resp, nil
}

func (t *Transport) exchange(r *http.Request, target Target, c call) *exchange {
	return &exchange{t: t, r: r, target: target, grant: target.rule.grant, websocket: c.websocket, outcome: Outcome{Entitlement: target.Entitlement}}
}

// rejected reports whether a call is to be made once again, because the host rejected a
// credential whose lease has ended. A call with a body can't be repeated; the next call
// has another credential.
func (t *Transport) rejected(x *exchange, resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
		return false
	}
	return t.Credentials.Rejected(x.r.Context(), x.credential) && x.body == nil
}

// MatchHost reports whether some rule names a host and a port, as CONNECT has them. The
// calls to the host are checked on their own.
func (t *Transport) MatchHost(scheme, hostport string) bool {
	return t.Policy().MatchHost(scheme, hostport)
}

// holds reports whether a credential of the entitlement is at hand.
func (t *Transport) holds(entitlement string) bool {
	return slices.ContainsFunc(t.Credentials.Held(), func(c *api.Credential) bool { return c.Entitlement == entitlement })
}

func (t *Transport) count(o Outcome) {
	if t.Meter != nil {
		t.Meter.Count(o)
	}
}

// read reads the call that a request wants. All of its parts that could name another
// target than the URL are refused.
func (c *call) read(r *http.Request) *Refusal {
	u := r.URL
	if u == nil || u.Opaque != "" || u.User != nil || u.Fragment != "" {
		return refuse(CodeInvalidURL, nextURL, "The URL has a user, a fragment, or no host")
	}
	if r.Host != "" && r.Host != u.Host {
		host, port, err := splitAuthority(r.Host, defaultPort(u.Scheme))
		other, otherPort, err2 := splitAuthority(u.Host, defaultPort(u.Scheme))
		if err != nil || err2 != nil || host != other || port != otherPort {
			return refuse(CodeInvalidURL, "send the host of the URL in the Host header", "The Host header names another host than the URL")
		}
	}
	raw := u.Scheme + "://" + u.Host + u.EscapedPath()
	if u.RawQuery != "" {
		raw += "?" + u.RawQuery
	}
	c.method, c.url, c.header = methodOr(r.Method), raw, r.Header
	return nil
}

func methodOr(method string) string {
	if method == "" {
		return http.MethodGet
	}
	return method
}

// pool returns the connections for a rule. They are not shared with another entitlement,
// nor with a rule that allows other addresses.
func (t *Transport) pool(r *rule) *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.pools[r.pool]; p != nil {
		return p
	}
	if t.pools == nil || len(t.pools) >= maxPools {
		t.closeIdle()
		t.pools = map[string]*http.Transport{}
	}
	p := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			o, err := originOf(address)
			if err != nil {
				return nil, err
			}
			return t.dial(ctx, r, o)
		},
		TLSClientConfig:        &tls.Config{RootCAs: t.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTimeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // the scrubber decodes
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        time.Minute,
	}
	t.pools[r.pool] = p
	return p
}

// maxPools bounds the pools: rules that are replaced leave theirs behind.
const maxPools = 1000

// CloseIdleConnections closes the connections that no call uses.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeIdle()
}

func (t *Transport) closeIdle() {
	for _, p := range t.pools {
		p.CloseIdleConnections()
	}
}

func originOf(address string) (origin, error) {
	host, port, refusal := splitAuthority(address, 443)
	if refusal != nil {
		return origin{}, refusal
	}
	return origin{"https", host, port}, nil
}

// nextOf has the next step after errors of the broker about what the edge did not state.
var nextOf = map[api.Code]string{
	api.JustificationRequired: `state why the calls are needed: start "broker proxy" with --why`,
	api.TicketRequired:        `name a ticket: start "broker proxy" with --ticket`,
	api.InvalidScope:          `name scopes: start "broker proxy" with --scope and one --entitlement`,
	api.InvalidParameter:      `name parameters: start "broker proxy" with --param and one --entitlement`,
}

// credential returns the credential of a call.
func (t *Transport) credential(ctx context.Context, entitlement string) (*api.Credential, *Refusal) {
	c, err := t.Credentials.Credential(ctx, entitlement)
	var pending *agent.PendingError
	var refused *Refusal
	var problem *api.Error
	switch {
	case err == nil && c != nil:
		return c, nil
	case errors.As(err, &pending):
		id := pending.Request.ID
		r := refuse(CodePending, "make the same call again once "+id+" is approved", "The call needs an approval, and request %s waits for it", id)
		r.Request, r.Err = id, err
		return nil, r
	case errors.As(err, &refused):
		return nil, refused
	case errors.As(err, &problem):
		next := nextOf[problem.Code]
		if next == "" {
			next = "see the reason, or call under another entitlement"
		}
		r := refuse(CodeNoCredential, next, "The broker refused the credential: %s", problem.Detail)
		r.Err = err
		return nil, r
	}
	r := refuse(CodeNoCredential, "call again later", "The broker did not issue a credential")
	r.Err = err
	return nil, r
}

// urlOf returns the URL that net/http sends exactly as it was matched.
func urlOf(t Target) (*url.URL, *Refusal) {
	path, err := url.PathUnescape(t.Path)
	u := &url.URL{Scheme: t.Scheme, Host: t.Host, Path: path, RawPath: t.Path, RawQuery: t.Query}
	if err != nil || u.EscapedPath() != t.Path {
		return nil, refuse(CodeInvalidURL, nextPath, "The path can't be sent as it was checked")
	}
	return u, nil
}
