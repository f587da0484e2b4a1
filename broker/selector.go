package broker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A Selector selects leases for the kill switch. Exactly one field is set.
type Selector struct {
	Holder      string // a SPIFFE ID or a person
	Under       string // a SPIFFE ID; selects it and every path below it
	TrustDomain string
	Entitlement string
	Issuer      string
	Request     RequestID
}

// key returns the key of the selector's block. A request has no block; its key
// only identifies the selection.
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
	return set[0], CheckLine(ErrInvalidRequest, set[0].Kind, set[0].Name, maxSPIFFEID)
}

// selector returns the selector that the key was made from.
func (k BlockKey) selector() (s Selector) {
	switch k.Kind {
	case "holder":
		s.Holder = k.Name
	case "under":
		s.Under = k.Name
	case "trust_domain":
		s.TrustDomain = k.Name
	case "entitlement":
		s.Entitlement = k.Name
	case "issuer":
		s.Issuer = k.Name
	}
	return s
}

func (k BlockKey) String() string { return k.Kind + " " + k.Name }

// checkForm refuses a malformed name. In an emergency, a block that blocks nothing
// is worse than an error.
func (k BlockKey) checkForm() error {
	if domain, path, err := ParseSPIFFEID(k.Name); err == nil && path == "" && (k.Kind == "holder" || k.Kind == "under") {
		return refuse(ErrInvalidRequest, fmt.Sprintf("%s: %s is a whole trust domain: select trust_domain %s", k.Kind, k.Name, domain))
	}
	var err error
	switch k.Kind {
	case "holder":
		err = checkHolder(k.Name)
	case "under":
		_, _, err = ParseWorkloadID(k.Name)
	case "trust_domain":
		err = CheckTrustDomain(k.Name)
	}
	if err != nil {
		return refuse(ErrInvalidRequest, k.Kind+": "+err.Error())
	}
	return nil
}

// checkHolder returns an error unless the name is that of a workload or of a person.
func checkHolder(name string) error {
	if strings.HasPrefix(name, spiffeScheme) {
		_, _, err := ParseWorkloadID(name)
		return err
	}
	if _, _, err := ParsePerson(name); err != nil {
		return fmt.Errorf("%s is neither a SPIFFE ID, such as spiffe://acme.test/agent, nor a person, such as login/ana", quoted(name))
	}
	return nil
}

// queries select the live leases, and the ended leases whose credentials still
// work: those of all accounts, if the holder is a person who has several.
func (s Selector) queries(people People, now time.Time) (list []LeaseQuery) {
	for _, holder := range people.Accounts(s.Holder) {
		live := LeaseQuery{
			Holder: holder, Under: s.Under, TrustDomain: s.TrustDomain, Entitlement: s.Entitlement,
			Issuer: s.Issuer, Request: s.Request, Live: true, Now: now, Limit: pageMax,
		}
		outliving := live
		outliving.Live, outliving.Outliving = false, true
		list = append(list, live, outliving)
	}
	return list
}

// delegated selects the requests on behalf of the selected identities, and those that rest on
// them as actors.
func (s Selector) delegated(people People, now time.Time) (list []RequestQuery) {
	q := RequestQuery{Match: func(r *Request) bool { return r.Delegation != nil }, Now: now, Limit: pageMax}
	switch {
	case s.Holder != "":
		for _, holder := range people.Accounts(s.Holder) {
			kind := FactPerson
			if strings.HasPrefix(holder, spiffeScheme) {
				kind = FactAgent
			}
			q.RestsOn = StandingKey{kind, holder}
			list = append(list, q)
		}
	case s.Under != "":
		q.RestsOn, q.Below = StandingKey{FactAgent, s.Under}, true
		list = append(list, q)
	case s.TrustDomain != "":
		q.RestsOn, q.Below = StandingKey{FactAgent, spiffeScheme + s.TrustDomain}, true
		list = append(list, q)
	}
	return list
}

// matchesLease reports whether a selector selects any lease whose credential may work.
func (b *Broker) matchesLease(ctx context.Context, s Selector, now time.Time) (bool, error) {
	for _, q := range s.queries(b.rules.Load().People, now) {
		for q.Limit = 1; ; {
			page, next, err := b.page(ctx, q)
			if err != nil || len(page) > 0 {
				return err == nil, err
			}
			if q.Before = next; next.IsZero() {
				break
			}
		}
	}
	return false, nil
}

// A match is what the broker knows about a selector without live leases.
type match struct {
	found bool   // a request was made by or for the selection, or the rules name it
	near  string // a similar name that the broker knows; may be empty
	below bool   // of a holder: it is a path, and the broker knows identities below it
}

// check refuses a selector that matches nothing, unless the caller confirmed it.
func (m match) check(key BlockKey, confirmed bool) error {
	if m.found || confirmed {
		return nil
	}
	if m.below {
		return refuse(ErrUnmatched, fmt.Sprintf("holder %q itself has no live credential and no request: select the identities below it with under, or confirm that you block only this one", key.Name))
	}
	return refuse(ErrUnmatched, fmt.Sprintf("nothing matches %s %q: no live credential, no request, no name in the rules%s "+
		"Correct the name, or confirm that you block a name that the broker does not know", key.Kind, key.Name, cmp.Or(DidYouMean(m.near), ".")))
}

