package broker_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/softkey"
)

const (
	rp   = "broker.acme.test"
	home = "https://broker.acme.test"
)

// logsIn returns a person who has just logged in.
func logsIn(name string, now time.Time) broker.Identity {
	who := approver(name, now)
	who.Person.Login = now
	return who
}

// enrols enrols a new passkey for a person.
func (w *world) enrols(t *testing.T, name string, now time.Time) *softkey.Key {
	t.Helper()
	key, err := softkey.New(rp, home)
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.sessions.Enrol(t.Context(), broker.Self(logsIn(name, now), now), broker.Passkey{ID: key.ID, Public: public, RP: rp, Name: "phone"}); err != nil {
		t.Fatal(err)
	}
	return key
}

func signedBy(t *testing.T, key *softkey.Key, s *broker.Signing) *audit.SignatureFacts {
	t.Helper()
	data, client, signature, err := key.Sign(s.Challenge[:])
	if err != nil {
		t.Fatal(err)
	}
	return &audit.SignatureFacts{AuthenticatorData: data, ClientData: client, Credential: key.ID, Nonce: s.Nonce, Signature: signature}
}

// signs signs a vote with a person's passkey.
func (w *world) signs(t *testing.T, name string, key *softkey.Key, r *broker.Request, v broker.Vote, now time.Time) broker.Vote {
	t.Helper()
	v.Digest = r.Digest
	s, err := w.broker.PrepareVote(t.Context(), broker.Self(approver(name, now), now), r.ID, v)
	if err != nil {
		t.Fatal(err)
	}
	v.Salt, v.Signature = s.Salt, signedBy(t, key, s)
	return v
}

// audits verifies the log as an auditor who knows a passkey.
func (w *world) audits(t *testing.T, person string, key *softkey.Key) (*verify.Report, error) {
	t.Helper()
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	return verify.Verify(t.Context(), w.store.Source(), verify.Options{Approvers: []verify.Approver{{Person: person, RP: rp, Credential: key.ID, Public: public}}})
}

const signedPolicy = `@approval("1 of support") @signed("required")`

const tomorrow = 24 * time.Hour

func TestSignedApproval(t *testing.T) {
	w := peopleWorld(t, signedPolicy)
	key := w.enrols(t, "ben", noon)
	later := noon.Add(tomorrow)
	r := w.askAt(t, read("tickets:close", "tickets:read"), later)
	if _, err := w.vote(t, approver("ben", later), r, yes, later); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("unsigned: %v", err)
	}
	v := w.signs(t, "ben", key, r, broker.Vote{Approve: true, Comment: "looks right", Scopes: []string{"tickets:read"}, TTL: 5 * time.Minute}, later)

	// The signature covers every part of the vote.
	for name, change := range map[string]func(*broker.Vote){
		"without the comment":       func(v *broker.Vote) { v.Comment = "" },
		"with another comment":      func(v *broker.Vote) { v.Comment = "looks wrong" },
		"with another salt":         func(v *broker.Vote) { v.Salt[0] ^= 1 },
		"wider":                     func(v *broker.Vote) { v.Scopes = nil },
		"longer":                    func(v *broker.Vote) { v.TTL = 0 },
		"for longer":                func(v *broker.Vote) { v.Duration = time.Minute },
		"as a no":                   func(v *broker.Vote) { v.Approve, v.Scopes, v.TTL = false, nil, 0 },
		"with another nonce":        func(v *broker.Vote) { v.Signature.Nonce[0] ^= 1 },
		"with another credential":   func(v *broker.Vote) { v.Signature.Credential = []byte("x") },
		"with a broken signature":   func(v *broker.Vote) { v.Signature.Signature = v.Signature.Signature[:8] },
		"without a verified person": func(v *broker.Vote) { v.Signature.AuthenticatorData[32] = softkey.Present },
	} {
		bad := v
		signature := *v.Signature
		signature.AuthenticatorData = append([]byte{}, signature.AuthenticatorData...)
		bad.Signature = &signature
		change(&bad)
		if _, err := w.vote(t, approver("ben", later), r, bad, later); !errors.Is(err, broker.ErrSignatureRequired) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.vote(t, approver("cleo", later), r, v, later); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("another person's signature: got %v", err)
	}
	got, err := w.vote(t, approver("ben", later), r, v, later)
	if err != nil || got.Status != broker.RequestApproved || !got.Approvals[0].Signed {
		t.Fatalf("got %v, %v", got, err)
	}
	other := w.askAt(t, withReason(read("tickets:close", "tickets:read"), "another"), later)
	again := v
	again.Digest = other.Digest
	if _, err := w.vote(t, approver("ben", later), other, again, later); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("replayed signature: got %v", err)
	}
	if report, err := w.audits(t, "login/ben", key); err != nil || report.Signatures != 1 || !report.KeysPinned {
		t.Errorf("log: got %+v, %v", report, err)
	}
	if _, err := w.audits(t, "login/cleo", key); err == nil || !strings.Contains(err.Error(), "not among the approvers you gave") {
		t.Errorf("log, with another passkey for ben: got %v", err)
	}
}

