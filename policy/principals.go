package policy

import (
	"slices"
	"sync"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// maxPrincipals is how many identities an engine remembers, usually in about 3 MB.
//
// A trust domain can make up identities of 2 KiB with 1,000 segments, each of which
// becomes an entity, and a provider can claim 256 groups of 256 bytes. An engine forgets
// those that exceed maxUIDs, maxID or maxClaimed, so that the others, and those that
// remembered decisions hold, take at most about 7 KB each.
const (
	maxPrincipals = 2048
	maxUIDs       = 32
	maxID         = 512     // bytes
	maxClaimed    = 2 << 10 // bytes of a person's claimed groups
)

// principals remembers workloads and people in Cedar's types. A busy caller asks again and
// again, and converting it takes longer than evaluating most policies. An engine
// never changes, so an entry is valid for as long as its engine. It is safe for
// concurrent use.
type principals struct {
	mu   sync.Mutex
	byID map[string]*principal
}

// A principal is an identity and what follows from it. It is immutable.
type principal struct {
	who       broker.Identity
	uids      []types.EntityUID // the principal and all its ancestors
	entity    types.Entity
	federated bool       // it is from a federated trust domain
	foreign   bool       // it is federated, or has no SVID
	suppliers []string   // sorted names
	member    *principal // with its suspended memberships; nil: it has none
}

// isFor reports whether who has the labels that the principal was made from. Proofs
// differ from call to call; policies don't see them.
func (p *principal) isFor(who *broker.Identity) bool {
	return p.who.ID == who.ID && p.who.Kind == who.Kind && p.who.Attested == who.Attested && p.who.Team == who.Team && slices.Equal(p.who.Accountable, who.Accountable) &&
		p.who.Purpose == who.Purpose && p.who.Model == who.Model && p.who.Ceiling == who.Ceiling && p.who.Ends.Equal(who.Ends) &&
		p.who.TrustDomain == who.TrustDomain && slices.Equal(p.who.Paths, who.Paths) && slices.Equal(p.who.Suppliers, who.Suppliers) &&
		sameClaims(p.who.Person, who.Person)
}

// sameClaims reports whether policies see the same of two people with one ID: their groups,
// which may change with each login and each token, belong to the provider.
func sameClaims(a, b *broker.Person) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Provider == b.Provider && slices.Equal(a.Groups, b.Groups)
}

// find returns the principal of a workload or a person, or nil.
func (l *principals) find(who *broker.Identity) *principal {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.byID[who.ID]; p != nil && p.isFor(who) {
		return p
	}
	return nil
}

// keep remembers a principal. A full list starts again: those that still call
// return at the cost of one conversion each.
func (l *principals) keep(p *principal) {
	if k := p.who.Kind; k != broker.KindWorkload && k != broker.KindAgent && k != broker.KindPerson {
		return
	}
	if len(p.uids) > maxUIDs || len(p.who.ID) > maxID || claimedSize(p.who.Person) > maxClaimed {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byID == nil || len(l.byID) >= maxPrincipals {
		l.byID = map[string]*principal{}
	}
	l.byID[p.who.ID] = p
}

// claimedSize returns the bytes of a person's groups.
func claimedSize(p *broker.Person) (size int) {
	if p == nil {
		return 0
	}
	const header = 16
	for _, group := range p.Groups {
		size += header + len(group)
	}
	return size
}
