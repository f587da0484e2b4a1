// Package api defines the broker's HTTP API: the JSON types, the error codes
// and a Go client. Clients need no other package of this module.
//
// Field names are contracts. Times are RFC 3339 in UTC. Durations are Go
// strings ("15m"). Digests are SHA-256 in lower-case hex.
package api

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"time"
)

// ProblemType and a code are the type of a Problem, the same for every broker.
// docs/problems.md describes each of them.
const ProblemType = "urn:access-broker:problem:"

// States of a request.
const (
	StatusPending   = "pending"
	StatusApproved  = "approved"
	StatusDenied    = "denied"
	StatusWithdrawn = "withdrawn"
	StatusLapsed    = "lapsed" // not approved in time
	StatusEnded     = "ended"  // credentials can no longer be collected
)

// A Request is an Ask that the broker has filed, or the result of a dry run.
type Request struct {
	ID             string            `json:"id,omitempty"` // "req_…"; empty for a dry run
	Version        int               `json:"version"`
	Status         string            `json:"status"`
	Requester      string            `json:"requester"`              // SPIFFE ID, or person as "login/ana"
	RequesterKind  string            `json:"requester_kind"`         // workload, agent, person
	Attested       string            `json:"attested,omitempty"`     // how the requester was, if it is a workload: spiffe or oidc
	OnBehalfOf     string            `json:"on_behalf_of,omitempty"` // whose rights are used: a person as "login/ana", or a SPIFFE ID
	Actors         []string          `json:"actors,omitempty"`       // who acted for them before the requester, the first one first
	Parent         string            `json:"parent,omitempty"`       // the lease whose token the requester exchanged
	Delegated      *Decision         `json:"delegated,omitempty"`    // the decision about OnBehalfOf; the obligations of both are in Decision
	Entitlement    string            `json:"entitlement"`
	Scopes         []string          `json:"scopes,omitempty"`
	TTL            Duration          `json:"ttl,omitzero"`
	Duration       Duration          `json:"duration,omitzero"` // how long credentials can be collected, from the last approval
	Justification  string            `json:"justification,omitempty"`
	BindingMessage string            `json:"binding_message,omitempty"`
	Ticket         string            `json:"ticket,omitempty"`
	Parameters     map[string]string `json:"parameters,omitempty"`
	Digest         string            `json:"digest,omitempty"` // an approval is bound to it; empty for a dry run
	Decision       Decision          `json:"decision"`
	Approvals      Approvals         `json:"approvals"`
	Grant          *Grant            `json:"grant,omitempty"`  // once approved
	Review         *Review           `json:"review,omitempty"` // of a break-glass use
	Team           string            `json:"team,omitempty"`   // of the requester
	Risk           string            `json:"risk,omitempty"`   // low, medium or high: it orders the inbox and decides nothing
	Accountable    []string          `json:"accountable,omitempty"`
	Marks

	AuthorizationDetails []AuthorizationDetail `json:"authorization_details,omitempty"` // fine grants (RFC 9396)

	BreakGlass    bool      `json:"break_glass,omitempty"`
	NotBefore     time.Time `json:"not_before,omitzero"`
	RestsOn       []string  `json:"rests_on,omitempty"`      // the subjects of the facts that it rests on, as "<kind> <name>"
	AccessEndsAt  time.Time `json:"access_ends_at,omitzero"` // the earliest known end of these facts
	EndedBy       *EndedBy  `json:"ended_by,omitempty"`      // the fact that ended the request or its grant
	Extends       string    `json:"extends,omitempty"`
	KeyThumbprint string    `json:"dpop_jkt,omitempty"`  // thumbprint of the DPoP key with which it was filed and must be collected
	Reuse         bool      `json:"reuse,omitempty"`     // this is an earlier, identical request
	DeniedBy      string    `json:"denied_by,omitempty"` // policy, ceiling, person or fact
	CreatedAt     time.Time `json:"created_at"`
	LapsesAt      time.Time `json:"lapses_at,omitzero"`          // while pending
	Awaits        []string  `json:"awaits_assessment,omitempty"` // pending: the suppliers for whose assessment it waits
	DryRun        bool      `json:"dry_run,omitempty"`
	Facts         *Facts    `json:"facts,omitempty"` // only in GET /v1/requests/{id}, and only for people who read another caller's request
}

