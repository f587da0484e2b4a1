package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// A Client talks to a broker. It is safe for concurrent use; its fields are
// not to be changed once it is used.
//
// The caller is proved by the certificate that HTTP presents (an X.509-SVID),
// or by the JWT-SVID that Token gives; never by both.
type Client struct {
	BaseURL string                                // "https://broker.acme.test"
	HTTP    *http.Client                          // nil: http.DefaultClient; redirects are never followed
	Token   func(context.Context) (string, error) // nil: the certificate is the proof
}

// Ask files a request. A policy that denies is an *Error of code Denied with
// the reasons; a request that people have to approve comes back pending.
func (c *Client) Ask(ctx context.Context, ask Ask) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodPost, path: "/v1/requests", body: ask, again: true})
}

// AskAndCollect asks and, if policy approves by itself, collects in one call.
// If people have to approve, the credential is nil and the request is pending.
func (c *Client) AskAndCollect(ctx context.Context, ask Ask) (*Credential, *Request, error) {
	credential, pending := new(Credential), new(Request)
	status, err := c.doEither(ctx, call{method: http.MethodPost, path: "/v1/credentials", body: ask, again: true}, credential, pending)
	switch {
	case err != nil:
		return nil, nil, err
	case status == http.StatusAccepted:
		return nil, pending, nil
	}
	return credential, nil, nil
}

// Collect collects a credential of an approved request. If the answer to an
// earlier try was lost, its credential is ended and this one takes its place.
func (c *Client) Collect(ctx context.Context, request string) (*Credential, error) {
	return fetch[Credential](ctx, c, call{method: http.MethodPost, path: "/v1/requests/" + url.PathEscape(request) + "/credentials", again: true})
}

// Withdraw takes back a pending request of the caller's.
func (c *Client) Withdraw(ctx context.Context, request string) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodPost, path: "/v1/requests/" + url.PathEscape(request) + "/withdraw"})
}

// Vote says yes or no to a request. The caller is a person, in a session.
func (c *Client) Vote(ctx context.Context, request string, v Vote) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodPost, path: "/v1/requests/" + url.PathEscape(request) + "/approvals", body: v})
}

// Review says what a reviewer found of a broken glass.
func (c *Client) Review(ctx context.Context, request string, f Finding) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodPost, path: "/v1/requests/" + url.PathEscape(request) + "/review", body: f})
}

// Request gives a request.
func (c *Client) Request(ctx context.Context, id string) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodGet, path: "/v1/requests/" + url.PathEscape(id), retry: true})
}

// MaxWait is the longest that one long poll waits.
const MaxWait = 60 * time.Second

// Await gives a request once its version is past after, or as it is when wait
// (at most MaxWait) is over.
func (c *Client) Await(ctx context.Context, id string, after int, wait time.Duration) (*Request, error) {
	query := url.Values{"after": {strconv.Itoa(after)}, "wait": {Duration(min(wait, MaxWait)).String()}}
	return fetch[Request](ctx, c, call{method: http.MethodGet, path: "/v1/requests/" + url.PathEscape(id), query: query, retry: true})
}

// A RequestFilter selects requests; zero fields select all of the caller's.
type RequestFilter struct {
	Status      string
	Requester   string // somebody else, or "*" for everybody whose requests the caller may view; an operator gets everybody's
	Entitlement string
	Cursor      string // the Next of the page before
	Limit       int    // zero: 50; at most 200
}

// Requests lists requests, newest first.
func (c *Client) Requests(ctx context.Context, f RequestFilter) (*RequestPage, error) {
	query := values("status", f.Status, "requester", f.Requester, "entitlement", f.Entitlement, "cursor", f.Cursor, "limit", number(f.Limit))
	return fetch[RequestPage](ctx, c, call{method: http.MethodGet, path: "/v1/requests", query: query, retry: true})
}

// Entitlements tells what the caller may ask for.
func (c *Client) Entitlements(ctx context.Context) ([]Offer, error) {
	var out Offers
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/entitlements", retry: true}, &out)
	return out.Entitlements, err
}

// Lease gives a lease.
func (c *Client) Lease(ctx context.Context, id string) (*Lease, error) {
	return fetch[Lease](ctx, c, call{method: http.MethodGet, path: "/v1/leases/" + url.PathEscape(id), retry: true})
}

