package broker

import (
	"errors"
	"time"
)

// Sentinels. Their text is the stable code that callers see; package server
// holds the one table from sentinel to HTTP status and OAuth error.
var (
	ErrUnauthenticated       = errors.New("unauthenticated")         // no proof, or one that does not hold
	ErrTwoIdentities         = errors.New("two_identities")          // two different proofs in one call
	ErrForeignSubject        = errors.New("foreign_subject_token")   // a subject_token that is not the caller's own
	ErrProofExpired          = errors.New("proof_expired")           // the proof ended before the answer could leave
	ErrBlocked               = errors.New("blocked")                 // by the kill switch
	ErrDenied                = errors.New("denied")                  // policy or a person said no
	ErrNoLongerAllowed       = errors.New("no_longer_allowed")       // policy changed since the approval
	ErrNeedsNewRequest       = errors.New("needs_new_request")       // policy now demands more than was approved
	ErrNotFound              = errors.New("not_found")               // or not the caller's to see
	ErrInvalidRequest        = errors.New("invalid_request")         // malformed
	ErrInvalidScope          = errors.New("invalid_scope")           // none, unknown, or repeated
	ErrInvalidTTL            = errors.New("invalid_ttl")             // zero, negative, or too long
	ErrInvalidParameter      = errors.New("invalid_parameter")       // unknown, missing, or not matching
	ErrJustificationRequired = errors.New("justification_required")  // say why
	ErrTicketRequired        = errors.New("ticket_required")         // missing, or not of the demanded form
	ErrBindingRequiresMTLS   = errors.New("binding_requires_mtls")   // a bound token needs an X.509-SVID
	ErrPending               = errors.New("pending")                 // people have yet to approve
	ErrNotPending            = errors.New("not_pending")             // the request is past that
	ErrLapsed                = errors.New("lapsed")                  // nobody approved in time
	ErrGrantEnded            = errors.New("grant_ended")             // collected too late
	ErrGrantEndsTooSoon      = errors.New("grant_ends_too_soon")     // the issuer's shortest credential is longer
	ErrNotYet                = errors.New("not_yet")                 // the grant has not started
	ErrStaleDigest           = errors.New("stale_digest")            // not what the approver saw
	ErrAlreadyVoted          = errors.New("already_voted")           // one voice each
	ErrSessionRequired       = errors.New("session_required")        // only a person's broker session may
	ErrLoginStale            = errors.New("login_stale")             // what the provider says of the person is too old
	ErrOwnRequest            = errors.New("own_request")             // nobody approves for themselves
	ErrNotApprover           = errors.New("not_an_approver")         // in none of the groups that are asked
	ErrCommentRequired       = errors.New("comment_required")        // say why
	ErrSignatureRequired     = errors.New("signature_required")      // by a passkey
	ErrNobodyAccountable     = errors.New("nobody_accountable")      // people approve only for workloads that somebody answers for
	ErrNobodyCanApprove      = errors.New("nobody_can_approve")      // too few people are in the groups, or may
	ErrReviewOverdue         = errors.New("review_overdue")          // an earlier use of the broken glass is unreviewed
	ErrNoReview              = errors.New("no_review_open")          // nothing to review, or done
	ErrLimit                 = errors.New("limit_reached")           // @limit
	ErrInvalidTarget         = errors.New("invalid_target")          // not what gives such a token
	ErrMaxActive             = errors.New("max_active_reached")      // @max_active
	ErrTooManyPending        = errors.New("too_many_pending")        // open requests of one requester
	ErrSlowDown              = errors.New("slow_down")               // admission limit
	ErrIdempotencyMismatch   = errors.New("idempotency_key_reused")  // the same key with another body
	ErrNotRenewable          = errors.New("not_renewable")           // ended, or its issuer can't
	ErrNotRevocable          = errors.New("not_revocable")           // only time ends it; an issuer's answer, never a caller's
	ErrIssuerUnavailable     = errors.New("issuer_unavailable")      // did not answer, or not in time
	ErrIssuerRefused         = errors.New("issuer_refused")          // answered no
	ErrPolicyTooLarge        = errors.New("policy_too_large")        // the issuer takes no policy that large
	ErrPreviewStale          = errors.New("preview_stale")           // what the kill switch would hit has changed
	ErrUnavailable           = errors.New("temporarily_unavailable") // the record could not be made durable: nothing was issued
)

// A Refusal is a sentinel with what the caller needs to do better. Detail and
// Reasons are shown to callers: they hold no secret and nothing of policy
// beyond its @reason texts.
type Refusal struct {
	Err       error    // the sentinel
	Detail    string   // one sentence that says what to do
	Reasons   []string // policy's own words
	DeniedBy  string   // policy or person, of ErrDenied
	RequestID RequestID
	Allowed   *Allowed
	Retry     time.Duration // when it may be tried again; zero: not said
}

func (r *Refusal) Error() string {
	if r.Detail == "" {
		return r.Err.Error()
	}
	return r.Err.Error() + ": " + r.Detail
}

func (r *Refusal) Unwrap() error { return r.Err }

// Allowed is what would have been allowed instead.
type Allowed struct {
	Scopes []string      // those of the entitlement that would be permitted, each alone
	MaxTTL time.Duration // zero: not the problem
}

func refuse(err error, detail string) error { return &Refusal{Err: err, Detail: detail} }

// Code gives the stable code of an error: the sentinel's text, or "internal".
func Code(err error) string {
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return s.Error()
		}
	}
	return "internal"
}

var sentinels = []error{
	ErrUnauthenticated, ErrTwoIdentities, ErrForeignSubject, ErrProofExpired, ErrBlocked, ErrDenied,
	ErrNoLongerAllowed, ErrNeedsNewRequest, ErrNotFound, ErrInvalidRequest, ErrInvalidScope, ErrInvalidTTL,
	ErrInvalidParameter, ErrJustificationRequired, ErrTicketRequired, ErrBindingRequiresMTLS, ErrPending,
	ErrNotPending, ErrLapsed, ErrGrantEnded, ErrGrantEndsTooSoon, ErrInvalidTarget, ErrLimit, ErrMaxActive, ErrTooManyPending,
	ErrSlowDown, ErrIdempotencyMismatch, ErrNotRenewable, ErrNotRevocable, ErrIssuerUnavailable,
	ErrIssuerRefused, ErrPolicyTooLarge, ErrPreviewStale, ErrUnavailable,
	ErrNotYet, ErrStaleDigest, ErrAlreadyVoted, ErrSessionRequired, ErrLoginStale, ErrOwnRequest, ErrNotApprover,
	ErrCommentRequired, ErrSignatureRequired, ErrNobodyAccountable, ErrNobodyCanApprove, ErrReviewOverdue, ErrNoReview,
}
