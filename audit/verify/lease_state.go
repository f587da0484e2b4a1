package verify

import (
	"time"

	"accessbroker.internal/audit"
)

// leaseState is the state of the leases that the log named last.
type leaseState struct {
	leases map[string]lease
	recent ring
}

type lease struct {
	opened, issued, ended bool
	expires               time.Time // as opened, or as issued
}

func newLeaseState(size int) *leaseState {
	return &leaseState{leases: map[string]lease{}, recent: ring{size: size}}
}

// check returns what contradicts the earlier records of a lease, or "". A lease is
// issued once, ends once, and is not issued after its end. If the record of its
// issue names no request, an earlier record opened it, with at least these scopes
// and this lifetime.
func (s *leaseState) check(r *audit.Record) string {
	switch r.Kind {
	case audit.LeaseOpened, audit.LeaseIssued, audit.LeaseFailed, audit.LeaseRevoking, audit.LeaseRevoked, audit.LeaseAbandoned:
	default:
		return ""
	}
	if r.Lease == nil || r.Lease.ID == "" {
		return "it names no lease"
	}
	id := r.Lease.ID
	l, known := s.leases[id]
	if !known {
		delete(s.leases, s.recent.add(id, nil)) // no lease has an empty id
	}
	problem := l.apply(r)
	s.leases[id] = l
	return problem
}

func (l *lease) apply(r *audit.Record) string {
	before := *l
	switch r.Kind {
	case audit.LeaseOpened:
		l.opened, l.expires = true, r.Lease.Expires
		if before.opened || before.issued || before.ended {
			return "the lease was already opened"
		}
	case audit.LeaseIssued:
		if l.issued = true; l.expires.IsZero() {
			l.expires = r.Lease.Expires
		}
		switch {
		case before.ended:
			return "the lease had already ended"
		case before.issued:
			return "the lease was already issued"
		case r.Request != nil:
		case !before.opened:
			return "it names no request, and no earlier record opened the lease for one"
		case r.Lease.Scopes != nil || r.Lease.Expires.IsZero() || r.Lease.Expires.After(before.expires):
			return "the lease has other scopes or a later expiry than when it was opened"
		}
	case audit.LeaseRevoking:
		if before.issued {
			l.ended = false // a returned credential that only expires by itself can still be denied
		}
	case audit.LeaseFailed, audit.LeaseRevoked, audit.LeaseAbandoned:
		l.ended = true
		if before.ended {
			return "the lease had already ended"
		}
	}
	return ""
}
