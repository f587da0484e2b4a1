package broker

import (
	"iter"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// A CampaignPlan is one campaign of reviews.yaml: what people review, who reviews it, and
// until when.
type CampaignPlan struct {
	Name        string
	Description string
	Scope       CampaignScope
	Reviewers   []string // tried in this order: ReviewerOwner, ReviewerManager, or a group
	Fallback    string   // the group that reviews an item without another eligible reviewer
	RunBy       string   // the group that starts the campaign and sees all of it
	First       time.Time
	Every       time.Duration   // zero: people start the campaign
	Deadline    time.Duration   // after the start
	Remind      []time.Duration // before the deadline, the longest first
	Escalate    []Escalation    // After is before the deadline, the longest first
	Signed      bool            // decisions need a passkey signature
}

// A CampaignScope selects what a campaign reviews. A list with ScopeAll selects everything
// of its kind.
type CampaignScope struct {
	Permits          []string      // ids of permits
	Marks            []string      // SPIFFE IDs: the marks on them and below them
	Groups           []string      // whose memberships
	Suppliers        []string      // whose ceilings
	GrantsLongerThan time.Duration // zero: no grants
}

// ScopeAll selects everything of a kind.
const ScopeAll = "all"

// The reserved reviewers.
const (
	ReviewerOwner   = "owner"   // the owner of the entitlement
	ReviewerManager = "manager" // the manager of the person under review
)

// A PermissionKind is the kind of a permission that a campaign reviews.
type PermissionKind string

// The kinds of permissions.
const (
	PermissionPermit   PermissionKind = "permit"   // a standing permit of policy
	PermissionMark     PermissionKind = "mark"     // the operator's labels of workloads: agents, owners, teams
	PermissionMember   PermissionKind = "member"   // a membership of a group
	PermissionSupplier PermissionKind = "supplier" // the ceiling of a supplier
	PermissionGrant    PermissionKind = "grant"    // a grant of a request
)

// A PermissionKey names a permission: a permit by its id, a mark by its path, a membership as
// "<group> <member>", a supplier by its name, and a grant by the id of its request.
type PermissionKey struct {
	Kind PermissionKind
	Name string
}

func (k PermissionKey) String() string { return string(k.Kind) + " " + k.Name }

// A Permission is what a reviewer decides on. It is immutable.
type Permission struct {
	PermissionKey
	Content  string   // the text that the reviewer sees; the digest of an item covers it
	File     string   // of the rules; empty: in none
	Parts    []string // to which a reviewer may narrow it: scopes or entitlements; may be empty
	Part     string   // the word for one of them, such as "scope"
	Covers   []string // entitlements, at most maxCovered
	Owners   []string // groups that own these entitlements
	Subjects Subjects
	Peers    []string // names of similar permissions, at most maxPeers
	PeersAll int      // how many there are
	Policies []string // of a membership: ids of the permits for the group, at most MaxCovered
	Signed   bool     // its policy requires signed approvals, so its review is signed as well
	Team     string
	Supplier string
}

// Bounds of the lists of a Permission.
const (
	MaxCovered = 50
	MaxPeers   = 5
)

// Subjects are the identities that use a permission. They may not review it.
type Subjects struct {
	People []string
	Groups []string // with all of their members
	Paths  []string // SPIFFE IDs, with everything below them

	Suppliers []string // with all of their people and workloads
}

// Permissions lists the permissions of the rules. It is safe for concurrent use.
type Permissions interface {
	// All returns the permissions of a kind that the scope selects, in the order of their
	// names. PermissionGrant has none: grants are not rules.
	All(scope CampaignScope, kind PermissionKind) iter.Seq[Permission]

	// Find returns a permission, and whether the rules have it.
	Find(key PermissionKey) (Permission, bool)
}

// Digest returns the digest of what a reviewer decides on.
func (p *Permission) Digest() audit.Digest {
	o := audit.NewObject().
		String("content", p.Content).
		String("kind", string(p.Kind)).
		String("name", p.Name).
		StringList("parts", p.Parts)
	return audit.HashObject("accessbroker/permission/v1", o)
}

// A Suspension disables a permission although the rules have it. The revision covers all
// suspensions in force.
type Suspension struct {
	PermissionKey `json:"-"`
	Key           string    `json:"key"`            // of the permission
	Left          []string  `json:"left,omitempty"` // the parts that still apply; empty: none
	Cause         string    `json:"cause"`
	Campaign      string    `json:"campaign"` // the id
	Item          int       `json:"item"`
	Since         time.Time `json:"since"`
}

// The causes of a suspension.
const (
	SuspendedUnreviewed = "unreviewed" // no one decided before the deadline
	SuspendedEnded      = "ended"
	SuspendedNarrowed   = "narrowed"
)

// Reason returns the suspension in words for its subject, who sees no part of the policies.
func (s *Suspension) Reason() string {
	what := map[PermissionKind]string{
		PermissionPermit: "a permit", PermissionMark: "the entry of this workload", PermissionMember: "a group membership",
		PermissionSupplier: "the ceiling of the supplier", PermissionGrant: "the grant",
	}[s.Kind]
	return what + s.happened()
}

// Text returns the suspension in words for people who may read the policies.
func (s *Suspension) Text() string { return s.Key + s.happened() }

func (s *Suspension) happened() string {
	since := " since " + s.Since.UTC().Format(time.DateOnly)
	switch s.Cause {
	case SuspendedNarrowed:
		return " is narrowed to " + strings.Join(s.Left, ", ") + since + " by the access review " + s.Campaign
	case SuspendedEnded:
		return " is suspended" + since + ": the access review " + s.Campaign + " ended it"
	}
	return " is suspended" + since + ": no one reviewed it in the access review " + s.Campaign
}
