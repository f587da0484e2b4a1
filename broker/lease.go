package broker

import (
	"errors"
	"math/rand/v2"
	"time"

	"accessbroker.internal/audit"
)

// LeaseStatus is how far a lease got.
type LeaseStatus uint8

// The states. Expired and Stuck are derived and never stored.
const (
	LeaseIssuing LeaseStatus = iota + 1
	LeaseActive
	LeaseRevoking
	LeaseRevoked
	LeaseFailed
	LeaseAbandoned
	LeaseExpired // active, and its time is over
	LeaseStuck   // revoking for long
)

// Revocation is the truth about when a credential stops working.
type Revocation string

// The truths.
const (
	RevokedImmediate  Revocation = "immediate"   // confirmed by the upstream
	RevokedPending    Revocation = "pending"     // being retried
	RevokedAtExpiry   Revocation = "at_expiry"   // only time ends it; introspection says inactive at once
	RevokedAtRotation Revocation = "at_rotation" // the upstream's next rotation ends it
	RevokedNever      Revocation = "never"       // not an ephemeral credential
)

// A Lease is the broker's record of one credential: what it must end, how,
// and how far it got. It holds no secret.
type Lease struct {
	ID          LeaseID
	Request     RequestID
	Status      LeaseStatus // as stored; see State
	Holder      string      // SPIFFE ID
	Entitlement string
	Issuer      string
	Scopes      []string
	Parameters  map[string]string
	Opened      time.Time
	Expires     time.Time
	Rotates     time.Time    // when its issuer's next rotation ends it (at_rotation), if that is known
	Confirm     audit.Digest // certificate thumbprint that the credential is bound to (RFC 8705); zero: none
	Type        string       // of the credential: bearer, aws, …
	Revocation  Revocation   // while live: what ending it would mean; ended: what it meant
	Handle      []byte       // what the issuer needs to end it
	Owner       string       // the replica that is issuing it
	Deadline    time.Time    // of issuing
	Replaces    LeaseID
	Limits      []CounterKey // the counters that it holds a place in

	EndAsked  time.Time // when ending was first asked for, or fell due
	EndHow    string    // returned, revoked, replaced, expired, answer_lost, deadline
	Ended     time.Time
	Attempts  int
	NextTry   time.Time
	LastError string // a stable code, never an upstream's words
}

// A Credential is what the holder receives, once.
type Credential struct {
	Type       string // bearer, aws, userpass, certificate, vault, data
	Secret     Secret
	Expires    time.Time
	Rotates    time.Time    // when the issuer's next rotation ends it, if that is what does and it is known
	Revocation Revocation   // what ending it means, if the upstream told; empty: what the entitlement says
	Hash       audit.Digest // what the record says of it: SHA-256, plain for broker-signed tokens and salted for the rest
}

// IssueDeadline is how long an upstream may take to make a credential. Past
// it, any replica takes the lease to revoking.
const IssueDeadline = 20 * time.Second

// StuckAfter is how long a revocation is tried before it is shown as stuck.
const StuckAfter = 5 * time.Minute

// State is the status at now: a lease expires by time alone, and a revocation
// that has failed for long is stuck, without anything being written. One that
// its upstream has taken and merely does not confirm is not stuck.
func (l *Lease) State(now time.Time) LeaseStatus {
	switch {
	case l.Status == LeaseActive && !now.Before(l.Expires):
		return LeaseExpired
	case l.Status == LeaseRevoking && l.LastError != "" && now.Sub(l.EndAsked) >= StuckAfter:
		return LeaseStuck
	}
	return l.Status
}

// Due is when something must be done about the lease; zero: never. Credentials
// that only time ends need nothing done when it does.
func (l *Lease) Due() time.Time {
	switch l.Status {
	case LeaseIssuing:
		return l.Deadline
	case LeaseRevoking:
		return l.NextTry
	case LeaseActive:
		if l.Revocation == RevokedImmediate {
			return l.Expires
		}
	}
	return time.Time{}
}

// endable says whether its issuer can do something about the credential, even
// if that is less than ending it at once.
func (l *Lease) endable() bool { return l.Revocation == RevokedImmediate || len(l.Handle) > 0 }

// Live says whether the credential may still work, as far as we know. What its
// issuer has to end may, though its time is over, until it is ended.
func (l *Lease) Live(now time.Time) bool {
	switch l.State(now) {
	case LeaseIssuing, LeaseActive, LeaseRevoking, LeaseStuck:
		return true
	case LeaseExpired:
		return !l.Due().IsZero()
	}
	return false
}

// Lingers says whether the lease has ended and its credential works all the
// same, because only time ends it.
func (l *Lease) Lingers(now time.Time) bool {
	return l.Status == LeaseRevoked && l.Revocation == RevokedAtExpiry && now.Before(l.Expires)
}

