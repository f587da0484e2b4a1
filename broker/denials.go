package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/audit"
)

// Identical denials within a minute share one record with a count, so that a
// caller in a loop cannot fill the log.
const (
	sharedFor  = time.Minute
	maxDenials = 4096 // of at most about 8 KB each: without openings, a record has little more than the scopes
	maxOfOne   = 60   // different denials of one caller in a minute; the others share one more record
)

// denials are the denials of the last minute. The first of a kind is recorded
// before it is returned; the others are counted and recorded together.
type denials struct {
	sync.Mutex
	seen      map[audit.Digest]*denial
	perCaller map[string]int // the number of entries in seen
}

type denial struct {
	who    string
	record audit.Record
	id     RequestID
	since  time.Time
	more   int // after the first
}

// join counts a denial that is identical to one of the last minute and returns
// its request, or remembers it as the first. A caller with too many different
// denials gets the rest counted as one.
//
// at is the key under which the denial is remembered; zero if it is not.
func (d *denials) join(key audit.Digest, first *denial) (id RequestID, known bool, at audit.Digest) {
	d.Lock()
	defer d.Unlock()
	if d.seen == nil {
		d.seen, d.perCaller = map[audit.Digest]*denial{}, map[string]int{}
	}
	if d.seen[key] == nil && d.perCaller[first.who] >= maxOfOne {
		key = audit.HashObject("accessbroker/denials-of/v1", audit.NewObject().String("who", first.who))
	}
	before := d.seen[key]
	switch {
	case before != nil && (before.more > 0 || first.since.Sub(before.since) < sharedFor):
		// Repeats are counted until the next flush, even after the minute.
		before.more++
		return before.id, true, key
	case before != nil:
		d.seen[key] = first
	case len(d.seen) < maxDenials:
		d.seen[key] = first
		d.perCaller[first.who]++
	default:
		return first.id, false, audit.Digest{}
	}
	return first.id, false, key
}

func (d *denials) forget(key audit.Digest) {
	d.Lock()
	defer d.Unlock()
	d.remove(key)
}

func (d *denials) remove(key audit.Digest) {
	known := d.seen[key]
	if known == nil {
		return
	}
	delete(d.seen, key)
	if d.perCaller[known.who]--; d.perCaller[known.who] <= 0 {
		delete(d.perCaller, known.who)
	}
}

// take removes and returns the denials whose minute is over, or all of them.
func (d *denials) take(now time.Time, all bool) []*denial {
	d.Lock()
	defer d.Unlock()
	var over []*denial
	for key, denial := range d.seen {
		if all || now.Sub(denial.since) >= sharedFor {
			over = append(over, denial)
			d.remove(key)
		}
	}
	return over
}

// flushEvery is how often the counts of repeated denials are recorded.
const flushEvery = 10 * time.Second

// flushForever records the counts of repeated denials until ctx ends, and then
// those that are left.
func (b *Broker) flushForever(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			b.flushDenials(ctx, time.Now(), false)
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushEvery)
	defer cancel()
	b.flushDenials(last, time.Now(), true)
}

// flushDenials records the counts of denials that were repeated.
func (b *Broker) flushDenials(ctx context.Context, now time.Time, all bool) {
	for _, d := range b.denials.take(now, all) {
		if d.more == 0 {
			continue
		}
		d.record.Count = d.more
		if _, err := b.write(ctx, []Key{d.id}, d.record, func(tx Tx) error { return listRefusal(tx, d.id) }); err != nil {
			b.cfg.Log.ErrorContext(ctx, "repeated denials are not recorded", "request", d.id.String(), "count", d.more, "err", err)
		}
	}
}

