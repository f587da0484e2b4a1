// Package api is what stands on the wire between the broker and everybody
// else: the JSON types, the error codes, and the Go client that the command
// line, the tests and other Go programs use. It imports nothing of ours.
//
// Field names are contracts. Times are RFC 3339 in UTC, durations Go strings
// ("15m"), digests lower-case hex of a SHA-256.
package api

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// An Ask is what a caller wants: the body of POST /v1/requests and of POST
// /v1/credentials.
type Ask struct {
	Entitlement   string            `json:"entitlement"`
	Scopes        []string          `json:"scopes,omitempty"` // empty: the entitlement's default scopes
	TTL           Duration          `json:"ttl,omitzero"`     // zero: the entitlement's default, cut to what policy allows
	Duration      Duration          `json:"duration,omitzero"`
	Justification string            `json:"justification,omitempty"`
	Ticket        string            `json:"ticket,omitempty"`
	Parameters    map[string]string `json:"parameters,omitempty"`
	SubjectToken  string            `json:"subject_token,omitempty"` // the caller's own JWT-SVID; any other is refused
	DryRun        bool              `json:"dry_run,omitempty"`       // decide and say, but file nothing
	BreakGlass    bool              `json:"break_glass,omitempty"`   // an emergency: no approval now, a review afterwards
	NotBefore     time.Time         `json:"not_before,omitzero"`     // when the grant is to start
	Extends       string            `json:"extends,omitempty"`       // the caller's earlier request that this one goes on
}

// How far a request got.
const (
	StatusPending   = "pending"
	StatusApproved  = "approved"
	StatusDenied    = "denied"
	StatusWithdrawn = "withdrawn"
	StatusLapsed    = "lapsed" // nobody approved in time
	StatusEnded     = "ended"  // the time to collect is over
)

// A Request is one ask, as the broker keeps it.
type Request struct {
	ID            string            `json:"id,omitempty"` // "req_…"; empty for a dry run
	Version       int               `json:"version"`
	Status        string            `json:"status"`
	Requester     string            `json:"requester"`      // SPIFFE ID, or person as "login/ana"
	RequesterKind string            `json:"requester_kind"` // workload, agent, person
	Entitlement   string            `json:"entitlement"`
	Scopes        []string          `json:"scopes,omitempty"`
	TTL           Duration          `json:"ttl,omitzero"`
	Duration      Duration          `json:"duration,omitzero"` // how long credentials may be collected, from the approval
	Justification string            `json:"justification,omitempty"`
	Ticket        string            `json:"ticket,omitempty"`
	Parameters    map[string]string `json:"parameters,omitempty"`
	Digest        string            `json:"digest,omitempty"` // of everything that an approver sees; empty for a dry run
	Decision      Decision          `json:"decision"`
	Approvals     Approvals         `json:"approvals"`
	Grant         *Grant            `json:"grant,omitempty"`  // once approved
	Review        *Review           `json:"review,omitempty"` // of a broken glass
	Team          string            `json:"team,omitempty"`   // of the requester
	Accountable   []string          `json:"accountable,omitempty"`
	BreakGlass    bool              `json:"break_glass,omitempty"`
	NotBefore     time.Time         `json:"not_before,omitzero"`
	Extends       string            `json:"extends,omitempty"`
	Reuse         bool              `json:"reuse,omitempty"`     // an earlier, identical request is the answer
	DeniedBy      string            `json:"denied_by,omitempty"` // policy or person
	CreatedAt     time.Time         `json:"created_at"`
	LapsesAt      time.Time         `json:"lapses_at,omitzero"` // while pending
	DryRun        bool              `json:"dry_run,omitempty"`
	Facts         *Facts            `json:"facts,omitempty"` // one request alone, for people who look at somebody else's
}

// A Decision is policy's answer, as far as the reader may see it. Policies is
// set only for readers who are asked to approve or review the request, or may view
// it by policy.
type Decision struct {
	Permit      bool         `json:"permit"`
	Reasons     []string     `json:"reasons,omitempty"`
	Obligations *Obligations `json:"obligations,omitempty"`
	Revision    string       `json:"revision,omitempty"`
	Policies    []string     `json:"policies,omitempty"`
}