// A Decision is the policy's decision, as far as the reader may see it. Policies
// is set only for approvers and reviewers of the request, and for readers whom
// policy permits to view it.
type Decision struct {
	Permit      bool         `json:"permit"`
	Reasons     []string     `json:"reasons,omitempty"`
	Obligations *Obligations `json:"obligations,omitempty"`
	Revision    string       `json:"revision,omitempty"`
	Policies    []string     `json:"policies,omitempty"`
}

// Obligations are the conditions of a permit. An absent field is no condition.
type Obligations struct {
	Approvals       []Need        `json:"approvals,omitempty"`
	MaxTTL          Duration      `json:"max_ttl,omitzero"`
	MaxDuration     Duration      `json:"max_duration,omitzero"`
	Justification   bool          `json:"justification,omitempty"`
	Tickets         []string      `json:"tickets,omitempty"`          // patterns; the ticket must match all of them
	TicketStates    []string      `json:"ticket_states,omitempty"`    // the ticket must be in all of them
	TicketAssignees []string      `json:"ticket_assignees,omitempty"` // each has alternatives, such as "accountable, requester"; the ticket's assignee must be one of each
	ChangeWindow    bool          `json:"change_window,omitempty"`    // only within the ticket's change window
	Limits          []Limit       `json:"limits,omitempty"`
	MaxActive       int           `json:"max_active,omitempty"`
	Denials         int           `json:"deny,omitempty"`          // denials that end the request; absent: one
	ExcludeTeam     bool          `json:"exclude_team,omitempty"`  // members of the requester's team can't approve
	Comment         bool          `json:"comment,omitempty"`       // an approval needs a comment
	SilentDenial    bool          `json:"silent_denial,omitempty"` // a denial needs no comment; absent: it needs one
	Signed          bool          `json:"signed,omitempty"`        // approvals and reviews are signed with a passkey
	Supplier        *SupplierNeed `json:"supplier,omitempty"`      // the assessment of the requester's supplier
	LapseAfter      Duration      `json:"lapse_after,omitzero"`    // how long the request waits for approvers; absent: 1h
	Review          []Need        `json:"review,omitempty"`        // reviewers after a break-glass use
	ReviewWithin    Duration      `json:"review_within,omitzero"`
	Binding         string        `json:"binding,omitempty"` // what tokens must be bound to: mtls, dpop, "dpop or mtls"; absent: policy demands nothing
}

// OnTicket reports whether the access rests on what a ticket's tracker states.
func (o *Obligations) OnTicket() bool {
	return len(o.TicketStates)+len(o.TicketAssignees) > 0 || o.ChangeWindow
}

// A SupplierNeed is an assessment of the requester's supplier that a request needs.
type SupplierNeed struct {
	AssessedWithin Duration `json:"assessed_within,omitzero"` // the greatest age; absent: any that is still valid
	MaxRisk        string   `json:"max_risk,omitempty"`       // low, medium, high; absent: any
}

// A Limit is the number of credentials issued in any period of length Per.
type Limit struct {
	Count int      `json:"count"`
	Per   Duration `json:"per"`
}

// Approvals are the approvals that a request needs and the votes it has.
type Approvals struct {
	Needed []Need         `json:"needed,omitempty"`
	Given  []RecordedVote `json:"given,omitempty"`
}

