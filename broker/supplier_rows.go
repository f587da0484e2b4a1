package broker

import (
	"time"

	"accessbroker.internal/audit"
)

// The rows of package broker/supplier: assessments of suppliers, extensions of their
// contracts, and which sponsors were notified.

// An AssessmentKey names the assessment of a supplier.
type AssessmentKey string

// An ExtensionKey names the latest extension of a supplier's contract.
type ExtensionKey string

// A SponsorKey names the notices to the sponsor of a supplier.
type SponsorKey string

func (AssessmentKey) isKey() {}
func (ExtensionKey) isKey()  {}
func (SponsorKey) isKey()    {}

// An Assessment is the latest risk assessment of a supplier. Its facts are in a standing
// (see AssessedKey); the row has what people read.
type Assessment struct {
	Supplier   AssessmentKey
	ID         string // "asm_…"
	Version    int    // counts the assessments of the supplier
	By         string
	At         time.Time
	Tier       Tier
	ValidUntil time.Time
	Evidence   string       // a link, or a hash as "sha256:…"
	Record     audit.Digest // of the supplier as the assessor saw it
	Questions  []string
	Answers    []string // in the order of Questions
	Salts      map[string][16]byte
	Signed     bool
	Settling   bool      // requests that wait for it, or that it no longer covers, may be left
	Notified   time.Time // when the assessors were last notified that a request waits
}

// Key implements Row.
func (a *Assessment) Key() Key { return a.Supplier }

// An Extension is a sponsor's request to let a contract run longer, until suppliers.yaml
// has the new end. Another person decides on it.
type Extension struct {
	Supplier  ExtensionKey
	ID        string    // "ext_…"
	From      time.Time // the end of the contract in suppliers.yaml that it extends
	Until     time.Time
	Reason    string
	Salts     map[string][16]byte // of the reason, and of the comment
	AskedBy   string
	AskedAt   time.Time
	Decision  ExtensionState
	DecidedBy string
	DecidedAt time.Time
	Comment   string
}

// Key implements Row.
func (x *Extension) Key() Key { return x.Supplier }

// ExtensionState is the state of an extension.
type ExtensionState string

// The states.
const (
	ExtensionPending  ExtensionState = "pending"
	ExtensionApproved ExtensionState = "approved"
	ExtensionDenied   ExtensionState = "denied"
)

// Extends reports whether the extension applies to the supplier's contract: it was
// approved, and suppliers.yaml still has the end that it extends. Once the file has another
// end, sooner or later, the file decides.
func (x *Extension) Extends(s *Supplier) bool {
	return x.Decision == ExtensionApproved && x.From.Equal(s.Ends) && x.Until.After(s.Ends)
}

// SponsorNotices are the notices about the end of a contract that were sent.
type SponsorNotices struct {
	Supplier SponsorKey
	Ends     time.Time // of the contract that they are about
	Sent     int       // the least number of days before the end for which a notice was sent; 0: none
}

// Key implements Row.
func (n *SponsorNotices) Key() Key { return n.Supplier }

// NewAssessmentID returns the ID of a new assessment.
func NewAssessmentID(now time.Time) string { return encodeID("asm_", newID(now)) }

// NewExtensionID returns the ID of a new extension.
func NewExtensionID(now time.Time) string { return encodeID("ext_", newID(now)) }
