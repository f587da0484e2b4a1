package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// Sentinels of the transport. Those of the domain are in package broker.
var (
	errMethod      = errors.New(string(api.MethodNotAllowed))
	errMediaType   = errors.New(string(api.UnsupportedMediaType))
	errTooLarge    = errors.New(string(api.TooLarge))
	errGrantType   = errors.New(string(api.UnsupportedGrantType))
	errCrossOrigin = errors.New(string(api.CrossOrigin))
	errClientGone  = errors.New("client_gone")
	errInternal    = errors.New(string(api.Internal))
	errPanicked    = errors.New("a handler panicked")
)

// A meaning is what an error is to a caller.
type meaning struct {
	err    error
	status int        // HTTP, on /v1
	oauth  string     // the error of RFC 6749 section 5.2, RFC 8693 section 2.2.2 or RFC 8628 section 3.5
	title  string     // what happened
	advice string     // what to do, for errors that do not bring better advice of their own
	level  faultLevel // whose fault it is
}

type faultLevel bool

const (
	theirs faultLevel = false // logged at Warn
	ours   faultLevel = true  // logged at Error
)

// meanings is the one table from sentinel to HTTP status and OAuth error. The
// code is the sentinel's text. A test proves that no sentinel is missing, and
// that the OpenAPI document publishes the table.
var meanings = []meaning{
	{broker.ErrUnauthenticated, 401, "invalid_client", "The caller is not proved", "present an X.509-SVID over TLS or a JWT-SVID as bearer, of a trust domain that the broker accepts", theirs},
	{broker.ErrTwoIdentities, 400, "invalid_request", "Two proofs in one call", "present either a certificate or a JWT-SVID", theirs},
	{broker.ErrForeignSubject, 400, "invalid_request", "The subject_token is not the caller's own", "send the caller's own JWT-SVID as subject_token; acting for others is not offered", theirs},
	{broker.ErrProofExpired, 401, "invalid_client", "The caller's proof has expired", "fetch a new SVID and call again", theirs},
	{broker.ErrBlocked, 403, "access_denied", "Blocked", "ask the operators: they have blocked this access", theirs},
	{broker.ErrDenied, 403, "access_denied", "Denied", "see the reasons, and GET /v1/entitlements for what may be asked for", theirs},
	{broker.ErrNoLongerAllowed, 403, "access_denied", "No longer allowed", "policy has changed since the approval: file a new request", theirs},
	{broker.ErrNeedsNewRequest, 409, "access_denied", "Policy demands more now", "file a new request: policy demands more than was approved", theirs},
	{broker.ErrNotFound, 404, "invalid_request", "Not found", "check the id; what is not yours to see is not found either", theirs},
	{broker.ErrInvalidRequest, 400, "invalid_request", "Malformed", "compare the call with /openapi.json", theirs},
	{broker.ErrInvalidScope, 400, "invalid_scope", "Not a scope of this entitlement", "name at least one scope that GET /v1/entitlements lists, and each once", theirs},
	{broker.ErrInvalidTTL, 400, "invalid_request", "Not an allowed time", "give a positive duration such as \"15m\", no longer than allowed", theirs},
	{broker.ErrInvalidParameter, 400, "invalid_request", "Not an allowed parameter", "give the parameters that GET /v1/entitlements describes", theirs},
	{broker.ErrJustificationRequired, 400, "invalid_request", "A justification is required", "say why in justification", theirs},
	{broker.ErrTicketRequired, 400, "invalid_request", "A ticket is required", "name the ticket in ticket", theirs},
	{broker.ErrBindingRequiresMTLS, 400, "invalid_request", "The token is bound to a certificate", "call over TLS with an X.509-SVID", theirs},
	{broker.ErrPending, 409, "authorization_pending", "People have yet to approve", "wait, and collect again", theirs},
	{broker.ErrNotPending, 409, "access_denied", "The request is not pending", "file a new request", theirs},
	{broker.ErrLapsed, 409, "expired_token", "Nobody approved in time", "file a new request", theirs},
	{broker.ErrGrantEnded, 409, "expired_token", "The grant has ended", "file a new request", theirs},
	{broker.ErrGrantEndsTooSoon, 409, "expired_token", "The grant ends too soon", "file a new request: what is left is shorter than the issuer's shortest credential", theirs},
	{broker.ErrNotYet, 409, "access_denied", "The grant has not started", "collect when it has", theirs},
	{broker.ErrStaleDigest, 409, "invalid_request", "Not the request that you saw", "look at the request again, and send its digest", theirs},
	{broker.ErrAlreadyVoted, 409, "invalid_request", "You have said so already", "one person has one voice; what you approved you may still deny", theirs},
	{broker.ErrSessionRequired, 403, "access_denied", "Only people do this", "log in to the broker: broker login, or its pages", theirs},
	{broker.ErrLoginStale, 403, "access_denied", "Your groups were last confirmed too long ago", "log in again", theirs},
	{broker.ErrOwnRequest, 403, "access_denied", "Your own request", "somebody else must approve: nobody approves for themselves, or for workloads that they answer for", theirs},
	{broker.ErrNotApprover, 403, "access_denied", "Not an approver", "only members of the groups that the request names approve it", theirs},
	{broker.ErrCommentRequired, 400, "invalid_request", "A comment is required", "say why in comment", theirs},
	{broker.ErrSignatureRequired, 403, "access_denied", "A signature is required", "do it in the browser, with your passkey", theirs},
	{broker.ErrNobodyAccountable, 403, "access_denied", "Nobody answers for the caller", "ask the operators to name accountable people in attest.workloads", theirs},
	{broker.ErrNobodyCanApprove, 403, "access_denied", "Nobody could approve this", "ask the operators: too few listed people may approve; who asked does not count, nor who answers for the workload, nor a team that policy excludes, nor whom it forbids to approve", theirs},
	{broker.ErrReviewOverdue, 403, "access_denied", "An earlier emergency use is unreviewed", "ask its reviewers to close the review", theirs},
	{broker.ErrNoReview, 409, "invalid_request", "No review is open", "look at the request again", theirs},
	{broker.ErrLimit, 429, "access_denied", "Too many credentials in this time", "try again later", theirs},
	{broker.ErrMaxActive, 429, "access_denied", "Too many credentials at once", "give one back first", theirs},
	{broker.ErrTooManyPending, 429, "access_denied", "Too many requests wait for people", "withdraw one, or wait for an answer", theirs},
	{broker.ErrPreviewStale, 409, "invalid_request", "The preview is stale", "look at a new preview, and send its digest", theirs},
	{broker.ErrSlowDown, 429, "slow_down", "Too many calls", "call less often", theirs},
	{broker.ErrIdempotencyMismatch, 422, "invalid_request", "The Idempotency-Key was used for another body", "use a new key for a new call", theirs},
	{broker.ErrNotRenewable, 409, "invalid_request", "Not renewable", "collect again, or file a new request", theirs},
	{broker.ErrNotRevocable, 409, "invalid_request", "Only time ends this credential", "wait for its expiry", theirs},
	{broker.ErrIssuerUnavailable, 503, "temporarily_unavailable", "The issuer does not answer", "try again later: nothing was issued", ours},
	{broker.ErrIssuerRefused, 502, "server_error", "The issuer refused", "tell the operators: nothing was issued", ours},
	{broker.ErrPolicyTooLarge, 400, "invalid_request", "More than the issuer takes at once", "ask for fewer scopes, or for shorter parameters", theirs},
	{broker.ErrUnavailable, 503, "temporarily_unavailable", "The broker can't record anything now", "try again later: nothing was issued", ours},
	{broker.ErrInvalidTarget, 400, "invalid_target", "Not a target that tokens can be had for", "name in audience an entitlement of GET /v1/entitlements whose credentials are tokens, or in resource the one audience that fits its scopes", theirs},

	{errCrossOrigin, 403, "invalid_request", "Another site sent this", "open the page of the broker itself", theirs},
	{errGrantType, 400, "unsupported_grant_type", "Not a grant type of this broker", "use " + api.GrantTokenExchange + " or " + api.GrantClientCredentials, theirs},
	{errMethod, 405, "invalid_request", "Not a method of this resource", "use a method that the Allow header names", theirs},
	{errMediaType, 415, "invalid_request", "Not a media type of this resource", "send application/json on /v1 and application/x-www-form-urlencoded on /oauth2", theirs},
	{errTooLarge, 413, "invalid_request", "The body is too large", "send at most " + strconv.Itoa(maxBody) + " bytes", theirs},
	{errClientGone, 499, "server_error", "The client went away", "", theirs},
}

