package broker

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// What bounds passkeys.
const (
	MaxPasskeys = 10               // of one person
	MaxKeyName  = 64               // bytes
	EnrolWithin = 10 * time.Minute // of proving to the provider who they are
	SignWithin  = 5 * time.Minute  // of being asked to
)

// A Signing is what a person's passkey is asked to sign. The nonce and the salt
// come back with the signature.
type Signing struct {
	Challenge   audit.Digest
	Nonce       audit.Digest
	Salt        [16]byte // of the comment's commitment
	Credentials [][]byte // the ids of the passkeys that count
}

// A challenge is what a person signs of one kind, of what they say to a request.
type challenge func(person, request string, nonce audit.Digest) audit.Digest

// signing gives the person a challenge to sign.
func (a *Account) signing(id RequestID, salt [16]byte, challenge challenge, now time.Time) (*Signing, error) {
	s := &Signing{Nonce: newNonce(), Salt: salt}
	s.Challenge = challenge(string(a.Person), id.String(), s.Nonce)
	var err error
	s.Credentials, err = a.signable(now)
	return s, err
}

func newNonce() (nonce audit.Digest) {
	_, _ = rand.Read(nonce[:]) // never fails
	return nonce
}

// counting gives the person's passkey that counts now, or says why there is
// none.
func (a *Account) counting(credential []byte, now time.Time) (*Passkey, error) {
	p := a.passkey(credential)
	switch {
	case p == nil:
		return nil, refuse(ErrSignatureRequired, "this is none of your passkeys: enrol it first")
	case now.Before(p.Counts):
		return nil, refuse(ErrSignatureRequired, "your passkey is new, and counts from "+p.Counts.UTC().Format(time.RFC3339)+" on, or once a colleague who has one vouches for it")
	}
	return p, nil
}

// signable gives the ids of the passkeys that count now, or says why there are
// none.
func (a *Account) signable(now time.Time) (ids [][]byte, err error) {
	err = refuse(ErrSignatureRequired, "you have no passkey: enrol one first")
	for _, p := range a.Passkeys {
		if !p.Removed.IsZero() {
			continue
		}
		if _, waits := a.counting(p.ID, now); waits != nil {
			err = waits
			continue
		}
		ids = append(ids, p.ID)
	}
	if len(ids) > 0 {
		return ids, nil
	}
	return nil, err
}

// verify says nil if one of the person's passkeys that count signed the
// challenge, and counts the signature.
func (a *Account) verify(s *audit.SignatureFacts, challenge audit.Digest, now time.Time) error {
	p, err := a.counting(s.Credential, now)
	if err != nil {
		return err
	}
	if err := s.Verify(challenge, p.Public, p.RP); err != nil {
		return refuse(ErrSignatureRequired, "the signature of your passkey does not hold: "+err.Error())
	}
	// A counter that does not grow tells of a copy (WebAuthn, section 7.2, step 22).
	if count := s.Counter(); (count > 0 || p.SignCount > 0) && count <= p.SignCount {
		return refuse(ErrSignatureRequired, "your passkey may have been copied: its counter went back. Remove it, and enrol another")
	}
	p.SignCount = s.Counter()
	return nil
}

// Account gives what is kept of a person.
func (b *Broker) Account(ctx context.Context, caller Caller) (a *Account, err error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		a, err = AccountOf(tx, PersonKey(caller.Subject.ID))
		return err
	})
	return a, Unavailable(err)
}

