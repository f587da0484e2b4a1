package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/audit"
)

// A Preview counts the leases that the kill switch would end.
type Preview struct {
	Leases      int
	Ended       int // of Leases: ended, but the credential still works
	ByIssuer    map[string]int
	Irrevocable int          // of Leases: not revocable
	Lasting     int          // of Irrevocable: the credential outlives the lease (at_rotation, never)
	WorkUntil   time.Time    // the latest expiry of the other irrevocable leases; zero: there are none
	Beyond      int          // other leases that their issuers end together with these (see Entitlement.Shares)
	More        bool         // more leases are selected than one call handles: call again
	Hits        []*Lease     // the newest selected leases, at most maxHits
	Accounts    []string     // all accounts of the selected person, who has several
	Unmatched   bool         // the selector matches no lease, no request and no name in the rules
	Near        string       // of Unmatched: a similar name that the broker knows; may be empty
	Below       bool         // of Unmatched: the holder is a path with identities below it, which Under selects
	Digest      audit.Digest // of exactly the selected leases
}

// maxHits bounds the leases that a preview lists.
const maxHits = 50

// maxSelected is the number of leases that one call handles. A repeated call
// continues.
const maxSelected = 100_000

// Preview returns what RevokeAll would end now.
func (b *Broker) Preview(ctx context.Context, caller Caller, s Selector) (*Preview, error) {
	if err := b.mayBlock(ctx, caller); err != nil {
		return nil, err
	}
	return b.preview(ctx, s, caller.At)
}

// preview counts the selected leases. A name that is malformed or not configured is an
// error, unless it selects leases: their holder may be of a trust domain that was removed.
func (b *Broker) preview(ctx context.Context, s Selector, now time.Time) (*Preview, error) {
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	if err := key.checkForm(); err != nil {
		return nil, err
	}
	if !s.Request.IsZero() {
		if _, err := b.load(ctx, s.Request); err != nil {
			return nil, err
		}
	}
	p, _, err := b.selectLeases(ctx, s, now)
	if err != nil || p.Leases > 0 || !s.Request.IsZero() {
		return p, err
	}
	m, err := b.match(ctx, key)
	if err != nil {
		return nil, err
	}
	p.Unmatched, p.Near, p.Below = !m.found, m.near, m.below
	return p, nil
}

// selectLeases returns the leases of a selector whose credentials may work, those on behalf of
// a selected identity and those of its sub-agents included.
func (b *Broker) selectLeases(ctx context.Context, s Selector, now time.Time) (*Preview, []LeaseID, error) {
	key, err := s.key()
	if err != nil {
		return nil, nil, err
	}
	x := selection{Preview: &Preview{ByIssuer: map[string]int{}}, digest: sha256.New(), byEntitlement: map[string]int{}}
	_, _ = x.digest.Write([]byte("accessbroker/preview/v1\n" + key.String() + "\n"))
	people := b.rules.Load().People
	if accounts := people.Accounts(s.Holder); len(accounts) > 1 {
		x.Accounts = accounts
	}
	for _, q := range s.queries(people, now) {
		if err := b.selectPages(ctx, &x, q); err != nil {
			return nil, nil, err
		}
	}
	if err := b.selectDelegated(ctx, &x, s, now); err != nil {
		return nil, nil, err
	}
	x.Digest = audit.Digest(x.digest.Sum(nil))
	x.Beyond, err = b.countShared(ctx, x.byEntitlement, now)
	return x.Preview, x.ids, err
}

// A selection is what the kill switch has selected so far.
type selection struct {
	*Preview
	ids           []LeaseID
	seen          map[LeaseID]bool // nil: no lease can be selected twice
	digest        hash.Hash
	byEntitlement map[string]int
}

func (x *selection) add(l *Lease, outliving bool) {
	if x.seen[l.ID] {
		return
	}
	if x.seen != nil {
		x.seen[l.ID] = true
	}
	x.ids = append(x.ids, l.ID)
	_, _ = x.digest.Write(l.ID[:])
	if x.count(l); outliving {
		x.Ended++
	}
	if len(x.Hits) < maxHits {
		x.Hits = append(x.Hits, l)
	}
	x.byEntitlement[l.Entitlement]++
}

// selectPages adds the leases of a query.
func (b *Broker) selectPages(ctx context.Context, x *selection, q LeaseQuery) error {
	for x.More = len(x.ids) >= maxSelected; !x.More; x.More = len(x.ids) >= maxSelected {
		page, next, err := b.page(ctx, q)
		if err != nil {
			return err
		}
		for _, l := range page {
			x.add(l, q.Outliving)
		}
		if q.Before = next; next.IsZero() {
			break
		}
	}
	return nil
}

