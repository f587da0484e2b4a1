package signal

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash/maphash"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// The causes of the facts that events state.
const (
	causeDisabled = "account_disabled"
	causePurged   = "account_purged"
)

// The details of these facts.
const (
	detailEvent  = "event"
	detailAt     = "at" // when it happened, RFC 3339
	detailReason = "reason"
)

// effect ends what an event names. It may be repeated.
func (m *Manager) effect(ctx context.Context, rule Rule, e Event, accounts []string, now time.Time) (Outcome, error) {
	if len(accounts) == 0 { // a session, of which the person is not named
		changed, err := m.revoke(ctx, rule, e, "", now)
		return appliedIf(changed), err
	}
	outcome := Unchanged
	for _, account := range accounts {
		one, err := m.effectOn(ctx, rule, e, account, now)
		if err != nil {
			return Failed, err
		}
		if one == Applied || outcome == Unchanged {
			outcome = one
		}
	}
	return outcome, nil
}

func appliedIf(changed bool) Outcome {
	if changed {
		return Applied
	}
	return Unchanged
}

// effectOn is effect for one account.
func (m *Manager) effectOn(ctx context.Context, rule Rule, e Event, account string, now time.Time) (Outcome, error) {
	lock := &m.people[maphash.String(m.seed, account)%uint64(len(m.people))]
	lock.Lock()
	defer lock.Unlock()
	switch e.Kind {
	case KindSessionRevoked, KindCredentialChange:
		// A passkey of the broker opens no session, and signs only in one. So its person has
		// to log in at the provider again, with what works there now.
		changed, err := m.revoke(ctx, rule, e, account, now)
		return appliedIf(changed), err
	case KindAccountDisabled, KindAccountPurged:
		outcome, err := restated(func() (Outcome, error) { return m.endPerson(ctx, e, account, now) })
		if err != nil || outcome == Superseded {
			return outcome, err
		}
		// An interrupted call may have ended the person and no session.
		changed, err := m.revoke(ctx, rule, e, account, now)
		if changed {
			outcome = Applied
		}
		return outcome, err
	case KindAccountEnabled:
		return restated(func() (Outcome, error) { return m.enablePerson(ctx, e, account, now) })
	}
	return Unsupported, nil
}

// maxRestated bounds how often an effect is decided on again.
const maxRestated = 20

// restated decides on an effect again while other processes apply events about the same
// person.
func restated(decide func() (Outcome, error)) (outcome Outcome, err error) {
	for range maxRestated {
		if outcome, err = decide(); !errors.Is(err, broker.ErrRestated) {
			return outcome, err
		}
	}
	return outcome, err
}

// revoke ends sessions of a person, or the one session that the event names.
func (m *Manager) revoke(ctx context.Context, rule Rule, e Event, account string, now time.Time) (bool, error) {
	_, sub, _ := strings.Cut(account, "/")
	r := session.Revocation{Provider: rule.Provider, Sub: sub, SID: e.Subject.SID, At: e.At, Signal: e.facts()}
	if e.Kind != KindSessionRevoked {
		r.SID = ""
	}
	return m.cfg.Sessions.Revoke(ctx, r, now)
}

// facts returns what a record states about the event.
func (e Event) facts() *audit.SignalFacts {
	return &audit.SignalFacts{Transmitter: e.Transmitter, Event: string(e.Kind), ID: audit.Digest(sha256.Sum256([]byte(e.ID)))}
}

// stated returns what the transmitter stated about a person before; nil: nothing. at is when
// that happened.
func (m *Manager) stated(ctx context.Context, transmitter, account string) (fact *broker.Fact, at time.Time, err error) {
	s, err := m.cfg.Broker.Facts.Standing(ctx, person(account))
	if err != nil {
		return nil, at, ignoreNotFound(err)
	}
	if fact = s.Find(Source(transmitter)); fact != nil {
		at, err = time.Parse(time.RFC3339Nano, fact.Details[detailAt])
	}
	return fact, at, err
}

