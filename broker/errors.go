package broker

import (
	"errors"
	"time"
)

// A sentinel is an error of the domain that callers may see. Its text is the
// stable code; package server has the one table from sentinel to HTTP status
// and OAuth error. Every value of this type needs a row there: a test finds
// them by the conversion to sentinel.
type sentinel string

func (s sentinel) Error() string { return string(s) }

// The sentinels.
const (
	ErrUnauthenticated       = sentinel("unauthenticated")         // no proof, or one that does not hold
	ErrTwoIdentities         = sentinel("two_identities")          // two different proofs in one call
	ErrForeignSubject        = sentinel("foreign_subject_token")   // a subject_token that is not the caller's own
	ErrProofExpired          = sentinel("proof_expired")           // the proof ended before the answer could leave
	ErrBlocked               = sentinel("blocked")                 // by the kill switch
	ErrDenied                = sentinel("denied")                  // policy or a person said no
	ErrNoLongerAllowed       = sentinel("no_longer_allowed")       // policy changed since the approval
	ErrNeedsNewRequest       = sentinel("needs_new_request")       // policy now demands more than was approved
	ErrNotFound              = sentinel("not_found")               // or not the caller's to see
	ErrInvalidRequest        = sentinel("invalid_request")         // malformed
	ErrInvalidScope          = sentinel("invalid_scope")           // none, unknown, or repeated
	ErrInvalidTTL            = sentinel("invalid_ttl")             // zero, negative, or too long
	ErrInvalidParameter      = sentinel("invalid_parameter")       // unknown, missing, or not matching
	ErrJustificationRequired = sentinel("justification_required")  // say why
	ErrTicketRequired        = sentinel("ticket_required")         // missing, or not of the demanded form
	ErrBindingRequiresMTLS   = sentinel("binding_requires_mtls")   // a bound token needs an X.509-SVID
	ErrPending               = sentinel("pending")                 // people have yet to approve
	ErrNotPending            = sentinel("not_pending")             // the request is past that
	ErrLapsed                = sentinel("lapsed")                  // nobody approved in time
	ErrGrantEnded            = sentinel("grant_ended")             // collected too late
	ErrGrantEndsTooSoon      = sentinel("grant_ends_too_soon")     // the issuer's shortest credential is longer
	ErrNotYet                = sentinel("not_yet")                 // the grant has not started
	ErrStaleDigest           = sentinel("stale_digest")            // not what the approver saw
	ErrAlreadyVoted          = sentinel("already_voted")           // one voice each
	ErrSessionRequired       = sentinel("session_required")        // only a person's broker session may
	ErrLoginStale            = sentinel("login_stale")             // what the provider says of the person is too old
	ErrOwnRequest            = sentinel("own_request")             // nobody approves for themselves
	ErrNotApprover           = sentinel("not_an_approver")         // in none of the groups that are asked
	ErrCommentRequired       = sentinel("comment_required")        // say why
	ErrSignatureRequired     = sentinel("signature_required")      // by a passkey
	ErrNobodyAccountable     = sentinel("nobody_accountable")      // people approve only for workloads that somebody answers for
	ErrNobodyCanApprove      = sentinel("nobody_can_approve")      // too few people are in the groups, or may
	ErrReviewOverdue         = sentinel("review_overdue")          // an earlier use of the broken glass is unreviewed
	ErrNoReview              = sentinel("no_review_open")          // nothing to review, or done
	ErrLimit                 = sentinel("limit_reached")           // @limit
	ErrInvalidTarget         = sentinel("invalid_target")          // not what gives such a token
	ErrMaxActive             = sentinel("max_active_reached")      // @max_active
	ErrTooManyPending        = sentinel("too_many_pending")        // open requests of one requester
	ErrSlowDown              = sentinel("slow_down")               // admission limit
	ErrIdempotencyMismatch   = sentinel("idempotency_key_reused")  // the same key with another body
	ErrNotRenewable          = sentinel("not_renewable")           // ended, or its issuer can't
	ErrNotRevocable          = sentinel("not_revocable")           // only time ends it; an issuer's answer, never a caller's
	ErrIssuerUnavailable     = sentinel("issuer_unavailable")      // did not answer, or not in time
	ErrIssuerRefused         = sentinel("issuer_refused")          // answered no
	ErrPolicyTooLarge        = sentinel("policy_too_large")        // the issuer takes no policy that large
	ErrPreviewStale          = sentinel("preview_stale")           // what the kill switch would hit has changed
	ErrUnavailable           = sentinel("temporarily_unavailable") // the record could not be made durable: nothing was issued
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

// Code returns the stable code of an error: the text of the first sentinel in
// its tree, or "internal".
func Code(err error) string {
	var s sentinel
	if errors.As(err, &s) {
		return s.Error()
	}
	return "internal"
}
