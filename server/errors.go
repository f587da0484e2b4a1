package server

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// Sentinels of the transport. Package broker has those of the domain.
var (
	errMethod         = errors.New(string(api.MethodNotAllowed))
	errMediaType      = errors.New(string(api.UnsupportedMediaType))
	errTooLarge       = errors.New(string(api.TooLarge))
	errGrantType      = errors.New(string(api.UnsupportedGrantType))
	errCrossOrigin    = errors.New(string(api.CrossOrigin))
	errMisdirected    = errors.New(string(api.Misdirected))
	errNoStatusList   = errors.New(string(api.UnknownStatusList))
	errNotImplemented = errors.New(string(api.NotImplemented))
	errClientGone     = errors.New("client_gone")
	errInternal       = errors.New(string(api.Internal))
	errPanicked       = errors.New("a handler panicked")
)

// An errorRow is how clients see an error.
type errorRow struct {
	err    error
	status int    // HTTP, on /v1
	oauth  string // the error of RFC 6749 section 5.2, RFC 8693 section 2.2.2, RFC 8628 section 3.5 or RFC 9396 section 5
	title  string // what happened
	advice string // what to do, unless the error carries better advice
	fault  fault  // whose fault it is; sets the log level
}

type fault bool

const (
	clientFault fault = false // logged at Warn
	serverFault fault = true  // logged at Error
)

