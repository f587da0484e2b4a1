package audit

// AssignApprovers gives each of so many people one place at most, such that as many places
// as can be are filled: somebody who fits two needs counts once. counts are the
// places of each need, and fits says whether a person may take one of them. It
// gives how many of each are taken, and whether all are.
func AssignApprovers(counts []int, people int, fits func(person, need int) bool) (have []int, full bool) {
	var chairs []int // the need that each place is of
	for need, count := range counts {
		for range count {
			chairs = append(chairs, need)
		}
	}
	taken := make([]int, len(chairs)) // by the person, counted from 1
	var sit func(person int, tried []bool) bool
	sit = func(person int, tried []bool) bool {
		for chair, need := range chairs {
			if tried[chair] || !fits(person, need) {
				continue
			}
			tried[chair] = true
			if taken[chair] == 0 || sit(taken[chair]-1, tried) {
				taken[chair] = person + 1
				return true
			}
		}
		return false
	}
	for person := range people {
		sit(person, make([]bool, len(chairs)))
	}
	have, full = make([]int, len(counts)), true
	for chair, person := range taken {
		if person > 0 {
			have[chairs[chair]]++
		} else {
			full = false
		}
	}
	return have, full
}
