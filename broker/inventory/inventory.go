package inventory

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// A Store reads the projection of the log. It is safe for concurrent use.
type Store interface {
	// Identities returns a page of the identities that records name, in the order of
	// their ids. It is shorter than the limit only if there are no more.
	Identities(ctx context.Context, q Query) ([]*Seen, error)
	// Seen returns what records say about an identity; nil if none names it.
	Seen(ctx context.Context, id string) (*Seen, error)
	// Uses returns how identities used entitlements, by identity and entitlement.
	Uses(ctx context.Context, ids ...string) (map[string]map[string]*Use, error)
	// PolicyUses and EntitlementUses return how policies and entitlements were used by all
	// identities.
	PolicyUses(ctx context.Context) (map[string]*Use, error)
	EntitlementUses(ctx context.Context) (map[string]*Use, error)
	// Surveyed returns the number of identities that records name, and of records at the
	// end of the log that are not counted yet.
	Surveyed(ctx context.Context) (identities, behind int64, err error)
	// RulesAt returns the rules that were in force at a time, or the first ones if the log
	// begins later.
	RulesAt(ctx context.Context, at time.Time) (RulesAt, error)
	// CountHeld returns the number of live leases of each holder who has any.
	CountHeld(ctx context.Context, holders []string, now time.Time) (map[string]int, error)
}

// Config configures an Inventory.
type Config struct {
	Broker *broker.Broker
	Store  Store

	// Places is from how many addresses the requests of one SPIFFE ID may come within a
	// day before that is a problem; zero means 10.
	Places int
}

// An Inventory lists identities with what they may request, and what of it they used. It
// is safe for concurrent use.
type Inventory struct {
	cfg      Config
	declared declaredCache
}

// New returns an inventory.
func New(cfg Config) *Inventory {
	if cfg.Places == 0 {
		cfg.Places = 10
	}
	return &Inventory{cfg: cfg}
}

// An Identity is one entry of the inventory.
type Identity struct {
	ID          string
	Kind        broker.Kind
	Mark        bool // a path of the operator's file below which no identity was seen
	Team        string
	Accountable []string
	Purpose     string
	Model       string
	Ceiling     *broker.Ceiling // nil: policies alone bound what it may have
	Accounts    []string        // of a person who has several
	Suppliers   []string
	Sponsor     string
	Ends        time.Time // the earliest known end of what its access rests on
	Ended       string    // why its access has ended; empty: it has not
	Named       []string  // where the rules name it, such as "group dba"
	Seen        *Seen     // nil: no record names it
	Permits     []*broker.Permit
	MorePermits bool
	Permitted   int // scopes that it may request, those of break-glass aside; an entitlement without scopes counts as one
	Used        int // of Permitted, in the last 90 days
	Live        int // leases
	NextReview  time.Time
	Problems    []Problem

	uses map[string]*Use
}

// LastUsed returns when a credential was last issued to it; zero: never.
func (i *Identity) LastUsed() time.Time {
	if i.Seen == nil {
		return time.Time{}
	}
	return i.Seen.Issued.Last
}

// Credentials returns how many credentials were issued to it in the last days.
func (i *Identity) Credentials(days int, now time.Time) int {
	if i.Seen == nil {
		return 0
	}
	return i.Seen.Days.In(days, now)
}

// maxPermits bounds the permits that are listed for one identity.
const maxPermits = 200

// MayList reports whether policy permits the caller to see the whole inventory: it needs
// the action audit or operate, because the inventory names people.
func (v *Inventory) MayList(ctx context.Context, caller broker.Caller) bool {
	b := v.cfg.Broker
	return b.May(ctx, caller, broker.ActionAudit) || b.May(ctx, caller, broker.ActionOperate)
}

func (v *Inventory) checkMayList(ctx context.Context, caller broker.Caller) error {
	if v.MayList(ctx, caller) {
		return nil
	}
	return &broker.Refusal{Err: broker.ErrDenied, Detail: "policy does not permit you to see the inventory: it needs the action audit or operate"}
}

// A Detail is an identity with its use.
type Detail struct {
	Identity
	Uses      map[string]*Use // by entitlement
	Standings []*broker.Standing
	Whole     bool // the caller may see the whole inventory, and so the names of policies
}

