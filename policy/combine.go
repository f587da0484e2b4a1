package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/broker"
)

func byGroup(a, b broker.ApprovalNeed) int { return cmp.Compare(a.Group, b.Group) }

// combine adds b to a, so that whoever meets the sum meets both. The result
// shares no memory with a or b that anything could write to.
//
// Limits must come from permits in the order of their ids.
func combine(a, b broker.Obligations) broker.Obligations {
	return broker.Obligations{
		Approvals:     combineNeeds(a.Approvals, b.Approvals),
		Denials:       fewer(a.Denials, b.Denials),
		ExcludeTeam:   a.ExcludeTeam || b.ExcludeTeam,
		Comment:       a.Comment || b.Comment,
		Signed:        a.Signed || b.Signed,
		LapseAfter:    fewer(a.LapseAfter, b.LapseAfter),
		Escalations:   combineEscalations(a.Escalations, b.Escalations),
		Review:        combineNeeds(a.Review, b.Review),
		ReviewWithin:  fewer(a.ReviewWithin, b.ReviewWithin),
		MaxTTL:        fewer(a.MaxTTL, b.MaxTTL),
		MaxDuration:   fewer(a.MaxDuration, b.MaxDuration),
		Justification: a.Justification || b.Justification,
		Tickets:       union(a.Tickets, b.Tickets),
		Limits:        slices.Concat(a.Limits, b.Limits),
		MaxActive:     slices.Concat(a.MaxActive, b.MaxActive),
	}
}

// combineNeeds keeps, of every group, the larger count.
func combineNeeds(a, b []broker.ApprovalNeed) []broker.ApprovalNeed {
	if len(b) == 0 {
		return a
	}
	sum := slices.Clone(a)
	for _, need := range b {
		i, found := slices.BinarySearchFunc(sum, need, byGroup)
		if found {
			sum[i].Count = max(sum[i].Count, need.Count)
		} else {
			sum = slices.Insert(sum, i, need)
		}
	}
	return sum
}

func combineEscalations(a, b []broker.Escalation) []broker.Escalation {
	if len(b) == 0 {
		return a
	}
	sum := slices.Concat(a, b)
	slices.SortFunc(sum, func(x, y broker.Escalation) int {
		return cmp.Or(cmp.Compare(x.After, y.After), cmp.Compare(x.Group, y.Group))
	})
	return slices.Compact(sum)
}

// fewer gives the smaller of two bounds, of which zero is none.
func fewer[N int | time.Duration](a, b N) N {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func union(a, b []string) []string {
	if len(b) == 0 {
		return a
	}
	sum := slices.Concat(a, b)
	slices.Sort(sum)
	return slices.Compact(sum)
}

// doWithout makes of obligations what is left of them when the glass is
// broken: whom others would have asked before is whom the review asks after,
// signed if they wanted it signed, and nobody of the requester's team if they
// wanted nobody of it.
func doWithout(o broker.Obligations) broker.Obligations {
	o.Review = combineNeeds(o.Review, o.Approvals)
	o.Approvals, o.Denials, o.Escalations, o.LapseAfter = nil, 0, nil, 0
	o.Comment = false // a review is never without words
	return o
}

// resolveOwner puts the entitlement's owner in the place of "owner".
func resolveOwner(needs []broker.ApprovalNeed, owner string) ([]broker.ApprovalNeed, error) {
	i := slices.IndexFunc(needs, func(n broker.ApprovalNeed) bool { return n.Group == groupOwner })
	if i < 0 {
		return needs, nil
	}
	if owner == "" {
		return nil, errors.New("its owner must approve, and it has none")
	}
	rest := slices.Delete(slices.Clone(needs), i, i+1)
	return combineNeeds(rest, []broker.ApprovalNeed{{Group: owner, Count: needs[i].Count}}), nil
}

// describe writes obligations as annotations would, for people and for
// comparing them in scenarios.
func describe(o broker.Obligations) (lines []string) {
	for _, n := range o.Approvals {
		lines = append(lines, fmt.Sprintf("approval: %d of %s", n.Count, n.Group))
	}
	lines = append(lines, describePeople(o)...)
	if o.MaxTTL > 0 {
		lines = append(lines, "max_ttl: "+broker.Short(o.MaxTTL))
	}
	if o.MaxDuration > 0 {
		lines = append(lines, "max_duration: "+broker.Short(o.MaxDuration))
	}
	if o.Justification {
		lines = append(lines, "justification: required")
	}
	for _, t := range o.Tickets {
		lines = append(lines, "ticket: "+t)
	}
	for _, l := range o.Limits {
		lines = append(lines, fmt.Sprintf("limit: %d per %s (%s)", l.Count, broker.Short(l.Per), l.Policy))
	}
	for _, l := range o.MaxActive {
		lines = append(lines, fmt.Sprintf("max_active: %d (%s)", l.Count, l.Policy))
	}
	return lines
}

// describePeople writes what obligations say of those who approve, where it is
// not the default.
func describePeople(o broker.Obligations) (lines []string) {
	if o.Denials > 1 {
		lines = append(lines, fmt.Sprintf("deny: %d", o.Denials))
	}
	if o.ExcludeTeam {
		lines = append(lines, "exclude_team: yes")
	}
	if o.Comment {
		lines = append(lines, "comment: required")
	}
	if o.Signed {
		lines = append(lines, "signed: required")
	}
	if o.LapseAfter > 0 {
		lines = append(lines, "lapse_after: "+broker.Short(o.LapseAfter))
	}
	for _, step := range o.Escalations {
		lines = append(lines, fmt.Sprintf("escalate: %s to %s", broker.Short(step.After), step.Group))
	}
	for _, n := range o.Review {
		lines = append(lines, fmt.Sprintf("review: %d of %s within %s", n.Count, n.Group, broker.Short(o.ReviewWithin)))
	}
	return lines
}
