package verify

import (
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/internal/softkey"
)

// A keyHolder is a person with a passkey.
type keyHolder struct {
	*softkey.Key
	person string
	public []byte
}

func newKeyHolder(t testing.TB, person string) *keyHolder {
	t.Helper()
	key, err := softkey.New("broker.test", "https://broker.test")
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	k := &keyHolder{key, person, public}
	keyHolders[string(key.ID)] = k
	return k
}

// keyHolders are those of all tests, by credential.
var keyHolders = map[string]*keyHolder{}

func (s *keyHolder) party() *audit.Party { return &audit.Party{ID: s.person, Kind: "person"} }

func (s *keyHolder) enrolled(at time.Time) audit.Record {
	return audit.Record{Time: at, Kind: audit.PasskeyEnrolled, Caller: s.party(), Passkey: &audit.PasskeyFacts{
		Counts: at.Add(audit.PasskeyWait), Credential: s.ID, Public: s.public, RP: "broker.test",
	}}
}

func (s *keyHolder) sign(t testing.TB, challenge func(audit.Digest) audit.Digest) *audit.SignatureFacts {
	t.Helper()
	nonce := digest(42)
	c := challenge(nonce)
	data, client, signature, err := s.Sign(c[:])
	if err != nil {
		t.Fatal(err)
	}
	return &audit.SignatureFacts{AuthenticatorData: data, ClientData: client, Credential: s.ID, Nonce: nonce, Signature: signature}
}

func (s *keyHolder) approves(t testing.TB, request string, at time.Time) audit.Record {
	t.Helper()
	return s.says(t, request, at, &audit.ApprovalFacts{Decision: "approve", Digest: ownDigest, Groups: []string{"dba"}, Scopes: []string{"tickets:read"}, TTL: time.Minute})
}

// says is a signed word on the request that asks makes, which settles it.
func (s *keyHolder) says(t testing.TB, request string, at time.Time, a *audit.ApprovalFacts) audit.Record {
	t.Helper()
	return audit.Record{Time: at, Kind: audit.RequestApproved, Caller: s.party(), Request: &audit.RequestFacts{ID: request, Digest: ownDigest, Entitlement: "tickets-api"}, Approval: a,
		Signature: s.sign(t, func(nonce audit.Digest) audit.Digest { return a.Challenge(s.person, request, nonce) })}
}

// asks is a request that wants signed approvals.
func asks(request string, at time.Time, approvals ...string) audit.Record {
	return audit.Record{Time: at, Kind: audit.RequestCreated, Caller: &audit.Party{ID: "spiffe://acme.test/agent/triage", Kind: "agent"},
		Request: &audit.RequestFacts{ID: request, Digest: ownDigest, Entitlement: "tickets-api", Scopes: []string{"tickets:close", "tickets:read"},
			TTL: 10 * time.Minute, Duration: time.Hour, LapsesAt: at.Add(time.Hour), Accountable: []string{"login/dora"}},
		Decision: &audit.DecisionFacts{Permit: true, Approvals: approvals, Signed: true}}
}

func (s *keyHolder) vouches(t testing.TB, of *keyHolder, at time.Time) audit.Record {
	t.Helper()
	f := audit.PasskeyFacts{Credential: of.ID, Public: of.public, RP: "broker.test"}
	return audit.Record{Time: at, Kind: audit.PasskeyVouched, Caller: s.party(), Subject: of.party(), Passkey: &audit.PasskeyFacts{Credential: of.ID},
		Signature: s.sign(t, func(nonce audit.Digest) audit.Digest { return f.Challenge(s.person, of.person, nonce) })}
}

func (s *keyHolder) approver() Approver { return Approver{s.person, s.ID, s.public, "broker.test"} }

