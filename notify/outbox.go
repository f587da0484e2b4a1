// Package notify notifies people of requests, decisions, break-glass use and new
// passkeys: by webhook, in Slack and by mail.
//
// The broker writes a notice in the transaction that makes it true. The Outbox
// delivers it with the Notifier of its channel. A message contains no secret, and
// its link grants nothing: the page requires a login.
package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/broker"
)

// A Notifier sends messages to one channel. It is safe for concurrent use and
// returns when its context ends.
type Notifier interface {
	// Notify sends a notice. It may be called again for a notice that was sent, with
	// the same ID, so that a receiver can recognize it. r is the request, or nil for
	// a notice about no request, which only PeopleChannel receives. earlier are the
	// references that Notify returned for earlier notices about the request on this
	// channel, oldest first, for channels that update a message. The reference may
	// be empty.
	//
	// The error may be ErrChannelGone or a *RetryAfter.
	Notify(ctx context.Context, n *broker.Notice, r *broker.Request, earlier []string, now time.Time) (reference string, err error)
}

// ErrChannelGone means that the receiver no longer exists. The outbox drops the
// notice.
var ErrChannelGone = errors.New("the channel is gone")

// RetryAfter is an error with the receiver's own time for the next attempt.
type RetryAfter struct {
	Err   error
	After time.Duration
}

// Error returns the text of Err.
func (r *RetryAfter) Error() string { return r.Err.Error() }

// Unwrap returns Err.
func (r *RetryAfter) Unwrap() error { return r.Err }

// OutboxConfig configures an Outbox. Store is required.
type OutboxConfig struct {
	Store   broker.Store
	Duties  broker.Duties      // nil: no other process shares Store
	Log     *slog.Logger       // nil: discard
	Observe func(broker.Event) // receives EventNotified; nil: discard; must not block
}

// An Outbox delivers the notices that the broker wrote. It delivers each at least
// once: the broker writes a notice in the transaction that makes it true, and the
// outbox removes it from the queue after the channel accepted it. An Outbox is safe
// for concurrent use.
type Outbox struct {
	cfg       OutboxConfig
	notifiers atomic.Pointer[map[string]Notifier]

	mu    sync.Mutex
	busy  map[string]bool      // channels that a goroutine delivers to
	until map[string]time.Time // after a failure, when to try a channel again
}

// NewOutbox returns an outbox without notifiers. Call SetNotifiers before Run or
// Deliver: an outbox drops notices for channels that it does not know.
func NewOutbox(cfg OutboxConfig) *Outbox {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(broker.Event) {}
	}
	if cfg.Duties == nil {
		cfg.Duties = broker.Alone
	}
	return &Outbox{cfg: cfg, busy: map[string]bool{}, until: map[string]time.Time{}}
}

// SetNotifiers replaces the notifiers. The keys are channels as groups.yaml names
// them, such as "slack:dba", and PeopleChannel.
func (o *Outbox) SetNotifiers(byChannel map[string]Notifier) { o.notifiers.Store(&byChannel) }

func (o *Outbox) notifier(channel string) Notifier {
	if all := o.notifiers.Load(); all != nil {
		return (*all)[channel]
	}
	return nil
}

const passEvery = time.Second

// Run delivers due notices until ctx ends. It returns nil.
func (o *Outbox) Run(ctx context.Context) error {
	var group errgroup.Group
	tick := time.NewTicker(passEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return group.Wait() // the goroutines return no errors
		case <-tick.C:
		}
		if err := o.start(ctx, &group, new(atomic.Int64), time.Now()); err != nil && ctx.Err() == nil {
			o.cfg.Log.ErrorContext(ctx, "delivering notices", "err", err)
		}
	}
}

// Deliver makes one pass and waits for its end: it delivers the notices that are
// due at now to all channels concurrently. It returns how many it delivered or
// dropped.
func (o *Outbox) Deliver(ctx context.Context, now time.Time) (int, error) {
	var group errgroup.Group
	var done atomic.Int64
	err := o.start(ctx, &group, &done, now)
	err = errors.Join(err, group.Wait())
	return int(done.Load()), err
}

