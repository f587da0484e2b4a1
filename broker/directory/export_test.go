package directory

// Leaving returns how many people are to lose what a group permitted them.
func (d *Directory) Leaving(group string) int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	people := map[string]bool{}
	for _, l := range d.left {
		if l.group == group {
			people[l.person] = true
		}
	}
	return len(people)
}
