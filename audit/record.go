// Package audit defines the append-only log: the canonical bytes of a record,
// the RFC 6962 Merkle tree over the records, signed checkpoints, proofs and
// commitments. Package audit/verify verifies a whole log offline.
//
// The hash domains, the record schema and the checkpoint format are fixed: logs
// that exist must continue to verify. Package broker decides which record an
// event produces; this package decides what is hashed, signed and proved.
package audit

import (
	"cmp"
	"net/netip"
	"time"
)

// Version is the version of the record schema that this package writes.
const Version = 1

// MaxLeaf is the maximum size of a leaf in bytes. C2SP tlog-tiles store the size
// of an entry in 16 bits.
const MaxLeaf = 65535

// Kind is the kind of event that a record describes. Kinds may be added, but
// never renamed or removed.
type Kind string

// The kinds of records.
const (
	LogOpened        Kind = "log.opened"        // the first record of a log
	PolicyLoaded     Kind = "policy.loaded"     // a new revision is in force
	KeyCreated       Kind = "key.created"       // a signing key was created
	KeyRetired       Kind = "key.retired"       // a signing key was destroyed
	RequestCreated   Kind = "request.created"   // pending, or approved by policy
	RequestDenied    Kind = "request.denied"    // by policy or by a person
	RequestApproved  Kind = "request.approved"  // by the last required approval
	RequestAssessed  Kind = "request.assessed"  // the supplier's assessment for which it waited exists; approved unless approvals are missing
	RequestWithdrawn Kind = "request.withdrawn" // by its requester
	RequestRevoked   Kind = "request.revoked"   // a person or the kill switch ended the grant or the pending request
	ApprovalGiven    Kind = "approval.given"    // a vote that does not decide the request
	ReviewGiven      Kind = "review.given"      // a verdict on a break-glass use, with more reviews required
	ReviewClosed     Kind = "review.closed"     // the last required verdict
	SessionOpened    Kind = "session.opened"    // a person logged in
	SessionClosed    Kind = "session.closed"    // a person logged out, or their provider logged them out
	PasskeyEnrolled  Kind = "passkey.enrolled"  // counts after PasskeyWait, or once another person vouches for it
	PasskeyVouched   Kind = "passkey.vouched"   // by another person with a passkey that counts; this one counts from now on
	PasskeyRemoved   Kind = "passkey.removed"   // later signatures do not count
	CollectRefused   Kind = "collect.refused"   // policy no longer permits the collection
	LeaseOpened      Kind = "lease.opened"      // the broker is about to call the issuer
	LeaseIssued      Kind = "lease.issued"      // the credential is about to leave the broker
	LeaseFailed      Kind = "lease.failed"      // the issuer created no credential
	LeaseRenewed     Kind = "lease.renewed"
	LeaseCalled      Kind = "lease.called"   // the holder is about to make a call with the credential
	LeaseRevoking    Kind = "lease.revoking" // revocation was requested; the issuer has not confirmed it
	LeaseRevoked     Kind = "lease.revoked"
	LeaseAbandoned   Kind = "lease.abandoned" // a person closed the lease without a confirmed revocation
	FactChanged      Kind = "fact.changed"    // a source states something else about a subject than before
	FactEnded        Kind = "fact.ended"      // what the sources state about a subject no longer holds
	SignalHeld       Kind = "signal.held"     // a transmitter's events would end too much: a person must decide
	SignalReleased   Kind = "signal.released" // a person let the held events take effect
	SignalDiscarded  Kind = "signal.discarded"
	DirectoryUser    Kind = "directory.user"  // a provisioning client created, changed or deleted a user
	DirectoryGroup   Kind = "directory.group" // the same of a group, with the members that entered and left
	DirectoryToken   Kind = "directory.token" // a token of a provisioning client was signed or revoked
	BlockPlaced      Kind = "block.placed"
	BlockLifted      Kind = "block.lifted"

	MembershipClaimed  Kind = "membership.claimed"  // a lease relies on a membership, which the broker is about to make unless it exists
	MembershipReleased Kind = "membership.released" // a lease no longer relies on a membership
	MembershipDiffers  Kind = "membership.differs"  // a system has a membership that it should not have, or lacks one
	MembershipAccepted Kind = "membership.accepted" // a person accepted a difference; the broker no longer counts the membership as its own

	SupplierAssessed   Kind = "supplier.assessed"   // a person assessed the risk of a supplier
	SupplierEnding     Kind = "supplier.ending"     // the sponsor of a supplier was notified that its contract ends soon
	ExtensionRequested Kind = "extension.requested" // a sponsor wants the contract of a supplier to run longer
	ExtensionApproved  Kind = "extension.approved"  // another person approved it
	ExtensionDenied    Kind = "extension.denied"

	CampaignStarted   Kind = "campaign.started"   // an access review is open; Digest covers its items
	CampaignAssigned  Kind = "campaign.assigned"  // an item has another reviewer, or its content changed
	CampaignDecided   Kind = "campaign.decided"   // a person decided on an item
	CampaignDropped   Kind = "campaign.dropped"   // the rules no longer have the permission of an item
	CampaignDisabled  Kind = "campaign.disabled"  // no one decided on an item before the deadline
	CampaignReminded  Kind = "campaign.reminded"  // reviewers were reminded
	CampaignEscalated Kind = "campaign.escalated" // another group was notified
	CampaignClosed    Kind = "campaign.closed"    // the deadline passed, or every item was decided
	CampaignRestoring Kind = "campaign.restoring" // a person asked to lift a suspension
	CampaignRestored  Kind = "campaign.restored"  // another person approved it

	RetentionPruned Kind = "retention.pruned" // rows that the operator keeps no longer were deleted, or their texts erased

	RecoveryStarted  Kind = "recovery.started"  // this log follows one that lost records; see Recovery
	RecoveryFound    Kind = "recovery.found"    // a credential whose records are lost, and what ended it
	RecoveryFinished Kind = "recovery.finished" // every issuer was searched, and everything found was ended
)