// selectDelegated adds the leases that rest on a selected identity because it is the subject,
// or has acted before.
func (b *Broker) selectDelegated(ctx context.Context, x *selection, s Selector, now time.Time) error {
	for _, q := range s.delegated(b.rules.Load().People, now) {
		for {
			var page []*Request
			err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
				page, q.Before, err = tx.Requests(q)
				return err
			})
			if err != nil {
				return Unavailable(err)
			}
			if x.seen == nil && len(page) > 0 {
				x.seen = make(map[LeaseID]bool, len(x.ids))
				for _, id := range x.ids {
					x.seen[id] = true
				}
			}
			for _, r := range page {
				live := LeaseQuery{Request: r.ID, Live: true, Now: now, Limit: pageMax}
				outliving := live
				outliving.Live, outliving.Outliving = false, true
				if err := errors.Join(b.selectPages(ctx, x, live), b.selectPages(ctx, x, outliving)); err != nil {
					return err
				}
			}
			if q.Before.IsZero() || x.More {
				break
			}
		}
	}
	return nil
}

// countShared counts the live leases that are not selected but end with those
// that are.
func (b *Broker) countShared(ctx context.Context, selected map[string]int, now time.Time) (n int, err error) {
	rules := b.rules.Load()
	shared := map[string]bool{}
	for name := range selected {
		if e := rules.Catalogue[name]; e != nil && e.Shares != "" {
			shared[e.Shares] = true
		}
	}
	for name, e := range rules.Catalogue {
		if e.Shares == "" || !shared[e.Shares] {
			continue
		}
		n -= selected[name]
		for q := (LeaseQuery{Entitlement: name, Live: true, Now: now, Limit: pageMax}); n < maxSelected; {
			page, next, err := b.page(ctx, q)
			if err != nil {
				return 0, err
			}
			n += len(page)
			if q.Before = next; next.IsZero() {
				break
			}
		}
	}
	return max(n, 0), nil
}

func (b *Broker) page(ctx context.Context, q LeaseQuery) (page []*Lease, next LeaseID, err error) {
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		page, next, err = tx.Leases(q)
		return err
	})
	return page, next, Unavailable(err)
}

func (p *Preview) count(l *Lease) {
	p.Leases++
	p.ByIssuer[l.Issuer]++
	switch l.Revocation {
	case RevokedImmediate, RevokedPending:
		return
	}
	p.Irrevocable++
	if l.Revocation == RevokedNever || l.Revocation == RevokedAtRotation {
		p.Lasting++
		return
	}
	if l.Expires.After(p.WorkUntil) {
		p.WorkUntil = l.Expires
	}
}

// mayBlock refuses callers who may not use the kill switch. Only people permitted
// by policy and root on the admin socket may. No policy lets a workload use it.
func (b *Broker) mayBlock(ctx context.Context, caller Caller) error {
	if caller.Actor.Kind == KindOperator || caller.Actor.Kind == KindPerson && b.May(ctx, caller, ActionBlock) {
		return nil
	}
	return refuse(ErrDenied, "the kill switch is for people whom policy permits to block, and for the admin socket")
}

// A Consent is what the caller of the kill switch has confirmed.
type Consent struct {
	Seen      audit.Digest // of the preview that the caller read
	Force     bool         // whatever a preview would show
	Unmatched bool         // even if the selector matches nothing
}

// RevokeAll is the kill switch. It blocks the selection, so that nothing more is
// issued to it, and then ends its live leases. The caller must have seen a preview
// of exactly these leases, unless it forces the kill. It returns once all of this is
// durable; the reaper then calls the issuers, at once.
func (b *Broker) RevokeAll(ctx context.Context, caller Caller, s Selector, reason string, consent Consent) (*Preview, error) {
	if err := b.mayBlock(ctx, caller); err != nil {
		return nil, err
	}
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	preview, err := b.preview(ctx, s, caller.At)
	if err != nil {
		return nil, err
	}
	if preview.Digest != consent.Seen && !consent.Force {
		return nil, refuse(ErrPreviewStale, "the selection has changed since the preview: request a new preview, or use force")
	}
	if err := (match{!preview.Unmatched, preview.Near, preview.Below}).check(key, consent.Unmatched); err != nil {
		return nil, err
	}
	// From here on the call completes even if the caller no longer waits.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), KillDeadline)
	defer cancel()
	duty := b.cfg.Duties.Hold(ctx, killDuty(key)) // no other process continues what this one does
	defer duty.End()
	var unblocked error
	if s.Request.IsZero() {
		unblocked = b.setBlock(ctx, caller, s, reason, blockKilling)
	} else {
		unblocked = b.revokeGrant(ctx, caller, s.Request, reason)
	}
	if unblocked != nil && !errors.Is(unblocked, ErrUnavailable) {
		return nil, unblocked
	}
	// From here on nothing more is issued to the selection, because of the block or
	// because nothing can be recorded. So the next query finds every lease.
	selected, unrecorded, err := b.endAll(ctx, caller, s, reason)
	if err != nil {
		return nil, errors.Join(unblocked, err)
	}
	if err := errors.Join(unblocked, unrecorded); err != nil {
		b.cfg.Log.ErrorContext(ctx, "the kill switch could not record everything", "selector", key.String(), "err", err)
		return selected, &Refusal{Err: ErrUnavailable, Detail: "not everything could be recorded. Credentials are being revoked nevertheless; call again when the broker can write, or the block may be missing"}
	}
	return selected, nil
}

