package server

import (
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// membershipSentences are the texts of the changes of a membership, by kind and change.
// The group follows the first part.
var membershipSentences = map[audit.Kind]map[string][2]string{
	audit.MembershipClaimed: {
		audit.MembershipAdded:    {"The broker adds a member to ", "."},
		audit.MembershipExisting: {"A lease relies on a membership of ", " that existed before; the broker will leave it alone."},
		audit.MembershipShared:   {"A further lease relies on a membership of ", " that the broker made."},
	},
	audit.MembershipReleased: {
		audit.MembershipRemoved:  {"The broker removed a member from ", " and confirmed it."},
		audit.MembershipAbsent:   {"A lease of a membership of ", " ended; the member had been removed already."},
		audit.MembershipGone:     {"A lease of a membership of ", " ended; the group or the member no longer exists."},
		audit.MembershipExisting: {"A lease of a membership of ", " ended; the membership stays, because the broker did not make it."},
		audit.MembershipShared:   {"A lease of a membership of ", " ended; the membership stays, because another lease relies on it."},
	},
	audit.MembershipDiffers: {
		string(broker.RemovedEarly): {"Someone removed a member from ", " although a lease relies on the membership."},
		string(broker.AddedAgain):   {"Someone added a member to ", " again whom the broker had removed."},
		string(broker.LeftBehind):   {"A member is left behind in ", ": the lease of the membership was abandoned."},
		audit.MembershipResolved:    {"A membership of ", " no longer differs from the broker's records."},
	},
}

func sayMembership(r *audit.Record) string {
	if r.Membership != nil {
		if text, ok := membershipSentences[r.Kind][r.Membership.Change]; ok {
			return text[0] + groupOf(r) + text[1]
		}
	}
	return kindTitle(r.Kind) + "."
}

func groupOf(r *audit.Record) string {
	if r.Membership == nil {
		return "a group"
	}
	return "the group " + r.Membership.Group + " of " + r.Membership.System
}
