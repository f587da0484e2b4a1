package egress

import "context"

// A Call is what a record of a call states.
type Call struct {
	Method string
	Scheme string
	Host   string // with the port, if it is not the default
	Path   string // without the query
}

// URL returns the URL of the call, without its query.
func (c Call) URL() string { return c.Scheme + "://" + c.Host + c.Path }

// Outcomes of calls.
const (
	OutcomeMade    = "made"    // the host answered
	OutcomeRefused = "refused" // the call was not made, or its answer is withheld
	OutcomeFailed  = "failed"  // the host did not answer, or not completely
)

// An Outcome is how a call ended.
type Outcome struct {
	Entitlement string // empty: no rule matched
	Lease       string // empty: the call had no credential
	Outcome     string
	Code        string // of the refusal; empty: none
	Status      int    // of the answer; zero: none
	Sent        int64  // bytes of the bodies
	Received    int64
}

// A Meter accounts for calls.
type Meter interface {
	// Announce records a call. If it returns an error, the call is not made.
	Announce(ctx context.Context, lease string, c Call) error
	// Count notes how a call ended. It does not block.
	Count(Outcome)
}
