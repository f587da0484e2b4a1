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

// keyHolders are the key holders of all tests, by credential.
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

// says returns the record of a signed vote that decides the request of asks.
func (s *keyHolder) says(t testing.TB, request string, at time.Time, a *audit.ApprovalFacts) audit.Record {
	t.Helper()
	return audit.Record{Time: at, Kind: audit.RequestApproved, Caller: s.party(), Request: &audit.RequestFacts{ID: request, Digest: ownDigest, Entitlement: "tickets-api"}, Approval: a,
		Signature: s.sign(t, func(nonce audit.Digest) audit.Digest { return a.Challenge(s.person, request, nonce) })}
}

// asks returns the record of a request that requires signed approvals.
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

// Verify reports every approval without a required signature, and every signature
// that is not valid.
func TestSignaturesAreVerified(t *testing.T) {
	ana, ben, eve := newKeyHolder(t, "login/ana"), newKeyHolder(t, "login/ben"), newKeyHolder(t, "login/ana")
	// The operator's own key, with the id of a pinned credential.
	pinned, stolen := newKeyHolder(t, "login/ana"), newKeyHolder(t, "login/ana")
	stolen.ID = pinned.ID
	keyHolders[string(pinned.ID)] = stolen
	tomorrow := someTime.Add(25 * time.Hour)
	type log = []audit.Record
	asked := asks("req_1", tomorrow, "1 of dba")
	for name, test := range map[string]struct {
		records log
		pinned  []Approver
		signed  int64
		want    string // empty: it verifies
	}{
		"signed":      {records: log{ana.enrolled(someTime), asked, ana.approves(t, "req_1", tomorrow)}, signed: 1},
		"vouched for": {records: log{ana.enrolled(someTime), ben.enrolled(tomorrow), ana.vouches(t, ben, tomorrow), asked, ben.approves(t, "req_1", tomorrow)}, signed: 2},
		"pinned":      {records: log{ana.enrolled(someTime), asked, ana.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()}, signed: 1},
		"a key enrolled by the operator": {records: log{eve.enrolled(someTime), asked, eve.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()},
			want: "not among the approvers you gave"},
		"a pinned passkey enrolled with the operator's key": {records: log{stolen.enrolled(someTime), asked, stolen.approves(t, "req_1", tomorrow)}, pinned: []Approver{pinned.approver()},
			want: "the signature of the passkey is not valid"},
		"enrolled without a caller": {records: log{edited(ana.enrolled(someTime), func(r *audit.Record) { r.Caller = nil })}, want: "it names no caller"},
		"unsigned":                  {records: log{asked, edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Signature = nil })}, want: "policy requires the signature of a passkey"},
		"unsigned, and not required": {records: log{edited(asked, func(r *audit.Record) { r.Decision.Signed = false }),
			edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Signature = nil })}},
		"a denial needs no signature": {records: log{asked, {Time: tomorrow, Kind: audit.RequestDenied, Caller: ana.party(), Request: asked.Request, Approval: &audit.ApprovalFacts{Decision: "deny", Digest: ownDigest}}}},
		"not enrolled":                {records: log{asked, ana.approves(t, "req_1", tomorrow)}, want: "that was not enrolled"},
		"too early":                   {records: log{ana.enrolled(someTime), ana.approves(t, "req_1", someTime.Add(audit.PasskeyWait-time.Second))}, want: "did not count yet"},
		"enrolled to count early": {records: log{edited(ana.enrolled(someTime), func(r *audit.Record) { r.Passkey.Counts = someTime.Add(time.Hour) })},
			want: "counts earlier than 24h0m0s after its enrolment"},
		"enrolled by another person": {records: log{edited(ana.enrolled(someTime), func(r *audit.Record) { r.Caller, r.Subject = ben.party(), ana.party() })}, want: "enrolled by another person"},
		"enrolled twice":             {records: log{ana.enrolled(someTime), ana.enrolled(someTime)}, want: "already enrolled"},
		"removed": {records: log{ana.enrolled(someTime), {Time: tomorrow, Kind: audit.PasskeyRemoved, Caller: ana.party(), Passkey: &audit.PasskeyFacts{Credential: ana.ID}}, asked,
			ana.approves(t, "req_1", tomorrow)}, want: "was removed"},
		"removed, and pinned": {records: log{ana.enrolled(someTime), {Time: tomorrow, Kind: audit.PasskeyRemoved, Caller: ana.party(), Passkey: &audit.PasskeyFacts{Credential: ana.ID}}, asked,
			ana.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()}, want: "was removed"},
		"removed, enrolled again, and pinned": {records: log{ana.enrolled(someTime), {Time: someTime, Kind: audit.PasskeyRemoved, Caller: ana.party(), Passkey: &audit.PasskeyFacts{Credential: ana.ID}}, ana.enrolled(someTime), asked,
			ana.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()}, want: "was removed"},
		"removed, and enrolled again": {records: log{ana.enrolled(someTime), {Time: someTime, Kind: audit.PasskeyRemoved, Caller: ana.party(), Passkey: &audit.PasskeyFacts{Credential: ana.ID}}, ana.enrolled(someTime), asked,
			ana.approves(t, "req_1", tomorrow)}, signed: 1},
		"for another request":                    {records: log{ana.enrolled(someTime), edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Request.ID = "req_2" })}, want: "signs something else"},
		"widened afterwards":                     {records: log{ana.enrolled(someTime), edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Approval.TTL = time.Hour })}, want: "signs something else"},
		"by another person":                      {records: log{ana.enrolled(someTime), edited(ana.approves(t, "req_1", tomorrow), func(r *audit.Record) { r.Caller = ben.party() })}, want: "that was not enrolled"},
		"vouched for by its owner":               {records: log{ana.enrolled(someTime), ana.vouches(t, ana, someTime)}, want: "no other person vouched"},
		"vouched for with another account":       {records: log{ana.enrolled(someTime), ben.enrolled(tomorrow), linked(ana.vouches(t, ben, tomorrow), ben)}, want: "no other person vouched"},
		"vouched for too early":                  {records: log{ana.enrolled(someTime), ben.enrolled(someTime), ana.vouches(t, ben, someTime)}, want: "did not count yet"},
		"vouched for a key that is not enrolled": {records: log{ana.enrolled(someTime), ana.vouches(t, ben, tomorrow)}, want: "vouches for a passkey that is not enrolled"},
		"vouched for without a signature":        {records: log{ana.enrolled(someTime), ben.enrolled(tomorrow), edited(ana.vouches(t, ben, tomorrow), func(r *audit.Record) { r.Signature = nil })}, want: "no other person vouched"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &testLog{}
			m.record(t, audit.Record{Time: someTime, Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}})
			for _, r := range test.records {
				m.record(t, r)
			}
			report, err := Verify(t.Context(), m, Options{Approvers: test.pinned})
			if report.Signatures != test.signed {
				t.Errorf("got %d valid signatures, want %d", report.Signatures, test.signed)
			}
			if report.KeysPinned != (len(test.pinned) > 0) {
				t.Errorf("got keys_pinned %t with %d approvers", report.KeysPinned, len(test.pinned))
			}
			if test.want == "" && err != nil {
				t.Errorf("got %v, want no problem", err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// edited returns a copy of a record with a change. The original stays as it is.
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

func TestApproversRoundTrip(t *testing.T) {
	a := newKeyHolder(t, "login/ana").approver()
	list, err := ParseApprovers("# kept by the auditor\n\n" + a.String() + "\n")
	if err != nil || len(list) != 1 || list[0].String() != a.String() {
		t.Errorf("got %v, %v", list, err)
	}
	for _, bad := range []string{"login/ana", "login/ana broker.test x", "login/ana broker.test !! !!", "login/ana broker.test  ", "login/ana broker.test AAAA!! AAAA", "login/ana broker.test AAAA AAAA!!"} {
		if _, err := ParseApprovers("# kept\n" + bad); err == nil || !strings.HasPrefix(err.Error(), "line 2 ") {
			t.Errorf("ParseApprovers(%q): got %v, want an error at line 2", bad, err)
		}
	}
}

func TestApproversOfALog(t *testing.T) {
	ana, ben, other := newKeyHolder(t, "login/ana"), newKeyHolder(t, "login/ben"), newKeyHolder(t, "login/ana")
	m := &testLog{}
	for _, r := range []audit.Record{
		{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}},
		ana.enrolled(someTime), ben.enrolled(someTime), other.enrolled(someTime),
		edited(ana.enrolled(someTime), func(r *audit.Record) { r.Caller = nil }),
		{Kind: audit.PasskeyRemoved, Caller: ben.party(), Passkey: &audit.PasskeyFacts{Credential: ana.ID}}, // not ben's
		{Kind: audit.PasskeyRemoved, Caller: ana.party(), Passkey: &audit.PasskeyFacts{Credential: other.ID}},
	} {
		m.record(t, r)
	}
	list, err := Approvers(t.Context(), m)
	if err != nil || len(list) != 2 || list[0].String() != ana.approver().String() || list[1].String() != ben.approver().String() {
		t.Errorf("got %v, %v, want the passkeys of ana and ben", list, err)
	}
	if list, err := Approvers(t.Context(), noRecords(1)); err == nil || !strings.HasPrefix(err.Error(), "record 0: ") {
		t.Errorf("got %v, %v, want an error at record 0", list, err)
	}
}
