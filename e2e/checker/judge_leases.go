package checker

import (
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// judgeAccepted checks that no replica called a token active in an introspection that began
// after the end of its lease was answered, or while its holder was blocked.
func judgeAccepted(e *Evidence, c *court) {
	ended := map[string]*Operation{} // the earliest answer by which the token of a lease has ended
	for i := range e.Operations {
		o := &e.Operations[i]
		if o.Outcome != OK || o.Kind != Return && o.Kind != Revoke && o.Kind != Renew {
			continue
		}
		if before := ended[o.Args.Lease]; before == nil || o.End.Before(before.End) {
			ended[o.Args.Lease] = o
		}
	}
	holders := e.blocks()
	for i := range e.Operations {
		o := &e.Operations[i]
		if o.Kind != Introspect || o.Outcome != OK || !o.Answer.Active {
			continue
		}
		if end := ended[o.Args.Lease]; end != nil && end.End.Before(o.Start) {
			c.find("%s: the token of lease %s is active %s after its end was answered: %s", o.name(), o.Args.Lease, o.Start.Sub(end.End), end.name())
		}
		for _, b := range holders[o.Args.Holder] {
			if b.from.Before(o.Start) && o.End.Before(b.to) {
				c.find("%s: the token of lease %s is active %s after the block of %s was answered: %s", o.name(), o.Args.Lease, o.Start.Sub(b.from), o.Args.Holder, b.by.name())
			}
		}
	}
}

// A blocked is a time in which a holder was certainly blocked.
type blocked struct {
	from, to time.Time
	by       *Operation
}

// blocks returns when holders were blocked: from the answer of a block until any call began
// that may have lifted it.
func (e *Evidence) blocks() map[string][]blocked {
	lifts := map[string][]*Operation{}
	for i := range e.Operations {
		if o := &e.Operations[i]; o.Kind == Lift && o.Outcome != Fail {
			lifts[o.Args.Holder] = append(lifts[o.Args.Holder], o)
		}
	}
	all := map[string][]blocked{}
	for i := range e.Operations {
		o := &e.Operations[i]
		if o.Outcome != OK || o.Kind != Block && o.Kind != Kill || slices.ContainsFunc(lifts[o.Args.Holder], o.mayEndBy) {
			continue
		}
		b := blocked{from: o.End, to: e.Settled, by: o}
		for _, l := range lifts[o.Args.Holder] {
			if l.Start.After(o.Start) && l.Start.Before(b.to) {
				b.to = l.Start
			}
		}
		all[o.Args.Holder] = append(all[o.Args.Holder], b)
	}
	return all
}

// mayEndBy reports whether a call that may lift a block overlapped the block. A call with an
// unknown outcome may take effect at any time.
func (o *Operation) mayEndBy(lift *Operation) bool {
	return lift.Start.Before(o.End) && (lift.Outcome == Unknown || lift.End.After(o.Start))
}

// judgeBlocked checks, by the log alone, that nothing is issued to a holder between the
// records of its block and of its lift.
func judgeBlocked(e *Evidence, c *court) {
	inForce := map[string]int{}
	for i := range e.Log.Records {
		r := &e.Log.Records[i]
		switch r.Kind {
		case audit.BlockPlaced:
			inForce[r.Block.Selector] = i
		case audit.BlockLifted:
			delete(inForce, r.Block.Selector)
		case audit.LeaseOpened, audit.LeaseIssued:
			if r.Caller == nil {
				continue // the second record of a lease; verify checks its first
			}
			if at, ok := inForce["holder "+r.Caller.ID]; ok {
				c.find("%s issues to %s, which %s blocks", e.Log.position(i), r.Caller.ID, e.Log.position(at))
			}
		}
	}
}

// An account is what the bounds of a policy count.
type account struct{ holder, entitlement string }

// judgeLimits checks that no holder was issued more credentials in a period than the
// policy allows. A credential that replaces that of a lost answer may be free.
func judgeLimits(e *Evidence, c *court) {
	issued := map[account][]int{}
	for i := range e.Log.Records {
		r := &e.Log.Records[i]
		if !opens(r) || e.Rules[r.Request.Entitlement].Limit == 0 || r.End != nil && r.End.How == "answer_lost" {
			continue
		}
		a := account{r.Caller.ID, r.Request.Entitlement}
		issued[a] = append(issued[a], i)
	}
	for a, list := range issued {
		limit := e.Rules[a.entitlement]
		// The broker counts by the arrival of a call, which precedes the record by at
		// most the time that a call may take.
		per := limit.Per - time.Minute - e.Skew
		for n := limit.Limit; n < len(list); n++ {
			if first, last := list[n-limit.Limit], list[n]; e.Log.Records[last].Time.Sub(e.Log.Records[first].Time) < per {
				c.find("%s got %d credentials for %s between %s and %s, and at most %d are allowed in any %s", a.holder, limit.Limit+1, a.entitlement, e.Log.position(first), e.Log.position(last), limit.Limit, limit.Per)
			}
		}
	}
}

// opens reports whether a record is the first of a lease.
func opens(r *audit.Record) bool {
	return (r.Kind == audit.LeaseOpened || r.Kind == audit.LeaseIssued) && r.Request != nil && r.Caller != nil && r.Lease != nil
}

// judgeActive checks that no holder had more credentials at a time than the policy allows.
func judgeActive(e *Evidence, c *court) {
	active := map[account]map[string]time.Time{}
	of := map[string]account{}
	release := func(lease string) { delete(active[of[lease]], lease) }
	for i := range e.Log.Records {
		r := &e.Log.Records[i]
		switch {
		case r.Lease == nil:
		case opens(r):
			a := account{r.Caller.ID, r.Request.Entitlement}
			most := e.Rules[a.entitlement].MaxActive
			if most == 0 {
				continue
			}
			if r.Lease.Replaces != "" && r.End != nil && r.End.How == "replaced" {
				release(r.Lease.Replaces)
			}
			if active[a] == nil {
				active[a] = map[string]time.Time{}
			}
			for lease, expires := range active[a] {
				if expires.Before(r.Time.Add(e.Skew)) {
					delete(active[a], lease)
				}
			}
			of[r.Lease.ID], active[a][r.Lease.ID] = a, r.Lease.Expires
			if len(active[a]) > most {
				c.find("%s has %d credentials for %s at %s, and at most %d are allowed at a time", a.holder, len(active[a]), a.entitlement, e.Log.position(i), most)
			}
		case r.Kind == audit.LeaseRevoked, r.Kind == audit.LeaseFailed:
			release(r.Lease.ID)
		case r.Kind == audit.LeaseRevoking && r.End != nil && (r.End.How == "deadline" || r.End.How == "failed" || r.End.How == "unrecorded"):
			release(r.Lease.ID) // no one received it
		}
	}
}

// ownedWithin is how long a lease may wait for an owner: a replica that finishes or ends it.
const ownedWithin = 30 * time.Second

// judgeOwned checks that each lease that is being issued comes to an end within 30 seconds,
// and each revocation as well, not counting the time of faults. A revocation has come to its
// end when the upstream knows of it: not every upstream confirms it.
func judgeOwned(e *Evidence, c *court) {
	type open struct {
		at   int
		what string
	}
	waiting, ends := map[string]open{}, e.upstreamEnds()
	settle := func(id string, until time.Time, how string) {
		w, ok := waiting[id]
		if !ok {
			return
		}
		delete(waiting, id)
		if end := ends[id]; e.Log.Records[w.at].Kind == audit.LeaseRevoking && end.Before(until) {
			until = end // zero: there was nothing to end
		}
		from := e.Log.Records[w.at].Time
		if took := until.Sub(from) - e.disturbed(from, until); took > ownedWithin+e.Skew {
			c.find("lease %s %s at %s, and %s only after %s without a fault", id, w.what, e.Log.position(w.at), how, took.Round(time.Millisecond))
		}
	}
	for i := range e.Log.Records {
		r := &e.Log.Records[i]
		if r.Lease == nil {
			continue
		}
		switch r.Kind {
		case audit.LeaseOpened:
			waiting[r.Lease.ID] = open{i, "was opened"}
		case audit.LeaseRevoking:
			settle(r.Lease.ID, r.Time, "was ended")
			waiting[r.Lease.ID] = open{i, "was to be revoked"}
		case audit.LeaseIssued, audit.LeaseFailed, audit.LeaseRevoked, audit.LeaseAbandoned:
			settle(r.Lease.ID, r.Time, "came to its end")
		}
	}
	for id := range waiting {
		settle(id, e.Settled, "was still open")
	}
}

// upstreamEnds returns when the credentials of leases ended upstream, by lease.
func (e *Evidence) upstreamEnds() map[string]time.Time {
	ends := map[string]time.Time{}
	for _, u := range e.Upstream {
		end := u.Ended
		if end.IsZero() {
			end = e.Settled
		}
		if end.After(ends[u.Lease]) {
			ends[u.Lease] = end
		}
	}
	return ends
}

// judgeUpstream checks what the upstream made: a credential has a record that precedes it,
// and it does not work for more than 30 seconds after its lease has ended.
func judgeUpstream(e *Evidence, c *court) {
	opened, ended := map[string]bool{}, endedLeases(e.Log)
	for i := range e.Log.Records {
		if r := &e.Log.Records[i]; r.Kind == audit.LeaseOpened {
			opened[r.Lease.ID] = true
		}
	}
	for _, u := range e.Upstream {
		until := u.Ended
		if until.IsZero() {
			until = e.Settled
			if u.Expires.Before(until) {
				until = u.Expires
			}
		}
		from := u.Made
		switch at, hasEnded := ended[u.Lease]; {
		case hasEnded:
			from = e.Log.Records[at].Time
		case opened[u.Lease]:
			continue // its holder has it
		}
		if worked := until.Sub(from) - e.disturbed(from, until); worked > ownedWithin+e.Skew {
			c.find("the upstream's credential of lease %s worked for %s after its end, or without a record: opened by the log %t, made %s, ended %s", u.Lease, worked.Round(time.Millisecond), opened[u.Lease], u.Made.Format(audit.TimeFormat), u.Ended.Format(audit.TimeFormat))
		}
	}
}
