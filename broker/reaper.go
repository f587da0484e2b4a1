package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"accessbroker.internal/audit"
)

// A reaper ends leases: those that are due, those that a caller returns or
// revokes, and those that the kill switch selected. It is safe for concurrent
// use.
//
// The issuer is always called first and the log written afterwards, so that ending
// never depends on the log. Ends that could not be recorded wait in queue.
type reaper struct {
	store   Store
	issuers map[string]Issuer
	duties  Duties
	log     *slog.Logger
	observe func(Event)

	hurry func() // what rests on a lease must end

	queue  revocationQueue
	paces  map[string]*pace // by issuer; the map itself never changes
	shares map[string]reapShares
	writes gate // of background passes
}

const (
	reapEvery     = time.Second
	reapBatch     = 512
	reapParallel  = 16               // concurrent calls to one issuer
	reapWriters   = 8                // concurrent writes of all passes, which share commits with issuing
	scanEvery     = 5 * time.Second  // how often all due leases of an issuer are scanned for unfinished ones
	revokeTimeout = 10 * time.Second // of one call to an issuer

	// reapRate is how many leases of one issuer are ended per second and
	// processor. A kill switch that selects thousands must neither starve issuing
	// nor flood the issuer.
	reapRate = 120
)

func newReaper(cfg Config) *reaper {
	r := &reaper{
		store: cfg.Store, issuers: cfg.Issuers, duties: cfg.Duties, log: cfg.Log, observe: cfg.Observe,
		paces: map[string]*pace{}, writes: make(gate, reapWriters), shares: map[string]reapShares{},
	}
	for name := range cfg.Issuers {
		r.paces[name], r.shares[name] = newPace(), newReapShares(name)
	}
	return r
}

// run passes over one issuer's due leases until ctx ends. Each issuer has its
// own loop, so that one that hangs delays no other.
func (r *reaper) run(ctx context.Context, issuer string) {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for n := reapBatch; n == reapBatch; { // a full batch means that more may be due
			var err error
			if n, err = r.pass(ctx, issuer, time.Now()); err != nil && ctx.Err() == nil {
				r.log.ErrorContext(ctx, "reaping", "issuer", issuer, "err", err)
			}
		}
	}
}

// reapShares are the duties of one issuer's due leases. Each has the leases of some IDs, so
// that several processes end the leases of one issuer, and none is ended twice.
type reapShares [4]string

func newReapShares(issuer string) (s reapShares) {
	for i := range s {
		s[i] = fmt.Sprintf("reap/%s/%d", issuer, i)
	}
	return s
}

// of returns the duty of a lease.
func (s *reapShares) of(id LeaseID) string { return s[int(id[len(id)-1])%len(s)] }

// held reports whether the process has any of the duties.
func (s *reapShares) held(h Hold) bool { return slices.ContainsFunc(s[:], h.Has) }

// pass ends up to a batch of one issuer's due leases and returns how many. Ends
// that could not be recorded earlier come first and do not delay the rest. They are this
// process's own, because they are known only here.
func (r *reaper) pass(ctx context.Context, issuer string, now time.Time) (int, error) {
	pace, clock := r.paces[issuer], startClock(now)
	shares := r.shares[issuer]
	duty := r.duties.Hold(ctx, shares[:]...)
	defer duty.End()
	mine := func(id LeaseID) bool { return duty.Has(shares.of(id)) }
	work := r.queue.due(issuer, reapBatch, now)
	if limit := pace.batch(now); limit == 0 {
		work = slices.DeleteFunc(work, (*pendingRevocation).needsCall)
	} else if shares.held(duty) {
		due, err := r.due(ctx, issuer, limit, mine, now)
		if err != nil && len(work) == 0 {
			return 0, err
		}
		work = append(work, due...)
	}
	var group errgroup.Group
	group.SetLimit(reapParallel)
	var stop atomic.Bool
	done := 0
	for _, p := range work {
		call := p.needsCall()
		if call && (stop.Load() || pace.limiter.Wait(ctx) != nil) {
			break
		}
		if !r.queue.contains(p.lease.ID) && !mine(p.lease.ID) {
			continue // another process has taken over since the lease was listed
		}
		done++
		group.Go(func() error {
			r.endInBackground(ctx, p, clock.now())
			if call && !pace.record(p.issuerDown(), clock.now()) {
				stop.Store(true)
			}
			return nil
		})
	}
	_ = group.Wait() // none of them fails
	if stop.Load() || !r.queue.writable(clock.now()) {
		return min(done, reapBatch-1), nil // an immediate next pass would fail the same way
	}
	return done, nil
}

