package verify

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
)

// collects is the lease of a request as asks makes it.
func collects(kind audit.Kind, request string, at time.Time) audit.Record {
	r := asks(request, at)
	return audit.Record{Time: at, Kind: kind, Caller: r.Caller, Decision: &audit.DecisionFacts{Permit: true},
		Request: &audit.RequestFacts{ID: request, Digest: ownDigest, Entitlement: "tickets-api", Scopes: r.Request.Scopes},
		Lease:   &audit.LeaseFacts{ID: "lse_of_" + request, Expires: at.Add(10 * time.Minute)}}
}

// glass is a request that breaks the glass, filed and collected in one call.
func glass(at time.Time) audit.Record {
	r := asks("req_1", at)
	r.Kind, r.Request.BreakGlass, r.Request.LapsesAt = audit.LeaseIssued, true, time.Time{}
	r.Decision = &audit.DecisionFacts{Permit: true, Review: []string{"2 of security"}}
	r.Lease = &audit.LeaseFacts{ID: "lse_1", Expires: at.Add(10 * time.Minute)}
	return r
}

func verdict(kind audit.Kind, person string, at time.Time) audit.Record {
	return audit.Record{Time: at, Kind: kind, Caller: &audit.Party{ID: person}, Request: &audit.RequestFacts{ID: "req_1", Digest: ownDigest, Entitlement: "tickets-api"},
		Approval: &audit.ApprovalFacts{Decision: "deny", Digest: ownDigest, Groups: []string{"security"}}}
}

// signedGlass is one whose approvals would have been signed: so is its review.
func signedGlass(at time.Time) audit.Record {
	return edited(glass(at), func(r *audit.Record) { r.Decision.Signed = true })
}

// reviews is a signed verdict on a broken glass, before anybody changes it.
func (c *cast) reviews(who *keyHolder, kind audit.Kind, broken audit.Record) audit.Record {
	return c.signs(who, edited(verdict(kind, who.person, c.at), func(r *audit.Record) { r.Approval.Decision = "unjustified" }), broken, (*audit.ApprovalFacts).ReviewChallenge)
}

// signs signs what somebody says of a request, as one challenge or the other.
func (c *cast) signs(who *keyHolder, r, asked audit.Record, challenge func(_ *audit.ApprovalFacts, person, request string, nonce audit.Digest) audit.Digest) audit.Record {
	digest := asked.Request.Sum(asked.Caller.ID, asked.Decision)
	return edited(r, func(r *audit.Record) {
		r.Request.Digest, r.Approval.Digest = digest, digest
		r.Signature = who.sign(c.t, func(nonce audit.Digest) audit.Digest { return challenge(r.Approval, who.person, r.Request.ID, nonce) })
	})
}

// A cast is people with passkeys that count by tomorrow, and what they say.
type cast struct {
	t             *testing.T
	ana, ben, eve *keyHolder
	dora          *keyHolder // answers for the workload that asks
	at            time.Time
}

// firstForged is the index of the first record after the cast's enrolments.
const firstForged = 5

func newCast(t *testing.T) *cast {
	return &cast{t, newKeyHolder(t, "login/ana"), newKeyHolder(t, "login/ben"), newKeyHolder(t, "login/eve"), newKeyHolder(t, "login/dora"), someTime.Add(25 * time.Hour)}
}

// forges makes a log whose hashes and signatures are all right, as whoever runs
// the broker can.
func (c *cast) forges(records []audit.Record) *testLog {
	m := &testLog{}
	m.record(c.t, audit.Record{Time: someTime, Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}})
	for _, who := range []*keyHolder{c.ana, c.ben, c.eve, c.dora} {
		m.record(c.t, who.enrolled(someTime))
	}
	for _, r := range records {
		m.record(c.t, r)
	}
	m.sign(c.t)
	return m
}

func (c *cast) asked(approvals ...string) audit.Record { return asks("req_1", c.at, approvals...) }

func (c *cast) lease() audit.Record { return collects(audit.LeaseIssued, "req_1", c.at) }

// yes is an approval that is not the last, by whoever is in the groups.
func (c *cast) yes(who *keyHolder, groups ...string) audit.Record {
	return edited(c.last(who, groups...), func(r *audit.Record) { r.Kind = audit.ApprovalGiven })
}