// unknown is what every other error means: no detail leaves.
var unknown = meaning{errInternal, 500, "server_error", "Internal error", "tell the operators the X-Request-Id of this call", ours}

func meaningOf(err error) meaning {
	for _, m := range meanings {
		if errors.Is(err, m.err) {
			return m
		}
	}
	return unknown
}

func (m meaning) code() api.Code { return api.Code(m.err.Error()) }

// oauthStatus is 400 but for what RFC 6749 section 5.2 says of invalid_client,
// and for what any HTTP client should understand: overload and our own faults.
func (m meaning) oauthStatus() int {
	if m.status == http.StatusUnauthorized || m.status == http.StatusRequestEntityTooLarge ||
		m.status == http.StatusMethodNotAllowed || m.status >= 500 || m.err == broker.ErrSlowDown || m.err == errMediaType {
		return m.status
	}
	return http.StatusBadRequest
}

// refuse makes an error of a sentinel and a sentence that says what to do.
func refuse(err error, detail string) error { return &broker.Refusal{Err: err, Detail: detail} }

// refusalOf gives what a refusal says; an empty one if err is none.
func refusalOf(err error) broker.Refusal {
	var r *broker.Refusal
	if errors.As(err, &r) {
		return *r
	}
	return broker.Refusal{}
}

