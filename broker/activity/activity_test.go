package activity

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

var start = time.Date(2026, 3, 1, 9, 30, 0, 0, time.UTC)

func at(after time.Duration) time.Time { return start.Add(after) }

// records returns one record of each thing that is counted.
func records() []audit.Record {
	filed := &audit.RequestFacts{ID: broker.NewRequestID(start).String(), Entitlement: "tickets", TTL: time.Minute, Duration: time.Hour}
	glass := &audit.RequestFacts{ID: filed.ID, TTL: time.Minute, BreakGlass: true}
	known := &audit.RequestFacts{ID: filed.ID}
	ana, ben := &audit.Party{ID: "login/ana"}, &audit.Party{ID: "login/ben"}
	lease := &audit.LeaseFacts{ID: broker.NewLeaseID(start).String(), Revocation: "immediate"}
	queued := &audit.LeaseFacts{ID: lease.ID, Revocation: "at_expiry"}
	approve, deny := &audit.ApprovalFacts{Decision: "approve"}, &audit.ApprovalFacts{Decision: "deny"}
	waits, permits := &audit.DecisionFacts{Permit: true, Approvals: []string{"1 of dba"}}, &audit.DecisionFacts{Permit: true}
	return []audit.Record{
		{Kind: audit.RequestCreated, Time: at(0), Request: filed, Decision: waits},
		{Kind: audit.RequestCreated, Time: at(0), Request: filed, Decision: permits},
		{Kind: audit.RequestCreated, Time: at(0), Request: glass, Decision: permits},
		{Kind: audit.LeaseIssued, Time: at(0), Request: filed, Decision: permits, Lease: lease},
		{Kind: audit.LeaseIssued, Time: at(0), Request: glass, Decision: permits, Lease: lease},
		{Kind: audit.LeaseIssued, Time: at(0), Request: known, Decision: permits, Lease: lease},
		{Kind: audit.LeaseOpened, Time: at(0), Request: filed, Decision: permits, Lease: lease},
		{Kind: audit.LeaseIssued, Time: at(time.Second), Lease: lease},
		{Kind: audit.ApprovalGiven, Time: at(time.Minute), Request: known, Caller: ana, Approval: approve},
		{Kind: audit.RequestApproved, Time: at(4 * time.Minute), Request: known, Caller: ben, Approval: approve},
		{Kind: audit.RequestDenied, Time: at(6 * time.Minute), Request: known, Caller: ben, Approval: deny},
		{Kind: audit.RequestDenied, Time: at(0), Request: filed, Decision: &audit.DecisionFacts{Code: "denied"}},
		{Kind: audit.RequestDenied, Time: at(0), Request: filed, Decision: &audit.DecisionFacts{Code: "denied"}, Count: 7},
		{Kind: audit.RequestWithdrawn, Time: at(0), Request: known},
		{Kind: audit.RequestRevoked, Time: at(0), Request: known},
		{Kind: audit.CollectRefused, Time: at(0), Request: known, Count: 3},
		{Kind: audit.ReviewClosed, Time: at(0), Request: known, Caller: ana, Approval: &audit.ApprovalFacts{Decision: "justified"}},
		{Kind: audit.LeaseRevoked, Time: at(0), Lease: lease, End: &audit.EndFacts{How: "revoked"}},
		{Kind: audit.LeaseRevoked, Time: at(0), Lease: lease, End: &audit.EndFacts{How: "expired"}},
		{Kind: audit.LeaseRevoked, Time: at(0), Lease: queued, End: &audit.EndFacts{How: "revoked"}},
		{Kind: audit.SessionOpened, Time: at(0), Caller: ana},
	}
}

func TestRecordsAreCounted(t *testing.T) {
	var got Counts
	for _, r := range records() {
		var asked time.Time
		if _, ok := ConfirmedLease(&r); ok {
			asked = r.Time.Add(-20 * time.Second)
		}
		got.Add(&r, asked)
	}
	bucket := func(n int, d time.Duration) (h Durations) {
		for range n {
			h.Add(d)
		}
		return h
	}
	want := Counts{
		Requested: 6 + 8, Permitted: 3, BreakGlass: 2, Approved: 1, Denied: 8, Rejected: 1, Withdrawn: 1, Revoked: 1, Issued: 4, Refused: 3,
		Asked: bucket(1, 20*time.Second), Due: bucket(1, 20*time.Second),
		Votes: map[string]Votes{"login/ana": {Approved: 1, Reviewed: 1}, "login/ben": {Approved: 1, Denied: 1}},
	}
	want.Wait.Add(4 * time.Minute)
	want.Wait.Add(6 * time.Minute)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got.Granted() != 6 || got.AllDenied() != 9 {
		t.Errorf("got %d granted and %d denied", got.Granted(), got.AllDenied())
	}
}

