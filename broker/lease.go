package broker

import (
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
	Type    string // bearer, aws, userpass, certificate, vault, data
	Secret  Secret
	Expires time.Time
	Hash    audit.Digest // what the record says of it: SHA-256, plain for broker-signed tokens and salted for the rest
}