// endAll ends every selected lease. unrecorded is the error of those that could
// not be recorded; if there are none, the block is marked as done.
func (b *Broker) endAll(ctx context.Context, caller Caller, s Selector, reason string) (selected *Preview, unrecorded, err error) {
	selected, ids, err := b.selectLeases(ctx, s, caller.At)
	if err != nil {
		return nil, nil, err
	}
	var group errgroup.Group
	group.SetLimit(64) // they share commits; one failure does not stop the others
	for _, id := range ids {
		group.Go(func() error { return b.markRevoked(ctx, caller, id, reason) })
	}
	if unrecorded = group.Wait(); unrecorded == nil && s.Request.IsZero() && !selected.More {
		unrecorded = b.markKillDone(ctx, s)
	}
	return selected, unrecorded, nil
}

// KillDeadline bounds the time of one call of the kill switch.
const KillDeadline = 5 * time.Minute

// revokeGrant ends a grant or denies a pending request, so that nothing more is
// collected with it. Repeating it is no error.
func (b *Broker) revokeGrant(ctx context.Context, caller Caller, id RequestID, reason string) error {
	reason, err := checkReason(reason)
	if err != nil {
		return err
	}
	r, err := b.load(ctx, id)
	if err != nil {
		return err
	}
	digest, opening := audit.Commit(reason)
	record := audit.Record{
		Kind: audit.RequestRevoked, Caller: caller.Actor.Party(), Openings: map[string]audit.Opening{"reason": opening}, End: &audit.EndFacts{How: EndRevoked, Reason: digest},
		Request: &audit.RequestFacts{ID: id.String(), Digest: r.Digest, Entitlement: r.Entitlement},
	}
	rules := b.rules.Load()
	_, err = b.write(ctx, r.waiting(), record, func(tx Tx) error {
		stored, err := Get[*Request](tx, id)
		if err != nil {
			return err
		}
		waited := stored.State(caller.At) == RequestPending
		if !stored.revoke(caller.At) {
			return ErrUnchanged
		}
		tx.Put(stored)
		if !waited {
			return nil
		}
		b.notify(tx, NoticeDenied, stored, stored.approverGroups(), rules, caller.At)
		return leavePending(tx, stored, caller.At)
	})
	b.waiters.changed(id)
	if errors.Is(err, ErrUnchanged) {
		return nil
	}
	return err
}

// markRevoked ends one selected lease.
func (b *Broker) markRevoked(ctx context.Context, caller Caller, id LeaseID, reason string) error {
	l, err := b.leaseRow(ctx, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return b.reaper.markRevoked(ctx, l, caller.Actor, reason, caller.At)
}

// CanEnd reports whether the caller is the person on whose behalf another filed the request.
// That person may end it, its grant and its leases at any time.
func CanEnd(b *Broker, caller Caller, r *Request) bool {
	return caller.Actor.Kind == KindPerson && r.Requester.ID != caller.Subject.ID && b.isSubject(caller, r.subject())
}

// endForSubject ends a request and what it led to. It completes even if the caller no longer
// waits. Repeating it is no error.
func (b *Broker) endForSubject(ctx context.Context, caller Caller, r *Request) (*Request, error) {
	lasting, cancel := context.WithTimeout(context.WithoutCancel(ctx), KillDeadline)
	defer cancel()
	if err := EndGrant(lasting, b, caller, r.ID, "ended by the person on whose behalf it was requested"); err != nil {
		return nil, err
	}
	return b.load(ctx, r.ID)
}

// EndGrant ends the grant of a request and its leases. The caller of this function has
// checked that this may happen: an access review or its subject decided it. Repeating it is no error.
func EndGrant(ctx context.Context, b *Broker, caller Caller, id RequestID, reason string) error {
	if err := b.revokeGrant(ctx, caller, id, reason); err != nil {
		return ignoreNotFound(err)
	}
	_, unrecorded, err := b.endAll(ctx, caller, Selector{Request: id}, reason)
	return errors.Join(unrecorded, err)
}