func (c *cast) last(who *keyHolder, groups ...string) audit.Record {
	return who.says(c.t, "req_1", c.at, &audit.ApprovalFacts{Decision: "approve", Digest: ownDigest, Groups: groups})
}

// narrowed is an approval of less, and the last.
func (c *cast) narrowed(who *keyHolder, scope string, ttl, duration time.Duration) audit.Record {
	return who.says(c.t, "req_1", c.at, &audit.ApprovalFacts{Decision: "approve", Digest: ownDigest, Groups: []string{"dba"}, Scopes: []string{scope}, TTL: ttl, Duration: duration})
}

func (c *cast) no(who *keyHolder, kind audit.Kind) audit.Record {
	return audit.Record{Time: c.at, Kind: kind, Caller: who.party(), Request: c.last(who).Request, Approval: &audit.ApprovalFacts{Decision: "deny", Digest: ownDigest, Groups: []string{"dba"}}}
}

func unsigned(r audit.Record) audit.Record {
	return edited(r, func(r *audit.Record) { r.Signature = nil })
}

// relaxed is a request whose approvals need no signature.
func (c *cast) relaxed(approvals ...string) audit.Record {
	return edited(c.asked(approvals...), func(r *audit.Record) { r.Decision.Signed = false })
}

func (c *cast) ended(kind audit.Kind) audit.Record {
	return audit.Record{Time: c.at, Kind: kind, Caller: c.asked().Caller, Request: c.last(c.ana).Request}
}

func later(r audit.Record, by time.Duration) audit.Record {
	return edited(r, func(r *audit.Record) {
		r.Time = r.Time.Add(by)
		if r.Lease != nil {
			r.Lease.Expires = r.Lease.Expires.Add(by)
		}
	})
}

