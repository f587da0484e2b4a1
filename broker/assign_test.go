package broker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func yes(person string, groups ...string) Approval {
	return Approval{Person: person, Groups: groups, Approve: true}
}

func TestAssignApprovers(t *testing.T) {
	need := func(group string, n int) ApprovalNeed { return ApprovalNeed{Group: group, Count: n} }
	tests := []struct {
		name  string
		needs []ApprovalNeed
		votes []Approval
		have  []int
		full  bool
	}{
		{"no approvals needed", nil, nil, nil, true},
		{"no votes", []ApprovalNeed{need("a", 1)}, nil, []int{0}, false},
		{"one of one", []ApprovalNeed{need("a", 1)}, []Approval{yes("x", "a")}, []int{1}, true},
		{"one of two", []ApprovalNeed{need("a", 2)}, []Approval{yes("x", "a")}, []int{1}, false},
		{"member of both groups counts once", []ApprovalNeed{need("a", 1), need("b", 1)}, []Approval{yes("x", "a", "b")}, []int{1, 0}, false},
		{"member of both groups moves for a member of one", []ApprovalNeed{need("a", 1), need("b", 1)}, []Approval{yes("x", "a", "b"), yes("y", "a")}, []int{1, 1}, true},
		{"same in the other order", []ApprovalNeed{need("a", 1), need("b", 1)}, []Approval{yes("y", "a"), yes("x", "a", "b")}, []int{1, 1}, true},
		{"denial does not count", []ApprovalNeed{need("a", 1)}, []Approval{{Person: "x", Groups: []string{"a"}}}, []int{0}, false},
		{"other groups do not count", []ApprovalNeed{need("a", 1)}, []Approval{yes("x", "b"), yes("y")}, []int{0}, false},
		{"more than needed", []ApprovalNeed{need("a", 1)}, []Approval{yes("x", "a"), yes("y", "a")}, []int{1}, true},
		{"chain of moves", []ApprovalNeed{need("a", 1), need("b", 1), need("c", 1)}, []Approval{yes("x", "a", "b"), yes("y", "b", "c"), yes("z", "a")}, []int{1, 1, 1}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			progress, full := assignApprovers(test.needs, test.votes)
			var have []int
			for _, p := range progress {
				have = append(have, p.Have)
			}
			if full != test.full || !slices.Equal(have, test.have) {
				t.Errorf("got %v, %t, want %v, %t", have, full, test.have, test.full)
			}
		})
	}
}

// assignApprovers agrees with an exhaustive search.
func TestAssignApproversAgainstExhaustiveSearch(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	groups := []string{"a", "b", "c"}
	for range 3000 {
		var needs []ApprovalNeed
		for _, g := range groups[:1+r.IntN(3)] {
			needs = append(needs, ApprovalNeed{g, 1 + r.IntN(2)})
		}
		var votes []Approval
		for i := range r.IntN(6) {
			v := Approval{Person: fmt.Sprint(i), Approve: r.IntN(5) > 0}
			for _, g := range groups {
				if r.IntN(2) == 0 {
					v.Groups = append(v.Groups, g)
				}
			}
			votes = append(votes, v)
		}
		left := map[string]int{}
		for _, n := range needs {
			left[n.Group] = n.Count
		}
		if _, full := assignApprovers(needs, votes); full != exhaustive(left, votes) {
			t.Fatalf("needs %v, votes %v: got full %t, want %t", needs, votes, full, !full)
		}
	}
}

// exhaustive reports whether some assignment of the voters meets every need.
func exhaustive(left map[string]int, votes []Approval) bool {
	missing := 0
	for _, n := range left {
		missing += n
	}
	if missing == 0 {
		return true
	}
	if len(votes) == 0 {
		return false
	}
	if v := votes[0]; v.Approve {
		for _, g := range v.Groups {
			if left[g] == 0 {
				continue
			}
			left[g]--
			ok := exhaustive(left, votes[1:])
			left[g]++
			if ok {
				return true
			}
		}
	}
	return exhaustive(left, votes[1:])
}

// A grant is the intersection of the request and all approvals.
func TestGrantIsTheIntersection(t *testing.T) {
	r := Request{Scopes: []string{"a", "b", "c"}, TTL: 10 * time.Minute, Duration: time.Hour, Approvals: []Approval{
		{Approve: true, Scopes: []string{"a", "b"}, TTL: 5 * time.Minute},
		{Approve: true, Scopes: []string{"b", "c"}, Duration: 20 * time.Minute, TTL: time.Hour},
		{Approve: false, Scopes: []string{"c"}, TTL: time.Second},
		{Approve: true},
	}}
	g := r.Grant()
	if !slices.Equal(g.Scopes, []string{"b"}) || g.TTL != 5*time.Minute || g.Duration != 20*time.Minute {
		t.Errorf("got %+v, want scope b, ttl 5m, duration 20m", g)
	}
	if !slices.Equal(r.Scopes, []string{"a", "b", "c"}) {
		t.Errorf("got request scopes %v, want them unchanged", r.Scopes)
	}
}
