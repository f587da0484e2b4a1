package audit

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

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

func (s *keyHolder) party() *Party { return &Party{ID: s.person, Kind: "person"} }

func (s *keyHolder) enrolled(at time.Time) Record {
	return Record{Time: at, Kind: PasskeyEnrolled, Caller: s.party(), Passkey: &PasskeyFacts{
		Counts: at.Add(PasskeyWait), Credential: s.ID, Public: s.public, RP: "broker.test",
	}}
}

func (s *keyHolder) sign(t testing.TB, challenge func(Digest) Digest) *SignatureFacts {
	t.Helper()
	nonce := digest(42)
	c := challenge(nonce)
	data, client, signature, err := s.Sign(c[:])
	if err != nil {
		t.Fatal(err)
	}
	return &SignatureFacts{AuthenticatorData: data, ClientData: client, Credential: s.ID, Nonce: nonce, Signature: signature}
}

func (s *keyHolder) approves(t testing.TB, request string, at time.Time) Record {
	t.Helper()
	return s.says(t, request, at, &ApprovalFacts{Decision: "approve", Digest: ownDigest, Groups: []string{"dba"}, Scopes: []string{"tickets:read"}, TTL: time.Minute})
}

// says is a signed word on the request that asks makes, which settles it.
func (s *keyHolder) says(t testing.TB, request string, at time.Time, a *ApprovalFacts) Record {
	t.Helper()
	return Record{Time: at, Kind: RequestApproved, Caller: s.party(), Request: &RequestFacts{ID: request, Digest: ownDigest, Entitlement: "tickets-api"}, Approval: a,
		Signature: s.sign(t, func(nonce Digest) Digest { return a.Challenge(s.person, request, nonce) })}
}

// asks is a request that wants signed approvals.
func asks(request string, at time.Time, approvals ...string) Record {
	return Record{Time: at, Kind: RequestCreated, Caller: &Party{ID: "spiffe://acme.test/agent/triage", Kind: "agent"},
		Request: &RequestFacts{ID: request, Digest: ownDigest, Entitlement: "tickets-api", Scopes: []string{"tickets:close", "tickets:read"},
			TTL: 10 * time.Minute, Duration: time.Hour, LapsesAt: at.Add(time.Hour), Accountable: []string{"login/dora"}},
		Decision: &DecisionFacts{Permit: true, Approvals: approvals, Signed: true}}
}

func (s *keyHolder) vouches(t testing.TB, of *keyHolder, at time.Time) Record {
	t.Helper()
	f := PasskeyFacts{Credential: of.ID, Public: of.public, RP: "broker.test"}
	return Record{Time: at, Kind: PasskeyVouched, Caller: s.party(), Subject: of.party(), Passkey: &PasskeyFacts{Credential: of.ID},
		Signature: s.sign(t, func(nonce Digest) Digest { return f.Challenge(s.person, of.person, nonce) })}
}

func (s *keyHolder) approver() Approver { return Approver{s.person, s.ID, s.public, "broker.test"} }

