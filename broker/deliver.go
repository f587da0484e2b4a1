package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// A Notifier tells one channel. It is safe for concurrent use, and ends by its
// context's deadline.
type Notifier interface {
	// Notify tells of a request, at least once: a notice that was told may come
	// again, and is then the same by its ID. earlier is what the last notice of
	// the same request led to; the reference is what this one did, so that a
	// message can be changed later. A *TellLater says when to try again, and
	// ErrChannelGone that nobody listens there any more.
	Notify(ctx context.Context, n *Notice, r *Request, earlier string, now time.Time) (reference string, err error)
}

// ErrChannelGone is a channel's answer, and never a caller's: what was for it is
// dropped.
var ErrChannelGone = errors.New("the channel is gone")

// A TellLater is a channel's answer: not now.
type TellLater struct {
	Err   error
	After time.Duration
}

// Error says why.
func (t *TellLater) Error() string { return t.Err.Error() }

// Unwrap gives the reason.
func (t *TellLater) Unwrap() error { return t.Err }

// A TellingKey names what a channel was told of a request.
type TellingKey struct {
	Request RequestID
	Channel string
}

func (TellingKey) isKey() {}

// A Telling is what the channel made of it.
type Telling struct {
	TellingKey
	Reference string // a message's
	Expires   time.Time
}

// Key gives the row's key.
func (t *Telling) Key() Key { return t.TellingKey }

// tellingFor is how long a message can be changed: as long as a grant may wait.
const tellingFor = MaxDuration

const (
	tellEvery    = time.Second
	tellDeadline = 15 * time.Second
	tellBatch    = 1000
	tellTurn     = 30 * time.Second
	tellAtOnce   = 16 // channels
)

// channels are those that are being told: a slow one holds up no other.
type channels struct {
	sync.Mutex
	busy  map[string]bool
	until map[string]time.Time // not tried before
}

// SetNotifiers says by what the channels that groups name ("slack:dba") are told.
func (b *Broker) SetNotifiers(byChannel map[string]Notifier) { b.tellers.Store(&byChannel) }

func (b *Broker) notifier(channel string) Notifier {
	if all := b.tellers.Load(); all != nil {
		return (*all)[channel]
	}
	return nil
}

// Deliver tells the channels what is due, each in its own turn, and waits until
// that is done. It gives how many notices were dealt with.
func (b *Broker) Deliver(ctx context.Context, now time.Time) (int, error) {
	var group errgroup.Group
	n, err := b.deliver(ctx, &group, now)
	return n, errors.Join(err, group.Wait())
}

func (b *Broker) deliver(ctx context.Context, group *errgroup.Group, now time.Time) (int, error) {
	var due []*Notice
	err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		due, err = tx.Notices(now, tellBatch)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("listing notices: %w", err)
	}
	by := map[string][]*Notice{}
	for _, n := range due {
		by[n.Channel] = append(by[n.Channel], n)
	}
	for channel, list := range by {
		if !b.channels.take(channel, now) {
			continue
		}
		group.Go(func() error {
			defer b.channels.release(channel)
			b.tellChannel(ctx, channel, list, now)
			return nil
		})
	}
	return len(due), nil
}

func (c *channels) take(channel string, now time.Time) bool {
	c.Lock()
	defer c.Unlock()
	if c.busy[channel] || now.Before(c.until[channel]) || len(c.busy) >= tellAtOnce {
		return false
	}
	if c.busy == nil {
		c.busy, c.until = map[string]bool{}, map[string]time.Time{}
	}
	c.busy[channel] = true
	return true
}

func (c *channels) release(channel string) {
	c.Lock()
	defer c.Unlock()
	delete(c.busy, channel)
}

func (c *channels) rest(channel string, until time.Time) {
	c.Lock()
	defer c.Unlock()
	c.until[channel] = until
}

// tellChannel tells a channel what is due, until it fails once or its turn is
// over. What is left goes behind what is due for others, so that a channel with
// much to be told hides nobody's.
func (b *Broker) tellChannel(ctx context.Context, channel string, list []*Notice, now time.Time) {
	start := time.Now()
	for i, n := range list {
		if ctx.Err() != nil {
			return
		}
		at := now.Add(time.Since(start))
		if at.Sub(now) > tellTurn {
			b.postpone(ctx, list[i:], at)
			return
		}
		failed, err := b.tellOne(ctx, n, at)
		if err != nil && ctx.Err() == nil {
			b.cfg.Log.ErrorContext(ctx, "recording that a channel was told", "channel", channel, "err", err)
		}
		if failed != nil || err != nil {
			until := at.Add(min(backoff(n.Attempts), time.Minute))
			b.channels.rest(channel, until)
			b.postpone(ctx, list[i+1:], until)
			return
		}
	}
}