// A LeaseFilter selects leases; zero fields select all of the caller's.
type LeaseFilter struct {
	Holder      string // somebody else, or "*" for everybody whose leases the caller may view; an operator gets everybody's
	Entitlement string
	Request     string
	Live        bool   // only what may still work, also what has expired and its issuer has yet to end
	Cursor      string // the Next of the page before
	Limit       int    // zero: 50; at most 200
}

// Leases lists leases, newest first.
func (c *Client) Leases(ctx context.Context, f LeaseFilter) (*LeasePage, error) {
	live := ""
	if f.Live {
		live = "true"
	}
	query := values("holder", f.Holder, "entitlement", f.Entitlement, "request", f.Request, "live", live, "cursor", f.Cursor, "limit", number(f.Limit))
	return fetch[LeasePage](ctx, c, call{method: http.MethodGet, path: "/v1/leases", query: query, retry: true})
}

// Renew gives a new credential under the same grant; the lease's old one ends.
func (c *Client) Renew(ctx context.Context, lease string) (*Credential, error) {
	return fetch[Credential](ctx, c, call{method: http.MethodPost, path: "/v1/leases/" + url.PathEscape(lease) + "/renew", again: true})
}

// Revoke ends a lease: the caller's own, or with the right to, anybody's. The
// answer's Revocation says how true that is by now.
func (c *Client) Revoke(ctx context.Context, lease, reason string) (*Lease, error) {
	return fetch[Lease](ctx, c, call{
		method: http.MethodPost, path: "/v1/leases/" + url.PathEscape(lease) + "/revoke",
		body: Revocation{Reason: reason}, retry: true, // ending what has ended is no error
	})
}

// Abandon gives up a lease whose issuer is gone for good. It is for operators,
// and needs a reason.
func (c *Client) Abandon(ctx context.Context, lease, reason string) (*Lease, error) {
	return fetch[Lease](ctx, c, call{method: http.MethodPost, path: "/v1/leases/" + url.PathEscape(lease) + "/abandon", body: Revocation{Reason: reason}})
}

// WhoAmI says who the caller was proved to be.
func (c *Client) WhoAmI(ctx context.Context) (*Identity, error) {
	return fetch[Identity](ctx, c, call{method: http.MethodGet, path: "/v1/whoami", retry: true})
}

// AuditRecord gives a record of the log, to auditors and to those it names.
func (c *Client) AuditRecord(ctx context.Context, index int64) (*AuditRecord, error) {
	return fetch[AuditRecord](ctx, c, call{method: http.MethodGet, path: "/v1/audit/" + strconv.FormatInt(index, 10), retry: true})
}

// Checkpoint gives the log's latest signed checkpoint (a C2SP signed note).
func (c *Client) Checkpoint(ctx context.Context) ([]byte, error) {
	var out raw
	err := c.do(ctx, call{method: http.MethodGet, path: "/log/checkpoint", anonymous: true, retry: true}, &out)
	return out, err
}

// Ready says whether the broker is ready, and if not, what is not.
func (c *Client) Ready(ctx context.Context) (*Readiness, error) {
	out := new(Readiness)
	_, err := c.doEither(ctx, call{method: http.MethodGet, path: "/readyz", anonymous: true}, out, out)
	return out, err
}

// values makes a query of name and value pairs, leaving out what is empty.
func values(pairs ...string) url.Values {
	query := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			query.Set(pairs[i], pairs[i+1])
		}
	}
	return query
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// BeginDevice begins the login of a terminal that can't open a browser.
func (c *Client) BeginDevice(ctx context.Context) (*DeviceLogin, error) {
	return fetch[DeviceLogin](ctx, c, call{method: http.MethodPost, path: "/v1/sessions/device", anonymous: true})
}

// OpenSession trades what a terminal's login gave for a session. A device code
// is Pending or SlowDown until its person has decided.
func (c *Client) OpenSession(ctx context.Context, l Login) (*Session, error) {
	return fetch[Session](ctx, c, call{method: http.MethodPost, path: "/v1/sessions", body: l, anonymous: true})
}

// CloseSession logs the caller out.
func (c *Client) CloseSession(ctx context.Context) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/sessions"}, nil)
}
