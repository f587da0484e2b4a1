package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A footing is what access rests on, as it was read at one moment. The transaction that
// issues checks that nothing of it has changed since.
type footing struct {
	rests []StandingKey // what the grant rests on, sorted; found by index when one ends
	seen  []seenStanding
	until time.Time // the earliest known end; zero: none is known
	links []LeaseID // the tokens of a chain of sub-agents

	// fallen is when any of it last stopped holding. Grants from before do not revive.
	fallen time.Time
}

// A seenStanding is a standing by which a decision was made.
type seenStanding struct {
	key     StandingKey
	version int
}

// subjects returns the subjects of the facts that the access of an identity rests on,
// apart from the identity itself if it is a workload. Workloads make almost all requests,
// and their leases are found by their holder.
func (r *Rules) subjects(who Identity) (list []StandingKey) {
	if who.Kind == KindPerson {
		list = append(list, StandingKey{FactPerson, who.ID})
		for _, account := range who.Accounts {
			if account != who.ID {
				list = append(list, StandingKey{FactPerson, account})
			}
		}
	}
	for _, name := range r.suppliersOf(who) {
		list = append(list, SupplierKey(name))
	}
	return list
}

// suppliersOf returns the suppliers on whose contracts the access of an identity rests: those
// of a person's linked accounts as well, because the contract of a contractor also ends what
// the contractor has by an internal account.
func (r *Rules) suppliersOf(who Identity) []string {
	names := r.Suppliers.Of(who)
	for _, account := range who.Accounts {
		if account != who.ID {
			names = append(names, r.Suppliers.Of(listedPerson(account))...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// stand reads what the access of an identity rests on, and refuses access that has no
// footing. since is when the request was filed: what ended later never revives it. The
// zero time means that it is being filed.
func (b *Broker) stand(ctx context.Context, rules *Rules, who Identity, since, now time.Time) (f footing, err error) {
	rests := rules.subjects(who)
	if who.Kind == KindWorkload || who.Kind == KindAgent {
		if _, err := b.check(ctx, &f, StandingKey{FactAgent, who.ID}, since, now); err != nil {
			return f, err
		}
		if err := b.unended(ctx, rules, &f, who, since, now); err != nil {
			return f, err
		}
		if err := b.accounted(ctx, rules, &f, who, now); err != nil {
			return f, err
		}
	}
	for _, key := range rests {
		s, err := b.check(ctx, &f, key, since, now)
		if err != nil {
			return f, err
		}
		for _, name := range b.Facts.heardTogether(s) {
			source := StandingKey{FactSource, name}
			if slices.Contains(rests, source) {
				continue
			}
			rests = append(rests, source)
			if _, err := b.check(ctx, &f, source, since, now); err != nil {
				return f, err
			}
		}
	}
	slices.SortFunc(rests, StandingKey.compare)
	f.rests = rests
	return f, nil
}

func (k StandingKey) compare(o StandingKey) int { return strings.Compare(k.String(), o.String()) }

// check adds a standing to the footing, or refuses if it does not hold.
func (b *Broker) check(ctx context.Context, f *footing, key StandingKey, since, now time.Time) (*Standing, error) {
	s, err := b.Facts.read(ctx, key)
	if err != nil {
		return nil, err
	}
	f.seen = append(f.seen, seenStanding{key, s.Version})
	f.until = earlier(f.until, s.Until())
	if s.Fallen.After(f.fallen) {
		f.fallen = s.Fallen
	}
	if cause := b.Facts.Fault(s, now); cause != "" {
		return nil, refuseFact(key, cause)
	}
	if !since.IsZero() && !since.After(s.Fallen) {
		return nil, refuseFact(key, CauseFallen)
	}
	return s, nil
}

// refuseFact returns the refusal of access that rests on a fact that does not hold.
func refuseFact(key StandingKey, cause string) error {
	switch cause {
	case CauseUnknown:
		return refuse(ErrFactUnknown, fmt.Sprintf("the source of record does not know %s", key))
	case CauseStale:
		return refuse(ErrFactUnknown, fmt.Sprintf("the state of %s was last confirmed too long ago: try again later", key))
	case CauseNotBegun:
		return refuse(ErrFactEnded, fmt.Sprintf("the time of %s has not begun", key))
	case CauseFallen:
		return refuse(ErrFactEnded, fmt.Sprintf("%s ended after this was granted: file a new request", key))
	}
	return refuse(ErrFactEnded, fmt.Sprintf("access has ended with %s: %s", key, strings.ReplaceAll(cause, "_", " ")))
}

// isFact reports whether a fact is the reason of a refusal.
func isFact(err error) bool {
	return errors.Is(err, ErrFactEnded) || errors.Is(err, ErrFactUnknown) || errors.Is(err, ErrTicketUnfit)
}

// reads returns the keys that check reads.
func (f *footing) reads() []Key {
	list := make([]Key, len(f.seen), len(f.seen)+len(f.links))
	for i, s := range f.seen {
		list[i] = s.key
	}
	for _, id := range f.links {
		list = append(list, id)
	}
	return list
}

// check returns errOvertaken if a standing has changed since it was read.
func (f *footing) check(tx Tx) error {
	for _, s := range f.seen {
		stored, err := Get[*Standing](tx, s.key)
		if ignoreNotFound(err) != nil {
			return err
		}
		if err == nil && stored.Version != s.version || err != nil && s.version != 0 {
			return errOvertaken
		}
	}
	return f.checkLinks(tx)
}

// endLink notes, in the transaction that ends a lease, that what sub-agents got for its token
// ends too. The pass that ends it continues after a restart, as that of every fact.
func endLink(tx Tx, l *Lease, now time.Time) {
	if !l.Exchanged {
		return
	}
	tx.Put(&Standing{StandingKey: linkKey(l.ID), Version: 1, Ended: now, Fallen: now, Cause: CauseLink, Ending: true, Emptied: now})
}

// decisionGround reads what a decision on a pending request rests on: the standing of the
// person who decides, and that of the requester, which may have changed since the request was
// filed.
func (b *Broker) decisionGround(ctx context.Context, rules *Rules, caller Caller, r *Request) (footing, error) {
	person, err := b.stand(ctx, rules, caller.Subject, time.Time{}, caller.At)
	if err != nil {
		return footing{}, err
	}
	f, err := b.standAll(ctx, rules, rules.WithLabels(r.Requester), r.Delegation, r.Created, caller.At)
	if err != nil {
		return footing{}, err
	}
	if err := b.recheckTicket(ctx, &f, rules, r, caller.At); err != nil {
		return footing{}, err
	}
	if err := b.await(ctx, rules, &f, r, caller.At); err != nil {
		return footing{}, err
	}
	if err := b.voidApprovals(ctx, rules, &f, r, caller.At); err != nil {
		return footing{}, err
	}
	return footing{rests: f.rests, seen: append(f.seen, person.seen...), until: f.until, links: f.links}, nil
}

// rest reads what the access of a new request rests on. The request ends at the earliest
// known end of it.
func (b *Broker) rest(ctx context.Context, rules *Rules, r *Request, dry bool, now time.Time) (footing, error) {
	f, err := b.standAll(ctx, rules, r.Requester, r.Delegation, time.Time{}, now)
	if err == nil {
		err = b.restOnTicket(ctx, &f, rules, r, &r.Decision.Obligations.TicketTerms, ticketCheck{now: now, dry: dry})
	}
	if err != nil {
		return f, err
	}
	if err := b.await(ctx, rules, &f, r, now); err != nil {
		return f, err
	}
	if r.Awaits && r.BreakGlass {
		return f, refuse(ErrNotAssessed, "break-glass access does not wait for the assessment of a supplier")
	}
	if !f.until.IsZero() && !r.NotBefore.Before(f.until) {
		return f, refuse(ErrInvalidTTL, "access ends at "+f.until.UTC().Format(time.RFC3339)+", before not_before")
	}
	return f, nil
}

// restOn adds what a collection rests on and the request did not when it was filed, because
// the rules have changed. It returns false if there is nothing to add.
func (r *Request) restOn(rests []StandingKey) (added bool) {
	for _, key := range rests {
		if i, found := slices.BinarySearchFunc(r.RestsOn, key, StandingKey.compare); !found {
			r.RestsOn, added = slices.Insert(slices.Clone(r.RestsOn), i, key), true
		}
	}
	return added
}
