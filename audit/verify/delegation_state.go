package verify

import (
	"slices"
	"strings"

	"accessbroker.internal/audit"
)

// delegationState checks what callers do on behalf of others. leases are those that the log
// named before, whose tokens sub-agents exchange.
type delegationState struct {
	leases *leaseState
	proofs map[string]bool // by which people let callers act, and which count once
	recent ring
}

func newDelegationState(leases *leaseState, size int) *delegationState {
	return &delegationState{leases: leases, proofs: map[string]bool{}, recent: ring{size: size}}
}

// check returns what is wrong with a record of a caller that acts for another, or "".
func (s *delegationState) check(r *audit.Record) string {
	switch r.Kind {
	case audit.RequestCreated, audit.LeaseOpened, audit.LeaseIssued:
	default:
		return ""
	}
	if r.Request == nil || r.Caller == nil {
		return "" // requestState reports it, or it is the second record of a lease
	}
	if r.Subject == nil {
		if r.Delegated != nil || len(r.Caller.Actors) > 0 || r.Request.Parent != "" {
			return "it is part of a delegation, and names no one on whose behalf the caller acts"
		}
		return ""
	}
	if problem := bothPermit(r); problem != "" {
		return problem
	}
	switch {
	case r.Caller.ID == r.Subject.ID, slices.Contains(r.Caller.Actors, r.Caller.ID), slices.Contains(r.Caller.Actors, r.Subject.ID):
		return "the delegation has a loop"
	case r.Request.Parent != "":
		return s.parent(r)
	case len(r.Caller.Actors) > 0:
		return "others acted before the caller, and it names no token that the caller exchanged"
	case r.Request.TTL > 0 || r.Request.Duration > 0: // it files the request
		return s.spend(r)
	}
	return ""
}

// bothPermit returns what is missing of the two decisions. The decision about the caller has
// the obligations of both.
func bothPermit(r *audit.Record) string {
	own, subject := r.Decision, r.Delegated
	switch {
	case subject == nil || !subject.Permit:
		return "policy did not permit it to " + r.Subject.ID + ", on whose behalf the caller acts"
	case own == nil || subject.Revision != own.Revision:
		return "the decisions about the caller and about " + r.Subject.ID + " are of different rules"
	case subject.Signed && !own.Signed, !demands(own.Approvals, subject.Approvals) && !demands(own.Review, subject.Approvals), !demands(own.Review, subject.Review):
		return "it does not require all that policy requires of " + r.Subject.ID
	case subject.MaxTTL > 0 && (own.MaxTTL == 0 || own.MaxTTL > subject.MaxTTL), subject.MaxDuration > 0 && (own.MaxDuration == 0 || own.MaxDuration > subject.MaxDuration):
		return "it is allowed for longer than policy allows " + r.Subject.ID
	}
	return ""
}

// demands reports whether all of the parts are among the requirements.
func demands(all, parts []string) bool {
	required, ok := parseRequirements(all)
	part, okToo := parseRequirements(parts)
	return ok && okToo && !slices.ContainsFunc(part, func(p requirement) bool {
		return !slices.ContainsFunc(required, func(q requirement) bool { return q.group == p.group && q.count >= p.count })
	})
}

// parent checks the token that a sub-agent exchanged, if this log has its lease.
func (s *delegationState) parent(r *audit.Record) string {
	p, known := s.leases.leases[r.Request.Parent]
	switch {
	case !known && s.leases.all:
		return "this log has no lease " + r.Request.Parent + ", whose token it exchanges"
	case !known:
		return ""
	case !p.issued || p.ended:
		return "the token that it exchanges, of the lease " + r.Request.Parent + ", was not active"
	case !p.expires.IsZero() && r.Lease != nil && r.Lease.Expires.After(p.expires):
		return "it outlives the token that it exchanges, which expires at " + p.expires.Format(audit.TimeFormat)
	case p.named:
		return p.narrowed(r)
	}
	return ""
}

// narrowed returns how the record of a sub-agent differs from the lease whose token it
// exchanges in what it must keep, or "".
func (l *lease) narrowed(r *audit.Record) string {
	switch granted := split(l.scopes.Value()); {
	case onBehalfOf(r) != l.below():
		return "its chain is not that of the token that it exchanges, whose holder is " + l.holder.Value()
	case r.Request.Entitlement != l.entitlement.Value():
		return "the token that it exchanges is for " + l.entitlement.Value()
	case slices.ContainsFunc(r.Request.Scopes, func(scope string) bool { return !slices.Contains(granted, scope) }):
		return "it has more scopes than the token that it exchanges: " + strings.Join(granted, " ")
	}
	return ""
}

// spend notes the proof of a person, which counts once if it is an ID-JAG.
func (s *delegationState) spend(r *audit.Record) string {
	if r.Subject.Method != "id-jag" {
		return ""
	}
	proof := r.Subject.Proof.String()
	if s.proofs[proof] {
		return "the proof of " + r.Subject.ID + " was used before"
	}
	delete(s.proofs, s.recent.add(proof, nil))
	s.proofs[proof] = true
	return ""
}
