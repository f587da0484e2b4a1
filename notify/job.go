package notify

import (
	"context"
	"errors"
	"slices"
	"time"

	"accessbroker.internal/broker"
)

// A job is a notice with the rows that its delivery needs.
type job struct {
	notice   *broker.Notice
	request  *broker.Request
	delivery *broker.Delivery // nil: the channel has no message about the request
	address  string           // mail address for a notice to one person; else empty
	needed   bool             // the message is still true and of use
}

// nextJob returns the next due job of a channel, urgent ones first, or nil.
func (o *Outbox) nextJob(ctx context.Context, channel string, now time.Time) (j *job, err error) {
	err = o.cfg.Store.View(ctx, func(tx broker.Tx) error {
		for _, urgent := range []bool{true, false} {
			list, err := tx.Notices(broker.NoticeQuery{Channel: channel, Urgent: urgent, Now: now, Limit: 1})
			if err != nil {
				return err
			}
			if len(list) > 0 {
				j, err = newJob(tx, list[0], now)
				return err
			}
		}
		return nil
	})
	return j, err
}

// row returns the row of a key, or nil if there is none.
func row[R broker.Row](tx broker.Tx, key broker.Key) (R, error) {
	r, err := broker.Get[R](tx, key)
	if errors.Is(err, broker.ErrNotFound) {
		err = nil
	}
	return r, err
}

func newJob(tx broker.Tx, n *broker.Notice, now time.Time) (j *job, err error) {
	j = &job{notice: n, address: n.Address}
	if n.Event == broker.NoticePasskey { // it is about no request
		j.needed = n.Channel == broker.PeopleChannel
		return j, nil
	}
	if n.Title != "" { // an announcement
		j.needed = true
		return j, j.setAddress(tx)
	}
	if j.request, err = row[*broker.Request](tx, n.Request); err != nil || j.request == nil {
		return j, err
	}
	if j.delivery, err = row[*broker.Delivery](tx, broker.DeliveryKey{Request: n.Request, Channel: n.Channel}); err != nil {
		return nil, err
	}
	j.needed = n.Current(j.request, now)
	if n.Event == broker.NoticeWithdrawn && j.delivery == nil {
		j.needed = false // the channel was never notified of the request
	}
	return j, j.setAddress(tx)
}

// setAddress sets the mail address of the person whom the notice is for.
func (j *job) setAddress(tx broker.Tx) error {
	if j.notice.Person == "" || j.notice.Address != "" {
		return nil
	}
	a, err := broker.AccountOf(tx, broker.PersonKey(j.notice.Person))
	if err == nil {
		j.address = a.Email
	}
	return err
}

// callTimeout bounds one call of a Notifier.
const callTimeout = 15 * time.Second

// deliver delivers a notice, or drops it, and records the outcome. failed is the
// error of the channel, err that of the store.
func (o *Outbox) deliver(ctx context.Context, j *job, now time.Time) (failed, err error) {
	if dropped, err := o.dropUndeliverable(ctx, j, now); dropped {
		return nil, err
	}
	n := j.notice
	var earlier []string
	if j.delivery != nil {
		earlier = j.delivery.References
	}
	addressed := *n
	addressed.Address = j.address
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reference, failed := o.notifier(n.Channel).Notify(call, &addressed, j.request, earlier, now)
	switch {
	case failed == nil:
		o.observe(n, outcomeOK)
		return nil, o.recordDelivery(ctx, n, reference)
	case errors.Is(failed, ErrChannelGone):
		o.cfg.Log.WarnContext(ctx, "dropping a notice: the channel is gone", "channel", n.Channel, "notice", n.ID.String(), "err", failed)
		o.observe(n, outcomeGone)
		return nil, o.drop(ctx, n)
	}
	o.observe(n, outcomeFailed)
	o.cfg.Log.WarnContext(ctx, "delivery failed", "channel", n.Channel, "notice", n.ID.String(), "attempts", n.Attempts+1, "err", failed)
	return failed, o.retryLater(ctx, n, failed, now)
}

