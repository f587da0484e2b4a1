package checker

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
)

const (
	agent   = "spiffe://acme.test/agent/a"
	tickets = "tickets-api"
)

// A script is a run that a test writes by hand.
type script struct {
	e       *Evidence
	records []audit.Record
	leaves  []audit.Digest
	now     time.Time
	traces  byte
}

func newScript() *script {
	start := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	return &script{now: start, e: &Evidence{History: &History{}, Rules: Rules{
		"limited":  {Limit: 2, Per: time.Hour},
		"active":   {MaxActive: 2},
		"approved": {Approvals: 2},
	}}}
}

// wait lets time pass.
func (s *script) wait(d time.Duration) { s.now = s.now.Add(d) }

// log adds a record that no operation caused, and returns its index.
func (s *script) log(r audit.Record) int64 {
	s.wait(time.Millisecond)
	r.Time = s.now
	s.records, s.leaves = append(s.records, r), append(s.leaves, sha256.Sum256(fmt.Append(nil, len(s.records))))
	return int64(len(s.records) - 1)
}

// do adds an operation and the records that it caused.
func (s *script) do(o Operation, caused ...audit.Record) *Operation {
	s.traces++
	trace := audit.Trace{TraceID: [16]byte{s.traces}, SpanID: [8]byte{1}}
	o.Trace, o.Client, o.Start = hex.EncodeToString(trace.TraceID[:]), "c1", s.now
	if o.Outcome == "" {
		o.Outcome = OK
	}
	for _, r := range caused {
		r.Trace = trace
		at := s.log(r)
		if o.Outcome == OK && r.Kind == audit.LeaseIssued && o.Answer.LeafHash == "" {
			o.Answer.Index, o.Answer.LeafHash, o.Answer.Lease = at, s.leaves[at].String(), r.Lease.ID
		}
	}
	s.wait(time.Millisecond)
	o.End = s.now
	s.wait(time.Millisecond)
	s.e.Operations = append(s.e.Operations, o)
	return &s.e.Operations[len(s.e.Operations)-1]
}

func issued(lease, entitlement string) audit.Record {
	return audit.Record{
		Kind: audit.LeaseIssued, Caller: &audit.Party{ID: agent}, Request: &audit.RequestFacts{ID: "r-" + lease, Entitlement: entitlement},
		Lease: &audit.LeaseFacts{ID: lease, Expires: time.Date(2026, 11, 29, 13, 0, 0, 0, time.UTC)},
	}
}

func opened(lease string) audit.Record {
	r := issued(lease, "upstream")
	r.Kind = audit.LeaseOpened
	return r
}

func replacing(r audit.Record, old, how string) audit.Record {
	r.Lease.Replaces, r.End = old, &audit.EndFacts{How: how}
	return r
}

func ended(lease string, kind audit.Kind, how string) audit.Record {
	return audit.Record{Kind: kind, Lease: &audit.LeaseFacts{ID: lease}, End: &audit.EndFacts{How: how}}
}

func vote(kind audit.Kind, person, request, decision string) audit.Record {
	return audit.Record{Kind: kind, Caller: &audit.Party{ID: person}, Request: &audit.RequestFacts{ID: request, Entitlement: "approved"}, Approval: &audit.ApprovalFacts{Decision: decision}}
}

func about(kind audit.Kind, request string) audit.Record {
	return audit.Record{Kind: kind, Caller: &audit.Party{ID: agent}, Request: &audit.RequestFacts{ID: request, Entitlement: "approved"}}
}

func block(kind audit.Kind) audit.Record {
	return audit.Record{Kind: kind, Caller: &audit.Party{ID: "login/dan"}, Block: &audit.BlockFacts{Selector: "holder " + agent}}
}

var (
	issue      = Operation{Kind: Issue, Args: Args{Holder: agent, Entitlement: tickets}}
	place      = Operation{Kind: Block, Args: Args{Holder: agent}}
	lift       = Operation{Kind: Lift, Args: Args{Holder: agent}}
	introspect = Operation{Kind: Introspect, Args: Args{Holder: agent, Lease: "l1"}, Answer: Answer{Active: true}}
	giveBack   = Operation{Kind: Return, Args: Args{Holder: agent, Lease: "l1"}, Answer: Answer{Status: "revoked"}}
)

func (o Operation) with(outcome Outcome) Operation { o.Outcome = outcome; return o }