// errorTable is the one table from sentinel to HTTP status and OAuth error. The
// code is the sentinel's text. A test proves that no sentinel is missing, and
// that the OpenAPI document publishes the table.
var errorTable = []errorRow{
	{broker.ErrUnauthenticated, 401, "invalid_client", "Not authenticated", "present an X.509-SVID over TLS, or a JWT-SVID as bearer token, from a trust domain that the broker accepts", clientFault},
	{broker.ErrTwoIdentities, 400, "invalid_request", "Two identities in one call", "send proofs of one identity only: the token of a person on whose behalf the call is made needs its subject_token_type", clientFault},
	{broker.ErrForeignSubject, 400, "invalid_request", "The token of another identity is not accepted", "send an ID-JAG or access token of the person on whose behalf the call is made, issued for this caller and for this broker, and not used before", clientFault},
	{broker.ErrDelegation, 403, "invalid_grant", "The delegation is not possible", "check on whose behalf you ask, and the token that you exchange", clientFault},
	{broker.ErrActorNotAllowed, 403, "invalid_grant", "Another actor is meant", "get a proof of the person that names your SPIFFE ID", clientFault},
	{broker.ErrProofReplayed, 409, "invalid_grant", "The proof was used before", "get a new proof of the person: each counts once", clientFault},
	{broker.ErrProofExpired, 401, "invalid_client", "The SVID has expired", "fetch a new SVID and call again", clientFault},
	{broker.ErrTokenSpent, 401, "invalid_client", "The workload's token was used before", "get a new token from its issuer for each credential, or ask the operators to set one_time: false for the issuer", clientFault},
	{broker.ErrBlocked, 403, "access_denied", "Blocked", "ask the operators, who blocked this access", clientFault},
	{broker.ErrDenied, 403, "access_denied", "Denied", "see the reasons; GET /v1/entitlements lists what may be requested", clientFault},
	{broker.ErrNoLongerAllowed, 403, "access_denied", "No longer allowed", "policy has changed since the approval: file a new request", clientFault},
	{broker.ErrNeedsNewRequest, 409, "access_denied", "Policy now requires more", "file a new request: policy now requires more than was approved", clientFault},
	{broker.ErrNotFound, 404, "invalid_request", "Not found", "check the id; objects that you may not view are not found either", clientFault},
	{broker.ErrInvalidRequest, 400, "invalid_request", "Invalid request", "compare the call with /openapi.json", clientFault},
	{broker.ErrInvalidScope, 400, "invalid_scope", "Invalid scope", "name at least one scope that GET /v1/entitlements lists, each once", clientFault},
	{broker.ErrInvalidTTL, 400, "invalid_request", "Invalid duration", "send a positive duration such as \"15m\", no longer than allowed", clientFault},
	{broker.ErrInvalidDetails, 400, "invalid_authorization_details", "Invalid authorization details", "send elements of the types that GET /v1/entitlements describes, with all of their fields and no others", clientFault},
	{broker.ErrInvalidParameter, 400, "invalid_authorization_details", "Invalid parameter", "send the parameters that GET /v1/entitlements describes", clientFault},
	{broker.ErrJustificationRequired, 400, "invalid_request", "A justification is required", "state the reason in justification", clientFault},
	{broker.ErrTicketRequired, 400, "invalid_request", "A ticket is required", "name the ticket in ticket", clientFault},
	{broker.ErrTicketUnfit, 403, "access_denied", "The ticket does not cover this access", "read the detail: the ticket's state, its assignee or its change window is not what policy requires", clientFault},
	{broker.ErrBindingRequiresMTLS, 400, "invalid_request", "The token must be bound to a certificate", "call over TLS with an X.509-SVID", clientFault},
	{broker.ErrInvalidMessage, 400, "invalid_binding_message", "Invalid binding message", "send one short line of plain text in binding_message", clientFault},
	{broker.ErrBindingRequired, 400, "invalid_request", "The token must be bound to a key", "send a DPoP proof (RFC 9449) with the call", clientFault},
	{broker.ErrInvalidDPoP, 401, "invalid_dpop_proof", "The DPoP proof is not valid", "make a new proof for each call (RFC 9449, section 4.2)", clientFault},
	{broker.ErrUseDPoPNonce, 401, "use_dpop_nonce", "The DPoP proof needs a nonce", "make a new proof with the nonce of the DPoP-Nonce header", clientFault},
	{broker.ErrInvalidCode, 400, "invalid_grant", "Invalid code", "do not poll with this code again: file a new request", clientFault},
	{broker.ErrPollsTooOften, 400, "slow_down", "Polls too often", "wait longer between polls", clientFault},
	{broker.ErrUnknownUser, 400, "unknown_user_id", "Unknown user", "send your own SPIFFE ID as login_hint, or a person's ID-JAG or access token as login_hint_token", clientFault},
	{broker.ErrHintExpired, 400, "expired_login_hint_token", "The hint has expired", "get a new token from the provider, and send it as login_hint_token", clientFault},
	{broker.ErrPending, 409, "authorization_pending", "Waiting for approval", "wait, then collect again", clientFault},
	{broker.ErrNotPending, 409, "access_denied", "The request is not pending", "file a new request", clientFault},
	{broker.ErrLapsed, 409, "expired_token", "Not approved in time", "file a new request", clientFault},
	{broker.ErrGrantEnded, 409, "expired_token", "The grant has ended", "file a new request", clientFault},
	{broker.ErrGrantEndsTooSoon, 409, "expired_token", "The grant ends too soon", "file a new request: the remaining time is shorter than the issuer's shortest credential", clientFault},
	{broker.ErrNotYet, 409, "access_denied", "The grant has not started", "collect after it starts", clientFault},
	{broker.ErrStaleDigest, 409, "invalid_request", "Stale digest", "read the request again and send its current digest", clientFault},
	{broker.ErrAlreadyVoted, 409, "invalid_request", "Already decided", "a person decides once; an approval may still be turned into a denial", clientFault},
	{broker.ErrSessionRequired, 403, "access_denied", "A person's session is required", "log in to the broker with broker login or on its pages", clientFault},
	{broker.ErrLoginStale, 403, "access_denied", "Your groups were confirmed too long ago", "log in again", clientFault},
	{broker.ErrOwnRequest, 403, "access_denied", "Conflict of interest", "another person must decide: no one decides their own requests or those of workloads that they own", clientFault},
	{broker.ErrNotApprover, 403, "access_denied", "Not an approver", "only members of the request's approving groups decide it", clientFault},
	{broker.ErrCommentRequired, 400, "invalid_request", "A comment is required", "state the reason in comment", clientFault},
	{broker.ErrSignatureRequired, 403, "access_denied", "A signature is required", "decide in the browser, where your passkey signs", clientFault},
	{broker.ErrNobodyAccountable, 403, "access_denied", "The caller has no owner", "ask the operators to name accountable people in attest.workloads", clientFault},
	{broker.ErrNobodyCanApprove, 403, "access_denied", "Not enough approvers", "ask the operators: too few listed people may approve, not counting the requester, the workload's owners, an excluded team and people whom policy forbids", clientFault},
	{broker.ErrReviewOverdue, 403, "access_denied", "An earlier break-glass review is overdue", "ask the reviewers to close it", clientFault},
	{broker.ErrFactEnded, 403, "access_denied", "What the access rests on has ended", "read the detail: a contract, a person's employment or a ticket has ended; extend it where it is kept, and file a new request", clientFault},
	{broker.ErrNotAssessed, 403, "access_denied", "The supplier has no assessment that policy accepts", "read the detail: the risk assessment of your supplier is missing, or its risk is too high", clientFault},
	{broker.ErrFactUnknown, 403, "access_denied", "What the access rests on is not known", "read the detail: the source of record does not name it, or has been silent for too long", clientFault},
	{broker.ErrNoReview, 409, "invalid_request", "No review is open", "read the request again", clientFault},
	{broker.ErrNotReviewer, 403, "access_denied", "Not the reviewer", "only the reviewer of an item decides on it: the detail names them", clientFault},
	{broker.ErrOwnAccess, 403, "access_denied", "Your own access", "another person must decide: no one reviews what they use, also not through a group or a workload that they own", clientFault},
	{broker.ErrReviewEnded, 409, "invalid_request", "The access review has ended", "read it again; what was disabled is restored by two people", clientFault},
	{broker.ErrCampaignRunning, 409, "invalid_request", "The access review runs already", "wait for its deadline, or decide on its items", clientFault},
	{broker.ErrLimit, 429, "access_denied", "Rate limit reached", "try again later", clientFault},
	{broker.ErrMaxActive, 429, "access_denied", "Too many active credentials", "return one first", clientFault},
	{broker.ErrTooManyPending, 429, "access_denied", "Too many pending requests", "withdraw one, or wait for a decision", clientFault},
	{broker.ErrPreviewStale, 409, "invalid_request", "The preview is stale", "request a new preview and send its digest", clientFault},
	{broker.ErrUnmatched, 409, "invalid_request", "Nothing matches", "correct the name, or send unmatched to block a name that the broker does not know", clientFault},
	{broker.ErrSlowDown, 429, "slow_down", "Too many calls", "call less often", clientFault},
	{broker.ErrIdempotencyMismatch, 422, "invalid_request", "The Idempotency-Key was used with another body", "use a new key for a new call", clientFault},
	{broker.ErrCallNotAllowed, 403, "access_denied", "Call not allowed", "make calls that the rules of the entitlement allow (GET /v1/entitlements), with a lease that is active", clientFault},
	{broker.ErrNotRenewable, 409, "invalid_request", "Not renewable", "collect again, or file a new request", clientFault},
	{broker.ErrNotRevocable, 409, "invalid_request", "Not revocable", "the credential expires by itself", clientFault},
	{broker.ErrIssuerUnavailable, 503, "temporarily_unavailable", "The issuer is unavailable", "try again later: nothing was issued", serverFault},
	{broker.ErrIssuerRefused, 502, "server_error", "The issuer refused", "tell the operators: nothing was issued", serverFault},
	{broker.ErrPolicyTooLarge, 400, "invalid_request", "Too large for the issuer", "request fewer scopes or shorter parameters", clientFault},
	{broker.ErrUnavailable, 503, "temporarily_unavailable", "Temporarily unavailable", "try again later: nothing was issued", serverFault},
	{broker.ErrInvalidTarget, 400, "invalid_target", "Invalid target", "name in audience an entitlement whose credentials are tokens (GET /v1/entitlements), or in resource the audience of exactly one entitlement with these scopes", clientFault},

	{errCrossOrigin, 403, "invalid_request", "Cross-origin request", "open the page on the broker itself", clientFault},
	{errMisdirected, 421, "invalid_request", "Misdirected request", "use the broker's external URL, or ask the operators to list this host in server.hosts", clientFault},
	{errScope, 403, "invalid_scope", "The token lacks a scope", "get a token with all scopes that the detail and the challenge name", clientFault},
	{errGrantType, 400, "unsupported_grant_type", "Unsupported grant type", "use a grant of grant_types_supported in the metadata", clientFault},
	{errMethod, 405, "invalid_request", "Method not allowed", "use a method that the Allow header lists", clientFault},
	{errMediaType, 415, "invalid_request", "Unsupported media type", "send application/json on /v1 and application/x-www-form-urlencoded on /oauth2", clientFault},
	{errTooLarge, 413, "invalid_request", "The body is too large", "send at most " + strconv.Itoa(maxBody) + " bytes", clientFault},
	{errNoStatusList, 404, "invalid_request", "Unknown status list", "take the URI from a token: a list is served until all of its tokens have expired", clientFault},
	{errNotImplemented, 501, "invalid_request", "Not implemented", "read the detail: the broker does not implement this part of a standard", clientFault},
	{errClientGone, 499, "server_error", "The client disconnected", "", clientFault},
}