// Kinds returns every kind, grouped by subject.
func Kinds() []Kind {
	return []Kind{
		LogOpened, PolicyLoaded, KeyCreated, KeyRetired,
		RequestCreated, RequestDenied, RequestApproved, RequestAssessed, RequestWithdrawn, RequestRevoked, ApprovalGiven, ReviewGiven, ReviewClosed,
		SessionOpened, SessionClosed, PasskeyEnrolled, PasskeyVouched, PasskeyRemoved,
		CollectRefused, LeaseOpened, LeaseIssued, LeaseFailed, LeaseRenewed, LeaseCalled, LeaseRevoking, LeaseRevoked, LeaseAbandoned,
		FactChanged, FactEnded, SignalHeld, SignalReleased, SignalDiscarded, DirectoryUser, DirectoryGroup, DirectoryToken, BlockPlaced, BlockLifted,
		MembershipClaimed, MembershipReleased, MembershipDiffers, MembershipAccepted,
		SupplierAssessed, SupplierEnding, ExtensionRequested, ExtensionApproved, ExtensionDenied,
		CampaignStarted, CampaignAssigned, CampaignDecided, CampaignDropped, CampaignDisabled, CampaignReminded, CampaignEscalated,
		CampaignClosed, CampaignRestoring, CampaignRestored,
		RetentionPruned, RecoveryStarted, RecoveryFound, RecoveryFinished,
	}
}

