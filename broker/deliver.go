package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// A Notifier tells one channel. It is safe for concurrent use, and ends by its
// context's deadline.
type Notifier interface {
	// Notify tells of a request, at least once: a notice that was told may come
	// again, and is then the same by its ID. earlier is what notices of the same
	// request led to, the first one first; the reference is what this one did, so
	// that a message can be changed later. r is nil for what is of no request, which
	// only PeopleChannel hears. A *TellLater says when to try again, and
	// ErrChannelGone that nobody listens there any more.
	Notify(ctx context.Context, n *Notice, r *Request, earlier []string, now time.Time) (reference string, err error)
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
	References []string // messages', the first one first
	Expires    time.Time
}

// Key gives the row's key.
func (t *Telling) Key() Key { return t.TellingKey }

// maxReferences is how many messages of one request are changed later.
const maxReferences = 8

// tellingFor is how long a message can be changed: as long as a grant may wait.
const tellingFor = MaxDuration

const (
	tellEvery    = time.Second
	tellDeadline = 15 * time.Second
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
	var dealt atomic.Int64
	err := b.deliver(ctx, &group, &dealt, now)
	err = errors.Join(err, group.Wait())
	return int(dealt.Load()), err
}

// deliver starts a turn for every channel that has something to be told, and
// neither rests nor is in one. There are as many as the operator named.
func (b *Broker) deliver(ctx context.Context, group *errgroup.Group, dealt *atomic.Int64, now time.Time) error {
	if err := b.thin(ctx, now); err != nil {
		return err
	}
	var names []string
	err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		names, err = tx.NoticeChannels()
		return err
	})
	if err != nil {
		return fmt.Errorf("listing channels: %w", err)
	}
	for _, channel := range names {
		if !b.channels.take(channel, now) {
			continue
		}
		group.Go(func() error {
			defer b.channels.release(channel)
			dealt.Add(b.tellChannel(ctx, channel, now))
			return nil
		})
	}
	return nil
}