// dropUndeliverable drops a notice that must not or can't be sent. It reports
// whether it did.
func (o *Outbox) dropUndeliverable(ctx context.Context, j *job, now time.Time) (dropped bool, err error) {
	n := j.notice
	switch {
	case !j.needed:
	case !now.Before(n.Expires):
		o.cfg.Log.WarnContext(ctx, "dropping a notice: it could not be delivered in time", "channel", n.Channel, "notice", n.ID.String(), "attempts", n.Attempts)
		o.observe(n, outcomeExpired)
	case o.notifier(n.Channel) == nil:
		o.cfg.Log.WarnContext(ctx, "dropping a notice: its channel is not configured", "channel", n.Channel, "group", n.Group)
		o.observe(n, outcomeNoChannel)
	case n.Channel == broker.PeopleChannel && j.address == "":
		o.cfg.Log.WarnContext(ctx, "dropping a notice: the person has no mail address", "person", n.Person)
		o.observe(n, outcomeNoAddress)
	default:
		return false, nil
	}
	return true, o.drop(ctx, n)
}

// retryLater records a failed attempt and when to try again.
func (o *Outbox) retryLater(ctx context.Context, n *broker.Notice, failed error, now time.Time) error {
	before := n.Attempts
	n.Attempts++
	n.Due = now.Add(broker.Backoff(n.Attempts))
	if wait := (*RetryAfter)(nil); errors.As(failed, &wait) {
		n.Due = now.Add(max(wait.After, time.Second))
	}
	return o.cfg.Store.Update(context.WithoutCancel(ctx), []broker.Key{n.ID}, func(tx broker.Tx) error {
		stored, err := queued(tx, n.ID)
		if err != nil || stored == nil || stored.Attempts != before {
			return err // another process delivered it, or tried
		}
		tx.Put(n)
		return nil
	})
}

// queued returns a notice that is still in the queue, or nil. The call of a channel takes
// long, and another process that took over the channel can have delivered the notice
// meanwhile; it must not return to the queue then.
func queued(tx broker.Tx, id broker.NoticeID) (*broker.Notice, error) {
	n, err := row[*broker.Notice](tx, id)
	if err != nil || n == nil || n.Due.IsZero() {
		return nil, err
	}
	return n, nil
}

// unqueue removes a notice from the queue.
func unqueue(tx broker.Tx, id broker.NoticeID) error {
	n, err := queued(tx, id)
	if err != nil || n == nil {
		return err
	}
	n.Due = time.Time{}
	tx.Put(n)
	return nil
}

// maxReferences is how many messages about one request a channel can update.
const maxReferences = 8

// recordDelivery removes a notice from the queue and stores the reference of its
// message. The store happens after the call, so a crash in between sends the notice
// again.
func (o *Outbox) recordDelivery(ctx context.Context, n *broker.Notice, reference string) error {
	key := broker.DeliveryKey{Request: n.Request, Channel: n.Channel}
	return o.cfg.Store.Update(context.WithoutCancel(ctx), []broker.Key{n.ID, key}, func(tx broker.Tx) error {
		if err := unqueue(tx, n.ID); err != nil || n.Request.IsZero() {
			return err
		}
		d, err := row[*broker.Delivery](tx, key)
		if err != nil {
			return err
		}
		if d == nil {
			d = &broker.Delivery{DeliveryKey: key}
		}
		if reference != "" && !slices.Contains(d.References, reference) && len(d.References) < maxReferences {
			d.References = append(d.References, reference)
		}
		d.Expires = n.Created.Add(broker.MaxDuration) // a grant may start that late
		tx.Put(d)
		return nil
	})
}

// drop removes notices from the queue.
func (o *Outbox) drop(ctx context.Context, list ...*broker.Notice) error {
	if len(list) == 0 {
		return nil
	}
	reads := make([]broker.Key, len(list))
	for i, n := range list {
		reads[i] = n.ID
	}
	return o.cfg.Store.Update(context.WithoutCancel(ctx), reads, func(tx broker.Tx) error {
		for _, n := range list {
			if err := unqueue(tx, n.ID); err != nil {
				return err
			}
		}
		return nil
	})
}
