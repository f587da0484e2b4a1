// Package audit is the append-only log: the bytes of a record, the RFC 6962
// tree over them, signed checkpoints, proofs, and the offline verifier.
//
// It imports nothing of ours. What a record means is package broker's
// business; what is hashed, signed and proved is decided here.
package audit

import "time"

// Version is the version of the record schema that this package writes.
const Version = 1

// MaxLeaf is the most bytes that a leaf may have, so that the log can be
// served as C2SP tlog-tiles, whose entries carry a 16-bit length.
const MaxLeaf = 65535

// Kind says what happened. The set only grows.
type Kind string

// The kinds of records.
const (
	LogOpened        Kind = "log.opened"        // the first record of a log
	PolicyLoaded     Kind = "policy.loaded"     // a new revision decides from here on
	KeyCreated       Kind = "key.created"       // a signing key was made
	KeyRetired       Kind = "key.retired"       // a signing key was destroyed
	RequestCreated   Kind = "request.created"   // pending, or approved by policy alone
	RequestDenied    Kind = "request.denied"    // by policy or by a person
	RequestApproved  Kind = "request.approved"  // the last approval came
	RequestWithdrawn Kind = "request.withdrawn" // by its requester
	RequestRevoked   Kind = "request.revoked"   // its grant, or the waiting for one, was ended for its requester
	ApprovalGiven    Kind = "approval.given"    // a yes or no that does not settle the request
	ReviewGiven      Kind = "review.given"      // a verdict on a broken glass that is not the last
	ReviewClosed     Kind = "review.closed"     // the last one
	SessionOpened    Kind = "session.opened"    // a person logged in
	SessionClosed    Kind = "session.closed"    // a person logged out, or was by its provider
	PasskeyEnrolled  Kind = "passkey.enrolled"  // counts later, or once it is vouched for
	PasskeyVouched   Kind = "passkey.vouched"   // by somebody whose own counts; it counts from here on
	PasskeyRemoved   Kind = "passkey.removed"   // what it signs later does not count
	CollectRefused   Kind = "collect.refused"   // policy changed its mind before collection
	LeaseOpened      Kind = "lease.opened"      // an upstream is about to be asked
	LeaseIssued      Kind = "lease.issued"      // a credential left, or is about to
	LeaseFailed      Kind = "lease.failed"      // no credential came to exist
	LeaseRenewed     Kind = "lease.renewed"
	LeaseRevoking    Kind = "lease.revoking" // ending was asked for; the upstream has not confirmed
	LeaseRevoked     Kind = "lease.revoked"
	LeaseAbandoned   Kind = "lease.abandoned" // closed by a person; never shown as revoked
	BlockPlaced      Kind = "block.placed"
	BlockLifted      Kind = "block.lifted"
)

// Kinds lists every kind that this package writes, by what they are about.
func Kinds() []Kind {
	return []Kind{
		LogOpened, PolicyLoaded, KeyCreated, KeyRetired,
		RequestCreated, RequestDenied, RequestApproved, RequestWithdrawn, RequestRevoked, ApprovalGiven, ReviewGiven, ReviewClosed,
		SessionOpened, SessionClosed, PasskeyEnrolled, PasskeyVouched, PasskeyRemoved,
		CollectRefused, LeaseOpened, LeaseIssued, LeaseFailed, LeaseRenewed, LeaseRevoking, LeaseRevoked, LeaseAbandoned,
		BlockPlaced, BlockLifted,
	}
}

// A Record is one entry of the log. Entry gives its canonical bytes.
//
// Everything in it is chosen by the broker or the operator, except scopes,
// entitlement names and SPIFFE IDs. Free text from outside never stands in a
// record: it is committed to (see Commit) and kept beside the leaf, so that it
// can be erased without breaking the tree.
type Record struct {
	Time     time.Time // set by the store at commit; UTC, milliseconds; never goes back
	Kind     Kind
	Caller   *Party // who acted; nil: the broker itself
	Subject  *Party // on whose behalf, if that is not the caller
	Request  *RequestFacts
	Decision *DecisionFacts
	// Delegated is what policy said with the subject as principal, when the
	// caller acts for somebody else: both must permit. Decision is about the caller.
	Delegated *DecisionFacts
	Approval  *ApprovalFacts
	Lease     *LeaseFacts
	End       *EndFacts
	Rules     *RulesFacts
	Key       *KeyFacts
	Log       *LogFacts
	Passkey   *PasskeyFacts
	Signature *SignatureFacts // of the caller, by a passkey: of the approval, of the verdict, or of the word for the passkey
	Block     *BlockFacts
	Count     int // how many identical events this record stands for; 0 and 1 mean one

	// Openings are the texts that the record commits to, by field name
	// ("justification", "ticket", "parameters", "source", "comment", "reason").
	// They are stored beside the leaf and are not part of it.
	Openings map[string]Opening
}

// Party is somebody who was proved to be somebody.
type Party struct {
	ID      string    // SPIFFE ID, or "<provider>/<sub>" of a person
	Kind    string    // workload, agent, person
	Method  string    // x509-svid, jwt-svid, oidc, admin-socket
	Proof   Digest    // SHA-256 of the proof (DER of the leaf certificate, bytes of the token); zero: none
	Expires time.Time // of the proof; zero: none
	Actors  []string  // the chain of actors behind it, outermost first
}