// Parts returns what the identity may request or has used, sorted.
func (d *Detail) Parts() (list []Part) {
	parts := d.parts(true)
	for entitlement, use := range d.Uses {
		for scope := range use.Scopes.All() {
			parts[Part{entitlement, scope}] = true
		}
		if len(use.Scopes) == 0 {
			parts[Part{entitlement, ""}] = true
		}
	}
	return slices.SortedFunc(maps.Keys(parts), func(a, b Part) int {
		return cmp.Or(cmp.Compare(a.Entitlement, b.Entitlement), cmp.Compare(a.Scope, b.Scope))
	})
}

// Identity returns one identity to those who may see the inventory, to itself, and to the
// people who are accountable for it.
func (v *Inventory) Identity(ctx context.Context, caller broker.Caller, id string) (*Detail, error) {
	unknown := &broker.Refusal{Err: broker.ErrNotFound, Detail: "there is no such identity, or you may not view it"}
	rules := v.cfg.Broker.Rules()
	known := v.declared.of(rules)
	if kindOf(id) == broker.KindNone {
		return nil, unknown
	}
	i := v.start(rules, known, id)
	whole := v.MayList(ctx, caller)
	own := caller.Actor.Proof.Valid(caller.At) && (id == caller.Subject.ID || rules.People.Contains(i.Accountable, caller.Subject.ID))
	if !own && !whole {
		return nil, unknown
	}
	var err error
	if i.Seen, err = v.cfg.Store.Seen(ctx, id); err != nil {
		return nil, err
	}
	standings, err := v.standings(ctx, i)
	if err != nil {
		return nil, err
	}
	if i.Seen == nil && len(i.Named) == 0 && len(standings) == 0 {
		return nil, unknown
	}
	if err := v.complete(ctx, rules, []*Identity{i}, caller.At); err != nil {
		return nil, err
	}
	return &Detail{Identity: *i, Uses: i.uses, Standings: standings, Whole: whole}, nil
}

// kindOf returns the kind of an identity as far as its id shows.
func kindOf(id string) broker.Kind {
	if strings.HasPrefix(id, spiffeScheme) {
		if _, _, err := broker.ParseSPIFFEID(id); err == nil {
			return broker.KindWorkload
		}
	} else if _, _, err := broker.ParsePerson(id); err == nil {
		return broker.KindPerson
	}
	return broker.KindNone
}

const spiffeScheme = "spiffe://"

// start returns an identity with what the rules state about it.
func (v *Inventory) start(rules *broker.Rules, known *declared, id string) *Identity {
	who := labelled(rules, id)
	i := &Identity{ID: id, Kind: who.Kind, Team: who.Team, Accountable: who.Accountable, Accounts: who.Accounts, Suppliers: who.Suppliers, Named: known.named[id]}
	i.Purpose, i.Model, i.Ceiling = who.Purpose, who.Model, who.Ceiling
	i.end(who.Ends)
	if person, ok := rules.PersonEnds[id]; ok {
		i.Sponsor = person.Sponsor
		i.end(person.Ends)
	}
	for _, name := range who.Suppliers {
		s := rules.Suppliers.Named(name)
		i.Sponsor = cmp.Or(i.Sponsor, s.Sponsor)
		i.end(s.Ends)
	}
	return i
}

// end notes an end of what the identity's access rests on.
func (i *Identity) end(at time.Time) {
	if !at.IsZero() && (i.Ends.IsZero() || at.Before(i.Ends)) {
		i.Ends = at
	}
}

// labelled returns an identity as policy sees it, without claims of a provider.
func labelled(rules *broker.Rules, id string) broker.Identity {
	who := broker.Identity{ID: id, Kind: kindOf(id)}
	switch who.Kind {
	case broker.KindPerson: // a directory may state the groups of a person who is not logged in
		provider, _, _ := strings.Cut(id, "/")
		who.Person = &broker.Person{Provider: provider}
	case broker.KindWorkload:
		who.TrustDomain, who.Paths = broker.TrustDomainOf(id), broker.SPIFFEPaths(id)
	}
	return rules.WithLabels(who)
}

