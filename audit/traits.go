package audit

import (
	"strings"
	"time"
)

// TraitsVersion changes with the traits that a record has, so that what was counted by
// other traits is counted again.
const TraitsVersion = 2

// Traits are what a record is counted by. Each value comes from a small set, so that a
// log of any length has few different ones. Traits are comparable.
type Traits struct {
	Kind   Kind   `json:"kind"`
	Caller string `json:"caller,omitempty"` // kind of the caller; empty: the broker itself
	Method string `json:"method,omitempty"` // the proof of the caller

	// Outcome is the decision of a person; else how a lease ended, the state that a source
	// states, the change of a directory or a membership, the risk of a supplier or the verdict
	// of an access review; else the code of a refusal.
	Outcome string `json:"outcome,omitempty"`
	Cause   string `json:"cause,omitempty"`  // why a fact or what rested on it ended
	About   string `json:"about,omitempty"`  // kind of the subject of a fact or block, of a signal, an access review or a key; what was pruned
	Source  string `json:"source,omitempty"` // kind of the source of a fact, such as scim

	Type       string `json:"type,omitempty"` // of the credential
	Revocation string `json:"revocation,omitempty"`
	Lifetime   string `json:"lifetime,omitempty"` // of an issued credential: the least of Lifetimes that it does not exceed

	BreakGlass bool `json:"break_glass,omitempty"`
	Approvals  bool `json:"approvals,omitempty"` // policy required approvals
	Review     bool `json:"review,omitempty"`    // policy required reviews afterwards
	Signed     bool `json:"signed,omitempty"`    // by a passkey
	Bulk       bool `json:"bulk,omitempty"`      // a decision on several items of an access review
	Narrowed   bool `json:"narrowed,omitempty"`  // a person or the grant has less than was requested
	Reason     bool `json:"reason,omitempty"`    // the request states one
	Ticket     bool `json:"ticket,omitempty"`    // the request names one
}

// A Lifetime is a bound by which the lifetimes of credentials are counted.
type Lifetime struct {
	Name  string
	Bound time.Duration
}

// Lifetimes are the bounds in order. Longer has the lifetimes above.
var Lifetimes = []Lifetime{{"5m", 5 * time.Minute}, {"15m", 15 * time.Minute}, {"1h", time.Hour}, {"8h", 8 * time.Hour}, {"24h", 24 * time.Hour}}

// Longer is the name for lifetimes above all bounds.
const Longer = "longer"

// A Sample is what a record adds to counts.
type Sample struct {
	Traits
	Events   int           // that the record stands for
	Lifetime time.Duration // of an issued credential
}

// Sample returns what the record adds to counts. at is its time in the log.
func (r *Record) Sample(at time.Time) Sample {
	s, expires := r.sample()
	s.last(at, expires)
	return s
}

// last sets the lifetime of a credential that is issued at a time.
func (s *Sample) last(at, expires time.Time) {
	if expires.IsZero() {
		return
	}
	s.Lifetime = max(Millis(expires).Sub(Millis(at)), 0) // as the record has them
	s.Traits.Lifetime = Longer
	for _, l := range Lifetimes {
		if s.Lifetime <= l.Bound {
			s.Traits.Lifetime = l.Name
			return
		}
	}
}

// sample returns everything that does not depend on the record's time, and when the
// credential that it issues expires.
func (r *Record) sample() (s Sample, expires time.Time) {
	s = Sample{Events: max(1, r.Count)}
	t := &s.Traits
	t.Kind, t.Signed = r.Kind, r.Signature != nil
	if r.Caller != nil {
		t.Caller, t.Method = r.Caller.Kind, r.Caller.Method
	}
	if r.Request != nil {
		t.BreakGlass, t.Reason, t.Ticket = r.Request.BreakGlass, !r.Request.Justification.IsZero(), !r.Request.Ticket.IsZero()
	}
	if d := r.Decision; d != nil {
		t.Outcome, t.Approvals, t.Review = d.Code, len(d.Approvals) > 0, len(d.Review) > 0
	}
	if l := r.Lease; l != nil {
		t.Type, t.Revocation, t.Narrowed = l.Type, l.Revocation, len(l.Scopes) > 0
		if r.Kind == LeaseIssued || r.Kind == LeaseRenewed {
			expires = l.Expires
		}
	}
	r.ending(t)
	if a := r.Approval; a != nil {
		t.Outcome, t.Narrowed = a.Decision, len(a.Scopes) > 0 || a.TTL > 0 || a.Duration > 0
	}
	return s, expires
}

// ending sets the traits of ends, blocks and keys.
func (r *Record) ending(t *Traits) {
	switch {
	case r.End != nil:
		t.Outcome, t.Cause, t.About = r.End.How, r.End.Cause, firstWord(r.End.Fact)
	case r.Fact != nil:
		t.Outcome, t.Cause, t.About = r.Fact.State, r.Fact.Cause, firstWord(r.Fact.Subject)
		t.Source, _, _ = strings.Cut(r.Fact.Source, ":")
	case r.Supplier != nil:
		t.Outcome, t.About = r.Supplier.Risk, "supplier"
	case r.Membership != nil:
		t.Outcome = r.Membership.Change
	case r.Campaign != nil:
		t.Outcome, t.About = r.Campaign.Verdict, firstWord(r.Campaign.Permission)
		t.Bulk = r.Kind == CampaignDecided && r.Campaign.Items > 1
	case r.Signal != nil:
		t.About = r.Signal.Event
	case r.Directory != nil && r.Approval == nil:
		t.Outcome = r.Directory.Op
		t.Source, _, _ = strings.Cut(r.Directory.Source, ":")
		if r.Kind == DirectoryUser && (!r.Directory.Active || r.Directory.Op == "deleted") {
			t.Cause = "inactive"
		}
	case r.Block != nil:
		t.About = firstWord(r.Block.Selector)
	case r.Recovery != nil:
		t.Outcome = r.Recovery.Outcome
	case r.Key != nil:
		t.About = r.Key.Purpose
	case r.Pruned != nil:
		t.About = r.Pruned.What
	}
}

// firstWord returns the part of a text before its first space.
func firstWord(text string) string {
	word, _, _ := strings.Cut(text, " ")
	return word
}
