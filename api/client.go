package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// A Client calls a broker. It is safe for concurrent use. Do not change its fields
// after the first call.
//
// Either the certificate that HTTP presents (an X.509-SVID) or the token that Token
// returns (a JWT-SVID, an OIDC workload token or a session's token) proves the caller, never both.
//
// Calls that are safe to repeat are retried up to twice, within seconds, if the
// connection fails or the broker is unavailable. A response with a status other
// than 2xx is an *Error.
type Client struct {
	BaseURL string                                // "https://broker.acme.test"
	HTTP    *http.Client                          // nil: a zero http.Client; redirects are never followed
	Token   func(context.Context) (string, error) // nil: the certificate is the proof

	// ProofKey, if set, proves the possession of a key (DPoP, RFC 9449) in the calls that
	// request, collect and renew credentials. Tokens are bound to it.
	ProofKey *ProofKey
}

// Ask files a request. If policy denies it, the *Error has code Denied and the
// reasons. If it needs approval, its status is StatusPending.
func (c *Client) Ask(ctx context.Context, ask Ask) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodPost, path: "/v1/requests", body: ask, keyed: true, bound: true})
}

// AskAndCollect files a request and, if it needs no approval, collects its
// credential in the same call. If it needs approval, the credential is nil and the
// request is pending.
func (c *Client) AskAndCollect(ctx context.Context, ask Ask) (*Credential, *Request, error) {
	credential, pending := new(Credential), new(Request)
	status, err := c.doEither(ctx, call{method: http.MethodPost, path: "/v1/credentials", body: ask, keyed: true, bound: true}, credential, pending)
	switch {
	case err != nil:
		return nil, nil, err
	case status == http.StatusAccepted:
		return nil, pending, nil
	}
	return credential, nil, nil
}

// Collect collects a credential of an approved request. If the answer to an earlier
// attempt was lost, the broker revokes that attempt's credential.
func (c *Client) Collect(ctx context.Context, request string) (*Credential, error) {
	return fetch[Credential](ctx, c, call{method: http.MethodPost, path: "/v1/requests/" + url.PathEscape(request) + "/credentials", keyed: true, bound: true})
}

// Withdraw withdraws a pending request of the caller, or ends one that was made on the
// caller's behalf.
func (c *Client) Withdraw(ctx context.Context, request string) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodPost, path: "/v1/requests/" + url.PathEscape(request) + "/withdraw"})
}

// Vote approves or denies a request. It needs a person's session.
func (c *Client) Vote(ctx context.Context, request string, v Vote) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodPost, path: "/v1/requests/" + url.PathEscape(request) + "/approvals", body: v})
}

// Review records a verdict on a break-glass use. It needs a person's session.
func (c *Client) Review(ctx context.Context, request string, f Finding) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodPost, path: "/v1/requests/" + url.PathEscape(request) + "/review", body: f})
}

// Request returns a request.
func (c *Client) Request(ctx context.Context, id string) (*Request, error) {
	return fetch[Request](ctx, c, call{method: http.MethodGet, path: "/v1/requests/" + url.PathEscape(id), retry: true})
}

// MaxWait is the longest wait of one long poll.
const MaxWait = 60 * time.Second

// Await returns a request when its version exceeds after, or in its present state
// when wait (at most MaxWait) has passed.
func (c *Client) Await(ctx context.Context, id string, after int, wait time.Duration) (*Request, error) {
	query := url.Values{"after": {strconv.Itoa(after)}, "wait": {Duration(min(wait, MaxWait)).String()}}
	return fetch[Request](ctx, c, call{method: http.MethodGet, path: "/v1/requests/" + url.PathEscape(id), query: query, retry: true})
}

// A RequestFilter selects requests. The zero value selects all of the caller.
type RequestFilter struct {
	Status      string
	Requester   string // another requester, or "*" for all whose requests the caller may view; empty: the caller, or all for an operator
	OnBehalfOf  string // only on behalf of this person or workload; with an empty Requester, by any requester
	Entitlement string
	Team        string // of the requester
	Risk        string // low, medium or high
	Text        string // words that a request's names, justification and ticket contain
	Inbox       bool   // only what waits for the caller's decision or review, in the order of the inbox; the empty Requester selects all
	Order       string // with Inbox: risk (the default), oldest, newest or deadline
	Cursor      string // Next of the previous page
	Limit       int    // zero: 50; at most 200
}

// Query returns the filter as the query of a call.
func (f RequestFilter) Query() url.Values {
	inbox := ""
	if f.Inbox {
		inbox = "true"
	}
	return values("status", f.Status, "requester", f.Requester, "on_behalf_of", f.OnBehalfOf, "entitlement", f.Entitlement, "team", f.Team, "risk", f.Risk, "q", f.Text,
		"inbox", inbox, "order", f.Order, "cursor", f.Cursor, "limit", number(f.Limit))
}

// Requests lists requests, newest first.
func (c *Client) Requests(ctx context.Context, f RequestFilter) (*RequestPage, error) {
	return fetch[RequestPage](ctx, c, call{method: http.MethodGet, path: "/v1/requests", query: f.Query(), retry: true})
}

// Entitlements returns the entitlements that the caller may request.
func (c *Client) Entitlements(ctx context.Context) ([]Offer, error) {
	var out Offers
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/entitlements", retry: true}, &out)
	return out.Entitlements, err
}

