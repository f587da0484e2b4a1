package verify

import (
	"slices"
	"strings"

	"accessbroker.internal/audit"
)

// checkBinding returns what a lease is not bound to although the decision demands it, or the
// request was filed with another key; or "". A certificate is the proof of the caller, which
// the record names.
func (q *request) checkBinding(r *audit.Record) string {
	l := r.Lease
	if l == nil {
		return "" // leaseState reports it
	}
	if !q.key.IsZero() && !l.Key.IsZero() && l.Key != q.key {
		return "it is bound to another key than that of the request, " + q.key.String()
	}
	i := slices.IndexFunc(r.Decision.Manner, func(word string) bool { return strings.HasPrefix(word, audit.BindingManner) })
	if i < 0 {
		return ""
	}
	demand := strings.TrimPrefix(r.Decision.Manner[i], audit.BindingManner)
	met := map[string]bool{"dpop": !l.Key.IsZero(), "mtls": r.Caller.Method == "x509-svid"}
	for word := range strings.SplitSeq(demand, " or ") {
		if met[word] {
			return ""
		}
	}
	return "policy demands a binding (" + demand + "), and it has none of that kind"
}
