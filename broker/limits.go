package broker

import (
	"fmt"
	"time"
)

// bucketsPerPeriod divides the period of a limit. A count covers the current
// bucket and as many before it, so a limit is never exceeded in any period, and
// an issuance is remembered at most one bucket too long.
const bucketsPerPeriod = 12

// take counts one issuance against a limit at now, or refuses it.
func (c *Counter) take(l Limit, now time.Time) error {
	slice := max(l.Per/bucketsPerPeriod, time.Second)
	current := now.UnixNano() / int64(slice)
	oldest := current - int64(l.Per/slice)
	total := 0
	for n, count := range c.Buckets {
		if n < oldest {
			delete(c.Buckets, n)
			continue
		}
		total += count
	}
	if total >= l.Count {
		return &Refusal{
			Err:    ErrLimit,
			Detail: fmt.Sprintf("at most %d credentials in any %s: try again later", l.Count, FormatDuration(l.Per)),
			Retry:  time.Duration((current+1)*int64(slice) - now.UnixNano()),
		}
	}
	if c.Buckets == nil {
		c.Buckets = map[int64]int{}
	}
	c.Buckets[current]++
	c.keep(now.Add(l.Per + slice))
	return nil
}

// hold takes a place among the active entries, and returns false if there is
// none.
func (c *Counter) hold(most int, name string, until, now time.Time) bool {
	for other, end := range c.Active {
		if !now.Before(end) {
			delete(c.Active, other)
		}
	}
	if len(c.Active) >= most {
		return false
	}
	if c.Active == nil {
		c.Active = map[string]time.Time{}
	}
	c.Active[name] = until
	c.keep(until)
	return true
}

// next returns when the first of the active entries ends.
func (c *Counter) next() (first time.Time) {
	for _, end := range c.Active {
		if first.IsZero() || end.Before(first) {
			first = end
		}
	}
	return first
}

// release returns a place.
func (c *Counter) release(name string) { delete(c.Active, name) }

func (c *Counter) keep(until time.Time) {
	if until.After(c.Expires) {
		c.Expires = until
	}
}

// pendingKey names the counter of a requester's pending requests. A person has one for all
// accounts.
func pendingKey(requester Identity) CounterKey {
	return CounterKey{Policy: "pending", Holder: requester.main()}
}

// limitKey and activeKey name the counters of a limit for one holder. A person has one for
// all accounts.
func limitKey(l Limit, holder Identity, entitlement string) CounterKey {
	return CounterKey{Policy: "limit " + l.Policy, Holder: holder.main(), Entitlement: entitlement}
}

func activeKey(l Limit, holder Identity, entitlement string) CounterKey {
	return CounterKey{Policy: "active " + l.Policy, Holder: holder.main(), Entitlement: entitlement}
}

// limitKeys returns the keys of the counters that the obligations use.
func limitKeys(o Obligations, holder Identity, entitlement string) []CounterKey {
	var keys []CounterKey
	for _, l := range o.Limits {
		keys = append(keys, limitKey(l, holder, entitlement))
	}
	for _, l := range o.MaxActive {
		keys = append(keys, activeKey(l, holder, entitlement))
	}
	return keys
}

// counter returns a counter, or a new one.
func counter(tx Tx, key CounterKey) (*Counter, error) {
	row, err := Get[*Counter](tx, key)
	if isNotFound(err) {
		return &Counter{CounterKey: key}, nil
	}
	return row, err
}

// takeLimits applies the decision's limits to a lease, in the transaction that
// opens it, so that they hold under concurrency. free means that the lease replaces
// one that was counted already and has really ended.
func takeLimits(tx Tx, o Obligations, holder Identity, l *Lease, free bool, now time.Time) error {
	for _, limit := range o.Limits {
		if free {
			break
		}
		c, err := counter(tx, limitKey(limit, holder, l.Entitlement))
		if err != nil {
			return err
		}
		if err := c.take(limit, now); err != nil {
			return err
		}
		tx.Put(c)
	}
	for _, limit := range o.MaxActive {
		c, err := counter(tx, activeKey(limit, holder, l.Entitlement))
		if err != nil {
			return err
		}
		if !c.hold(limit.Count, l.ID.String(), l.Expires, now) {
			return &Refusal{Err: ErrMaxActive, Detail: fmt.Sprintf("at most %d at a time: return one first", limit.Count), Retry: c.next().Sub(now)}
		}
		tx.Put(c)
		l.Limits = append(l.Limits, c.CounterKey)
	}
	return nil
}

// releaseLimits returns the places of an ended lease.
func releaseLimits(tx Tx, l *Lease) error {
	for _, key := range l.Limits {
		c, err := counter(tx, key)
		if err != nil {
			return err
		}
		c.release(l.ID.String())
		tx.Put(c)
	}
	return nil
}
