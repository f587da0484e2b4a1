package broker

import (
	"cmp"
	"net/netip"
	"time"

	"accessbroker.internal/audit"
)

// RequestStatus is how far a request got.
type RequestStatus uint8

// The states. Lapsed and Ended are derived from the time and never stored.
const (
	RequestPending RequestStatus = iota + 1
	RequestApproved
	RequestDenied
	RequestWithdrawn
	RequestLapsed // nobody approved in time
	RequestEnded  // the grant is over
)

// An Ask is what a caller wants. Zero values mean "not said".
type Ask struct {
	Entitlement   string
	Scopes        []string
	TTL           time.Duration
	Duration      time.Duration
	Justification string
	Ticket        string
	Parameters    map[string]string
	SourceIP      netip.Addr
	DryRun        bool
	Token         bool      // nothing but a token will do
	Resource      string    // its audience; any, if empty
	BreakGlass    bool      // without approval now, reviewed afterwards
	NotBefore     time.Time // when the grant is to start; zero: at once
	Extends       RequestID // the caller's earlier request that this one goes on
}

// Bounds of what an ask may hold, in bytes.
const (
	MaxJustification = 2000
	MaxTicket        = 128
	MaxScopes        = 32
	MaxScopeLength   = 128
	MaxParameters    = 16
	MaxParameter     = 1024
	MaxLines         = 4096  // of a parameter that may hold line breaks: a CSR for RSA of 4096 bits has 1.6 KB
	MaxAllParameters = 16384 // of one ask, together
	MaxName          = 128
)

// A Request is one ask, with what was decided on it. It is immutable but for
// its status, version, approvals and the times that follow from them.
type Request struct {
	ID            RequestID
	Version       int
	Status        RequestStatus // as stored; see State
	Requester     Identity      // as proved when it was filed, with marks
	Entitlement   string
	Effect        audit.Digest
	Scopes        []string // sorted
	TTL           time.Duration
	TTLAsked      bool // the requester said it, so it is never cut
	Duration      time.Duration
	Justification string
	Ticket        string
	Parameters    map[string]string
	Salts         map[string][16]byte // of the commitments, by field
	SourceIP      netip.Addr
	Digest        audit.Digest
	Decision      Decision
	Approvals     []Approval
	DeniedBy      string // policy, person
	Created       time.Time
	Lapses        time.Time // while pending
	Approved      time.Time // when the last approval came
	NotBefore     time.Time // when the grant starts, if that is later
	CollectUntil  time.Time // the end of the grant
	FirstExpires  time.Time // end of the first credential; zero: none was collected
	BreakGlass    bool
	Extends       RequestID
	ReviewDue     time.Time  // by when it has to be reviewed; zero: it needs no review
	Reviewed      time.Time  // when that was done
	Verdicts      []Approval // of the review; Approve: it was justified
	Records       []RecordID // of the log, oldest first; see RecordID
	Reused        bool       // not stored: an earlier request is the answer to this ask
}

// Who denied a request.
const (
	DeniedByPolicy = "policy"
	DeniedByPerson = "person"
)

// State is the status at now: a pending request lapses and a grant ends by
// time alone, without anything being written.
func (r *Request) State(now time.Time) RequestStatus {
	switch {
	case r.Status == RequestPending && !now.Before(r.Lapses):
		return RequestLapsed
	case r.Status == RequestApproved && !now.Before(r.CollectUntil):
		return RequestEnded
	}
	return r.Status
}

// Ends is the latest time to which a credential of the grant may live.
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

// collectable says nil, or why no credential of the request can be collected.
func (r *Request) collectable(now time.Time) error {
	switch r.State(now) {
	case RequestApproved:
		if now.Before(r.Starts()) {
			return &Refusal{Err: ErrNotYet, Detail: "it starts at " + r.Starts().UTC().Format(time.RFC3339), Retry: r.Starts().Sub(now), RequestID: r.ID}
		}
		return nil
	case RequestPending:
		return &Refusal{Err: ErrPending, Detail: "people have yet to approve this request", RequestID: r.ID}
	case RequestLapsed:
		return &Refusal{Err: ErrLapsed, Detail: "nobody approved this request in time: file a new one", RequestID: r.ID}
	case RequestDenied:
		refusal := &Refusal{Err: ErrDenied, Detail: "this request was denied", DeniedBy: r.DeniedBy, Reasons: r.Decision.Reasons, RequestID: r.ID}
		if r.DeniedBy == DeniedByPerson { // policy only said why people were asked
			refusal.Detail, refusal.Reasons = r.deniedBy(), nil
		}
		return refusal
	case RequestWithdrawn:
		return &Refusal{Err: ErrNotPending, Detail: "this request was withdrawn: file a new one", RequestID: r.ID}
	case RequestEnded:
		return &Refusal{Err: ErrGrantEnded, Detail: "the time to collect is over: file a new request", RequestID: r.ID}
	}
	return refuse(ErrNotFound, "no such request")
}

// deniedBy says who denied the request, and why.
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

// Waits is how long the request waits for people, at most, if any have to approve
// it.
func (r *Request) Waits() time.Duration {
	return cmp.Or(r.Decision.Obligations.LapseAfter, PendingFor)
}

// Starts is when the clock of the grant starts: at the last approval, or when
// the requester wanted it to.
func (r *Request) Starts() time.Time {
	if r.NotBefore.After(r.Approved) {
		return r.NotBefore
	}
	return r.Approved
}

// approve starts the clock of the grant.
func (r *Request) approve(now time.Time) {
	r.Status, r.Approved, r.Lapses = RequestApproved, now, time.Time{}
	r.CollectUntil = r.Starts().Add(r.Grant().Duration)
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

// revoke ends the grant, or the waiting for one. It says false if both are over.
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
