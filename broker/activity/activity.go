// Package activity counts the records of the log by the hour: requests, decisions,
// credentials, and how long people and revocations took.
//
// The counts are a projection of the log. Counting a record never depends on other
// records, so the counts of an hour are the sum of its records in any order, and
// counting the log again from its start yields the same counts. The only fact from
// outside the record is when the end of a lease was requested, which the lease's row
// states and which no longer changes once the end is confirmed.
package activity

import (
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Counts are the counts of a span of time. The zero value is empty.
type Counts struct {
	Requested  int `json:"requested,omitempty"`   // requests that were filed, or denied at once
	Permitted  int `json:"permitted,omitempty"`   // granted by policy alone
	BreakGlass int `json:"break_glass,omitempty"` // granted without the approvals that policy requires
	Approved   int `json:"approved,omitempty"`    // granted by people
	Denied     int `json:"denied,omitempty"`      // by policy
	Rejected   int `json:"rejected,omitempty"`    // denied by people
	Withdrawn  int `json:"withdrawn,omitempty"`
	Revoked    int `json:"revoked,omitempty"` // pending requests and grants that a person or the kill switch ended

	Issued  int `json:"issued,omitempty"`  // credentials
	Refused int `json:"refused,omitempty"` // collections of granted requests

	Wait Durations `json:"wait,omitzero"` // from the request to the decision of people
	// Lag of revocations that the issuer confirmed: Asked, of those that the holder, a
	// person or the kill switch requested; Due, of those that were due by themselves.
	Asked Durations `json:"asked,omitzero"`
	Due   Durations `json:"due,omitzero"`

	Votes map[string]Votes `json:"votes,omitempty"` // by person; see maxPeople
}

// Votes are the votes of one person.
type Votes struct {
	Approved int `json:"approved,omitempty"`
	Denied   int `json:"denied,omitempty"`
	Reviewed int `json:"reviewed,omitempty"`
}

// Total returns the number of votes.
func (v Votes) Total() int { return v.Approved + v.Denied + v.Reviewed }

// Granted returns the number of requests that were granted.
func (c *Counts) Granted() int { return c.Permitted + c.BreakGlass + c.Approved }

// AllDenied returns the number of requests that were denied.
func (c *Counts) AllDenied() int { return c.Denied + c.Rejected }

// maxPeople bounds the people whose votes are counted by name in one hour. The votes
// of further people are counted under Others.
const maxPeople = 256

// Others is the name under which the votes of people past the bound are counted.
const Others = "(others)"

// ConfirmedLease returns the lease whose row tells when the end was requested, for a
// record of a confirmed revocation.
func ConfirmedLease(r *audit.Record) (broker.LeaseID, bool) {
	if r.Kind != audit.LeaseRevoked || r.Lease == nil || r.Lease.Revocation != string(broker.RevokedImmediate) {
		return broker.LeaseID{}, false
	}
	id, err := broker.ParseLeaseID(r.Lease.ID)
	return id, err == nil
}

// Add counts a record. endAsked is when the end of its lease was requested, if
// ConfirmedLease names one; zero: unknown.
func (c *Counts) Add(r *audit.Record, endAsked time.Time) {
	switch r.Kind {
	case audit.RequestCreated:
		c.Requested++
		if r.Decision != nil && len(r.Decision.Approvals) == 0 {
			c.granted(r)
		}
	case audit.LeaseOpened, audit.LeaseIssued:
		c.lease(r)
	case audit.RequestApproved:
		c.Approved++
		c.waited(r)
	case audit.RequestDenied:
		c.denied(r)
	case audit.RequestWithdrawn:
		c.Withdrawn++
	case audit.RequestRevoked:
		c.Revoked++
	case audit.CollectRefused:
		c.Refused += max(1, r.Count)
	case audit.LeaseRevoked:
		c.ended(r, endAsked)
	}
	c.vote(r)
}

func (c *Counts) granted(r *audit.Record) {
	if r.Request != nil && r.Request.BreakGlass {
		c.BreakGlass++
	} else {
		c.Permitted++
	}
}

// lease counts the credential, and the request if the same call filed it: only then
// does the record have all of its terms.
func (c *Counts) lease(r *audit.Record) {
	if r.Kind == audit.LeaseIssued {
		c.Issued++
	}
	if r.Request != nil && r.Request.TTL > 0 {
		c.Requested++
		c.granted(r)
	}
}

func (c *Counts) denied(r *audit.Record) {
	if r.Approval != nil {
		c.Rejected++
		c.waited(r)
		return
	}
	n := max(1, r.Count)
	c.Requested += n
	c.Denied += n
}

// waited counts the time since the request was filed, which its ID states.
func (c *Counts) waited(r *audit.Record) {
	if r.Request == nil {
		return
	}
	if id, err := broker.ParseRequestID(r.Request.ID); err == nil {
		c.Wait.Add(r.Time.Sub(id.Time()))
	}
}

func (c *Counts) ended(r *audit.Record, endAsked time.Time) {
	if endAsked.IsZero() || r.End == nil {
		return
	}
	lag := r.Time.Sub(endAsked)
	if r.End.How == broker.EndRevoked || r.End.How == broker.EndReturned {
		c.Asked.Add(lag)
	} else {
		c.Due.Add(lag)
	}
}

func (c *Counts) vote(r *audit.Record) {
	if r.Approval == nil || r.Caller == nil {
		return
	}
	var v Votes
	switch {
	case r.Kind == audit.ReviewGiven || r.Kind == audit.ReviewClosed:
		v.Reviewed = 1
	case r.Approval.Decision == "approve":
		v.Approved = 1
	default:
		v.Denied = 1
	}
	c.addVotes(r.Caller.ID, v)
}

func (c *Counts) addVotes(person string, v Votes) {
	if c.Votes == nil {
		c.Votes = map[string]Votes{}
	}
	if _, known := c.Votes[person]; !known && len(c.Votes) >= maxPeople {
		person = Others
	}
	sum := c.Votes[person]
	sum.Approved += v.Approved
	sum.Denied += v.Denied
	sum.Reviewed += v.Reviewed
	c.Votes[person] = sum
}

// Merge adds the counts of another span.
func (c *Counts) Merge(o *Counts) {
	for _, sum := range []struct {
		to   *int
		from int
	}{
		{&c.Requested, o.Requested}, {&c.Permitted, o.Permitted}, {&c.BreakGlass, o.BreakGlass}, {&c.Approved, o.Approved},
		{&c.Denied, o.Denied}, {&c.Rejected, o.Rejected}, {&c.Withdrawn, o.Withdrawn}, {&c.Revoked, o.Revoked},
		{&c.Issued, o.Issued}, {&c.Refused, o.Refused},
	} {
		*sum.to += sum.from
	}
	c.Wait.Merge(&o.Wait)
	c.Asked.Merge(&o.Asked)
	c.Due.Merge(&o.Due)
	for person, v := range o.Votes {
		c.addVotes(person, v)
	}
}

// Hours are the counts of hours, by the number of the hour since 1970 in UTC.
type Hours map[int64]*Counts

// HourOf returns the number of the hour of t.
func HourOf(t time.Time) int64 { return t.Unix() / int64(time.Hour/time.Second) }

// Add counts a record in its hour.
func (h Hours) Add(r *audit.Record, endAsked time.Time) { h.at(HourOf(r.Time)).Add(r, endAsked) }

// Merge adds the counts of other hours.
func (h Hours) Merge(o Hours) {
	for hour, counts := range o {
		h.at(hour).Merge(counts)
	}
}

func (h Hours) at(hour int64) *Counts {
	c := h[hour]
	if c == nil {
		c = &Counts{}
		h[hour] = c
	}
	return c
}

// AddIssuance counts a record of a credential from what is known of it without decoding
// it: most records are of this kind. It reports whether the record is one.
func (h Hours) AddIssuance(kind audit.Kind, at time.Time, files, breakGlass bool) bool {
	if kind != audit.LeaseIssued {
		return false
	}
	c := h.at(HourOf(at))
	c.Issued++
	switch {
	case files && breakGlass:
		c.Requested++
		c.BreakGlass++
	case files:
		c.Requested++
		c.Permitted++
	}
	return true
}

// A Report is the activity of a span of time.
type Report struct {
	Hours     Hours
	Lapsed    map[int64]int // requests that no one decided in time, by hour
	Waiting   int64         // pending requests at the end of the span
	Uncounted int64         // records at the end of the log that are not counted yet
}