// match looks for what a selector without live leases selects. It refuses a name that
// is malformed, and one that the configuration must have and does not.
func (b *Broker) match(ctx context.Context, key BlockKey) (match, error) {
	if err := key.checkForm(); err != nil {
		return match{}, err
	}
	rules := b.rules.Load()
	if err := b.checkConfigured(rules, key); err != nil {
		return match{}, err
	}
	named := rules.names(key)
	if named && (key.Kind != "holder" || !strings.HasPrefix(key.Name, spiffeScheme)) {
		return match{found: true}, nil
	}
	m, err := b.matchRequests(ctx, rules, key)
	m.found = m.found || named && !m.below // labels of a path do not make it a holder
	return m, err
}

// checkConfigured refuses a trust domain, provider, entitlement or issuer that is not
// configured.
func (b *Broker) checkConfigured(rules *Rules, k BlockKey) error {
	switch k.Kind {
	case "entitlement":
		return checkListed(k.Name, "entitlement", slices.Collect(maps.Keys(rules.Catalogue)), "")
	case "issuer":
		return checkListed(k.Name, "issuer", slices.Collect(maps.Keys(b.cfg.Issuers)), "")
	case "trust_domain":
		return checkListed(k.Name, "trust domain", rules.TrustDomains, " in attest.trust_domains")
	}
	if domain, _, err := ParseSPIFFEID(k.Name); err == nil {
		return checkListed(domain, "trust domain", rules.TrustDomains, " in attest.trust_domains")
	}
	if provider, _, err := ParsePerson(k.Name); err == nil {
		return checkListed(provider, "provider", rules.Providers, " in attest.people")
	}
	return nil
}

func checkListed(name, kind string, known []string, where string) error {
	if slices.Contains(known, name) {
		return nil
	}
	near := Nearest(name, slices.Sorted(slices.Values(known)))
	return refuse(ErrInvalidRequest, fmt.Sprintf("there is no %s %q%s%s", kind, name, where, DidYouMean(near)))
}

// names reports whether the rules name what the key selects: by the label of a
// workload, as the owner of one, or as a member of a group.
func (r *Rules) names(k BlockKey) bool {
	covers := WorkloadLabels{Under: k.Name}.Covers
	switch k.Kind {
	case "trust_domain":
		covers = WorkloadLabels{Under: spiffeScheme + k.Name}.Covers
	case "holder":
		covers = func(id string) bool { return r.People.Same(id, k.Name) }
	case "under":
	default:
		return false
	}
	return slices.ContainsFunc(r.identities(), covers)
}

// identities returns the SPIFFE IDs and people that the rules name.
func (r *Rules) identities() (list []string) {
	for _, l := range r.Labels {
		list = append(append(list, l.Under), l.Accountable...)
	}
	for _, g := range r.Groups {
		list = append(list, g.Members...)
	}
	return r.People.Expand(list)
}

// Bounds of the search for the requests of a selector without live leases.
const (
	maxMatched = 200_000 // requests
	maxNear    = 10_000  // names to compare
)

// matchRequests looks for a request that the key selects, or for a person's account.
// Requests have no index by requester, so it reads them back from the newest, within a
// bound: an older request is not found.
func (b *Broker) matchRequests(ctx context.Context, rules *Rules, key BlockKey) (match, error) {
	var m match
	seen := map[string]bool{}
	for _, id := range rules.identities() {
		seen[id] = true
	}
	q := RequestQuery{Limit: pageMax}
	if key.Kind == "entitlement" {
		q.Entitlement = key.Name
	}
	err := b.cfg.Store.View(ctx, func(tx Tx) error {
		if block, err := Get[*Block](tx, key); !isNotFound(err) {
			m.found = err == nil && block.Lifted.IsZero() // repeating a block is no error
			if err != nil || m.found {
				return err
			}
		}
		if account, err := Get[*Account](tx, PersonKey(key.Name)); key.Kind == "holder" && !isNotFound(err) {
			m.found = err == nil && account != nil
			return err
		}
		for rows := 0; rows < maxMatched && ctx.Err() == nil; rows += pageMax {
			page, next, err := tx.Requests(q)
			if err != nil {
				return err
			}
			for _, r := range page {
				if m.found = key.selects(r, rules); m.found {
					return nil
				}
				if len(seen) < maxNear {
					seen[r.Requester.ID] = true
				}
			}
			if q.Before = next; next.IsZero() {
				break
			}
			if len(page) < pageMax {
				rows += maxMatched / 20 // the store read many rows for a short page
			}
		}
		return ctx.Err()
	})
	if err != nil || m.found {
		return m, Unavailable(err)
	}
	m.near = nearestIdentity(key, seen)
	covers := WorkloadLabels{Under: key.Name}.Covers
	for id := range seen {
		m.below = m.below || key.Kind == "holder" && id != key.Name && covers(id)
	}
	return m, nil
}

// selects reports whether the key selects the requester, entitlement or issuer of a
// request.
func (k BlockKey) selects(r *Request, rules *Rules) bool {
	switch k.Kind {
	case "holder":
		return rules.People.Same(r.Requester.ID, k.Name)
	case "under":
		return WorkloadLabels{Under: k.Name}.Covers(r.Requester.ID)
	case "trust_domain":
		return r.Requester.TrustDomain == k.Name
	case "entitlement":
		return r.Entitlement == k.Name
	case "issuer":
		e := rules.Catalogue[r.Entitlement]
		return e != nil && e.Issuer == k.Name
	}
	return false
}

// nearestIdentity returns the known name that is most similar to the key's, or "".
func nearestIdentity(k BlockKey, known map[string]bool) string {
	var names []string
	for id := range known {
		switch {
		case k.Kind == "under":
			names = append(names, SPIFFEPaths(id)...)
		case k.Kind == "holder" && id != k.Name:
			names = append(names, id)
		}
	}
	slices.Sort(names)
	return Nearest(k.Name, slices.Compact(names))
}
