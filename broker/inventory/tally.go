package inventory

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Seen is what the log knows about an identity.
type Seen struct {
	ID      string      `json:"-"`
	Kind    broker.Kind `json:"kind"` // as of its last record
	Records Span        `json:"records"`
	Methods Names[Span] `json:"methods,omitempty"` // of proof
	Asked   Span        `json:"asked,omitzero"`    // requests that policy permitted
	Denied  Span        `json:"denied,omitzero"`   // requests that policy denied
	Issued  Span        `json:"issued,omitzero"`   // credentials whose issuing began
	Days    Days        `json:"days,omitempty"`    // credentials
	Votes   Names[Span] `json:"votes,omitempty"`   // approvals and reviews, by group
	Places  Places      `json:"places,omitempty"`  // that its requests came from
}

// Places are when requests came from addresses: the latest of each. Only the maxPlaces
// that requests last came from are kept.
type Places map[netip.Addr]int64 // milliseconds since 1970

// MaxPlaces bounds the places of an identity.
const MaxPlaces = 32

// Add notes a request from an address.
func (p *Places) Add(from netip.Addr, at time.Time) { p.Merge(Places{from: at.UnixMilli()}) }

// Merge adds other places.
func (p *Places) Merge(o Places) {
	for from, at := range o {
		if *p == nil {
			*p = Places{}
		}
		(*p)[from] = max((*p)[from], at)
	}
	for len(*p) > MaxPlaces {
		delete(*p, p.oldest())
	}
}

func (p *Places) oldest() netip.Addr {
	return slices.MinFunc(slices.Collect(maps.Keys(*p)), func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare((*p)[a], (*p)[b]), a.Compare(b))
	})
}

// Since returns how many places requests came from at a time or later.
func (p Places) Since(t time.Time) (n int) {
	for _, at := range p {
		if at >= t.UnixMilli() {
			n++
		}
	}
	return n
}

// maxGroups bounds the groups in whose name the votes of a person are counted.
const maxGroups = 64

// Merge adds what later records say about the identity.
func (s *Seen) Merge(o *Seen) {
	if o.Records.N > 0 {
		s.Kind = o.Kind
	}
	s.Records.Merge(o.Records)
	mergeSpans(&s.Methods, o.Methods, len(o.Methods)+len(s.Methods))
	s.Asked.Merge(o.Asked)
	s.Denied.Merge(o.Denied)
	s.Issued.Merge(o.Issued)
	s.Days.Merge(o.Days)
	mergeSpans(&s.Votes, o.Votes, maxGroups)
	s.Places.Merge(o.Places)
}

func mergeSpans(to *Names[Span], from Names[Span], most int) {
	for name, span := range from.All() {
		to.at(name, most).Merge(span)
	}
}

// A UseKey names what an identity used.
type UseKey struct{ Identity, Entitlement string }

// A Tally is what records add to the inventory. The zero value is not ready: use
// NewTally.
type Tally struct {
	Seen         map[string]*Seen
	Uses         map[UseKey]*Use
	Entitlements map[string]*Use
	Policies     map[string]*Use

	// Filed are the requests that records of the log file. Their rows state where they
	// came from.
	Filed []Filed
}

// Filed is a request that an identity filed.
type Filed struct {
	Request  broker.RequestID
	Identity string
	At       time.Time
}

// NewTally returns an empty tally.
func NewTally() *Tally {
	return &Tally{Seen: map[string]*Seen{}, Uses: map[UseKey]*Use{}, Entitlements: map[string]*Use{}, Policies: map[string]*Use{}}
}

// Add adds a record that was just written, at a time.
func (t *Tally) Add(r *audit.Record, at time.Time) {
	if t.add(r, at) && r.From.IsValid() {
		t.Seen[party(r).ID].Places.Add(r.From, at)
	}
}

// AddStored adds a record of the log.
func (t *Tally) AddStored(r *audit.Record) {
	if !t.add(r, r.Time) {
		return
	}
	if id, err := broker.ParseRequestID(r.Request.ID); err == nil {
		t.Filed = append(t.Filed, Filed{id, party(r).ID, r.Time})
	}
}