// judgements are runs with what a judge must find in them; an empty text means nothing.
var judgements = []struct {
	name string
	run  func(s *script)
	want string
}{
	{"a credential with its record", func(s *script) { s.do(issue, issued("l1", tickets)) }, ""},
	{"a lost answer", func(s *script) { s.do(issue.with(Unknown), issued("l1", tickets)) }, ""},
	{"a lost call", func(s *script) { s.do(issue.with(Unknown)) }, ""},
	{"a credential without a record", func(s *script) {
		o := issue
		o.Answer = Answer{Lease: "l1", LeafHash: "00", Index: 0}
		s.do(o)
	}, "no credential without a record"},
	{"a receipt of another lease", func(s *script) {
		s.do(issue, issued("l1", tickets)).Answer.Lease = "l2"
	}, "no credential without a record"},
	{"a receipt with another hash", func(s *script) {
		s.do(issue, issued("l1", tickets)).Answer.LeafHash = "00"
	}, "no credential without a record"},
	{"another token than recorded", func(s *script) {
		s.do(issue, issued("l1", tickets)).Answer.Type = bearer
	}, "no credential without a record"},

	{"a request without a record", func(s *script) { s.do(Operation{Kind: Ask, Answer: Answer{Request: "r1"}}) }, "no acknowledged write is lost"},
	{"a repeated request", func(s *script) {
		s.do(Operation{Kind: Ask, Outcome: Unknown}, about(audit.RequestCreated, "r1"))
		s.do(Operation{Kind: Ask, Answer: Answer{Request: "r1"}})
	}, ""},
	{"a vote without a record", func(s *script) { s.do(Operation{Kind: Vote}) }, "no acknowledged write is lost"},
	{"a return without a record", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(giveBack)
	}, "no acknowledged write is lost"},
	{"a repeated return", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(giveBack.with(Unknown), ended("l1", audit.LeaseRevoked, "returned"))
		s.do(giveBack)
	}, ""},
	{"a return of a replaced lease", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(issue, replacing(issued("l2", tickets), "l1", "answer_lost"))
		s.do(giveBack)
	}, ""},
	{"a block without a record", func(s *script) { s.do(place) }, "no acknowledged write is lost"},
	{"a repeated block", func(s *script) {
		s.do(place, block(audit.BlockPlaced))
		s.do(place)
	}, ""},
	{"a block after the lift without a record", func(s *script) {
		s.do(place, block(audit.BlockPlaced))
		s.do(lift, block(audit.BlockLifted))
		s.do(place)
	}, "no acknowledged write is lost"},
	{"a lift without a record", func(s *script) {
		s.do(place, block(audit.BlockPlaced))
		s.do(lift)
	}, "no acknowledged write is lost"},

	{"a refused call", func(s *script) { s.do(issue.with(Fail)) }, ""},
	{"a refused call with an effect", func(s *script) { s.do(issue.with(Fail), issued("l1", tickets)) }, "no refused write happened"},
	{"a refused vote that counts", func(s *script) {
		s.do(Operation{Kind: Vote, Outcome: Fail}, vote(audit.ApprovalGiven, "login/ben", "r1", "approve"))
	}, "no refused write happened"},

	{"a call with two leases", func(s *script) {
		s.do(issue.with(Unknown), issued("l1", tickets), issued("l2", tickets))
	}, "no write happens twice"},
	{"a call with two votes", func(s *script) {
		s.do(Operation{Kind: Vote, Outcome: Unknown}, vote(audit.ApprovalGiven, "login/ben", "r1", "approve"), vote(audit.ApprovalGiven, "login/eve", "r1", "approve"))
	}, "no write happens twice"},

	{"an old head", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(issue, issued("l2", tickets))
		a, b := s.e.Operations[0].Trace, s.e.Operations[1].Trace
		s.e.Operations[0].Trace, s.e.Operations[1].Trace = b, a
		s.e.Operations[0].Answer, s.e.Operations[1].Answer = s.e.Operations[1].Answer, s.e.Operations[0].Answer
	}, "the order of the log is the order of the answers"},
	{"two calls at a time", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(issue, issued("l2", tickets))
		s.e.Operations[0].End, s.e.Operations[1].Start = s.e.Operations[1].End, s.e.Operations[0].Start
		a, b := s.e.Operations[0].Trace, s.e.Operations[1].Trace
		s.e.Operations[0].Trace, s.e.Operations[1].Trace = b, a
		s.e.Operations[0].Answer, s.e.Operations[1].Answer = s.e.Operations[1].Answer, s.e.Operations[0].Answer
	}, ""},

	{"a token before its end", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(introspect)
		s.do(giveBack, ended("l1", audit.LeaseRevoked, "returned"))
	}, ""},
	{"a token after its return", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(giveBack, ended("l1", audit.LeaseRevoked, "returned"))
		s.do(introspect).Replica = 2
	}, "no token is accepted after its end"},
	{"a token while its return was not answered", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(giveBack.with(Unknown), ended("l1", audit.LeaseRevoked, "returned"))
		s.do(introspect)
	}, ""},
	{"a token after its renewal", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(Operation{Kind: Renew, Args: Args{Lease: "l1"}}, replacing(issued("l2", tickets), "l1", "replaced"))
		s.do(introspect)
	}, "no token is accepted after its end"},
	{"a token of a blocked holder", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(place, block(audit.BlockPlaced))
		s.do(introspect)
	}, "no token is accepted after its end"},
	{"a token after the lift", func(s *script) {
		s.do(issue, issued("l1", tickets))
		s.do(place, block(audit.BlockPlaced))
		s.do(lift.with(Unknown), block(audit.BlockLifted))
		s.do(introspect)
	}, ""},

	{"an issuance to a blocked holder", func(s *script) {
		s.do(place, block(audit.BlockPlaced))
		s.do(issue, issued("l1", tickets))
	}, "nothing is issued to a blocked holder"},
	{"an issuance after the lift", func(s *script) {
		s.do(place, block(audit.BlockPlaced))
		s.do(lift, block(audit.BlockLifted))
		s.do(issue, issued("l1", tickets))
	}, ""},

	{"an issuance while clocks differ", func(s *script) {
		start := s.now
		s.wait(time.Millisecond)
		s.do(issue, issued("l1", tickets))
		s.e.Faults = append(s.e.Faults, Fault{Name: clocksOff, Start: start, End: s.now.Add(time.Second)})
	}, "nothing is issued while clocks differ"},
	{"an issuance that began before", func(s *script) {
		start := s.now.Add(time.Millisecond / 2)
		s.do(issue, issued("l1", tickets))
		s.e.Faults = append(s.e.Faults, Fault{Name: clocksOff, Start: start, End: s.now.Add(time.Second)})
	}, ""},

	{"a limit that is reached", func(s *script) { s.do(issue, issued("l1", "limited")); s.do(issue, issued("l2", "limited")) }, ""},
	{"a limit that is exceeded", func(s *script) {
		for _, lease := range []string{"l1", "l2", "l3"} {
			s.do(issue, issued(lease, "limited"))
		}
	}, "limits hold"},
	{"a limit in two periods", func(s *script) {
		for _, lease := range []string{"l1", "l2", "l3"} {
			s.do(issue, issued(lease, "limited"))
			s.wait(30 * time.Minute)
		}
	}, ""},
	{"a free repetition", func(s *script) {
		s.do(issue, issued("l1", "limited"))
		s.do(issue, replacing(issued("l2", "limited"), "l1", "answer_lost"))
		s.do(issue, issued("l3", "limited"))
	}, ""},

	{"two active at a time", func(s *script) {
		for _, lease := range []string{"l1", "l2", "l3"} {
			s.do(issue, issued(lease, "active"))
			s.log(ended(lease, audit.LeaseRevoked, "returned"))
		}
		s.do(issue, replacing(issued("l4", "active"), "l3", "replaced"))
		s.do(issue, replacing(issued("l5", "active"), "l4", "replaced"))
	}, ""},
	{"three active at a time", func(s *script) {
		for _, lease := range []string{"l1", "l2", "l3"} {
			s.do(issue, issued(lease, "active"))
		}
	}, "max_active holds"},
	{"a lost answer that still works", func(s *script) {
		s.do(issue, issued("l1", "active"))
		s.do(issue, replacing(issued("l2", "active"), "l1", "answer_lost"))
		s.do(issue, issued("l3", "active"))
	}, "max_active holds"},
	{"a place after the expiry", func(s *script) {
		s.do(issue, issued("l1", "active"))
		s.do(issue, issued("l2", "active"))
		s.wait(time.Hour)
		s.do(issue, issued("l3", "active"))
	}, ""},

	{"an approval by two", func(s *script) {
		s.do(Operation{Kind: Vote}, vote(audit.ApprovalGiven, "login/ben", "r1", "approve"))
		s.do(Operation{Kind: Vote}, vote(audit.RequestApproved, "login/eve", "r1", "approve"))
	}, ""},
	{"an approval by one", func(s *script) {
		s.do(Operation{Kind: Vote}, vote(audit.RequestApproved, "login/ben", "r1", "approve"))
	}, "no approval counts twice"},
	{"a person who votes twice", func(s *script) {
		s.do(Operation{Kind: Vote}, vote(audit.ApprovalGiven, "login/ben", "r1", "approve"))
		s.do(Operation{Kind: Vote}, vote(audit.RequestApproved, "login/ben", "r1", "approve"))
	}, "no approval counts twice"},

	{"a denied request", func(s *script) {
		s.do(Operation{Kind: Vote}, vote(audit.RequestDenied, "login/ben", "r1", "deny"))
		s.do(Operation{Kind: Read, Args: Args{Request: "r1"}, Answer: Answer{Status: "denied"}})
	}, ""},
	{"a request that is denied and withdrawn", func(s *script) {
		s.do(Operation{Kind: Vote}, vote(audit.RequestDenied, "login/ben", "r1", "deny"))
		s.do(Operation{Kind: Withdraw}, about(audit.RequestWithdrawn, "r1"))
	}, "a request has one final state"},
	{"an approved request that is denied", func(s *script) {
		s.do(Operation{Kind: Vote}, vote(audit.ApprovalGiven, "login/ben", "r1", "approve"))
		s.do(Operation{Kind: Vote}, vote(audit.RequestApproved, "login/eve", "r1", "approve"))
		s.do(Operation{Kind: Vote}, vote(audit.RequestDenied, "login/cleo", "r1", "deny"))
	}, "a request has one final state"},
	{"a lease of a withdrawn request", func(s *script) {
		s.do(Operation{Kind: Withdraw}, about(audit.RequestWithdrawn, "r-l1"))
		s.do(Operation{Kind: Collect}, issued("l1", "approved"))
	}, "a request has one final state"},
	{"a read of another state", func(s *script) {
		s.do(Operation{Kind: Withdraw}, about(audit.RequestWithdrawn, "r1"))
		s.do(Operation{Kind: Read, Args: Args{Request: "r1"}, Answer: Answer{Status: "approved"}})
	}, "a request has one final state"},
	{"a stale read", func(s *script) {
		s.do(Operation{Kind: Withdraw}, about(audit.RequestWithdrawn, "r1"))
		s.do(Operation{Kind: Read, Args: Args{Request: "r1"}, Answer: Answer{Status: "pending"}})
	}, "a request has one final state"},

	{"a lease that is finished", func(s *script) {
		s.log(opened("l1"))
		s.wait(20 * time.Second)
		s.log(ended("l1", audit.LeaseRevoking, "deadline"))
		s.log(ended("l1", audit.LeaseRevoked, "deadline"))
		s.wait(time.Minute)
	}, ""},
	{"a lease that no one finishes", func(s *script) { s.log(opened("l1")); s.wait(time.Minute) }, "every lease is owned"},
	{"a lease during a fault", func(s *script) {
		s.log(opened("l1"))
		s.e.Faults = append(s.e.Faults, Fault{Start: s.now, End: s.now.Add(40 * time.Second)}, Fault{Start: s.now.Add(10 * time.Second), End: s.now.Add(20 * time.Second)})
		s.wait(time.Minute)
	}, ""},
	{"a lease after short faults", func(s *script) {
		s.log(opened("l1"))
		s.e.Faults = append(s.e.Faults, Fault{Start: s.now, End: s.now.Add(10 * time.Second)}, Fault{Start: s.now, End: s.now.Add(10 * time.Second)}, Fault{Start: s.now, End: s.now.Add(10 * time.Second)})
		s.wait(45 * time.Second)
	}, "every lease is owned"},
	{"a revocation that no one finishes", func(s *script) {
		s.log(ended("l1", audit.LeaseRevoking, "revoked"))
		s.upstream("l1", time.Time{})
	}, "every lease is owned"},
	{"a revocation that the upstream does not confirm", func(s *script) {
		s.log(opened("l1"))
		s.log(ended("l1", audit.LeaseRevoking, "deadline"))
		s.upstream("l1", s.now.Add(time.Second))
	}, ""},
	{"a revocation that is recorded at the expiry", func(s *script) {
		s.log(opened("l1"))
		s.log(ended("l1", audit.LeaseRevoking, "failed"))
		s.upstream("l1", s.now.Add(time.Second))
		s.log(ended("l1", audit.LeaseRevoked, "failed"))
	}, ""},
	{"a revocation that comes too late", func(s *script) {
		s.log(ended("l1", audit.LeaseRevoking, "revoked"))
		s.upstream("l1", s.now.Add(40*time.Second))
		s.log(ended("l1", audit.LeaseRevoked, "revoked"))
	}, "every lease is owned"},
	{"a revocation of nothing", func(s *script) {
		s.log(ended("l1", audit.LeaseRevoking, "deadline"))
		s.wait(time.Minute)
	}, ""},

	{"a credential upstream", func(s *script) {
		s.log(opened("l1"))
		s.log(issued("l1", "upstream"))
		s.upstream("l1", time.Time{})
	}, ""},
	{"a credential upstream that was revoked", func(s *script) {
		s.log(opened("l1"))
		s.log(ended("l1", audit.LeaseRevoked, "returned"))
		s.upstream("l1", s.now)
	}, ""},
	{"a credential upstream that outlives its lease", func(s *script) {
		s.log(opened("l1"))
		s.log(ended("l1", audit.LeaseRevoked, "returned"))
		s.upstream("l1", time.Time{})
	}, "nothing works upstream after its end"},
	{"a credential upstream without a record", func(s *script) { s.upstream("l1", time.Time{}) }, "nothing works upstream after its end"},
	{"a discarded credential upstream", func(s *script) { s.upstream("l1", s.now.Add(time.Second)) }, ""},

	{"a problem of the log", func(s *script) { s.log(block(audit.BlockPlaced)) }, "the log verifies and continues every checkpoint"},
}