// Obligations are what a permit demands; absent fields demand nothing.
type Obligations struct {
	Approvals     []Need   `json:"approvals,omitempty"`
	MaxTTL        Duration `json:"max_ttl,omitzero"`
	MaxDuration   Duration `json:"max_duration,omitzero"`
	Justification bool     `json:"justification,omitempty"`
	Tickets       []string `json:"tickets,omitempty"` // patterns; the ticket must match all of them
	Limits        []Limit  `json:"limits,omitempty"`
	MaxActive     int      `json:"max_active,omitempty"`
	Denials       int      `json:"deny,omitempty"`         // how many must say no to end it; absent: one
	ExcludeTeam   bool     `json:"exclude_team,omitempty"` // nobody of the requester's team approves
	Comment       bool     `json:"comment,omitempty"`      // who approves says why
	Signed        bool     `json:"signed,omitempty"`       // who approves, or reviews, signs with a passkey
	LapseAfter    Duration `json:"lapse_after,omitzero"`   // how long it waits for people; absent: 1h
	Review        []Need   `json:"review,omitempty"`       // who reviews it afterwards
	ReviewWithin  Duration `json:"review_within,omitzero"`
}

// A Limit is how many credentials are issued in any period of that length.
type Limit struct {
	Count int      `json:"count"`
	Per   Duration `json:"per"`
}

// Approvals are the people a request needs.
type Approvals struct {
	Needed []Need  `json:"needed,omitempty"`
	Given  []Voice `json:"given,omitempty"`
}

// A Voice is what one person said.
type Voice struct {
	Person   string    `json:"person"`   // "<provider>/<sub>"
	Decision string    `json:"decision"` // approve, deny
	Groups   []string  `json:"groups"`   // that the person spoke for
	Comment  string    `json:"comment,omitempty"`
	Scopes   []string  `json:"scopes,omitempty"` // narrowed to; absent: as asked
	TTL      Duration  `json:"ttl,omitzero"`
	Duration Duration  `json:"duration,omitzero"`
	Signed   bool      `json:"signed,omitempty"`
	At       time.Time `json:"at"`
}

// What a person may say to a request.
const (
	Approve = "approve"
	Deny    = "deny"
)