// TestForgedApprovals are logs that whoever runs the broker wrote, in which
// something was let out that people did not approve, or not like that. Each is
// found where it is; those that say nothing are honest.
func TestForgedApprovals(t *testing.T) {
	c := newCast(t)
	type log = []audit.Record
	two := c.asked("2 of dba")
	granted := log{c.asked("1 of dba"), c.last(c.ana, "dba")}
	broken := signedGlass(c.at)
	onLease := func(change func(*audit.Record)) log { return append(slices.Clone(granted), edited(c.lease(), change)) }
	for name, test := range map[string]struct {
		records log
		at      int    // among the records
		says    string // empty: it verifies
	}{
		"two approved":                        {records: log{two, c.yes(c.ana, "dba"), c.last(c.ben, "dba"), c.lease()}},
		"nobody approved":                     {log{two, c.lease()}, 1, "policy requires approval by 2 of dba with valid signatures, and the log has 0 of dba"},
		"nobody approved, and it was opened":  {log{two, edited(c.lease(), func(r *audit.Record) { r.Kind = audit.LeaseOpened })}, 1, "the log has 0 of dba"},
		"one of two approved":                 {log{two, c.yes(c.ana, "dba"), c.lease()}, 2, "and the log has 1 of dba"},
		"one of two, and said to be the last": {log{two, c.last(c.ana, "dba")}, 1, "and the log has 1 of dba"},
		"one of two, unsigned where that is fine": {log{c.relaxed("2 of dba"), unsigned(c.last(c.ana, "dba"))}, 1,
			"policy requires approval by 2 of dba, and the log has 1 of dba"},
		"a lease after one of two": {log{two, c.last(c.ana, "dba"), c.lease()}, 2, "and the log has 1 of dba"},
		"one person twice":         {log{two, c.yes(c.ana, "dba"), c.last(c.ana, "dba")}, 2, "the same person has already voted"},
		"one person in two groups": {log{c.asked("1 of dba", "1 of security"), c.yes(c.ana, "dba", "security"), c.lease()}, 2,
			"by 1 of dba, 1 of security with valid signatures, and the log has 1 of dba, 0 of security"},
		"two people, who change their seats": {records: log{c.asked("1 of dba", "1 of security"), c.yes(c.ana, "dba", "security"), c.last(c.ben, "dba"), c.lease()}},
		"two people of the same group":       {log{c.asked("1 of dba", "1 of security"), c.yes(c.ana, "dba"), c.last(c.ben, "dba")}, 2, "1 of dba, 0 of security"},
		"of another group":                   {log{c.asked("1 of dba"), c.last(c.ana, "interns")}, 1, "0 of dba"},
		"unsigned":                           {log{c.asked("1 of dba"), unsigned(c.last(c.ana, "dba"))}, 1, "policy requires the signature of a passkey, and it has none"},
		"a lease after an unsigned approval": {log{c.asked("1 of dba"), unsigned(c.last(c.ana, "dba")), c.lease()}, 2, "0 of dba"},
		"a lease after a signature of somebody else's": {log{c.asked("1 of dba"), edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Caller = c.ben.party() }), c.lease()},
			2, "0 of dba"},
		"of another request": {log{c.asked("1 of dba"), edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Approval.Digest = digest(2) })}, 1, "signs something else"},
		"of another digest": {log{c.asked("1 of dba"), c.ana.says(t, "req_1", c.at, &audit.ApprovalFacts{Decision: "approve", Digest: digest(2), Groups: []string{"dba"}})}, 1,
			"the person saw something else than the request, whose digest is "},
		"of a request that is told otherwise than it was shown": {log{edited(c.asked("1 of dba"), func(r *audit.Record) { r.Request.Digest = digest(9) })}, 0, "its digest, which approvers see and sign, does not match its contents"},
		"a lease after that of another digest": {log{c.asked("1 of dba"), c.ana.says(t, "req_1", c.at, &audit.ApprovalFacts{Decision: "approve", Digest: digest(2), Groups: []string{"dba"}}), c.lease()},
			2, "0 of dba"},
		"the record names another digest": {log{c.asked("1 of dba"), edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Request.Digest = digest(2) })}, 1, "it does not match the request, whose digest is"},
		"for another entitlement":         {log{c.asked("1 of dba"), edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Request.Entitlement = "db" })}, 1, "the request, whose entitlement is tickets-api"},
		"by who asked":                    {log{edited(c.asked("1 of dba"), func(r *audit.Record) { r.Caller = c.ana.party() }), c.last(c.ana, "dba")}, 1, "the person made the request or is accountable"},
		"by who answers for it":           {log{c.asked("1 of dba"), c.last(c.dora, "dba")}, 1, "is accountable for the requester"},
		"a lease after such a one":        {log{c.asked("1 of dba"), c.last(c.dora, "dba"), c.lease()}, 2, "0 of dba"},
		"who took it back":                {log{two, c.yes(c.ana, "dba"), c.no(c.ana, audit.ApprovalGiven), c.last(c.ben, "dba")}, 3, "and the log has 1 of dba"},
		"a no that ends as a yes":         {log{c.asked("1 of dba"), edited(c.no(c.ana, audit.RequestApproved), func(*audit.Record) {})}, 1, "the log has 0 of dba"},
		"a no that counts as a yes":       {log{c.relaxed("1 of dba"), c.no(c.ana, audit.ApprovalGiven), c.lease()}, 2, "the log has 0 of dba"},
		"it has no vote":                  {log{c.asked("1 of dba"), c.ended(audit.RequestApproved)}, 1, "it has no vote"},
		"after it was denied":             {log{c.asked("1 of dba"), c.no(c.ben, audit.RequestDenied), c.last(c.ana, "dba")}, 2, "its request was already denied"},
		"again":                           {append(slices.Clone(granted), c.last(c.ben, "dba")), 2, "was already approved"},
		"what nobody asked":               {log{c.last(c.ana, "dba")}, 0, "this log has no such request"},
		"asked twice":                     {log{two, c.asked("1 of dba")}, 1, "the request already exists"},
		"not permitted":                   {log{edited(two, func(r *audit.Record) { r.Decision.Permit = false })}, 0, "policy did not permit the request"},
		"asked by nobody":                 {log{edited(two, func(r *audit.Record) { r.Caller = nil })}, 0, "the request has no requester"},
		"wants that are none":             {log{c.asked("0 of dba")}, 0, "the approvals or reviews that policy requires are not readable"},
		"wants without end":               {log{c.asked("1024 of dba", "1024 of security")}, 0, "the approvals or reviews that policy requires are not readable"},

		"a lease":                           {records: append(slices.Clone(granted), c.lease())},
		"another, and a later one":          {records: append(slices.Clone(granted), c.lease(), edited(later(c.lease(), 59*time.Minute), func(r *audit.Record) { r.Lease.ID = "lse_2" }))},
		"a lease of no request":             {log{c.lease()}, 0, "this log has no such request"},
		"a lease that names none":           {log{edited(c.lease(), func(r *audit.Record) { r.Request.ID = "" })}, 0, "it names no request"},
		"opened for no request":             {log{edited(c.lease(), func(r *audit.Record) { r.Kind, r.Request = audit.LeaseOpened, nil })}, 0, "it names no request"},
		"after a denial":                    {log{c.asked("1 of dba"), c.no(c.ana, audit.RequestDenied), c.lease()}, 2, "its request was already denied"},
		"after it was withdrawn":            {log{c.asked("1 of dba"), c.ended(audit.RequestWithdrawn), c.lease()}, 2, "its request was already withdrawn"},
		"after it was revoked":              {append(slices.Clone(granted), c.ended(audit.RequestRevoked), c.lease()), 3, "its request was already revoked"},
		"before the last approval":          {log{two, c.yes(c.ana, "dba"), c.lease(), c.last(c.ben, "dba")}, 2, "and the log has 1 of dba"},
		"approved by all, and not yet said": {log{c.asked("1 of dba"), c.yes(c.ana, "dba"), c.lease()}, 2, "its request was still pending"},
		"another holder":                    {onLease(func(r *audit.Record) { r.Caller = &audit.Party{ID: "spiffe://acme.test/evil"} }), 2, "its holder is not the requester, spiffe://acme.test/agent/triage"},
		"another entitlement":               {onLease(func(r *audit.Record) { r.Request.Entitlement = "root" }), 2, "the request, whose entitlement is tickets-api"},
		"another digest":                    {onLease(func(r *audit.Record) { r.Request.Digest = digest(9) }), 2, "it does not match the request, whose digest is"},
		"more scopes":                       {onLease(func(r *audit.Record) { r.Request.Scopes = []string{"tickets:close", "tickets:read", "tickets:write"} }), 2, "its scope tickets:write was not granted"},
		"more scopes than asked for":        {onLease(func(r *audit.Record) { r.Lease.Scopes = []string{"tickets:write"} }), 2, "its scope tickets:write was not granted"},
		"it tells of other scopes":          {onLease(func(r *audit.Record) { r.Request.Scopes = []string{"tickets:read"} }), 2, "the request, whose scopes are tickets:close tickets:read"},
		"longer":                            {onLease(func(r *audit.Record) { r.Lease.Expires = r.Time.Add(time.Hour) }), 2, "it is valid for longer than the granted 10m0s"},
		"without an end":                    {onLease(func(r *audit.Record) { r.Lease.Expires = time.Time{} }), 2, "it is valid for longer"},
		"not permitted any more":            {onLease(func(r *audit.Record) { r.Decision.Permit = false }), 2, "policy did not permit it"},
		"after the grant":                   {append(slices.Clone(granted), later(c.lease(), 62*time.Minute)), 2, "the grant had ended"},
		"before the grant": {log{edited(c.asked("1 of dba"), func(r *audit.Record) { r.Request.NotBefore = c.at.Add(time.Hour) }), c.last(c.ana, "dba"), c.lease()}, 2,
			"the grant had not started"},
		"in the grant": {records: log{edited(c.asked("1 of dba"), func(r *audit.Record) { r.Request.NotBefore = c.at.Add(time.Hour) }), c.last(c.ana, "dba"), later(c.lease(), 90*time.Minute)}},
		"narrowed": {records: log{c.asked("1 of dba"), c.narrowed(c.ana, "tickets:read", time.Minute, 0), edited(c.lease(), func(r *audit.Record) {
			r.Lease.Scopes, r.Lease.Expires = []string{"tickets:read"}, c.at.Add(time.Minute)
		})}},
		"narrowed, and all the same": {log{c.asked("1 of dba"), c.narrowed(c.ana, "tickets:read", 0, 0), c.lease()}, 2, "its scope tickets:close was not granted; the granted scopes are tickets:read"},
		"shortened, and as long": {log{c.asked("1 of dba"), c.narrowed(c.ana, "tickets:read", time.Minute, 0), edited(c.lease(), func(r *audit.Record) { r.Lease.Scopes = []string{"tickets:read"} })},
			2, "longer than the granted 1m0s"},
		"collected for longer": {log{c.asked("1 of dba"), c.narrowed(c.ana, "tickets:read", 0, time.Minute), edited(later(c.lease(), 10*time.Minute), func(r *audit.Record) { r.Lease.Scopes = []string{"tickets:read"} })},
			2, "the grant had ended"},
		"a narrowing that was taken back": {records: log{c.asked("1 of dba", "1 of security"), edited(c.narrowed(c.ana, "tickets:read", 0, 0), func(r *audit.Record) { r.Kind = audit.ApprovalGiven }),
			c.no(c.ana, audit.ApprovalGiven), c.yes(c.ben, "dba"), c.last(c.eve, "security"), c.lease()}},

		"policy wants more by now":          {onLease(func(r *audit.Record) { r.Decision.Approvals = []string{"2 of dba"} }), 2, "policy requires approval by 2 of dba, and the log has 1 of dba"},
		"policy wants what there is by now": {records: onLease(func(r *audit.Record) { r.Decision.Approvals, r.Decision.Signed = []string{"1 of dba"}, true })},
		"policy wants signatures by now": {log{c.relaxed("1 of dba"), unsigned(c.last(c.ana, "dba")), edited(c.lease(), func(r *audit.Record) { r.Decision.Approvals, r.Decision.Signed = []string{"1 of dba"}, true })},
			2, "policy requires approval by 1 of dba with valid signatures, and the log has 0 of dba"},
		"policy wants somebody by now": {log{c.relaxed(), edited(c.lease(), func(r *audit.Record) { r.Decision.Approvals = []string{"1 of dba"} })}, 1, "the log has 0 of dba"},

		"filed and collected in one call": {records: log{edited(glass(c.at), func(r *audit.Record) { r.Request.BreakGlass, r.Decision.Review = false, nil }), edited(c.lease(), func(r *audit.Record) { r.Lease.ID = "lse_2" })}},
		"filed and collected in one call, and people were to approve": {log{edited(glass(c.at), func(r *audit.Record) {
			r.Request.BreakGlass, r.Decision.Review, r.Decision.Approvals = false, nil, []string{"1 of dba"}
		})}, 0, "the log has 0 of dba"},
		"a request that is told anew":    {log{two, edited(glass(c.at), func(*audit.Record) {})}, 1, "the request already exists"},
		"the broken glass":               {records: log{glass(c.at), verdict(audit.ReviewGiven, "login/ana", c.at), verdict(audit.ReviewClosed, "login/ben", c.at.AddDate(1, 0, 0))}},
		"glass that nobody reviews":      {log{edited(glass(c.at), func(r *audit.Record) { r.Decision.Review = nil })}, 0, "that requires no review"},
		"a review that one closes":       {log{glass(c.at), verdict(audit.ReviewClosed, "login/ana", c.at)}, 1, "policy requires review by 2 of security, and the log has 1 of security"},
		"a review by who answers for it": {log{glass(c.at), verdict(audit.ReviewGiven, "login/dora", c.at)}, 1, "is accountable for the requester"},
		"a review of something else":     {log{glass(c.at), edited(verdict(audit.ReviewGiven, "login/ana", c.at), func(r *audit.Record) { r.Approval.Digest = digest(7) })}, 1, "the person saw something else"},
		"a review of nothing":            {append(slices.Clone(granted), verdict(audit.ReviewGiven, "login/ana", c.at)), 2, "its request needs no review"},
		"a review of what nobody asked":  {log{verdict(audit.ReviewGiven, "login/ana", c.at)}, 0, "this log has no such request"},

		"a signed review": {records: log{broken, c.reviews(c.ana, audit.ReviewGiven, broken), c.reviews(c.ben, audit.ReviewClosed, broken)}},
		"a review that is signed though nobody wants that": {records: log{glass(c.at), c.reviews(c.ana, audit.ReviewGiven, glass(c.at)), verdict(audit.ReviewClosed, "login/ben", c.at)}},
		"an unsigned verdict":                              {log{broken, unsigned(c.reviews(c.ana, audit.ReviewGiven, broken))}, 1, "policy requires the signature of a passkey, and it has none"},
		"a review that is closed unsigned":                 {log{broken, c.reviews(c.ana, audit.ReviewGiven, broken), unsigned(c.reviews(c.ben, audit.ReviewClosed, broken))}, 2, "policy requires the signature of a passkey, and it has none"},
		"a review that is closed after an unsigned verdict": {log{broken, unsigned(c.reviews(c.ana, audit.ReviewGiven, broken)), c.reviews(c.ben, audit.ReviewClosed, broken)}, 2,
			"policy requires review by 2 of security with valid signatures, and the log has 1 of security"},
		"a review in somebody else's name": {log{broken, c.reviews(c.ana, audit.ReviewGiven, broken), edited(c.reviews(c.eve, audit.ReviewClosed, broken), func(r *audit.Record) { r.Caller = c.ben.party() })}, 2,
			"with valid signatures, and the log has 1 of security"},
		"a verdict that is turned":                                 {log{broken, edited(c.reviews(c.ana, audit.ReviewGiven, broken), func(r *audit.Record) { r.Approval.Decision = "justified" })}, 1, "signs something else"},
		"a verdict of other words":                                 {log{broken, edited(c.reviews(c.ana, audit.ReviewGiven, broken), func(r *audit.Record) { r.Approval.Comment = digest(3) })}, 1, "signs something else"},
		"a signed verdict of other words, where nobody wants that": {log{glass(c.at), edited(c.reviews(c.ana, audit.ReviewGiven, glass(c.at)), func(r *audit.Record) { r.Approval.Comment = digest(3) })}, 1, "signs something else"},
		"an approval's signature on a verdict":                     {log{broken, c.signs(c.ana, c.reviews(c.ana, audit.ReviewGiven, broken), broken, (*audit.ApprovalFacts).Challenge)}, 1, "signs something else"},
		"a verdict's signature on an approval":                     {log{c.asked("1 of dba"), c.signs(c.ana, c.last(c.ana, "dba"), c.asked("1 of dba"), (*audit.ApprovalFacts).ReviewChallenge)}, 1, "signs something else"},
		"an approval that is signed as such":                       {records: log{c.asked("1 of dba"), c.signs(c.ana, c.last(c.ana, "dba"), c.asked("1 of dba"), (*audit.ApprovalFacts).Challenge)}},
		"a glass that is said to need no signature": {log{edited(broken, func(r *audit.Record) {
			r.Request.Digest = broken.Request.Sum(broken.Caller.ID, broken.Decision)
			r.Decision.Signed = false
		})}, 0, "its digest, which approvers see and sign, does not match its contents"},
		"a review that one person closes": {log{glass(c.at), verdict(audit.ReviewGiven, "login/ana", c.at), verdict(audit.ReviewClosed, "login/ana", c.at)}, 2, "the same person has already voted"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := Options{Key: public, Approvers: []Approver{c.ana.approver(), c.ben.approver(), c.eve.approver(), c.dora.approver()}}
			report, err := Verify(t.Context(), c.forges(test.records), opts)
			if test.says == "" {
				if err != nil || report.Unchecked != 0 {
					t.Errorf("%d not judged, %v", report.Unchecked, err)
				}
				return
			}
			found := slices.ContainsFunc(report.Problems, func(p Problem) bool {
				return p.Index == int64(firstForged+test.at) && strings.Contains(p.What, test.says)
			})
			if !found {
				t.Errorf("not found at %d: %+v", firstForged+test.at, report.Problems)
			}
			for _, p := range report.Problems {
				if p.Index < firstForged {
					t.Errorf("found in what is right: %v", &p)
				}
			}
		})
	}
}

