package verify

// maxRemembered is how many leases, and how many requests of each of two kinds,
// the verifier remembers. Few logs have so many active at one time.
const maxRemembered = 1 << 17

// A ring holds the last size ids that were added.
type ring struct {
	size int
	ids  []string
	next int // index of the oldest id, once the ring is full
}

// ringSearch is how many ids a full ring examines to find one that it can drop.
const ringSearch = 64

// add adds an id and returns the id that it drops, or "" if the ring is not full.
// It drops the first of the oldest ids that is not needed, or the oldest one if all
// of those are. needed may be nil.
func (r *ring) add(id string, needed func(id string) bool) (dropped string) {
	if len(r.ids) < r.size {
		r.ids = append(r.ids, id)
		return ""
	}
	at := r.next
	for n := range ringSearch {
		if i := (r.next + n) % r.size; needed == nil || !needed(r.ids[i]) {
			at = i
			break
		}
	}
	dropped, r.ids[at] = r.ids[at], id
	r.next = (at + 1) % r.size
	return dropped
}