// ofSubject are the errors of a proof of another identity, on whose behalf the caller acts.
var ofSubject = []error{broker.ErrForeignSubject, broker.ErrDelegation, broker.ErrActorNotAllowed, broker.ErrProofReplayed}

// unknown is the row of every other error. It reveals no detail.
var unknown = errorRow{errInternal, 500, "server_error", "Internal error", "report the X-Request-Id of this call to the operators", serverFault}

// errorRowOf returns the row of an error: that of its domain code, or that of a
// sentinel of the transport.
func errorRowOf(err error) errorRow {
	code := broker.Code(err)
	for _, row := range errorTable {
		if row.err.Error() == code {
			return row
		}
	}
	for _, row := range errorTable {
		if errors.Is(err, row.err) {
			return row
		}
	}
	return unknown
}

func (row errorRow) code() api.Code { return api.Code(row.err.Error()) }

// oauthStatus returns 400 except for invalid_client (RFC 6749, section 5.2) and
// for faults that any HTTP client should understand: overload and server errors.
func (row errorRow) oauthStatus() int {
	if isOfProof(row.err) { // RFC 9449, sections 5 and 8
		return http.StatusBadRequest
	}
	if row.status == http.StatusUnauthorized || row.status == http.StatusRequestEntityTooLarge ||
		row.status == http.StatusMethodNotAllowed || row.status == http.StatusMisdirectedRequest || row.status >= 500 || row.err == broker.ErrSlowDown || row.err == errMediaType || row.err == errNoStatusList {
		return row.status
	}
	return http.StatusBadRequest
}

