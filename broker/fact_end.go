package broker

import (
	"context"
	"errors"
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
	endsParallel = 64  // of what rests on one; they share commits
)

// run ends what rests on facts that ended, until ctx ends.
func (f *Facts) run(ctx context.Context) {
	tick := time.NewTicker(factsEvery)
	defer tick.Stop()
	for {
		if err := f.End(ctx, time.Now()); err != nil && ctx.Err() == nil {
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
	queries := []RequestQuery{{RestsOn: s.StandingKey, Now: now, Limit: pageMax}}
	holder := ""
	switch s.Kind {
	case FactPerson, FactAgent:
		holder = s.Name
		queries = append(queries, RequestQuery{Requester: holder, Status: RequestPending, Now: now, Limit: pageMax})
	}
	var failed []error
	for _, q := range queries {
		failed = append(failed, f.b.endRequests(ctx, q, end, now))
	}
	if holder != "" {
		failed = append(failed, f.b.endLeases(ctx, LeaseQuery{Holder: holder, Live: true, Now: now, Limit: pageMax}, end, now),
			f.b.endLeases(ctx, LeaseQuery{Holder: holder, Outliving: true, Now: now, Limit: pageMax}, end, now))
	}
	return errors.Join(failed...)
}

// endRequests ends the selected requests and their leases.
func (b *Broker) endRequests(ctx context.Context, q RequestQuery, end *FactEnd, now time.Time) error {
	for {
		var page []*Request
		err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
			page, q.Before, err = tx.Requests(q)
			return err
		})
		if err != nil {
			return Unavailable(err)
		}
		var group errgroup.Group
		group.SetLimit(endsParallel)
		for _, r := range page {
			group.Go(func() error { return b.endRequest(ctx, r, end, now) })
		}
		if err := group.Wait(); err != nil || q.Before.IsZero() {
			return err
		}
	}
}

// endRequest ends a pending request or a grant, and the leases under it. Once the grant
// has ended, no more leases are opened.
func (b *Broker) endRequest(ctx context.Context, r *Request, end *FactEnd, now time.Time) error {
	if err := b.endGrant(ctx, r, end, now); err != nil {
		return err
	}
	leases, more, err := b.requestLeases(ctx, r, now)
	if err != nil {
		return err
	}
	if more {
		return b.endLeases(ctx, LeaseQuery{Request: r.ID, Live: true, Now: now, Limit: pageMax}, end, now)
	}
	for _, l := range leases {
		if err := b.reaper.markEnded(ctx, l, end, now); err != nil {
			return err
		}
	}
	return nil
}

// endGrant ends the grant, or the wait for one. Repeating it is no error.
func (b *Broker) endGrant(ctx context.Context, r *Request, end *FactEnd, now time.Time) error {
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

// endLeases ends the selected leases, and the grants that they are from.
func (b *Broker) endLeases(ctx context.Context, q LeaseQuery, end *FactEnd, now time.Time) error {
	for {
		page, next, err := b.page(ctx, q)
		if err != nil {
			return err
		}
		var group errgroup.Group
		group.SetLimit(endsParallel)
		for _, l := range page {
			group.Go(func() error {
				if err := b.reaper.markEnded(ctx, l, end, now); err != nil {
					return err
				}
				r, err := b.load(ctx, l.Request)
				if err != nil {
					return ignoreNotFound(err)
				}
				return b.endGrant(ctx, r, end, now)
			})
		}
		if err := group.Wait(); err != nil || next.IsZero() {
			return err
		}
		q.Before = next
	}
}