// A Record is one event in the log. Entry returns its canonical bytes.
//
// The broker or the operator chooses every value except scopes, entitlement
// names, SPIFFE IDs and trace contexts. Free text from outside enters a record only as a
// commitment (see Commit). The text itself is stored next to the leaf, so that
// it can be erased without changing the tree.
type Record struct {
	Time     time.Time // set by the store at commit; UTC, milliseconds; never decreases
	Kind     Kind
	Caller   *Party // nil: the broker itself
	Subject  *Party // on whose behalf the caller acts; nil: the caller's own
	Request  *RequestFacts
	Decision *DecisionFacts
	// Delegated is the decision with the subject as principal, if the caller acts
	// for a subject. Decision is the one with the caller as principal. Both must
	// permit.
	Delegated  *DecisionFacts
	Approval   *ApprovalFacts
	Lease      *LeaseFacts
	End        *EndFacts
	Rules      *RulesFacts
	Key        *KeyFacts
	Log        *LogFacts
	Membership *MembershipFacts
	Passkey    *PasskeyFacts
	Recovery   *RecoveryFacts
	Signature  *SignatureFacts // by the caller's passkey, of the approval, the verdict or the voucher
	Block      *BlockFacts
	Signal     *SignalFacts
	Supplier   *SupplierFacts
	Fact       *FactFacts
	Directory  *DirectoryFacts
	Campaign   *CampaignFacts
	Call       *CallFacts
	Pruned     *PrunedFacts
	Count      int   // number of identical events that this record stands for; 0 and 1 mean one
	Trace      Trace // of the call that caused the event; zero: none

	// Openings are the texts that the record commits to, by field name
	// ("justification", "ticket", "binding_message", "parameters", "authorization_details", "source", "comment", "reason", "details", "target").
	// They are stored next to the leaf and are not part of it.
	Openings map[string]Opening

	// From is the address that the request came from, if the record files one. The row of
	// the request has it; it is not part of the leaf.
	From netip.Addr
}

// A Party is an identity that the broker authenticated.
type Party struct {
	ID      string    // SPIFFE ID, or "<provider>/<sub>" of a person
	Kind    string    // workload, agent, person
	Method  string    // x509-svid, jwt-svid, oidc-token, session, admin-socket and others
	Proof   Digest    // SHA-256 of the leaf certificate (DER) or of the token; zero: no proof
	Expires time.Time // expiry of the proof; zero: no proof
	Actors  []string  // who acted for the record's Subject before this party, the first one first

	// Attested is "oidc" for a workload that has no SVID, but an OIDC token that a rule of the
	// operator maps to its SPIFFE ID; empty for all others.
	Attested string

	// Accounts are all accounts of a person who has several, under the rules in force. Two
	// parties with an account in common are one person.
	Accounts []string

	// Also are other proofs of this identity in the same call, as "<method> <SHA-256>".
	Also []string
}

// FitActors reports whether a record has room for a chain of actors.
func FitActors(actors []string) bool {
	size := len("[]")
	for _, id := range actors {
		size += len(AppendString(nil, id)) + len(",")
	}
	return size <= maxActors
}

// RequestFacts describe a request.
type RequestFacts struct {
	ID            string
	Digest        Digest // see Sum
	Entitlement   string
	Effect        Digest // digest of the access that the entitlement confers
	Scopes        []string
	TTL           time.Duration // whole seconds
	Duration      time.Duration // whole seconds
	Justification Digest        // commitment; zero: none
	Message       Digest        // commitment to the binding message
	Ticket        Digest        // commitment
	Parameters    Digest        // commitment
	Details       Digest        // commitment to the authorization details
	Source        Digest        // commitment to the caller's network address
	LapsesAt      time.Time     // when a pending request lapses; zero: it is not pending
	BreakGlass    bool          // access without prior approval, reviewed afterwards
	NotBefore     time.Time     // start of the grant; zero: the last approval
	Extends       string        // the id of the request that this one extends
	RestsOn       []string      // the subjects of the facts that it rests on, as "<kind> <name>"
	Until         time.Time     // the earliest known end of these facts; zero: none is known
	Key           Digest        // thumbprint (RFC 7638) of the DPoP key with which it was filed and must be collected; zero: none
	Accountable   []string      // people accountable for the requester, who may not approve or review
	Parent        string        // the lease whose token the caller exchanged to act for the subject
}

// A Requester is who makes a request, and on whose behalf.
type Requester struct {
	ID      string
	Subject string   // whose rights are used; empty: the requester's own
	Actors  []string // who acted for the subject before the requester, the first one first
}

// Requester returns who makes the request that the record files.
func (r *Record) Requester() Requester {
	by := Requester{ID: r.Caller.ID, Actors: r.Caller.Actors}
	if r.Subject != nil {
		by.Subject = r.Subject.ID
	}
	return by
}