// duty is the work of all channels; a channel's own has the channel's name after a slash.
const duty = "notices"

// start starts a goroutine for every channel that has notices, unless one is
// already running, another process delivers to the channel, or the channel waits after a
// failure. A slow channel therefore
// delays no other. The operator's file bounds the number of channels.
func (o *Outbox) start(ctx context.Context, group *errgroup.Group, done *atomic.Int64, now time.Time) error {
	err := broker.OnDuty(ctx, o.cfg.Duties, duty, func(ctx context.Context) error { return o.trimBacklogs(ctx, now) })
	if err != nil {
		return err
	}
	var names []string
	err = o.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		names, err = tx.NoticeChannels()
		return err
	})
	if err != nil {
		return fmt.Errorf("listing channels: %w", err)
	}
	for _, channel := range names {
		if !o.acquire(channel, now) {
			continue
		}
		group.Go(func() error {
			defer o.release(channel)
			held := o.cfg.Duties.Hold(ctx, duty+"/"+channel)
			defer held.End()
			done.Add(o.deliverTo(held, channel, now))
			return nil
		})
	}
	return nil
}

func (o *Outbox) acquire(channel string, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy[channel] || now.Before(o.until[channel]) {
		return false
	}
	o.busy[channel] = true
	return true
}

func (o *Outbox) release(channel string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.busy, channel)
}

// pause postpones the next attempt of a channel after a failure.
func (o *Outbox) pause(channel string, until time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.until[channel] = until
}

// maxPause bounds the pause of a channel. A single notice may wait longer.
const maxPause = time.Minute

// deliverTo delivers the due notices of a channel, until the first failure. It
// returns how many notices left the queue. It reads one notice at a time, so that
// an urgent one waits for one call of the channel and not for the whole queue.
func (o *Outbox) deliverTo(held broker.Hold, channel string, now time.Time) (done int64) {
	began, ctx := time.Now(), held.Context()
	for ; ctx.Err() == nil && held.Has(duty+"/"+channel); done++ {
		at := now.Add(time.Since(began))
		j, err := o.nextJob(ctx, channel, at)
		if err == nil && j == nil {
			return done
		}
		attempts := 0
		var failed error
		if err == nil {
			attempts = j.notice.Attempts
			failed, err = o.deliver(ctx, j, at)
		}
		if err != nil && ctx.Err() == nil {
			o.cfg.Log.ErrorContext(ctx, "recording a delivery", "channel", channel, "err", err)
		}
		if failed != nil || err != nil {
			o.pause(channel, at.Add(min(broker.Backoff(attempts), maxPause)))
			return done
		}
	}
	return done
}

// Outcomes of a notice, the codes of broker.EventNotified.
const (
	outcomeOK        = "ok"
	outcomeFailed    = "failed"     // to be tried again
	outcomeGone      = "gone"       // the receiver wants no more notices
	outcomeExpired   = "expired"    // not delivered in time
	outcomeNoChannel = "no_channel" // the operator's file no longer has the channel
	outcomeNoAddress = "no_address" // the person has none
	outcomeCrowded   = "crowded"    // dropped: too many are queued
)

// Outcomes returns all outcomes.
func Outcomes() []string {
	return []string{outcomeOK, outcomeFailed, outcomeGone, outcomeExpired, outcomeNoChannel, outcomeNoAddress, outcomeCrowded}
}

// Kind returns the kind of a channel, such as slack for slack:dba.
func Kind(channel string) string {
	kind, _, _ := strings.Cut(channel, ":")
	return kind
}

// observe counts the outcome of a notice by the kind of its channel.
func (o *Outbox) observe(n *broker.Notice, code string) {
	o.cfg.Observe(broker.Event{Kind: broker.EventNotified, Issuer: Kind(n.Channel), Code: code})
}
