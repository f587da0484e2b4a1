// Package signal has the domain of shared security signals: what a transmitter's events
// end, which of its events were seen before, and when a person must decide first.
//
// Package signals verifies and transports the events (SSF 1.0).
package signal

import "time"

// A Kind is the kind of an event. The set is closed, so that metrics can use it as a
// label.
type Kind string

// The kinds. KindOther stands for all events without an effect here.
const (
	KindSessionRevoked   Kind = "session_revoked"   // CAEP session-revoked, RISC sessions-revoked
	KindCredentialChange Kind = "credential_change" // CAEP credential-change, RISC credential-compromise and account-credential-change-required
	KindAccountDisabled  Kind = "account_disabled"
	KindAccountEnabled   Kind = "account_enabled"
	KindAccountPurged    Kind = "account_purged"
	KindVerification     Kind = "verification"
	KindStreamUpdated    Kind = "stream_updated"
	KindOther            Kind = "other"
)

// Kinds lists all kinds.
var Kinds = []Kind{
	KindSessionRevoked, KindCredentialChange, KindAccountDisabled, KindAccountEnabled, KindAccountPurged,
	KindVerification, KindStreamUpdated, KindOther,
}

// An Event is what a transmitter states about one person, or about its stream. Package
// signals has verified where it comes from.
type Event struct {
	Transmitter string
	ID          string // its jti
	Kind        Kind
	Issued      time.Time // by the transmitter's clock
	At          time.Time // when it happened; not after Issued
	Subject     Subject
	Reason      string // of KindAccountDisabled and KindCredentialChange: a word from a small set; may be empty
	State       string // of KindVerification; empty: the transmitter sends it on its own initiative
	Status      string // of KindStreamUpdated: enabled, paused or disabled
}

// A Subject names a person or a session of the transmitter's provider. At least one field
// is set, except for events about the stream.
type Subject struct {
	Account string // "<provider>/<sub>"
	Email   string // the address of the person's account; its owner has yet to be found
	SID     string // the provider's session id
	Stream  string // of events about the stream: its id
}

// An Outcome is what became of an event. The set is closed, like that of kinds.
type Outcome string

// The outcomes of events that were verified.
const (
	Applied        Outcome = "applied"
	Unchanged      Outcome = "unchanged"       // what it names had ended before
	Held           Outcome = "held"            // until a person decides
	Replayed       Outcome = "replayed"        // its id was seen before
	Superseded     Outcome = "superseded"      // a later event about the person was seen before
	UnknownSubject Outcome = "unknown_subject" // the broker knows nobody of that name
	ForeignSubject Outcome = "foreign_subject" // of another provider
	Unsupported    Outcome = "unsupported"     // the event has no effect here
	WrongState     Outcome = "wrong_state"     // the broker did not request this verification
	Full           Outcome = "full"            // too many events are held: the transmitter must send it again
	Failed         Outcome = "failed"          // the broker is at fault: the transmitter must send it again
)

// The outcomes of events that were not accepted.
const (
	Unauthenticated Outcome = "unauthenticated" // a push without the transmitter's bearer token
	Malformed       Outcome = "malformed"
	BadSignature    Outcome = "bad_signature"
	ForeignIssuer   Outcome = "foreign_issuer"
	ForeignAudience Outcome = "foreign_audience"
	Old             Outcome = "old"
	Future          Outcome = "future"
)

// Outcomes lists all outcomes.
var Outcomes = []Outcome{
	Applied, Unchanged, Held, Replayed, Superseded, UnknownSubject, ForeignSubject, Unsupported, WrongState, Full, Failed,
	Unauthenticated, Malformed, BadSignature, ForeignIssuer, ForeignAudience, Old, Future,
}