// complete adds what identities may request, what they used, and their problems.
func (v *Inventory) complete(ctx context.Context, rules *broker.Rules, list []*Identity, now time.Time) error {
	ids := make([]string, len(list))
	for n, i := range list {
		ids[n] = i.ID
	}
	uses, err := v.cfg.Store.Uses(ctx, ids...)
	if err != nil {
		return err
	}
	live, err := v.cfg.Store.CountHeld(ctx, ids, now)
	if err != nil {
		return err
	}
	lister, _ := rules.Policy.(broker.PermitLister)
	for _, i := range list {
		i.uses, i.Live = uses[i.ID], live[i.ID]
		if lister != nil {
			i.Permits, i.MorePermits = lister.Permits(labelled(rules, i.ID), maxPermits)
		}
		i.compare(now)
		if err := v.rest(ctx, i, now); err != nil {
			return err
		}
		i.NextReview = nextReview(rules, i, now)
		if err := v.judge(ctx, i, now); err != nil {
			return err
		}
	}
	return nil
}

// A Part is a scope of an entitlement, or an entitlement without scopes.
type Part struct{ Entitlement, Scope string }

// maxParts bounds the parts that are compared.
const maxParts = 4096

// compare counts what the identity may request, and what of it was used in 90 days.
func (i *Identity) compare(now time.Time) {
	parts := i.parts(false)
	since := now.AddDate(0, 0, -unusedDays)
	i.Permitted, i.Used = len(parts), 0
	for p := range parts {
		if i.uses[p.Entitlement].Part(p.Scope).Issued.Since(since) {
			i.Used++
		}
	}
}

// parts returns what the identity may request.
func (i *Identity) parts(breakGlass bool) map[Part]bool {
	parts := map[Part]bool{}
	for _, p := range i.Permits {
		if p.BreakGlass && !breakGlass {
			continue
		}
		for _, r := range p.Reaches {
			for _, scope := range ScopesOf(r) {
				if len(parts) < maxParts {
					parts[Part{r.Entitlement, scope}] = true
				}
			}
		}
	}
	return parts
}

// ScopesOf returns the scopes of a reach; one empty one for an entitlement without scopes.
func ScopesOf(r broker.Reach) []string {
	if len(r.Scopes) == 0 {
		return []string{""}
	}
	return r.Scopes
}

// Part returns the use of a scope; of the whole entitlement if the scope is empty. A nil
// Use has none.
func (u *Use) Part(scope string) Usage {
	switch {
	case u == nil:
		return Usage{}
	case scope == "":
		return u.Usage
	}
	return u.Scopes.Get(scope)
}

// rest adds what the identity's access rests on.
func (v *Inventory) rest(ctx context.Context, i *Identity, now time.Time) error {
	standings, err := v.standings(ctx, i)
	if err != nil {
		return err
	}
	for _, s := range standings {
		i.describe(s)
		if cause := v.cfg.Broker.Facts.Fault(s, now); cause != "" && i.Ended == "" {
			i.Ended = strings.ReplaceAll(cause, "_", " ")
		}
	}
	if i.Ended == "" && !i.Ends.IsZero() && !now.Before(i.Ends) {
		i.Ended = "its time is over"
	}
	return nil
}

// describe adds what sources state about the identity.
func (i *Identity) describe(s *broker.Standing) {
	for _, f := range s.Facts {
		i.Sponsor = cmp.Or(i.Sponsor, f.Details["sponsor"])
		i.end(f.Until)
	}
}

// standings returns what sources state about the identity, under all of its accounts.
func (v *Inventory) standings(ctx context.Context, i *Identity) (list []*broker.Standing, err error) {
	keys := []broker.StandingKey{{Kind: broker.FactAgent, Name: i.ID}}
	if i.Kind == broker.KindPerson {
		keys = keys[:0]
		for _, account := range append([]string{i.ID}, slices.DeleteFunc(slices.Clone(i.Accounts), func(a string) bool { return a == i.ID })...) {
			keys = append(keys, broker.StandingKey{Kind: broker.FactPerson, Name: account})
		}
	}
	for _, key := range keys {
		s, err := v.cfg.Broker.Facts.Standing(ctx, key)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}
