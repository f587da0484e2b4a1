package broker

import (
	"context"
	"errors"

	"accessbroker.internal/audit"
)

// CauseRisk is the cause of an end because a supplier's risk is now greater than policy
// allowed.
const CauseRisk = "risk_too_high"

// SettleAssessed looks at everything that a new assessment of a supplier concerns: it lets
// requests that waited for it continue, and ends what policy does not allow with its risk.
// Repeating it is no error.
func (f *Facts) SettleAssessed(ctx context.Context, caller Caller, supplier string) error {
	assessed, err := f.read(ctx, AssessedKey(supplier))
	if err != nil {
		return err
	}
	fact := assessed.Find(AssessmentSource)
	if fact == nil {
		return nil
	}
	waits := func(r *Request) bool { return r.State(caller.At) == RequestPending && r.Awaits }
	q := RequestQuery{RestsOn: SupplierKey(supplier), Match: waits, Now: caller.At, Limit: endsPage}
	for more := true; more; more = !q.Before.IsZero() {
		var page []*Request
		err := f.b.cfg.Store.View(ctx, func(tx Tx) (err error) {
			page, q.Before, err = tx.Requests(q)
			return err
		})
		if err != nil {
			return Unavailable(err)
		}
		for _, r := range page {
			if err := f.b.retry(func() error { return f.b.settlePending(ctx, caller, r.ID, supplier) }); err != nil {
				return err
			}
		}
	}
	tooHigh := func(r *Request) bool { return !r.Decision.Obligations.Supplier.tolerates(fact) }
	ended := RequestQuery{RestsOn: assessed.StandingKey, Match: tooHigh, Now: caller.At, Limit: endsPage}
	return f.b.endRequests(ctx, ended, &FactEnd{assessed.StandingKey, CauseRisk}, caller.At)
}

// settlePending approves a request that waited for the assessment, unless approvals are
// missing.
func (b *Broker) settlePending(ctx context.Context, caller Caller, id RequestID, supplier string) error {
	rules := b.rules.Load()
	r, err := b.load(ctx, id)
	if err != nil || r.State(caller.At) != RequestPending {
		return ignoreNotFound(err)
	}
	r.link(rules.People)
	before, waited := r.Version, r.Awaits
	ground, err := b.stand(ctx, rules, rules.WithLabels(r.Requester), r.Created, caller.At)
	if err == nil {
		err = errors.Join(b.await(ctx, rules, &ground, r, caller.At), b.voidApprovals(ctx, rules, &ground, r, caller.At))
	}
	switch {
	case errors.Is(err, ErrNotAssessed):
		return b.endGrant(ctx, r, &FactEnd{AssessedKey(supplier), CauseRisk}, caller.At)
	case isFact(err) || err == nil && (r.Awaits || !waited):
		return nil // it has ended with a fact, waits for another supplier's assessment, or waited for none
	case err != nil:
		return err
	}
	if r.Version++; r.covered(r.Decision.Obligations) {
		r.approve(caller.At)
	}
	err = b.recordSettled(ctx, caller, rules, r, before, ground)
	if errors.Is(err, ErrNotPending) || isNotFound(err) {
		return nil // it was withdrawn, or lapsed
	}
	b.waiters.changed(id)
	return err
}

// recordSettled writes a request that no longer waits for an assessment.
func (b *Broker) recordSettled(ctx context.Context, caller Caller, rules *Rules, r *Request, before int, ground footing) error {
	record := audit.Record{
		Kind:    audit.RequestAssessed,
		Request: &audit.RequestFacts{ID: r.ID.String(), Digest: r.Digest, Entitlement: r.Entitlement},
	}
	for _, key := range r.RestsOn {
		record.Request.RestsOn = append(record.Request.RestsOn, key.String())
	}
	_, err := b.write(ctx, append(append(r.waiting(), RevisionKey{}), ground.reads()...), record, func(tx Tx) error {
		stored, err := Get[*Request](tx, r.ID)
		if err != nil {
			return err
		}
		if err := errors.Join(b.checkRevision(tx, rules.Revision, caller.At), ground.check(tx)); err != nil {
			return err
		}
		if stored.Version != before {
			return errOvertaken
		}
		if err := stored.checkPending(tx, caller.At); err != nil {
			return err
		}
		tx.Put(r)
		if r.Status == RequestPending {
			return nil
		}
		b.notify(tx, NoticeApproved, r, r.approverGroups(), rules, caller.At)
		return leavePending(tx, r, caller.At)
	})
	if err == nil && r.Status == RequestApproved {
		b.cfg.Observe(Event{Kind: EventApproved, Entitlement: r.Entitlement, Took: caller.At.Sub(r.Created)})
	}
	return err
}
