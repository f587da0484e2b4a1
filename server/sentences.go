package server

import (
	"cmp"
	"fmt"
	"strings"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Records of the audit log as sentences. They contain no free text of a requester.

// kindTitles are names of the kinds of records for people.
var kindTitles = map[audit.Kind]string{
	audit.LogOpened: "Log opened", audit.PolicyLoaded: "Policies loaded (start, reload)", audit.KeyCreated: "Key created", audit.KeyRetired: "Key retired",
	audit.RequestCreated: "Request filed", audit.RequestDenied: "Request denied", audit.RequestApproved: "Request approved", audit.RequestWithdrawn: "Request withdrawn",
	audit.RequestRevoked: "Request ended by a person, the kill switch or a fact", audit.ApprovalGiven: "Vote that does not decide", audit.ReviewGiven: "Review, more are needed", audit.ReviewClosed: "Review closed",
	audit.SessionOpened: "Login", audit.SessionClosed: "Logout", audit.PasskeyEnrolled: "Passkey enrolled", audit.PasskeyVouched: "Passkey vouched for", audit.PasskeyRemoved: "Passkey removed",
	audit.CollectRefused: "Collection refused", audit.LeaseOpened: "Issuer about to be called", audit.LeaseIssued: "Credential issued", audit.LeaseFailed: "Issuing failed", audit.LeaseRenewed: "Lease renewed", audit.LeaseCalled: "Call with a credential",
	audit.LeaseRevoking: "Revocation not confirmed yet", audit.LeaseRevoked: "Credential ended", audit.LeaseAbandoned: "Lease abandoned",
	audit.FactChanged: "Fact changed", audit.FactEnded: "Fact ended, and the access that rests on it",
	audit.SignalHeld: "Security events held for a person", audit.SignalReleased: "Held events released", audit.SignalDiscarded: "Held events discarded",
	audit.DirectoryUser: "User provisioned, changed or deleted", audit.DirectoryGroup: "Group or its members changed", audit.DirectoryToken: "Token of a provisioning client",
	audit.RequestAssessed: "Supplier assessed, for a request that waited", audit.SupplierAssessed: "Supplier assessed", audit.SupplierEnding: "Sponsor notified of a contract's end",
	audit.ExtensionRequested: "Extension of a contract requested", audit.ExtensionApproved: "Contract extended", audit.ExtensionDenied: "Extension of a contract denied",
	audit.RetentionPruned: "Rows or texts pruned",
	audit.BlockPlaced:     "Block placed (kill switch)", audit.BlockLifted: "Block lifted",
	audit.MembershipClaimed: "Membership begins", audit.MembershipReleased: "Membership ends", audit.MembershipDiffers: "Membership differs", audit.MembershipAccepted: "Membership accepted as it is",
	audit.CampaignStarted: "Access review started", audit.CampaignAssigned: "Review item assigned anew", audit.CampaignDecided: "Review item decided", audit.CampaignDropped: "Review item gone from the rules",
	audit.CampaignDisabled: "Disabled because no one reviewed it", audit.CampaignReminded: "Reviewers reminded", audit.CampaignEscalated: "Access review escalated", audit.CampaignClosed: "Access review closed",
	audit.CampaignRestoring: "Restoring of access requested", audit.CampaignRestored: "Access restored",
	audit.RecoveryStarted: "Recovery after a restore started", audit.RecoveryFound: "Credential without records found", audit.RecoveryFinished: "Recovery after a restore finished",
}

// kindTitle returns the name of a kind; of a later version's kind, the kind itself.
func kindTitle(kind audit.Kind) string { return cmp.Or(kindTitles[kind], string(kind)) }

// sentence returns what a record states, in one sentence.
func sentence(r *audit.Record) string {
	say := sentences[r.Kind]
	if say == nil {
		return kindTitle(r.Kind) + "."
	}
	return say(r)
}

// sentences are the texts of the kinds.
var sentences = map[audit.Kind]func(r *audit.Record) string{
	audit.LogOpened:      sayLog,
	audit.PolicyLoaded:   func(r *audit.Record) string { return by(r) + " put policies into force" + revisionOf(r) + "." },
	audit.KeyCreated:     func(r *audit.Record) string { return by(r) + " created " + keyOf(r) + "." },
	audit.KeyRetired:     func(r *audit.Record) string { return by(r) + " destroyed " + keyOf(r) + "." },
	audit.RequestCreated: sayCreated,
	audit.RequestDenied:  sayDenied,
	audit.RequestApproved: func(r *audit.Record) string {
		return by(r) + " approved a request for " + forWhat(r) + ", which granted it."
	},
	audit.RequestWithdrawn: func(r *audit.Record) string { return by(r) + " withdrew a request for " + forWhat(r) + "." },
	audit.RequestRevoked:   sayRequestRevoked,
	audit.ApprovalGiven:    sayVote,
	audit.ReviewGiven:      sayReview,
	audit.ReviewClosed:     sayReview,
	audit.SessionOpened:    func(r *audit.Record) string { return by(r) + " logged in." },
	audit.SessionClosed:    sayLogout,
	audit.PasskeyEnrolled:  func(r *audit.Record) string { return by(r) + " enrolled a passkey." },
	audit.PasskeyVouched:   func(r *audit.Record) string { return by(r) + " vouched for a passkey of " + subjectOf(r) + "." },
	audit.PasskeyRemoved:   func(r *audit.Record) string { return by(r) + " removed a passkey." },
	audit.CollectRefused: func(r *audit.Record) string {
		return by(r) + " was refused a credential for " + forWhat(r) + codeOf(r) + times(r) + "."
	},
	audit.LeaseOpened: func(r *audit.Record) string {
		return by(r) + " is to receive a credential for " + forWhat(r) + "; the broker calls the issuer " + issuerOf(r) + "."
	},
	audit.LeaseIssued: sayIssued,
	audit.LeaseFailed: func(r *audit.Record) string { return "The issuer " + issuerOf(r) + " made no credential." },
	audit.LeaseRenewed: func(r *audit.Record) string {
		return by(r) + " renewed a credential of the issuer " + issuerOf(r) + "."
	},
	audit.LeaseCalled: func(r *audit.Record) string {
		return by(r) + " is to make a call" + methodOf(r) + " with a credential for " + forWhat(r) + "."
	},
	audit.LeaseRevoking:  sayRevoking,
	audit.LeaseRevoked:   sayRevoked,
	audit.LeaseAbandoned: func(r *audit.Record) string { return by(r) + " abandoned a lease; its credential may still work." },
	audit.FactChanged:    sayFact,
	audit.FactEnded:      sayFactEnded,
	audit.SignalHeld:     saySignalHeld,
	audit.SignalReleased: func(r *audit.Record) string {
		return by(r) + " let the held events of " + transmitterOf(r) + " take effect" + eventsOf(r) + "."
	},
	audit.SignalDiscarded: func(r *audit.Record) string {
		return by(r) + " discarded the held events of " + transmitterOf(r) + eventsOf(r) + "."
	},
	audit.RetentionPruned:  sayPruned,
	audit.RecoveryStarted:  sayRecovery,
	audit.RecoveryFound:    sayFound,
	audit.RecoveryFinished: sayRecovered,
	audit.BlockPlaced:      func(r *audit.Record) string { return by(r) + " blocked " + blockOf(r) + "." },
	audit.BlockLifted:      func(r *audit.Record) string { return by(r) + " lifted the block of " + blockOf(r) + "." },

	audit.MembershipClaimed:  sayMembership,
	audit.MembershipReleased: sayMembership,
	audit.MembershipDiffers:  sayMembership,
	audit.MembershipAccepted: func(r *audit.Record) string {
		return by(r) + " accepted a membership of " + groupOf(r) + " as it is; the broker no longer counts it as its own."
	},
	audit.DirectoryUser:  sayDirectoryUser,
	audit.DirectoryGroup: sayDirectoryGroup,
	audit.DirectoryToken: sayDirectoryToken,

	audit.RequestAssessed: func(r *audit.Record) string {
		return "A request for " + forWhat(r) + " no longer waits for the assessment of its supplier."
	},
	audit.SupplierAssessed: sayAssessed,
	audit.SupplierEnding:   saySupplierEnding,
	audit.ExtensionRequested: func(r *audit.Record) string {
		return by(r) + " asked to extend the contract with " + supplierOf(r) + "."
	},
	audit.ExtensionApproved: func(r *audit.Record) string { return by(r) + " extended the contract with " + supplierOf(r) + "." },
	audit.ExtensionDenied: func(r *audit.Record) string {
		return by(r) + " refused to extend the contract with " + supplierOf(r) + "."
	},

	audit.CampaignStarted: func(r *audit.Record) string {
		return by(r) + " started the access review " + reviewOf(r) + itemsOf(r) + "."
	},
	audit.CampaignAssigned: func(r *audit.Record) string {
		return "The broker assigned " + permissionOf(r) + " to " + reviewerOf(r, "no one") + " in the access review " + reviewOf(r) + "."
	},
	audit.CampaignDecided: sayDecided,
	audit.CampaignDropped: func(r *audit.Record) string {
		return "The rules no longer have " + permissionOf(r) + ", an item of the access review " + reviewOf(r) + "."
	},
	audit.CampaignDisabled: func(r *audit.Record) string {
		return "The broker disabled " + permissionOf(r) + ": no one reviewed it in the access review " + reviewOf(r) + "."
	},
	audit.CampaignReminded: func(r *audit.Record) string {
		return "The broker reminded the reviewers of the access review " + reviewOf(r) + "."
	},
	audit.CampaignEscalated: func(r *audit.Record) string {
		return "The broker notified " + reviewerOf(r, "a group") + " of the open items of the access review " + reviewOf(r) + "."
	},
	audit.CampaignClosed: func(r *audit.Record) string { return "The access review " + reviewOf(r) + itemsOf(r) + " is closed." },
	audit.CampaignRestoring: func(r *audit.Record) string {
		return by(r) + " asked to restore " + permissionOf(r) + "; another person must agree."
	},
	audit.CampaignRestored: func(r *audit.Record) string {
		return by(r) + " agreed to restore " + permissionOf(r) + ", which is in force again."
	},
}

// methodOf returns the method of a call.
func methodOf(r *audit.Record) string {
	if r.Call == nil || r.Call.Method == "" {
		return ""
	}
	return " (" + r.Call.Method + ")"
}

// by returns the subject of a sentence.
func by(r *audit.Record) string {
	if r.Caller == nil {
		return "The broker"
	}
	if r.Caller.Kind == string(broker.KindOperator) {
		return strings.TrimSuffix("The operator "+strings.TrimPrefix(r.Caller.ID, "operator"), " ")
	}
	return cmp.Or(r.Caller.ID, "An unknown caller") + onBehalf(r)
}

// onBehalf names the one for whom the caller acts, and those that acted before it.
func onBehalf(r *audit.Record) string {
	if r.Subject == nil || r.Request == nil {
		return ""
	}
	text := " on behalf of " + r.Subject.ID
	if len(r.Caller.Actors) > 0 {
		text += " through " + strings.Join(r.Caller.Actors, " and ")
	}
	return text
}

func subjectOf(r *audit.Record) string {
	if r.Subject == nil {
		return "a person"
	}
	return r.Subject.ID
}

// forWhat returns the entitlement and the scopes of a record's request.
func forWhat(r *audit.Record) string {
	if r.Request == nil {
		return "an unknown entitlement"
	}
	text := cmp.Or(r.Request.Entitlement, "an unknown entitlement")
	if len(r.Request.Scopes) > 0 {
		text += " (" + strings.Join(r.Request.Scopes, ", ") + ")"
	}
	return text
}

func codeOf(r *audit.Record) string {
	if r.Decision == nil || r.Decision.Code == "" {
		return ""
	}
	return " with the code " + r.Decision.Code
}

// times names how many events a record stands for.
func times(r *audit.Record) string {
	if r.Count > 1 {
		return fmt.Sprintf(", %d times", r.Count)
	}
	return ""
}

func issuerOf(r *audit.Record) string {
	if r.Lease == nil {
		return "of the lease"
	}
	return r.Lease.Issuer
}

func keyOf(r *audit.Record) string {
	if r.Key == nil {
		return "a key"
	}
	return fmt.Sprintf("the %s key %s", r.Key.Purpose, r.Key.ID)
}

func blockOf(r *audit.Record) string {
	if r.Block == nil {
		return "something"
	}
	kind, name, _ := strings.Cut(r.Block.Selector, " ")
	switch kind {
	case "under":
		return "all identities at or below " + name
	case "trust_domain":
		return "the trust domain " + name
	}
	return "the " + kind + " " + name
}

func revisionOf(r *audit.Record) string {
	if r.Rules == nil {
		return ""
	}
	return fmt.Sprintf(", revision %.12s with %s", r.Rules.Revision.String(), counted(len(r.Rules.Files), "file"))
}

func sayLog(r *audit.Record) string {
	if r.Log == nil {
		return "A log was opened."
	}
	if r.Log.Previous != "" {
		return "The log " + r.Log.Origin + " was opened; it continues an earlier log."
	}
	return "The log " + r.Log.Origin + " was opened."
}

func sayCreated(r *audit.Record) string {
	text := by(r) + " requested " + forWhat(r)
	switch {
	case r.Request != nil && r.Request.BreakGlass:
		return text + " by break-glass; people review it afterwards."
	case r.Decision != nil && len(r.Decision.Approvals) > 0:
		return text + "; approval by " + strings.Join(r.Decision.Approvals, " and ") + " is required."
	}
	return text + "; policy granted it."
}

func sayDenied(r *audit.Record) string {
	if r.Approval != nil {
		return by(r) + " denied a request for " + forWhat(r) + "."
	}
	return by(r) + " requested " + forWhat(r) + times(r) + "; policy denied it" + codeOf(r) + "."
}

func sayVote(r *audit.Record) string {
	vote := "voted on"
	if r.Approval != nil && r.Approval.Decision == "approve" {
		vote = "approved"
	} else if r.Approval != nil {
		vote = "voted against"
	}
	return by(r) + " " + vote + " a request for " + forWhat(r) + "; more votes are needed."
}

func sayReview(r *audit.Record) string {
	text := by(r) + " reviewed a break-glass use of " + forWhat(r)
	if r.Approval != nil {
		text += " as " + verdict(r.Approval.Decision)
	}
	if r.Kind == audit.ReviewClosed {
		return text + ", which closed the review."
	}
	return text + "; more reviews are needed."
}

func sayLogout(r *audit.Record) string {
	if r.End != nil && r.End.How == "provider" {
		return "The OpenID provider logged " + subjectOf(r) + " out."
	}
	if r.Signal != nil {
		return "The transmitter " + r.Signal.Transmitter + " ended sessions of " + subjectOf(r) + causeOf(r.Signal.Event) + "."
	}
	return by(r) + " logged out."
}

func sayIssued(r *audit.Record) string {
	if r.Request == nil {
		return "The issuer " + issuerOf(r) + " made the credential of a lease."
	}
	text := by(r) + " received a credential for " + forWhat(r)
	if r.Request.BreakGlass {
		return text + " by break-glass; people review it afterwards."
	}
	return text + "."
}

func sayRequestRevoked(r *audit.Record) string {
	text := by(r) + " ended a request for " + forWhat(r)
	if r.End != nil && r.End.How == broker.EndFact {
		text += ", because " + reasonOf(r)
	}
	return text + "."
}

// causeOf returns the cause of an end in parentheses.
func causeOf(cause string) string {
	if cause == "" {
		return ""
	}
	return " (" + strings.ReplaceAll(cause, "_", " ") + ")"
}

func sayFact(r *audit.Record) string {
	if r.Fact == nil {
		return "A source stated something else than before."
	}
	text := cmp.Or(r.Fact.Source, "The broker") + " states that " + cmp.Or(r.Fact.Subject, "an unknown subject") + " is " + cmp.Or(r.Fact.State, "in an unknown state") + causeOf(r.Fact.Cause)
	if !r.Fact.Until.IsZero() {
		text += ", until " + r.Fact.Until.UTC().Format("2006-01-02 15:04:05 UTC")
	}
	return text + "."
}

func sayFactEnded(r *audit.Record) string {
	if r.Fact == nil {
		return "A fact no longer holds."
	}
	return cmp.Or(r.Fact.Subject, "An unknown subject") + " no longer holds" + causeOf(r.Fact.Cause) + "; what rests on it ends."
}

func sayRevoking(r *audit.Record) string {
	return "A credential of the issuer " + issuerOf(r) + " has to end (" + reasonOf(r) + "); the issuer has not confirmed it yet."
}

// reasonOf describes why a credential ends.
func reasonOf(r *audit.Record) string {
	how := ""
	if r.End != nil {
		how = r.End.How
	}
	switch how {
	case broker.EndReturned:
		return "returned by " + by(r)
	case broker.EndRevoked:
		return "revoked by " + by(r)
	case broker.EndFact:
		return "it rested on " + cmp.Or(r.End.Fact, "a fact") + ", which no longer holds" + causeOf(r.End.Cause)
	case broker.EndAnswerLost:
		return "its holder repeated the call"
	case broker.EndDeadline:
		return "issuing took too long"
	case broker.EndUnrecorded:
		return "its record could not be written, so no one received it"
	}
	return strings.ReplaceAll(cmp.Or(how, "unknown"), "_", " ")
}

func sayRevoked(r *audit.Record) string {
	text := "A credential of the issuer " + issuerOf(r) + " ended: " + reasonOf(r)
	if r.Lease != nil && r.Lease.Revocation != string(broker.RevokedImmediate) && r.End != nil && !r.End.ValidUntil.IsZero() {
		return text + ". It works until " + r.End.ValidUntil.UTC().Format("2006-01-02 15:04:05 UTC") + "."
	}
	return text + "."
}
