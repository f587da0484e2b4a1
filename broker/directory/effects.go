package directory

import (
	"context"
	"errors"
	"time"

	"accessbroker.internal/broker"
)

// reportUser states what the directory knows about a user's person. It repeats what it
// stated before, in case that a report was lost.
func (d *Directory) reportUser(ctx context.Context, caller broker.Caller, s *source, row *broker.DirectoryUser) error {
	if row.Person == "" || d.facts == nil {
		return nil
	}
	fact := activeFact(s.Name, row.Ends, row.Sponsor)
	if !row.Active {
		fact.State, fact.Cause = broker.FactEnded, "account_disabled"
	}
	return d.facts.Report(ctx, caller, broker.StandingKey{Kind: broker.FactPerson, Name: row.Person}, fact)
}

// activeFact returns what a directory states about a person with access.
func activeFact(sourceName string, ends time.Time, sponsor string) broker.Fact {
	fact := broker.Fact{Source: FactSource(sourceName), State: broker.FactActive, Until: ends}
	if sponsor != "" {
		fact.Details = map[string]string{broker.DetailSponsor: sponsor}
	}
	return fact
}

// Repeat repeats what the directory states about a user who did not change.
func (d *Directory) Repeat(ctx context.Context, caller broker.Caller, row *broker.DirectoryUser) error {
	s, err := d.source(row.Source)
	if err != nil {
		return err
	}
	defer d.locks.lock(row.ID)()
	return d.reportUser(ctx, caller, s, row)
}

// reportEnd states that a person has no access any more.
func (d *Directory) reportEnd(ctx context.Context, caller broker.Caller, s *source, person, cause string) error {
	if person == "" || d.facts == nil {
		return nil
	}
	fact := broker.Fact{Source: FactSource(s.Name), State: broker.FactWithdrawn, Cause: cause}
	if cause == "account_disabled" {
		fact.State = broker.FactEnded
	}
	return d.facts.Report(ctx, caller, broker.StandingKey{Kind: broker.FactPerson, Name: person}, fact)
}

// Heard notes that the client of a source has called. A source that is silent for longer
// than the operator allows is not believed any more.
func (d *Directory) Heard(ctx context.Context, sourceName string, at time.Time) error {
	if s := d.sources[sourceName]; s != nil {
		s.heard.Store(at.UnixMilli())
	}
	if d.facts == nil {
		return nil
	}
	return d.facts.Confirm(ctx, FactSource(sourceName), at)
}

// reconcile states again, after a start, what the facts do not know: persons without a
// fact, users who are not active, and ends that are earlier. It never states that a person is active against a
// fact that ended: a change that was interrupted is repeated by its client.
func (d *Directory) reconcile(ctx context.Context, now time.Time) error {
	caller := broker.Caller{At: now}
	type state struct {
		source, person, sponsor string
		active                  bool
		ends                    time.Time
	}
	var all []state
	d.mu.RLock()
	for person, u := range d.people {
		all = append(all, state{u.source.Name, person, u.sponsor, u.active, u.ends})
	}
	d.mu.RUnlock()
	var reports []broker.Report
	for _, s := range all {
		key := broker.StandingKey{Kind: broker.FactPerson, Name: s.person}
		known, err := d.facts.Standing(ctx, key)
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return err
		}
		var fact *broker.Fact
		if err == nil {
			fact = known.Find(FactSource(s.source))
		}
		switch {
		case s.active && (fact == nil || fact.State == broker.FactActive && endsEarlier(s.ends, fact.Until)):
			reports = append(reports, broker.Report{Subject: key, Fact: activeFact(s.source, s.ends, s.sponsor)})
		case !s.active && (fact == nil || fact.State == broker.FactActive):
			reports = append(reports, broker.Report{Subject: key, Fact: broker.Fact{Source: FactSource(s.source), State: broker.FactEnded, Cause: "account_disabled"}})
		}
	}
	return d.facts.ReportAll(ctx, caller, reports)
}

// A leftGroup is a group that a person has left.
type leftGroup struct {
	person, group string
	again         time.Time // when to look a second time; zero: now, and again later
}

// lookAgain is when the leases of a person who left a group are looked at a second time. A
// lease that was decided on before the person left may be recorded after the first look.
const lookAgain = 2 * time.Second

// leave has Run end what memberships permitted.
func (d *Directory) leave(list []leftGroup) {
	if len(list) == 0 {
		return
	}
	d.mu.Lock()
	d.left = append(d.left, list...)
	d.mu.Unlock()
	select {
	case d.changes <- struct{}{}:
	default: // Run will look anyway
	}
}

// retryEvery is how often Run looks for memberships that ended.
const retryEvery = time.Second

// Run ends the leases of people who left the groups that permitted them, until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	reconciled := false
	for {
		if !reconciled {
			err := d.reconcile(ctx, time.Now())
			if reconciled = err == nil; err != nil && ctx.Err() == nil {
				d.cfg.Log.ErrorContext(ctx, "stating the directory's facts after the start", "err", err)
			}
		}
		d.Step(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-d.changes:
		}
	}
}

// Step makes one pass of Run.
func (d *Directory) Step(ctx context.Context, now time.Time) {
	d.mu.Lock()
	list := d.left
	d.left = nil
	d.mu.Unlock()
	groups := map[string][]string{} // by person
	var later []leftGroup
	for _, l := range list {
		if l.again.After(now) {
			later = append(later, l)
			continue
		}
		groups[l.person] = append(groups[l.person], l.group)
		if l.again.IsZero() {
			later = append(later, leftGroup{l.person, l.group, now.Add(lookAgain)})
		}
	}
	for person, names := range groups {
		if err := d.facts.Left(ctx, person, names, now); err != nil && ctx.Err() == nil {
			d.cfg.Log.ErrorContext(ctx, "ending the access of a person who left a group", "person", person, "err", err)
			for _, name := range names {
				later = append(later, leftGroup{person, name, now.Add(retryEvery)})
			}
		}
	}
	d.mu.Lock()
	d.left = append(later, d.left...)
	d.mu.Unlock()
}