// settle replaces what happened because the client went away: it is nobody's
// fault, and nobody will read the answer.
func settle(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return errClientGone
	}
	return err
}

// problem makes the answer to a failed call on /v1 (RFC 9457).
func (c *call) problem(err error) reply {
	m, body := meaningOf(err), c.problemOf(err)
	return reply{status: m.status, code: m.code(), body: body, mediaType: "application/problem+json", header: m.header(refusalOf(err))}
}

func (c *call) problemOf(err error) api.Problem {
	m, refusal := meaningOf(err), refusalOf(err)
	body := api.Problem{
		Type: c.s.url("/openapi.json#" + string(m.code())), Title: m.title, Status: m.status, Detail: m.advice,
		Instance: "urn:uuid:" + c.id, Code: m.code(), RequestID: refusal.RequestID.String(),
		DeniedBy: refusal.DeniedBy, Reasons: refusal.Reasons, Allowed: allowed(refusal.Allowed),
	}
	if refusal.Detail != "" {
		body.Detail = refusal.Detail
	}
	return body
}

// pollInterval is how long to wait between polls for an approval (RFC 8628,
// section 3.5, whose default it is).
const pollInterval = 5 * time.Second

// oauthError makes the answer to a failed call on /oauth2.
func (c *call) oauthError(err error) reply {
	m, refusal := meaningOf(err), refusalOf(err)
	name, status := m.oauth, m.oauthStatus()
	if c.proofIsSubject && name == "invalid_client" {
		// RFC 8693, section 2.2.2: a subject_token that is not acceptable
		// makes the request invalid.
		name, status = "invalid_request", http.StatusBadRequest
	}
	if m.err == broker.ErrDenied {
		name = denied(refusal)
	}
	body := api.OAuthError{
		Error: name, Description: asciiOnly(m.advice), Code: m.code(), RequestID: refusal.RequestID.String(),
		DeniedBy: refusal.DeniedBy, Reasons: refusal.Reasons, Allowed: allowed(refusal.Allowed),
	}
	if refusal.Detail != "" {
		body.Description = asciiOnly(refusal.Detail)
	}
	if name == "authorization_pending" {
		body.Interval = int(pollInterval / time.Second)
	}
	header := m.header(refusal)
	if status != http.StatusUnauthorized {
		header.Del("WWW-Authenticate")
	}
	return reply{status: status, code: m.code(), body: body, header: header}
}

// denied finds the OAuth error of a denial: a person's no is access_denied
// (RFC 8628, section 3.5). Where policy would give some of the scopes, the
// scopes are at fault (RFC 6749, section 5.2), else the target (RFC 8693,
// section 2.2.2).
func denied(r broker.Refusal) string {
	switch {
	case r.DeniedBy == "person":
		return "access_denied"
	case r.Allowed != nil && len(r.Allowed.Scopes) > 0:
		return "invalid_scope"
	}
	return "invalid_target"
}

func (m meaning) header(r broker.Refusal) http.Header {
	h := http.Header{}
	if m.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="access broker"`)
	}
	if r.Retry <= 0 && (m.err == broker.ErrSlowDown || m.status == http.StatusServiceUnavailable) {
		r.Retry = time.Second
	}
	if r.Retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int((r.Retry+time.Second-1)/time.Second)))
	}
	return h
}

func allowed(a *broker.Allowed) *api.Allowed {
	if a == nil {
		return nil
	}
	return &api.Allowed{Scopes: a.Scopes, MaxTTL: api.Duration(a.MaxTTL)}
}

// asciiOnly keeps to the characters that RFC 6749 section 5.2 allows in an
// error_description.
func asciiOnly(s string) string {
	b := []byte(s)
	for i, c := range b {
		switch {
		case c == '"':
			b[i] = '\''
		case c < 0x20 || c > 0x7e || c == '\\':
			b[i] = '?'
		}
	}
	return string(b)
}