// A RecordedVote is one person's approval or denial.
type RecordedVote struct {
	Person   string    `json:"person"`   // "<provider>/<sub>"
	Decision string    `json:"decision"` // approve, deny
	Groups   []string  `json:"groups"`   // groups that the person voted for
	Comment  string    `json:"comment,omitempty"`
	Scopes   []string  `json:"scopes,omitempty"` // narrowed scopes; absent: as requested
	TTL      Duration  `json:"ttl,omitzero"`
	Duration Duration  `json:"duration,omitzero"`
	Signed   bool      `json:"signed,omitempty"`
	At       time.Time `json:"at"`
}

// Decisions of a vote.
const (
	Approve = "approve"
	Deny    = "deny"
)

// A Vote is the body of POST /v1/requests/{id}/approvals. Scopes, TTL and
// Duration can narrow the grant, never widen it.
type Vote struct {
	Decision string   `json:"decision"` // approve, deny
	Digest   string   `json:"digest"`   // the Digest of the request that the person read
	Comment  string   `json:"comment,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
	TTL      Duration `json:"ttl,omitzero"`
	Duration Duration `json:"duration,omitzero"`
}

// A Review is the review after a break-glass use.
type Review struct {
	DueAt    time.Time `json:"due_at"`
	ClosedAt time.Time `json:"closed_at,omitzero"`
	Needed   []Need    `json:"needed"`
	Given    []Verdict `json:"given,omitempty"`
}

// Verdicts of a review.
const (
	Justified   = "justified"
	Unjustified = "unjustified"
)

// A Verdict is one reviewer's finding.
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

// A Need is the number of people of a group who must act, and how many have.
type Need struct {
	Group string `json:"group"`
	Count int    `json:"count"`
	Have  int    `json:"have"`
}

// A Grant is the right to collect credentials of an approved request.
type Grant struct {
	StartsAt     time.Time `json:"starts_at"`
	CollectUntil time.Time `json:"collect_until"`
	ExpiresAt    time.Time `json:"expires_at"`       // no credential is valid after it
	Scopes       []string  `json:"scopes,omitempty"` // the requested scopes, narrowed by the approvals
	TTL          Duration  `json:"ttl"`
	Duration     Duration  `json:"duration"`
}

// A RequestPage is one page of a list, newest first.
type RequestPage struct {
	Requests []Request `json:"requests"`
	Next     string    `json:"next_cursor,omitempty"` // empty on the last page
}

// A Credential is an issued credential. The broker does not store its Secret.
type Credential struct {
	Lease       string        `json:"lease"`   // "lse_…"
	Request     string        `json:"request"` // "req_…"
	Entitlement string        `json:"entitlement"`
	Scopes      []string      `json:"scopes,omitempty"`
	Type        string        `json:"type"`                 // bearer, aws, userpass, certificate, vault, data, membership
	Secret      Secret        `json:"secret,omitempty"`     // of every type except membership
	Membership  *Joined       `json:"membership,omitempty"` // of type membership: it is no secret
	Confirm     *Confirmation `json:"cnf,omitempty"`        // of type bearer: what the token is bound to; absent: nothing
	ExpiresAt   time.Time     `json:"expires_at"`
	Revocation  string        `json:"revocation"`           // effect of a revocation: immediate, at_expiry, at_rotation, never
	WorksUntil  time.Time     `json:"works_until,omitzero"` // if a revocation does not stop it: when it stops by itself, as far as known
	Receipt     Receipt       `json:"receipt"`
}

// TypeMembership is the type of a credential that is the membership in a group.
const TypeMembership = "membership"

// Joined is the group that a credential of type membership makes its holder a member of,
// for as long as the lease lasts.
type Joined struct {
	System string `json:"system"`
	Group  string `json:"group"` // or the role
}

// A Receipt names the audit record of a credential.
type Receipt struct {
	Index    int64  `json:"index"`
	LeafHash string `json:"leaf_hash"`
}

// A Secret holds the fields of a credential, by type: bearer {token}, aws
// {access_key_id, secret_access_key, session_token}, userpass {username,
// password}, certificate {certificate, private_key, chain}, vault {token}; data
// has the fields of its upstream.
//
// It marshals to JSON unchanged, but prints and logs as "[secret]".
type Secret map[string]string

// Format prints "[secret]", whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// LogValue logs "[secret]".
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// States of a lease.
const (
	LeaseIssuing   = "issuing"
	LeaseActive    = "active"
	LeaseRevoking  = "revoking"
	LeaseRevoked   = "revoked"
	LeaseFailed    = "failed" // no credential exists
	LeaseAbandoned = "abandoned"
	LeaseExpired   = "expired"
	LeaseStuck     = "stuck" // the issuer has failed to revoke it for minutes; the broker keeps trying
)

// Offers is the answer of GET /v1/entitlements.
type Offers struct {
	Entitlements []Offer `json:"entitlements"`
}

// An Offer is an entitlement that the caller may request. It has either Scopes
// or a Decision.
type Offer struct {
	Entitlement string               `json:"entitlement"`
	Description string               `json:"description,omitempty"`
	Issuer      string               `json:"issuer"`
	Owner       string               `json:"owner,omitempty"`
	System      string               `json:"system,omitempty"`
	Labels      map[string]string    `json:"labels,omitempty"`
	Audience    string               `json:"audience,omitempty"` // of its tokens
	Binding     string               `json:"binding"`            // none, mtls, dpop, "dpop or mtls"
	Revocation  string               `json:"revocation"`
	DefaultTTL  Duration             `json:"default_ttl,omitzero"`
	MaxTTL      Duration             `json:"max_ttl,omitzero"`
	Parameters  map[string]Parameter `json:"parameters,omitempty"`
	Egress      *Egress              `json:"egress,omitempty"` // how an edge may use its credential; absent: in no calls

	// DetailTypes are JSON Schemas of the elements of authorization_details, by type.
	DetailTypes map[string]json.RawMessage `json:"authorization_details_types,omitempty"`

	NeedsDetails bool `json:"needs_details,omitempty"` // of an entitlement without scopes: permitted only with authorization_details

	Scopes   []ScopeOffer `json:"scopes,omitempty"`
	Decision *Decision    `json:"decision,omitempty"`
	Blocked  bool         `json:"blocked,omitempty"` // by the kill switch, regardless of the decision
}

// A ScopeOffer is the policy's decision on a request for this scope alone.
type ScopeOffer struct {
	Scope          string   `json:"scope"`
	Description    string   `json:"description,omitempty"` // by the operator
	Default        bool     `json:"default,omitempty"`     // granted if a request names no scope
	Decision       Decision `json:"decision"`
	BreakGlassOnly bool     `json:"break_glass,omitempty"`   // permitted only with break_glass
	NeedsDetails   bool     `json:"needs_details,omitempty"` // permitted only with authorization_details
}

// A Parameter is a value that the requester supplies.
type Parameter struct {
	Pattern     string `json:"pattern,omitempty"` // RE2, anchored
	MaxLength   int    `json:"max_length,omitempty"`
	Required    bool   `json:"required,omitempty"`
	Description string `json:"description,omitempty"`
}

// An Identity is the proven caller: the answer of GET /v1/whoami.
type Identity struct {
	ID          string   `json:"id"`
	Kind        string   `json:"kind"`               // workload, agent, person; operator on the admin socket
	Attested    string   `json:"attested,omitempty"` // of a workload: spiffe (it has an SVID) or oidc (a token of its platform)
	TrustDomain string   `json:"trust_domain,omitempty"`
	Team        string   `json:"team,omitempty"`
	Accountable []string `json:"accountable,omitempty"`
	Marks
	EndsAt   time.Time `json:"ends_at,omitzero"`   // when all access of the workload ends, as its mark states
	Accounts []string  `json:"accounts,omitempty"` // all accounts of a person who has several
	Blocked  bool      `json:"blocked,omitempty"`  // by the kill switch: nothing is issued
	Proof    Proof     `json:"proof"`
}

// Marks are what the operators state about a workload, in addition to its team and its
// owners.
type Marks struct {
	Purpose string        `json:"purpose,omitempty"`
	Model   string        `json:"model,omitempty"`  // of an agent
	Ceiling []CeilingPart `json:"ceiling,omitzero"` // what it may ever have, whatever policies permit; absent: policies alone decide
}

// A CeilingPart is what a workload may ever have of one entitlement.
type CeilingPart struct {
	Entitlement string   `json:"entitlement"`
	Scopes      []string `json:"scopes,omitempty"` // absent: all
}

// A Proof is the proof of an identity.
type Proof struct {
	Method    string    `json:"method"` // x509-svid, jwt-svid, oidc-token, session, admin-socket, broker-token, access-token
	ExpiresAt time.Time `json:"expires_at"`
}

// A Revocation is the body of POST /v1/leases/{id}/revoke and /abandon.
type Revocation struct {
	Reason string `json:"reason,omitempty"`
}

// A Readiness is the answer of GET /readyz.
type Readiness struct {
	Ready    bool              `json:"ready"`
	NotReady map[string]string `json:"not_ready,omitempty"` // by component: why it is not ready
	Degraded map[string]string `json:"degraded,omitempty"`  // by component: faults that do not make it unready
	Replica  *Replica          `json:"replica,omitempty"`   // that answers, of several on one database
}

// A Replica is one of the brokers that share a database.
type Replica struct {
	Revision    string         `json:"revision"`             // of the policies by which it decides
	Config      string         `json:"configuration"`        // digest of what the files of all replicas must have alike
	ClockOffset float64        `json:"clock_offset_seconds"` // by how much its clock is ahead of the database's
	Replicas    map[string]int `json:"replicas"`             // all of them, by state: ready, not_ready or gone
}

// A Duration is a positive duration, on the wire a Go string such as "15m". Zero
// means absent.
type Duration time.Duration

// durationForm is the form of a duration. Go also reads signs and incomplete fractions.
var durationForm = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`)

