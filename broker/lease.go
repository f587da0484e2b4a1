package broker

import (
	"errors"
	"time"

	"accessbroker.internal/audit"
)

// LeaseStatus is the state of a lease.
type LeaseStatus uint8

// The states. Expired and Stuck are derived from the time and never stored.
const (
	LeaseIssuing LeaseStatus = iota + 1
	LeaseActive
	LeaseRevoking
	LeaseRevoked
	LeaseFailed
	LeaseAbandoned
	LeaseExpired // active past its expiry
	LeaseStuck   // revoking, with errors, for StuckAfter or longer
)

// Revocation states when a revoked credential stops working.
type Revocation string

// The kinds of revocation.
const (
	RevokedImmediate  Revocation = "immediate"   // at once; the issuer confirms it
	RevokedPending    Revocation = "pending"     // not confirmed yet; the issuer is called again
	RevokedAtExpiry   Revocation = "at_expiry"   // when it expires; introspection returns inactive at once
	RevokedAtRotation Revocation = "at_rotation" // when the issuer rotates it
	RevokedNever      Revocation = "never"       // it is not ephemeral
)

// A Lease is the broker's record of one credential: how to end it, and how far
// that got. It holds no secret.
type Lease struct {
	ID          LeaseID
	Request     RequestID
	Status      LeaseStatus // as stored; see State
	Holder      string      // SPIFFE ID
	Entitlement string
	Issuer      string
	Scopes      []string
	Parameters  map[string]string
	Details     []Detail
	Opened      time.Time
	Expires     time.Time
	Rotates     time.Time    // when the issuer's next rotation ends it (at_rotation); zero: unknown
	Confirm     audit.Digest // thumbprint of the certificate that the credential is bound to (RFC 8705); zero: none
	Type        string       // of the credential: bearer, aws, …
	Revocation  Revocation   // live: the effect of a revocation; ended: its actual effect
	Handle      []byte       // by which the issuer ends the credential
	Deadline    time.Time    // of issuing
	Replaces    LeaseID
	Previous    LeaseID      // the lease that was opened before this one under the same request; zero: none, or an earlier version opened it
	Limits      []CounterKey // the counters that count this lease as active
	Persists    bool         // only the issuer ends the credential; it has no expiry of its own
	Subject     string       // on whose behalf it was issued; empty: the holder's own
	Actors      []string     // who acted for the subject before the holder, the first one first
	Parent      LeaseID      // whose token was exchanged for this one; zero: none
	Exchanged   bool         // its token was exchanged for tokens of sub-agents, which end with it
	Listed      StatusPlace  // of its token in a status list
	Attested    Attestation  // of the holder, as it collected

	Calls CallTotals // with its credential, as its holder states them

	KeyThumbprint audit.Digest // of the DPoP key that the credential is bound to (RFC 9449); zero: none

	EndAsked  time.Time // when its end was first requested or became due
	EndHow    string    // one of the End constants
	EndedBy   *FactEnd  // of EndFact
	Ended     time.Time
	Attempts  int        // failed calls to the issuer
	NextTry   time.Time  // while revoking: when the issuer is called next
	LastError string     // a stable code, never an upstream's text
	Records   []RecordID // of the log, oldest first; see RecordID
}

// A Credential is returned to its holder once, and not stored.
type Credential struct {
	Type       string // bearer, aws, userpass, certificate, vault, data, membership
	Secret     Secret
	Joined     *Joined // of type membership, which has no secret
	Expires    time.Time
	Rotates    time.Time    // when the issuer's next rotation ends it (at_rotation); zero: unknown
	Revocation Revocation   // the effect of revoking it, if the issuer states it; empty: as the entitlement declares
	Hash       audit.Digest // its SHA-256 for the record: plain for broker-signed tokens, salted for all others
}

// IssueDeadline bounds the time that an issuer may take to make a credential.
// After it, any replica revokes the lease.
const IssueDeadline = 20 * time.Second

// StuckAfter is how long a revocation fails before its lease is shown as stuck.
const StuckAfter = 5 * time.Minute

// State returns the status at now. Expired and Stuck depend on the time alone,
// so nothing is written when they begin. A revocation that the issuer accepted
// without confirming it (ErrQueued) is not stuck.
func (l *Lease) State(now time.Time) LeaseStatus {
	switch {
	case l.Status == LeaseActive && !now.Before(l.Expires):
		return LeaseExpired
	case l.Status == LeaseRevoking && l.LastError != "" && now.Sub(l.EndAsked) >= StuckAfter:
		return LeaseStuck
	}
	return l.Status
}

// Due returns when the reaper must act on the lease; zero means never. A
// credential that only time ends needs no action at its expiry.
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

// endable reports whether calling the issuer has any effect on the credential,
// even one short of ending it at once.
func (l *Lease) endable() bool { return l.Revocation == RevokedImmediate || len(l.Handle) > 0 }

// Live reports whether the credential may still work. A credential that its
// issuer must end may work past its expiry, until the issuer confirms.
func (l *Lease) Live(now time.Time) bool {
	switch l.State(now) {
	case LeaseIssuing, LeaseActive, LeaseRevoking, LeaseStuck:
		return true
	case LeaseExpired:
		return !l.Due().IsZero()
	}
	return false
}

// OutlivesEnd reports whether the lease has ended but its credential still
// works, because only time ends it.
func (l *Lease) OutlivesEnd(now time.Time) bool {
	return l.Status == LeaseRevoked && l.Revocation == RevokedAtExpiry && now.Before(l.Expires)
}

// WorksUntil returns when the credential stops working by itself if revoking it
// does not stop it; zero means that it was ended, or that the time is unknown.
func (l *Lease) WorksUntil() time.Time {
	switch l.Revocation {
	case RevokedAtExpiry, RevokedPending:
		if l.Persists {
			return time.Time{}
		}
		return l.Expires
	case RevokedAtRotation:
		return l.Rotates
	}
	return time.Time{}
}

// activate moves a lease from issuing to active when its credential exists. It
// fails if the reaper or the kill switch has ended the lease in the meantime. The
// credential must then be revoked and never returned.
func (l *Lease) activate(c Credential, handle []byte) error {
	if l.Status != LeaseIssuing {
		return errLostLease
	}
	l.Status, l.Type, l.Deadline = LeaseActive, c.Type, time.Time{}
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