// A passkey counts after a day, or when a colleague vouches for it.
func TestNewPasskeyCountsLater(t *testing.T) {
	w := peopleWorld(t, signedPolicy)
	ben := w.enrols(t, "ben", noon)
	r := w.askAt(t, read("tickets:close"), noon)
	soon := noon.Add(30 * time.Minute)
	if _, err := w.broker.PrepareVote(t.Context(), broker.Self(approver("ben", soon), soon), r.ID, broker.Vote{Approve: true, Digest: r.Digest}); !errors.Is(err, broker.ErrSignatureRequired) || !strings.Contains(err.Error(), "counts from") {
		t.Errorf("before it counts: got %v", err)
	}

	later := noon.Add(tomorrow)
	cleo := w.enrols(t, "cleo", later)
	r = w.askAt(t, read("tickets:close"), later)
	vote := broker.Vote{Approve: true, Digest: r.Digest}
	if _, err := w.broker.PrepareVote(t.Context(), broker.Self(approver("cleo", later), later), r.ID, vote); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("before it counts: got %v", err)
	}
	if _, err := w.sessions.PrepareVouch(t.Context(), broker.Self(approver("cleo", later), later), "login/cleo", cleo.ID); !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("vouching for oneself: got %v", err)
	}
	if _, err := w.sessions.PrepareVouch(t.Context(), broker.Self(approver("dan", later), later), "login/cleo", cleo.ID); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("vouching without a passkey: got %v", err)
	}
	s, err := w.sessions.PrepareVouch(t.Context(), broker.Self(approver("ben", later), later), "login/cleo", cleo.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.sessions.Vouch(t.Context(), broker.Self(approver("ben", later), later), "login/cleo", cleo.ID, signedBy(t, cleo, s)); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("vouched by the passkey itself: got %v", err)
	}
	if err := w.sessions.Vouch(t.Context(), broker.Self(approver("ben", later), later), "login/cleo", cleo.ID, signedBy(t, ben, s)); err != nil {
		t.Fatal(err)
	}
	if err := w.sessions.Vouch(t.Context(), broker.Self(approver("ben", later), later), "login/cleo", cleo.ID, signedBy(t, ben, s)); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("vouching twice: got %v", err)
	}
	if _, err := w.vote(t, approver("cleo", later), r, w.signs(t, "cleo", cleo, r, yes, later), later); err != nil {
		t.Error(err)
	}
	account, err := w.sessions.Account(t.Context(), broker.Self(approver("cleo", later), later))
	if err != nil || account.Passkeys[0].VouchedBy != "login/ben" {
		t.Errorf("got %+v, %v", account, err)
	}
}