func (c *channels) take(channel string, now time.Time) bool {
	c.Lock()
	defer c.Unlock()
	if c.busy[channel] || now.Before(c.until[channel]) {
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

// tellChannel tells a channel what is due, until it fails once, and gives how
// many notices it dealt with. It takes one at a time, so that an alarm waits for
// one call of its channel, and never for a queue.
func (b *Broker) tellChannel(ctx context.Context, channel string, now time.Time) (dealt int64) {
	clock := startClock(now)
	for ; ctx.Err() == nil; dealt++ {
		at := clock.now()
		e, err := b.nextErrand(ctx, channel, at)
		if err == nil && e == nil {
			return dealt
		}
		attempts := 0
		var failed error
		if err == nil {
			attempts = e.notice.Attempts
			failed, err = b.tellOne(ctx, e, at)
		}
		if err != nil && ctx.Err() == nil {
			b.cfg.Log.ErrorContext(ctx, "recording that a channel was told", "channel", channel, "err", err)
		}
		if failed != nil || err != nil {
			b.channels.rest(channel, at.Add(min(Backoff(attempts), time.Minute)))
			return dealt
		}
	}
	return dealt
}

// An errand is a notice, and what is known of what it tells.
type errand struct {
	notice  *Notice
	request *Request
	told    *Telling // nil: the channel was told nothing of the request yet
	address string   // of whom it goes to alone
	wanted  bool     // it still has to be told
}

// nextErrand gives what a channel has to be told first; nil: there is nothing.
func (b *Broker) nextErrand(ctx context.Context, channel string, now time.Time) (e *errand, err error) {
	err = b.cfg.Store.View(ctx, func(tx Tx) error {
		for _, urgent := range []bool{true, false} {
			list, err := tx.Notices(NoticeQuery{Channel: channel, Urgent: urgent, Now: now, Limit: 1})
			if err != nil {
				return err
			}
			if len(list) > 0 {
				e, err = errandOf(tx, list[0], now)
				return err
			}
		}
		return nil
	})
	return e, err
}

func errandOf(tx Tx, n *Notice, now time.Time) (*errand, error) {
	e := &errand{notice: n, address: n.Address}
	if n.Event == NoticePasskey { // of no request
		e.wanted = n.Channel == PeopleChannel
		return e, nil
	}
	r, err := Get[*Request](tx, n.Request)
	if err != nil {
		return e, ignoreNotFound(err)
	}
	told, err := Get[*Telling](tx, TellingKey{n.Request, n.Channel})
	if ignoreNotFound(err) != nil {
		return nil, err
	}
	e.request, e.wanted = r, n.Current(r, now)
	if err == nil {
		e.told = told
	}
	if n.Event == NoticeWithdrawn && e.told == nil {
		e.wanted = false // nobody was asked
	}
	if n.Person != "" && n.Address == "" {
		a, err := AccountOf(tx, PersonKey(n.Person))
		if err != nil {
			return nil, err
		}
		e.address = a.Email
	}
	return e, nil
}

// tellOne tells one notice, and writes down what came of it.
func (b *Broker) tellOne(ctx context.Context, e *errand, now time.Time) (failed, err error) {
	n := e.notice
	notifier := b.notifier(n.Channel)
	switch {
	case !e.wanted:
		return nil, b.drop(ctx, n)
	case !now.Before(n.Expires):
		b.cfg.Log.WarnContext(ctx, "a channel could not be told in time: it is given up", "channel", n.Channel, "notice", n.ID.String(), "attempts", n.Attempts)
		b.observeTold(n, "expired")
		return nil, b.drop(ctx, n)
	case notifier == nil:
		b.cfg.Log.WarnContext(ctx, "nobody can be told: there is no such channel", "channel", n.Channel, "group", n.Group)
		b.observeTold(n, "no_channel")
		return nil, b.drop(ctx, n)
	case n.Channel == PeopleChannel && e.address == "":
		b.cfg.Log.WarnContext(ctx, "a person can't be told: they have no mail address", "person", n.Person)
		b.observeTold(n, "no_address")
		return nil, b.drop(ctx, n)
	}
	var earlier []string
	if e.told != nil {
		earlier = e.told.References
	}
	call, cancel := context.WithTimeout(ctx, tellDeadline)
	defer cancel()
	addressed := *n
	addressed.Address = e.address
	reference, failed := notifier.Notify(call, &addressed, e.request, earlier, now)
	var later *TellLater
	switch {
	case failed == nil:
		b.observeTold(n, "ok")
		return nil, b.told(ctx, n, reference)
	case errors.Is(failed, ErrChannelGone):
		b.cfg.Log.WarnContext(ctx, "a channel is gone: what was for it is dropped", "channel", n.Channel)
		b.observeTold(n, "gone")
		return nil, b.drop(ctx, n)
	}
	b.observeTold(n, "failed")
	b.cfg.Log.WarnContext(ctx, "a channel could not be told", "channel", n.Channel, "notice", n.ID.String(), "attempts", n.Attempts+1, "err", failed)
	n.Attempts++
	n.Due = now.Add(Backoff(n.Attempts))
	if errors.As(failed, &later) {
		n.Due = now.Add(max(later.After, time.Second))
	}
	return failed, b.cfg.Store.Update(context.WithoutCancel(ctx), nil, func(tx Tx) error { tx.Put(n); return nil })
}

// told takes a notice out of what is due, and writes down that the channel heard
// of the request.
func (b *Broker) told(ctx context.Context, n *Notice, reference string) error {
	n.Due = time.Time{}
	key := TellingKey{n.Request, n.Channel}
	return b.cfg.Store.Update(context.WithoutCancel(ctx), []Key{key}, func(tx Tx) error {
		tx.Put(n)
		if n.Request.IsZero() {
			return nil
		}
		told, err := Get[*Telling](tx, key)
		switch {
		case isNotFound(err):
			told = &Telling{TellingKey: key}
		case err != nil:
			return err
		}
		if reference != "" && !slices.Contains(told.References, reference) && len(told.References) < maxReferences {
			told.References = append(told.References, reference)
		}
		told.Expires = n.Created.Add(tellingFor)
		tx.Put(told)
		return nil
	})
}

// drop takes notices out of what is due.
func (b *Broker) drop(ctx context.Context, list ...*Notice) error {
	if len(list) == 0 {
		return nil
	}
	return b.cfg.Store.Update(context.WithoutCancel(ctx), nil, func(tx Tx) error {
		for _, n := range list {
			n.Due = time.Time{}
			tx.Put(n)
		}
		return nil
	})
}

const (
	maxQueued  = 100  // notices of one requester for one channel
	maxCrowds  = 16   // that are thinned out in one tick
	thinWindow = 1000 // notices of one, at a time
)

// thin bounds what one requester has waiting for one channel: whoever files and
// withdraws all day fills no queue, and a channel that comes back is not told of
// what is long over. What has still to be told is dropped last, newest first, and
// only if it asks somebody, or says that nobody is asked any more.
func (b *Broker) thin(ctx context.Context, now time.Time) error {
	var crowds []Crowd
	err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		crowds, err = tx.Crowds(maxQueued, maxCrowds)
		return err
	})
	if err != nil {
		return fmt.Errorf("counting notices: %w", err)
	}
	for _, c := range crowds {
		over, crowd := []*Notice{}, []*Notice{}
		err := b.cfg.Store.View(ctx, func(tx Tx) error {
			list, err := tx.Notices(NoticeQuery{Channel: c.Channel, Requester: c.Requester, Limit: thinWindow})
			if err != nil {
				return err
			}
			for _, n := range list {
				e, err := errandOf(tx, n, now)
				switch {
				case err != nil:
					return err
				case e.wanted:
					crowd = append(crowd, n)
				default:
					over = append(over, n)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("looking through notices: %w", err)
		}
		for i := len(crowd) - 1; i >= 0 && len(crowd) > maxQueued; i-- {
			if n := crowd[i]; n.Event == NoticePending || n.Event == NoticeWithdrawn {
				over, crowd = append(over, n), slices.Delete(crowd, i, i+1)
				b.observeTold(n, "crowded")
			}
		}
		b.cfg.Log.WarnContext(ctx, "a requester has too much waiting for a channel: some of it is dropped", "channel", c.Channel, "requester", c.Requester, "dropped", len(over))
		if err := b.drop(ctx, over...); err != nil {
			return fmt.Errorf("dropping notices: %w", err)
		}
	}
	return nil
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
		if err := b.deliver(ctx, &group, new(atomic.Int64), time.Now()); err != nil && ctx.Err() == nil {
			b.cfg.Log.ErrorContext(ctx, "telling people", "err", err)
		}
	}
}