// A Vote is the body of POST /v1/requests/{id}/approvals. It may narrow what is
// granted, and never widen it.
type Vote struct {
	Decision string   `json:"decision"` // approve, deny
	Digest   string   `json:"digest"`   // of the request as the person saw it
	Comment  string   `json:"comment,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
	TTL      Duration `json:"ttl,omitzero"`
	Duration Duration `json:"duration,omitzero"`
}

// A Review is what people say afterwards of a broken glass.
type Review struct {
	DueAt    time.Time `json:"due_at"`
	ClosedAt time.Time `json:"closed_at,omitzero"`
	Needed   []Need    `json:"needed"`
	Given    []Verdict `json:"given,omitempty"`
}

// What a reviewer may find.
const (
	Justified   = "justified"
	Unjustified = "unjustified"
)

// A Verdict is what one reviewer found.
type Verdict struct {
	Person  string    `json:"person"`
	Verdict string    `json:"verdict"` // justified, unjustified
	Groups  []string  `json:"groups"`
	Comment string    `json:"comment"`
	Signed  bool      `json:"signed,omitempty"`
	At      time.Time `json:"at"`
}

// A Finding is the body of POST /v1/requests/{id}/review.
type Finding struct {
	Verdict string `json:"verdict"` // justified, unjustified
	Digest  string `json:"digest"`
	Comment string `json:"comment"`
}

// A Need is how many people of a group must approve, and how many did.
type Need struct {
	Group string `json:"group"`
	Count int    `json:"count"`
	Have  int    `json:"have"`
}

// A Grant is the right that an approved request gives.
type Grant struct {
	StartsAt     time.Time `json:"starts_at"`
	CollectUntil time.Time `json:"collect_until"`
	ExpiresAt    time.Time `json:"expires_at"`       // the latest time to which a credential may live
	Scopes       []string  `json:"scopes,omitempty"` // what was asked, narrowed by the approvals
	TTL          Duration  `json:"ttl"`
	Duration     Duration  `json:"duration"`
}

// A RequestPage is a part of a list, newest first.
type RequestPage struct {
	Requests []Request `json:"requests"`
	Next     string    `json:"next_cursor,omitempty"` // empty on the last page
}

// A Credential is what the holder receives, once.
type Credential struct {
	Lease       string    `json:"lease"`   // "lse_…"
	Request     string    `json:"request"` // "req_…"
	Entitlement string    `json:"entitlement"`
	Scopes      []string  `json:"scopes,omitempty"`
	Type        string    `json:"type"` // bearer, aws, userpass, certificate, vault, data
	Secret      Secret    `json:"secret"`
	ExpiresAt   time.Time `json:"expires_at"`
	Revocation  string    `json:"revocation"`           // what ending it early would mean: immediate, at_expiry, at_rotation, never
	WorksUntil  time.Time `json:"works_until,omitzero"` // if ending it does not stop it: when it stops by itself, as far as is known
	Receipt     Receipt   `json:"receipt"`
}

// A Receipt says which record of the audit log stands for a credential.
type Receipt struct {
	Index    int64  `json:"index"`
	LeafHash string `json:"leaf_hash"`
}

// A Secret is what a credential consists of, by field: bearer {token}, aws
// {access_key_id, secret_access_key, session_token}, userpass {username,
// password}, certificate {certificate, private_key, chain}, vault {token}.
//
// It marshals to JSON as it is, and prints and logs as "[secret]".
type Secret map[string]string

// Format prints "[secret]", whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// LogValue logs "[secret]".
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// How far a lease got.
const (
	LeaseIssuing   = "issuing"
	LeaseActive    = "active"
	LeaseRevoking  = "revoking"
	LeaseRevoked   = "revoked"
	LeaseFailed    = "failed"
	LeaseAbandoned = "abandoned"
	LeaseExpired   = "expired"
	LeaseStuck     = "stuck"
)

// A Lease is the broker's account of one credential. It holds no secret.
type Lease struct {
	ID          string            `json:"id"`
	Request     string            `json:"request"`
	Status      string            `json:"status"`
	Holder      string            `json:"holder"` // SPIFFE ID, or person as "login/ana"
	Entitlement string            `json:"entitlement"`
	Issuer      string            `json:"issuer"`
	Scopes      []string          `json:"scopes,omitempty"`
	Parameters  map[string]string `json:"parameters,omitempty"`
	Type        string            `json:"type,omitempty"`
	Revocation  string            `json:"revocation"` // live: what ending it would mean; ended: what it meant
	OpenedAt    time.Time         `json:"opened_at"`
	ExpiresAt   time.Time         `json:"expires_at"`
	WorksUntil  time.Time         `json:"works_until,omitzero"` // if ending it does not stop it: when it stops by itself, as far as is known
	Replaces    string            `json:"replaces,omitempty"`
	EndHow      string            `json:"end_how,omitempty"` // returned, revoked, replaced, expired, answer_lost, deadline, failed, unrecorded
	EndAskedAt  time.Time         `json:"end_asked_at,omitzero"`
	EndedAt     time.Time         `json:"ended_at,omitzero"`
	LastError   string            `json:"last_error,omitempty"` // a stable code
}

// A LeasePage is a part of a list, newest first.
type LeasePage struct {
	Leases []Lease `json:"leases"`
	Next   string  `json:"next_cursor,omitempty"` // empty on the last page
}

// Offers are what the caller may ask for.
type Offers struct {
	Entitlements []Offer `json:"entitlements"`
}

// An Offer is an entitlement as the caller may ask for it. It has either
// Scopes or a Decision of its own.
type Offer struct {
	Entitlement string               `json:"entitlement"`
	Description string               `json:"description,omitempty"`
	Issuer      string               `json:"issuer"`
	Owner       string               `json:"owner,omitempty"`
	System      string               `json:"system,omitempty"`
	Labels      map[string]string    `json:"labels,omitempty"`
	Audience    string               `json:"audience,omitempty"` // of its tokens
	Binding     string               `json:"binding"`            // none, mtls
	Revocation  string               `json:"revocation"`
	DefaultTTL  Duration             `json:"default_ttl,omitzero"`
	MaxTTL      Duration             `json:"max_ttl,omitzero"`
	Parameters  map[string]Parameter `json:"parameters,omitempty"`
	Scopes      []ScopeOffer         `json:"scopes,omitempty"`
	Decision    *Decision            `json:"decision,omitempty"`
	Blocked     bool                 `json:"blocked,omitempty"` // whatever the decision: an operator lifts it
}

// A ScopeOffer is what policy says to one scope alone.
type ScopeOffer struct {
	Scope       string   `json:"scope"`
	Description string   `json:"description,omitempty"` // what it means, in the operator's words
	Default     bool     `json:"default,omitempty"`     // granted if no scope is named
	Decision    Decision `json:"decision"`
	Glass       bool     `json:"break_glass,omitempty"` // it may be had in an emergency only
}

// A Parameter is something that the requester fills in.
type Parameter struct {
	Pattern     string `json:"pattern,omitempty"` // RE2, anchored
	MaxLength   int    `json:"max_length,omitempty"`
	Required    bool   `json:"required,omitempty"`
	Description string `json:"description,omitempty"`
}

// An Identity is who the caller was proved to be (GET /v1/whoami).
type Identity struct {
	ID          string   `json:"id"`
	Kind        string   `json:"kind"` // workload, agent, person; operator on the admin socket
	TrustDomain string   `json:"trust_domain,omitempty"`
	Team        string   `json:"team,omitempty"`
	Accountable []string `json:"accountable,omitempty"`
	Blocked     bool     `json:"blocked,omitempty"` // nothing is issued to it, until an operator lifts that
	Proof       Proof    `json:"proof"`
}

// A Proof is what an identity was proved with.
type Proof struct {
	Method    string    `json:"method"` // x509-svid, jwt-svid, session, admin-socket
	ExpiresAt time.Time `json:"expires_at"`
}

// A Revocation is the body of POST /v1/leases/{id}/revoke.
type Revocation struct {
	Reason string `json:"reason,omitempty"`
}

// An AuditRecord is one record of the log with what it takes to verify it
// (GET /v1/audit/{index}).
type AuditRecord struct {
	Index    int64              `json:"index"`
	LeafHash string             `json:"leaf_hash"`
	Leaf     []byte             `json:"leaf"`   // base64 of the bytes that are hashed
	Record   json.RawMessage    `json:"record"` // the same, readable
	Openings map[string]Opening `json:"openings,omitempty"`
	Proof    *InclusionProof    `json:"proof,omitempty"` // absent until a checkpoint covers the record
}

// An Opening opens a commitment of a record.
type Opening struct {
	Salt string `json:"salt"` // hex
	Text string `json:"text"`
}

// An InclusionProof proves that a leaf is in the tree of a checkpoint (RFC
// 6962, section 2.1.1). The broker command verifies it offline.
type InclusionProof struct {
	Origin     string   `json:"origin"`
	Index      int64    `json:"index"`
	Leaf       []byte   `json:"leaf"`   // base64
	Hashes     []string `json:"hashes"` // base64, from the leaf up, as in the checkpoint
	Checkpoint string   `json:"checkpoint"`
}

// A Readiness is the answer of GET /readyz.
type Readiness struct {
	Ready    bool              `json:"ready"`
	NotReady map[string]string `json:"not_ready,omitempty"` // what is not, and why
}

// A Duration is a positive length of time, a Go string on the wire ("15m").
// Its zero value means that it was not said, and is left out.
type Duration time.Duration

// A DurationError is a duration on the wire that is none, or not positive.
type DurationError struct{ Text string }

func (e *DurationError) Error() string {
	return fmt.Sprintf("%q is not a positive duration such as \"15m\"", e.Text)
}

// Std gives the duration as the standard library's.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String gives "15m" where time.Duration gives "15m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if n := len(s); n > 2 && s[n-2:] == "0s" && s[n-3] == 'm' {
		s = s[:n-2]
	}
	if n := len(s); n > 2 && s[n-2:] == "0m" && s[n-3] == 'h' {
		s = s[:n-2]
	}
	return s
}

// MarshalText writes String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a positive Go duration, or gives a *DurationError.
func (d *Duration) UnmarshalText(text []byte) error {
	const longest = 32
	parsed, err := time.ParseDuration(string(text[:min(len(text), longest)]))
	if err != nil || parsed <= 0 || len(text) > longest {
		return &DurationError{Text: string(text[:min(len(text), longest)])}
	}
	*d = Duration(parsed)
	return nil
}

// A Login is what a terminal trades for a session: a code and the verifier of
// its challenge, or a device code.
type Login struct {
	Code       string `json:"code,omitempty"`
	Verifier   string `json:"verifier,omitempty"`
	DeviceCode string `json:"device_code,omitempty"`
}

// A Session is a person's stay with the broker. Its token is a secret.
type Session struct {
	Token     string    `json:"token"`
	Person    string    `json:"person"` // "<provider>/<sub>"
	Name      string    `json:"name,omitempty"`
	ExpiresAt time.Time `json:"expires_at"`
	IdleAfter Duration  `json:"idle_after"`
}

// A DeviceLogin is what a terminal shows, and polls by (as RFC 8628).
type DeviceLogin struct {
	DeviceCode              string `json:"device_code"`
	UserCode                string `json:"user_code"`
	VerificationURI         string `json:"verification_uri"`
	VerificationURIComplete string `json:"verification_uri_complete"`
	ExpiresIn               int    `json:"expires_in"` // seconds
	Interval                int    `json:"interval"`   // seconds
}
