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

// combine returns obligations that are met only if both a and b are met. It
// never writes to the slices of a or b, because all decisions share the
// obligations of a rule.
//
// The caller combines permits in the order of their ids, so that limits have that
// order.
func combine(a, b broker.Obligations) broker.Obligations {
	return broker.Obligations{
		Approvals:     combineNeeds(a.Approvals, b.Approvals),
		Denials:       minNonZero(a.Denials, b.Denials),
		ExcludeTeam:   a.ExcludeTeam || b.ExcludeTeam,
		Comment:       a.Comment || b.Comment,
		SilentDenial:  silentDenial(a, b),
		Signed:        a.Signed || b.Signed,
		LapseAfter:    minNonZero(a.LapseAfter, b.LapseAfter),
		Escalations:   combineEscalations(a.Escalations, b.Escalations),
		Supplier:      combineSupplier(a.Supplier, b.Supplier),
		Review:        combineNeeds(a.Review, b.Review),
		ReviewWithin:  minNonZero(a.ReviewWithin, b.ReviewWithin),
		MaxTTL:        minNonZero(a.MaxTTL, b.MaxTTL),
		MaxDuration:   minNonZero(a.MaxDuration, b.MaxDuration),
		Justification: a.Justification || b.Justification,
		Tickets:       union(a.Tickets, b.Tickets),
		TicketTerms:   combineTerms(a.TicketTerms, b.TicketTerms),
		Limits:        slices.Concat(a.Limits, b.Limits),
		MaxActive:     slices.Concat(a.MaxActive, b.MaxActive),
	}
}

// combineSupplier returns the shortest age and the lowest risk.
func combineSupplier(a, b broker.SupplierNeed) broker.SupplierNeed {
	return broker.SupplierNeed{AssessedWithin: minNonZero(a.AssessedWithin, b.AssessedWithin), MaxRisk: minNonZero(a.MaxRisk, b.MaxRisk)}
}

// silentDenial reports whether all permits that require approval let a denial have no
// comment.
func silentDenial(a, b broker.Obligations) bool {
	silent := func(o broker.Obligations) bool { return o.SilentDenial || len(o.Approvals) == 0 }
	return (a.SilentDenial || b.SilentDenial) && silent(a) && silent(b)
}

// combineNeeds returns the larger count for each group, sorted by group; both
// arguments are sorted by group. It does not add the counts, because one approval
// counts for every permit that requires the group.
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

// minNonZero returns the smaller of two bounds. Zero means no bound, so a permit
// without the annotation does not loosen another permit's bound.
func minNonZero[N int | time.Duration | broker.Tier](a, b N) N {
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

// breakGlass turns required approvals into a review after the fact by the same
// groups. Signed and ExcludeTeam carry over. Denials, escalations and the lapse are
// dropped, because the request does not wait for anyone.
func breakGlass(o broker.Obligations) broker.Obligations {
	o.Review = combineNeeds(o.Review, o.Approvals)
	o.Approvals, o.Denials, o.Escalations, o.LapseAfter = nil, 0, nil, 0
	o.Comment, o.SilentDenial = false, false // every review has a comment anyway
	return o
}

// resolveOwner replaces the reserved group "owner" by the entitlement's owner. If
// needs also names the owner's group, the larger count remains. It does not change
// needs, which all decisions share.
func resolveOwner(needs []broker.ApprovalNeed, owner string) ([]broker.ApprovalNeed, error) {
	i := slices.IndexFunc(needs, func(n broker.ApprovalNeed) bool { return n.Group == groupOwner })
	if i < 0 {
		return needs, nil
	}
	if owner == "" {
		return nil, errors.New("@approval requires the owner, but the entitlement has no owner")
	}
	rest := slices.Delete(slices.Clone(needs), i, i+1)
	return combineNeeds(rest, []broker.ApprovalNeed{{Group: owner, Count: needs[i].Count}}), nil
}

// describe returns the obligations in the notation of annotations, one per
// line. Explain shows these lines, and scenarios compare them.
func describe(o broker.Obligations) (lines []string) {
	for _, n := range o.Approvals {
		lines = append(lines, fmt.Sprintf("approval: %d of %s", n.Count, n.Group))
	}
	lines = append(lines, describeApproval(o)...)
	if o.Supplier.Required() {
		lines = append(lines, "supplier: "+o.Supplier.String())
	}
	if o.MaxTTL > 0 {
		lines = append(lines, "max_ttl: "+broker.FormatDuration(o.MaxTTL))
	}
	if o.MaxDuration > 0 {
		lines = append(lines, "max_duration: "+broker.FormatDuration(o.MaxDuration))
	}
	if o.Justification {
		lines = append(lines, "justification: required")
	}
	for _, t := range o.Tickets {
		lines = append(lines, "ticket: "+t)
	}
	lines = append(lines, describeTerms(o.TicketTerms)...)
	for _, l := range o.Limits {
		lines = append(lines, fmt.Sprintf("limit: %d per %s (%s)", l.Count, broker.FormatDuration(l.Per), l.Policy))
	}
	for _, l := range o.MaxActive {
		lines = append(lines, fmt.Sprintf("max_active: %d (%s)", l.Count, l.Policy))
	}
	return lines
}

// describeApproval returns the obligations on approvers and reviewers that
// differ from the defaults.
func describeApproval(o broker.Obligations) (lines []string) {
	if o.Denials > 1 {
		lines = append(lines, fmt.Sprintf("deny: %d", o.Denials))
	}
	if o.ExcludeTeam {
		lines = append(lines, "exclude_team: yes")
	}
	if o.Comment {
		lines = append(lines, "comment: required")
	}
	if o.SilentDenial {
		lines = append(lines, "silent_denial: yes")
	}
	if o.Signed {
		lines = append(lines, "signed: required")
	}
	if o.LapseAfter > 0 {
		lines = append(lines, "lapse_after: "+broker.FormatDuration(o.LapseAfter))
	}
	for _, step := range o.Escalations {
		lines = append(lines, fmt.Sprintf("escalate: %s to %s", broker.FormatDuration(step.After), step.Group))
	}
	for _, n := range o.Review {
		lines = append(lines, fmt.Sprintf("review: %d of %s within %s", n.Count, n.Group, broker.FormatDuration(o.ReviewWithin)))
	}
	return lines
}
