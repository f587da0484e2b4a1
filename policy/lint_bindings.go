package policy

import "accessbroker.internal/broker"

// checkBinding warns of a permit whose binding no credential of its entitlements can have.
// Requests for them are denied.
func (l *linter) checkBinding(r *rule, entitlements []*broker.Entitlement) {
	if r.Binding == broker.BindingNone {
		return
	}
	var unbound, excluded []string
	for _, e := range entitlements {
		switch {
		case e.Audience == "":
			unbound = append(unbound, e.Name)
		case r.Binding.And(e.Binding).Impossible():
			excluded = append(excluded, e.Name)
		}
	}
	if len(unbound) > 0 {
		l.warn(r, "@binding", "%s issues credentials that are not tokens of the broker and cannot be bound, so every request that this permit applies to is denied: name other entitlements or remove @binding", quoteList("entitlement", unbound))
	}
	if len(excluded) > 0 {
		l.warn(r, "@binding", "%q and the binding of %s exclude each other, so every request that this permit applies to is denied: change one of them", r.Binding, quoteList("entitlement", excluded))
	}
}