// An auditor finds every approval that policy wanted signed and that is not, and
// every signature that does not hold, offline.
func TestSignaturesAreVerified(t *testing.T) {
	ana, ben, eve := newKeyHolder(t, "login/ana"), newKeyHolder(t, "login/ben"), newKeyHolder(t, "login/ana")
	tomorrow := someTime.Add(25 * time.Hour)
	type log = []audit.Record
	asked := asks("req_1", tomorrow, "1 of dba")
	for name, test := range map[string]struct {
		records log
		pinned  []Approver
		signed  int64
		says    string // empty: it holds
	}{
		"signed":      {records: log{ana.enrolled(someTime), asked, ana.approves(t, "req_1", tomorrow)}, signed: 1},
		"vouched for": {records: log{ana.enrolled(someTime), ben.enrolled(tomorrow), ana.vouches(t, ben, tomorrow), asked, ben.approves(t, "req_1", tomorrow)}, signed: 2},
		"pinned":      {records: log{ana.enrolled(someTime), asked, ana.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()}, signed: 1},
		"a key that the operator enrolled": {records: log{eve.enrolled(someTime), asked, eve.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()},
			says: "not among the approvers you gave"},
		"unsigned": {records: log{asked, edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Signature = nil })}, says: "policy requires the signature of a passkey"},
		"unsigned where nobody wanted that": {records: log{edited(asked, func(r *audit.Record) { r.Decision.Signed = false }),
			edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Signature = nil })}},
		"a no needs no signature": {records: log{asked, {Time: tomorrow, Kind: audit.RequestDenied, Caller: ana.party(), Request: asked.Request, Approval: &audit.ApprovalFacts{Decision: "deny", Digest: ownDigest}}}},
		"nobody enrolled it":      {records: log{asked, ana.approves(t, "req_1", tomorrow)}, says: "that was not enrolled"},
		"too early":               {records: log{ana.enrolled(someTime), ana.approves(t, "req_1", someTime.Add(audit.PasskeyWait-time.Second))}, says: "did not count yet"},
		"enrolled to count at once": {records: log{edited(ana.enrolled(someTime), func(r *audit.Record) { r.Passkey.Counts = someTime.Add(time.Hour) })},
			says: "counts earlier than 24h0m0s after its enrolment"},
		"enrolled for somebody else": {records: log{edited(ana.enrolled(someTime), func(r *audit.Record) { r.Caller, r.Subject = ben.party(), ana.party() })}, says: "enrolled by another person"},
		"enrolled twice":             {records: log{ana.enrolled(someTime), ana.enrolled(someTime)}, says: "already enrolled"},
		"removed": {records: log{ana.enrolled(someTime), {Time: tomorrow, Kind: audit.PasskeyRemoved, Caller: ana.party(), Passkey: &audit.PasskeyFacts{Credential: ana.ID}}, asked,
			ana.approves(t, "req_1", tomorrow)}, says: "was removed"},
		"removed, and pinned": {records: log{ana.enrolled(someTime), {Time: tomorrow, Kind: audit.PasskeyRemoved, Caller: ana.party(), Passkey: &audit.PasskeyFacts{Credential: ana.ID}}, asked,
			ana.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()}, says: "was removed"},
		"removed, enrolled again, and pinned": {records: log{ana.enrolled(someTime), {Time: someTime, Kind: audit.PasskeyRemoved, Caller: ana.party(), Passkey: &audit.PasskeyFacts{Credential: ana.ID}}, ana.enrolled(someTime), asked,
			ana.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()}, says: "was removed"},
		"removed, and enrolled again": {records: log{ana.enrolled(someTime), {Time: someTime, Kind: audit.PasskeyRemoved, Caller: ana.party(), Passkey: &audit.PasskeyFacts{Credential: ana.ID}}, ana.enrolled(someTime), asked,
			ana.approves(t, "req_1", tomorrow)}, signed: 1},
		"for another request":                {records: log{ana.enrolled(someTime), edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Request.ID = "req_2" })}, says: "signs something else"},
		"widened afterwards":                 {records: log{ana.enrolled(someTime), edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Approval.TTL = time.Hour })}, says: "signs something else"},
		"by somebody else":                   {records: log{ana.enrolled(someTime), edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Caller = ben.party() })}, says: "that was not enrolled"},
		"vouched by itself":                  {records: log{ana.enrolled(someTime), ana.vouches(t, ana, someTime)}, says: "no other person vouched"},
		"vouched by one that does not count": {records: log{ana.enrolled(someTime), ben.enrolled(someTime), ana.vouches(t, ben, someTime)}, says: "did not count yet"},
		"vouched for nothing":                {records: log{ana.enrolled(someTime), ana.vouches(t, ben, tomorrow)}, says: "vouches for a passkey that is not enrolled"},
		"vouched without a word":             {records: log{ana.enrolled(someTime), ben.enrolled(tomorrow), edited(ana.vouches(t, ben, tomorrow), func(r *audit.Record) { r.Signature = nil })}, says: "no other person vouched"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &testLog{}
			m.record(t, audit.Record{Time: someTime, Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}})
			for _, r := range test.records {
				m.record(t, r)
			}
			report, err := Verify(t.Context(), m, Options{Approvers: test.pinned})
			if test.says == "" && (err != nil || report.Signatures != test.signed) {
				t.Errorf("%d signatures, %v", report.Signatures, err)
			}
			if test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("it says %v", err)
			}
		})
	}
}

// edited gives a record that was changed after it was made, in copies of its parts.
func edited(r audit.Record, change func(*audit.Record)) audit.Record {
	r.Caller, r.Request, r.Decision, r.Approval, r.Lease = copied(r.Caller), copied(r.Request), copied(r.Decision), copied(r.Approval), copied(r.Lease)
	change(&r)
	return r
}

func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

func TestApproversComeBack(t *testing.T) {
	a := newKeyHolder(t, "login/ana").approver()
	list, err := ParseApprovers("# kept by the auditor\n\n" + a.String() + "\n")
	if err != nil || len(list) != 1 || list[0].String() != a.String() {
		t.Errorf("%v, %v", list, err)
	}
	for _, bad := range []string{"login/ana", "login/ana broker.test x", "login/ana broker.test !! !!", "login/ana broker.test  "} {
		if _, err := ParseApprovers(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
