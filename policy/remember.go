package policy

import (
	"slices"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// A decision follows from the policies, the principal, the resource and those values of
// the context that some policy reads. An engine never changes, so it remembers decisions
// on requests by what they follow from: a workload that fetches a token every few minutes,
// for itself or on behalf of a person, is usually decided on once. Requests whose time, address, texts or
// parameters a policy reads are always decided on anew.

// maxDecisions is how many decisions an engine remembers, usually in about 2 MB. A
// decision with many scopes, or to which many policies apply, takes more. An engine does
// not remember those above maxDecision, so that all of them take at most about 6 MB.
const (
	maxDecisions = 4096
	maxDecision  = 1 << 10 // bytes of the parts without a fixed size
)

// decisionSize returns the bytes of the parts of a decision that have no fixed size. Its
// texts belong to the engine, so that each takes only its header here.
func decisionSize(key decisionKey, d *broker.Decision) int {
	const header, need, limit = 16, 24, 48
	o := &d.Obligations
	return len(key.scopes) + header*(len(d.Policies)+len(d.Reasons)+len(o.Tickets)+len(o.TicketStates)+len(o.TicketAssignees)) +
		need*(len(o.Approvals)+len(o.Review)+len(o.Escalations)) + limit*(len(o.Limits)+len(o.MaxActive))
}

// decisions are the remembered ones. They are safe for concurrent use.
type decisions struct {
	mu   sync.Mutex
	list map[decisionKey]broker.Decision
}

// A decisionKey has everything that a remembered decision follows from.
type decisionKey struct {
	principal     *principal // which the engine remembers, so it is one of its labels too
	entitlement   string
	scopes        string // joined by spaces, which no scope has
	ttl, duration time.Duration
	breakGlass    bool
	party         *principal // as principal; nil: no policy reads it, or there is none
	acts          bool       // the principal acts for the party
	depth         int        // zero: no policy reads it
}

func (d *decisions) find(key decisionKey) (broker.Decision, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.list[key]
	return known, ok
}

// keep remembers a decision. A full list starts again.
func (d *decisions) keep(key decisionKey, known broker.Decision) {
	if decisionSize(key, &known) > maxDecision {
		return
	}
	// Callers that append to the slices of a decision must not share the rest.
	known.Policies, known.Reasons = slices.Clip(known.Policies), slices.Clip(known.Reasons)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.list == nil || len(d.list) >= maxDecisions {
		d.list = map[decisionKey]broker.Decision{}
	}
	d.list[key] = known
}

// rememberable returns the key of a query, and reports whether the decision follows from
// the key alone.
func (e *Engine) rememberable(q *broker.Query) (decisionKey, bool) {
	if q.Action != broker.ActionRequest || q.Entitlement == nil {
		return decisionKey{}, false
	}
	for name := range e.reads {
		if !followsFromKey(name, q) {
			return decisionKey{}, false
		}
	}
	p := e.principals.find(&q.Principal)
	if p == nil {
		return decisionKey{}, false
	}
	key := decisionKey{principal: p, entitlement: q.Entitlement.Name, ttl: q.TTL, duration: q.Duration, breakGlass: q.BreakGlass}
	if who := party(q); who != nil && (e.reads["on_behalf_of"] || e.reads["actor"]) {
		if key.party, key.acts = e.principals.find(who), q.OnBehalfOf != nil; key.party == nil {
			return decisionKey{}, false
		}
	}
	if e.reads["depth"] {
		key.depth = q.Depth
	}
	if len(q.Scopes) == 1 {
		key.scopes = q.Scopes[0]
	} else {
		key.scopes = strings.Join(q.Scopes, " ")
	}
	return key, true
}

// followsFromKey reports whether a value of the context is in the key, or is absent.
func followsFromKey(name string, q *broker.Query) bool {
	switch name {
	case "scopes", "ttl", "duration", "break_glass", "depth", "on_behalf_of", "actor":
		return true
	case "source_ip":
		return !q.SourceIP.IsValid()
	case "justification":
		return q.Justification == ""
	case "ticket":
		return q.Ticket == ""
	case "parameters":
		return len(q.Parameters) == 0
	case "detail":
		return len(q.Details) == 0
	}
	return false // the time, the whole context, and whatever a later schema adds
}

const wholeContext = "context" // in Engine.reads

// addContextReads adds the attributes of the context that a condition reads.
func addContextReads(reads map[string]bool, e *expr) {
	if e == nil {
		return
	}
	if e.op == opVariable && e.name == "context" {
		reads[wholeContext] = true
		return
	}
	if (e.op == opAccess || e.op == "has") && e.args[0].op == opVariable && e.args[0].name == "context" {
		reads[e.name] = true
		return
	}
	for _, arg := range e.args {
		addContextReads(reads, arg)
	}
}
