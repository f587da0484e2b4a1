package policy

import (
	"iter"
	"slices"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

// An index finds the rules whose heads can match a request, so that the cost of
// a decision does not grow with the number of policies. A head names at most
// one entity for the principal and one for the resource. The index files a rule
// under this pair. A lookup visits every pair of an ancestor of the principal
// and an ancestor of the resource, where either side may be "no entity".
//
// The result may contain rules that do not match, because the policy itself
// checks "==" and "is". It never lacks a rule that matches.
type index struct {
	numbers map[types.EntityUID]uint32 // of the entities that heads name; 0 means "no entity"
	rules   []map[uint64][]*rule       // by action, then by pairKey
}

func newIndex(rules map[cedar.PolicyID]*rule) *index {
	x := &index{numbers: map[types.EntityUID]uint32{{}: 0}, rules: make([]map[uint64][]*rule, len(actions))}
	for i := range x.rules {
		x.rules[i] = map[uint64][]*rule{}
	}
	for _, r := range rules {
		k := pairKey(x.number(r.principal.uid), x.number(r.resource.uid))
		for _, a := range r.actions {
			x.rules[a][k] = append(x.rules[a][k], r)
		}
	}
	return x
}

// number returns the number of uid and assigns one if it has none.
func (x *index) number(uid types.EntityUID) uint32 {
	n, ok := x.numbers[uid]
	if !ok {
		n = uint32(len(x.numbers))
		x.numbers[uid] = n
	}
	return n
}

func pairKey(principal, resource uint32) uint64 { return uint64(principal)<<32 | uint64(resource) }

// find returns the rules that may apply to an action, a principal and a
// resource. Both lists hold the entity and all its ancestors.
func (x *index) find(action int, principals, resources []types.EntityUID, foreign bool) candidates {
	var p, r [16]uint32 // keeps the usual case off the heap
	ps, rs := x.lookup(p[:0], principals), x.lookup(r[:0], resources)
	var found candidates
	for _, p := range ps {
		for _, r := range rs {
			for _, rule := range x.rules[action][pairKey(p, r)] {
				if rule.appliesTo(foreign) {
					found = append(found, rule)
				}
			}
		}
	}
	return found
}

// lookup appends 0 and the numbers of the uids that heads name. It drops
// duplicates, because an identity may be in one group in two ways and find must
// not return a rule twice.
func (x *index) lookup(numbers []uint32, uids []types.EntityUID) []uint32 {
	numbers = append(numbers, 0)
	for _, uid := range uids {
		if n, ok := x.numbers[uid]; ok && !slices.Contains(numbers, n) {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// candidates holds the policies that Cedar evaluates.
type candidates []*rule

var _ cedar.PolicyIterator = candidates(nil)

// All implements cedar.PolicyIterator.
func (c candidates) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, r := range c {
			if !yield(cedar.PolicyID(r.id), r.policy) {
				return
			}
		}
	}
}
