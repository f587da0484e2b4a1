package broker

import (
	"errors"
	"time"
)

// The end of a lease is one state machine: an attempt to end the credential
// has an outcome, and the table transitions maps it to the lease's next state.

// An outcome is the result of one attempt to end a credential.
type outcome uint8

const (
	outcomeUntried   outcome = iota // the issuer has not been called yet
	outcomeConfirmed                // the credential no longer works, or never existed
	outcomeQueued                   // the issuer accepted the revocation and will never confirm it
	outcomeTimeOnly                 // the issuer cannot revoke; the credential expires by itself
	outcomeFailed                   // the issuer refused or did not answer; it is called again
)

// outcomeOf maps the result of Issuer.Revoke to an outcome.
func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return outcomeConfirmed
	case errors.Is(err, ErrNotRevocable):
		return outcomeTimeOnly
	case errors.Is(err, ErrQueued):
		return outcomeQueued
	}
	return outcomeFailed
}

// needsCall reports whether the issuer must be called (again).
func (o outcome) needsCall() bool { return o == outcomeUntried || o == outcomeFailed }

// How leases end.
const (
	EndReturned   = "returned"
	EndRevoked    = "revoked"
	EndReplaced   = "replaced"
	EndExpired    = "expired"
	EndDeadline   = "deadline"    // issuing did not finish in time
	EndAnswerLost = "answer_lost" // the holder repeated the call
	EndFailed     = "failed"      // the issuer made no credential
	EndFact       = "fact_ended"  // see Lease.EndedBy
	EndUnrecorded = "unrecorded"  // the credential exists, but its record could not be written; it was never returned
)

// An endAttempt is one attempt to end a lease.
type endAttempt struct {
	how     string   // one of the End constants
	by      *FactEnd // of EndFact
	outcome outcome
	code    string // of outcomeFailed: the stable code of the error
}

// attempt describes a call to Issuer.Revoke that returned err.
func attempt(how string, err error) endAttempt {
	a := endAttempt{how: how, outcome: outcomeOf(err)}
	if a.outcome == outcomeFailed {
		a.code = Code(err)
	}
	return a
}

// A nextCall is when the issuer of an ending lease is called next.
type nextCall uint8

const (
	callNever nextCall = iota
	callNow
	callAtExpiry
	callAfterBackoff
)

// A transition is the state in which an outcome leaves a lease.
type transition struct {
	status      LeaseStatus
	revocation  Revocation
	next        nextCall
	eraseHandle bool // nothing is left to end
}

// transitions is indexed by outcome, then by whether the lease's time is over.
var transitions = [...]struct{ before, after transition }{
	outcomeUntried: {
		before: transition{LeaseRevoking, RevokedPending, callNow, false},
		after:  transition{LeaseRevoking, RevokedPending, callNow, false},
	},
	outcomeConfirmed: {
		before: transition{LeaseRevoked, RevokedImmediate, callNever, true},
		after:  transition{LeaseRevoked, RevokedImmediate, callNever, true},
	},
	outcomeQueued: { // no one reports the end of the upstream's queue, but by its expiry the credential is dead
		before: transition{LeaseRevoking, RevokedPending, callAtExpiry, false},
		after:  transition{LeaseRevoked, RevokedAtExpiry, callNever, true},
	},
	outcomeTimeOnly: { // the handle stays: a later revocation may still deny the credential upstream
		before: transition{LeaseRevoked, RevokedAtExpiry, callNever, false},
		after:  transition{LeaseRevoked, RevokedAtExpiry, callNever, false},
	},
	outcomeFailed: {
		before: transition{LeaseRevoking, RevokedPending, callAfterBackoff, false},
		after:  transition{LeaseRevoking, RevokedPending, callAfterBackoff, false},
	},
}