func (s *script) upstream(lease string, end time.Time) {
	s.e.Upstream = append(s.e.Upstream, Upstream{Lease: lease, Made: s.now, Ended: end, Expires: s.now.Add(time.Hour)})
	s.wait(time.Minute)
}

func TestJudges(t *testing.T) {
	seen := map[string]bool{}
	for _, j := range judgements {
		t.Run(j.name, func(t *testing.T) {
			s := newScript()
			j.run(s)
			s.e.Log = NewLog(s.records, s.leaves)
			s.e.Settled = s.now
			if strings.HasPrefix(j.want, "the log verifies") {
				s.e.Log.Problems = []string{"damaged"}
			}
			found := map[string]bool{}
			var texts []string
			for _, f := range Judge(s.e) {
				found[f.Judge] = true
				texts = append(texts, f.String())
			}
			if got := strings.Join(texts, "\n"); j.want == "" && got != "" || j.want != "" && !found[j.want] {
				t.Errorf("got %q, want %q", got, j.want)
			}
		})
		seen[j.want] = true
	}
	for _, j := range judges {
		if !seen[j.name] {
			t.Errorf("no run that the judge %q must reject", j.name)
		}
	}
}

func TestHistoryReadsBack(t *testing.T) {
	s := newScript()
	var file bytes.Buffer
	h := NewHistory(&file, 7)
	h.Add(*s.do(issue, issued("l1", tickets)))
	h.AddFault(Fault{Name: "kill -9", Target: "replica 1", Start: s.now, End: s.now.Add(time.Second)})
	h.Settle([]Upstream{{Lease: "l1", Made: s.now, Expires: s.now}}, s.now)
	if err := h.Err(); err != nil {
		t.Fatal(err)
	}
	got, err := ReadHistory(&file)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%+v %+v %+v %v %v", got.Operations, got.Faults, got.Upstream, got.Settled, got.Seed) != fmt.Sprintf("%+v %+v %+v %v %v", h.Operations, h.Faults, h.Upstream, h.Settled, h.Seed) {
		t.Errorf("got %+v, want %+v", got, h)
	}
	if _, err := ReadHistory(strings.NewReader("{")); err == nil {
		t.Error("half a line: got no error")
	}
}
