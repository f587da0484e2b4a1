package signal

import (
	"context"
	"fmt"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A transmitter that has gone mad, or is in the wrong hands, could end everyone's access at
// once. So the broker counts what the events of a minute end, and holds all further events
// of the transmitter once it is too much. They take effect, or are discarded, when a person
// has decided (decide.go). The counts and the held events are rows, so a restart changes
// nothing.

const (
	window  = 60     // seconds
	maxHeld = 10_000 // events of one transmitter
)

// A toll is what an event ends, and what there is in all.
type toll struct{ leases, people, allLeases, allPeople int64 }

// admit decides whether an event may take effect now. The outcome Applied means that it
// may.
func (m *Manager) admit(ctx context.Context, rule Rule, e Event, accounts []string, now time.Time) (Outcome, error) {
	t, err := m.toll(ctx, e, accounts, now)
	if err != nil {
		return Failed, err
	}
	held := &broker.HeldSignal{
		ID: e.ID, Kind: string(e.Kind), Issued: e.Issued, At: e.At, Account: e.Subject.Account, Email: e.Subject.Email, SID: e.Subject.SID,
		Reason: e.Reason, Held: now,
	}
	record, tripped := audit.Record{}, false
	outcome, err := outcomeOf(m.updateStream(ctx, e.Transmitter, []broker.Key{keyOf(e)}, func(tx broker.Tx, s *broker.Stream) error {
		if _, err := broker.Get[*broker.Signal](tx, keyOf(e)); err == nil {
			return &errOutcome{Replayed}
		} else if ignoreNotFound(err) != nil {
			return err
		}
		held.HeldSignalKey, tripped = broker.HeldSignalKey{}, false // the function may run again
		if s.Tripped.IsZero() && s.Holding == 0 {
			if !m.exceeds(rule, s, t, now) {
				count(s, t, now)
				return nil
			}
			tripped = true
			if err := m.trip(tx, rule, s, e, t, now, &record); err != nil {
				return err
			}
		}
		if s.Holding >= maxHeld {
			return &errOutcome{Full}
		}
		held.HeldSignalKey = broker.HeldSignalKey{Transmitter: e.Transmitter, Number: s.Next}
		s.Next++
		s.Holding++
		tx.Put(held)
		memory := rule.memory(e, now)
		memory.Expires = memory.Expires.Add(heldFor)
		tx.Put(memory)
		return nil
	}))
	if err == nil && outcome == Applied && held.Number != 0 {
		outcome = Held
	}
	if tripped && outcome == Held {
		m.cfg.Log.ErrorContext(ctx, "a transmitter would end too much access within a minute: its events are held until a person decides",
			"transmitter", e.Transmitter, "leases", record.Signal.Leases, "people", record.Signal.People)
	}
	return outcome, err
}

// heldFor is how much longer a held event is remembered: a person may decide late.
const heldFor = 30 * 24 * time.Hour

// trip holds the events of a transmitter from now on, and notifies the operators.
func (m *Manager) trip(tx broker.Tx, rule Rule, s *broker.Stream, e Event, t toll, now time.Time, record *audit.Record) error {
	leases, people := sum(s.Leases), sum(s.People)
	*record = audit.Record{Kind: audit.SignalHeld, Signal: e.facts()}
	record.Signal.Leases, record.Signal.People = leases+t.leases, people+t.people
	entry, err := record.Entry()
	if err != nil {
		return fmt.Errorf("encoding the record %s: %w", record.Kind, err)
	}
	tx.Append(entry)
	s.Tripped = now
	if rule.Page != "" {
		broker.Announce(tx, m.cfg.Broker.Rules(), broker.Announcement{
			Event: broker.NoticeSignalsHeld,
			Title: fmt.Sprintf("Security events of %s are held: a person must decide", e.Transmitter),
			Text: fmt.Sprintf("Within a minute, the events of the transmitter %s would end %d leases and the access of %d people, more than the configured share. "+
				"All further events of this transmitter are held and have no effect until a person releases or discards them.", e.Transmitter, record.Signal.Leases, record.Signal.People),
			Page: "/ui/signals/" + e.Transmitter,
		}, []string{rule.Page}, nil, now)
	}
	return nil
}

// exceeds reports whether the events of the last minute and this one end too much.
func (m *Manager) exceeds(rule Rule, s *broker.Stream, t toll, now time.Time) bool {
	prune(s, now)
	if t.leases == 0 && t.people == 0 {
		return false
	}
	leases, people := sum(s.Leases)+t.leases, sum(s.People)+t.people
	over := func(n, all int64) bool {
		return n > int64(rule.Always) && n*100 > int64(rule.MostPercent)*all
	}
	// What ended within the minute is no longer among those that are left.
	return over(leases, t.allLeases+sum(s.Leases)) || over(people, max(t.allPeople, people))
}

func prune(s *broker.Stream, now time.Time) {
	for _, counts := range []map[int64]int{s.Leases, s.People} {
		for second := range counts {
			if second <= now.Unix()-window {
				delete(counts, second)
			}
		}
	}
}

func count(s *broker.Stream, t toll, now time.Time) {
	if t.leases == 0 && t.people == 0 {
		return
	}
	if s.Leases == nil {
		s.Leases = map[int64]int{}
	}
	if s.People == nil {
		s.People = map[int64]int{}
	}
	s.Leases[now.Unix()] += int(t.leases)
	s.People[now.Unix()] += int(t.people)
}

func sum(counts map[int64]int) (n int64) {
	for _, c := range counts {
		n += int64(c)
	}
	return n
}

// toll returns what an event ends. The end of a session ends no lease.
func (m *Manager) toll(ctx context.Context, e Event, accounts []string, now time.Time) (t toll, err error) {
	if e.Kind != KindAccountDisabled && e.Kind != KindAccountPurged {
		return t, nil
	}
	for _, account := range accounts {
		holds, err := m.cfg.Broker.Facts.Holds(ctx, person(account), now)
		if err != nil {
			return t, err
		}
		if !holds {
			continue // it has ended already
		}
		t.people++
		leases, err := m.leasesOf(ctx, account, now)
		if err != nil {
			return t, err
		}
		t.leases += leases
	}
	if t.people == 0 {
		return t, nil
	}
	if t.allPeople, err = m.cfg.Reader.CountPeople(ctx); err != nil {
		return t, err
	}
	t.allLeases, err = m.cfg.Reader.CountLive(ctx, now)
	return t, err
}

// leasesOf counts the live leases that rest on a person: those of all of the person's
// accounts, and those of workloads for which no one else is accountable.
func (m *Manager) leasesOf(ctx context.Context, account string, now time.Time) (n int64, err error) {
	rules := m.cfg.Broker.Rules()
	var queries []broker.LeaseQuery
	for _, linked := range rules.People.Accounts(account) {
		queries = append(queries, broker.LeaseQuery{Holder: linked})
	}
	for _, l := range rules.Labels {
		alone, err := m.aloneAccountable(ctx, rules, l.Accountable, account, now)
		if err != nil {
			return 0, err
		}
		if alone {
			queries = append(queries, broker.LeaseQuery{Under: l.Under})
		}
	}
	for _, q := range queries {
		q.Live, q.Now, q.Limit = true, now, pageMax
		for more := true; more && n < maxCounted; {
			err := m.cfg.Store.View(ctx, func(tx broker.Tx) error {
				page, next, err := tx.Leases(q)
				n += int64(len(page))
				q.Before, more = next, !next.IsZero()
				return err
			})
			if err != nil {
				return 0, broker.Unavailable(err)
			}
		}
	}
	return n, nil
}

const (
	pageMax    = 1000
	maxCounted = 100_000
)

// aloneAccountable reports whether a person is accountable, and everyone else who is has
// ended.
func (m *Manager) aloneAccountable(ctx context.Context, rules *broker.Rules, accountable []string, account string, now time.Time) (bool, error) {
	if !rules.People.Contains(accountable, account) {
		return false, nil
	}
	for _, other := range accountable {
		if rules.People.Same(other, account) {
			continue
		}
		if holds, err := m.cfg.Broker.Facts.Holds(ctx, person(other), now); err != nil || holds {
			return false, err
		}
	}
	return true, nil
}
