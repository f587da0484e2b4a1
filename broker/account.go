package broker

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// A PersonKey is a person's ID.
type PersonKey string

func (PersonKey) isKey() {}

// An Account is what the broker stores about a person. Package session has the
// flows that change it.
type Account struct {
	Person PersonKey
	Name   string // as of the last login; for display
	Email  string // as of the last login
	// EmailVerified means that the provider vouched for Email (email_verified).
	EmailVerified bool
	Passkeys      []Passkey
}

// Key returns the row's key.
func (a *Account) Key() Key { return a.Person }

// A Passkey is a WebAuthn credential with which a person signs decisions.
type Passkey struct {
	ID        []byte
	Public    []byte // SubjectPublicKeyInfo, DER
	RP        string // the id of its relying party
	SignCount uint32
	Name      string
	Enrolled  time.Time
	Counts    time.Time // when its signatures begin to count
	VouchedBy string    // the person whose signature made it count earlier
	Removed   time.Time
}

// SignWithin is how long a person has to sign a challenge.
const SignWithin = 5 * time.Minute

// A Signing is a challenge for a person's passkeys. The caller returns the nonce
// and the salt with the signature.
type Signing struct {
	Challenge   audit.Digest
	Nonce       audit.Digest
	Salt        [16]byte // of the comment's commitment
	Credentials [][]byte // the ids of the passkeys that may sign
}

// A challenge computes the hash that a person signs for one kind of decision.
type challenge func(person, request string, nonce audit.Digest) audit.Digest

// AccountOf returns the account of a person, or a new one.
func AccountOf(tx Tx, key PersonKey) (*Account, error) {
	a, err := Get[*Account](tx, key)
	if isNotFound(err) {
		return &Account{Person: key}, nil
	}
	return a, err
}

// account returns the caller's account.
func (b *Broker) account(ctx context.Context, caller Caller) (a *Account, err error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		a, err = AccountOf(tx, PersonKey(caller.Subject.ID))
		return err
	})
	return a, Unavailable(err)
}

// NewNonce returns the random part of a challenge.
func NewNonce() (nonce audit.Digest) {
	_, _ = rand.Read(nonce[:]) // never fails
	return nonce
}

// signing returns a challenge for a decision on a request.
func (a *Account) signing(id RequestID, salt [16]byte, challenge challenge, now time.Time) (*Signing, error) {
	s := &Signing{Nonce: NewNonce(), Salt: salt}
	s.Challenge = challenge(string(a.Person), id.String(), s.Nonce)
	var err error
	s.Credentials, err = a.Signable(now)
	return s, err
}

// Passkey returns a passkey that is not removed; nil if there is none.
func (a *Account) Passkey(credential []byte) *Passkey {
	i := slices.IndexFunc(a.Passkeys, func(p Passkey) bool { return bytes.Equal(p.ID, credential) && p.Removed.IsZero() })
	if i < 0 {
		return nil
	}
	return &a.Passkeys[i]
}

// valid returns the passkey if its signatures count at now, else the reason why
// they do not.
func (a *Account) valid(credential []byte, now time.Time) (*Passkey, error) {
	p := a.Passkey(credential)
	switch {
	case p == nil:
		return nil, refuse(ErrSignatureRequired, "this passkey is not enrolled: enrol it first")
	case now.Before(p.Counts):
		return nil, refuse(ErrSignatureRequired, "your passkey is new: it counts from "+p.Counts.UTC().Format(time.RFC3339)+", or once a colleague with a valid passkey vouches for it")
	}
	return p, nil
}

// Signable returns the ids of the passkeys whose signatures count at now, or the
// reason why there are none.
func (a *Account) Signable(now time.Time) (ids [][]byte, err error) {
	err = refuse(ErrSignatureRequired, "you have no passkey: enrol one first")
	for _, p := range a.Passkeys {
		if !p.Removed.IsZero() {
			continue
		}
		if _, invalid := a.valid(p.ID, now); invalid != nil {
			err = invalid
			continue
		}
		ids = append(ids, p.ID)
	}
	if len(ids) > 0 {
		return ids, nil
	}
	return nil, err
}

// Verify checks that one of the person's valid passkeys signed the challenge, and
// advances its signature counter.
func (a *Account) Verify(s *audit.SignatureFacts, challenge audit.Digest, now time.Time) error {
	p, err := a.valid(s.Credential, now)
	if err != nil {
		return err
	}
	if err := s.Verify(challenge, p.Public, p.RP); err != nil {
		return refuse(ErrSignatureRequired, "the signature of your passkey is not valid: "+err.Error())
	}
	// A counter that does not grow indicates a cloned authenticator (Web
	// Authentication, section 7.2, step 22).
	if count := s.Counter(); (count > 0 || p.SignCount > 0) && count <= p.SignCount {
		return refuse(ErrSignatureRequired, "your passkey may have been copied: its signature counter went back. Remove it and enrol another one")
	}
	p.SignCount = s.Counter()
	return nil
}

// PrepareVote returns the challenge that a person's passkey signs for a vote. It
// refuses everything that Vote would refuse.
func (b *Broker) PrepareVote(ctx context.Context, caller Caller, id RequestID, v Vote) (*Signing, error) {
	account, err := b.account(ctx, caller)
	if err != nil {
		return nil, err
	}
	r, rules, err := b.requestToDecide(ctx, &caller, id)
	if err != nil {
		return nil, err
	}
	groups, err := b.authorizeVote(ctx, caller, rules, r, r.Decision.Obligations.Approvals)
	if err != nil {
		return nil, err
	}
	v.Salt, v.Signature = audit.NewSalt(), nil
	a, err := r.approval(caller, v, groups, rules.Catalogue[r.Entitlement])
	if err != nil {
		return nil, err
	}
	tried := *r
	if err := tried.vote(a, caller.At); err != nil {
		return nil, err
	}
	return account.signing(id, v.Salt, a.facts().Challenge, caller.At)
}

// PrepareReview returns the challenge that a person's passkey signs for a review.
// It refuses everything that Review would refuse.
func (b *Broker) PrepareReview(ctx context.Context, caller Caller, id RequestID, v Vote) (*Signing, error) {
	account, err := b.account(ctx, caller)
	if err != nil {
		return nil, err
	}
	v.Salt, v.Signature = audit.NewSalt(), nil
	found, err := b.prepareVerdict(ctx, caller, id, v)
	if err != nil {
		return nil, err
	}
	if err := found.request.verdict(found.approval, caller.At); err != nil {
		return nil, err
	}
	return account.signing(id, v.Salt, found.approval.verdictFacts().ReviewChallenge, caller.At)
}
