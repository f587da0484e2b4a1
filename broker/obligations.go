package broker

import (
	"cmp"
	"slices"
	"time"
)

// MaxDelegates is the highest bound of sub-agents below one another that a policy may set.
const MaxDelegates = 8

// ByGroup orders needs by their groups.
func ByGroup(a, b ApprovalNeed) int { return cmp.Compare(a.Group, b.Group) }

// And returns obligations that are met only if both a and b are met. It never writes to
// the slices of a or b, because all decisions share the obligations of a policy.
//
// The caller adds up permits in the order of their ids, so that limits have that order.
func (a Obligations) And(b Obligations) Obligations {
	return Obligations{
		Approvals:     SumNeeds(a.Approvals, b.Approvals),
		Denials:       minNonZero(a.Denials, b.Denials),
		ExcludeTeam:   a.ExcludeTeam || b.ExcludeTeam,
		Comment:       a.Comment || b.Comment,
		SilentDenial:  silentDenial(a, b),
		Signed:        a.Signed || b.Signed,
		LapseAfter:    minNonZero(a.LapseAfter, b.LapseAfter),
		Escalations:   combineEscalations(a.Escalations, b.Escalations),
		Supplier:      combineSupplier(a.Supplier, b.Supplier),
		Review:        SumNeeds(a.Review, b.Review),
		ReviewWithin:  minNonZero(a.ReviewWithin, b.ReviewWithin),
		MaxTTL:        minNonZero(a.MaxTTL, b.MaxTTL),
		MaxDuration:   minNonZero(a.MaxDuration, b.MaxDuration),
		Justification: a.Justification || b.Justification,
		Tickets:       union(a.Tickets, b.Tickets),
		TicketTerms:   combineTerms(a.TicketTerms, b.TicketTerms),
		Limits:        slices.Concat(a.Limits, b.Limits),
		MaxActive:     slices.Concat(a.MaxActive, b.MaxActive),
		Binding:       a.Binding.And(b.Binding),
		Delegates:     min(a.Delegates, b.Delegates),
	}
}

// combineSupplier returns the shortest age and the lowest risk.
func combineSupplier(a, b SupplierNeed) SupplierNeed {
	return SupplierNeed{AssessedWithin: minNonZero(a.AssessedWithin, b.AssessedWithin), MaxRisk: minNonZero(a.MaxRisk, b.MaxRisk)}
}

// silentDenial reports whether all permits that require approval let a denial have no
// comment.
func silentDenial(a, b Obligations) bool {
	silent := func(o Obligations) bool { return o.SilentDenial || len(o.Approvals) == 0 }
	return (a.SilentDenial || b.SilentDenial) && silent(a) && silent(b)
}

// SumNeeds returns the larger count for each group, sorted by group; both
// arguments are sorted by group. It does not add the counts, because one approval
// counts for every permit that requires the group.
func SumNeeds(a, b []ApprovalNeed) []ApprovalNeed {
	if len(b) == 0 {
		return a
	}
	sum := slices.Clone(a)
	for _, need := range b {
		i, found := slices.BinarySearchFunc(sum, need, ByGroup)
		if found {
			sum[i].Count = max(sum[i].Count, need.Count)
		} else {
			sum = slices.Insert(sum, i, need)
		}
	}
	return sum
}

func combineEscalations(a, b []Escalation) []Escalation {
	if len(b) == 0 {
		return a
	}
	sum := slices.Concat(a, b)
	slices.SortFunc(sum, func(x, y Escalation) int {
		return cmp.Or(cmp.Compare(x.After, y.After), cmp.Compare(x.Group, y.Group))
	})
	return slices.Compact(sum)
}

// minNonZero returns the smaller of two bounds. Zero means no bound, so a permit
// without the annotation does not loosen another permit's bound.
func minNonZero[N int | time.Duration | Tier](a, b N) N {
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

// combineTerms returns terms that are met only if both a and b are met.
func combineTerms(a, b TicketTerms) TicketTerms {
	return TicketTerms{
		TicketStates:    union(a.TicketStates, b.TicketStates),
		TicketAssignees: union(a.TicketAssignees, b.TicketAssignees),
		ChangeWindow:    a.ChangeWindow || b.ChangeWindow,
	}
}
