package verify

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// An Approver is a passkey that an auditor knows, from elsewhere than the log.
type Approver struct {
	Person     string `json:"person"`
	Credential []byte `json:"credential"`
	Public     []byte `json:"public"` // SubjectPublicKeyInfo
	RP         string `json:"rp"`
}

// ParseApprovers reads what String wrote, one a line. Lines that are empty or
// begin with "#" say nothing.
func ParseApprovers(text string) (list []Approver, err error) {
	for n, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		a := Approver{Person: words[0]}
		if len(words) == 4 {
			a.RP = words[1]
			if a.Credential, err = base64.RawURLEncoding.DecodeString(words[2]); err == nil {
				a.Public, err = base64.RawURLEncoding.DecodeString(words[3])
			}
		}
		if err != nil || len(a.Credential) == 0 || len(a.Public) == 0 {
			return nil, fmt.Errorf("line %d is no approver: person, relying party, credential and public key, as broker audit approvers writes them", n+1)
		}
		list = append(list, a)
	}
	return list, nil
}

// String is the line that ParseApprovers reads.
func (a Approver) String() string {
	encode := base64.RawURLEncoding.EncodeToString
	return strings.Join([]string{a.Person, a.RP, encode(a.Credential), encode(a.Public)}, " ")
}

// Approvers reads a log, and gives the passkeys that were enrolled and not
// removed, in the order of their enrolment. It verifies nothing.
func Approvers(ctx context.Context, src audit.Source) ([]Approver, error) {
	list := []Approver{}
	for item, err := range src.Items(ctx) {
		if err != nil {
			return nil, fmt.Errorf("reading the log: %w", err)
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", item.Index, err)
		}
		if r.Passkey == nil || r.Caller == nil {
			continue
		}
		switch r.Kind {
		case audit.PasskeyEnrolled:
			list = append(list, Approver{r.Caller.ID, r.Passkey.Credential, r.Passkey.Public, r.Passkey.RP})
		case audit.PasskeyRemoved:
			list = slices.DeleteFunc(list, func(a Approver) bool {
				return a.Person == r.Caller.ID && bytes.Equal(a.Credential, r.Passkey.Credential)
			})
		}
	}
	return list, nil
}

type passkeyName struct{ person, credential string }

type knownPasskey struct {
	Approver
	counts  time.Time
	removed bool
}

// A keyBook remembers the passkeys that the records enrolled and did not remove.
type keyBook struct {
	keys   map[passkeyName]knownPasskey
	pinned map[passkeyName]Approver // nil: the log is believed
}

func newKeyBook(pinned []Approver) *keyBook {
	b := &keyBook{keys: map[passkeyName]knownPasskey{}}
	for _, a := range pinned {
		if b.pinned == nil {
			b.pinned = map[passkeyName]Approver{}
		}
		b.pinned[passkeyName{a.Person, string(a.Credential)}] = a
	}
	return b
}

// check says what is wrong with the record after those before it, or nothing;
// and whether it holds a signature that is good.
func (b *keyBook) check(r *audit.Record) (signature bool, what string) {
	switch {
	case r.Passkey != nil:
		return b.passkey(r)
	case r.Approval != nil && r.Caller != nil && r.Request != nil:
		return b.said(r)
	}
	return false, ""
}

// said judges the signature of what a person says of a request.
func (b *keyBook) said(r *audit.Record) (bool, string) {
	s := r.Signature
	if s == nil {
		return false, "" // the request book knows whether one was wanted
	}
	challenge := r.Approval.Challenge
	if r.Kind == audit.ReviewGiven || r.Kind == audit.ReviewClosed {
		challenge = r.Approval.ReviewChallenge
	}
	what := b.holds(s, r.Caller.ID, challenge(r.Caller.ID, r.Request.ID, s.Nonce), r.Time)
	return what == "", what
}

// holds says what is wrong with a signature of a person's.
func (b *keyBook) holds(s *audit.SignatureFacts, person string, challenge audit.Digest, at time.Time) string {
	name := passkeyName{person, string(s.Credential)}
	known, enrolled := b.keys[name]
	key := known.Approver
	switch {
	case b.pinned != nil:
		pinned, listed := b.pinned[name]
		if !listed {
			return "it is signed by a passkey that is not among the approvers that you gave"
		}
		key = pinned
	case !enrolled:
		return "it is signed by a passkey that nobody enrolled, or that was removed"
	case at.Before(known.counts):
		return "it is signed by a passkey that did not count yet"
	}
	if known.removed {
		return "it is signed by a passkey that was removed"
	}
	if err := s.Verify(challenge, key.Public, key.RP); err != nil {
		return "the signature of the passkey does not hold: " + err.Error()
	}
	return ""
}

// slack is how much later than the broker's clock a record is committed.
const slack = time.Minute

// passkey takes in what became of a passkey.
func (b *keyBook) passkey(r *audit.Record) (bool, string) {
	if r.Caller == nil {
		return false, "nobody did it"
	}
	f, person := r.Passkey, r.Caller.ID
	if r.Subject != nil {
		person = r.Subject.ID
	}
	name := passkeyName{person, string(f.Credential)}
	known, enrolled := b.keys[name]
	switch r.Kind {
	case audit.PasskeyEnrolled:
		// To an auditor who believes nobody, what was removed stays removed.
		b.keys[name] = knownPasskey{Approver: Approver{person, f.Credential, f.Public, f.RP}, counts: f.Counts, removed: b.pinned != nil && known.removed}
		switch {
		case enrolled && !known.removed:
			return false, "the passkey was enrolled before"
		case r.Caller.ID != person:
			return false, "somebody enrolled a passkey for somebody else"
		case b.pinned == nil && f.Counts.Add(slack).Before(r.Time.Add(audit.PasskeyWait)):
			return false, fmt.Sprintf("the passkey would count before %s are over", audit.PasskeyWait)
		}
	case audit.PasskeyVouched:
		if !enrolled || known.removed {
			return false, "it vouches for a passkey that nobody has"
		}
		known.counts = r.Time
		b.keys[name] = known
		if r.Caller.ID == person || r.Signature == nil {
			return false, "nobody else vouched for the passkey"
		}
		vouched := audit.PasskeyFacts{Credential: f.Credential, Public: known.Public, RP: known.RP}
		what := b.holds(r.Signature, r.Caller.ID, vouched.Challenge(r.Caller.ID, person, r.Signature.Nonce), r.Time)
		return what == "", what
	case audit.PasskeyRemoved:
		if delete(b.keys, name); b.pinned != nil {
			if _, listed := b.pinned[name]; listed {
				b.keys[name] = knownPasskey{removed: true}
			}
		}
	}
	return false, ""
}