// The author of a forged log can't make the verifier remember unbounded votes.
func TestVotesAreBounded(t *testing.T) {
	var votes []vote
	for n := range maxVotes {
		var problem string
		if votes, problem = addVote(votes, vote{person: fmt.Sprint(n)}); problem != "" {
			t.Fatal(problem)
		}
	}
	if votes, problem := addVote(votes, vote{person: "one more"}); len(votes) != maxVotes || problem == "" {
		t.Errorf("got %d votes and problem %q, want at most %d votes", len(votes), problem, maxVotes)
	}
}

// What waits, or was granted, when a new log is opened goes on in that: nothing
// tells what it was. After its time that is no excuse.
func TestNewEpochFollowsAnother(t *testing.T) {
	c := newCast(t)
	newLog := func(records ...audit.Record) *testLog {
		m := &testLog{}
		m.record(t, audit.Record{Time: someTime, Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin, Previous: "old\n7\nroot\n"}})
		for _, r := range records {
			m.record(t, r)
		}
		return m
	}
	review := verdict(audit.ReviewClosed, "login/ana", c.at.AddDate(1, 0, 0))
	for name, test := range map[string]struct {
		log      *testLog
		unjudged int64
		says     string
	}{
		"what is older":             {log: newLog(unsigned(c.last(c.ana, "dba")), c.lease(), review), unjudged: 3},
		"a lease, too late":         {log: newLog(later(c.lease(), maxInherited)), says: "record 1 (lease.issued"},
		"an approval, too late":     {log: newLog(later(unsigned(c.last(c.ana, "dba")), maxInherited)), says: "record 1 (request.approved"},
		"what is its own is judged": {log: newLog(c.asked("1 of dba"), c.lease()), says: "record 2 (lease.issued"},
	} {
		report, err := Verify(t.Context(), test.log, Options{})
		if report.Unchecked != test.unjudged || test.says == "" && err != nil || test.says != "" && (err == nil || !strings.HasPrefix(err.Error(), test.says)) {
			t.Errorf("%s: %d not judged, %v", name, report.Unchecked, err)
		}
	}
}

