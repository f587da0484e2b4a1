package signal

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"slices"
	"time"

	"accessbroker.internal/broker"
)

// The states of a stream (SSF, section 8.1.2.1).
const (
	streamEnabled = "enabled"
	streamPaused  = "paused"
)

// maxExpected is the number of requested verifications that may still be answered.
const maxExpected = 2

func hashState(state string) string {
	sum := sha256.Sum256([]byte(state))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Expect notes that a verification with this state was requested.
func (m *Manager) Expect(ctx context.Context, transmitter, state string, _ time.Time) error {
	return m.updateStream(ctx, transmitter, nil, func(_ broker.Tx, s *broker.Stream) error {
		s.Expected = append([]string{hashState(state)}, s.Expected...)
		s.Expected = s.Expected[:min(len(s.Expected), maxExpected)]
		return nil
	})
}

// updateStream changes a stream in a transaction.
func (m *Manager) updateStream(ctx context.Context, transmitter string, reads []broker.Key, f func(broker.Tx, *broker.Stream) error) error {
	reads = append(slices.Clone(reads), broker.StreamKey(transmitter))
	return broker.Unavailable(m.cfg.Store.Update(ctx, reads, func(tx broker.Tx) error {
		s, err := streamOf(tx, transmitter)
		if err != nil {
			return err
		}
		if err := f(tx, s); err != nil {
			return err
		}
		tx.Put(s)
		return nil
	}))
}

// errOutcome ends a transaction with an outcome.
type errOutcome struct{ outcome Outcome }

func (e *errOutcome) Error() string { return string(e.outcome) }

// outcomeOf returns the outcome of a transaction.
func outcomeOf(err error) (Outcome, error) {
	if end := (*errOutcome)(nil); errors.As(err, &end) {
		return end.outcome, nil
	}
	if err != nil {
		return Failed, err
	}
	return Applied, nil
}

// verified takes a verification event (SSF, section 8.1.4.1). Its state must be that of a
// request, unless the transmitter sends it on its own initiative.
func (m *Manager) verified(ctx context.Context, rule Rule, e Event, now time.Time) (Outcome, error) {
	if rule.StreamID != "" && e.Subject.Stream != "" && e.Subject.Stream != rule.StreamID {
		return UnknownSubject, nil
	}
	outcome, err := outcomeOf(m.updateStream(ctx, e.Transmitter, []broker.Key{keyOf(e)}, func(tx broker.Tx, s *broker.Stream) error {
		if _, err := broker.Get[*broker.Signal](tx, keyOf(e)); err == nil {
			return &errOutcome{Replayed}
		} else if ignoreNotFound(err) != nil {
			return err
		}
		if e.State != "" {
			i := slices.IndexFunc(s.Expected, func(want string) bool {
				return subtle.ConstantTimeCompare([]byte(want), []byte(hashState(e.State))) == 1
			})
			if i < 0 {
				return &errOutcome{WrongState}
			}
			s.Expected = slices.Delete(s.Expected, i, i+1)
		}
		tx.Put(rule.memory(e, now))
		return nil
	}))
	if err != nil || outcome != Applied {
		return outcome, err
	}
	return outcome, m.confirm(ctx, e.Transmitter, now)
}

// streamUpdated takes a new status of the stream (SSF, section 8.1.5). A stream that is
// paused or disabled delivers nothing, so its transmitter counts as silent.
func (m *Manager) streamUpdated(ctx context.Context, rule Rule, e Event, now time.Time) (Outcome, error) {
	if rule.StreamID != "" && e.Subject.Stream != "" && e.Subject.Stream != rule.StreamID {
		return UnknownSubject, nil
	}
	outcome, err := outcomeOf(m.updateStream(ctx, e.Transmitter, []broker.Key{keyOf(e)}, func(tx broker.Tx, s *broker.Stream) error {
		if _, err := broker.Get[*broker.Signal](tx, keyOf(e)); err == nil {
			return &errOutcome{Replayed}
		} else if ignoreNotFound(err) != nil {
			return err
		}
		if e.At.Before(s.StatusAt) {
			return &errOutcome{Superseded}
		}
		s.Status, s.StatusAt = e.Status, e.At
		tx.Put(rule.memory(e, now))
		return nil
	}))
	if err != nil || outcome != Applied {
		return outcome, err
	}
	if e.Status != streamEnabled {
		m.cfg.Log.WarnContext(ctx, "a transmitter stopped its stream of security events", "transmitter", e.Transmitter, "status", e.Status)
	}
	return outcome, m.confirm(ctx, e.Transmitter, now)
}
