package checker

import (
	"slices"

	"accessbroker.internal/audit"
)

// judgeRecorded checks that the log has, at the index of the receipt, the record of every
// credential that a client received.
func judgeRecorded(e *Evidence, c *court) {
	for i := range e.Operations {
		o := &e.Operations[i]
		if o.Outcome != OK || o.Answer.Lease == "" || o.Answer.LeafHash == "" {
			continue
		}
		at := o.Answer.Index
		if at < 0 || at >= int64(len(e.Log.Records)) {
			c.find("%s: lease %s has the receipt of record %d, and the log has %d records", o.name(), o.Answer.Lease, at, len(e.Log.Records))
			continue
		}
		r := &e.Log.Records[at]
		switch {
		case r.Kind != audit.LeaseIssued || r.Lease == nil || r.Lease.ID != o.Answer.Lease:
			c.find("%s: the receipt of lease %s is that of %s, which is about something else", o.name(), o.Answer.Lease, e.Log.position(int(at)))
		case e.Log.Leaves[at].String() != o.Answer.LeafHash:
			c.find("%s: the receipt of lease %s has another hash than %s", o.name(), o.Answer.Lease, e.Log.position(int(at)))
		case o.Answer.Type == bearer && r.Lease.Credential.String() != o.Answer.Token:
			c.find("%s: %s has the hash of another token than the client got", o.name(), e.Log.position(int(at)))
		}
	}
}

// bearer is the type of the tokens that the broker signs. Their records have their plain
// SHA-256.
const bearer = "bearer"

// effects are the kinds of records that an operation may cause, if it has an effect.
var effects = map[Kind][]audit.Kind{
	Issue:    {audit.LeaseIssued},
	Ask:      {audit.RequestCreated},
	Collect:  {audit.LeaseIssued},
	Renew:    {audit.LeaseIssued},
	Return:   {audit.LeaseRevoked, audit.LeaseRevoking},
	Revoke:   {audit.LeaseRevoked, audit.LeaseRevoking},
	Withdraw: {audit.RequestWithdrawn},
	Vote:     {audit.ApprovalGiven, audit.RequestApproved, audit.RequestDenied},
	Block:    {audit.BlockPlaced},
	Lift:     {audit.BlockLifted},
	Kill:     {audit.BlockPlaced},
}

// judgeAcknowledged checks that the log has the effect of every operation that succeeded.
// The broker answers a repeated call with the effect of the first: then the record of
// another operation counts.
func judgeAcknowledged(e *Evidence, c *court) {
	ended := endedLeases(e.Log)
	filed := map[string]bool{}
	for i := range e.Log.Records {
		if r := &e.Log.Records[i]; r.Request != nil && (r.Kind == audit.RequestCreated || r.Kind == audit.LeaseIssued || r.Kind == audit.LeaseOpened) {
			filed[r.Request.ID] = true
		}
	}
	for i := range e.Operations {
		o := &e.Operations[i]
		kinds := effects[o.Kind]
		if o.Outcome != OK || kinds == nil || len(e.Log.of(o, kinds...)) > 0 {
			continue
		}
		switch o.Kind {
		case Ask:
			if !filed[o.Answer.Request] {
				c.find("%s: the log has no request %s", o.name(), o.Answer.Request)
			}
		case Return, Revoke:
			if at, ok := ended[o.Args.Lease]; (!ok || e.Log.Records[at].Time.After(o.End.Add(e.Skew))) && o.Answer.Status != "expired" {
				c.find("%s: the log has no end of lease %s by then", o.name(), o.Args.Lease)
			}
		case Block, Kill:
			if !e.blockedAt(o) {
				c.find("%s: the log has no block of %s that was in force", o.name(), o.Args.Holder)
			}
		default:
			c.find("%s: the log has no record of it", o.name())
		}
	}
}