func TestRemovedPasskeyStopsCounting(t *testing.T) {
	w := peopleWorld(t, signedPolicy)
	key := w.enrols(t, "ben", noon)
	later := noon.Add(tomorrow)
	r := w.askAt(t, read("tickets:close"), later)
	v := w.signs(t, "ben", key, r, yes, later)
	if err := w.sessions.RemovePasskey(t.Context(), broker.Self(approver("cleo", later), later), key.ID); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("removal by another person: got %v", err)
	}
	if err := w.sessions.RemovePasskey(t.Context(), broker.Self(approver("ben", later), later), key.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.vote(t, approver("ben", later), r, v, later); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("signed before the removal: got %v", err)
	}
}

// A signature counter that does not grow indicates a cloned authenticator.
func TestClonedPasskey(t *testing.T) {
	w := peopleWorld(t, signedPolicy)
	key := w.enrols(t, "ben", noon)
	key.Counter = 7
	later := noon.Add(tomorrow)
	r := w.askAt(t, read("tickets:close"), later)
	if _, err := w.vote(t, approver("ben", later), r, w.signs(t, "ben", key, r, yes, later), later); err != nil {
		t.Fatal(err)
	}
	key.Counter = 3
	r = w.askAt(t, withReason(read("tickets:close"), "again"), later)
	if _, err := w.vote(t, approver("ben", later), r, w.signs(t, "ben", key, r, yes, later), later); !errors.Is(err, broker.ErrSignatureRequired) || !strings.Contains(err.Error(), "copied") {
		t.Errorf("got %v", err)
	}
}

func TestEnrolRequirements(t *testing.T) {
	w := peopleWorld(t, signedPolicy)
	key, err := softkey.New(rp, home)
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	good := broker.Passkey{ID: key.ID, Public: public, RP: rp}
	stale := logsIn("ben", noon)
	stale.Person.Login = noon.Add(-11 * time.Minute)
	for name, test := range map[string]struct {
		who  broker.Identity
		key  broker.Passkey
		want error
	}{
		"a workload":            {agent(noon), good, broker.ErrSessionRequired},
		"an old login":          {stale, good, broker.ErrLoginStale},
		"a passkey without key": {logsIn("ben", noon), broker.Passkey{ID: key.ID, RP: rp}, broker.ErrInvalidRequest},
		"a long name":           {logsIn("ben", noon), broker.Passkey{ID: key.ID, Public: public, RP: rp, Name: strings.Repeat("x", 65)}, broker.ErrInvalidRequest},
	} {
		if err := w.sessions.Enrol(t.Context(), broker.Self(test.who, noon), test.key); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.sessions.Enrol(t.Context(), broker.Self(logsIn("ben", noon), noon), good); err != nil {
		t.Fatal(err)
	}
	if err := w.sessions.Enrol(t.Context(), broker.Self(logsIn("ben", noon), noon), good); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("enrolled twice: got %v", err)
	}
}

func withReason(ask broker.Ask, why string) broker.Ask {
	ask.Justification = why
	return ask
}

func (w *world) askAt(t *testing.T, ask broker.Ask, at time.Time) *broker.Request {
	t.Helper()
	r, err := w.broker.Ask(t.Context(), broker.Self(agent(at), at), ask, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Vouching stores the signature counter of the voucher's passkey, so that a clone
// of it is noticed later.
func TestVouchingAdvancesTheCounter(t *testing.T) {
	w := peopleWorld(t, signedPolicy)
	ben := w.enrols(t, "ben", noon)
	later := noon.Add(tomorrow)
	cleo := w.enrols(t, "cleo", later)
	voucher := broker.Self(approver("ben", later), later)
	s, err := w.sessions.PrepareVouch(t.Context(), voucher, "login/cleo", cleo.ID)
	if err != nil {
		t.Fatal(err)
	}
	ben.Counter = 6
	if err := w.sessions.Vouch(t.Context(), voucher, "login/cleo", cleo.ID, signedBy(t, ben, s)); err != nil {
		t.Fatal(err)
	}
	account, err := w.sessions.Account(t.Context(), voucher)
	if err != nil || len(account.Passkeys) != 1 || account.Passkeys[0].SignCount != ben.Counter {
		t.Errorf("got account %+v, %v, want the counter %d", account, err, ben.Counter)
	}
}
