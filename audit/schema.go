package audit

import "time"

// Bounds of the values in a record, in encoded bytes, escapes included. A test
// proves that their sum is below MaxLeaf, so a record within the bounds always
// fits into a leaf.
const (
	maxID          = 2048 // a SPIFFE ID (SPIFFE-ID, section 2.3)
	maxActors      = 2100 // the longest SPIFFE ID fits
	maxAccountable = 2048 // about 100 people
	maxAccounts    = 768  // of one person
	maxAlso        = 256  // three proofs
	maxAttested    = 6    // a word
	maxScopes      = 4300 // 32 of 128 characters
	maxPolicies    = 5120
	maxGroups      = 1024
	maxFiles       = 11200 // about 100 files
	maxHost        = 255
	maxName        = 128
	maxSelector    = maxID + 32
	maxSubject     = maxID + 32
	maxRests       = 2560 // the subjects of the facts that a request rests on
	maxOrigin      = 512
	maxNote        = 2048
	maxPerson      = 300  // a provider and a subject
	maxChanged     = 1024 // names of attributes
	maxWord        = 64   // ids, and words from small sets
)

// MaxMembers bounds each list of members in a record, in encoded bytes. A larger change of
// a group has several records.
const MaxMembers = 3072

// Bounds of the values from a passkey, in bytes.
const (
	MaxCredential        = 400 // WebAuthn allows 1023; authenticators use far fewer
	MaxPublic            = 600 // fits an RSA key of 4096 bits
	MaxAuthenticatorData = 256
	MaxClientData        = 768
	MaxSignature         = 512
)

// The fields methods define the schema once, for writing, reading and measuring.
// RFC 8785 requires sorted keys, so the fields are listed in that order. A new
// field is inserted at its place; records without it keep their bytes. No key
// sorts after "v", the version, which ends every record.

func (r *Record) fields(c *codec) {
	sub(c, "approval", &r.Approval, (*ApprovalFacts).fields)
	sub(c, "block", &r.Block, (*BlockFacts).fields)
	sub(c, "call", &r.Call, (*CallFacts).fields)
	sub(c, "caller", &r.Caller, (*Party).fields)
	sub(c, "campaign", &r.Campaign, (*CampaignFacts).fields)
	c.count("count", &r.Count)
	sub(c, "decision", &r.Decision, (*DecisionFacts).fields)
	sub(c, "delegated", &r.Delegated, (*DecisionFacts).fields)
	sub(c, "directory", &r.Directory, (*DirectoryFacts).fields)
	sub(c, "end", &r.End, (*EndFacts).fields)
	sub(c, "fact", &r.Fact, (*FactFacts).fields)
	sub(c, "key", &r.Key, (*KeyFacts).fields)
	kind := string(r.Kind)
	c.text("kind", &kind, maxWord)
	r.Kind = Kind(kind)
	sub(c, "lease", &r.Lease, (*LeaseFacts).fields)
	sub(c, "log", &r.Log, (*LogFacts).fields)
	sub(c, "membership", &r.Membership, (*MembershipFacts).fields)
	sub(c, "passkey", &r.Passkey, (*PasskeyFacts).fields)
	sub(c, "pruned", &r.Pruned, (*PrunedFacts).fields)
	sub(c, "recovery", &r.Recovery, (*RecoveryFacts).fields)
	sub(c, "request", &r.Request, (*RequestFacts).fields)
	sub(c, "rules", &r.Rules, (*RulesFacts).fields)
	sub(c, "signal", &r.Signal, (*SignalFacts).fields)
	sub(c, "signature", &r.Signature, (*SignatureFacts).fields)
	sub(c, "subject", &r.Subject, (*Party).fields)
	sub(c, "supplier", &r.Supplier, (*SupplierFacts).fields)
	c.commitTime("time", &r.Time)
	c.trace("traceparent", &r.Trace)
	c.version("v")
}

func (p *Party) fields(c *codec) {
	c.texts("accounts", &p.Accounts, maxAccounts)
	c.texts("actors", &p.Actors, maxActors)
	c.texts("also", &p.Also, maxAlso)
	c.text("attested", &p.Attested, maxAttested)
	c.time("expires", &p.Expires)
	c.text("id", &p.ID, maxID)
	c.text("kind", &p.Kind, maxWord)
	c.text("method", &p.Method, maxWord)
	c.digest("proof", &p.Proof)
}

func (f *RequestFacts) fields(c *codec) {
	c.texts("accountable", &f.Accountable, maxAccountable)
	c.digest("authorization_details", &f.Details)
	c.digest("binding_message", &f.Message)
	c.flag("break_glass", &f.BreakGlass)
	c.digest("digest", &f.Digest)
	c.seconds("duration", &f.Duration)
	c.digest("effect", &f.Effect)
	c.text("entitlement", &f.Entitlement, maxName)
	c.text("extends", &f.Extends, maxWord)
	c.text("id", &f.ID, maxWord)
	c.digest("justification", &f.Justification)
	c.digest("key", &f.Key)
	c.time("lapses_at", &f.LapsesAt)
	c.time("not_before", &f.NotBefore)
	c.digest("parameters", &f.Parameters)
	c.text("parent", &f.Parent, maxWord)
	c.texts("rests_on", &f.RestsOn, maxRests)
	c.texts("scopes", &f.Scopes, maxScopes)
	c.digest("source", &f.Source)
	c.digest("ticket", &f.Ticket)
	c.seconds("ttl", &f.TTL)
	c.time("until", &f.Until)
}

