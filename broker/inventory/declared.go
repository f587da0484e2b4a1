package inventory

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"accessbroker.internal/broker"
)

// declared are the identities that the rules name, whether they ever called or not.
type declared struct {
	rules *broker.Rules
	ids   []string            // sorted
	named map[string][]string // where, by id
	paths map[string]bool     // ids of marks, which cover everything below them
}

// declaredCache has the declared identities of the rules in force.
type declaredCache struct{ last atomic.Pointer[declared] }

func (c *declaredCache) of(rules *broker.Rules) *declared {
	if d := c.last.Load(); d != nil && d.rules == rules {
		return d
	}
	d := newDeclared(rules)
	c.last.Store(d)
	return d
}

func newDeclared(rules *broker.Rules) *declared {
	d := &declared{rules: rules, named: map[string][]string{}, paths: map[string]bool{}}
	for _, l := range rules.Labels {
		d.add(l.Under, "attest.workloads")
		for _, person := range l.Accountable {
			d.add(person, "accountable for "+l.Under)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rules.Groups)) {
		g := rules.Groups[name]
		for _, member := range slices.Concat(g.Members, g.Workloads) {
			d.add(member, "group "+name)
		}
	}
	for account, person := range rules.PersonEnds {
		d.add(account, "people.yaml")
		d.addPerson(person.Sponsor, "sponsor of "+account)
	}
	for _, s := range rules.Suppliers.All() {
		for _, path := range s.Paths {
			d.add(path, "supplier "+s.Name)
		}
		for _, domain := range s.TrustDomains {
			d.add(spiffeScheme+domain, "supplier "+s.Name)
		}
		d.addPerson(s.Sponsor, "sponsor of supplier "+s.Name)
	}
	d.ids = slices.Sorted(maps.Keys(d.named))
	return d
}

func (d *declared) add(id, where string) {
	if !slices.Contains(d.named[id], where) {
		d.named[id] = append(d.named[id], where)
	}
	if strings.HasPrefix(id, spiffeScheme) {
		d.paths[id] = true
	}
}

// addPerson adds a sponsor who is a person and not a group.
func (d *declared) addPerson(id, where string) {
	if strings.Contains(id, "/") {
		d.add(id, where)
	}
}

// after returns up to n declared ids after an id.
func (d *declared) after(id string, n int) []string {
	i, found := slices.BinarySearch(d.ids, id)
	if found {
		i++
	}
	return d.ids[i:min(i+n, len(d.ids))]
}