// The verifier drops requests that have ended first. If it must drop a grant that
// has not ended, that is one which policy approved without people. It never drops
// one that people approved for such grants: the author of a forged log could
// otherwise push it out.
func TestEndedRequestsAreDroppedFirst(t *testing.T) {
	c := newCast(t)
	const size = 4 * ringSearch
	s, m := newRequestState(size), &testLog{}
	add := func(r audit.Record) {
		t.Helper()
		r = m.settle(t, r)
		if problem := s.check(&r, true); problem != "" {
			t.Fatal(problem)
		}
	}
	byPolicy := func(id string, duration time.Duration) audit.Record {
		r := collects(audit.LeaseIssued, id, c.at)
		r.Request.TTL, r.Request.Duration = 10*time.Minute, duration
		return r
	}
	add(asks("req_pending", c.at, "1 of dba"))
	add(byPolicy("req_long", 48*time.Hour))
	for n := range size {
		add(byPolicy(fmt.Sprint("req_", n), time.Minute))
	}
	// None of the grants has ended, so the oldest was dropped.
	if s.requests["req_long"] != nil || len(s.requests) != size+1 || len(s.policy.ids) != size {
		t.Fatalf("got %d requests, want %d without the oldest", len(s.requests), size+1)
	}
	add(collects(audit.LeaseIssued, "req_long", c.at))
	if s.unchecked != 1 {
		t.Errorf("got %d unchecked records, want 1", s.unchecked)
	}
	needsApproval := collects(audit.LeaseIssued, "req_unknown", c.at)
	needsApproval.Decision.Approvals = []string{"1 of dba"}
	afterEnd := collects(audit.LeaseIssued, "req_unknown", c.at.Add(72*time.Hour))
	for name, r := range map[string]audit.Record{"a request that needs approval": needsApproval, "a lease after the end of dropped grants": afterEnd} {
		if problem := s.check(&r, true); !strings.HasPrefix(problem, "this log has no such request") {
			t.Errorf("%s: got problem %q", name, problem)
		}
	}
	// Now all of those grants have ended. A grant that lasts stays, however many
	// short ones follow.
	add(later(byPolicy("req_stays", 48*time.Hour), time.Hour))
	for n := range 2 * size {
		add(later(byPolicy(fmt.Sprint("req_more_", n), time.Second), time.Hour+time.Duration(n)*time.Second))
	}
	if s.requests["req_stays"] == nil || s.requests["req_pending"] == nil || len(s.requests) != size+1 {
		t.Errorf("a grant that has not ended was dropped before ended ones")
	}
}
