package session

import (
	"bytes"
	"context"
	"slices"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Bounds of passkeys.
const (
	MaxPasskeys = 10               // of one person
	MaxKeyName  = 64               // bytes
	EnrolWithin = 10 * time.Minute // of the person's authentication at the provider
)

// Account returns the caller's account.
func (m *Manager) Account(ctx context.Context, caller broker.Caller) (*broker.Account, error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	return m.account(ctx, caller.Subject.ID)
}

func (m *Manager) account(ctx context.Context, person string) (a *broker.Account, err error) {
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		a, err = broker.AccountOf(tx, broker.PersonKey(person))
		return err
	})
	return a, broker.Unavailable(err)
}

// MayEnrol reports whether the person authenticated at their provider recently
// enough to change their passkeys.
func MayEnrol(who broker.Identity, now time.Time) bool {
	return who.Person != nil && now.Sub(who.Person.Login) <= EnrolWithin
}

// Enrol adds a passkey to the caller's account. The caller must have logged in just
// now: a passkey must not be enrolled by someone who finds an open browser. It
// counts after PasskeyWait, so that its person may notice a foreign one first.
func (m *Manager) Enrol(ctx context.Context, caller broker.Caller, p broker.Passkey) error {
	if err := caller.RequireSession(); err != nil {
		return err
	}
	if !MayEnrol(caller.Subject, caller.At) {
		return refuse(broker.ErrLoginStale, "enrolling needs a fresh login: log in again, and enrol within "+broker.FormatDuration(EnrolWithin))
	}
	if err := checkPasskey(p); err != nil {
		return err
	}
	p.Enrolled, p.Counts, p.VouchedBy, p.Removed = caller.At, caller.At.Add(m.cfg.PasskeyWait), "", time.Time{}
	record := audit.Record{Kind: audit.PasskeyEnrolled, Caller: caller.Actor.Party(), Passkey: signed(&p)}
	record.Passkey.Counts = p.Counts
	return m.withAccount(ctx, caller.Subject.ID, record, func(tx broker.Tx, a *broker.Account) error {
		if err := add(a, p); err != nil {
			return err
		}
		if m.cfg.NotifiesPeople() && caller.Subject.Person.Email != "" {
			tx.Put(broker.PasskeyNotice(caller.Subject, p.Counts, caller.At))
		}
		return nil
	})
}

func checkPasskey(p broker.Passkey) error {
	if err := broker.CheckLine(broker.ErrInvalidRequest, "name", p.Name, MaxKeyName); err != nil {
		return err
	}
	if len(p.ID) == 0 || len(p.ID) > audit.MaxCredential || len(p.Public) == 0 || len(p.Public) > audit.MaxPublic || p.RP == "" {
		return refuse(broker.ErrInvalidRequest, "passkeys of this kind are not supported")
	}
	return nil
}

// add appends a passkey. If the account is full, a removed passkey makes room.
func add(a *broker.Account, p broker.Passkey) error {
	if slices.ContainsFunc(a.Passkeys, func(old broker.Passkey) bool { return bytes.Equal(old.ID, p.ID) }) {
		return refuse(broker.ErrInvalidRequest, "this passkey was enrolled before")
	}
	if len(a.Passkeys) >= MaxPasskeys {
		i := slices.IndexFunc(a.Passkeys, func(old broker.Passkey) bool { return !old.Removed.IsZero() })
		if i < 0 {
			return refuse(broker.ErrInvalidRequest, "you have too many passkeys: remove one first")
		}
		a.Passkeys = slices.Delete(a.Passkeys, i, i+1)
	}
	a.Passkeys = append(a.Passkeys, p)
	return nil
}

// RemovePasskey removes a passkey of the caller. Signatures that it made before
// stay valid.
func (m *Manager) RemovePasskey(ctx context.Context, caller broker.Caller, credential []byte) error {
	if err := caller.RequireSession(); err != nil {
		return err
	}
	record := audit.Record{Kind: audit.PasskeyRemoved, Caller: caller.Actor.Party(), Passkey: &audit.PasskeyFacts{Credential: credential}}
	return m.withAccount(ctx, caller.Subject.ID, record, func(_ broker.Tx, a *broker.Account) error {
		p := a.Passkey(credential)
		if p == nil {
			return broker.ErrNotFound
		}
		p.Removed = caller.At
		return nil
	})
}

