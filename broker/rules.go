package broker

import (
	"context"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// Rules are everything that a decision reads. They are replaced as a whole, and
// recorded before the first decision under them.
type Rules struct {
	Policy        Policy
	Catalogue     Catalogue
	Groups        map[string]Group
	Labels        []WorkloadLabels
	People        People
	Suppliers     Suppliers
	PersonEnds    map[string]PersonEnd    // of people.yaml, by account
	OrphanGrace   map[Kind]time.Duration  // by kind of workload; see Orphan
	TrustDomains  []string                // whose workloads may authenticate
	Providers     []string                // with which people log in
	PeopleChannel bool                    // notices can be sent to single people; not part of the revision
	Revision      audit.Digest            // of everything above
	Files         map[string]audit.Digest // digests by name, for the record

	directory   Directory                // nil: claims alone count; set when the rules come into force
	Campaigns   map[string]*CampaignPlan // by name
	Suspensions []Suspension             // in force, sorted by key
	Base        audit.Digest             // the revision without the suspensions
	Permissions Permissions              // that campaigns review; nil: none

	resourceServers map[string]bool // of all entitlements; set when the rules come into force
}

// IsResourceServer reports whether the identity may introspect the tokens of an
// entitlement. The rules must be in force.
func (r *Rules) IsResourceServer(id string) bool { return r.resourceServers[id] }

// findResourceServers returns the introspectors of all entitlements.
func (c Catalogue) findResourceServers() map[string]bool {
	all := map[string]bool{}
	for _, e := range c {
		for _, id := range e.Introspectors {
			all[id] = true
		}
	}
	return all
}

// A Catalogue has the entitlements by name.
type Catalogue map[string]*Entitlement

// An Entitlement is one entry of the catalogue. It is immutable once loaded.
type Entitlement struct {
	Name          string
	Issuer        string
	Description   string
	Scopes        []string          // sorted; empty: the entitlement is requested as a whole
	ScopeTexts    map[string]string // the operator's descriptions of scopes, for people; may be incomplete
	DefaultScopes []string
	DefaultTTL    time.Duration
	MaxTTL        time.Duration
	MinTTL        time.Duration // the issuer's minimum; zero: none
	CollectWithin time.Duration // default for a request's duration
	Owner         string        // a group
	System        string        // may be empty
	Labels        map[string]string
	Parameters    map[string]Parameter
	Details       map[string]*DetailType `json:",omitempty"` // types of authorization_details, by name
	Binding       Binding
	StatusList    bool         `json:",omitempty"` // its tokens have places in status lists
	Revocation    Revocation   // the effect of revoking a credential
	Persists      bool         // its credentials have no expiry of their own: only the issuer ends them
	Audience      string       // of its tokens; empty if its credentials are not broker-signed tokens
	Introspectors []string     // SPIFFE IDs of the issuer's resource servers
	Shares        string       // the unit that revocation ends as a whole, for example all sessions of a role; empty: a single credential
	Spec          any          // compiled by its issuer; opaque to all others
	Effect        audit.Digest // of the compiled effect
	Egress        *Egress      `json:",omitempty"` // how an edge may use its credential; nil: in no calls
}

// A Group is a group of groups.yaml: who approves, and who is notified.
type Group struct {
	Members   []string // the listed people, as "<provider>/<sub>"
	Workloads []string // SPIFFE IDs, with everything below them
	Claimed   bool     // a provider's claims add members, so the members cannot be counted
	Notify    []string // channels, for example "slack:dba"
}

// A Parameter is a bounded string that the requester supplies.
type Parameter struct {
	Pattern     *regexp.Regexp // anchored
	MaxLength   int            // bytes
	Lines       bool           // may contain line breaks, for example PEM
	Required    bool
	Description string
}

// WorkloadLabels are the operator's labels for the workloads under a path.
type WorkloadLabels struct {
	Under       string // a SPIFFE ID; covers itself and everything below it
	Kind        Kind   // workload or agent
	Team        string
	Accountable []string
	Purpose     string    `json:",omitempty"`
	Model       string    `json:",omitempty"` // of an agent, for example the family of its model
	Ceiling     *Ceiling  `json:",omitempty"` // nil: policies alone decide
	Ends        time.Time `json:",omitzero"`  // when all access under the path ends
}

// Covers reports whether the labels apply to a SPIFFE ID. Labels on a trust
// domain ("spiffe://acme.test") apply to all of it. A path ends at a segment.
func (l WorkloadLabels) Covers(id string) bool {
	rest, ok := strings.CutPrefix(id, l.Under)
	return ok && (rest == "" || rest[0] == '/')
}

// WithLabels returns the identity with the operator's labels: those of a workload, or
// the linked accounts of a person and what a directory states about the person. Operators have none.
func (r *Rules) WithLabels(who Identity) Identity {
	if who.Kind == KindPerson {
		who.Accounts = r.People.accounts[who.ID]
		who.Person = r.stated(who)
		who.Suppliers = r.Suppliers.Of(who)
		return who
	}
	who.Suppliers = r.Suppliers.Of(who)
	if who.Kind != KindWorkload && who.Kind != KindAgent {
		return who
	}
	labels, ok := r.LabelsOf(who.ID)
	if !ok {
		labels.Kind = KindWorkload
	}
	who.Kind, who.Team, who.Accountable = labels.Kind, labels.Team, labels.Accountable
	who.Purpose, who.Model, who.Ceiling, who.Ends = labels.Purpose, labels.Model, labels.Ceiling, labels.Ends
	return who
}

// stated returns a person with the groups and the manager that a directory states, which
// replace the claims of the last login.
func (r *Rules) stated(who Identity) *Person {
	if r.directory == nil || who.Person == nil {
		return who.Person
	}
	known, ok := r.directory.Person(who.ID)
	if !ok {
		return who.Person
	}
	person := *who.Person
	person.Groups, person.Manager, person.Directory = known.Groups, known.Manager, known.Source
	return &person
}

// LabelsOf returns the labels with the longest path that covers id, and whether
// there are any.
func (r *Rules) LabelsOf(id string) (labels WorkloadLabels, ok bool) {
	for _, l := range r.Labels {
		if l.Covers(id) && (!ok || len(l.Under) > len(labels.Under)) {
			labels, ok = l, true
		}
	}
	return labels, ok
}

// An Action is what a query asks policy about.
type Action string

// The actions. Request is on an entitlement; Approve, View and Revoke are on a
// request (and the leases it led to); the rest are on the broker itself.
const (
	ActionRequest    Action = "request"
	ActionApprove    Action = "approve"
	ActionView       Action = "view"
	ActionRevoke     Action = "revoke"
	ActionAudit      Action = "audit"
	ActionBlock      Action = "block"
	ActionUsage      Action = "usage"
	ActionIntrospect Action = "introspect"
	ActionOperate    Action = "operate"
)

// A Query asks policy for one decision. Principal has its labels.
type Query struct {
	Principal     Identity
	Action        Action
	Entitlement   *Entitlement // for ActionRequest; for the actions on a request, its entitlement
	Request       *Request     // for ActionApprove, ActionView and ActionRevoke
	Scopes        []string
	TTL           time.Duration
	Duration      time.Duration
	Justification string
	Ticket        string
	Parameters    map[string]string
	Details       []Detail
	SourceIP      netip.Addr // zero: unknown
	BreakGlass    bool
	OnBehalfOf    *Identity            // for ActionRequest: whose rights are used, if the principal acts for another
	Actor         *Identity            // for ActionRequest: who acts for the principal
	Depth         int                  // see Delegation.Depth
	Extended      map[string]time.Time // approved ends of contracts that are later than in suppliers.yaml, by supplier
}

// A Policy decides. It is safe for concurrent use.
type Policy interface {
	// Decide decides the query as of now. It denies on any doubt: an evaluation
	// error in any policy denies, and callers treat a returned error as a
	// denial. It does no I/O. ActionApprove is permitted unless a policy
	// forbids it: @approval names who may approve.
	Decide(ctx context.Context, q Query, now time.Time) (Decision, error)

	// Groups returns the sorted names of the identity's groups: those that list it,
	// and those that its provider claims.
	Groups(who Identity) (listed, claimed []string)
}

// A PermitLister is a Policy that lists what identities may request. It is safe for
// concurrent use. The lists are not changed afterwards, and the caller must not change
// them.
type PermitLister interface {
	// Permits returns the permits on requests that may apply to an identity with its
	// labels, sorted by id, and at most limit of them. more reports whether there are
	// others.
	Permits(who Identity, limit int) (list []*Permit, more bool)

	// AllPermits returns all permits on requests, sorted by id.
	AllPermits() []*Permit

	// UnmeasuredGroups returns the groups that matter for more than requests, approvals
	// and reviews, sorted: other permits, forbids or suppliers name them. The log does not
	// show what their members needed the membership for.
	UnmeasuredGroups() []string
}

// A Permit is a policy that permits requests.
type Permit struct {
	ID         string
	File       string
	Line       int
	Reason     string
	Groups     []string // whose members it permits because they are members, sorted
	Reaches    []Reach  // by entitlement; conditions on single requests count as met
	BreakGlass bool
}

// A Reach is what a permit permits of one entitlement.
type Reach struct {
	Entitlement string
	Scopes      []string // sorted; empty for an entitlement without scopes
}

// A Decision is the result of a query. The zero Decision denies.
type Decision struct {
	Permit      bool
	Policies    []string // sorted ids of the determining policies
	Reasons     []string // @reason of those policies, in the order of their ids
	Obligations Obligations
	Revision    audit.Digest
	Above       string // why the ceiling of the principal's mark denies it; not stored
	Lasting     bool   // of a denial: no other time, address or claim would change it; not stored
}

// Obligations are the conditions on a permit. They add up over all permits that
// apply, and the strictest wins. Zero values require nothing.
type Obligations struct {
	Approvals     []ApprovalNeed // sorted by group, one entry a group
	Denials       int            // how many denials by approvers deny the request; zero: one
	ExcludeTeam   bool           // members of the requester's team may not approve
	Comment       bool           // an approval needs a comment
	SilentDenial  bool           // a denial needs no comment
	Signed        bool           // approvals and reviews need a passkey signature
	LapseAfter    time.Duration  // how long the request waits for approval; zero: PendingFor
	Escalations   []Escalation   // sorted by time
	Supplier      SupplierNeed   // the assessment of the requester's supplier
	Review        []ApprovalNeed // who reviews a break-glass use afterwards
	ReviewWithin  time.Duration
	MaxTTL        time.Duration
	MaxDuration   time.Duration
	Justification bool
	Tickets       []string // patterns, sorted; the ticket must match all of them
	TicketTerms            // what the ticket's tracker must state
	Limits        []Limit  // sorted by policy
	MaxActive     []Limit  // Per is zero; sorted by policy
	Delegates     int      // how many sub-agents may act below one another; zero: none
	Binding       Binding  // what tokens must be bound to
}

// MaxApprovers is the highest count of approvals that a policy may require.
const MaxApprovers = 20

// An ApprovalNeed requires Count approvals by members of a group. Two names are
// reserved: policy resolves "owner" to the entitlement's group, and "manager" is
// the manager that the requester's provider names.
type ApprovalNeed struct {
	Group string
	Count int
}

// GroupManager is the reserved group of the requester's manager.
const GroupManager = "manager"

// An Escalation notifies one more group of a request that is still pending. It
// does not make the group approvers.
type Escalation struct {
	After time.Duration
	Group string
}

// A Limit bounds what one holder gets of one entitlement: at most Count
// credentials in any period Per.
type Limit struct {
	Policy string
	Count  int
	Per    time.Duration
}
