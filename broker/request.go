package broker

import (
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
}

// Bounds of what an ask may hold, in bytes.
const (
	MaxJustification = 2000
	MaxTicket        = 128
	MaxScopes        = 32
	MaxScopeLength   = 128
	MaxParameters    = 16
	MaxParameter     = 1024
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
	Approved      time.Time // when the grant's clock started
	CollectUntil  time.Time // the end of the grant
	FirstExpires  time.Time // end of the first credential; zero: none was collected
}

// An Approval is one person's yes or no, bound to what they saw.
type Approval struct {
	Person   string
	Groups   []string
	Digest   audit.Digest
	Approve  bool
	Comment  string
	Scopes   []string // narrowed to; nil: as asked
	TTL      time.Duration
	Duration time.Duration
	At       time.Time
}
