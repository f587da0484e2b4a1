package verify

import (
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
)

// A log shows that calls were made by the holder of an active lease, for its entitlement.
func TestCallsAreChecked(t *testing.T) {
	at := someTime
	record := func(kind audit.Kind, edit func(*audit.Record)) audit.Record {
		r := audit.Record{
			Time: at, Kind: kind, Caller: &audit.Party{ID: actor, Kind: "agent"}, Lease: &audit.LeaseFacts{ID: "lse_1", Expires: at.Add(time.Minute)},
			Request: &audit.RequestFacts{ID: "req_1", Entitlement: "tickets-api"},
		}
		if kind == audit.LeaseCalled {
			r.Lease.Expires, r.Call = time.Time{}, &audit.CallFacts{Method: "GET", Target: audit.Digest{1}}
		}
		if edit != nil {
			edit(&r)
		}
		return r
	}
	opened := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{}}
	issued, called := record(audit.LeaseIssued, nil), record(audit.LeaseCalled, nil)
	for name, test := range map[string]struct {
		records []audit.Record
		want    string // in the problem with the last record; empty: none
	}{
		"as it should be":     {[]audit.Record{opened, issued, called, called}, ""},
		"never issued":        {[]audit.Record{opened, called}, "no earlier record issued"},
		"issued earlier":      {[]audit.Record{called, called}, ""},
		"no lease":            {[]audit.Record{opened, issued, record(audit.LeaseCalled, func(r *audit.Record) { r.Lease = nil })}, "names no lease"},
		"no call":             {[]audit.Record{opened, issued, record(audit.LeaseCalled, func(r *audit.Record) { r.Call = nil })}, "names no call"},
		"another caller":      {[]audit.Record{opened, issued, record(audit.LeaseCalled, func(r *audit.Record) { r.Caller.ID += "/other" })}, "another caller"},
		"another entitlement": {[]audit.Record{opened, issued, record(audit.LeaseCalled, func(r *audit.Record) { r.Request.Entitlement = "orders" })}, "another caller or entitlement"},
		"after the end":       {[]audit.Record{opened, issued, record(audit.LeaseRevoked, nil), called}, "already ended"},
		"while revoking":      {[]audit.Record{opened, issued, record(audit.LeaseRevoking, nil), called}, "already ended"},
		"after the expiry":    {[]audit.Record{opened, issued, record(audit.LeaseCalled, func(r *audit.Record) { r.Time = at.Add(time.Hour) })}, "already expired"},
	} {
		s, problem := newLeaseState(10), ""
		for i := range test.records {
			problem = s.check(&test.records[i])
		}
		if test.want == "" && problem != "" || !strings.Contains(problem, test.want) {
			t.Errorf("%s: got %q, want %q", name, problem, test.want)
		}
	}
}
