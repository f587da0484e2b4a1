package broker

import (
	"context"
	"time"
)

// CauseOrphaned is the cause of a workload's end whose accountable people have all ended.
const CauseOrphaned = "orphaned"

// accounted refuses an orphan: a workload whose accountable people have all ended, once the
// operator's grace is over. A workload for which no one was ever named is not an orphan. The
// footing gets the standing of one accountable person who is still there, so that no
// credential is issued if that person ends at the same moment.
func (b *Broker) accounted(ctx context.Context, rules *Rules, f *footing, who Identity, now time.Time) error {
	if len(who.Accountable) == 0 {
		return nil
	}
	var last time.Time
	var seen []seenStanding
	for _, person := range who.Accountable {
		ended, standings, err := b.personEnded(ctx, rules, person, now)
		if err != nil {
			return err
		}
		if ended.IsZero() {
			f.seen = append(f.seen, standings...)
			return nil
		}
		seen = append(seen, standings...)
		if ended.After(last) {
			last = ended
		}
	}
	f.seen = append(f.seen, seen...)
	if now.Before(last.Add(rules.OrphanGrace[who.Kind])) {
		return nil
	}
	return refuse(ErrFactEnded, "everyone accountable for this workload has left: the operators must name a successor in attest.workloads")
}

// personEnded returns when a person ended, with any account; zero if the person has not.
// The standings are those of all accounts.
func (b *Broker) personEnded(ctx context.Context, rules *Rules, person string, now time.Time) (ended time.Time, seen []seenStanding, err error) {
	for _, account := range rules.People.Accounts(person) {
		s, err := b.Facts.read(ctx, StandingKey{FactPerson, account})
		if err != nil {
			return ended, nil, err
		}
		seen = append(seen, seenStanding{s.StandingKey, s.Version})
		switch b.Facts.Fault(s, now) {
		case "", CauseStale, CauseNotBegun, CauseUnknown:
			// Only people who were there can leave. A silent source makes no orphans.
		default:
			ended = earlier(ended, s.endedAt(now))
		}
	}
	return ended, seen, nil
}

// SessionEnded reports whether a session of a person that was opened at created has ended at
// now, because the person's access ended since, or has not begun. A source that is silent, or
// does not know the person, ends no session: what the person may do is decided by itself.
func (f *Facts) SessionEnded(ctx context.Context, person string, created, now time.Time) (bool, error) {
	s, err := f.read(ctx, StandingKey{FactPerson, person})
	if err != nil {
		return false, err
	}
	switch f.Fault(s, now) {
	case "", CauseStale, CauseUnknown:
		return !created.After(s.Fallen), nil
	}
	return true, nil
}

// endedAt returns when a standing that does not hold ended: when the broker noted it, or
// the end that it is about to note.
func (s *Standing) endedAt(now time.Time) time.Time {
	at := now
	if !s.Ended.IsZero() {
		at = s.Ended
	}
	if until := s.Until(); !until.IsZero() && until.Before(at) {
		at = until
	}
	return at
}

// present reports whether a person has not ended, with any account. A person who is listed
// but ended approves and assesses nothing.
func (b *Broker) present(ctx context.Context, rules *Rules, person string, now time.Time) bool {
	for _, account := range rules.People.Accounts(person) {
		if holds, err := b.Facts.Holds(ctx, StandingKey{FactPerson, account}, now); err != nil || !holds {
			return false
		}
	}
	return true
}

// voidApprovals notes the approvals by people who have ended since, even if they are back: they
// count neither for the last vote nor for a collection. The footing gets the standings of all approvers.
func (b *Broker) voidApprovals(ctx context.Context, rules *Rules, f *footing, r *Request, now time.Time) error {
	r.Void = nil
	for _, a := range r.Approvals {
		if !a.Approve {
			continue // a denial stays
		}
		for _, account := range rules.People.Accounts(a.Person) {
			s, err := b.Facts.read(ctx, StandingKey{FactPerson, account})
			if err != nil {
				return err
			}
			f.seen = append(f.seen, seenStanding{s.StandingKey, s.Version})
			if b.Facts.Fault(s, now) != "" || !a.At.After(s.Fallen) {
				r.Void = append(r.Void, a.Person)
			}
		}
	}
	return nil
}