// SetAccountable sets Accountable to as many of the people as fit into a record.
// It drops the rest, because a long list must not make a request impossible.
func (f *RequestFacts) SetAccountable(people []string) {
	size := len("[]")
	for i, person := range people {
		if size += len(AppendString(nil, person)) + len(","); size > maxAccountable {
			people = people[:i]
			break
		}
	}
	f.Accountable = people
}

// DecisionFacts describe a decision of the policy.
type DecisionFacts struct {
	Permit      bool
	Policies    []string // sorted ids of the determining policies
	Revision    Digest
	Approvals   []string // required approvals, such as "2 of dba"
	Review      []string // required reviews of a break-glass use, in the same form
	Signed      bool     // approvals and reviews need the signature of a passkey
	Manner      []string // further conditions of approval: "comment", "deny 2", "exclude_team", "silent_denial", "supplier max_risk=medium" as @supplier has it, "binding dpop or mtls" as @binding has it
	MaxTTL      time.Duration
	MaxDuration time.Duration // of the grant
	Tickets     Digest        // digest of the patterns that the ticket must match, and of what its tracker must state
	Code        string        // the stable error code of a denial
}

// SupplierManner starts the condition that the requester's suppliers are assessed.
const SupplierManner = "supplier "

// BindingManner starts the condition that tokens are bound to a key.
const BindingManner = "binding "

// requestDomain separates request digests from every other hash.
const requestDomain = "accessbroker/request/v1"

// Sum returns the digest that approvers are shown and sign: SHA-256 over the
// requested access and the obligations, as canonical JSON (RFC 8785). It covers
// free texts by their commitments and uses only values in the record, so that an
// auditor can recompute the digest after the texts were erased.
func (f *RequestFacts) Sum(by Requester, d *DecisionFacts) Digest {
	o := borrowObject()
	defer o.giveBack()
	f.terms(o, by, d)
	if !f.Details.IsZero() {
		o.Hex("authorization_details", f.Details)
	}
	return HashObject(requestDomain, o.
		Hex("binding_message", f.Message).
		Hex("justification", f.Justification).
		Hex("parameters", f.Parameters).
		Hex("ticket", f.Ticket))
}

// Terms returns the object that Sum hashes, without the commitments to free
// texts.
func (f *RequestFacts) Terms(by Requester, d *DecisionFacts) *Object {
	return f.terms(NewObject(), by, d)
}

