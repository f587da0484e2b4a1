package audit

import (
	"slices"
	"testing"
)

// It compares AssignApprovers with an exhaustive search, for three people and every
// membership in two groups.
func TestAssignApproversFillsAsManyPlacesAsPossible(t *testing.T) {
	const people, groups = 3, 2
	var ran, full int
	for member := range 1 << (people * groups) {
		fits := func(person, group int) bool { return member&(1<<(person*groups+group)) != 0 }
		for _, counts := range [][]int{{1, 1}, {2, 1}, {1, 2}, {3, 0}, {2, 2}} {
			filled, all := AssignApprovers(counts, people, fits)
			got, want := filled[0]+filled[1], mostPlaces(counts, people, fits)
			if got != want || filled[0] > counts[0] || filled[1] > counts[1] || all != slices.Equal(filled, counts) {
				t.Errorf("members %06b, places %v: got %v, %t, want %d filled", member, counts, filled, all, want)
			}
			if ran++; all {
				full++
			}
		}
	}
	if ran != 320 || full == 0 || full == ran {
		t.Errorf("ran %d cases, %d of them full", ran, full)
	}
}

// mostPlaces tries every assignment of the last person, and of those before.
func mostPlaces(counts []int, people int, fits func(person, group int) bool) int {
	if people == 0 {
		return 0
	}
	most := mostPlaces(counts, people-1, fits)
	for group, count := range counts {
		if count > 0 && fits(people-1, group) {
			left := slices.Clone(counts)
			left[group]--
			most = max(most, 1+mostPlaces(left, people-1, fits))
		}
	}
	return most
}

func TestAssignApproversMovesPeople(t *testing.T) {
	// Person 0 fits both groups and is placed first; person 1 fits only group 0.
	filled, full := AssignApprovers([]int{1, 1}, 2, func(person, group int) bool { return person == 0 || group == 0 })
	if !full || !slices.Equal(filled, []int{1, 1}) {
		t.Errorf("got %v, %t, want every place filled", filled, full)
	}
}