// denied records the denial of a request that is not stored yet, and returns
// the refusal.
func (b *Broker) denied(ctx context.Context, f *filing, ask Ask, refusal *Refusal) error {
	r, caller := f.request, f.caller
	r.commit(caller.At)
	r.Status, r.Version, r.DeniedBy = RequestDenied, 1, refusal.DeniedBy
	code := Code(refusal)
	record := audit.Record{
		Kind: audit.RequestDenied, Caller: caller.Actor.Party(), Request: r.facts(),
		Decision: r.Decision.facts(code), Openings: r.openings(), From: r.SourceIP,
	}
	r.onBehalf(&record)
	key := denialKey(r, code, ask)
	shared := record
	shared.Openings = nil // up to 18 KB, which only the first record needs
	id, known, key := b.denials.join(key, &denial{who: caller.Subject.ID, record: shared, id: r.ID, since: caller.At})
	shown := *refusal
	shown.RequestID = id
	if known {
		return &shown
	}
	_, err := b.write(ctx, nil, record, func(tx Tx) error {
		tx.Put(r)
		return nil
	})
	if err != nil {
		b.denials.forget(key)
		return err
	}
	return &shown
}

func denialKey(r *Request, code string, ask Ask) audit.Digest {
	by := r.requester()
	o := audit.NewObject().
		StringList("actors", by.Actors).
		String("binding_message", ask.Message).
		String("authorization_details", string(AppendDetails(nil, ask.Details))).
		String("code", code).
		Seconds("duration", ask.Duration).
		String("entitlement", ask.Entitlement).
		String("justification", ask.Justification).
		Hex("revision", r.Decision.Revision).
		String("parameters", string(audit.AppendStrings(nil, ask.Parameters))).
		StringList("scopes", ask.Scopes).
		String("subject", by.Subject).
		String("ticket", ask.Ticket).
		Seconds("ttl", ask.TTL).
		String("who", by.ID)
	return sha256.Sum256(o.Bytes())
}

// denyCollect refuses a collection that policy no longer permits.
func (b *Broker) denyCollect(ctx context.Context, c *collection, d Decision) error {
	refusal := &Refusal{Err: ErrNoLongerAllowed, Detail: "policy has changed since the approval", Reasons: d.Reasons, RequestID: c.request.ID}
	if d.Above != "" {
		refusal.Detail, refusal.DeniedBy = d.Above+" any more: file a new request for less", DeniedByCeiling
	}
	return b.refused(ctx, *c.caller, c.request, d, refusal)
}

// limited records that a limit or a block refused a collection.
func (b *Broker) limited(ctx context.Context, c *collection, err error) error {
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	return b.refused(ctx, *c.caller, c.request, c.request.Decision, refusal)
}

// fallen records that a collection was refused because of a fact.
func (b *Broker) fallen(ctx context.Context, c *collection, err error) error {
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	shown := *refusal
	shown.RequestID = c.request.ID
	return b.refused(ctx, *c.caller, c.request, *c.decision, &shown)
}

func isLimit(err error) bool {
	return errors.Is(err, ErrLimit) || errors.Is(err, ErrMaxActive) || errors.Is(err, ErrBlocked)
}

// refused records the refusal of a collection and returns it. The request is
// not changed.
func (b *Broker) refused(ctx context.Context, caller Caller, r *Request, d Decision, refusal *Refusal) error {
	code := Code(refusal)
	b.cfg.Observe(Event{Kind: EventRequest, Entitlement: r.Entitlement, Code: code})
	record := audit.Record{
		Kind: audit.CollectRefused, Caller: caller.Actor.Party(), Decision: d.facts(code),
		Request: &audit.RequestFacts{ID: r.ID.String(), Digest: r.Digest, Entitlement: r.Entitlement, Scopes: r.Scopes},
	}
	r.onBehalf(&record)
	// A request that the call itself files gets a new id each time, so repeats are
	// recognised by the ask.
	key := sha256.Sum256([]byte(strings.Join([]string{"refused", caller.Subject.ID, code, string(r.askKeyBytes())}, "\x00")))
	_, known, at := b.denials.join(key, &denial{who: caller.Subject.ID, record: record, id: r.ID, since: caller.At})
	if known {
		return refusal
	}
	if _, err := b.write(ctx, []Key{r.ID}, record, func(tx Tx) error { return listRefusal(tx, r.ID) }); err != nil {
		b.denials.forget(at)
		return err
	}
	return refusal
}

func (r *Request) askKeyBytes() []byte {
	d := r.askDigest()
	return d[:]
}

// entitlementLabel returns the entitlement as a label from a bounded set.
func entitlementLabel(e *Entitlement) string {
	if e == nil {
		return "unknown"
	}
	return e.Name
}