func (f *DecisionFacts) fields(c *codec) {
	c.texts("approvals", &f.Approvals, maxGroups)
	c.text("code", &f.Code, maxWord)
	c.texts("manner", &f.Manner, 2*maxWord)
	c.seconds("max_duration", &f.MaxDuration)
	c.seconds("max_ttl", &f.MaxTTL)
	c.flag("permit", &f.Permit)
	c.texts("policies", &f.Policies, maxPolicies)
	c.texts("review", &f.Review, maxGroups)
	c.digest("revision", &f.Revision)
	c.flag("signed", &f.Signed)
	c.digest("tickets", &f.Tickets)
}

func (f *ApprovalFacts) fields(c *codec) {
	c.digest("comment", &f.Comment)
	c.text("decision", &f.Decision, maxWord)
	c.digest("digest", &f.Digest)
	c.seconds("duration", &f.Duration)
	c.texts("groups", &f.Groups, maxGroups)
	c.texts("scopes", &f.Scopes, maxScopes)
	c.seconds("ttl", &f.TTL)
}

func (f *SignatureFacts) fields(c *codec) {
	c.bytes("authenticator_data", &f.AuthenticatorData, MaxAuthenticatorData)
	c.bytes("client_data", &f.ClientData, MaxClientData)
	c.bytes("credential", &f.Credential, MaxCredential)
	c.digest("nonce", &f.Nonce)
	c.bytes("signature", &f.Signature, MaxSignature)
}

func (f *PasskeyFacts) fields(c *codec) {
	c.time("counts", &f.Counts)
	c.bytes("credential", &f.Credential, MaxCredential)
	c.bytes("public", &f.Public, MaxPublic)
	c.text("rp", &f.RP, maxHost)
}

func (f *LeaseFacts) fields(c *codec) {
	c.digest("credential", &f.Credential)
	c.time("expires", &f.Expires)
	c.text("id", &f.ID, maxWord)
	c.text("issuer", &f.Issuer, maxName)
	c.digest("key", &f.Key)
	c.text("replaces", &f.Replaces, maxWord)
	c.text("revocation", &f.Revocation, maxWord)
	c.texts("scopes", &f.Scopes, maxScopes)
	c.text("type", &f.Type, maxWord)
}

func (f *CallFacts) fields(c *codec) {
	c.text("method", &f.Method, maxWord)
	c.digest("target", &f.Target)
}

func (f *EndFacts) fields(c *codec) {
	c.text("cause", &f.Cause, maxWord)
	c.text("fact", &f.Fact, maxSubject)
	c.text("how", &f.How, maxWord)
	c.digest("reason", &f.Reason)
	c.time("valid_until", &f.ValidUntil)
}

func (f *DirectoryFacts) fields(c *codec) {
	c.flag("active", &f.Active)
	c.texts("added", &f.Added, MaxMembers)
	c.texts("changed", &f.Changed, maxChanged)
	c.time("expires", &f.Expires)
	c.text("id", &f.ID, maxWord)
	c.text("manager", &f.Manager, maxPerson)
	c.texts("memberships", &f.Memberships, 2*maxGroups)
	c.digest("name", &f.Name)
	c.text("op", &f.Op, maxWord)
	c.text("person", &f.Person, maxPerson)
	c.texts("removed", &f.Removed, MaxMembers)
	c.text("source", &f.Source, maxName)
}

func (f *FactFacts) fields(c *codec) {
	c.text("cause", &f.Cause, maxWord)
	c.digest("details", &f.Details)
	c.time("from", &f.From)
	c.text("source", &f.Source, maxName)
	c.text("state", &f.State, maxWord)
	c.text("subject", &f.Subject, maxSubject)
	c.time("until", &f.Until)
}

func (f *SignalFacts) fields(c *codec) {
	c.text("event", &f.Event, maxWord)
	c.number("events", &f.Events)
	c.digest("id", &f.ID)
	c.number("leases", &f.Leases)
	c.number("people", &f.People)
	c.text("transmitter", &f.Transmitter, maxName)
}

func (f *RulesFacts) fields(c *codec) {
	c.files("files", &f.Files, maxFiles)
	c.digest("revision", &f.Revision)
}

func (f *KeyFacts) fields(c *codec) {
	c.text("algorithm", &f.Algorithm, maxWord)
	c.text("id", &f.ID, maxName)
	c.digest("public", &f.Public)
	c.text("purpose", &f.Purpose, maxWord)
}

func (f *RecoveryFacts) fields(c *codec) {
	c.number("ended", &f.Ended)
	c.number("found", &f.Found)
	c.text("issuer", &f.Issuer, maxName)
	c.text("outcome", &f.Outcome, maxWord)
	c.number("sessions", &f.Sessions)
	c.time("since", &f.Since)
	c.text("target", &f.Target, maxID)
	c.time("until", &f.Until)
}

func (f *LogFacts) fields(c *codec) {
	c.text("origin", &f.Origin, maxOrigin)
	c.text("previous", &f.Previous, maxNote)
}

func (f *SupplierFacts) fields(c *codec) {
	c.digest("answers", &f.Answers)
	c.digest("digest", &f.Digest)
	c.digest("evidence", &f.Evidence)
	c.time("from", &f.From)
	c.text("id", &f.ID, maxWord)
	c.text("name", &f.Name, maxWord)
	c.digest("reason", &f.Reason)
	c.text("risk", &f.Risk, maxWord)
	c.time("until", &f.Until)
}

func (f *BlockFacts) fields(c *codec) {
	c.digest("reason", &f.Reason)
	c.text("selector", &f.Selector, maxSelector)
}

// TimeFormat is the layout of every time in a record: RFC 3339, UTC,
// milliseconds. It has a fixed width and sorts as text.
const TimeFormat = "2006-01-02T15:04:05.000Z"

// maxInt is the largest integer that every JSON parser represents exactly (RFC
// 7493, section 2.2).
const maxInt = 1<<53 - 1

// Millis returns t in UTC, truncated to the precision of a record.
func Millis(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