// An auditor finds every approval that policy wanted signed and that is not, and
// every signature that does not hold, offline.
func TestSignaturesAreVerified(t *testing.T) {
	ana, ben, eve := newKeyHolder(t, "login/ana"), newKeyHolder(t, "login/ben"), newKeyHolder(t, "login/ana")
	tomorrow := someTime.Add(25 * time.Hour)
	type log = []Record
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
			says: "not among the approvers that you gave"},
		"unsigned": {records: log{asked, edited(ana.approves(t, "req_1", tomorrow), func(r *Record) { r.Signature = nil })}, says: "policy wanted it signed"},
		"unsigned where nobody wanted that": {records: log{edited(asked, func(r *Record) { r.Decision.Signed = false }),
			edited(ana.approves(t, "req_1", tomorrow), func(r *Record) { r.Signature = nil })}},
		"a no needs no signature": {records: log{asked, {Time: tomorrow, Kind: RequestDenied, Caller: ana.party(), Request: asked.Request, Approval: &ApprovalFacts{Decision: "deny", Digest: ownDigest}}}},
		"nobody enrolled it":      {records: log{asked, ana.approves(t, "req_1", tomorrow)}, says: "nobody enrolled"},
		"too early":               {records: log{ana.enrolled(someTime), ana.approves(t, "req_1", someTime.Add(PasskeyWait-time.Second))}, says: "did not count yet"},
		"enrolled to count at once": {records: log{edited(ana.enrolled(someTime), func(r *Record) { r.Passkey.Counts = someTime.Add(time.Hour) })},
			says: "would count before 24h0m0s are over"},
		"enrolled for somebody else": {records: log{edited(ana.enrolled(someTime), func(r *Record) { r.Caller, r.Subject = ben.party(), ana.party() })}, says: "for somebody else"},
		"enrolled twice":             {records: log{ana.enrolled(someTime), ana.enrolled(someTime)}, says: "enrolled before"},
		"removed": {records: log{ana.enrolled(someTime), {Time: tomorrow, Kind: PasskeyRemoved, Caller: ana.party(), Passkey: &PasskeyFacts{Credential: ana.ID}}, asked,
			ana.approves(t, "req_1", tomorrow)}, says: "was removed"},
		"removed, and pinned": {records: log{ana.enrolled(someTime), {Time: tomorrow, Kind: PasskeyRemoved, Caller: ana.party(), Passkey: &PasskeyFacts{Credential: ana.ID}}, asked,
			ana.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()}, says: "was removed"},
		"removed, enrolled again, and pinned": {records: log{ana.enrolled(someTime), {Time: someTime, Kind: PasskeyRemoved, Caller: ana.party(), Passkey: &PasskeyFacts{Credential: ana.ID}}, ana.enrolled(someTime), asked,
			ana.approves(t, "req_1", tomorrow)}, pinned: []Approver{ana.approver()}, says: "was removed"},
		"removed, and enrolled again": {records: log{ana.enrolled(someTime), {Time: someTime, Kind: PasskeyRemoved, Caller: ana.party(), Passkey: &PasskeyFacts{Credential: ana.ID}}, ana.enrolled(someTime), asked,
			ana.approves(t, "req_1", tomorrow)}, signed: 1},
		"for another request":                {records: log{ana.enrolled(someTime), edited(ana.approves(t, "req_1", tomorrow), func(r *Record) { r.Request.ID = "req_2" })}, says: "signs something else"},
		"widened afterwards":                 {records: log{ana.enrolled(someTime), edited(ana.approves(t, "req_1", tomorrow), func(r *Record) { r.Approval.TTL = time.Hour })}, says: "signs something else"},
		"by somebody else":                   {records: log{ana.enrolled(someTime), edited(ana.approves(t, "req_1", tomorrow), func(r *Record) { r.Caller = ben.party() })}, says: "nobody enrolled"},
		"vouched by itself":                  {records: log{ana.enrolled(someTime), ana.vouches(t, ana, someTime)}, says: "nobody else vouched"},
		"vouched by one that does not count": {records: log{ana.enrolled(someTime), ben.enrolled(someTime), ana.vouches(t, ben, someTime)}, says: "did not count yet"},
		"vouched for nothing":                {records: log{ana.enrolled(someTime), ana.vouches(t, ben, tomorrow)}, says: "nobody has"},
		"vouched without a word":             {records: log{ana.enrolled(someTime), ben.enrolled(tomorrow), edited(ana.vouches(t, ben, tomorrow), func(r *Record) { r.Signature = nil })}, says: "nobody else vouched"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &memory{}
			m.record(t, Record{Time: someTime, Kind: LogOpened, Log: &LogFacts{Origin: origin}})
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
func edited(r Record, change func(*Record)) Record {
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

func TestAssertionsThatDoNotHold(t *testing.T) {
	challenge := digest(5)
	for name, change := range map[string]func(k *softkey.Key, s *SignatureFacts){
		"another site":       func(k *softkey.Key, _ *SignatureFacts) { k.Origin = "https://broker.test.evil.test" },
		"a site without TLS": func(k *softkey.Key, _ *SignatureFacts) { k.Origin = "http://broker.test" },
		"another party":      func(k *softkey.Key, _ *SignatureFacts) { k.RP = "evil.test" },
		"nobody verified":    func(k *softkey.Key, _ *SignatureFacts) { k.Flags = softkey.Present },
		"nobody present":     func(k *softkey.Key, _ *SignatureFacts) { k.Flags = softkey.Verified },
		"no data":            func(_ *softkey.Key, s *SignatureFacts) { s.AuthenticatorData = nil },
		"half of the data":   func(_ *softkey.Key, s *SignatureFacts) { s.AuthenticatorData = s.AuthenticatorData[:33] },
		"no client data":     func(_ *softkey.Key, s *SignatureFacts) { s.ClientData = nil },
		"other client data":  func(_ *softkey.Key, s *SignatureFacts) { s.ClientData = append(s.ClientData, ' ') },
		"no signature":       func(_ *softkey.Key, s *SignatureFacts) { s.Signature = nil },
		"one more flag":      func(_ *softkey.Key, s *SignatureFacts) { s.AuthenticatorData[32] |= 0x80 },
		"a creation, embedded": func(_ *softkey.Key, s *SignatureFacts) {
			s.ClientData = []byte(strings.Replace(string(s.ClientData), "webauthn.get", "webauthn.create", 1))
		},
	} {
		holder := newKeyHolder(t, "login/ana")
		unsigned := &SignatureFacts{AuthenticatorData: make([]byte, 37)}
		change(holder.Key, unsigned) // what it is about before it signs
		s := holder.sign(t, func(Digest) Digest { return challenge })
		if err := s.Verify(challenge, holder.public, "broker.test"); err == nil {
			change(holder.Key, s) // and after
		}
		if err := s.Verify(challenge, holder.public, "broker.test"); err == nil {
			t.Errorf("%s: it holds", name)
		}
	}
	for _, origin := range []string{"https://broker.test", "https://broker.test:8443", "https://pages.broker.test"} {
		holder := newKeyHolder(t, "login/ana")
		holder.Origin = origin
		s := holder.sign(t, func(Digest) Digest { return challenge })
		if err := s.Verify(challenge, holder.public, "broker.test"); err != nil {
			t.Errorf("%s: %v", origin, err)
		}
		if err := s.Verify(challenge, nil, "broker.test"); err == nil {
			t.Error("it holds by no key")
		}
	}
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

// What passkeys sign is told to auditors, who may check it by themselves.
func TestChallenges(t *testing.T) {
	f := ApprovalFacts{Decision: "unjustified", Digest: digest(1), Comment: digest(2), Groups: []string{"dba"}}
	said := fmt.Sprintf(`{"comment":"%s","decision":"unjustified","digest":"%s","nonce":"%s","person":"login/ana","request":"req_1"}`, digest(2), digest(1), digest(3))
	for domain, challenge := range map[string]func(person, request string, nonce Digest) Digest{
		"accessbroker/approval/v1\n": f.Challenge, "accessbroker/review/v1\n": f.ReviewChallenge,
	} {
		if got, want := challenge("login/ana", "req_1", digest(3)), Digest(sha256.Sum256([]byte(domain+said))); got != want {
			t.Errorf("%q: %s, want %s", domain, got, want)
		}
	}
}
