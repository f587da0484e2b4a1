package policy

import (
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/broker"
)

// outside returns the reason for which no policy may permit anything to the principal as
// of now, or "". Unlike a forbid, it cannot be written or removed in a policy: a supplier
// has nothing without a contract in force, and never more than its ceiling; a federated
// trust domain has nothing without a supplier; a person has nothing after their end, and a
// workload nothing after the end of its mark or above the ceiling of its mark.
func (e *Engine) outside(q *broker.Query, p *principal, now time.Time) string {
	if q.Principal.Kind == broker.KindPerson {
		if reason := e.personEnded(&q.Principal, now); reason != "" {
			return reason
		}
	}
	if ends := q.Principal.Ends; !ends.IsZero() && !now.Before(ends) {
		return fmt.Sprintf("the access of %s ended at %s", q.Principal.ID, ends.UTC().Format(time.RFC3339))
	}
	if above := q.Exceeds(); above != "" {
		return above
	}
	if e.governs && p.federated && len(p.suppliers) == 0 && !slices.Contains(e.in.Internal, broker.TrustDomainOf(q.Principal.ID)) {
		return fmt.Sprintf("trust domain %q has no supplier with a contract", broker.TrustDomainOf(q.Principal.ID))
	}
	for _, name := range p.suppliers {
		s := e.suppliers.Named(name)
		suspended := e.suspended.suppliers[name]
		switch {
		case suspended != nil && (len(suspended.Left) == 0 || q.Action == broker.ActionRequest && q.Entitlement != nil && !slices.Contains(suspended.Left, q.Entitlement.Name)):
			return suspended.Reason()
		case now.Before(s.Starts):
			return fmt.Sprintf("the contract of supplier %q starts at %s", name, s.Starts.Format(time.RFC3339))
		case !now.Before(s.Ends) && !now.Before(q.Extended[name]):
			return fmt.Sprintf("the contract of supplier %q ended at %s", name, laterOf(s.Ends, q.Extended[name]).Format(time.RFC3339))
		case q.Action == broker.ActionRequest && q.Entitlement != nil && !s.Allows(q.Entitlement.Name):
			return fmt.Sprintf("supplier %q may never have %q: it is not in the supplier's ceiling", name, q.Entitlement.Name)
		}
	}
	return ""
}

// deniedOutside returns the denial of a query for which no policy may permit anything.
func (e *Engine) deniedOutside(q *broker.Query, p *principal, now time.Time) (denied broker.Decision, outside bool) {
	reason := e.outside(q, p, now)
	if reason == "" {
		return denied, false
	}
	lasting := q.Principal.Kind == broker.KindPerson && e.personEnded(&q.Principal, now) != ""
	return broker.Decision{Revision: e.revision, Reasons: []string{reason}, Lasting: lasting}, true
}

// personEnded returns the reason if people.yaml ends the person, with any account.
func (e *Engine) personEnded(who *broker.Identity, now time.Time) string {
	if len(e.people) == 0 {
		return ""
	}
	for _, account := range e.known.labels.People.Accounts(who.ID) {
		if ends := e.people[account].Ends; !ends.IsZero() && !now.Before(ends) {
			return fmt.Sprintf("the access of %s ended at %s", account, ends.Format(time.RFC3339))
		}
	}
	return ""
}

// governed reports whether the contract of a supplier, the end of a mark or that of a person
// bounds the principal, so that decisions depend on the time.
func (e *Engine) governed(p *principal) bool {
	return len(p.suppliers) > 0 || e.governs && p.federated || !p.who.Ends.IsZero() || p.who.Kind == broker.KindPerson && len(e.people) > 0
}

func laterOf(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
