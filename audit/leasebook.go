package audit

// A leaseBook remembers what became of the leases that the records name, as
// far as memory is bounded: those last named, bookSize of them.
type leaseBook struct {
	leases map[string]leaseState
	last   ring
}

// A ring holds the last bookSize ids that were put into it.
type ring struct {
	ids  []string
	next int // to be forgotten, once it is full
}

// put takes an id in, and gives the one that is forgotten for it; empty: none.
func (r *ring) put(id string) (forgotten string) {
	if len(r.ids) < bookSize {
		r.ids = append(r.ids, id)
		return ""
	}
	forgotten, r.ids[r.next] = r.ids[r.next], id
	r.next = (r.next + 1) % bookSize
	return forgotten
}

type leaseState struct{ issued, ended bool }

// bookSize is far above what is live in a log at once, but for the largest.
const bookSize = 1 << 17

func newLeaseBook() *leaseBook { return &leaseBook{leases: map[string]leaseState{}} }

// check says what is wrong with the record after those before it, or nothing:
// a lease is issued once, ends once, and is not issued after its end.
func (b *leaseBook) check(r *Record) string {
	switch r.Kind {
	case LeaseOpened, LeaseIssued, LeaseFailed, LeaseRevoking, LeaseRevoked, LeaseAbandoned:
	default:
		return ""
	}
	if r.Lease == nil || r.Lease.ID == "" {
		return "it names no lease"
	}
	id := r.Lease.ID
	s, known := b.leases[id]
	if !known {
		delete(b.leases, b.last.put(id)) // no lease has an empty id
	}
	what := s.step(r.Kind)
	b.leases[id] = s
	return what
}

func (s *leaseState) step(kind Kind) string {
	was := *s
	switch kind {
	case LeaseOpened:
		if was.issued || was.ended {
			return "the lease was opened before"
		}
	case LeaseIssued:
		s.issued = true
		switch {
		case was.ended:
			return "the lease had ended before"
		case was.issued:
			return "the lease was issued before"
		}
	case LeaseFailed, LeaseRevoked, LeaseAbandoned:
		s.ended = true
		if was.ended {
			return "the lease had ended before"
		}
	}
	return ""
}
