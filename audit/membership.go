package audit

// MembershipFacts describe the membership of one member in one group.
type MembershipFacts struct {
	ID     Digest // of system, group and member, by the names that the system never changes
	System string
	Group  string
	Member Digest // commitment to the member's name
	Change string // one of the Membership constants
}

// Changes of a membership. A claim is MembershipAdded, MembershipExisting or
// MembershipShared; a release is MembershipRemoved or one of those after it.
const (
	MembershipAdded    = "added"    // the broker makes it
	MembershipExisting = "existing" // it existed before, so the broker leaves it alone
	MembershipShared   = "shared"   // the broker made it for another lease
	MembershipRemoved  = "removed"  // the broker removed it, and confirmed that it is gone
	MembershipAbsent   = "absent"   // it was gone already
	MembershipGone     = "gone"     // its group or its member no longer exists
	MembershipResolved = "resolved" // a difference has ended
)

func (f *MembershipFacts) fields(c *codec) {
	c.text("change", &f.Change, maxWord)
	c.text("group", &f.Group, maxOrigin)
	c.digest("id", &f.ID)
	c.digest("member", &f.Member)
	c.text("system", &f.System, maxName)
}
