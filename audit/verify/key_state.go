package verify

import (
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// keyState is the state of the passkeys in the log.
type keyState struct {
	keys  map[keyID]passkey
	given map[keyID]Approver // from the auditor; nil: believe the log
}

type keyID struct{ person, credential string }

type passkey struct {
	Approver
	counts  time.Time // when its signatures begin to count
	removed bool
}

func newKeyState(given []Approver) *keyState {
	s := &keyState{keys: map[keyID]passkey{}}
	for _, a := range given {
		if s.given == nil {
			s.given = map[keyID]Approver{}
		}
		s.given[keyID{a.Person, string(a.Credential)}] = a
	}
	return s
}

// check returns what contradicts the earlier records of a passkey, or "". It
// reports whether the record has a valid signature.
func (s *keyState) check(r *audit.Record) (signed bool, problem string) {
	switch {
	case r.Passkey != nil:
		return s.passkey(r)
	case r.Kind == audit.CampaignDecided && r.Campaign != nil && r.Caller != nil && r.Signature != nil:
		problem = s.verify(r.Signature, r.Caller.ID, r.Campaign.Challenge(r.Caller.ID, r.Signature.Nonce), r.Time)
		return problem == "", problem
	case r.Approval != nil && r.Caller != nil && r.Request != nil:
		return s.vote(r)
	case r.Kind == audit.SupplierAssessed && r.Supplier != nil && r.Caller != nil && r.Signature != nil:
		problem = s.verify(r.Signature, r.Caller.ID, r.Supplier.AssessmentChallenge(r.Caller.ID, r.Signature.Nonce), r.Time)
		return problem == "", problem
	}
	return false, ""
}

// vote checks the signature of a vote or verdict.
func (s *keyState) vote(r *audit.Record) (signed bool, problem string) {
	signature := r.Signature
	if signature == nil {
		return false, "" // requestState checks whether one is required
	}
	challenge := r.Approval.Challenge
	if r.Kind == audit.ReviewGiven || r.Kind == audit.ReviewClosed {
		challenge = r.Approval.ReviewChallenge
	}
	problem = s.verify(signature, r.Caller.ID, challenge(r.Caller.ID, r.Request.ID, signature.Nonce), r.Time)
	return problem == "", problem
}

// verify returns the problem with a person's signature, or "".
func (s *keyState) verify(signature *audit.SignatureFacts, person string, challenge audit.Digest, at time.Time) string {
	id := keyID{person, string(signature.Credential)}
	known, enrolled := s.keys[id]
	key := known.Approver
	switch {
	case s.given != nil:
		given, listed := s.given[id]
		if !listed {
			return "it is signed with a passkey that is not among the approvers you gave"
		}
		key = given
	case !enrolled:
		return "it is signed with a passkey that was not enrolled, or was removed"
	case at.Before(known.counts):
		return "it is signed with a passkey that did not count yet"
	}
	if known.removed {
		return "it is signed with a passkey that was removed"
	}
	if err := signature.Verify(challenge, key.Public, key.RP); err != nil {
		return "the signature of the passkey is not valid: " + err.Error()
	}
	return ""
}

// slack is the maximum time from the broker's reading of the clock to the commit
// of the record.
const slack = time.Minute

// passkey applies a record about a passkey.
func (s *keyState) passkey(r *audit.Record) (signed bool, problem string) {
	if r.Caller == nil {
		return false, "it names no caller"
	}
	person := r.Caller.ID
	if r.Subject != nil {
		person = r.Subject.ID
	}
	id := keyID{person, string(r.Passkey.Credential)}
	switch r.Kind {
	case audit.PasskeyEnrolled:
		return false, s.enrol(id, r)
	case audit.PasskeyVouched:
		return s.vouch(id, r)
	case audit.PasskeyRemoved:
		delete(s.keys, id)
		if _, given := s.given[id]; given {
			s.keys[id] = passkey{removed: true}
		}
	}
	return false, ""
}

func (s *keyState) enrol(id keyID, r *audit.Record) string {
	f := r.Passkey
	known, enrolled := s.keys[id]
	s.keys[id] = passkey{
		Approver: Approver{id.person, f.Credential, f.Public, f.RP},
		counts:   f.Counts,
		// If the auditor gave the approvers, a new enrolment in the log does not undo
		// the removal of a passkey.
		removed: s.given != nil && known.removed,
	}
	switch {
	case enrolled && !known.removed:
		return "the passkey was already enrolled"
	case r.Caller.ID != id.person:
		return "the passkey was enrolled by another person"
	case s.given == nil && f.Counts.Add(slack).Before(r.Time.Add(audit.PasskeyWait)):
		return fmt.Sprintf("the passkey counts earlier than %s after its enrolment", audit.PasskeyWait)
	}
	return ""
}

func (s *keyState) vouch(id keyID, r *audit.Record) (signed bool, problem string) {
	known, enrolled := s.keys[id]
	if !enrolled || known.removed {
		return false, "it vouches for a passkey that is not enrolled"
	}
	known.counts = r.Time
	s.keys[id] = known
	if slices.Contains(accountsOf(r.Caller), id.person) || r.Signature == nil {
		return false, "no other person vouched for the passkey"
	}
	vouched := audit.PasskeyFacts{Credential: r.Passkey.Credential, Public: known.Public, RP: known.RP}
	problem = s.verify(r.Signature, r.Caller.ID, vouched.Challenge(r.Caller.ID, id.person, r.Signature.Nonce), r.Time)
	return problem == "", problem
}
