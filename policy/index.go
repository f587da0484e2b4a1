package policy

import (
	"iter"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

// An index finds the rules whose heads can match, so that the cost of a
// decision follows them and not the number of policies. A head names at most
// one entity for the principal and one for the resource; a rule is filed under
// the pair, and a question looks under every pair of an ancestor of its
// principal and one of its resource, "no entity" among both.
//
// It finds more than match ("==" and "is" are left to the policy itself), and
// never less.
type index struct {
	numbers map[types.EntityUID]uint32 // of the entities that heads name; 0 stands for none
	rules   []map[uint64][]*rule       // by action, then by the numbers of principal and resource
}

func newIndex(rules map[cedar.PolicyID]*rule) *index {
	x := &index{numbers: map[types.EntityUID]uint32{{}: 0}, rules: make([]map[uint64][]*rule, len(actions))}
	for i := range x.rules {
		x.rules[i] = map[uint64][]*rule{}
	}
	for _, r := range rules {
		k := pair(x.intern(r.who.uid), x.intern(r.what.uid))
		for _, a := range r.actions {
			x.rules[a][k] = append(x.rules[a][k], r)
		}
	}
	return x
}

func (x *index) intern(uid types.EntityUID) uint32 {
	n, ok := x.numbers[uid]
	if !ok {
		n = uint32(len(x.numbers))
		x.numbers[uid] = n
	}
	return n
}

func pair(principal, resource uint32) uint64 { return uint64(principal)<<32 | uint64(resource) }

// find gives the rules of an action that can be about the two, which are given
// with all their ancestors.
func (x *index) find(action int, principals, resources []types.EntityUID, foreign bool) candidates {
	var p, r [16]uint32
	ps, rs := x.lookup(p[:0], principals), x.lookup(r[:0], resources)
	var found candidates
	for _, p := range ps {
		for _, r := range rs {
			for _, rule := range x.rules[action][pair(p, r)] {
				if rule.appliesTo(foreign) {
					found = append(found, rule)
				}
			}
		}
	}
	return found
}

// lookup appends 0 and the numbers of those uids that heads name, each once:
// an identity may be in a group twice over.
func (x *index) lookup(numbers []uint32, uids []types.EntityUID) []uint32 {
	numbers = append(numbers, 0)
next:
	for _, uid := range uids {
		n, ok := x.numbers[uid]
		if !ok {
			continue
		}
		for _, have := range numbers {
			if have == n {
				continue next
			}
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// candidates are the policies that Cedar is given to decide with.
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
