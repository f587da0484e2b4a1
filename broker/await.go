package broker

import (
	"context"
	"slices"
	"time"
)

// await sets what a request that is not granted yet rests on, and whether it waits for the
// assessment of a supplier.
func (b *Broker) await(ctx context.Context, rules *Rules, f *footing, r *Request, now time.Time) (err error) {
	who := r.Requester
	who.Suppliers = r.suppliersNow(rules)
	r.Awaits, err = b.assess(ctx, rules, f, who, r.Decision.Obligations.Supplier, time.Time{}, now)
	r.RestsOn, r.Until = f.rests, f.until
	return err
}

// noticeWaitingEvery is how often the assessors of a supplier are notified that requests wait.
const noticeWaitingEvery = 24 * time.Hour

// awaited returns the keys that announceWaiting reads.
func (r *Request) awaited() (list []Key) {
	if !r.Awaits {
		return nil
	}
	names := r.Requester.Suppliers
	if r.Delegation != nil {
		names = append(slices.Clone(names), r.Delegation.Subject.Suppliers...)
	}
	for _, name := range names {
		list = append(list, AssessmentKey(name))
	}
	return list
}

// announceWaiting notifies the assessors of the suppliers for whose assessment the request
// waits, at most once a day for each supplier.
func announceWaiting(tx Tx, rules *Rules, r *Request, now time.Time) error {
	for _, key := range r.awaited() {
		row, err := Get[*Assessment](tx, key)
		if isNotFound(err) {
			row, err = &Assessment{Supplier: key.(AssessmentKey)}, nil
		}
		s := rules.Suppliers.Named(string(key.(AssessmentKey)))
		if err != nil || s == nil || now.Sub(row.Notified) < noticeWaitingEvery {
			return err
		}
		row.Notified = now
		tx.Put(row)
		Announce(tx, rules, Announcement{
			Event: NoticeAssessment, Title: "Requests wait for the assessment of " + s.DisplayName(), Page: "/ui/assessments/" + s.Name,
			Text: "A request of " + s.DisplayName() + " waits for the risk assessment of this supplier. It serves later requests too, until it ends.",
		}, []string{s.Assessors}, nil, now)
	}
	return nil
}

// stillAssessed refuses a collection if the assessment that policy demands now is missing
// or does not suffice.
func (b *Broker) stillAssessed(ctx context.Context, rules *Rules, c *collection) error {
	who := c.caller.Subject
	if c.request.Delegation != nil {
		who.Suppliers = c.request.suppliersNow(rules)
	}
	waits, err := b.assess(ctx, rules, &c.footing, who, c.decision.Obligations.Supplier, c.request.Approved, c.caller.At)
	if err == nil && waits {
		err = &Refusal{Err: ErrNeedsNewRequest, Detail: "the assessment of your supplier has ended: file a new request, which waits for the next one", RequestID: c.request.ID}
	}
	return err
}