func (f *RequestFacts) terms(o *Object, by Requester, d *DecisionFacts) *Object {
	o.Seconds("duration", f.Duration).
		Hex("effect", f.Effect).
		String("entitlement", f.Entitlement).
		String("extends", f.Extends).
		String("requester", by.ID).
		StringList("scopes", f.Scopes).
		String("subject", cmp.Or(by.Subject, by.ID)).
		Seconds("ttl", f.TTL)
	if by.Subject != "" {
		o.StringList("actors", by.Actors).String("parent", f.Parent)
	}
	if !f.Key.IsZero() {
		o.Hex("key", f.Key)
	}
	if f.BreakGlass {
		o.String("break_glass", "yes")
	}
	if !f.NotBefore.IsZero() {
		o.String("not_before", f.NotBefore.UTC().Format(time.RFC3339))
	}
	demands := borrowObject()
	defer demands.giveBack()
	demands.StringList("approvals", d.Approvals).
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

// ApprovalFacts describe one person's vote on a request, or verdict on a
// break-glass use.
type ApprovalFacts struct {
	Decision string // approve, deny; of a review justified, unjustified (approve, deny in unsigned reviews of older logs)
	Digest   Digest // digest of the request as the person saw it
	Groups   []string
	Comment  Digest        // commitment
	Scopes   []string      // narrowed scopes; nil: as requested
	TTL      time.Duration // narrowed TTL; zero: as requested
	Duration time.Duration // narrowed duration; zero: as requested
}

// LeaseFacts describe a lease. They hold no secret.
type LeaseFacts struct {
	ID         string
	Issuer     string
	Type       string
	Scopes     []string // scopes of a grant that is narrower than the request; nil: the request's scopes
	Expires    time.Time
	Revocation string // immediate, pending, at_expiry, at_rotation, never
	Credential Digest // commitment; plain SHA-256 for broker-signed tokens
	Replaces   string
	Key        Digest // thumbprint (RFC 7638) of the DPoP key that the credential is bound to; zero: none
}

// CallFacts describe a call that an edge is about to make with the credential of a lease.
type CallFacts struct {
	Method string
	Target Digest // commitment to the URL without its query
}

// EndFacts describe the end of a lease.
type EndFacts struct {
	How        string    // returned, revoked, replaced, expired, answer_lost, deadline, fact_ended
	Reason     Digest    // commitment
	ValidUntil time.Time // when the credential stops working, if revocation cannot end it earlier
	Fact       string    // of fact_ended: the subject of the fact, as "<kind> <name>"
	Cause      string    // of fact_ended: why the fact does not hold
}

// DirectoryFacts describe a change of a user, a group or a token of a provisioning client.
type DirectoryFacts struct {
	Source  string // the client's source, "scim:corp"
	ID      string // of the user, the group or the token
	Op      string // created, changed, deleted, revoked
	Person  string // of a user: "<provider>/<sub>"; empty: the user is no person yet
	Active  bool   // of a user, after the change
	Manager string // of a user, after the change: "<provider>/<sub>"
	Changed []string
	Name    Digest   // of a group: commitment to its name
	Added   []string // members that entered the group: people, or ids of users
	Removed []string // members that left it

	// Memberships are, in the record of a vote, the groups for which the person decided
	// because a directory states the membership, as "<group> <source>". An earlier record of
	// that source has the change that made the person a member.
	Memberships []string

	Expires time.Time
}

// FactFacts describe what a source states about a subject.
type FactFacts struct {
	Subject string // "<kind> <name>"
	Source  string // empty: the broker itself, because a time has come
	State   string // active, ended, withdrawn
	Cause   string // of a state other than active, and of the end of the subject's standing
	From    time.Time
	Until   time.Time
	Details Digest // commitment to what else the source states
}

// SignalFacts describe an event of a transmitter of shared security signals, or those of
// its events that a person decided on.
type SignalFacts struct {
	Transmitter string
	Event       string // the kind of the event
	ID          Digest // SHA-256 of its id (jti)
	Events      int64  // number of events that a person decided on
	Leases      int64  // number of leases that the events of a minute would end, this one included
	People      int64  // number of people whom they name
}

// RecoveryFacts describe what is done about records that are lost because the database was
// restored to an earlier time.
type RecoveryFacts struct {
	Since    time.Time // the last record that is left
	Until    time.Time // when the new log was opened: what happened between the two is lost
	Issuer   string    // that was searched
	Target   string    // of a credential: whose it is in the issuer's system
	Outcome  string    // of a credential: revoked, accepted, at_expiry, unknown
	Sessions int64     // of people, which were ended
	Found    int64     // number of credentials that were found
	Ended    int64     // number of these that were ended
}

// RulesFacts identify the rules in force by their content.
type RulesFacts struct {
	Revision Digest
	Files    map[string]Digest // policies, schema, groups and catalogue, by file name
}

// KeyFacts identify a signing key.
type KeyFacts struct {
	ID, Purpose, Algorithm string
	Public                 Digest
}

// LogFacts identify a log.
type LogFacts struct {
	Origin   string
	Previous string // text of the last checkpoint of the log that this one continues; empty: none
}

// BlockFacts describe a block.
type BlockFacts struct {
	Selector string // "holder spiffe://…", "under …", "entitlement …"
	Reason   Digest
}

// SupplierFacts describe an assessment of a supplier's risk, an extension of its contract,
// or a notice to its sponsor.
type SupplierFacts struct {
	Name     string
	ID       string    // of the assessment or the extension
	Digest   Digest    // of the supplier as suppliers.yaml has it, and as the person saw it
	Risk     string    // low, medium, high, critical
	Answers  Digest    // commitment to the questions and answers
	Evidence Digest    // commitment
	Reason   Digest    // of an extension: commitment to the reason, or to the comment of the decision
	From     time.Time // of an extension: the end of the contract that it extends
	Until    time.Time // how long the assessment is valid, or the contract runs
}