// A DurationError reports text that is not a positive duration.
type DurationError struct{ Text string }

func (e *DurationError) Error() string {
	return fmt.Sprintf("%q is not a positive duration such as \"15m\"", e.Text)
}

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String formats d without trailing zero units: "15m", not "15m0s". The domain
// formats durations in its error details in the same way, with a function of its
// own: it does not import the wire types, and this package imports no other. A test
// keeps the two equal.
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

// MarshalText returns String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText parses a positive Go duration. Its error is a *DurationError.
func (d *Duration) UnmarshalText(text []byte) error {
	const longest = 32
	parsed, err := time.ParseDuration(string(text[:min(len(text), longest)]))
	if err != nil || parsed <= 0 || len(text) > longest || !durationForm.Match(text) {
		return &DurationError{Text: string(text[:min(len(text), longest)])}
	}
	*d = Duration(parsed)
	return nil
}

// A Login is the body of POST /v1/sessions: an authorization code with its PKCE
// verifier (RFC 7636), or a device code (RFC 8628).
type Login struct {
	Code       string `json:"code,omitempty"`
	Verifier   string `json:"verifier,omitempty"`
	DeviceCode string `json:"device_code,omitempty"`
}

// A Session is a person's session with the broker. Its Token is a secret.
type Session struct {
	Token     string    `json:"token"`
	Person    string    `json:"person"` // "<provider>/<sub>"
	Name      string    `json:"name,omitempty"`
	ExpiresAt time.Time `json:"expires_at"`
	IdleAfter Duration  `json:"idle_after"`
}

// A DeviceLogin is the answer of POST /v1/sessions/device, in the form of RFC
// 8628, section 3.2.
type DeviceLogin struct {
	DeviceCode              string `json:"device_code"`
	UserCode                string `json:"user_code"`
	VerificationURI         string `json:"verification_uri"`
	VerificationURIComplete string `json:"verification_uri_complete"`
	ExpiresIn               int    `json:"expires_in"` // seconds
	Interval                int    `json:"interval"`   // seconds
}