// party returns the identity that a record is about; nil: the broker itself.
func party(r *audit.Record) *audit.Party { return r.Caller }

// add adds a record, and reports whether it files a request.
func (t *Tally) add(r *audit.Record, at time.Time) (files bool) {
	who := party(r)
	if who == nil || !counts(broker.Kind(who.Kind)) {
		return false
	}
	s := t.see(who, at)
	switch {
	case r.Approval != nil:
		for _, group := range r.Approval.Groups {
			s.Votes.at(group, maxGroups).Add(at, 1)
		}
	case r.Request == nil:
	case r.Kind == audit.RequestDenied:
		s.Denied.Add(at, max(1, r.Count))
		return true
	default:
		files = t.used(r, who, r.Decision, at)
		if r.Subject != nil && counts(broker.Kind(r.Subject.Kind)) { // its permits were used, too
			t.see(r.Subject, at)
			t.used(r, r.Subject, r.Delegated, at)
		}
		return files
	}
	return false
}

// see counts a record of an identity, and how it proved itself.
func (t *Tally) see(who *audit.Party, at time.Time) *Seen {
	s := entry(t.Seen, who.ID)
	s.Kind = broker.Kind(who.Kind)
	s.Records.Add(at, 1)
	if who.Method != "" {
		s.Methods.at(who.Method, len(s.Methods)+1).Add(at, 1)
	}
	return s
}

// counts reports whether the inventory has identities of a kind. The operator at the admin
// socket and the broker itself are none.
func counts(kind broker.Kind) bool {
	return kind == broker.KindWorkload || kind == broker.KindAgent || kind == broker.KindPerson
}

// used counts a request or a credential that policy permitted to one side: to the caller, or
// to the one on whose behalf it was. It reports whether the record files the request.
func (t *Tally) used(r *audit.Record, who *audit.Party, decision *audit.DecisionFacts, at time.Time) (files bool) {
	var u Usage
	if files = r.Kind == audit.RequestCreated || r.Request.TTL > 0; files {
		u.Asked.Add(at, 1)
	}
	// The record that follows lease.opened when the issuer answered names only the lease.
	if r.Kind == audit.LeaseOpened || r.Kind == audit.LeaseIssued {
		u.Issued.Add(at, 1)
	}
	if decision == nil || !decision.Permit || u == (Usage{}) {
		return files
	}
	s := entry(t.Seen, who.ID)
	s.Asked.Merge(u.Asked)
	s.Issued.Merge(u.Issued)
	if u.Issued.N > 0 {
		s.Days.Add(at)
	}
	scopes := r.Request.Scopes
	if r.Lease != nil && r.Lease.Scopes != nil {
		scopes = r.Lease.Scopes // approvers narrowed them
	}
	uses := []*Use{entry(t.Uses, UseKey{who.ID, r.Request.Entitlement})}
	if who == r.Caller { // an entitlement counts once
		uses = append(uses, entry(t.Entitlements, r.Request.Entitlement))
	}
	for _, use := range uses {
		use.add(u)
		for _, scope := range scopes {
			use.Scopes.at(scope, maxNames).Merge(u)
		}
		for _, policy := range decision.Policies {
			use.Policies.at(policy, maxNames).Merge(u)
		}
	}
	for _, policy := range decision.Policies {
		use := entry(t.Policies, policy)
		use.add(u)
		for _, scope := range scopes {
			use.Scopes.at(r.Request.Entitlement+" "+scope, maxNames).Merge(u)
		}
	}
	return files
}

func (u *Use) add(o Usage) {
	u.Usage.Merge(o)
	if o.Issued.N > 0 {
		u.Days.Add(o.Issued.Last)
	}
}

// Rows returns the number of rows that the tally changes, apart from totals.
func (t *Tally) Rows() int { return len(t.Seen) + len(t.Uses) }

func entry[K comparable, V any](m map[K]*V, key K) *V {
	v := m[key]
	if v == nil {
		v = new(V)
		m[key] = v
	}
	return v
}
