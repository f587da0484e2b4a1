package audit

// AssignApprovers assigns people to the places of groups so that as many places
// as possible are filled. counts is the number of places of each group, and fits
// reports whether a person may take a place of a group. It returns how many
// places of each group are filled, and whether all of them are.
//
// Each person takes at most one place: a member of two groups who approves once
// counts once. A greedy choice is not enough. If Ana is in dba and security and
// Ben only in dba, a request for one of each is fully approved, but only if Ana
// takes the place of security. So this is a maximum bipartite matching, computed
// with augmenting paths (Kuhn's algorithm) in O(people × places²) calls of fits at
// most. The broker uses it to decide, and the verifier to check the decision.
func AssignApprovers(counts []int, people int, fits func(person, group int) bool) (filled []int, full bool) {
	var places []int // the group of each place
	for group, count := range counts {
		for range count {
			places = append(places, group)
		}
	}
	taken := make([]int, len(places)) // the person in each place, counted from 1; 0: free
	// place finds a place for a person. It moves people who are already placed to
	// other places where that frees one.
	var place func(person int, tried []bool) bool
	place = func(person int, tried []bool) bool {
		for p, group := range places {
			if tried[p] || !fits(person, group) {
				continue
			}
			tried[p] = true
			if taken[p] == 0 || place(taken[p]-1, tried) {
				taken[p] = person + 1
				return true
			}
		}
		return false
	}
	for person := range people {
		place(person, make([]bool, len(places)))
	}
	filled, full = make([]int, len(counts)), true
	for p, person := range taken {
		if person > 0 {
			filled[places[p]]++
		} else {
			full = false
		}
	}
	return filled, full
}
