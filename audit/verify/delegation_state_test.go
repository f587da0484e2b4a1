package verify

import (
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
)

const actor = "spiffe://acme.test/agent/triage"

// onBehalf returns the record of a token that an agent collects on behalf of a person.
func onBehalf(lease string, at time.Time) audit.Record {
	return audit.Record{
		Time: at, Kind: audit.LeaseIssued, Caller: &audit.Party{ID: actor, Kind: "agent"},
		Subject:   &audit.Party{ID: "login/ana", Kind: "person", Method: "id-jag", Proof: audit.Digest{1, lease[len(lease)-1]}},
		Request:   &audit.RequestFacts{ID: "req_of_" + lease, Entitlement: "tickets-api", TTL: 10 * time.Minute, Duration: time.Hour},
		Decision:  &audit.DecisionFacts{Permit: true, MaxTTL: 5 * time.Minute, Approvals: []string{"2 of dba"}, Signed: true},
		Delegated: &audit.DecisionFacts{Permit: true, MaxTTL: 10 * time.Minute, Approvals: []string{"1 of dba"}},
		Lease:     &audit.LeaseFacts{ID: lease, Expires: at.Add(10 * time.Minute)},
	}
}

// below returns the record of a token for which a sub-agent exchanged another one.
func below(parent, lease string, at time.Time) audit.Record {
	r := onBehalf(lease, at)
	r.Caller = &audit.Party{ID: actor + "/sub", Kind: "agent", Actors: []string{actor}}
	r.Request.Parent, r.Lease.Expires = parent, at.Add(time.Minute)
	return r
}

// A log shows that both sides permitted, that a proof was used once, and that the tokens of a
// chain were active when they were exchanged.
func TestVerifierChecksDelegations(t *testing.T) {
	at := someTime
	ended := func(lease string) audit.Record {
		return audit.Record{Time: at, Kind: audit.LeaseRevoked, Lease: &audit.LeaseFacts{ID: lease}}
	}
	for name, test := range map[string]struct {
		records []audit.Record
		want    string // in the problem with the last record; empty: none
	}{
		"as it should be":     {[]audit.Record{onBehalf("lse_1", at), below("lse_1", "lse_2", at)}, ""},
		"no second decision":  {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Delegated = nil })}, "did not permit it to login/ana"},
		"second denies":       {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Delegated.Permit = false })}, "did not permit it to login/ana"},
		"other rules":         {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Delegated.Revision = audit.Digest{9} })}, "different rules"},
		"fewer approvals":     {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Delegated.Approvals = []string{"3 of dba"} })}, "does not require all"},
		"other approvals":     {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Delegated.Approvals = []string{"1 of legal"} })}, "does not require all"},
		"no signature":        {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Delegated.Signed, r.Decision.Signed = true, false })}, "does not require all"},
		"longer":              {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Delegated.MaxTTL = time.Minute })}, "for longer than policy allows login/ana"},
		"no subject":          {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Subject = nil })}, "names no one on whose behalf"},
		"itself":              {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Subject.ID = actor })}, "loop"},
		"loop":                {[]audit.Record{onBehalf("lse_1", at), edited(below("lse_1", "lse_2", at), func(r *audit.Record) { r.Caller.ID = actor })}, "loop"},
		"actors, no token":    {[]audit.Record{edited(onBehalf("lse_1", at), func(r *audit.Record) { r.Caller.Actors = []string{"spiffe://acme.test/x"} })}, "no token that the caller exchanged"},
		"proof used twice":    {[]audit.Record{onBehalf("lse_1", at), edited(onBehalf("lse_2", at), func(r *audit.Record) { r.Subject.Proof = audit.Digest{1, '1'} })}, "was used before"},
		"access token again":  {[]audit.Record{edited(onBehalf("lse_1", at), reusable), edited(onBehalf("lse_2", at), reusable)}, ""},
		"ended link":          {[]audit.Record{onBehalf("lse_1", at), ended("lse_1"), below("lse_1", "lse_2", at)}, "was not active"},
		"ended link, collect": {[]audit.Record{onBehalf("lse_1", at), ended("lse_1"), edited(below("lse_1", "lse_2", at), func(r *audit.Record) { r.Request.TTL, r.Request.Duration = 0, 0 })}, "was not active"},
		"outlives the link":   {[]audit.Record{onBehalf("lse_1", at), edited(below("lse_1", "lse_2", at), func(r *audit.Record) { r.Lease.Expires = at.Add(11 * time.Minute) })}, "outlives the token"},
		"link of another log": {[]audit.Record{opened("acme.test/1"), below("lse_0", "lse_2", at)}, ""},
		"no such link":        {[]audit.Record{opened(""), below("lse_0", "lse_2", at)}, "no lease lse_0"},
		"no such link, filed": {[]audit.Record{opened(""), edited(below("lse_0", "lse_2", at), func(r *audit.Record) { r.Kind, r.Lease = audit.RequestCreated, nil })}, "no lease lse_0"},
		"link of this log":    {[]audit.Record{opened(""), onBehalf("lse_1", at), below("lse_1", "lse_2", at)}, ""},
		"own link":            {[]audit.Record{edited(onBehalf("lse_1", at), ownRights), edited(below("lse_1", "lse_2", at), func(r *audit.Record) { r.Subject.ID, r.Caller.Actors = actor, nil })}, ""},
		"own link, person":    {[]audit.Record{edited(onBehalf("lse_1", at), ownRights), below("lse_1", "lse_2", at)}, "its chain is not that"},
		"other person":        {[]audit.Record{onBehalf("lse_1", at), edited(below("lse_1", "lse_2", at), func(r *audit.Record) { r.Subject.ID = "login/bo" })}, "its chain is not that"},
		"an actor is missing": {[]audit.Record{onBehalf("lse_1", at), edited(below("lse_1", "lse_2", at), func(r *audit.Record) { r.Caller.Actors = nil })}, "its chain is not that"},
		"other entitlement":   {[]audit.Record{onBehalf("lse_1", at), edited(below("lse_1", "lse_2", at), func(r *audit.Record) { r.Request.Entitlement = "orders-db" })}, "is for tickets-api"},
		"fewer scopes":        {[]audit.Record{scoped(onBehalf("lse_1", at), "a", "b"), scoped(below("lse_1", "lse_2", at), "b")}, ""},
		"more scopes":         {[]audit.Record{scoped(onBehalf("lse_1", at), "a"), scoped(below("lse_1", "lse_2", at), "a", "b")}, "more scopes"},
		"narrowed by people":  {[]audit.Record{edited(scoped(onBehalf("lse_1", at), "a", "b"), func(r *audit.Record) { r.Lease.Scopes = []string{"a"} }), scoped(below("lse_1", "lse_2", at), "b")}, "more scopes"},
	} {
		t.Run(name, func(t *testing.T) {
			leases := newLeaseState(10)
			s := newDelegationState(leases, 10)
			problem := ""
			for i := range test.records {
				problem = s.check(&test.records[i])
				leases.check(&test.records[i])
				if i < len(test.records)-1 && problem != "" {
					t.Errorf("record %d: got problem %q", i, problem)
				}
			}
			if (problem == "") != (test.want == "") || !strings.Contains(problem, test.want) {
				t.Errorf("got problem %q, want %q", problem, test.want)
			}
		})
	}
}

