package verify

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
)

// collects returns the first record of a lease for the request of asks.
func collects(kind audit.Kind, request string, at time.Time) audit.Record {
	r := asks(request, at)
	return audit.Record{Time: at, Kind: kind, Caller: r.Caller, Decision: &audit.DecisionFacts{Permit: true},
		Request: &audit.RequestFacts{ID: request, Digest: ownDigest, Entitlement: "tickets-api", Scopes: r.Request.Scopes},
		Lease:   &audit.LeaseFacts{ID: "lse_of_" + request, Expires: at.Add(10 * time.Minute)}}
}

// breakGlass returns the record of a break-glass request that the same call
// collected.
func breakGlass(at time.Time) audit.Record {
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

// signedBreakGlass is a break-glass request whose reviews need signatures.
func signedBreakGlass(at time.Time) audit.Record {
	return edited(breakGlass(at), func(r *audit.Record) { r.Decision.Signed = true })
}

// reviews returns a signed verdict on a break-glass use.
func (c *cast) reviews(who *keyHolder, kind audit.Kind, broken audit.Record) audit.Record {
	return c.signs(who, edited(verdict(kind, who.person, c.at), func(r *audit.Record) { r.Approval.Decision = "unjustified" }), broken, (*audit.ApprovalFacts).ReviewChallenge)
}

// signs signs a vote or verdict on a request, with the given challenge.
func (c *cast) signs(who *keyHolder, r, asked audit.Record, challenge func(_ *audit.ApprovalFacts, person, request string, nonce audit.Digest) audit.Digest) audit.Record {
	digest := asked.Request.Sum(asked.Requester(), asked.Decision)
	return edited(r, func(r *audit.Record) {
		r.Request.Digest, r.Approval.Digest = digest, digest
		r.Signature = who.sign(c.t, func(nonce audit.Digest) audit.Digest { return challenge(r.Approval, who.person, r.Request.ID, nonce) })
	})
}

// A cast is a group of people with passkeys that count at the time of at.
type cast struct {
	t             *testing.T
	ana, ben, eve *keyHolder
	dora          *keyHolder // accountable for the requester
	at            time.Time
}

// firstForged is the index of the first record after the cast's enrolments.
const firstForged = 5

func newCast(t *testing.T) *cast {
	return &cast{t, newKeyHolder(t, "login/ana"), newKeyHolder(t, "login/ben"), newKeyHolder(t, "login/eve"), newKeyHolder(t, "login/dora"), someTime.Add(25 * time.Hour)}
}

// forges returns a log with correct hashes and checkpoints, as the operator of a
// broker can make one.
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

// yes returns an approval that is not the last one.
func (c *cast) yes(who *keyHolder, groups ...string) audit.Record {
	return edited(c.last(who, groups...), func(r *audit.Record) { r.Kind = audit.ApprovalGiven })
}

func (c *cast) last(who *keyHolder, groups ...string) audit.Record {
	return who.says(c.t, "req_1", c.at, &audit.ApprovalFacts{Decision: "approve", Digest: ownDigest, Groups: groups})
}

// narrowed returns the last approval, which narrows the request.
func (c *cast) narrowed(who *keyHolder, scope string, ttl, duration time.Duration) audit.Record {
	return who.says(c.t, "req_1", c.at, &audit.ApprovalFacts{Decision: "approve", Digest: ownDigest, Groups: []string{"dba"}, Scopes: []string{scope}, TTL: ttl, Duration: duration})
}

func (c *cast) no(who *keyHolder, kind audit.Kind) audit.Record {
	return audit.Record{Time: c.at, Kind: kind, Caller: who.party(), Request: c.last(who).Request, Approval: &audit.ApprovalFacts{Decision: "deny", Digest: ownDigest, Groups: []string{"dba"}}}
}

// linked returns a record whose caller also has the account of another.
func linked(r audit.Record, other *keyHolder) audit.Record {
	return linkedTo(r, r.Caller.ID, other.person)
}

func linkedTo(r audit.Record, accounts ...string) audit.Record {
	return edited(r, func(r *audit.Record) { r.Caller.Accounts = accounts })
}

func unsigned(r audit.Record) audit.Record {
	return edited(r, func(r *audit.Record) { r.Signature = nil })
}

// relaxed returns a request whose approvals need no signatures.
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

// The operator of the broker wrote these logs. Those with a text grant access that
// people did not approve, or not to that extent. Verify must report it at the record.
func TestVerifyReportsForgedApprovals(t *testing.T) {
	c := newCast(t)
	type log = []audit.Record
	two := c.asked("2 of dba")
	granted := log{c.asked("1 of dba"), c.last(c.ana, "dba")}
	broken := signedBreakGlass(c.at)
	onLease := func(change func(*audit.Record)) log { return append(slices.Clone(granted), edited(c.lease(), change)) }
	for name, test := range map[string]struct {
		records log
		at      int    // among the records
		want    string // empty: it verifies
	}{
		"two approved":                     {records: log{two, c.yes(c.ana, "dba"), c.last(c.ben, "dba"), c.lease()}},
		"no approval":                      {log{two, c.lease()}, 1, "policy requires approval by 2 of dba with valid signatures, and the log has 0 of dba"},
		"no approval, opened lease":        {log{two, edited(c.lease(), func(r *audit.Record) { r.Kind = audit.LeaseOpened })}, 1, "the log has 0 of dba"},
		"one of two approved":              {log{two, c.yes(c.ana, "dba"), c.lease()}, 2, "and the log has 1 of dba"},
		"one of two, recorded as the last": {log{two, c.last(c.ana, "dba")}, 1, "and the log has 1 of dba"},
		"one of two, signatures not required": {log{c.relaxed("2 of dba"), unsigned(c.last(c.ana, "dba"))}, 1,
			"policy requires approval by 2 of dba, and the log has 1 of dba"},
		"a lease after one of two":                        {log{two, c.last(c.ana, "dba"), c.lease()}, 2, "and the log has 1 of dba"},
		"one person twice":                                {log{two, c.yes(c.ana, "dba"), c.last(c.ana, "dba")}, 2, "the same person has already voted"},
		"one person with two accounts":                    {log{two, c.yes(c.ana, "dba"), linked(c.last(c.ben, "dba"), c.ana)}, 2, "the same person has already voted"},
		"one person with two accounts, named before":      {log{two, linked(c.yes(c.ana, "dba"), c.ben), c.last(c.ben, "dba")}, 2, "the same person has already voted"},
		"one person with a third account in common":       {log{two, linkedTo(c.yes(c.ana, "dba"), "login/ana", "corp/x"), linkedTo(c.last(c.ben, "dba"), "corp/x", "login/ben")}, 2, "the same person has already voted"},
		"people with accounts of their own":               {records: log{two, linkedTo(c.yes(c.ana, "dba"), "login/ana", "corp/ana"), linkedTo(c.last(c.ben, "dba"), "login/ben", "corp/ben"), c.lease()}},
		"by an account of an accountable person":          {log{c.asked("1 of dba"), linked(c.last(c.ana, "dba"), c.dora)}, 1, "is accountable for the requester"},
		"by an account of the requester":                  {log{edited(c.asked("1 of dba"), func(r *audit.Record) { r.Caller = c.ben.party() }), linked(c.last(c.ana, "dba"), c.ben)}, 1, "the person made the request"},
		"a review by an account of an accountable person": {log{breakGlass(c.at), linked(verdict(audit.ReviewGiven, "login/ana", c.at), c.dora)}, 1, "is accountable for the requester"},
		"a review by one person with two accounts":        {log{breakGlass(c.at), verdict(audit.ReviewGiven, "login/ana", c.at), linked(verdict(audit.ReviewClosed, "login/ben", c.at), c.ana)}, 2, "the same person has already voted"},
		"one person in two groups": {log{c.asked("1 of dba", "1 of security"), c.yes(c.ana, "dba", "security"), c.lease()}, 2,
			"by 1 of dba, 1 of security with valid signatures, and the log has 1 of dba, 0 of security"},
		"two people, where one must move":    {records: log{c.asked("1 of dba", "1 of security"), c.yes(c.ana, "dba", "security"), c.last(c.ben, "dba"), c.lease()}},
		"two people of the same group":       {log{c.asked("1 of dba", "1 of security"), c.yes(c.ana, "dba"), c.last(c.ben, "dba")}, 2, "1 of dba, 0 of security"},
		"another group":                      {log{c.asked("1 of dba"), c.last(c.ana, "interns")}, 1, "0 of dba"},
		"unsigned":                           {log{c.asked("1 of dba"), unsigned(c.last(c.ana, "dba"))}, 1, "policy requires the signature of a passkey, and it has none"},
		"a lease after an unsigned approval": {log{c.asked("1 of dba"), unsigned(c.last(c.ana, "dba")), c.lease()}, 2, "0 of dba"},
		"a lease after another person's signature": {log{c.asked("1 of dba"), edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Caller = c.ben.party() }), c.lease()},
			2, "0 of dba"},
		"another digest, same signature": {log{c.asked("1 of dba"), edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Approval.Digest = digest(2) })}, 1, "signs something else"},
		"another digest, signed": {log{c.asked("1 of dba"), c.ana.says(t, "req_1", c.at, &audit.ApprovalFacts{Decision: "approve", Digest: digest(2), Groups: []string{"dba"}})}, 1,
			"the person saw something else than the request, whose digest is "},
		"a request whose digest does not match": {log{edited(c.asked("1 of dba"), func(r *audit.Record) { r.Request.Digest = digest(9) })}, 0, "its digest, which approvers see and sign, does not match its contents"},
		"a lease after another digest": {log{c.asked("1 of dba"), c.ana.says(t, "req_1", c.at, &audit.ApprovalFacts{Decision: "approve", Digest: digest(2), Groups: []string{"dba"}}), c.lease()},
			2, "0 of dba"},
		"the record names another digest":        {log{c.asked("1 of dba"), edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Request.Digest = digest(2) })}, 1, "it does not match the request, whose digest is"},
		"for another entitlement":                {log{c.asked("1 of dba"), edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Request.Entitlement = "db" })}, 1, "the request, whose entitlement is tickets-api"},
		"by the requester":                       {log{edited(c.asked("1 of dba"), func(r *audit.Record) { r.Caller = c.ana.party() }), c.last(c.ana, "dba")}, 1, "the person made the request or is accountable"},
		"by an accountable person":               {log{c.asked("1 of dba"), c.last(c.dora, "dba")}, 1, "is accountable for the requester"},
		"a lease after an accountable person":    {log{c.asked("1 of dba"), c.last(c.dora, "dba"), c.lease()}, 2, "0 of dba"},
		"a withdrawn approval":                   {log{two, c.yes(c.ana, "dba"), c.no(c.ana, audit.ApprovalGiven), c.last(c.ben, "dba")}, 3, "and the log has 1 of dba"},
		"a denial recorded as the last approval": {log{c.asked("1 of dba"), edited(c.no(c.ana, audit.RequestApproved), func(*audit.Record) {})}, 1, "the log has 0 of dba"},
		"a denial counted as an approval":        {log{c.relaxed("1 of dba"), c.no(c.ana, audit.ApprovalGiven), c.lease()}, 2, "the log has 0 of dba"},
		"an approval without a vote":             {log{c.asked("1 of dba"), c.ended(audit.RequestApproved)}, 1, "it has no vote"},
		"after it was denied":                    {log{c.asked("1 of dba"), c.no(c.ben, audit.RequestDenied), c.last(c.ana, "dba")}, 2, "its request was already denied"},
		"a second decision":                      {append(slices.Clone(granted), c.last(c.ben, "dba")), 2, "was already approved"},
		"an unknown request":                     {log{c.last(c.ana, "dba")}, 0, "this log has no such request"},
		"a repeated request":                     {log{two, c.asked("1 of dba")}, 1, "the request already exists"},
		"not permitted":                          {log{edited(two, func(r *audit.Record) { r.Decision.Permit = false })}, 0, "policy did not permit the request"},
		"a request record without a request":     {log{edited(two, func(r *audit.Record) { r.Request = nil })}, 0, "it names no request"},
		"a denial by policy":                     {records: log{edited(c.ended(audit.RequestDenied), func(r *audit.Record) { r.Request.ID = "req_denied" })}},
		"after policy denied it":                 {log{two, c.ended(audit.RequestDenied), c.yes(c.ana, "dba")}, 2, "its request was already denied"},
		"a denial of another digest":             {log{two, edited(c.no(c.ana, audit.RequestDenied), func(r *audit.Record) { r.Approval.Digest = digest(2) })}, 1, "the person saw something else"},
		"an approval without a caller":           {log{two, edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Caller = nil })}, 1, "it has no vote, or no caller who voted"},
		"an approval without a request":          {log{two, edited(c.last(c.ana, "dba"), func(r *audit.Record) { r.Request = nil })}, 1, "it names no request"},
		"no requester":                           {log{edited(two, func(r *audit.Record) { r.Caller = nil })}, 0, "the request has no requester"},
		"a requirement of zero people":           {log{c.asked("0 of dba")}, 0, "the approvals or reviews that policy requires are not readable"},
		"an unreadable number of people":         {log{c.asked("some of dba")}, 0, "the approvals or reviews that policy requires are not readable"},
		"too many required people":               {log{c.asked("1024 of dba", "1024 of security")}, 0, "the approvals or reviews that policy requires are not readable"},

		"a lease":                                     {records: append(slices.Clone(granted), c.lease())},
		"two leases":                                  {records: append(slices.Clone(granted), c.lease(), edited(later(c.lease(), 59*time.Minute), func(r *audit.Record) { r.Lease.ID = "lse_2" }))},
		"a lease of an unknown request":               {log{c.lease()}, 0, "this log has no such request"},
		"a lease without a request id":                {log{edited(c.lease(), func(r *audit.Record) { r.Request.ID = "" })}, 0, "it names no request"},
		"an opened lease without a request":           {log{edited(c.lease(), func(r *audit.Record) { r.Kind, r.Request = audit.LeaseOpened, nil })}, 0, "it names no request"},
		"after a denial":                              {log{c.asked("1 of dba"), c.no(c.ana, audit.RequestDenied), c.lease()}, 2, "its request was already denied"},
		"after it was withdrawn":                      {log{c.asked("1 of dba"), c.ended(audit.RequestWithdrawn), c.lease()}, 2, "its request was already withdrawn"},
		"after it was revoked":                        {append(slices.Clone(granted), c.ended(audit.RequestRevoked), c.lease()), 3, "its request was already revoked"},
		"before the last approval":                    {log{two, c.yes(c.ana, "dba"), c.lease(), c.last(c.ben, "dba")}, 2, "and the log has 1 of dba"},
		"all approvals, no decision":                  {log{c.asked("1 of dba"), c.yes(c.ana, "dba"), c.lease()}, 2, "its request was still pending"},
		"another holder":                              {onLease(func(r *audit.Record) { r.Caller = &audit.Party{ID: "spiffe://acme.test/evil"} }), 2, "its holder is not the requester, spiffe://acme.test/agent/triage"},
		"another entitlement":                         {onLease(func(r *audit.Record) { r.Request.Entitlement = "root" }), 2, "the request, whose entitlement is tickets-api"},
		"another digest":                              {onLease(func(r *audit.Record) { r.Request.Digest = digest(9) }), 2, "it does not match the request, whose digest is"},
		"more scopes":                                 {onLease(func(r *audit.Record) { r.Request.Scopes = []string{"tickets:close", "tickets:read", "tickets:write"} }), 2, "its scope tickets:write was not granted"},
		"more scopes than asked for":                  {onLease(func(r *audit.Record) { r.Lease.Scopes = []string{"tickets:write"} }), 2, "its scope tickets:write was not granted"},
		"other requested scopes":                      {onLease(func(r *audit.Record) { r.Request.Scopes = []string{"tickets:read"} }), 2, "the request, whose scopes are tickets:close tickets:read"},
		"longer":                                      {onLease(func(r *audit.Record) { r.Lease.Expires = r.Time.Add(time.Hour) }), 2, "it is valid for longer than the granted 10m0s"},
		"without an end":                              {onLease(func(r *audit.Record) { r.Lease.Expires = time.Time{} }), 2, "it is valid for longer"},
		"no longer permitted":                         {onLease(func(r *audit.Record) { r.Decision.Permit = false }), 2, "policy did not permit it"},
		"after the grant":                             {append(slices.Clone(granted), later(c.lease(), 62*time.Minute)), 2, "the grant had ended"},
		"a lease that extends its request's TTL":      {onLease(func(r *audit.Record) { r.Request.TTL = time.Hour }), 2, "the request already exists"},
		"a lease that extends its request's duration": {onLease(func(r *audit.Record) { r.Request.Duration = 48 * time.Hour }), 2, "the request already exists"},
		"before the grant": {log{edited(c.asked("1 of dba"), func(r *audit.Record) { r.Request.NotBefore = c.at.Add(time.Hour) }), c.last(c.ana, "dba"), c.lease()}, 2,
			"the grant had not started"},
		"within the grant": {records: log{edited(c.asked("1 of dba"), func(r *audit.Record) { r.Request.NotBefore = c.at.Add(time.Hour) }), c.last(c.ana, "dba"), later(c.lease(), 90*time.Minute)}},
		"narrowed": {records: log{c.asked("1 of dba"), c.narrowed(c.ana, "tickets:read", time.Minute, 0), edited(c.lease(), func(r *audit.Record) {
			r.Lease.Scopes, r.Lease.Expires = []string{"tickets:read"}, c.at.Add(time.Minute)
		})}},
		"narrowed scopes exceeded": {log{c.asked("1 of dba"), c.narrowed(c.ana, "tickets:read", 0, 0), c.lease()}, 2, "its scope tickets:close was not granted; the granted scopes are tickets:read"},
		"narrowed TTL exceeded": {log{c.asked("1 of dba"), c.narrowed(c.ana, "tickets:read", time.Minute, 0), edited(c.lease(), func(r *audit.Record) { r.Lease.Scopes = []string{"tickets:read"} })},
			2, "longer than the granted 1m0s"},
		"narrowed duration exceeded": {log{c.asked("1 of dba"), c.narrowed(c.ana, "tickets:read", 0, time.Minute), edited(later(c.lease(), 10*time.Minute), func(r *audit.Record) { r.Lease.Scopes = []string{"tickets:read"} })},
			2, "the grant had ended"},
		"a withdrawn narrowing": {records: log{c.asked("1 of dba", "1 of security"), edited(c.narrowed(c.ana, "tickets:read", 0, 0), func(r *audit.Record) { r.Kind = audit.ApprovalGiven }),
			c.no(c.ana, audit.ApprovalGiven), c.yes(c.ben, "dba"), c.last(c.eve, "security"), c.lease()}},

		"more approvals required now":     {onLease(func(r *audit.Record) { r.Decision.Approvals = []string{"2 of dba"} }), 2, "policy requires approval by 2 of dba, and the log has 1 of dba"},
		"existing approvals required now": {records: onLease(func(r *audit.Record) { r.Decision.Approvals, r.Decision.Signed = []string{"1 of dba"}, true })},
		"signatures required now": {log{c.relaxed("1 of dba"), unsigned(c.last(c.ana, "dba")), edited(c.lease(), func(r *audit.Record) { r.Decision.Approvals, r.Decision.Signed = []string{"1 of dba"}, true })},
			2, "policy requires approval by 1 of dba with valid signatures, and the log has 0 of dba"},
		"an approval required now": {log{c.relaxed(), edited(c.lease(), func(r *audit.Record) { r.Decision.Approvals = []string{"1 of dba"} })}, 1, "the log has 0 of dba"},

		"requested and collected in one call": {records: log{edited(breakGlass(c.at), func(r *audit.Record) { r.Request.BreakGlass, r.Decision.Review = false, nil }), edited(c.lease(), func(r *audit.Record) { r.Lease.ID = "lse_2" })}},
		"requested and collected in one call without approval": {log{edited(breakGlass(c.at), func(r *audit.Record) {
			r.Request.BreakGlass, r.Decision.Review, r.Decision.Approvals = false, nil, []string{"1 of dba"}
		})}, 0, "the log has 0 of dba"},
		"a request made again by its lease": {log{two, edited(breakGlass(c.at), func(*audit.Record) {})}, 1, "the request already exists"},
		"break-glass with a review":         {records: log{breakGlass(c.at), verdict(audit.ReviewGiven, "login/ana", c.at), verdict(audit.ReviewClosed, "login/ben", c.at.AddDate(1, 0, 0))}},
		"break-glass without a review":      {log{edited(breakGlass(c.at), func(r *audit.Record) { r.Decision.Review = nil })}, 0, "that requires no review"},
		"a review by too few":               {log{breakGlass(c.at), verdict(audit.ReviewClosed, "login/ana", c.at)}, 1, "policy requires review by 2 of security, and the log has 1 of security"},
		"a review by an accountable person": {log{breakGlass(c.at), verdict(audit.ReviewGiven, "login/dora", c.at)}, 1, "is accountable for the requester"},
		"a review of another digest":        {log{breakGlass(c.at), edited(verdict(audit.ReviewGiven, "login/ana", c.at), func(r *audit.Record) { r.Approval.Digest = digest(7) })}, 1, "the person saw something else"},
		"a review of a normal request":      {append(slices.Clone(granted), verdict(audit.ReviewGiven, "login/ana", c.at)), 2, "its request needs no review"},
		"a review of an unknown request":    {log{verdict(audit.ReviewGiven, "login/ana", c.at)}, 0, "this log has no such request"},

		"a signed review":               {records: log{broken, c.reviews(c.ana, audit.ReviewGiven, broken), c.reviews(c.ben, audit.ReviewClosed, broken)}},
		"a signed review, not required": {records: log{breakGlass(c.at), c.reviews(c.ana, audit.ReviewGiven, breakGlass(c.at)), verdict(audit.ReviewClosed, "login/ben", c.at)}},
		"an unsigned verdict":           {log{broken, unsigned(c.reviews(c.ana, audit.ReviewGiven, broken))}, 1, "policy requires the signature of a passkey, and it has none"},
		"an unsigned last verdict":      {log{broken, c.reviews(c.ana, audit.ReviewGiven, broken), unsigned(c.reviews(c.ben, audit.ReviewClosed, broken))}, 2, "policy requires the signature of a passkey, and it has none"},
		"a review closed after an unsigned verdict": {log{broken, unsigned(c.reviews(c.ana, audit.ReviewGiven, broken)), c.reviews(c.ben, audit.ReviewClosed, broken)}, 2,
			"policy requires review by 2 of security with valid signatures, and the log has 1 of security"},
		"a review in another person's name": {log{broken, c.reviews(c.ana, audit.ReviewGiven, broken), edited(c.reviews(c.eve, audit.ReviewClosed, broken), func(r *audit.Record) { r.Caller = c.ben.party() })}, 2,
			"with valid signatures, and the log has 1 of security"},
		"a changed verdict":                         {log{broken, edited(c.reviews(c.ana, audit.ReviewGiven, broken), func(r *audit.Record) { r.Approval.Decision = "justified" })}, 1, "signs something else"},
		"a changed comment":                         {log{broken, edited(c.reviews(c.ana, audit.ReviewGiven, broken), func(r *audit.Record) { r.Approval.Comment = digest(3) })}, 1, "signs something else"},
		"a changed comment, signature not required": {log{breakGlass(c.at), edited(c.reviews(c.ana, audit.ReviewGiven, breakGlass(c.at)), func(r *audit.Record) { r.Approval.Comment = digest(3) })}, 1, "signs something else"},
		"an approval's signature on a verdict":      {log{broken, c.signs(c.ana, c.reviews(c.ana, audit.ReviewGiven, broken), broken, (*audit.ApprovalFacts).Challenge)}, 1, "signs something else"},
		"a verdict's signature on an approval":      {log{c.asked("1 of dba"), c.signs(c.ana, c.last(c.ana, "dba"), c.asked("1 of dba"), (*audit.ApprovalFacts).ReviewChallenge)}, 1, "signs something else"},
		"a signed approval":                         {records: log{c.asked("1 of dba"), c.signs(c.ana, c.last(c.ana, "dba"), c.asked("1 of dba"), (*audit.ApprovalFacts).Challenge)}},
		"break-glass with removed signature requirement": {log{edited(broken, func(r *audit.Record) {
			r.Request.Digest = broken.Request.Sum(broken.Requester(), broken.Decision)
			r.Decision.Signed = false
		})}, 0, "its digest, which approvers see and sign, does not match its contents"},
		"a review without a verdict":     {log{breakGlass(c.at), edited(verdict(audit.ReviewGiven, "login/ana", c.at), func(r *audit.Record) { r.Approval = nil })}, 1, "it has no vote"},
		"a review without a caller":      {log{breakGlass(c.at), edited(verdict(audit.ReviewClosed, "login/ana", c.at), func(r *audit.Record) { r.Caller = nil })}, 1, "it has no vote, or no caller who voted"},
		"a review of a reviewed request": {log{edited(breakGlass(c.at), func(r *audit.Record) { r.Decision.Review = []string{"1 of security"} }), verdict(audit.ReviewClosed, "login/ana", c.at), verdict(audit.ReviewGiven, "login/ben", c.at)}, 2, "its request needs no review"},
		"a review by one person twice":   {log{breakGlass(c.at), verdict(audit.ReviewGiven, "login/ana", c.at), verdict(audit.ReviewClosed, "login/ana", c.at)}, 2, "the same person has already voted"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := Options{Key: public, Approvers: []Approver{c.ana.approver(), c.ben.approver(), c.eve.approver(), c.dora.approver()}}
			report, err := Verify(t.Context(), c.forges(test.records), opts)
			if test.want == "" {
				if err != nil || report.Unchecked != 0 {
					t.Errorf("got %d unchecked records, %v", report.Unchecked, err)
				}
				return
			}
			found := slices.ContainsFunc(report.Problems, func(p Problem) bool {
				return p.Index == int64(firstForged+test.at) && strings.Contains(p.What, test.want)
			})
			if !found {
				t.Errorf("got problems %+v, want %q at %d", report.Problems, test.want, firstForged+test.at)
			}
			for _, p := range report.Problems {
				if p.Index < firstForged {
					t.Errorf("got a problem with a good record: %v", &p)
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
		if votes, problem = addVote(votes, vote{person: []string{fmt.Sprint(n)}}); problem != "" {
			t.Fatal(problem)
		}
	}
	if votes, problem := addVote(votes, vote{person: []string{"one more"}}); len(votes) != maxVotes || problem == "" {
		t.Errorf("got %d votes and problem %q, want at most %d votes", len(votes), problem, maxVotes)
	}
}

// A log that continues another one has records about requests that only the earlier
// log describes. Verify can't check those, and reports them after maxInherited.
func TestLogThatContinuesAnother(t *testing.T) {
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
		log       *testLog
		unchecked int64
		want      string
	}{
		"an older request":      {log: newLog(unsigned(c.last(c.ana, "dba")), c.lease(), review), unchecked: 3},
		"a late lease":          {log: newLog(later(c.lease(), maxInherited)), want: "record 1 (lease.issued"},
		"a late approval":       {log: newLog(later(unsigned(c.last(c.ana, "dba")), maxInherited)), want: "record 1 (request.approved"},
		"a request of this log": {log: newLog(c.asked("1 of dba"), c.lease()), want: "record 2 (lease.issued"},
	} {
		report, err := Verify(t.Context(), test.log, Options{})
		if report.Unchecked != test.unchecked || test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)) {
			t.Errorf("%s: got %d unchecked records, %v", name, report.Unchecked, err)
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

// An unreviewed break-glass use stays until its review is complete, however long
// ago it ended. A grant that people approved is dropped without a trace in dropped:
// otherwise a forged log could push it out and issue leases that no one checks.
func TestReviewsAreNotDropped(t *testing.T) {
	c := newCast(t)
	const size = 2
	s, m := newRequestState(size), &testLog{}
	add := func(r audit.Record) {
		t.Helper()
		r = m.settle(t, r)
		if problem := s.check(&r, true); problem != "" {
			t.Fatal(problem)
		}
	}
	add(breakGlass(c.at))
	muchLater := c.at.AddDate(0, 1, 0)
	for n := range 2 * size {
		add(asks(fmt.Sprint("req_ended_", n), muchLater.AddDate(0, n, 0), "1 of dba"))
	}
	if s.requests["req_1"] == nil {
		t.Fatal("an unreviewed break-glass use was dropped")
	}
	end := muchLater.AddDate(1, 0, 0)
	add(verdict(audit.ReviewGiven, "login/ana", end))
	add(verdict(audit.ReviewClosed, "login/ben", end))
	for n := range size {
		add(asks(fmt.Sprint("req_more_", n), end, "1 of dba"))
	}
	if s.requests["req_1"] != nil {
		t.Error("a reviewed break-glass use was not dropped")
	}
	if !s.dropped.IsZero() {
		t.Errorf("requests that need people may be unknown until %s", s.dropped)
	}
}

// An approved grant that must be dropped does not excuse leases of unknown requests.
func TestDroppedApprovalsExcuseNothing(t *testing.T) {
	c := newCast(t)
	s, m := newRequestState(1), &testLog{}
	for _, r := range []audit.Record{
		c.relaxed("1 of dba"), unsigned(c.last(c.ana, "dba")), // the grant lasts
		asks("req_2", c.at, "1 of dba"),
		edited(breakGlass(c.at), func(r *audit.Record) { r.Request.ID, r.Request.BreakGlass, r.Decision.Review = "req_3", false, nil }),
		{Time: c.at, Kind: audit.RequestRevoked, Caller: c.asked().Caller, Request: &audit.RequestFacts{ID: "req_3", Digest: ownDigest, Entitlement: "tickets-api"}},
		edited(breakGlass(c.at), func(r *audit.Record) { r.Request.ID, r.Request.BreakGlass, r.Decision.Review = "req_4", false, nil }),
	} {
		r = m.settle(t, r)
		if problem := s.check(&r, false); problem != "" {
			t.Fatal(problem)
		}
	}
	if s.requests["req_1"] != nil || s.requests["req_3"] != nil || !s.dropped.IsZero() {
		t.Errorf("got %d requests, unknown ones excused until %s; want the last two, and no excuse", len(s.requests), s.dropped)
	}
}

func TestRequirementsAreBounded(t *testing.T) {
	for text, want := range map[string]bool{"1 of dba": true, "1024 of dba": true, "1025 of dba": false, "-1 of dba": false, "1 of ": false, "1": false, "1of dba": false, "": false} {
		if list, ok := parseRequirements([]string{text}); ok != want {
			t.Errorf("%q: got %v, %t, want %t", text, list, ok, want)
		}
	}
	if _, ok := parseRequirements([]string{"1024 of dba", "1 of security"}); ok {
		t.Error("1025 people are accepted")
	}
}
