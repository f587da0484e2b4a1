package verify

import (
	"maps"
	"slices"

	"accessbroker.internal/audit"
)

// membershipState is the state of the memberships that leases rely on. A membership
// without leases takes no memory.
type membershipState struct {
	memberships map[audit.Digest]*membership
	claims      map[string]audit.Digest // the membership that a lease relies on
	recent      ring                    // of claims, by lease
	continues   bool                    // there may be claims that are not known: from an earlier log, or forgotten
}

type membership struct {
	own    bool            // the broker made it
	leases map[string]bool // that rely on it; false: the lease was abandoned
}

func newMembershipState(size int) *membershipState {
	return &membershipState{memberships: map[audit.Digest]*membership{}, claims: map[string]audit.Digest{}, recent: ring{size: size}}
}

// check returns what contradicts the earlier records of a membership, or "". The
// broker removes only what it made, and only when no other lease relies on it.
func (s *membershipState) check(r *audit.Record) string {
	switch r.Kind {
	case audit.LogOpened:
		s.continues = r.Log != nil && r.Log.Previous != ""
	case audit.LeaseAbandoned:
		s.abandon(r.Lease)
	case audit.MembershipClaimed, audit.MembershipReleased, audit.MembershipDiffers, audit.MembershipAccepted:
		if r.Membership == nil || r.Membership.ID.IsZero() {
			return "it names no membership"
		}
		return s.apply(r)
	}
	return ""
}

func (s *membershipState) abandon(l *audit.LeaseFacts) {
	if l == nil {
		return
	}
	if id, claimed := s.claims[l.ID]; claimed {
		s.memberships[id].leases[l.ID] = false
	}
}

func (s *membershipState) apply(r *audit.Record) string {
	id := r.Membership.ID
	m := s.memberships[id]
	if r.Kind == audit.MembershipAccepted {
		if m != nil {
			m.own = false
		}
		return ""
	}
	if r.Kind == audit.MembershipDiffers {
		return ""
	}
	if r.Lease == nil || r.Lease.ID == "" {
		return "it names no lease"
	}
	if r.Kind == audit.MembershipReleased {
		return s.release(m, id, r.Lease.ID, r.Membership.Change)
	}
	if m == nil {
		m = &membership{leases: map[string]bool{}}
		s.memberships[id] = m
	}
	return s.claim(m, id, r.Lease.ID, r.Membership.Change)
}

func (s *membershipState) claim(m *membership, id audit.Digest, lease, change string) string {
	if _, twice := s.claims[lease]; twice {
		return "the lease relies on a membership already"
	}
	s.forget(s.recent.add(lease, func(id string) bool { _, needed := s.claims[id]; return needed }))
	before := *m
	s.claims[lease], m.leases[lease] = id, true
	switch change {
	case audit.MembershipAdded:
		m.own = true
	case audit.MembershipExisting:
		if before.own {
			return "the broker made the membership itself, so it did not exist before"
		}
	case audit.MembershipShared:
		if !before.own && !s.continues {
			return "the broker made the membership for no other lease"
		}
		m.own = true
	default:
		return "its change is none of a claim"
	}
	return ""
}

// forget drops the claim of a lease, to bound the memory.
func (s *membershipState) forget(lease string) {
	id, claimed := s.claims[lease]
	if !claimed {
		return
	}
	s.continues = true
	delete(s.claims, lease)
	if m := s.memberships[id]; m != nil {
		if delete(m.leases, lease); len(m.leases) == 0 {
			delete(s.memberships, id)
		}
	}
}

func (s *membershipState) release(m *membership, id audit.Digest, lease, change string) string {
	of, claimed := s.claims[lease]
	delete(s.claims, lease)
	if !claimed || of != id {
		if s.continues {
			return ""
		}
		return "the lease does not rely on the membership"
	}
	delete(m.leases, lease)
	others, own := slices.Contains(slices.Collect(maps.Values(m.leases)), true), m.own
	if len(m.leases) == 0 {
		delete(s.memberships, id)
	}
	switch change {
	case audit.MembershipRemoved, audit.MembershipAbsent, audit.MembershipGone:
		for abandoned := range m.leases {
			delete(s.claims, abandoned)
		}
		if !others {
			delete(s.memberships, id)
		}
		if change == audit.MembershipGone {
			return ""
		}
		if others {
			return "another lease relies on the membership"
		}
		if !own {
			return "the broker did not make the membership, so it must not remove it"
		}
	case audit.MembershipExisting:
		if own {
			return "the broker made the membership, and leaves it behind"
		}
	case audit.MembershipShared:
		if !others || !own {
			return "no other lease relies on the membership"
		}
	default:
		return "its change is none of a release"
	}
	return ""
}