// refuse returns a refusal: a sentinel with advice for the caller.
func refuse(err error, detail string) error { return &broker.Refusal{Err: err, Detail: detail} }

// refusalOf returns the refusal in err, or an empty one.
func refusalOf(err error) broker.Refusal {
	var r *broker.Refusal
	if errors.As(err, &r) {
		return *r
	}
	return broker.Refusal{}
}

// blameClient replaces an error that was caused by the client's disconnecting,
// so that it is not logged as a fault of the broker.
func blameClient(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return errClientGone
	}
	return err
}

// problem returns the answer to a failed call on /v1 (RFC 9457).
func (c *call) problem(err error) reply {
	row, body := errorRowOf(err), c.problemOf(err)
	header := row.header(refusalOf(err))
	switch {
	case c.route.handler != nil && c.route.handler.Resource != nil:
		c.challenges(header, row, err, body.Detail)
	case isOfProof(row.err):
		challengeProof(header, row, body.Detail)
	case row.status == http.StatusUnauthorized && !c.hasCredentials():
		// RFC 6750, section 3.1: no error without authentication information.
		header.Set("WWW-Authenticate", challenge("", ""))
	case row.status == http.StatusUnauthorized:
		header.Set("WWW-Authenticate", challenge("invalid_token", body.Detail))
	case row.status == http.StatusForbidden && row.oauth == "access_denied" && c.route.audience != UI:
		header.Set("WWW-Authenticate", challenge("insufficient_scope", withReasons(body.Detail, body.Reasons)))
	}
	return reply{status: row.status, code: row.code(), body: body, mediaType: "application/problem+json", header: header}
}

func (c *call) problemOf(err error) api.Problem {
	row, refusal := errorRowOf(err), refusalOf(err)
	body := api.Problem{
		Type: api.ProblemType + string(row.code()), Title: row.title, Status: row.status, Detail: row.advice,
		Instance: "urn:uuid:" + c.id, Code: row.code(), RequestID: refusal.RequestID.String(),
		DeniedBy: refusal.DeniedBy, Reasons: refusal.Reasons, Allowed: allowed(refusal.Allowed),
	}
	if refusal.Detail != "" {
		body.Detail = refusal.Detail
	}
	return body
}

// pollInterval is the time between polls for an approval: the default of RFC 8628,
// section 3.5.
const pollInterval = 5 * time.Second

