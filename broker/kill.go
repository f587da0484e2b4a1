package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"golang.org/x/sync/errgroup"
)

// A Selector says what the kill switch hits. Exactly one field is set.
type Selector struct {
	Holder      string // a SPIFFE ID, or a person
	Under       string // a SPIFFE ID: itself and every path below it
	TrustDomain string
	Entitlement string
	Issuer      string
	Request     RequestID
}

// key gives what to block. A request is not blocked: it is only what its
// leases are found by.
func (s Selector) key() (BlockKey, error) {
	var set []BlockKey
	for _, k := range []BlockKey{
		{"holder", s.Holder}, {"under", s.Under}, {"trust_domain", s.TrustDomain},
		{"entitlement", s.Entitlement}, {"issuer", s.Issuer}, {"request", s.Request.String()},
	} {
		if k.Name != "" {
			set = append(set, k)
		}
	}
	if len(set) != 1 {
		return BlockKey{}, refuse(ErrInvalidRequest, "name exactly one of holder, under, trust_domain, entitlement, issuer, request")
	}
	if err := CheckLine(ErrInvalidRequest, set[0].Kind, set[0].Name, maxSelector); err != nil {
		return BlockKey{}, err
	}
	return set[0], set[0].checkForm()
}

// personForm is "<provider>/<sub>". A provider's name has neither a dot nor a colon,
// so that no SPIFFE ID, whole or without its scheme, is taken for a person.
var personForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}/[\x21-\x7e]{1,255}$`)

// checkForm refuses a name that nothing can have: in an emergency, a block that
// blocks nothing is worse than an error.
func (k BlockKey) checkForm() error {
	switch k.Kind {
	case "holder", "under":
		if k.Kind == "holder" && personForm.MatchString(k.Name) {
			return nil
		}
		if !isPlace(k.Name) {
			return refuse(ErrInvalidRequest, k.Kind+" is a SPIFFE ID with a path, such as spiffe://acme.test/agent (for a whole trust domain, name trust_domain)")
		}
	case "trust_domain":
		if strings.ContainsAny(k.Name, "/: ") {
			return refuse(ErrInvalidRequest, "trust_domain is a name such as acme.test, without spiffe://")
		}
	}
	return nil
}

// isPlace says whether a name is that of a workload, or of a place that some are
// under: a SPIFFE ID with a path.
func isPlace(name string) bool {
	rest, ok := strings.CutPrefix(name, "spiffe://")
	_, path, _ := strings.Cut(rest, "/")
	return ok && path != "" && !strings.HasSuffix(path, "/")
}

// maxSelector is as long as a SPIFFE ID may be (SPIFFE-ID, section 2.3).
const maxSelector = 2048

func (k BlockKey) String() string { return k.Kind + " " + k.Name }

// queries select what lives, and what was given back and works all the same.
func (s Selector) queries(now time.Time) []LeaseQuery {
	live := LeaseQuery{
		Holder: s.Holder, Under: s.Under, TrustDomain: s.TrustDomain, Entitlement: s.Entitlement,
		Issuer: s.Issuer, Request: s.Request, Live: true, Now: now, Limit: pageMax,
	}
	lingering := live
	lingering.Live, lingering.Outliving = false, true
	return []LeaseQuery{live, lingering}
}

// known refuses the name of an entitlement or issuer that there is not: in an
// emergency, a block that blocks nothing is worse than an error.
func (b *Broker) known(k BlockKey) error {
	there := true
	switch k.Kind {
	case "entitlement":
		there = b.rules.Load().Catalogue[k.Name] != nil
	case "issuer":
		there = b.cfg.Issuers[k.Name] != nil
	}
	if !there {
		return refuse(ErrInvalidRequest, fmt.Sprintf("there is no %s %q", k.Kind, k.Name))
	}
	return nil
}

// A Preview says what the kill switch would hit.
type Preview struct {
	Leases      int
	Ended       int // of them, those that have ended and work all the same, so that this changes nothing, or not much
	ByIssuer    map[string]int
	Irrevocable int          // of them, those that only time ends
	Lasting     int          // of these, those that don't end with their lease: passwords until their rotation, and what isn't ephemeral
	WorkUntil   time.Time    // the latest end of the other irrevocable ones; zero: none
	Beyond      int          // others that their issuers end with them (see Entitlement.Shares)
	More        bool         // there are more than one call looks at: call again
	Digest      audit.Digest // of exactly the leases that were seen
}

// maxHit is how many leases one call looks at; a repeated call goes on.
const maxHit = 100_000

// Preview says what RevokeAll would hit now.
func (b *Broker) Preview(ctx context.Context, caller Caller, s Selector) (*Preview, error) {
	if err := b.mayBlock(ctx, caller); err != nil {
		return nil, err
	}
	return b.aim(ctx, s, caller.At)
}

// aim is what a selector hits; hitting nothing by a name that nothing has is an
// error.
func (b *Broker) aim(ctx context.Context, s Selector, now time.Time) (*Preview, error) {
	p, _, err := b.hit(ctx, s, now)
	if err != nil || p.Leases > 0 {
		return p, err
	}
	key, err := s.key()
	if err == nil {
		err = b.known(key)
	}
	return p, err
}

// hit finds the leases of a selector whose credentials may work.
func (b *Broker) hit(ctx context.Context, s Selector, now time.Time) (*Preview, []LeaseID, error) {
	key, err := s.key()
	if err != nil {
		return nil, nil, err
	}
	p, digest := &Preview{ByIssuer: map[string]int{}}, sha256.New()
	_, _ = digest.Write([]byte("accessbroker/preview/v1\n" + key.String() + "\n"))
	var ids []LeaseID
	byEntitlement := map[string]int{}
	for _, q := range s.queries(now) {
		for p.More = len(ids) >= maxHit; !p.More; p.More = len(ids) >= maxHit {
			page, next, err := b.page(ctx, q)
			if err != nil {
				return nil, nil, err
			}
			for _, l := range page {
				ids = append(ids, l.ID)
				_, _ = digest.Write(l.ID[:])
				if p.count(l); q.Outliving {
					p.Ended++
				}
				byEntitlement[l.Entitlement]++
			}
			if q.Before = next; next.IsZero() {
				break
			}
		}
	}
	p.Digest = audit.Digest(digest.Sum(nil))
	p.Beyond, err = b.beyond(ctx, byEntitlement, now)
	return p, ids, err
}

// beyond counts the live leases that share the fate of those that are hit,
// without being hit themselves.
func (b *Broker) beyond(ctx context.Context, hit map[string]int, now time.Time) (n int, err error) {
	rules := b.rules.Load()
	shared := map[string]bool{}
	for name := range hit {
		if e := rules.Catalogue[name]; e != nil && e.Shares != "" {
			shared[e.Shares] = true
		}
	}
	for name, e := range rules.Catalogue {
		if e.Shares == "" || !shared[e.Shares] {
			continue
		}
		n -= hit[name]
		for q := (LeaseQuery{Entitlement: name, Live: true, Now: now, Limit: pageMax}); n < maxHit; {
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

// mayBlock says nil if the caller may use the kill switch. A workload's proof
// is never enough, whatever policy says: it takes a person, or root on the
// admin socket.
func (b *Broker) mayBlock(ctx context.Context, caller Caller) error {
	if caller.Actor.Kind == KindOperator || caller.Actor.Kind == KindPerson && b.May(ctx, caller, ActionBlock) {
		return nil
	}
	return refuse(ErrDenied, "the kill switch is for people whom policy lets block, and for the admin socket")
}

// RevokeAll is the kill switch: it blocks what the selector names, so that
// nothing more is issued to it, and then ends every live lease of it. The
// preview's digest must be of what is hit now, unless force is set. It answers
// once all of that is durable; what upstreams must be told is told by the
// reaper, at once.
func (b *Broker) RevokeAll(ctx context.Context, caller Caller, s Selector, reason string, seen audit.Digest, force bool) (*Preview, error) {
	if err := b.mayBlock(ctx, caller); err != nil {
		return nil, err
	}
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	preview, err := b.aim(ctx, s, caller.At)
	if err != nil {
		return nil, err
	}
	if preview.Digest != seen && !force {
		return nil, refuse(ErrPreviewStale, "what this would hit has changed since the preview: look again, or force it")
	}
	// From here on it is done to the end, whether the caller waits or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), KillDeadline)
	defer cancel()
	var unblocked error
	if s.Request.IsZero() {
		unblocked = b.setBlock(ctx, caller, s, reason, blockAndEnd)
	} else {
		unblocked = b.revokeGrant(ctx, caller, s.Request, reason)
	}
	if unblocked != nil && !errors.Is(unblocked, ErrUnavailable) {
		return nil, unblocked
	}
	// Nothing is issued to it from here on, by the block or because nothing can
	// be recorded: what is live now is all there is.
	hit, unmarked, err := b.endAll(ctx, caller, s, reason)
	if err != nil {
		return nil, errors.Join(unblocked, err)
	}
	if err := errors.Join(unblocked, unmarked); err != nil {
		b.cfg.Log.ErrorContext(ctx, "the kill switch could not record all that it does", "selector", key.String(), "err", err)
		return hit, &Refusal{Err: ErrUnavailable, Detail: "not all of this could be recorded. What can be ended is being ended all the same; call again when the broker can write, or nothing stays blocked"}
	}
	return hit, nil
}

// endAll ends every lease of a selector. unmarked is what could not be
// recorded; if there is nothing, its block says that all is done.
func (b *Broker) endAll(ctx context.Context, caller Caller, s Selector, reason string) (hit *Preview, unmarked, err error) {
	hit, ids, err := b.hit(ctx, s, caller.At)
	if err != nil {
		return nil, nil, err
	}
	var group errgroup.Group
	group.SetLimit(64) // they share commits; one that fails does not hold up the others
	for _, id := range ids {
		group.Go(func() error { return b.markRevoked(ctx, caller, id, reason) })
	}
	if unmarked = group.Wait(); unmarked == nil && s.Request.IsZero() && !hit.More {
		unmarked = b.allEnded(ctx, s)
	}
	return hit, unmarked, nil
}

// KillDeadline is how long ending all that one call hits may take.
const KillDeadline = 5 * time.Minute

// revokeGrant ends what a request gave, or waits for, so that nothing more is
// collected with it. Ending it twice is no error.
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
		b.notify(tx, NoticeDenied, stored, stored.askedGroups(), rules, caller.At)
		return leavePending(tx, stored, caller.At)
	})
	b.waiters.changed(id)
	if errors.Is(err, ErrUnchanged) {
		return nil
	}
	return err
}

// markRevoked ends one of the selected leases.
func (b *Broker) markRevoked(ctx context.Context, caller Caller, id LeaseID, reason string) error {
	l, err := b.leaseRow(ctx, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return b.reaper.markRevoked(ctx, l, caller.Actor, reason, caller.At)
}
