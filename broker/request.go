package broker

import (
	"cmp"
	"net/netip"
	"time"

	"accessbroker.internal/audit"
)

// RequestStatus is the state of a request.
type RequestStatus uint8

// The states. Lapsed and Ended are derived from the time and never stored.
const (
	RequestPending RequestStatus = iota + 1
	RequestApproved
	RequestDenied
	RequestWithdrawn
	RequestLapsed // not approved in time
	RequestEnded  // the grant is over
)

// An Ask is the input of a request. Zero values mean "not specified".
type Ask struct {
	Entitlement   string
	Scopes        []string
	TTL           time.Duration
	Duration      time.Duration
	Justification string
	Ticket        string
	Parameters    map[string]string
	Details       []Detail // what the token is good for; none: all that its scopes allow
	SourceIP      netip.Addr
	DryRun        bool
	Token         bool          // only a token is acceptable
	Resource      string        // the token's audience; empty: any
	BreakGlass    bool          // without prior approval, reviewed afterwards
	NotBefore     time.Time     // when the grant starts; zero: at once
	Extends       RequestID     // the caller's earlier request that this one extends
	Delegation    *Delegation   // on whose behalf; nil: the caller asks for itself
	Message       string        // shown to approvers: a text by which they recognize the action (CIBA's binding_message)
	WaitAtMost    time.Duration // for approval; zero: as long as policy allows
	Once          bool          // the caller collects with a code, once: a grant that was collected from is not reused
}

// Bounds of an ask. Lengths are in bytes.
const (
	MaxJustification = 2000
	MaxTicket        = 128
	MaxMessage       = 256 // a line
	MaxScopes        = 32
	MaxScopeLength   = 128
	MaxParameters    = 16
	MaxParameter     = 1024
	MaxLines         = 4096  // of a parameter with line breaks: a CSR for a 4096-bit RSA key has 1.6 KB
	MaxAllParameters = 16384 // of all parameters together
	MaxName          = 128
)

// A Request is one ask with its decision. It is immutable except for its
// status, its version, its approvals and verdicts, and the times that follow
// from them.
type Request struct {
	ID            RequestID
	Version       int
	Status        RequestStatus // as stored; see State
	Requester     Identity      // as proved when the request was filed, with labels
	Entitlement   string
	Effect        audit.Digest
	Scopes        []string // sorted
	TTL           time.Duration
	TTLAsked      bool // the requester specified the TTL, so it is never cut
	Duration      time.Duration
	Justification string
	Ticket        string
	Parameters    map[string]string
	Details       []Detail            // in their one form
	Salts         map[string][16]byte // of the commitments, by field
	SourceIP      netip.Addr
	Digest        audit.Digest
	Decision      Decision
	Approvals     []Approval
	DeniedBy      string // policy, person
	Created       time.Time
	Lapses        time.Time // while pending
	Approved      time.Time // when the last approval was given
	NotBefore     time.Time // the requested start of the grant
	CollectUntil  time.Time // the end of the grant
	FirstExpires  time.Time // expiry of the first credential; zero: none was collected
	FirstLease    LeaseID   // of the first credential; zero: none, or an earlier version issued it
	BreakGlass    bool
	Extends       RequestID
	KeyThumbprint audit.Digest  // of the DPoP key with which it was filed, and must be collected; zero: none
	ReviewDue     time.Time     // deadline of the review; zero: no review
	Reviewed      time.Time     // when the review closed
	Verdicts      []Approval    // of the review; Approve means justified
	Records       []RecordID    // of the log, oldest first; see RecordID
	RestsOn       []StandingKey // the subjects of the facts that it rests on, sorted
	Until         time.Time     // the earliest known end of these facts; zero: none is known
	EndedBy       *FactEnd      // the fact that ended the grant, or the wait for one; nil: none did
	Awaits        bool          // pending: it also waits for the assessment of a supplier
	Delegation    *Delegation   // on whose behalf; nil: the requester asks for itself
	Message       string        // the requester's words by which approvers recognize the action
	Erased        bool          // its texts are no longer kept
	Void          []string      // not stored: the approvals by these people no longer count
	Reused        bool          // not stored: an earlier request answers this ask
}

// Who denied a request.
const (
	DeniedByPolicy  = "policy"
	DeniedByPerson  = "person"
	DeniedByFact    = "fact"    // see Request.EndedBy
	DeniedByCeiling = "ceiling" // see Ceiling
)

// State returns the status at now. A pending request lapses, and a grant ends,
// by time alone; nothing is written then.
func (r *Request) State(now time.Time) RequestStatus {
	switch {
	case r.Status == RequestPending && !now.Before(r.Lapses):
		return RequestLapsed
	case r.Status == RequestApproved && !now.Before(r.CollectUntil):
		return RequestEnded
	}
	return r.Status
}