// endPerson states that a person's account has ended.
func (m *Manager) endPerson(ctx context.Context, e Event, account string, now time.Time) (Outcome, error) {
	before, at, err := m.stated(ctx, e.Transmitter, account)
	cause := causeDisabled
	if e.Kind == KindAccountPurged {
		cause = causePurged
	}
	switch {
	case err != nil:
		return Failed, err
	case before != nil && (e.At.Before(at) && e.Kind != KindAccountPurged):
		return Superseded, nil
	case before != nil && before.State == broker.FactEnded && (before.Cause == causePurged || before.Cause == cause && e.At.Equal(at)):
		return Unchanged, nil
	}
	return Applied, m.report(ctx, e, account, before, broker.FactEnded, cause, now)
}

// enablePerson states that a person's account works again. A purged account never does: if
// the provider uses its identifier again, the account is another one (RISC, section 2.2).
func (m *Manager) enablePerson(ctx context.Context, e Event, account string, now time.Time) (Outcome, error) {
	before, at, err := m.stated(ctx, e.Transmitter, account)
	switch {
	case err != nil:
		return Failed, err
	case before == nil || before.State == broker.FactActive && !e.At.After(at) || before.Cause == causePurged:
		return Unchanged, nil
	case !e.At.After(at):
		return Superseded, nil
	}
	return Applied, m.report(ctx, e, account, before, broker.FactActive, "", now)
}

// report states what an event means, unless the transmitter has stated something else than
// before since.
func (m *Manager) report(ctx context.Context, e Event, account string, before *broker.Fact, state broker.FactState, cause string, now time.Time) error {
	fact := broker.Fact{Source: Source(e.Transmitter), State: state, Cause: cause, Details: map[string]string{
		detailEvent: string(e.Kind), detailAt: e.At.UTC().Format(time.RFC3339Nano),
	}}
	if e.Reason != "" {
		fact.Details[detailReason] = e.Reason
	}
	return m.cfg.Broker.Facts.ReportAfter(ctx, broker.Caller{At: now}, person(account), before, fact)
}

// Clear forgets what a transmitter stated about a person: the way back from an event that
// was wrong, if the transmitter does not send the opposite one.
func (m *Manager) Clear(ctx context.Context, caller broker.Caller, transmitter, account string) error {
	if err := m.may(ctx, caller); err != nil {
		return err
	}
	if m.isAbout(caller, account) {
		return refuse(broker.ErrOwnRequest, "the statement is about you: another person must clear it")
	}
	if _, ok := m.cfg.Rules[transmitter]; !ok {
		return refuse(broker.ErrNotFound, "there is no transmitter of this name")
	}
	before, _, err := m.stated(ctx, transmitter, account)
	if err != nil {
		return err
	}
	if before == nil {
		return refuse(broker.ErrNotFound, "the transmitter states nothing about this person")
	}
	return m.cfg.Broker.Facts.Forget(ctx, caller, person(account), Source(transmitter))
}

func refuse(err error, detail string) error { return &broker.Refusal{Err: err, Detail: detail} }

// isAbout reports whether the caller is the person with an account.
func (m *Manager) isAbout(caller broker.Caller, account string) bool {
	return account != "" && m.cfg.Broker.Rules().People.Same(caller.Actor.ID, account)
}

// may refuses callers who may not decide on held events: only people who may use the kill
// switch may, and root on the admin socket.
func (m *Manager) may(ctx context.Context, caller broker.Caller) error {
	if caller.Actor.Kind == broker.KindOperator {
		return nil
	}
	if err := caller.RequireSession(); err != nil {
		return err
	}
	if !m.cfg.Broker.May(ctx, caller, broker.ActionBlock) {
		return refuse(broker.ErrDenied, "security events are for people whom policy permits to block, and for the admin socket")
	}
	return nil
}
