package broker

import (
	"context"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// Rules are everything that a decision reads. They are replaced whole, and
// the replacement is recorded before the first decision under it.
type Rules struct {
	Policy        Policy
	Catalogue     Catalogue
	Groups        map[string]Group
	Marks         []Mark
	PeopleChannel bool                    // notices to one person can be sent; not part of the revision
	Revision      audit.Digest            // of all of it
	Files         map[string]audit.Digest // by name, for the record
}

// A Catalogue is what can be asked for, by name.
type Catalogue map[string]*Entitlement

// An Entitlement is one entry of the catalogue. It is not changed once loaded.
type Entitlement struct {
	Name          string
	Issuer        string
	Description   string
	Scopes        []string          // sorted; empty: the entitlement is asked for as a whole
	ScopeTexts    map[string]string // what scopes mean, in the operator's words, for people; may lack some
	DefaultScopes []string
	DefaultTTL    time.Duration
	MaxTTL        time.Duration
	MinTTL        time.Duration // the issuer's shortest; zero: none
	CollectWithin time.Duration
	Owner         string // a group
	System        string // may be empty
	Labels        map[string]string
	Parameters    map[string]Parameter
	Binding       Binding
	Revocation    Revocation   // what its issuer can do
	Audience      string       // of its tokens; empty if its credentials are not broker-signed tokens
	Introspectors []string     // SPIFFE IDs of the issuer's resource servers
	Shares        string       // what revoking one of its credentials ends with it; empty: nothing but itself
	Spec          any          // what its issuer compiled for it; the issuer's alone to read
	Effect        audit.Digest // of all that is compiled
}

// A Group is a group of groups.yaml, as far as its people approve and are told.
type Group struct {
	Members []string // people that are listed, "<provider>/<sub>"
	Claimed bool     // a provider's claims make members as well: nobody can tell who may be one
	Notify  []string // where to tell the group, "slack:dba"
}

// A Parameter is a typed, bounded string that the requester fills in.
type Parameter struct {
	Pattern     *regexp.Regexp // anchored
	MaxLength   int            // bytes
	Lines       bool           // may hold line breaks, as PEM does
	Required    bool
	Description string
}

// Binding says what a token is bound to.
type Binding string

// The bindings.
const (
	BindingNone Binding = "none"
	BindingMTLS Binding = "mtls" // RFC 8705, cnf x5t#S256
)

// A Mark is what the operator says of the workloads under a path.
type Mark struct {
	Under       string // a SPIFFE ID; covers itself and everything below it
	Kind        Kind   // workload or agent
	Team        string
	Accountable []string
}

// Covers says whether the mark is about id. A mark on a trust domain
// ("spiffe://acme.test") covers all of it; no mark crosses a segment.
func (m Mark) Covers(id string) bool {
	rest, ok := strings.CutPrefix(id, m.Under)
	return ok && (rest == "" || rest[0] == '/')
}

// Mark puts the operator's marks on an identity. People and operators carry
// none.
func (r *Rules) Mark(who Identity) Identity {
	if who.Kind != KindWorkload && who.Kind != KindAgent {
		return who
	}
	who.Kind, who.Team, who.Accountable = KindWorkload, "", nil
	if m, ok := r.LabelsOf(who.ID); ok {
		who.Kind, who.Team, who.Accountable = m.Kind, m.Team, m.Accountable
	}
	return who
}

// LabelsOf returns the labels with the longest path that covers id, and whether
// there are any.
func (r *Rules) LabelsOf(id string) (labels Mark, ok bool) {
	for _, m := range r.Marks {
		if m.Covers(id) && (!ok || len(m.Under) > len(labels.Under)) {
			labels, ok = m, true
		}
	}
	return labels, ok
}

// An Action is something that policy is asked about.
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

// A Query is one question to policy. Principal carries its marks.
type Query struct {
	Principal     Identity
	Action        Action
	Entitlement   *Entitlement // of ActionRequest; and of View and Revoke, what the request was for
	Request       *Request     // of ActionApprove, ActionView and ActionRevoke
	Scopes        []string
	TTL           time.Duration
	Duration      time.Duration
	Justification string
	Ticket        string
	Parameters    map[string]string
	SourceIP      netip.Addr // zero: unknown
	BreakGlass    bool
}

// A Policy decides. It is safe for concurrent use.
type Policy interface {
	// Decide answers the query at the time now. It denies on any doubt: an
	// evaluation error anywhere is a denial, as is an error returned. It does
	// no I/O. Whom an @approval names may approve, so ActionApprove is
	// permitted unless something forbids it.
	Decide(ctx context.Context, q Query, now time.Time) (Decision, error)

	// Groups gives the names of the groups that the identity is in, sorted:
	// those that list it, and those that its provider's claims make it a
	// member of.
	Groups(who Identity) (listed, claimed []string)
}

// A Decision is policy's answer. The zero Decision denies.
type Decision struct {
	Permit      bool
	Policies    []string // sorted ids of the determining policies
	Reasons     []string // @reason of those policies, in the order of their ids
	Obligations Obligations
	Revision    audit.Digest
	Lasting     bool // not stored; of a denial: no time, address or claim of the principal's provider would change it
}

// Obligations are what a permit demands. They add up over all permits that
// apply, and the strictest wins; zero values demand nothing.
type Obligations struct {
	Approvals     []ApprovalNeed // sorted by group, one entry a group
	Denials       int            // how many of those who may approve must say no to end it; zero: one
	ExcludeTeam   bool           // nobody of the requester's team approves
	Comment       bool           // whoever approves says why
	Signed        bool           // whoever approves, or reviews, signs by a passkey
	LapseAfter    time.Duration  // how long it waits for people; zero: PendingFor
	Escalations   []Escalation   // sorted by time
	Review        []ApprovalNeed // who reviews it afterwards, as the glass was broken
	ReviewWithin  time.Duration
	MaxTTL        time.Duration
	MaxDuration   time.Duration
	Justification bool
	Tickets       []string // patterns that the ticket must match, all of them; sorted
	Limits        []Limit  // sorted by policy
	MaxActive     []Limit  // Per is zero; sorted by policy
}

// MaxApprovers is how many people one policy may want to approve.
const MaxApprovers = 20

// An ApprovalNeed is how many people of a group must approve. The reserved
// groups are "owner" (the entitlement's, resolved by policy to its group) and
// "manager" (the one person that the requester's provider says it is).
type ApprovalNeed struct {
	Group string
	Count int
}

// GroupManager is the reserved group of the requester's manager.
const GroupManager = "manager"

// An Escalation tells one more group of a request that still waits. It makes
// nobody an approver.
type Escalation struct {
	After time.Duration
	Group string
}

// A Limit is a bound of one policy on one holder and entitlement: at most
// Count in any Per.
type Limit struct {
	Policy string
	Count  int
	Per    time.Duration
}
