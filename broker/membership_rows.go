package broker

import (
	"time"

	"accessbroker.internal/audit"
)

// The rows of memberships that are credentials. Package membership has their flows.

// A MembershipID is the SHA-256 of a system, a group and a member, by the names that
// the system itself never changes.
type MembershipID audit.Digest

func (MembershipID) isKey() {}

// A Membership is what the broker knows about one member of one group: who relies on
// it, and whether the broker made it. Several leases may rely on the same membership,
// even of several entitlements and issuers.
type Membership struct {
	ID     MembershipID
	Issuer string // that used it last
	Holder string // of the lease that used it last
	System string // for people, as are Group and Member
	Group  string
	Member string
	Place  []byte // by which the issuer finds group and member

	Claims   []LeaseID // the leases that rely on it, oldest first
	Existing bool      // the broker did not make it, and never removes it
	Added    time.Time // when the broker began to make it
	Removed  time.Time // when the broker saw that it was gone after it removed it
	Touched  time.Time // when a lease began or ceased to rely on it

	Difference Difference // between what the broker did and what the system has
	Since      time.Time  // when the broker noticed the difference
}

// Key returns the row's key.
func (m *Membership) Key() Key { return m.ID }

// A Difference is a disagreement between the broker's records and a system.
type Difference string

// The differences.
const (
	NoDifference Difference = ""
	RemovedEarly Difference = "removed_early" // a lease relies on it, and someone removed it
	AddedAgain   Difference = "added_again"   // the broker removed it, and someone added it again
	LeftBehind   Difference = "left_behind"   // the lease that it was made for was abandoned
)

// Differences returns all differences.
func Differences() []Difference { return []Difference{RemovedEarly, AddedAgain, LeftBehind} }

// MembershipWatch is how long the broker compares a membership after it removed it.
const MembershipWatch = 30 * 24 * time.Hour

// Until returns when the row is of no more use; zero: a lease relies on the membership,
// or there is a difference.
func (m *Membership) Until() time.Time {
	if len(m.Claims) > 0 || m.Difference != NoDifference {
		return time.Time{}
	}
	return m.Touched.Add(MembershipWatch)
}

// A MembershipQuery selects memberships; zero fields select all.
type MembershipQuery struct {
	Issuer  string
	Holder  string
	Differs bool         // only those with a difference
	After   MembershipID // page: only those after this one
	Limit   int
}

// Joined is the content of a credential of type "membership". It is no secret.
type Joined struct{ System, Group string }

// CredentialMembership is the type of a credential that is a membership.
const CredentialMembership = "membership"
