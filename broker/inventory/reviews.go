package inventory

import (
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// nextReview returns when the next scheduled campaign reviews something that the identity
// may do, or its marks; zero: none does.
func nextReview(rules *broker.Rules, i *Identity, now time.Time) (next time.Time) {
	for _, plan := range rules.Campaigns {
		if plan.Every <= 0 || !reviews(&plan.Scope, i) {
			continue
		}
		at := plan.First
		if !now.Before(at) {
			at = at.Add((now.Sub(at)/plan.Every + 1) * plan.Every)
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// reviews reports whether a campaign reviews a permission of the identity.
func reviews(scope *broker.CampaignScope, i *Identity) bool {
	has := func(list []string, name string) bool {
		return slices.Contains(list, broker.ScopeAll) || slices.Contains(list, name)
	}
	return slices.ContainsFunc(i.Permits, func(p *broker.Permit) bool { return has(scope.Permits, p.ID) }) ||
		slices.ContainsFunc(i.Suppliers, func(name string) bool { return has(scope.Suppliers, name) }) ||
		slices.ContainsFunc(i.Named, func(where string) bool {
			group, listed := strings.CutPrefix(where, "group ")
			return listed && has(scope.Groups, group)
		}) ||
		i.Kind != broker.KindPerson && slices.ContainsFunc(scope.Marks, func(path string) bool {
			return path == broker.ScopeAll && (i.Team != "" || len(i.Accountable) > 0) || broker.WorkloadLabels{Under: path}.Covers(i.ID)
		})
}
