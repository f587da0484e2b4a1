package broker

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/audit"
)

// The end of a fact is durable before anything that rests on it ends: Standing.Ending says
// that there may be more to end. So an interrupted end continues after a restart, and
// nothing new is granted meanwhile.

const (
	factsEvery   = time.Second
	endsPerPass  = 512 // standings
	endsPage     = 512 // of what rests on one
	endsParallel = 256 // of what rests on one; they share commits
)

// run ends what rests on facts that ended, until ctx ends.
func (f *Facts) run(ctx context.Context) {
	tick := time.NewTicker(factsEvery)
	defer tick.Stop()
	for {
		if f.restate.CompareAndSwap(true, false) {
			if err := f.StateRules(ctx, Caller{At: time.Now()}); err != nil {
				f.restate.Store(true)
				f.b.cfg.Log.ErrorContext(ctx, "stating the facts of suppliers.yaml and people.yaml", "err", err)
			}
		}
		duties := f.b.cfg.Duties
		if f.own.CompareAndSwap(true, false) {
			duties = Alone // what this process changed takes effect at once
		}
		err := OnDuty(ctx, duties, "facts", func(ctx context.Context) error { return f.End(ctx, time.Now()) })
		if err != nil && ctx.Err() == nil {
			f.b.cfg.Log.ErrorContext(ctx, "ending what rests on facts", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-f.wake:
		}
	}
}

// End makes one pass: it notes the facts whose time has come, and ends what rests on
// standings that no longer hold.
func (f *Facts) End(ctx context.Context, now time.Time) error {
	for {
		var due []*Standing
		err := f.b.cfg.Store.View(ctx, func(tx Tx) (err error) {
			due, err = tx.Standings(StandingQuery{Due: true, Now: now, Limit: endsPerPass})
			return err
		})
		if err != nil {
			return Unavailable(err)
		}
		var failed []error
		for _, s := range due {
			if err := f.endDue(ctx, s, now); err != nil {
				failed = append(failed, err)
			}
		}
		if err := errors.Join(failed...); err != nil || len(due) < endsPerPass {
			return err
		}
	}
}

// endDue ends what rests on one standing, if it has fallen.
func (f *Facts) endDue(ctx context.Context, s *Standing, now time.Time) error {
	if !s.Ending { // its time has come
		if err := f.change(ctx, Caller{At: now}, []factChange{{subject: s.StandingKey, apply: func(*Standing) (bool, error) { return false, nil }}}); err != nil {
			return err
		}
		var err error
		if s, err = f.read(ctx, s.StandingKey); err != nil || !s.Ending {
			return err
		}
	}
	if err := f.endAll(ctx, s, now); err != nil {
		return err
	}
	// From here on nothing rests on the end, so the standing may hold again.
	version := s.Version
	return Unavailable(f.b.cfg.Store.Update(ctx, []Key{s.StandingKey}, func(tx Tx) error {
		stored, err := Get[*Standing](tx, s.StandingKey)
		if err != nil || stored.Version != version {
			return err // the next pass sees the change
		}
		stored.Ending = false
		stored.Version++
		if stored.fault(now) == "" {
			stored.Ended, stored.Cause = time.Time{}, ""
		}
		tx.Put(stored)
		return nil
	}))
}

// endAll ends the requests, grants and leases that rest on a standing.
func (f *Facts) endAll(ctx context.Context, s *Standing, now time.Time) error {
	end := &FactEnd{s.StandingKey, s.Cause}
	// Newest first: the pages behind stay where they are.
	queries := []RequestQuery{{RestsOn: s.StandingKey, Now: now, Limit: endsPage}}
	var held []LeaseQuery
	switch s.Kind {
	case FactPerson, FactAgent:
		queries = append(queries, RequestQuery{Requester: s.Name, Status: RequestPending, Now: now, Limit: endsPage})
		held = append(held, LeaseQuery{Holder: s.Name})
	case FactMark: // what was granted before the path had an end does not rest on it
		below := func(r *Request) bool { return WorkloadLabels{Under: s.Name}.Covers(r.Requester.ID) }
		queries = []RequestQuery{{Status: RequestPending, Match: below, Now: now, Limit: endsPage}}
		held = append(held, LeaseQuery{Under: s.Name})
	}
	var failed []error
	// All leases are queued for their issuers before the first grant is closed.
	for _, part := range []func(*factEnds, context.Context) error{(*factEnds).endLeases, (*factEnds).endGrants} {
		for _, q := range queries {
			failed = append(failed, f.b.endParts(ctx, q, end, now, part))
		}
	}
	for _, q := range held {
		q.Now, q.Limit = now, endsPage
		live, outliving := q, q
		live.Live, outliving.Outliving = true, true
		failed = append(failed, f.b.endLeases(ctx, live, end, now), f.b.endLeases(ctx, outliving, end, now))
	}
	return errors.Join(failed...)
}

// endRequests ends the selected pending requests and grants, and the leases under them. One
// that can't be ended does not keep the others.
func (b *Broker) endRequests(ctx context.Context, q RequestQuery, end *FactEnd, now time.Time) error {
	return b.endParts(ctx, q, end, now, (*factEnds).write)
}

func (b *Broker) endParts(ctx context.Context, q RequestQuery, end *FactEnd, now time.Time, part func(*factEnds, context.Context) error) error {
	var failed []error
	for more := true; more; more = !q.Before.IsZero() {
		e := factEnds{b: b, end: end, now: now}
		err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
			if e.requests, q.Before, err = tx.Requests(q); err == nil {
				err = e.findLeases(tx)
			}
			return err
		})
		if err != nil {
			return errors.Join(append(failed, Unavailable(err))...)
		}
		failed = append(failed, part(&e, ctx))
	}
	return errors.Join(failed...)
}