// Counting by the outline of a leaf, and counting hours in parts that are stored in
// between, has the same result as counting each record.
func TestCountsAddUp(t *testing.T) {
	whole, parts := Hours{}, Hours{}
	quick := 0
	for i, r := range records() {
		r.Time = at(time.Duration(i) * 17 * time.Minute)
		whole.Add(&r, time.Time{})
		entry, err := r.Entry()
		if err != nil {
			t.Fatal(err)
		}
		entry.SetTime(r.Time)
		part := Hours{}
		outline, err := audit.Glance(entry.Leaf())
		if err != nil {
			t.Fatal(err)
		}
		files, glass := outline.Files()
		if entryFiles, entryGlass := entry.Files(); entryFiles != files || entryGlass != glass {
			t.Errorf("the outline of %s files %t, break-glass %t", entry.Leaf(), files, glass)
		}
		if part.AddIssuance(outline.Kind, outline.Time, files, glass) {
			quick++
		} else {
			part.Add(&r, time.Time{})
		}
		for hour, counts := range part {
			text, err := json.Marshal(counts)
			if err != nil {
				t.Fatal(err)
			}
			part[hour] = &Counts{}
			if err := json.Unmarshal(text, part[hour]); err != nil {
				t.Fatal(err)
			}
		}
		parts.Merge(part)
	}
	if !reflect.DeepEqual(parts, whole) || quick != 4 || len(whole) < 5 {
		t.Errorf("got  %+v\nwant %+v; %d counted by their outline", parts, whole, quick)
	}
}

// A text in a record cannot imitate the terms by which records are counted.
func TestTextsAreNoTerms(t *testing.T) {
	r := audit.Record{Kind: audit.LeaseIssued, Time: start, Request: &audit.RequestFacts{ID: `"ttl":`, Entitlement: `x","ttl":60,"break_glass":true,"y":"`}, Lease: &audit.LeaseFacts{ID: "lse_x"}}
	entry, err := r.Entry()
	if err != nil {
		t.Fatal(err)
	}
	entry.SetTime(start)
	outline, err := audit.Glance(entry.Leaf())
	if err != nil {
		t.Fatal(err)
	}
	if files, glass := outline.Files(); files || glass {
		t.Errorf("got files %t, break-glass %t", files, glass)
	}
}

func TestVotesOfManyPeopleAreBounded(t *testing.T) {
	var c Counts
	for i := range maxPeople + 10 {
		c.Add(&audit.Record{Kind: audit.ApprovalGiven, Caller: &audit.Party{ID: fmt.Sprint("login/", i)}, Approval: &audit.ApprovalFacts{Decision: "approve"}}, time.Time{})
	}
	if len(c.Votes) != maxPeople+1 || c.Votes[Others].Total() != 10 {
		t.Errorf("got %d people, and %d votes of others", len(c.Votes), c.Votes[Others].Total())
	}
}

func TestDurations(t *testing.T) {
	var d Durations
	if d.Within(.5) != 0 || d.Mean() != 0 || !d.IsZero() {
		t.Errorf("empty: got %s, %s", d.Within(.5), d.Mean())
	}
	d.Add(40 * time.Millisecond)
	if got := d.Within(.5); got != 40*time.Millisecond {
		t.Errorf("one: got %s", got)
	}
	for _, t := range []time.Duration{-time.Second, 100 * time.Millisecond, 101 * time.Millisecond, 90 * time.Second, 90 * time.Second, 30 * time.Hour} {
		d.Add(t)
	}
	for share, want := range map[float64]time.Duration{.1: 100 * time.Millisecond, .5: 300 * time.Millisecond, .8: 2 * time.Minute, .95: 30 * time.Hour, 1: 30 * time.Hour} {
		if got := d.Within(share); got != want {
			t.Errorf("%.0f %% are within %s, want %s", share*100, got, want)
		}
	}
	if want := (30*time.Hour + 180*time.Second + 241*time.Millisecond) / 7; d.Mean() != want || d.Count() != 7 {
		t.Errorf("got a mean of %s over %d, want %s", d.Mean(), d.Count(), want)
	}
}
