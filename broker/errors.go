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
	ErrUnauthenticated = sentinel("unauthenticated")       // no valid proof
	ErrDelegation      = sentinel("invalid_delegation")    // of this chain, to this caller, for this request
	ErrActorNotAllowed = sentinel("actor_not_allowed")     // the proof of the delegation names other actors
	ErrProofReplayed   = sentinel("proof_replayed")        // the proof of the delegation was used before
	ErrTwoIdentities   = sentinel("two_identities")        // proofs of different identities in one call
	ErrForeignSubject  = sentinel("foreign_subject_token") // the token of another identity, on whose behalf the caller cannot act
	ErrProofExpired    = sentinel("proof_expired")         // the proof has expired
	ErrTokenSpent      = sentinel("token_spent")           // a credential was issued with the caller's OIDC token before
	ErrBlocked         = sentinel("blocked")               // by the kill switch
	ErrDenied          = sentinel("denied")                // by policy or by a person
	ErrNoLongerAllowed = sentinel("no_longer_allowed")     // policy changed since the approval
	ErrNeedsNewRequest = sentinel("needs_new_request")     // policy now requires more than was approved
	ErrNotFound        = sentinel("not_found")             // or not visible to the caller
	ErrInvalidRequest  = sentinel("invalid_request")       // malformed
	ErrInvalidScope    = sentinel("invalid_scope")         // missing, unknown, or repeated
	ErrInvalidTTL      = sentinel("invalid_ttl")           // zero, negative, or too long

	// ErrInvalidDetails means an unknown type or field, or more than the entitlement allows.
	ErrInvalidDetails = sentinel("invalid_authorization_details")

	ErrInvalidParameter      = sentinel("invalid_parameter")       // unknown, missing, or invalid
	ErrJustificationRequired = sentinel("justification_required")  // policy requires a reason
	ErrTicketRequired        = sentinel("ticket_required")         // missing, or not in the required form
	ErrTicketUnfit           = sentinel("ticket_unfit")            // the ticket does not cover the access: its state, assignee or change window
	ErrBindingRequiresMTLS   = sentinel("binding_requires_mtls")   // a bound token needs an X.509-SVID
	ErrBindingRequired       = sentinel("binding_required")        // a bound token needs a DPoP proof, or that of the same key
	ErrInvalidDPoP           = sentinel("invalid_dpop_proof")      // malformed, for another call, or used before
	ErrUseDPoPNonce          = sentinel("use_dpop_nonce")          // the DPoP proof has no current nonce
	ErrPending               = sentinel("pending")                 // not yet approved
	ErrNotPending            = sentinel("not_pending")             // the request is no longer pending
	ErrLapsed                = sentinel("lapsed")                  // not approved in time
	ErrGrantEnded            = sentinel("grant_ended")             // collected too late
	ErrGrantEndsTooSoon      = sentinel("grant_ends_too_soon")     // the issuer's shortest credential is longer
	ErrNotYet                = sentinel("not_yet")                 // the grant has not started
	ErrStaleDigest           = sentinel("stale_digest")            // not the digest of the stored request
	ErrAlreadyVoted          = sentinel("already_voted")           // a person decides once
	ErrSessionRequired       = sentinel("session_required")        // only a person with a broker session may do this
	ErrLoginStale            = sentinel("login_stale")             // the person's claims are too old
	ErrOwnRequest            = sentinel("own_request")             // conflict of interest
	ErrNotApprover           = sentinel("not_an_approver")         // in none of the approving groups
	ErrCommentRequired       = sentinel("comment_required")        // policy requires a comment
	ErrSignatureRequired     = sentinel("signature_required")      // by a passkey
	ErrNobodyAccountable     = sentinel("nobody_accountable")      // the workload has no accountable person
	ErrNobodyCanApprove      = sentinel("nobody_can_approve")      // fewer people may approve than policy requires
	ErrReviewOverdue         = sentinel("review_overdue")          // an earlier break-glass use is unreviewed
	ErrFactEnded             = sentinel("fact_ended")              // what the access rests on has ended
	ErrFactUnknown           = sentinel("fact_unknown")            // a source of what the access rests on does not know it, or is silent
	ErrNotAssessed           = sentinel("not_assessed")            // the requester's supplier has no assessment that policy accepts
	ErrNoReview              = sentinel("no_review_open")          // no review is open
	ErrLimit                 = sentinel("limit_reached")           // @limit
	ErrInvalidTarget         = sentinel("invalid_target")          // no entitlement issues such a token
	ErrMaxActive             = sentinel("max_active_reached")      // @max_active
	ErrTooManyPending        = sentinel("too_many_pending")        // pending requests of one requester
	ErrSlowDown              = sentinel("slow_down")               // admission limit
	ErrIdempotencyMismatch   = sentinel("idempotency_key_reused")  // the same key with another body
	ErrNotRenewable          = sentinel("not_renewable")           // the lease has ended
	ErrCallNotAllowed        = sentinel("call_not_allowed")        // the rules of the entitlement do not allow the call, or the lease has ended
	ErrNotRevocable          = sentinel("not_revocable")           // only time ends the credential; from issuers, never for callers
	ErrIssuerUnavailable     = sentinel("issuer_unavailable")      // no answer in time
	ErrIssuerRefused         = sentinel("issuer_refused")          // the upstream refused
	ErrPolicyTooLarge        = sentinel("policy_too_large")        // the issuer does not accept a policy of that size
	ErrPreviewStale          = sentinel("preview_stale")           // the selection of the kill switch has changed
	ErrUnmatched             = sentinel("nothing_matches")         // the selector of the kill switch matches nothing that the broker knows
	ErrNotReviewer           = sentinel("not_a_reviewer")          // of this item of an access review
	ErrOwnAccess             = sentinel("own_access")              // conflict of interest in an access review
	ErrReviewEnded           = sentinel("review_ended")            // the access review or its item is closed
	ErrCampaignRunning       = sentinel("campaign_running")        // the access review runs already
	ErrInvalidCode           = sentinel("invalid_code")            // a deferral code or auth_req_id that is unknown, another caller's, or redeemed
	ErrPollsTooOften         = sentinel("polls_too_often")         // more often than the interval of a deferral code or auth_req_id allows
	ErrUnknownUser           = sentinel("unknown_user")            // a hint names no one on whose behalf the client may ask
	ErrHintExpired           = sentinel("hint_expired")            // the token of the person on whose behalf a client wants to wait
	ErrInvalidMessage        = sentinel("invalid_binding_message") // malformed, or too long
	ErrUnavailable           = sentinel("temporarily_unavailable") // the record is not durable, so nothing was issued
)

// A Refusal is a sentinel with advice. Callers see Detail and Reasons: they contain
// no secrets, and no part of a policy except its @reason texts.
type Refusal struct {
	Err       error    // the sentinel
	Detail    string   // what happened and what to do, in one sentence
	Reasons   []string // the @reason texts of policy
	DeniedBy  string   // of ErrDenied: policy, ceiling or person
	RequestID RequestID
	Allowed   *Allowed
	Retry     time.Duration // when to try again; zero: unknown
}

func (r *Refusal) Error() string {
	if r.Detail == "" {
		return r.Err.Error()
	}
	return r.Err.Error() + ": " + r.Detail
}

func (r *Refusal) Unwrap() error { return r.Err }

// Allowed is what policy would permit instead.
type Allowed struct {
	Scopes []string      // scopes that would be permitted, each alone
	MaxTTL time.Duration // zero: ttl was not the reason
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