// endedLeases returns the indexes of the records that end leases, by lease.
func endedLeases(l *Log) map[string]int {
	ended := map[string]int{}
	for i := range l.Records {
		r := &l.Records[i]
		if r.Lease == nil {
			continue
		}
		switch r.Kind {
		case audit.LeaseRevoking, audit.LeaseRevoked, audit.LeaseFailed, audit.LeaseAbandoned:
			if _, known := ended[r.Lease.ID]; !known {
				ended[r.Lease.ID] = i
			}
		case audit.LeaseIssued, audit.LeaseOpened:
			if old := r.Lease.Replaces; old != "" && r.End != nil {
				if _, known := ended[old]; !known {
					ended[old] = i
				}
			}
		}
	}
	return ended
}

// blockedAt reports whether, by the log, a block of the holder was in force at some time
// during an operation.
func (e *Evidence) blockedAt(o *Operation) bool {
	from, to := o.Start.Add(-e.Skew), o.End.Add(e.Skew)
	inForce := false
	for i := range e.Log.Records {
		r := &e.Log.Records[i]
		if r.Block == nil || r.Block.Selector != "holder "+o.Args.Holder {
			continue
		}
		if r.Time.After(to) {
			break
		}
		if inForce && !r.Time.Before(from) {
			return true
		}
		inForce = r.Kind == audit.BlockPlaced
	}
	return inForce
}

// judgeRefused checks that an operation that failed for good left no effect in the log.
func judgeRefused(e *Evidence, c *court) {
	for i := range e.Operations {
		o := &e.Operations[i]
		if o.Outcome != Fail {
			continue
		}
		kinds := effects[o.Kind]
		if o.Kind == Vote || o.Kind == Ask || o.Kind == Issue {
			// A denial by policy is recorded and answered as an error.
			kinds = slices.DeleteFunc(slices.Clone(kinds), func(k audit.Kind) bool { return k == audit.RequestDenied })
		}
		for _, at := range e.Log.of(o, kinds...) {
			c.find("%s: it was refused (%d %s), and %s is its effect", o.name(), o.Status, o.Code, e.Log.position(at))
		}
	}
}

// once are the kinds of records of which an operation causes at most one.
var once = []audit.Kind{
	audit.RequestCreated, audit.RequestWithdrawn, audit.LeaseOpened, audit.LeaseIssued, audit.BlockPlaced, audit.BlockLifted,
}

// judgeRepeated checks that no operation had its effect twice, as after the repetition of
// a transaction whose outcome was lost.
func judgeRepeated(e *Evidence, c *court) {
	for i := range e.Operations {
		o := &e.Operations[i]
		for _, kind := range once {
			if found := e.Log.of(o, kind); len(found) > 1 {
				c.find("%s: it has %d records of the kind %s: %v", o.name(), len(found), kind, found)
			}
		}
		if found := e.Log.of(o, audit.ApprovalGiven, audit.RequestApproved, audit.RequestDenied); len(found) > 1 {
			c.find("%s: it has %d records of votes: %v", o.name(), len(found), found)
		}
	}
}

// judgeOrder checks that the records of operations are in the order of the operations: if
// one was answered before another began, its record comes first. A replica that appends to
// an old head breaks that order.
func judgeOrder(e *Evidence, c *court) {
	type point struct {
		o  *Operation
		at int
	}
	var began, ended []point
	for i := range e.Operations {
		o := &e.Operations[i]
		found := e.Log.of(o, effects[o.Kind]...)
		if len(found) == 0 {
			continue
		}
		began = append(began, point{o, found[0]})
		if o.Outcome == OK {
			ended = append(ended, point{o, found[0]})
		}
	}
	slices.SortFunc(began, func(a, b point) int { return a.o.Start.Compare(b.o.Start) })
	slices.SortFunc(ended, func(a, b point) int { return a.o.End.Compare(b.o.End) })
	latest, next := point{at: -1}, 0
	for _, p := range began {
		for next < len(ended) && ended[next].o.End.Before(p.o.Start) {
			if ended[next].at > latest.at {
				latest = ended[next]
			}
			next++
		}
		if latest.at > p.at {
			c.find("%s has %s, and %s, which ended before, has %s", p.o.name(), e.Log.position(p.at), latest.o.name(), e.Log.position(latest.at))
		}
	}
}
