package checker

import (
	"accessbroker.internal/audit"
)

// judgeApprovals checks that a person counts once for a request, and that a request is
// approved once, by enough people.
func judgeApprovals(e *Evidence, c *court) {
	type ballot struct {
		voted    map[string]int // by person: the index of the vote
		approves int
		approved int // the index of the approval, or -1
	}
	ballots := map[string]*ballot{}
	for i := range e.Log.Records {
		r := &e.Log.Records[i]
		if r.Approval == nil || r.Request == nil || r.Caller == nil {
			continue
		}
		b := ballots[r.Request.ID]
		if b == nil {
			b = &ballot{voted: map[string]int{}, approved: -1}
			ballots[r.Request.ID] = b
		}
		if before, twice := b.voted[r.Caller.ID]; twice {
			c.find("%s and %s are both votes of %s on request %s", e.Log.position(before), e.Log.position(i), r.Caller.ID, r.Request.ID)
			continue
		}
		b.voted[r.Caller.ID] = i
		if r.Approval.Decision == "approve" {
			b.approves++
		}
		if r.Kind != audit.RequestApproved {
			continue
		}
		if b.approved >= 0 {
			c.find("%s and %s both approve request %s", e.Log.position(b.approved), e.Log.position(i), r.Request.ID)
		}
		if b.approved = i; b.approves < e.Rules[r.Request.Entitlement].Approvals {
			c.find("%s approves request %s with %d approvals", e.Log.position(i), r.Request.ID, b.approves)
		}
	}
}

// judgeFinal checks that a request reaches at most one final state, in the log and in what
// clients read: once a client has read a final state, all later reads have it.
func judgeFinal(e *Evidence, c *court) {
	final, approved := map[string]int{}, map[string]bool{}
	for i := range e.Log.Records {
		r := &e.Log.Records[i]
		if r.Request == nil {
			continue
		}
		id := r.Request.ID
		before, ended := final[id]
		switch r.Kind {
		case audit.RequestDenied, audit.RequestWithdrawn, audit.RequestRevoked:
			if ended {
				c.find("request %s has two final states: %s and %s", id, e.Log.position(before), e.Log.position(i))
			}
			if approved[id] && r.Kind != audit.RequestRevoked {
				c.find("request %s was approved, and then %s", id, e.Log.position(i))
			}
			final[id] = i
		case audit.RequestApproved:
			approved[id] = true
			fallthrough
		case audit.ApprovalGiven, audit.LeaseOpened, audit.LeaseIssued:
			if ended {
				c.find("%s follows the final state of request %s, %s", e.Log.position(i), id, e.Log.position(before))
			}
		}
	}
	e.judgeReads(c, final, approved)
}

// judgeReads compares what clients read with the log.
func (e *Evidence) judgeReads(c *court, final map[string]int, approved map[string]bool) {
	for i := range e.Operations {
		o := &e.Operations[i]
		if o.Kind != Read || o.Outcome != OK {
			continue
		}
		at, ended := final[o.Args.Request]
		kind := audit.Kind("")
		if ended {
			kind = e.Log.Records[at].Kind
		}
		wrong := false
		switch o.Answer.Status {
		case "approved":
			wrong = !approved[o.Args.Request]
		case "denied":
			wrong = kind != audit.RequestDenied
		case "withdrawn":
			wrong = kind != audit.RequestWithdrawn
		case "pending":
			wrong = ended && e.Log.Records[at].Time.Before(o.Start.Add(-e.Skew))
		}
		if wrong {
			c.find("%s: request %s is %s by the answer; by the log it is approved: %t, final state: %q", o.name(), o.Args.Request, o.Answer.Status, approved[o.Args.Request], kind)
		}
	}
}
