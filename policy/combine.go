package policy

import (
	"errors"
	"fmt"
	"slices"

	"accessbroker.internal/broker"
)

// breakGlass turns required approvals into a review after the fact by the same
// groups. Signed and ExcludeTeam carry over. Denials, escalations and the lapse are
// dropped, because the request does not wait for anyone.
func breakGlass(o broker.Obligations) broker.Obligations {
	o.Review = broker.SumNeeds(o.Review, o.Approvals)
	o.Approvals, o.Denials, o.Escalations, o.LapseAfter = nil, 0, nil, 0
	o.Comment, o.SilentDenial = false, false // every review has a comment anyway
	return o
}

// bindTo adds the entitlement's own demand to that of the permits. It returns the reason for
// a denial if no credential of the entitlement can meet both.
func bindTo(o *broker.Obligations, e *broker.Entitlement) string {
	o.Binding = o.Binding.And(e.Binding)
	switch {
	case e.Audience == "":
		return "policy demands a bound token, and the credentials of this entitlement cannot be bound"
	case o.Binding.Impossible():
		return "policy and the entitlement demand bindings that exclude each other"
	}
	return ""
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
	return broker.SumNeeds(rest, []broker.ApprovalNeed{{Group: owner, Count: needs[i].Count}}), nil
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
	if o.Binding != broker.BindingNone {
		lines = append(lines, "binding: "+o.Binding.String())
	}
	for _, l := range o.Limits {
		lines = append(lines, fmt.Sprintf("limit: %d per %s (%s)", l.Count, broker.FormatDuration(l.Per), l.Policy))
	}
	for _, l := range o.MaxActive {
		lines = append(lines, fmt.Sprintf("max_active: %d (%s)", l.Count, l.Policy))
	}
	if o.Delegates > 0 {
		lines = append(lines, fmt.Sprintf("delegates: %d", o.Delegates))
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
