package verify

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// An assessment is the verifier's memory of the latest assessment of a supplier.
type assessment struct {
	risk      string
	at, until time.Time
}

// maxAssessed bounds the suppliers whose assessments the verifier remembers. It is far
// above what an operator has.
const maxAssessed = 100_000

// risks are the tiers of risk, from the lowest.
var risks = []string{"low", "medium", "high", "critical"}

// A supplierNeed is the assessment of the requester's suppliers that policy requires.
type supplierNeed struct {
	within  time.Duration // zero: any age
	maxRisk string        // empty: any
}

func (n supplierNeed) required() bool { return n != supplierNeed{} }

// needOf returns the assessment that a decision requires. It reports whether it could be
// read.
func needOf(d *audit.DecisionFacts) (n supplierNeed, ok bool) {
	i := slices.IndexFunc(d.Manner, func(word string) bool { return strings.HasPrefix(word, audit.SupplierManner) })
	if i < 0 {
		return n, true
	}
	for part := range strings.SplitSeq(strings.TrimPrefix(d.Manner[i], audit.SupplierManner), ", ") {
		name, value, _ := strings.Cut(part, "=")
		switch name {
		case "assessed_within":
			if n.within, ok = parseDays(value); !ok {
				return n, false
			}
		case "max_risk":
			if n.maxRisk = value; !slices.Contains(risks, value) {
				return n, false
			}
		default:
			return n, false
		}
	}
	return n, n.required()
}

// parseDays reads "365d" or "12h".
func parseDays(text string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.Atoi(days)
		return time.Duration(n) * 24 * time.Hour, err == nil && n > 0 && n < 1<<16
	}
	d, err := time.ParseDuration(text)
	return d, err == nil && d > 0
}

// suppliersOf returns the suppliers among what a request rests on.
func suppliersOf(restsOn []string) (names []string) {
	for _, subject := range restsOn {
		if name, ok := strings.CutPrefix(subject, "supplier "); ok {
			names = append(names, name)
		}
	}
	return names
}

// assess remembers an assessment.
func (s *requestState) assess(r *audit.Record) string {
	f := r.Supplier
	switch {
	case f == nil || f.Name == "" || r.Caller == nil:
		return "it names no supplier, or no person who assessed it"
	case !slices.Contains(risks, f.Risk) || f.Until.IsZero():
		return "the assessment has no risk or no end"
	case len(s.assessed) >= maxAssessed:
		return fmt.Sprintf("more than %d suppliers were assessed", maxAssessed)
	}
	s.assessed[f.Name] = assessment{f.Risk, r.Time, f.Until}
	return ""
}

// assessedRequest checks that the assessment for which a request waited exists.
func (s *requestState) assessedRequest(r *audit.Record) string {
	q, problem := s.find(r, s.now.Before(s.inherited))
	switch {
	case q == nil:
		return problem
	case q.status != pending:
		return "its request " + q.was()
	case !q.assessment.required():
		return "its request waits for no assessment"
	}
	if q.approvals.missingApprovals(q.approvals.required, q.approvals.signed) == "" {
		q.approve(r.Time)
	}
	return s.missingAssessment(q, q.assessment)
}

// missingAssessment returns which assessment that policy requires the log does not have, as
// a problem, or "".
func (s *requestState) missingAssessment(q *request, need supplierNeed) string {
	if !need.required() {
		return ""
	}
	if len(q.suppliers) == 0 {
		return "policy requires an assessment of the requester's supplier, and it rests on none"
	}
	for _, name := range q.suppliers {
		a, known := s.assessed[name]
		switch {
		case !known && s.continues:
			s.unchecked++ // the earlier log has it
		case !known:
			return "policy requires an assessment of supplier " + name + ", and the log has none"
		case s.now.After(a.until.Add(slack)) || need.within > 0 && s.now.After(a.at.Add(need.within+slack)):
			return "the assessment of supplier " + name + " was over, or older than policy allows"
		case need.maxRisk != "" && slices.Index(risks, a.risk) > slices.Index(risks, need.maxRisk):
			return "supplier " + name + " was assessed as a risk of " + a.risk + ", and policy allows " + need.maxRisk
		}
	}
	return ""
}
