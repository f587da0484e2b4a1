package verify

import (
	"time"

	"accessbroker.internal/audit"
)

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
// That is the oldest, or the first of those after it that is not wanted any more.
func (r *ring) put(id string, wanted func(id string) bool) (forgotten string) {
	if len(r.ids) < bookSize {
		r.ids = append(r.ids, id)
		return ""
	}
	at := r.next
	for n := range ringSearch {
		if i := (r.next + n) % bookSize; wanted == nil || !wanted(r.ids[i]) {
			at = i
			break
		}
	}
	forgotten, r.ids[at] = r.ids[at], id
	r.next = (at + 1) % bookSize
	return forgotten
}

// ringSearch is how many are asked for one that is not wanted.
const ringSearch = 64

type leaseState struct {
	opened, issued, ended bool
	expires               time.Time // as it was opened
}

// bookSize is far above what is live in a log at once, but for the largest.
const bookSize = 1 << 17

func newLeaseBook() *leaseBook { return &leaseBook{leases: map[string]leaseState{}} }

// check says what is wrong with the record after those before it, or nothing:
// a lease is issued once, ends once, and is not issued after its end; and one
// whose issuing names no request was opened before, for one and for no less.
func (b *leaseBook) check(r *audit.Record) string {
	switch r.Kind {
	case audit.LeaseOpened, audit.LeaseIssued, audit.LeaseFailed, audit.LeaseRevoking, audit.LeaseRevoked, audit.LeaseAbandoned:
	default:
		return ""
	}
	if r.Lease == nil || r.Lease.ID == "" {
		return "it names no lease"
	}
	id := r.Lease.ID
	s, known := b.leases[id]
	if !known {
		delete(b.leases, b.last.put(id, nil)) // no lease has an empty id
	}
	what := s.step(r)
	b.leases[id] = s
	return what
}

func (s *leaseState) step(r *audit.Record) string {
	was := *s
	switch r.Kind {
	case audit.LeaseOpened:
		s.opened, s.expires = true, r.Lease.Expires
		if was.opened || was.issued || was.ended {
			return "the lease was opened before"
		}
	case audit.LeaseIssued:
		s.issued = true
		switch {
		case was.ended:
			return "the lease had ended before"
		case was.issued:
			return "the lease was issued before"
		case r.Request != nil:
		case !was.opened:
			return "it names no request, and the lease was not opened for one before"
		case r.Lease.Scopes != nil || r.Lease.Expires.IsZero() || r.Lease.Expires.After(was.expires):
			return "the lease is more than it was opened for"
		}
	case audit.LeaseRevoking:
		if was.issued {
			s.ended = false // what only time ends may be denied after it was given back
		}
	case audit.LeaseFailed, audit.LeaseRevoked, audit.LeaseAbandoned:
		s.ended = true
		if was.ended {
			return "the lease had ended before"
		}
	}
	return ""
}