// endLeases ends the selected leases, and the grants that they are from.
func (b *Broker) endLeases(ctx context.Context, q LeaseQuery, end *FactEnd, now time.Time) error {
	var failed []error
	for more := true; more; more = !q.Before.IsZero() {
		e := factEnds{b: b, end: end, now: now}
		err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
			var page []*Lease
			page, q.Before, err = tx.Leases(q)
			for _, l := range page {
				if _, live := l.markAttempt(endAttempt{}, now); !live || err != nil {
					continue // it is being ended already
				}
				var r *Request
				if r, err = Get[*Request](tx, l.Request); err == nil {
					e.requests = append(e.requests, r)
				}
				e.leases, err = append(e.leases, l), ignoreNotFound(err)
			}
			return err
		})
		if err != nil {
			return errors.Join(append(failed, Unavailable(err))...)
		}
		failed = append(failed, e.write(ctx))
	}
	return errors.Join(failed...)
}

// factEnds are requests and leases that end because of a fact.
type factEnds struct {
	b        *Broker
	end      *FactEnd
	now      time.Time
	requests []*Request
	leases   []*Lease
}

// findLeases adds the leases of the requests.
func (e *factEnds) findLeases(tx Tx) error {
	for _, r := range e.requests {
		if r.FirstExpires.IsZero() { // never collected
			continue
		}
		leases, next, err := chain(tx, r)
		if err != nil {
			return err
		}
		if e.leases = append(e.leases, leases...); next.IsZero() {
			continue
		}
		live, _, err := tx.Leases(LeaseQuery{Request: r.ID, Live: true, Now: e.now})
		if err != nil {
			return err
		}
		for _, l := range live {
			if !slices.ContainsFunc(leases, func(o *Lease) bool { return o.ID == l.ID }) {
				e.leases = append(e.leases, l)
			}
		}
	}
	return nil
}

// write ends all of them. No lease is opened meanwhile: its transaction compares the
// standing.
func (e *factEnds) write(ctx context.Context) error {
	return errors.Join(e.endLeases(ctx), e.endGrants(ctx))
}

// endLeases ends the leases. Their transactions share commits, and one failure does not stop
// the others.
func (e *factEnds) endLeases(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(endsParallel)
	for _, l := range e.leases {
		group.Go(func() error {
			return e.b.reaper.mark(ctx, l, endAttempt{how: EndFact, by: e.end}, Identity{}, "", e.now)
		})
	}
	return group.Wait()
}

// endGrants is endLeases for the grants and pending requests.
func (e *factEnds) endGrants(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(endsParallel)
	for _, r := range e.requests {
		group.Go(func() error { return e.b.endGrant(ctx, r, e.end, e.now) })
	}
	return group.Wait()
}

// endGrant ends the grant, or the wait for one. Repeating it is no error.
func (b *Broker) endGrant(ctx context.Context, r *Request, end *FactEnd, now time.Time) error {
	if state := r.State(now); state != RequestPending && state != RequestApproved {
		return nil
	}
	record := audit.Record{
		Kind: audit.RequestRevoked, End: &audit.EndFacts{How: EndFact, Fact: end.Subject.String(), Cause: end.Cause},
		Request: &audit.RequestFacts{ID: r.ID.String(), Digest: r.Digest, Entitlement: r.Entitlement},
	}
	rules := b.rules.Load()
	_, err := b.write(ctx, r.waiting(), record, func(tx Tx) error {
		stored, err := Get[*Request](tx, r.ID)
		if err != nil {
			return err
		}
		waited := stored.State(now) == RequestPending
		if !stored.end(end, now) {
			return ErrUnchanged
		}
		tx.Put(stored)
		if !waited {
			return nil
		}
		b.notify(tx, NoticeDenied, stored, stored.approverGroups(), rules, now)
		return leavePending(tx, stored, now)
	})
	if errors.Is(err, ErrUnchanged) || isNotFound(err) {
		return nil
	}
	b.waiters.changed(r.ID)
	return err
}