func opened(previous string) audit.Record {
	return audit.Record{Time: someTime, Kind: audit.LogOpened, Log: &audit.LogFacts{Previous: previous}}
}

func ownRights(r *audit.Record) { r.Subject, r.Delegated = nil, nil }

func scoped(r audit.Record, scopes ...string) audit.Record {
	r.Request.Scopes = scopes
	return r
}

func reusable(r *audit.Record) {
	r.Subject.Method, r.Subject.Proof = "access-token", audit.Digest{1}
}

// A credential is collected on behalf of the same subject as its request was filed, and the
// subject's vote does not count.
func TestVerifierKeepsTheSubject(t *testing.T) {
	at := someTime
	s := newRequestState(10)
	filed := onBehalf("lse_1", at)
	filed.Kind, filed.Lease, filed.Request.LapsesAt = audit.RequestCreated, nil, at.Add(time.Hour)
	filed.Request.Digest = filed.Request.Sum(filed.Requester(), filed.Decision)
	if problem := s.check(&filed, false); problem != "" {
		t.Fatal(problem)
	}
	vote := audit.Record{Time: at, Kind: audit.ApprovalGiven, Caller: &audit.Party{ID: "login/ana"},
		Request:  &audit.RequestFacts{ID: filed.Request.ID, Digest: filed.Request.Digest, Entitlement: "tickets-api"},
		Approval: &audit.ApprovalFacts{Decision: "approve", Digest: filed.Request.Digest, Groups: []string{"dba"}}}
	if problem := s.check(&vote, false); problem != isExcluded {
		t.Errorf("the subject votes: got %q, want %q", problem, isExcluded)
	}
	other := onBehalf("lse_1", at)
	other.Subject.ID, other.Request = "login/bo", &audit.RequestFacts{ID: filed.Request.ID, Digest: filed.Request.Digest, Entitlement: "tickets-api"}
	if problem := s.check(&other, false); !strings.Contains(problem, "on behalf of another") {
		t.Errorf("another subject: got %q", problem)
	}
}