// postpone has notices wait.
func (b *Broker) postpone(ctx context.Context, list []*Notice, until time.Time) {
	if len(list) == 0 {
		return
	}
	err := b.cfg.Store.Update(context.WithoutCancel(ctx), nil, func(tx Tx) error {
		for _, n := range list {
			n.Due = until
			tx.Put(n)
		}
		return nil
	})
	if err != nil {
		b.cfg.Log.ErrorContext(ctx, "postponing what a channel has to be told", "err", err)
	}
}

// tellOne tells one notice, and writes down what came of it.
func (b *Broker) tellOne(ctx context.Context, n *Notice, now time.Time) (failed, err error) {
	var r *Request
	earlier := ""
	key := TellingKey{n.Request, n.Channel}
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		if r, err = get[*Request](tx, n.Request); err != nil {
			return err
		}
		told, err := get[*Telling](tx, key)
		if err == nil {
			earlier = told.Reference
		}
		return ignoreNotFound(err)
	})
	notifier := b.notifier(n.Channel)
	switch {
	case isNotFound(err), err == nil && !n.Current(r, now):
		return nil, b.told(ctx, n, "")
	case err == nil && !now.Before(n.Expires):
		b.cfg.Log.WarnContext(ctx, "a channel could not be told in time: it is given up", "channel", n.Channel, "notice", n.ID.String(), "attempts", n.Attempts)
		b.observeTold(n, "expired")
		return nil, b.told(ctx, n, "")
	case err != nil:
		return nil, err
	case notifier == nil:
		b.cfg.Log.WarnContext(ctx, "nobody can be told: there is no such channel", "channel", n.Channel, "group", n.Group)
		b.observeTold(n, "no_channel")
		return nil, b.told(ctx, n, "")
	}
	call, cancel := context.WithTimeout(ctx, tellDeadline)
	defer cancel()
	reference, failed := notifier.Notify(call, n, r, earlier, now)
	var later *TellLater
	switch {
	case failed == nil:
		b.observeTold(n, "ok")
		return nil, b.told(ctx, n, reference)
	case errors.Is(failed, ErrChannelGone):
		b.cfg.Log.WarnContext(ctx, "a channel is gone: what was for it is dropped", "channel", n.Channel)
		b.observeTold(n, "gone")
		return nil, b.told(ctx, n, "")
	}
	b.observeTold(n, "failed")
	b.cfg.Log.WarnContext(ctx, "a channel could not be told", "channel", n.Channel, "notice", n.ID.String(), "attempts", n.Attempts+1, "err", failed)
	n.Attempts++
	n.Due = now.Add(backoff(n.Attempts))
	if errors.As(failed, &later) {
		n.Due = now.Add(max(later.After, time.Second))
	}
	return failed, b.cfg.Store.Update(context.WithoutCancel(ctx), nil, func(tx Tx) error { tx.Put(n); return nil })
}

// told takes a notice out of what is due.
func (b *Broker) told(ctx context.Context, n *Notice, reference string) error {
	n.Due = time.Time{}
	return b.cfg.Store.Update(context.WithoutCancel(ctx), nil, func(tx Tx) error {
		tx.Put(n)
		if reference != "" {
			tx.Put(&Telling{TellingKey{n.Request, n.Channel}, reference, n.Created.Add(tellingFor)})
		}
		return nil
	})
}

func (b *Broker) observeTold(n *Notice, code string) {
	kind, _, _ := strings.Cut(n.Channel, ":")
	b.cfg.Observe(Event{Kind: EventTold, Issuer: kind, Code: code})
}

// deliverForever tells what is due, until ctx ends.
func (b *Broker) deliverForever(ctx context.Context) {
	var group errgroup.Group
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			_ = group.Wait() // none of them fails
			return
		case <-tick.C:
		}
		if _, err := b.deliver(ctx, &group, time.Now()); err != nil && ctx.Err() == nil {
			b.cfg.Log.ErrorContext(ctx, "telling people", "err", err)
		}
	}
}