// Lease returns a lease.
func (c *Client) Lease(ctx context.Context, id string) (*Lease, error) {
	return fetch[Lease](ctx, c, call{method: http.MethodGet, path: "/v1/leases/" + url.PathEscape(id), retry: true})
}

// A LeaseFilter selects leases. The zero value selects all of the caller.
type LeaseFilter struct {
	Holder      string // another holder, or "*" for all whose leases the caller may view; empty: the caller, or all for an operator
	Entitlement string
	Request     string
	Live        bool   // only leases whose credentials may still work, including expired ones that the issuer has not ended
	Cursor      string // Next of the previous page
	Limit       int    // zero: 50; at most 200
}

// Query returns the filter as the query of a call.
func (f LeaseFilter) Query() url.Values {
	live := ""
	if f.Live {
		live = "true"
	}
	return values("holder", f.Holder, "entitlement", f.Entitlement, "request", f.Request, "live", live, "cursor", f.Cursor, "limit", number(f.Limit))
}

// Leases lists leases, newest first.
func (c *Client) Leases(ctx context.Context, f LeaseFilter) (*LeasePage, error) {
	return fetch[LeasePage](ctx, c, call{method: http.MethodGet, path: "/v1/leases", query: f.Query(), retry: true})
}

// Renew returns a new credential under the same grant. The broker revokes the old
// one.
func (c *Client) Renew(ctx context.Context, lease string) (*Credential, error) {
	return fetch[Credential](ctx, c, call{method: http.MethodPost, path: "/v1/leases/" + url.PathEscape(lease) + "/renew", keyed: true, bound: true})
}

// Revoke revokes a lease of the caller or, if policy permits it, of another holder.
// Revoking an ended lease is not an error. The Revocation of the returned lease is
// the effect so far.
func (c *Client) Revoke(ctx context.Context, lease, reason string) (*Lease, error) {
	return fetch[Lease](ctx, c, call{
		method: http.MethodPost, path: "/v1/leases/" + url.PathEscape(lease) + "/revoke",
		body: Revocation{Reason: reason}, retry: true,
	})
}

// Abandon closes a lease that can't be revoked because its issuer no longer exists.
// It needs a reason.
func (c *Client) Abandon(ctx context.Context, lease, reason string) (*Lease, error) {
	return fetch[Lease](ctx, c, call{method: http.MethodPost, path: "/v1/leases/" + url.PathEscape(lease) + "/abandon", body: Revocation{Reason: reason}})
}

// WhoAmI returns the identity of the caller.
func (c *Client) WhoAmI(ctx context.Context) (*Identity, error) {
	return fetch[Identity](ctx, c, call{method: http.MethodGet, path: "/v1/whoami", retry: true})
}

// AuditRecord returns a record of the log, for auditors and the parties to it.
func (c *Client) AuditRecord(ctx context.Context, index int64) (*AuditRecord, error) {
	return fetch[AuditRecord](ctx, c, call{method: http.MethodGet, path: "/v1/audit/" + strconv.FormatInt(index, 10), retry: true})
}

// AuditFilter selects records of the log; zero fields select all.
type AuditFilter struct {
	Kind        string // such as block.placed, or block for all kinds about blocks
	Who         string // an identity that caused the record, or that it is about
	Entitlement string
	Text        string    // in the record, or in a text next to it, in any case
	From, To    time.Time // from From until just before To
	Cursor      string    // Next of the previous page
	Limit       int       // zero: 50; at most 200
}

// SearchAudit searches the log, newest first. It needs the action audit.
func (c *Client) SearchAudit(ctx context.Context, f AuditFilter) (*AuditPage, error) {
	query := values("kind", f.Kind, "who", f.Who, "entitlement", f.Entitlement, "q", f.Text, "from", stamp(f.From), "to", stamp(f.To), "cursor", f.Cursor, "limit", number(f.Limit))
	return fetch[AuditPage](ctx, c, call{method: http.MethodGet, path: "/v1/audit", query: query, retry: true})
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// Checkpoint returns the latest signed checkpoint of the log (a C2SP signed note).
func (c *Client) Checkpoint(ctx context.Context) ([]byte, error) {
	var out raw
	err := c.do(ctx, call{method: http.MethodGet, path: "/log/checkpoint", anonymous: true, retry: true}, &out)
	return out, err
}

// Ready returns the readiness of the broker.
func (c *Client) Ready(ctx context.Context) (*Readiness, error) {
	out := new(Readiness)
	_, err := c.doEither(ctx, call{method: http.MethodGet, path: "/readyz", anonymous: true}, out, out)
	return out, err
}

// values returns a query of name and value pairs, without the empty values.
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

// BeginDevice starts a login with a code that the person types into a browser on
// another device (RFC 8628).
func (c *Client) BeginDevice(ctx context.Context) (*DeviceLogin, error) {
	return fetch[DeviceLogin](ctx, c, call{method: http.MethodPost, path: "/v1/sessions/device", anonymous: true})
}

// OpenSession exchanges the result of a login for a session. With a device code,
// the error is Pending or SlowDown until the person has decided.
func (c *Client) OpenSession(ctx context.Context, l Login) (*Session, error) {
	return fetch[Session](ctx, c, call{method: http.MethodPost, path: "/v1/sessions", body: l, anonymous: true})
}

// CloseSession ends the caller's session.
func (c *Client) CloseSession(ctx context.Context) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/sessions"}, nil)
}
