package verify

import (
	"time"
	"unique"

	"accessbroker.internal/audit"
)

// leaseState is the state of the leases that the log named last.
type leaseState struct {
	leases map[string]lease
	recent ring
	all    bool // leases has all that tokens in this log can rest on
}

type lease struct {
	opened, issued, ended bool
	revoking              bool
	expires               time.Time // as opened, or as issued

	named                              bool // the following are known
	holder, chain, entitlement, scopes unique.Handle[string]
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
	case audit.LogOpened:
		s.all = r.Log != nil && r.Log.Previous == ""
		return ""
	case audit.RecoveryFound:
		if r.Lease != nil && s.leases[r.Lease.ID].issued {
			return "the credential is of a lease that this log has issued: it is not lost"
		}
		return ""
	case audit.LeaseOpened, audit.LeaseIssued, audit.LeaseFailed, audit.LeaseCalled, audit.LeaseRevoking, audit.LeaseRevoked, audit.LeaseAbandoned:
	default:
		return ""
	}
	if r.Lease == nil || r.Lease.ID == "" {
		return "it names no lease"
	}
	if problem := checkAttested(r); problem != "" {
		return problem
	}
	id := r.Lease.ID
	l, known := s.leases[id]
	if r.Kind == audit.LeaseCalled {
		if !l.issued && !s.all { // the record of the issue may be in an earlier log, or forgotten
			return ""
		}
		return l.called(r)
	}
	if !known {
		dropped := s.recent.add(id, nil) // no lease has an empty id
		delete(s.leases, dropped)
		s.all = s.all && dropped == ""
	}
	problem := l.apply(r)
	l.name(r)
	s.leases[id] = l
	return problem
}

// checkAttested returns what contradicts how the caller of a lease was attested, or "". No
// credential outlives the OIDC token with which a workload got it.
func checkAttested(r *audit.Record) string {
	who := r.Caller
	if who == nil || r.Kind != audit.LeaseOpened && r.Kind != audit.LeaseIssued {
		return ""
	}
	isSVID := who.Method == "x509-svid" || who.Method == "jwt-svid"
	switch byToken := who.Attested == "oidc"; {
	case byToken && isSVID && len(who.Also) == 0, !byToken && who.Method == "oidc-token":
		return "the proof of the caller, " + who.Method + ", is not of its attestation"
	case byToken && r.Lease.Expires.After(who.Expires):
		return "the credential outlives the OIDC token of its holder"
	}
	return ""
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
		l.revoking = true
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

// called returns what contradicts a call with the credential of a lease, or "": only the
// holder makes calls, for the entitlement, while the lease is active.
func (l *lease) called(r *audit.Record) string {
	switch {
	case r.Call == nil || r.Caller == nil || r.Request == nil:
		return "it names no call, caller or entitlement"
	case !l.issued:
		return "no earlier record issued the lease"
	case l.ended || l.revoking:
		return "the lease had already ended"
	case l.named && (r.Caller.ID != l.holder.Value() || r.Request.Entitlement != l.entitlement.Value()):
		return "another caller or entitlement than those of the lease"
	case !l.expires.IsZero() && r.Time.After(l.expires.Add(slack)):
		return "the lease had already expired"
	}
	return ""
}

// name notes who holds a lease, and for what, from its first record.
func (l *lease) name(r *audit.Record) {
	if l.named || r.Request == nil || r.Caller == nil {
		return
	}
	scopes := r.Lease.Scopes
	if scopes == nil {
		scopes = r.Request.Scopes
	}
	l.named, l.holder, l.chain = true, unique.Make(r.Caller.ID), unique.Make(onBehalfOf(r))
	l.entitlement, l.scopes = unique.Make(r.Request.Entitlement), unique.Make(join(scopes))
}

// below returns the chain of a token that another caller gets for that of the lease.
func (l *lease) below() string {
	if l.chain.Value() == "" {
		return l.holder.Value()
	}
	return join([]string{l.chain.Value(), l.holder.Value()})
}

// onBehalfOf returns whose rights a caller uses, and who acted before, as one text; empty:
// the caller's own.
func onBehalfOf(r *audit.Record) string {
	if r.Subject == nil {
		return ""
	}
	return join(append([]string{r.Subject.ID}, r.Caller.Actors...))
}