// due lists up to limit due leases of an issuer that are this process's and not queued. Leases whose
// issuing did not finish come first, no matter how many others are due: no one
// received their credentials, and invariant 4 ends them within 30 s.
func (r *reaper) due(ctx context.Context, issuer string, limit int, mine func(LeaseID) bool, now time.Time) ([]*pendingRevocation, error) {
	var unfinished, others []*pendingRevocation
	scanAll := r.paces[issuer].scans(now)
	err := r.store.View(ctx, func(tx Tx) error {
		for q := (LeaseQuery{Issuer: issuer, Due: true, Now: now, Limit: reapBatch}); ; q.Skip += reapBatch {
			page, _, err := tx.Leases(q)
			if err != nil {
				return err
			}
			for _, l := range page {
				switch p := newPendingRevocation(l, l.dueEnd(), Identity{}, ""); {
				case r.queue.contains(l.ID) || !mine(l.ID):
				case l.Status == LeaseIssuing && len(unfinished) < limit:
					unfinished = append(unfinished, p)
				case len(others) < limit:
					others = append(others, p)
				}
			}
			if len(page) < reapBatch || len(others) >= limit && !scanAll {
				return nil
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listing due leases: %w", err)
	}
	work := append(unfinished, others...)
	return work[:min(len(work), limit)], nil
}

// endLease ends a lease for a caller who waits: the issuer is called, then the
// outcome recorded. If recording fails, the revocation is queued and the error
// returned.
func (r *reaper) endLease(ctx context.Context, l *Lease, how string, by Identity, reason string, now time.Time) error {
	p, clock := newPendingRevocation(l, how, by, reason), startClock(now)
	r.call(ctx, p, clock)
	return r.record(ctx, p, clock)
}

// endInBackground ends a lease that no caller waits for. It yields to others: a few
// write at a time, and none while the store is failing. An end that is not recorded
// is queued.
func (r *reaper) endInBackground(ctx context.Context, p *pendingRevocation, now time.Time) {
	clock := startClock(now)
	r.call(ctx, p, clock)
	if !r.queue.writable(now) {
		r.queue.enqueue(p)
		return
	}
	defer r.writes.pass()()
	_ = r.record(ctx, p, clock) // record has logged and queued it
}

// call has the issuer end the credential, unless it already did. It continues after
// the caller has gone away.
func (r *reaper) call(ctx context.Context, p *pendingRevocation, clock clock) {
	if !p.needsCall() {
		return
	}
	l := *p.lease
	if l.EndHow == "" || p.result.how == EndRevoked || p.result.how == EndFact {
		l.EndHow = p.result.how
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeTimeout)
	defer cancel()
	p.record(r.revokeUpstream(ctx, &l), clock.now())
}

func (r *reaper) revokeUpstream(ctx context.Context, l *Lease) error {
	issuer := r.issuers[l.Issuer]
	if issuer == nil {
		return fmt.Errorf("%w: there is no issuer %q", ErrIssuerUnavailable, l.Issuer)
	}
	err := issuer.Revoke(ctx, *l)
	if outcomeOf(err) == outcomeFailed {
		r.observe(Event{Kind: EventUpstream, Entitlement: l.Entitlement, Issuer: l.Issuer, Code: Code(err)})
	}
	return err
}

// record writes the outcome of a call, or queues it.
func (r *reaper) record(ctx context.Context, p *pendingRevocation, clock clock) error {
	ctx = context.WithoutCancel(ctx)
	err := r.recordEnd(ctx, p.lease, p.result, p.by, p.reason, p.at)
	if err == nil {
		r.queue.recorded(p.lease.ID)
		return nil
	}
	r.queue.writeFailed(clock.now())
	queued := r.queue.enqueue(p)
	r.log.ErrorContext(ctx, "the end of a lease is not recorded yet", "lease", p.lease.ID.String(), "how", p.result.how, "queued", queued, "err", err)
	return err
}

// recordEnd writes an attempt to end a lease.
func (r *reaper) recordEnd(ctx context.Context, l *Lease, a endAttempt, by Identity, reason string, now time.Time) error {
	e, err := newLeaseEnd(ctx, l, a, by, reason, now)
	if e == nil || err != nil {
		return err
	}
	err = r.store.Update(ctx, e.reads(), e.apply)
	if errors.Is(err, ErrUnchanged) || isNotFound(err) {
		return nil
	}
	if err == nil {
		r.observe(revocationEvent(&e.after, now))
		if e.after.Exchanged {
			r.hurry()
		}
	}
	return Unavailable(err)
}

// A leaseEnd is an attempt to end a lease that is not recorded yet. There is one record when
// the lease ends, one when its revocation begins to take longer, and none for retries.
type leaseEnd struct {
	lease   *Lease // as it was read
	after   Lease  // as it was stored
	attempt endAttempt
	entry   *audit.Entry
	now     time.Time
}

// newLeaseEnd returns nil if the attempt changes nothing.
func newLeaseEnd(ctx context.Context, l *Lease, a endAttempt, by Identity, reason string, now time.Time) (*leaseEnd, error) {
	after := *l
	if !after.end(a, now) {
		return nil, nil
	}
	entry, err := endRecord(ctx, &after, by, reason)
	return &leaseEnd{l, after, a, entry, now}, err
}

func (e *leaseEnd) reads() []Key { return append(keys(e.lease.Limits), e.lease.ID) }

// apply writes the attempt, or returns ErrUnchanged.
func (e *leaseEnd) apply(tx Tx) error {
	stored, err := Get[*Lease](tx, e.lease.ID)
	if err != nil {
		return err
	}
	was := stored.Status
	if was == LeaseIssuing && e.lease.Status == LeaseIssuing {
		stored.Handle = e.lease.Handle // Issue may have returned a better handle than Prepare
	}
	if !stored.end(e.attempt, e.now) {
		return ErrUnchanged
	}
	if was != LeaseRevoking || stored.Status != LeaseRevoking {
		tx.Append(e.entry)
	}
	tx.Put(stored)
	if was == LeaseActive {
		endLink(tx, stored, e.now)
	}
	e.after = *stored
	if !stored.vacates() {
		return nil
	}
	return releaseLimits(tx, stored)
}

func revocationEvent(l *Lease, now time.Time) Event {
	e := Event{Kind: EventRevocation, Entitlement: l.Entitlement, Issuer: l.Issuer, Code: string(l.Revocation)}
	if l.Revocation == RevokedImmediate {
		e.Lag = max(0, now.Sub(l.EndAsked))
	}
	return e
}

func endRecord(ctx context.Context, l *Lease, by Identity, reason string) (*audit.Entry, error) {
	kind := audit.LeaseRevoked
	switch l.Status {
	case LeaseRevoking:
		kind = audit.LeaseRevoking
	case LeaseFailed:
		kind = audit.LeaseFailed
	case LeaseAbandoned:
		kind = audit.LeaseAbandoned
	}
	record := audit.Record{Kind: kind, Caller: by.Party(), Lease: l.facts(), End: &audit.EndFacts{How: l.EndHow, ValidUntil: l.WorksUntil()}, Trace: TraceOf(ctx)}
	if l.EndedBy != nil {
		record.End.Fact, record.End.Cause = l.EndedBy.Subject.String(), l.EndedBy.Cause
	}
	if reason != "" {
		var opening audit.Opening
		record.End.Reason, opening = audit.Commit(reason)
		record.Openings = map[string]audit.Opening{"reason": opening}
	}
	return record.Entry()
}

// discard undoes Prepare for a lease that was never stored.
func (r *reaper) discard(ctx context.Context, issuer Issuer, l *Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeTimeout)
	defer cancel()
	if err := issuer.Revoke(ctx, *l); outcomeOf(err) == outcomeFailed {
		r.log.ErrorContext(ctx, "undoing the preparation of a lease", "issuer", l.Issuer, "err", err)
	}
}

// markRevoked ends a lease as far as the broker can do it alone. If the issuer
// must be called, the reaper finds the lease due; if even that cannot be
// recorded, the revocation is queued and the issuer called nevertheless.
func (r *reaper) markRevoked(ctx context.Context, l *Lease, by Identity, reason string, now time.Time) error {
	return r.mark(ctx, l, endAttempt{how: EndRevoked}, by, reason, now)
}

func (r *reaper) mark(ctx context.Context, l *Lease, a endAttempt, by Identity, reason string, now time.Time) error {
	a, ok := l.markAttempt(a, now)
	if !ok {
		return nil
	}
	err := r.recordEnd(ctx, l, a, by, reason, now)
	if err != nil {
		r.endUnrecorded(l, a, by, reason)
	}
	return err
}

// markAttempt returns the attempt to end a lease as far as the broker can do it alone, and
// whether there is anything to end.
func (l *Lease) markAttempt(a endAttempt, now time.Time) (endAttempt, bool) {
	a.outcome = outcomeTimeOnly
	if l.endable() || l.Status == LeaseIssuing {
		a.outcome = outcomeUntried // a call to Issue that is still running finds that its lease has ended
	}
	return a, (l.Live(now) || l.deniable(now)) && l.Status != LeaseRevoking
}

// endUnrecorded has the issuer end a lease whose end could not be recorded.
func (r *reaper) endUnrecorded(l *Lease, a endAttempt, by Identity, reason string) {
	if a.outcome == outcomeUntried {
		r.queue.enqueue(&pendingRevocation{lease: l, by: by, reason: reason, result: endAttempt{how: a.how, by: a.by}})
	}
}

// A pace protects an issuer that does not answer. After as many failures in a
// row as there are parallel calls, one lease is tried at a time, with growing
// pauses, until one succeeds.
type pace struct {
	limiter  *rate.Limiter
	mu       sync.Mutex
	failures int       // in a row
	trips    int       // pauses since the issuer last answered
	notUntil time.Time // earliest time of the next try
	scanned  time.Time // when all due leases were last scanned
}

func newPace() *pace {
	// GOMAXPROCS may exceed the number of processors, which adds no speed.
	return &pace{limiter: rate.NewLimiter(rate.Limit(reapRate*min(runtime.NumCPU(), runtime.GOMAXPROCS(0))), reapBatch)}
}

// batch returns how many leases may be tried at now.
func (p *pace) batch(now time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case now.Before(p.notUntil):
		return 0
	case p.trips > 0:
		return 1
	}
	return reapBatch
}

// scans reports whether this pass scans all due leases rather than one batch.
func (p *pace) scans(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.scanned) < scanEvery {
		return false
	}
	p.scanned = now
	return true
}

// record takes whether a call found the issuer down, and reports whether to
// continue the pass.
func (p *pace) record(down bool, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !down {
		p.failures, p.trips, p.notUntil = 0, 0, time.Time{}
		return true
	}
	if p.failures++; p.failures < reapParallel && p.trips == 0 {
		return true
	}
	p.notUntil = now.Add(min(Backoff(p.trips), time.Minute))
	p.trips++
	return false
}

// A gate bounds how many pass at a time.
type gate chan struct{}

// pass waits for a place and returns the function that frees it.
func (g gate) pass() (leave func()) {
	g <- struct{}{}
	return func() { <-g }
}

// enter is pass for callers that may give up.
func (g gate) enter(ctx context.Context) (leave func(), err error) {
	select {
	case g <- struct{}{}:
		return func() { <-g }, nil
	case <-ctx.Done():
		return nil, refuse(ErrUnavailable, "too many lists are being read: try again")
	}
}