// end applies an attempt to the lease. It returns false if the attempt changes
// nothing because the lease has ended already.
func (l *Lease) end(a endAttempt, now time.Time) bool {
	if l.HasEnded() {
		if !l.deniable(now) || a.how != EndRevoked && a.how != EndFact || a.outcome != outcomeUntried && a.outcome != outcomeQueued {
			return false
		}
		l.EndAsked, l.EndHow, l.Ended = now, a.how, time.Time{}
	}
	l.beginEnd(a.how, now)
	if a.by != nil {
		l.EndedBy = a.by
	}
	t := transitions[a.outcome].before
	if !now.Before(l.Expires) {
		t = transitions[a.outcome].after
	}
	l.apply(t, a, now)
	return true
}

// HasEnded reports whether nothing ends the lease any more.
func (l *Lease) HasEnded() bool {
	return l.Status == LeaseRevoked || l.Status == LeaseFailed || l.Status == LeaseAbandoned
}

// beginEnd notes the first attempt. A lease past its expiry was due at its expiry,
// no matter what ends it now.
func (l *Lease) beginEnd(how string, now time.Time) {
	if !l.EndAsked.IsZero() {
		return
	}
	l.EndAsked, l.EndHow = now, how
	if how == EndExpired || now.After(l.Expires) {
		l.EndAsked = l.Expires
	}
}

func (l *Lease) apply(t transition, a endAttempt, now time.Time) {
	neverExisted := a.outcome == outcomeConfirmed && l.EndHow == EndFailed
	l.Status = t.status
	if neverExisted {
		l.Status = LeaseFailed
	}
	if l.Status != LeaseRevoking {
		l.Ended = now
	}
	// An entitlement that declared at_rotation or never keeps that answer: time
	// does not end its credential at the lease's expiry.
	declared := a.outcome == outcomeTimeOnly && l.Revocation != RevokedImmediate && l.Revocation != RevokedPending
	if !neverExisted && !declared {
		l.Revocation = t.revocation
	}
	if t.eraseHandle {
		l.Handle = nil
	}
	if a.outcome != outcomeUntried {
		l.LastError = a.code
	}
	l.schedule(t.next, now)
}

// schedule sets when the reaper calls the issuer next.
func (l *Lease) schedule(next nextCall, now time.Time) {
	switch next {
	case callNow:
		l.NextTry = now
	case callAtExpiry:
		l.NextTry = l.Expires
	case callAfterBackoff:
		l.NextTry = now.Add(Backoff(l.Attempts))
		l.Attempts++
	}
}

// deniable reports whether the issuer may still deny a credential that its
// holder returned and that otherwise works until it expires. A stolen
// credential could have been returned just before its revocation.
func (l *Lease) deniable(now time.Time) bool {
	return l.OutlivesEnd(now) && len(l.Handle) > 0 && l.EndHow != EndRevoked && l.EndHow != EndFact
}

// vacates reports whether the end of the lease frees its places among the active
// leases of its holder. A credential that its holder may have, and whose end is not
// confirmed, keeps them until it expires. A holder may return a credential that only
// time ends, and resource servers that introspect refuse it from then on; a repeated
// call is no such return.
func (l *Lease) vacates() bool {
	switch l.EndHow {
	case EndDeadline, EndFailed, EndUnrecorded:
		return true // no one received it
	case EndAnswerLost:
		return l.Status == LeaseRevoked && l.Revocation == RevokedImmediate
	}
	return l.Status != LeaseRevoking
}

// abandon closes a lease that cannot be revoked.
func (l *Lease) abandon(now time.Time) error {
	if l.Status != LeaseRevoking {
		return refuse(ErrInvalidRequest, "only a lease that is being revoked can be abandoned: revoke it first")
	}
	l.Status, l.Ended, l.Handle = LeaseAbandoned, now, nil
	return nil
}

// dueEnd returns how a lease ends that is due.
func (l *Lease) dueEnd() string {
	switch l.Status {
	case LeaseIssuing:
		return EndDeadline
	case LeaseActive:
		return EndExpired
	}
	return l.EndHow
}
