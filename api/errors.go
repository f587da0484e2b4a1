package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// A Code is a stable error code. Codes are errors, for errors.Is(err, api.Pending).
type Code string

func (c Code) Error() string { return string(c) }

// Error codes. The OpenAPI document describes each one and what to do about it.
const (
	Unauthenticated       Code = "unauthenticated"
	TwoIdentities         Code = "two_identities"
	ForeignSubject        Code = "foreign_subject_token"
	InvalidDelegation     Code = "invalid_delegation"
	ActorNotAllowed       Code = "actor_not_allowed"
	ProofReplayed         Code = "proof_replayed"
	ProofExpired          Code = "proof_expired"
	TokenSpent            Code = "token_spent"
	Blocked               Code = "blocked"
	Denied                Code = "denied"
	NoLongerAllowed       Code = "no_longer_allowed"
	NeedsNewRequest       Code = "needs_new_request"
	NotFound              Code = "not_found"
	InvalidRequest        Code = "invalid_request"
	InvalidScope          Code = "invalid_scope"
	InvalidTTL            Code = "invalid_ttl"
	InvalidDetails        Code = "invalid_authorization_details"
	InvalidParameter      Code = "invalid_parameter"
	InvalidCode           Code = "invalid_code"
	PollsTooOften         Code = "polls_too_often"
	UnknownUser           Code = "unknown_user"
	HintExpired           Code = "hint_expired"
	InvalidMessage        Code = "invalid_binding_message"
	JustificationRequired Code = "justification_required"
	TicketRequired        Code = "ticket_required"
	TicketUnfit           Code = "ticket_unfit"
	BindingRequiresMTLS   Code = "binding_requires_mtls"
	BindingRequired       Code = "binding_required"
	InvalidDPoPProof      Code = "invalid_dpop_proof"
	UseDPoPNonce          Code = "use_dpop_nonce"
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
	FactEnded             Code = "fact_ended"
	FactUnknown           Code = "fact_unknown"
	NotAssessed           Code = "not_assessed"
	NoReview              Code = "no_review_open"
	NotReviewer           Code = "not_a_reviewer"
	OwnAccess             Code = "own_access"
	ReviewEnded           Code = "review_ended"
	CampaignRunning       Code = "campaign_running"
	LimitReached          Code = "limit_reached"
	MaxActiveReached      Code = "max_active_reached"
	TooManyPending        Code = "too_many_pending"
	PreviewStale          Code = "preview_stale"
	NothingMatches        Code = "nothing_matches"
	SlowDown              Code = "slow_down"
	IdempotencyKeyReused  Code = "idempotency_key_reused"
	NotRenewable          Code = "not_renewable"
	CallNotAllowed        Code = "call_not_allowed"
	NotRevocable          Code = "not_revocable"
	IssuerUnavailable     Code = "issuer_unavailable"
	IssuerRefused         Code = "issuer_refused"
	PolicyTooLarge        Code = "policy_too_large"
	Unavailable           Code = "temporarily_unavailable"

	// Codes of HTTP and OAuth only.
	InvalidTarget        Code = "invalid_target"
	InsufficientScope    Code = "insufficient_scope"
	UnsupportedGrantType Code = "unsupported_grant_type"
	CrossOrigin          Code = "cross_origin"
	Misdirected          Code = "misdirected_request"
	MethodNotAllowed     Code = "method_not_allowed"
	UnsupportedMediaType Code = "unsupported_media_type"
	TooLarge             Code = "too_large"
	UnknownStatusList    Code = "unknown_status_list"
	NotImplemented       Code = "not_implemented"
	Internal             Code = "internal"
)

// A Problem is the body of an error on /v1 (RFC 9457).
type Problem struct {
	Type      string   `json:"type"` // ProblemType and Code
	Title     string   `json:"title"`
	Status    int      `json:"status"`
	Detail    string   `json:"detail,omitempty"`
	Instance  string   `json:"instance,omitempty"` // "urn:uuid:…", the call_id in the broker's log
	Code      Code     `json:"code"`
	RequestID string   `json:"request_id,omitempty"` // the access request, "req_…"
	DeniedBy  string   `json:"denied_by,omitempty"`  // policy, ceiling, person or fact
	Reasons   []string `json:"reasons,omitempty"`    // the @reason texts of the policies
	Allowed   *Allowed `json:"allowed,omitempty"`    // an alternative that policy permits
}

// An OAuthError is the body of an error on /oauth2 (RFC 6749, section 5.2), with
// extension members. OAuth clients act on Error; Code is the more precise code
// that /v1 returns for the same error.
type OAuthError struct {
	Error        string   `json:"error"`
	Description  string   `json:"error_description,omitempty"`
	Code         Code     `json:"code"`
	RequestID    string   `json:"request_id,omitempty"`
	Interval     int      `json:"interval,omitempty"`      // seconds between polls, with authorization_pending
	DeferralCode Token    `json:"deferral_code,omitempty"` // of a deferred response, by which the client polls
	ExpiresIn    int64    `json:"expires_in,omitempty"`    // seconds until the deferral code expires
	DeniedBy     string   `json:"denied_by,omitempty"`
	Reasons      []string `json:"reasons,omitempty"`
	Allowed      *Allowed `json:"allowed,omitempty"`
}

// Allowed is an alternative that policy permits.
type Allowed struct {
	Scopes []string `json:"scopes,omitempty"` // each of them alone
	MaxTTL Duration `json:"max_ttl,omitzero"`
}

// An Error is a response with a status other than 2xx. It wraps its Code.
type Error struct {
	Code         Code // empty: the response is not the broker's, for example a proxy's
	Status       int  // HTTP
	Title        string
	Detail       string // one sentence: what happened and what to do
	OAuth        string // the OAuth error of a call to /oauth2
	Reasons      []string
	DeniedBy     string
	Allowed      *Allowed
	RequestID    string        // the access request
	DeferralCode Token         // of a deferred response on /oauth2
	Instance     string        // the X-Request-Id of the answer, which the broker's log has
	RetryAfter   time.Duration // zero: not stated
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

// Unwrap returns the code, or nil if there is none.
func (e *Error) Unwrap() error {
	if e.Code == "" {
		return nil
	}
	return e.Code
}

// CodeOf returns the code of a client's error, or "" if it has none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// Transient reports whether the same call may succeed later: there was no response,
// or the broker is overloaded, enforces a limit or has failed. A refusal is final, and
// so is issuer_refused: each repetition would open another lease and get the same
// refusal.
func Transient(err error) bool {
	var answer *Error
	if !errors.As(err, &answer) {
		return err != nil
	}
	return answer.Code != IssuerRefused && (answer.Status == http.StatusTooManyRequests || answer.Status >= http.StatusInternalServerError)
}

// Unreachable reports whether the broker did not answer: the connection failed, or
// something else answers at its URL.
func Unreachable(err error) bool {
	var answer *Error
	if errors.As(err, &answer) {
		return answer.Code == ""
	}
	var lost *lostError
	return errors.As(err, &lost) || errors.Is(err, ErrNotBroker)
}

func firstNonEmpty(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}