// PrepareVote gives what a person's passkey signs for a vote, or refuses the
// vote as Vote would.
func (b *Broker) PrepareVote(ctx context.Context, caller Caller, id RequestID, v Vote) (*Signing, error) {
	account, err := b.Account(ctx, caller)
	if err != nil {
		return nil, err
	}
	r, rules, err := b.forApprover(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	groups, err := b.mayVote(ctx, caller, rules, r, r.Decision.Obligations.Approvals)
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

// PrepareReview gives what a person's passkey signs for a review, or refuses the
// review as Review would.
func (b *Broker) PrepareReview(ctx context.Context, caller Caller, id RequestID, v Vote) (*Signing, error) {
	account, err := b.Account(ctx, caller)
	if err != nil {
		return nil, err
	}
	v.Salt, v.Signature = audit.NewSalt(), nil
	found, _, err := b.finding(ctx, caller, id, v)
	if err != nil {
		return nil, err
	}
	if err := found.r.verdict(found.a, caller.At); err != nil {
		return nil, err
	}
	return account.signing(id, v.Salt, found.a.verdictFacts().ReviewChallenge, caller.At)
}

// Enrol adds a passkey to a person's, who has just logged in. It counts after a
// day, so that its person may notice one that is not theirs.
func (b *Broker) Enrol(ctx context.Context, caller Caller, p Passkey) error {
	if err := caller.RequireSession(); err != nil {
		return err
	}
	if err := caller.Subject.justLoggedIn(caller.At); err != nil {
		return err
	}
	if err := CheckLine(ErrInvalidRequest, "name", p.Name, MaxKeyName); err != nil {
		return err
	}
	if len(p.ID) == 0 || len(p.ID) > audit.MaxCredential || len(p.Public) == 0 || len(p.Public) > audit.MaxPublic || p.RP == "" {
		return refuse(ErrInvalidRequest, "this passkey is of a kind that is not supported")
	}
	p.Enrolled, p.Counts, p.VouchedBy, p.Removed = caller.At, caller.At.Add(b.cfg.PasskeyWait), "", time.Time{}
	record := audit.Record{Kind: audit.PasskeyEnrolled, Caller: caller.Actor.Party(), Passkey: p.facts()}
	record.Passkey.Counts, record.Passkey.Public, record.Passkey.RP = p.Counts, p.Public, p.RP
	key := PersonKey(caller.Subject.ID)
	_, err := b.write(ctx, []Key{key}, record, func(tx Tx) error {
		a, err := AccountOf(tx, key)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(a.Passkeys, func(old Passkey) bool { return bytes.Equal(old.ID, p.ID) }) {
			return refuse(ErrInvalidRequest, "this passkey was enrolled before")
		}
		if len(a.Passkeys) >= MaxPasskeys { // removed ones are forgotten first
			i := slices.IndexFunc(a.Passkeys, func(old Passkey) bool { return !old.Removed.IsZero() })
			if i < 0 {
				return refuse(ErrInvalidRequest, "you have too many passkeys: remove one first")
			}
			a.Passkeys = slices.Delete(a.Passkeys, i, i+1)
		}
		a.Passkeys = append(a.Passkeys, p)
		tx.Put(a)
		notifyEnrolled(tx, caller.Subject, &p, b.Rules(), caller.At)
		return nil
	})
	return err
}

// RemovePasskey makes what a passkey of the caller's signs later not count.
func (b *Broker) RemovePasskey(ctx context.Context, caller Caller, credential []byte) error {
	if err := caller.RequireSession(); err != nil {
		return err
	}
	record := audit.Record{Kind: audit.PasskeyRemoved, Caller: caller.Actor.Party(), Passkey: &audit.PasskeyFacts{Credential: credential}}
	return b.withAccount(ctx, caller.Subject.ID, record, func(a *Account) error {
		p := a.passkey(credential)
		if p == nil {
			return ErrNotFound
		}
		p.Removed = caller.At
		return nil
	})
}

// PasskeyOf gives somebody's passkey that waits, to a person who might vouch
// for it. Its name is not told: it is its person's.
func (b *Broker) PasskeyOf(ctx context.Context, caller Caller, person string, credential []byte) (*Passkey, error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	var a *Account
	err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		a, err = AccountOf(tx, PersonKey(person))
		return err
	})
	if err != nil {
		return nil, Unavailable(err)
	}
	p := a.passkey(credential)
	switch {
	case p == nil:
		return nil, ErrNotFound
	case person == caller.Subject.ID:
		return nil, refuse(ErrOwnRequest, "nobody vouches for a passkey of their own")
	}
	found := *p
	found.Name = ""
	return &found, nil
}

