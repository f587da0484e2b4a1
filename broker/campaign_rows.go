package broker

import (
	"time"

	"accessbroker.internal/audit"
)

// CampaignID names a campaign. Its text is "cmp_" and 26 characters.
type CampaignID ID

func (CampaignID) isKey() {}

const campaignPrefix = "cmp_"

// NewCampaignID returns a new campaign ID. It is safe for concurrent use.
func NewCampaignID(now time.Time) CampaignID { return CampaignID(newID(now)) }

func (id CampaignID) String() string { return encodeID(campaignPrefix, id) }

// IsZero reports whether the ID is zero: no campaign.
func (id CampaignID) IsZero() bool { return id == CampaignID{} }

// ParseCampaignID parses the text of an ID. It returns ErrNotFound for any other text.
func ParseCampaignID(s string) (CampaignID, error) {
	id, err := parseID(campaignPrefix, s)
	return CampaignID(id), err
}

// A CampaignStatus is the state of a campaign.
type CampaignStatus int

// The states of a campaign.
const (
	CampaignBuilding CampaignStatus = iota + 1 // its items are being written; no one can decide
	CampaignOpen
	CampaignClosed
	CampaignDiscarded // its building was interrupted
)

// A Campaign is one run of a plan. Package campaign has the flows that change it.
type Campaign struct {
	ID        CampaignID
	Name      string // of the plan
	Status    CampaignStatus
	By        string    // who started it; empty: the schedule
	Scheduled time.Time // the date of the schedule; zero: a person started it
	Started   time.Time
	Deadline  time.Time
	Closed    time.Time
	Plan      CampaignPlan // as of the start
	Revision  audit.Digest // Base of the rules by which the reviewers were last assigned
	Digest    audit.Digest // of the items, in their order
	Reminded  int          // how many reminders were sent
	Escalated int          // how many steps of escalation were taken
	Counts    CampaignCounts
}

// Key returns the row's key.
func (c *Campaign) Key() Key { return c.ID }

// CampaignCounts are the items of a campaign by status.
type CampaignCounts struct {
	Items, Open, Second, Kept, Narrowed, Ended, Disabled, Gone int
}

// of returns the count of a status.
func (c *CampaignCounts) of(s ReviewStatus) *int {
	switch s {
	case ReviewOpen:
		return &c.Open
	case ReviewSecond:
		return &c.Second
	case ReviewKept:
		return &c.Kept
	case ReviewNarrowed:
		return &c.Narrowed
	case ReviewEnded:
		return &c.Ended
	case ReviewDisabled:
		return &c.Disabled
	case ReviewGone:
		return &c.Gone
	}
	return new(int)
}

// Move counts that an item changes its status.
func (c *CampaignCounts) Move(from, to ReviewStatus) {
	*c.of(from)--
	*c.of(to)++
}

// Add counts a new item.
func (c *CampaignCounts) Add(s ReviewStatus) {
	c.Items++
	*c.of(s)++
}

// Waiting returns how many items wait for a decision.
func (c *CampaignCounts) Waiting() int { return c.Open + c.Second }

// A ReviewItemKey names an item of a campaign. Numbers begin at 1.
type ReviewItemKey struct {
	Campaign CampaignID
	Number   int
}

func (ReviewItemKey) isKey() {}

// A ReviewStatus is the state of an item.
type ReviewStatus int

// The states of an item.
const (
	ReviewOpen   ReviewStatus = iota + 1
	ReviewSecond              // kept in bulk, and chosen for a second look
	ReviewKept                // by a decision on this item, or in bulk
	ReviewNarrowed
	ReviewEnded
	ReviewDisabled // no one decided before the deadline
	ReviewGone     // the rules no longer have the permission
)

// Waits reports whether the item waits for a decision.
func (s ReviewStatus) Waits() bool { return s == ReviewOpen || s == ReviewSecond }

func (s ReviewStatus) String() string {
	return map[ReviewStatus]string{
		ReviewOpen: "open", ReviewSecond: "second_look", ReviewKept: "kept", ReviewNarrowed: "narrowed",
		ReviewEnded: "ended", ReviewDisabled: "disabled", ReviewGone: "gone",
	}[s]
}

// A ReviewItem is one permission in a campaign.
type ReviewItem struct {
	ReviewItemKey
	Permission PermissionKey
	Digest     audit.Digest // of the permission when the item was last assigned
	Reviewer   Reviewer
	Fallback   bool // the reviewer is the campaign's fallback group
	Signed     bool // decisions need a signature
	Status     ReviewStatus
	Decision   ReviewDecision // the last one; zero: none
	First      ReviewDecision // the decision in bulk before a second look
	Closed     time.Time      // when it left the waiting states
}

// Key returns the row's key.
func (i *ReviewItem) Key() Key { return i.ReviewItemKey }

// A Reviewer is who reviews an item: the members of a group, or one person. The zero
// Reviewer is no one.
type Reviewer struct{ Group, Person string }

func (r Reviewer) String() string {
	switch {
	case r.Group != "":
		return "group " + r.Group
	case r.Person != "":
		return "person " + r.Person
	}
	return ""
}

// A ReviewVerdict is what a reviewer decides.
type ReviewVerdict string

// The verdicts.
const (
	VerdictKeep   ReviewVerdict = "keep"
	VerdictNarrow ReviewVerdict = "narrow" // to some of the parts
	VerdictEnd    ReviewVerdict = "end"
)

// A ReviewDecision is one person's decision on an item, bound to the digest that they saw.
type ReviewDecision struct {
	Verdict  ReviewVerdict
	Person   string
	Accounts []string // all accounts of the person who has several
	Digest   audit.Digest
	Left     []string // of narrow: the parts that remain
	Reason   string
	Salt     [16]byte // of the reason's commitment
	Signed   bool
	Bulk     bool         // one of many in one decision
	Seed     audit.Digest // of the choice for second looks
	At       time.Time
}

// A SuspensionKey names the suspension of a permission.
type SuspensionKey PermissionKey

func (SuspensionKey) isKey() {}

// A SuspensionRow is the suspension of a permission, or one that was lifted.
type SuspensionRow struct {
	SuspensionKey
	Left   []string
	Cause  string
	Item   ReviewItemKey
	Since  time.Time
	Lifted time.Time // zero: in force

	// One person asks to lift it, and another one approves.
	Restore       string       // who asked; empty: no one
	RestoreDigest audit.Digest // of the permission that they saw
	RestoreReason string
	RestoreAt     time.Time
}

// Key returns the row's key.
func (s *SuspensionRow) Key() Key { return s.SuspensionKey }

// Suspension returns the suspension as the rules have it.
func (s *SuspensionRow) Suspension() Suspension {
	key := PermissionKey(s.SuspensionKey)
	return Suspension{
		PermissionKey: key, Key: key.String(), Left: s.Left, Cause: s.Cause, Campaign: s.Item.Campaign.String(), Item: s.Item.Number, Since: s.Since.UTC(),
	}
}

// A CampaignQuery selects campaigns; zero fields select all.
type CampaignQuery struct {
	Name   string
	Live   bool       // not closed
	Before CampaignID // page: only those older than this
	Limit  int
}

// A ReviewItemQuery selects items; zero fields select all.
type ReviewItemQuery struct {
	Campaign   CampaignID
	After      int // with Campaign: only higher numbers
	Reviewers  []string
	Permission string
	Statuses   []int64
	Newest     bool // in reverse order
	Limit      int
}