// RequestFacts are what was asked.
type RequestFacts struct {
	ID            string
	Digest        Digest // of all of it: see Sum
	Entitlement   string
	Effect        Digest // of what the entitlement lets its holder do
	Scopes        []string
	TTL           time.Duration // whole seconds
	Duration      time.Duration // whole seconds
	Justification Digest        // commitment; zero: none was given
	Ticket        Digest        // commitment
	Parameters    Digest        // commitment
	Source        Digest        // commitment to the network address that it came from
	LapsesAt      time.Time     // zero: nothing to wait for
	BreakGlass    bool          // without approval, to be reviewed
	NotBefore     time.Time     // when the grant starts; zero: with the approval
	Extends       string        // the request that this one goes on
	Accountable   []string      // who answer for whoever asks, where others have to speak of it
}

// Answers names the people who answer for whoever asks: as many as a record
// holds, since a request is not worth less for having more of them.
func (f *RequestFacts) Answers(people []string) {
	size := len("[]")
	for i, person := range people {
		if size += len(AppendString(nil, person)) + len(","); size > maxAccountable {
			people = people[:i]
			break
		}
	}
	f.Accountable = people
}

// DecisionFacts are what policy said.
type DecisionFacts struct {
	Permit      bool
	Policies    []string // sorted ids of the determining policies
	Revision    Digest
	Approvals   []string // "2 of dba", as the policies demand them
	Review      []string // the same, of the review of a broken glass
	Signed      bool     // whoever approves, or reviews a broken glass, signs by a passkey
	Manner      []string // how else they have to: "comment", "deny 2", "exclude_team"
	MaxTTL      time.Duration
	MaxDuration time.Duration // of the grant
	Tickets     Digest        // of the patterns that the ticket has to match
	Code        string        // the stable error code of a refusal
}

// requestDomain separates the digests of requests from all others.
const requestDomain = "accessbroker/request/v1"

// Sum is the digest that approvers are shown, and sign: SHA-256 over everything
// that the request would let happen and what policy demands for it, in canonical
// JSON (RFC 8785). Free texts enter by their commitments, so that it stays
// checkable when they are erased. Nothing enters that the record does not hold.
func (f *RequestFacts) Sum(requester string, d *DecisionFacts) Digest {
	return HashObject(requestDomain, f.Terms(requester, d).
		Hex("justification", f.Justification).
		Hex("parameters", f.Parameters).
		Hex("ticket", f.Ticket))
}

// Terms are what Sum is over, without the free texts.
func (f *RequestFacts) Terms(requester string, d *DecisionFacts) *Object {
	o := NewObject().
		Seconds("duration", f.Duration).
		Hex("effect", f.Effect).
		String("entitlement", f.Entitlement).
		String("extends", f.Extends).
		String("requester", requester).
		StringList("scopes", f.Scopes).
		String("subject", requester).
		Seconds("ttl", f.TTL)
	if f.BreakGlass {
		o.String("break_glass", "yes")
	}
	if !f.NotBefore.IsZero() {
		o.String("not_before", f.NotBefore.UTC().Format(time.RFC3339))
	}
	demands := NewObject().
		StringList("approvals", d.Approvals).
		StringList("manner", d.Manner).
		Seconds("max_duration", d.MaxDuration).
		Seconds("max_ttl", d.MaxTTL).
		StringList("review", d.Review).
		Hex("tickets", d.Tickets)
	if d.Signed {
		demands.String("signed", "yes")
	}
	return o.Object("obligations", demands)
}

// ApprovalFacts are one person's yes or no, or verdict on a broken glass.
type ApprovalFacts struct {
	Decision string // approve, deny; justified, unjustified (before they could be signed, approve and deny as well)
	Digest   Digest // what they saw
	Groups   []string
	Comment  Digest        // commitment
	Scopes   []string      // narrowed to; nil: as asked
	TTL      time.Duration // narrowed to; zero: as asked
	Duration time.Duration // narrowed to; zero: as asked
}

// LeaseFacts are the broker's account of one credential.
type LeaseFacts struct {
	ID         string
	Issuer     string
	Type       string
	Scopes     []string // where the grant is narrower than the request; nil: the request's
	Expires    time.Time
	Revocation string // immediate, pending, at_expiry, at_rotation, never
	Credential Digest // commitment; plain SHA-256 for broker-signed tokens
	Replaces   string
}

// EndFacts are how a lease ended.
type EndFacts struct {
	How        string    // returned, revoked, replaced, expired, answer_lost, deadline
	Reason     Digest    // commitment
	ValidUntil time.Time // when the credential stops working if revocation cannot recall it
}

// RulesFacts name a set of rules by content.
type RulesFacts struct {
	Revision Digest
	Files    map[string]Digest // by name: policies, schema, groups, catalogue
}

// KeyFacts name a key.
type KeyFacts struct {
	ID, Purpose, Algorithm string
	Public                 Digest
}

// LogFacts open a log.
type LogFacts struct {
	Origin   string
	Previous string // the last checkpoint's note text of the log before, if any
}

// BlockFacts name what is blocked.
type BlockFacts struct {
	Selector string // "holder spiffe://…", "under …", "entitlement …"
	Reason   Digest
}
