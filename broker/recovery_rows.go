package broker

import (
	"context"
	"time"
)

// The rows of a recovery: what is done after the database was restored to an earlier time.
// Package recovery has its flow.

// A RecoveryKey is the number of the log that follows the one that lost records.
type RecoveryKey int64

func (RecoveryKey) isKey() {}

// A Recovery is the search for what the lost records recorded.
type Recovery struct {
	RecoveryKey
	Since    time.Time         // the last record that is left
	Opened   time.Time         // of the new log: what happened between the two is lost
	Sessions int               // of people, which were ended
	Searched []string          // issuers that were searched completely
	Trouble  map[string]string // by issuer: why it could not be searched yet
	Found    int               // number of credentials
	Ended    int               // of Found
	Finished time.Time         // zero: not yet
}

// Key implements Row.
func (r *Recovery) Key() Key { return r.RecoveryKey }

// An OrphanKey names a credential without a lease by its issuer, and by what the issuer's
// system calls it.
type OrphanKey struct{ Issuer, Target string }

func (OrphanKey) isKey() {}

// An OrphanOutcome is how far the end of a credential without a lease got.
type OrphanOutcome string

// The outcomes. Only OrphanPending is not final.
const (
	OrphanPending  OrphanOutcome = "pending"   // the issuer is called, again if it does not answer
	OrphanRevoked  OrphanOutcome = "revoked"   // confirmed
	OrphanAccepted OrphanOutcome = "accepted"  // the issuer accepted the revocation, and does not confirm it
	OrphanExpires  OrphanOutcome = "at_expiry" // only time ends it
	OrphanUnknown  OrphanOutcome = "unknown"   // credentials that can't be found: they expire by themselves
)

// An Orphan is a credential, or a group of them, whose lease is lost.
type Orphan struct {
	OrphanKey
	Lease       string // id; empty: a group of credentials
	Holder      string
	Entitlement string
	Text        string // for people: what it is
	Handle      []byte // ends it
	Expires     time.Time
	Outcome     OrphanOutcome
	Code        string // of the last error
	Attempts    int
	Due         time.Time // when the issuer is called next; zero: never
	Found       time.Time
	Ended       time.Time
}

// Key implements Row.
func (o *Orphan) Key() Key { return o.OrphanKey }

// A Loss is the time in which records are lost, and what could be issued then.
type Loss struct {
	Since, Until time.Time
	Issuer       string // the name of the issuer that is searched
	Catalogue    Catalogue
}

// A Finder is an Issuer that finds credentials which this broker issued through it.
type Finder interface {
	// Find calls f for each credential of this broker in the issuer's system, whether or not
	// its lease is known. A credential has the handle with which Revoke ends it; one without
	// a handle can't be ended.
	Find(ctx context.Context, loss Loss, f func(Orphan) error) error
}
