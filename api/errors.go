package api

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Code says in a stable word what went wrong. Codes are errors, so that a
// caller of the client can write errors.Is(err, api.Pending).
type Code string

func (c Code) Error() string { return string(c) }

// The codes. The OpenAPI document says for each what to do about it.
const (
	Unauthenticated       Code = "unauthenticated"
	TwoIdentities         Code = "two_identities"
	ForeignSubject        Code = "foreign_subject_token"
	ProofExpired          Code = "proof_expired"
	Blocked               Code = "blocked"
	Denied                Code = "denied"
	NoLongerAllowed       Code = "no_longer_allowed"
	NeedsNewRequest       Code = "needs_new_request"
	NotFound              Code = "not_found"
	InvalidRequest        Code = "invalid_request"
	InvalidScope          Code = "invalid_scope"
	InvalidTTL            Code = "invalid_ttl"
	InvalidParameter      Code = "invalid_parameter"
	JustificationRequired Code = "justification_required"
	TicketRequired        Code = "ticket_required"
	BindingRequiresMTLS   Code = "binding_requires_mtls"
	Pending               Code = "pending"
	NotPending            Code = "not_pending"
	Lapsed                Code = "lapsed"
	GrantEnded            Code = "grant_ended"
	GrantEndsTooSoon      Code = "grant_ends_too_soon"
	NotYet                Code = "not_yet"
	StaleDigest           Code = "stale_digest"
	AlreadyVoted          Code = "already_voted"
	SessionRequired       Code = "session_required"
	LoginStale            Code = "login_stale"
	OwnRequest            Code = "own_request"
	NotApprover           Code = "not_an_approver"
	CommentRequired       Code = "comment_required"
	SignatureRequired     Code = "signature_required"
	NobodyAccountable     Code = "nobody_accountable"
	NobodyCanApprove      Code = "nobody_can_approve"
	ReviewOverdue         Code = "review_overdue"
	NoReview              Code = "no_review_open"
	LimitReached          Code = "limit_reached"
	MaxActiveReached      Code = "max_active_reached"
	TooManyPending        Code = "too_many_pending"
	PreviewStale          Code = "preview_stale"
	SlowDown              Code = "slow_down"
	IdempotencyKeyReused  Code = "idempotency_key_reused"
	NotRenewable          Code = "not_renewable"
	NotRevocable          Code = "not_revocable"
	IssuerUnavailable     Code = "issuer_unavailable"
	IssuerRefused         Code = "issuer_refused"
	PolicyTooLarge        Code = "policy_too_large"
	Unavailable           Code = "temporarily_unavailable"

	// Of the transport and of OAuth alone.
	InvalidTarget        Code = "invalid_target"
	UnsupportedGrantType Code = "unsupported_grant_type"
	CrossOrigin          Code = "cross_origin"
	MethodNotAllowed     Code = "method_not_allowed"
	UnsupportedMediaType Code = "unsupported_media_type"
	TooLarge             Code = "too_large"
	Internal             Code = "internal"
)

// A Problem is an error on /v1 (RFC 9457).
type Problem struct {
	Type      string   `json:"type"`
	Title     string   `json:"title"`
	Status    int      `json:"status"`
	Detail    string   `json:"detail,omitempty"`
	Instance  string   `json:"instance,omitempty"` // "urn:uuid:…", the X-Request-Id of the call
	Code      Code     `json:"code"`
	RequestID string   `json:"request_id,omitempty"` // the access request it is about, "req_…"
	DeniedBy  string   `json:"denied_by,omitempty"`  // policy or person
	Reasons   []string `json:"reasons,omitempty"`    // policy's own words
	Allowed   *Allowed `json:"allowed,omitempty"`    // what would have been allowed instead
}

// An OAuthError is an error on /oauth2 (RFC 6749, section 5.2), with members
// of ours beside it. The error is what OAuth clients act on, the code is the
// finer one that /v1 gives, too.
type OAuthError struct {
	Error       string   `json:"error"`
	Description string   `json:"error_description,omitempty"`
	Code        Code     `json:"code"`
	RequestID   string   `json:"request_id,omitempty"`
	Interval    int      `json:"interval,omitempty"` // seconds between polls, of authorization_pending
	DeniedBy    string   `json:"denied_by,omitempty"`
	Reasons     []string `json:"reasons,omitempty"`
	Allowed     *Allowed `json:"allowed,omitempty"`
}

// Allowed is what would have been allowed instead.
type Allowed struct {
	Scopes []string `json:"scopes,omitempty"` // each of these, alone
	MaxTTL Duration `json:"max_ttl,omitzero"`
}

// An Error is an answer of the broker that is no success. Its Code is an
// error that errors.Is finds.
type Error struct {
	Code       Code
	Status     int // HTTP
	Title      string
	Detail     string // one sentence that says what to do
	OAuth      string // the OAuth error, of calls on /oauth2
	Reasons    []string
	DeniedBy   string
	Allowed    *Allowed
	RequestID  string        // the access request it is about
	Instance   string        // the X-Request-Id of the call, to be found in the broker's log
	RetryAfter time.Duration // zero: not said
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(string(e.Code))
	if e.Code == "" {
		fmt.Fprintf(&b, "HTTP status %d", e.Status)
	}
	if text := firstNonEmpty(e.Detail, e.Title); text != "" {
		b.WriteString(": " + text)
	}
	if len(e.Reasons) > 0 {
		b.WriteString(" (" + strings.Join(e.Reasons, "; ") + ")")
	}
	return b.String()
}

// Unwrap gives the code.
func (e *Error) Unwrap() error {
	if e.Code == "" {
		return nil
	}
	return e.Code
}

// CodeOf gives the code of an error of the client; "" if it has none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func firstNonEmpty(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}