// withAccount changes an account in one transaction with its record.
func (m *Manager) withAccount(ctx context.Context, person string, record audit.Record, change func(broker.Tx, *broker.Account) error) error {
	key := broker.PersonKey(person)
	return m.write(ctx, []broker.Key{key}, record, func(tx broker.Tx) error {
		a, err := broker.AccountOf(tx, key)
		if err != nil {
			return err
		}
		if err := change(tx, a); err != nil {
			return err
		}
		tx.Put(a)
		return nil
	})
}

// PasskeyOf returns another person's passkey to someone who may vouch for it. It
// omits the passkey's name, which is private.
func (m *Manager) PasskeyOf(ctx context.Context, caller broker.Caller, person string, credential []byte) (*broker.Passkey, error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	a, err := m.account(ctx, person)
	if err != nil {
		return nil, err
	}
	p := a.Passkey(credential)
	switch {
	case p == nil:
		return nil, broker.ErrNotFound
	case m.cfg.People().Same(person, caller.Subject.ID):
		return nil, refuse(broker.ErrOwnRequest, "you cannot vouch for your own passkey, also not with another account")
	}
	found := *p
	found.Name = ""
	return &found, nil
}

// PrepareVouch returns the challenge that the caller's passkey signs to vouch for
// another person's passkey.
func (m *Manager) PrepareVouch(ctx context.Context, caller broker.Caller, person string, credential []byte) (*broker.Signing, error) {
	p, err := m.PasskeyOf(ctx, caller, person, credential)
	if err != nil {
		return nil, err
	}
	account, err := m.Account(ctx, caller)
	if err != nil {
		return nil, err
	}
	s := &broker.Signing{Nonce: broker.NewNonce()}
	s.Challenge = signed(p).Challenge(caller.Subject.ID, person, s.Nonce)
	s.Credentials, err = account.Signable(caller.At)
	return s, err
}

// Vouch makes another person's passkey count at once. The caller signs with a
// passkey that counts already.
func (m *Manager) Vouch(ctx context.Context, caller broker.Caller, person string, credential []byte, signature *audit.SignatureFacts) error {
	if _, err := m.PasskeyOf(ctx, caller, person, credential); err != nil {
		return err
	}
	record := audit.Record{
		Kind: audit.PasskeyVouched, Caller: m.party(caller.Actor), Subject: &audit.Party{ID: person, Kind: string(broker.KindPerson)},
		Passkey: &audit.PasskeyFacts{Credential: credential}, Signature: signature,
	}
	own, theirs := broker.PersonKey(caller.Subject.ID), broker.PersonKey(person)
	return m.write(ctx, []broker.Key{own, theirs}, record, func(tx broker.Tx) error {
		a, err := broker.AccountOf(tx, theirs)
		if err != nil {
			return err
		}
		p := a.Passkey(credential)
		switch {
		case p == nil:
			return broker.ErrNotFound
		case !caller.At.Before(p.Counts):
			return refuse(broker.ErrAlreadyVoted, "this passkey counts already")
		}
		voucher, err := broker.AccountOf(tx, own)
		if err != nil {
			return err
		}
		if err := voucher.Verify(signature, signed(p).Challenge(caller.Subject.ID, person, signature.Nonce), caller.At); err != nil {
			return err
		}
		p.Counts, p.VouchedBy = caller.At, caller.Subject.ID
		tx.Put(voucher)
		tx.Put(a)
		return nil
	})
}

// party returns a person as records show it, with all accounts.
func (m *Manager) party(who broker.Identity) *audit.Party {
	if accounts := m.cfg.People().Accounts(who.ID); len(accounts) > 1 {
		who.Accounts = accounts
	}
	return who.Party()
}

// signed returns the parts of a passkey that a voucher signs.
func signed(p *broker.Passkey) *audit.PasskeyFacts {
	return &audit.PasskeyFacts{Credential: p.ID, Public: p.Public, RP: p.RP}
}