// Ends returns the latest time at which a credential of the grant can expire;
// zero if there is no grant.
func (r *Request) Ends() time.Time {
	if r.Status != RequestApproved {
		return time.Time{}
	}
	last := r.FirstExpires
	if last.IsZero() {
		last = r.CollectUntil.Add(r.Grant().TTL)
	}
	if last.After(r.CollectUntil) {
		return last
	}
	return r.CollectUntil
}

// collectable returns nil, or the reason why no credential of the request can
// be collected.
func (r *Request) collectable(now time.Time) error {
	switch r.State(now) {
	case RequestApproved:
		if now.Before(r.Starts()) {
			return &Refusal{Err: ErrNotYet, Detail: "it starts at " + r.Starts().UTC().Format(time.RFC3339), Retry: r.Starts().Sub(now), RequestID: r.ID}
		}
		return nil
	case RequestPending:
		return &Refusal{Err: ErrPending, Detail: "this request is not approved yet", RequestID: r.ID}
	case RequestLapsed:
		return &Refusal{Err: ErrLapsed, Detail: "this request was not approved in time: file a new one", RequestID: r.ID}
	case RequestDenied:
		refusal := &Refusal{Err: ErrDenied, Detail: "this request was denied", DeniedBy: r.DeniedBy, Reasons: r.Decision.Reasons, RequestID: r.ID}
		if r.EndedBy != nil {
			return refuseFact(r.EndedBy.Subject, r.EndedBy.Cause)
		}
		if r.DeniedBy == DeniedByPerson { // the reasons of policy explain the approval, not the denial
			refusal.Detail, refusal.Reasons = r.deniedBy(), nil
		}
		return refusal
	case RequestWithdrawn:
		return &Refusal{Err: ErrNotPending, Detail: "this request was withdrawn: file a new one", RequestID: r.ID}
	case RequestEnded:
		if r.EndedBy != nil {
			return refuseFact(r.EndedBy.Subject, r.EndedBy.Cause)
		}
		return &Refusal{Err: ErrGrantEnded, Detail: "the time to collect is over: file a new request", RequestID: r.ID}
	}
	return refuse(ErrNotFound, "no such request")
}

// deniedBy returns who denied the request, and the comments.
func (r *Request) deniedBy() string {
	text := "this request was denied"
	for _, a := range r.Approvals {
		if a.Approve {
			continue
		}
		text += ", by " + a.Person
		if a.Comment != "" {
			text += ": " + a.Comment
		}
	}
	return text
}

// needsPeople reports whether the request waits for people: for approvals, or for the
// assessment of a supplier.
func (r *Request) needsPeople() bool { return len(r.Decision.Obligations.Approvals) > 0 || r.Awaits }

// Waits returns how long the request waits for people at most, if it needs any.
func (r *Request) Waits() time.Duration {
	if r.Awaits {
		return cmp.Or(r.Decision.Obligations.LapseAfter, AssessedFor)
	}
	return cmp.Or(r.Decision.Obligations.LapseAfter, PendingFor)
}

// Starts returns when the clock of the grant starts: at the last approval, or
// at NotBefore if that is later.
func (r *Request) Starts() time.Time {
	if r.NotBefore.After(r.Approved) {
		return r.NotBefore
	}
	return r.Approved
}

// approve starts the clock of the grant.
func (r *Request) approve(now time.Time) {
	r.Status, r.Approved, r.Lapses = RequestApproved, now, time.Time{}
	r.CollectUntil = earlier(r.Starts().Add(r.Grant().Duration), r.Until)
	r.Version++
}

// withdraw closes a pending request.
func (r *Request) withdraw(now time.Time) error {
	if r.State(now) != RequestPending {
		return &Refusal{Err: ErrNotPending, Detail: "only a pending request can be withdrawn", RequestID: r.ID}
	}
	r.Status, r.Lapses = RequestWithdrawn, time.Time{}
	r.Version++
	return nil
}

// revoke ends the grant, or the wait for one. It returns false if both are
// over.
func (r *Request) revoke(now time.Time) bool {
	switch r.State(now) {
	case RequestApproved:
		r.CollectUntil = now
	case RequestPending:
		r.Status, r.DeniedBy, r.Lapses = RequestDenied, DeniedByPerson, time.Time{}
	default:
		return false
	}
	r.Version++
	return true
}

// end ends the grant, or the wait for one, because a fact ended. It returns false if both
// are over.
func (r *Request) end(by *FactEnd, now time.Time) bool {
	pending := r.State(now) == RequestPending
	if !r.revoke(now) {
		return false
	}
	r.EndedBy = by
	if pending {
		r.DeniedBy = DeniedByFact
	}
	return true
}