// PrepareVouch gives what a person's passkey signs to vouch for somebody else's.
func (b *Broker) PrepareVouch(ctx context.Context, caller Caller, person string, credential []byte) (*Signing, error) {
	p, err := b.PasskeyOf(ctx, caller, person, credential)
	if err != nil {
		return nil, err
	}
	account, err := b.Account(ctx, caller)
	if err != nil {
		return nil, err
	}
	s := &Signing{Nonce: newNonce()}
	s.Challenge = p.vouched().Challenge(caller.Subject.ID, person, s.Nonce)
	s.Credentials, err = account.signable(caller.At)
	return s, err
}

// Vouch makes somebody else's passkey count at once, by the signature of a
// passkey that counts already.
func (b *Broker) Vouch(ctx context.Context, caller Caller, person string, credential []byte, signature *audit.SignatureFacts) error {
	p, err := b.PasskeyOf(ctx, caller, person, credential)
	if err != nil {
		return err
	}
	record := audit.Record{
		Kind: audit.PasskeyVouched, Caller: caller.Actor.Party(), Subject: &audit.Party{ID: person, Kind: string(KindPerson)},
		Passkey: p.facts(), Signature: signature,
	}
	_, err = b.write(ctx, []Key{PersonKey(caller.Subject.ID), PersonKey(person)}, record, func(tx Tx) error {
		a, err := AccountOf(tx, PersonKey(person))
		if err != nil {
			return err
		}
		current := a.passkey(credential)
		switch {
		case current == nil:
			return ErrNotFound
		case !caller.At.Before(current.Counts):
			return refuse(ErrAlreadyVoted, "it counts already")
		}
		voucher, err := AccountOf(tx, PersonKey(caller.Subject.ID))
		if err != nil {
			return err
		}
		if err := voucher.verify(signature, current.vouched().Challenge(caller.Subject.ID, person, signature.Nonce), caller.At); err != nil {
			return err
		}
		current.Counts, current.VouchedBy = caller.At, caller.Subject.ID
		tx.Put(voucher)
		tx.Put(a)
		return nil
	})
	return err
}

// passkey gives a passkey that is not removed; nil: there is none.
func (a *Account) passkey(credential []byte) *Passkey {
	i := slices.IndexFunc(a.Passkeys, func(p Passkey) bool { return bytes.Equal(p.ID, credential) && p.Removed.IsZero() })
	if i < 0 {
		return nil
	}
	return &a.Passkeys[i]
}

func (p *Passkey) facts() *audit.PasskeyFacts { return &audit.PasskeyFacts{Credential: p.ID} }

// vouched is the passkey as whoever vouches for it signs it.
func (p *Passkey) vouched() *audit.PasskeyFacts {
	return &audit.PasskeyFacts{Credential: p.ID, Public: p.Public, RP: p.RP}
}

// MayEnrol says whether a person has just proved to their provider who they
// are.
func (who Identity) MayEnrol(now time.Time) bool {
	return who.Person != nil && now.Sub(who.Person.Login) <= EnrolWithin
}

// justLoggedIn refuses who proved themselves to their provider too long ago for
// what must not be done by whoever finds an open browser.
func (who Identity) justLoggedIn(now time.Time) error {
	if !who.MayEnrol(now) {
		return refuse(ErrLoginStale, "this needs a fresh login: log in again, and do it within "+Short(EnrolWithin))
	}
	return nil
}

// withAccount changes what is kept of a person, in one transaction with its
// record.
func (b *Broker) withAccount(ctx context.Context, person string, record audit.Record, change func(*Account) error) error {
	key := PersonKey(person)
	_, err := b.write(ctx, []Key{key}, record, func(tx Tx) error {
		a, err := AccountOf(tx, key)
		if err != nil {
			return err
		}
		if err := change(a); err != nil {
			return err
		}
		tx.Put(a)
		return nil
	})
	return err
}
