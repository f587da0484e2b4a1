package broker

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

const (
	reapEvery   = time.Second
	reapBatch   = 512
	reapAtOnce  = 16 // calls to one issuer at a time
	reapWrites  = 8  // writes of all reaping at a time: those that issue share the commits with them
	lookEvery   = 5 * time.Second
	sharedFlush = 10 * time.Second

	// reapRate is how many leases of one issuer are ended a second, for each
	// processor that we have: a kill switch that hits thousands must leave time
	// for issuing, and not flood the issuer.
	reapRate = 120
)

// A pace spares an issuer that does not answer: after as many failures in a
// row as there are calls at a time, one lease at a time is tried, with growing
// pauses, until one ends.
type pace struct {
	limiter  *rate.Limiter
	mu       sync.Mutex
	failures int       // in a row
	trips    int       // since it last answered
	until    time.Time // nothing is tried before
	looked   time.Time // through all that is due
}

func newPace() *pace {
	// One processor may run two threads, which makes it no faster.
	return &pace{limiter: rate.NewLimiter(rate.Limit(reapRate*min(runtime.NumCPU(), runtime.GOMAXPROCS(0))), reapBatch)}
}

// batch says how many leases may be tried now.
func (p *pace) batch(now time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case now.Before(p.until):
		return 0
	case p.trips > 0:
		return 1
	}
	return reapBatch
}

// looksThrough says whether to look through all that is due now, and not only
// for a batch of it.
func (p *pace) looksThrough(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.looked) < lookEvery {
		return false
	}
	p.looked = now
	return true
}

// heard takes what an issuer answered, and says whether to go on.
func (p *pace) heard(err error, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !errors.Is(err, ErrIssuerUnavailable) {
		p.failures, p.trips, p.until = 0, 0, time.Time{}
		return true
	}
	if p.failures++; p.failures < reapAtOnce && p.trips == 0 {
		return true
	}
	p.until = now.Add(min(backoff(p.trips), time.Minute))
	p.trips++
	return false
}

// A gate lets as many through at a time as it has places. The zero gate lets
// everybody through.
type gate chan struct{}

// pass waits for a place, and gives what frees it.
func (g gate) pass() (leave func()) {
	if g == nil {
		return func() {}
	}
	g <- struct{}{}
	return func() { <-g }
}

// enter is pass for those who may give up waiting.
func (g gate) enter(ctx context.Context) (leave func(), err error) {
	select {
	case g <- struct{}{}:
		return func() { <-g }, nil
	case <-ctx.Done():
		return nil, refuse(ErrUnavailable, "others are being served: try again")
	}
}

// Reap does what is due: leases whose time is over are ended upstream, leases
// whose issuing never finished are revoked, pending revocations are tried
// again, and the kill switch goes on where it was interrupted. It gives the number of leases that it dealt with.
func (b *Broker) Reap(ctx context.Context, now time.Time) (int, error) {
	var group errgroup.Group
	var total atomic.Int64
	b.resumeKills(ctx, now)
	for name := range b.cfg.Issuers {
		group.Go(func() error {
			n, err := b.reapIssuer(ctx, name, now)
			total.Add(int64(n))
			return err
		})
	}
	err := group.Wait()
	return int(total.Load()), errors.Join(err, ctx.Err())
}

// reapIssuer does what is due at one issuer, at most a batch of it. What could
// not be recorded before comes first, and does not keep the rest from being
// ended.
func (b *Broker) reapIssuer(ctx context.Context, issuer string, now time.Time) (int, error) {
	pace, clock := b.paces[issuer], startClock(now)
	work := b.debts.due(issuer, reapBatch, now)
	most := pace.batch(now)
	if most == 0 {
		work = slices.DeleteFunc(work, (*debt).toTell)
	} else {
		due, err := b.due(ctx, issuer, most, now)
		if err != nil && len(work) == 0 {
			return 0, err
		}
		work = append(work, due...)
	}
	var group errgroup.Group
	group.SetLimit(reapAtOnce)
	var stop atomic.Bool
	done := 0
	for _, d := range work {
		told := d.toTell()
		if told && (stop.Load() || pace.limiter.Wait(ctx) != nil) {
			break
		}
		done++
		group.Go(func() error {
			upstream, _ := b.pay(ctx, d, clock.now(), b.writes) // what is not recorded is owed
			if told && !pace.heard(upstream, clock.now()) {
				stop.Store(true)
			}
			return nil
		})
	}
	_ = group.Wait() // none of them fails
	if stop.Load() || !b.debts.writable(clock.now()) {
		return min(done, reapBatch-1), nil // it is not worth to go on at once
	}
	return done, nil
}

// due lists what is due at an issuer and not owed already. Leases whose issuing
// never finished come first, however many others are due: nobody was answered
// those, and they are to be gone within half a minute.
func (b *Broker) due(ctx context.Context, issuer string, most int, now time.Time) ([]*debt, error) {
	var unfinished, others []*debt
	whole := b.paces[issuer].looksThrough(now)
	err := b.cfg.Store.View(ctx, func(tx Tx) error {
		for q := (LeaseQuery{Issuer: issuer, Due: true, Now: now, Limit: reapBatch}); ; q.Skip += reapBatch {
			page, _, err := tx.Leases(q)
			if err != nil {
				return err
			}
			for _, l := range page {
				switch d := newDebt(l, l.dueHow(), Identity{}, ""); {
				case b.debts.has(l.ID):
				case l.Status == LeaseIssuing && len(unfinished) < most:
					unfinished = append(unfinished, d)
				case len(others) < most:
					others = append(others, d)
				}
			}
			if len(page) < reapBatch || len(others) >= most && !whole {
				return nil
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listing what is due: %w", err)
	}
	work := append(unfinished, others...)
	return work[:min(len(work), most)], nil
}

// dueHow says how a lease that is due ends.
func (l *Lease) dueHow() string {
	switch l.Status {
	case LeaseIssuing:
		return EndDeadline
	case LeaseActive:
		return EndExpired
	}
	return l.EndHow
}

// Run reaps, each issuer by itself so that one that hangs does not hold up the
// others, tells people what waits for them, and flushes the counts of repeated
// denials, until ctx ends.
func (b *Broker) Run(ctx context.Context) error {
	var group errgroup.Group
	for name := range b.cfg.Issuers {
		group.Go(func() error { b.reapForever(ctx, name); return nil })
	}
	group.Go(func() error { b.deliverForever(ctx); return nil })
	group.Go(func() error { b.resumeForever(ctx); return nil })
	flush := time.NewTicker(sharedFlush)
	defer flush.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-flush.C:
			b.flushDenials(ctx, time.Now(), false)
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endDeadline)
	defer cancel()
	b.flushDenials(last, time.Now(), true)
	return group.Wait()
}

// resumeForever goes on with what the kill switch left to end, when the process
// begins and now and then: a call that lives may take as long as KillDeadline.
func (b *Broker) resumeForever(ctx context.Context) {
	tick := time.NewTicker(KillDeadline)
	defer tick.Stop()
	for {
		b.resumeKills(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (b *Broker) reapForever(ctx context.Context, issuer string) {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// Until less than a batch was due.
		for n := reapBatch; n == reapBatch; {
			var err error
			if n, err = b.reapIssuer(ctx, issuer, time.Now()); err != nil && ctx.Err() == nil {
				b.cfg.Log.ErrorContext(ctx, "reaping", "issuer", issuer, "err", err)
			}
		}
	}
}