// WorksUntil is when the credential stops working by itself, if ending it does
// not do that; zero: it was ended, or nobody knows.
func (l *Lease) WorksUntil() time.Time {
	switch l.Revocation {
	case RevokedAtExpiry, RevokedPending:
		return l.Expires
	case RevokedAtRotation:
		return l.Rotates
	}
	return time.Time{}
}

// activate takes a lease whose credential has come to exist from issuing to
// active. A lease that somebody else took away meanwhile is not activated: its
// credential must be revoked and never answered.
func (l *Lease) activate(c Credential, handle []byte) error {
	if l.Status != LeaseIssuing {
		return errLostLease
	}
	l.Status, l.Type, l.Deadline, l.Owner = LeaseActive, c.Type, time.Time{}, ""
	if c.Expires.Before(l.Expires) {
		l.Expires = c.Expires
	}
	if c.Revocation != "" {
		l.Revocation = c.Revocation
	}
	l.Rotates = c.Rotates
	if handle != nil {
		l.Handle = handle
	}
	return nil
}

var errLostLease = errors.New("the lease was taken away while its credential was being made")

// An ending says how a lease ends, and how far its issuer got with it.
type ending struct {
	how string
	err error // nil: confirmed; ErrNotRevocable: only time ends it; ErrQueued: the upstream has been told; others: to be tried again
}

// How leases end.
const (
	EndReturned   = "returned"
	EndRevoked    = "revoked"
	EndReplaced   = "replaced"
	EndExpired    = "expired"
	EndDeadline   = "deadline"    // issuing never finished
	EndAnswerLost = "answer_lost" // its holder asked again
	EndFailed     = "failed"      // its issuer made nothing
	EndUnrecorded = "unrecorded"  // made, but its record was not: never answered
)

// end writes down an attempt to end the lease. It says false if there is
// nothing to write: the lease has ended already.
func (l *Lease) end(e ending, now time.Time) bool {
	switch l.Status {
	case LeaseRevoked, LeaseFailed, LeaseAbandoned:
		if !l.deniable(now) || e.how != EndRevoked || e.err != errNow && !errors.Is(e.err, ErrQueued) {
			return false
		}
		l.EndAsked, l.EndHow, l.Ended = now, e.how, time.Time{}
	}
	if l.EndAsked.IsZero() {
		l.EndAsked, l.EndHow = now, e.how
		if e.how == EndExpired || now.After(l.Expires) {
			l.EndAsked = l.Expires // it was due then, whoever ends it now
		}
	}
	switch {
	case e.err == nil && l.EndHow == EndFailed:
		l.Status, l.Ended, l.LastError, l.Handle = LeaseFailed, now, "", nil
	case e.err == nil:
		l.Status, l.Ended, l.Revocation, l.LastError = LeaseRevoked, now, RevokedImmediate, ""
		l.Handle = nil
	case errors.Is(e.err, ErrNotRevocable):
		l.Status, l.Ended, l.LastError = LeaseRevoked, now, ""
		if l.Revocation == RevokedImmediate || l.Revocation == RevokedPending {
			l.Revocation = RevokedAtExpiry
		}
	case errors.Is(e.err, ErrQueued) && !now.Before(l.Expires):
		l.Status, l.Ended, l.Revocation, l.LastError, l.Handle = LeaseRevoked, now, RevokedAtExpiry, "", nil
	case errors.Is(e.err, ErrQueued):
		// Nobody tells when the upstream has done it: by then, time has.
		l.Status, l.Revocation, l.LastError, l.NextTry = LeaseRevoking, RevokedPending, "", l.Expires
	case e.err == errNow:
		l.Status, l.Revocation, l.NextTry = LeaseRevoking, RevokedPending, now
	default:
		l.Status, l.Revocation, l.LastError = LeaseRevoking, RevokedPending, Code(e.err)
		l.NextTry = now.Add(backoff(l.Attempts))
		l.Attempts++
	}
	return true
}

// deniable says whether a credential that its holder gave back, and that time
// alone would end, may be denied at its issuer: that is for those that are
// revoked, and whoever was revoked may have given it back just before.
func (l *Lease) deniable(now time.Time) bool {
	return l.Lingers(now) && len(l.Handle) > 0 && l.EndHow != EndRevoked
}

// abandon gives up a lease whose ending goes on and on.
func (l *Lease) abandon(now time.Time) error {
	if l.Status != LeaseRevoking {
		return refuse(ErrInvalidRequest, "only a lease that is being revoked can be given up: revoke it first")
	}
	l.Status, l.Ended, l.Handle = LeaseAbandoned, now, nil
	return nil
}

// backoff is the pause after the n-th failed try: it doubles from a second to
// five minutes, with a quarter of jitter so that leases that fell due together
// do not come back together. It never ends: revocation does not give up.
func backoff(n int) time.Duration {
	d := min(time.Second<<min(n, 9), 5*time.Minute)
	return d - d/4 + rand.N(d/2)
}
