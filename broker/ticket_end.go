package broker

import (
	"context"
	"errors"
	"time"
)

// A closed ticket ends everything that rests on it, as every fact does. Its assignee and its
// change window are conditions of single grants: the same ticket may still carry one grant
// and no longer another.

// ReportTicket takes what a tracker states about a ticket, if the broker knows the ticket
// already. It ends what rests on the ticket if the ticket is closed, and the grants whose
// conditions it no longer meets.
func (f *Facts) ReportTicket(ctx context.Context, t *Ticket) error {
	if known, err := f.mindsTicket(ctx, t.Key, t.Looked); err != nil || !known {
		return err
	}
	if err := f.Report(ctx, Caller{At: t.Looked}, t.Key, t.Fact()); err != nil {
		return err
	}
	return f.CheckTicket(ctx, t.Key, t.Looked)
}

// LoseTicket takes that a tracker no longer has a ticket. It is no news if the broker does
// not know the ticket either.
func (f *Facts) LoseTicket(ctx context.Context, key StandingKey, source string, now time.Time) error {
	if known, err := f.mindsTicket(ctx, key, now); err != nil || !known {
		return err
	}
	return f.Report(ctx, Caller{At: now}, key, Fact{Source: source, State: FactWithdrawn, Cause: CauseTicketGone})
}

// mindsTicket reports whether the broker knows a ticket, or access rests on it.
func (f *Facts) mindsTicket(ctx context.Context, key StandingKey, now time.Time) (bool, error) {
	s, err := f.read(ctx, key)
	if err != nil || s.ticket() != nil {
		return err == nil, err
	}
	return f.HasResting(ctx, key, now)
}

// LeaveTicket takes that no one looks at a ticket any more, because nothing rests on it.
func (f *Facts) LeaveTicket(ctx context.Context, key StandingKey, now time.Time) error {
	s, err := f.read(ctx, key)
	if err != nil || s.ticket() == nil || s.Ending {
		return err
	}
	return f.Forget(ctx, Caller{At: now}, key, s.ticket().Source)
}

// CheckTicket ends the grants, pending requests and leases whose conditions the ticket does
// not meet at now. It may be repeated: what has ended stays as it is.
func (f *Facts) CheckTicket(ctx context.Context, key StandingKey, now time.Time) error {
	s, err := f.read(ctx, key)
	if err != nil || s.ticket() == nil || s.ticket().State != FactActive { // the end of the fact is under way
		return err
	}
	rules := f.b.rules.Load()
	q := RequestQuery{RestsOn: key, Now: now, Limit: endsPage}
	var failed []error
	for more := true; more; more = !q.Before.IsZero() {
		var ends []*factEnds
		err := f.b.cfg.Store.View(ctx, func(tx Tx) error {
			page, next, err := tx.Requests(q)
			if err != nil {
				return err
			}
			q.Before, ends = next, f.unmet(s, rules, page, now)
			for _, e := range ends {
				if err := e.findLeases(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return errors.Join(append(failed, Unavailable(err))...)
		}
		for _, e := range ends {
			failed = append(failed, e.write(ctx))
		}
	}
	return errors.Join(failed...)
}

// unmet returns the requests whose terms a ticket does not meet, by the cause.
func (f *Facts) unmet(s *Standing, rules *Rules, requests []*Request, now time.Time) (ends []*factEnds) {
	byCause := map[string]*factEnds{}
	for _, r := range requests {
		terms := &r.Decision.Obligations.TicketTerms
		_, cause := terms.fault(s.ticket(), rules, rules.WithLabels(r.Requester), r.starting(now))
		if cause == "" {
			continue
		}
		if byCause[cause] == nil {
			byCause[cause] = &factEnds{b: f.b, end: &FactEnd{s.StandingKey, cause}, now: now}
			ends = append(ends, byCause[cause])
		}
		byCause[cause].requests = append(byCause[cause].requests, r)
	}
	return ends
}

// SeenTicket returns what a tracker last stated about the ticket of a request, from memory;
// nil if the broker has not looked at it. The caller must be allowed to view the request.
func (f *Facts) SeenTicket(r *Request) *Ticket {
	if f.b.cfg.Tickets == nil || r.Ticket == "" {
		return nil
	}
	return f.b.cfg.Tickets.Seen(r.Ticket)
}

// HasResting reports whether access rests on a subject at now: a pending request, a grant,
// or a lease.
func (f *Facts) HasResting(ctx context.Context, key StandingKey, now time.Time) (found bool, err error) {
	q := RequestQuery{RestsOn: key, Now: now, Limit: 1}
	for more := true; more && !found; more = !q.Before.IsZero() {
		err := f.b.cfg.Store.View(ctx, func(tx Tx) (err error) {
			var page []*Request
			page, q.Before, err = tx.Requests(q)
			found = len(page) > 0
			return err
		})
		if err != nil {
			return false, Unavailable(err)
		}
	}
	return found, nil
}