// oauthError returns the answer to a failed call on /oauth2.
func (c *call) oauthError(err error) reply {
	row, refusal := errorRowOf(err), refusalOf(err)
	name, status := row.oauth, row.oauthStatus()
	if c.proofIsSubject && name == "invalid_client" {
		// RFC 8693, section 2.2.2: an unacceptable subject_token makes the request
		// invalid.
		name, status = "invalid_request", http.StatusBadRequest
	}
	switch {
	case row.err == broker.ErrDenied:
		name = c.denied(refusal)
	case slices.Contains(ofSubject, row.err) && c.form.get("grant_type") == api.GrantJWTBearer:
		name = "invalid_grant" // RFC 7523, section 3.1
	case slices.Contains(ofSubject, row.err):
		name = "invalid_request" // RFC 8693, section 2.2.2
	}
	if name == "access_denied" && c.route.path == backchannelPath {
		status = http.StatusForbidden // CIBA, section 13
	}
	body := api.OAuthError{
		Error: name, Description: asciiOnly(row.advice), Code: row.code(), RequestID: refusal.RequestID.String(),
		DeniedBy: refusal.DeniedBy, Reasons: refusal.Reasons, Allowed: allowed(refusal.Allowed),
	}
	if refusal.Detail != "" {
		body.Description = asciiOnly(refusal.Detail)
	}
	if name == "authorization_pending" && !c.isPoll() {
		body.Interval = int(pollInterval / time.Second)
	}
	if c.deferral != nil {
		body.DeferralCode, body.ExpiresIn = api.Token(c.deferral.code), c.deferral.expiresIn
	}
	header := row.header(refusal)
	if status == http.StatusUnauthorized && c.credentialsInBody() && c.route.path != backchannelPath {
		// RFC 6749, section 5.2, requires 401 only for the Authorization header. A
		// challenge would keep some client libraries from reading the body.
		status = http.StatusBadRequest
	}
	if status == http.StatusUnauthorized {
		header.Set("WWW-Authenticate", challenge(name, body.Description))
	}
	return reply{status: status, code: row.code(), body: body, header: header}
}

// denied returns the OAuth error of a denial. A person's denial is access_denied
// (RFC 8628, section 3.5). If policy would allow some of the scopes, the scope is
// invalid (RFC 6749, section 5.2), otherwise the target (RFC 8693, section 2.2.2).
func (c *call) denied(r broker.Refusal) string {
	switch {
	case r.DeniedBy == "person" || c.isPoll():
		return "access_denied"
	case r.Allowed != nil && len(r.Allowed.Scopes) > 0:
		return "invalid_scope"
	case c.route.path == backchannelPath: // CIBA, section 13
		return "access_denied"
	}
	return "invalid_target"
}

func (row errorRow) header(r broker.Refusal) http.Header {
	h := http.Header{}
	if r.Retry <= 0 && (row.err == broker.ErrSlowDown || row.status == http.StatusServiceUnavailable) {
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

// challenge returns the value of WWW-Authenticate (RFC 6750, section 3), with the reason
// unless name is empty: client libraries that find a challenge do not read the body.
func challenge(name, description string) string {
	value := `Bearer realm="access broker"`
	if name != "" {
		value += `, error="` + name + `", error_description="` + asciiOnly(description) + `"`
	}
	return value
}

// withReasons returns the detail of a denial with the policy's reasons.
func withReasons(detail string, reasons []string) string {
	if len(reasons) == 0 {
		return detail
	}
	return detail + " (" + strings.Join(reasons, "; ") + ")"
}

// hasCredentials reports whether the call tried to authenticate.
func (c *call) hasCredentials() bool {
	return len(c.r.Header.Values("Authorization")) > 0 || c.r.TLS != nil && len(c.r.TLS.PeerCertificates) > 0
}

// credentialsInBody reports whether the client authenticates with parameters of the
// body (RFC 7521, section 4.2) and not with the Authorization header.
func (c *call) credentialsInBody() bool {
	return len(c.r.Header.Values("Authorization")) == 0 && (c.form.get("client_assertion") != "" || c.form.get("client_assertion_type") != "")
}

// maxDescription bounds an error_description, which may be part of a header.
const maxDescription = 1000 // bytes

// asciiOnly replaces the characters that RFC 6749, section 5.2, and RFC 6750, section 3,
// do not allow in an error_description, and truncates the text.
func asciiOnly(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r == '\n' || r == '\t':
			return ' '
		case r < 0x20 || r > 0x7e || r == '\\':
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), maxDescription)]
}
