package verify

import (
	"slices"
	"strings"
	"time"
	"unique"

	"accessbroker.internal/audit"
)

// requestState is the state of the requests in the log, for as long as their
// requesters can collect credentials. From it the verifier checks who approved
// which request, and every lease that was issued. It remembers a bounded number
// of requests that need people, and as many that policy approved without people.
type requestState struct {
	requests map[string]*request // by id
	people   ring                // requests that need approvals or reviews
	policy   ring                // all others
	now      time.Time           // time of the current record
	terms    *audit.Digest       // of the current record's request, if they are known

	// A log that continues another one may have records about requests of the
	// earlier log, until the time of inherited. Reviews have no such limit.
	continues bool
	inherited time.Time

	// The policy ring may drop grants that have not ended. Records about those may
	// occur until the time of dropped.
	dropped time.Time

	unchecked int64 // records about either kind of request

	assessed map[string]assessment // the latest of each supplier
}

// maxInherited is how long a log may have records about the requests of the
// earlier log that it continues. Waiting for approval, waiting for the start, and
// the grant take at most a month each, unless a policy lets requests wait longer.
const maxInherited = 90 * 24 * time.Hour

type status uint8

const (
	pending status = iota
	approved
	denied
	withdrawn
	revoked
)

// A request is the verifier's memory of one request. Handles share texts that many
// requests have in common.
type request struct {
	holder, entitlement, scopes unique.Handle[string]
	chain                       unique.Handle[string] // on whose behalf, and who acted before
	digest                      audit.Digest
	status                      status
	ttl, duration               time.Duration
	starts                      time.Time  // as requested; once approved, when the grant starts
	ends                        time.Time  // when the pending request lapses; once approved, when the grant ends
	approvals                   *approvals // nil: it requires none, and no review
	suppliers                   []string   // of the requester
	assessment                  supplierNeed
	key                         audit.Digest // of DPoP, with which it was filed; zero: none
}

func newRequestState(size int) *requestState {
	return &requestState{requests: map[string]*request{}, assessed: map[string]assessment{}, people: ring{size: size}, policy: ring{size: size}}
}

// check returns what contradicts the earlier records of a request, or "". signed
// reports whether the record has a valid signature.
func (s *requestState) check(r *audit.Record, signed bool) string {
	s.now = r.Time
	switch r.Kind {
	case audit.LogOpened:
		if s.continues = r.Log != nil && r.Log.Previous != ""; s.continues {
			s.inherited = r.Time.Add(maxInherited)
		}
	case audit.RequestCreated:
		return s.create(r)
	case audit.ApprovalGiven, audit.RequestApproved:
		return s.vote(r, signed)
	case audit.RequestDenied:
		if r.Approval != nil {
			return s.vote(r, signed)
		}
		s.end(r, denied) // by policy: then no earlier record created it
	case audit.RequestAssessed:
		return s.assessedRequest(r)
	case audit.SupplierAssessed:
		return s.assess(r)
	case audit.RequestWithdrawn:
		s.end(r, withdrawn)
	case audit.RequestRevoked:
		s.end(r, revoked)
	case audit.ReviewGiven, audit.ReviewClosed:
		return s.review(r, signed)
	case audit.LeaseOpened, audit.LeaseIssued:
		return s.lease(r)
	}
	return ""
}

const unreadable = "the approvals or reviews that policy requires are not readable"

// create adds a request. The record is that of the request or, if one call
// requested and collected, that of the first lease.
func (s *requestState) create(r *audit.Record) string {
	f, d := r.Request, r.Decision
	switch {
	case f == nil || f.ID == "":
		return "it names no request"
	case r.Caller == nil:
		return "the request has no requester"
	case s.requests[f.ID] != nil:
		return "the request already exists"
	case d == nil || !d.Permit:
		return "policy did not permit the request"
	case s.sum(r) != f.Digest:
		return "its digest, which approvers see and sign, does not match its contents: their digest is " + s.sum(r).String()
	case f.BreakGlass && len(d.Review) == 0:
		return "it is a break-glass request that requires no review"
	}
	required, ok := parseRequirements(d.Approvals)
	reviews, reviewsOK := parseRequirements(d.Review)
	if !ok || !reviewsOK {
		return unreadable
	}
	q := &request{
		holder: unique.Make(r.Caller.ID), chain: unique.Make(chainOf(r)), entitlement: unique.Make(f.Entitlement), scopes: unique.Make(join(f.Scopes)),
		digest: f.Digest, ttl: f.TTL, duration: f.Duration, starts: f.NotBefore, ends: f.LapsesAt, key: f.Key,
	}
	recent := &s.policy
	if len(required)+len(reviews) > 0 {
		q.approvals = &approvals{required: required, reviews: reviews, signed: d.Signed, excluded: append(append(accountsOf(r.Caller), f.Accountable...), subjectOf(r)...)}
		recent = &s.people
	}
	var readable bool
	if q.assessment, readable = needOf(d); !readable {
		return unreadable
	}
	q.suppliers = suppliersOf(f.RestsOn)
	switch waits := q.assessment.required() && !f.LapsesAt.IsZero(); {
	case len(required) == 0 && !waits:
		q.approve(r.Time)
	case q.approvals == nil:
		q.approvals = &approvals{}
	}
	s.drop(recent.add(f.ID, s.needed))
	s.requests[f.ID] = q
	return ""
}

// chainOf returns on whose behalf a record is, and who acted before, as one text.
func chainOf(r *audit.Record) string {
	if r.Subject == nil {
		return ""
	}
	return join(append([]string{r.Subject.ID, r.Request.Parent}, r.Caller.Actors...))
}

// subjectOf returns the accounts of the person on whose behalf a request is.
func subjectOf(r *audit.Record) []string {
	if r.Subject == nil {
		return nil
	}
	return accountsOf(r.Subject)
}

// sum returns the digest of the contents of the record's request.
func (s *requestState) sum(r *audit.Record) audit.Digest {
	if s.terms != nil {
		return *s.terms
	}
	return r.Request.Sum(r.Requester(), r.Decision)
}

// needed reports whether the log may still have records about a request.
func (s *requestState) needed(id string) bool {
	q := s.requests[id]
	if q.approvals != nil && len(q.approvals.reviews) > 0 && !q.approvals.closed {
		return true
	}
	return q.status <= approved && s.now.Before(q.ends.Add(slack))
}

func (s *requestState) drop(id string) {
	q := s.requests[id]
	if q == nil {
		return
	}
	if ends := q.ends.Add(slack); q.approvals == nil && q.status == approved && ends.After(s.dropped) {
		s.dropped = ends
	}
	delete(s.requests, id)
}

// find returns the request that a record is about. It returns nil if the request
// is not known, and a problem if the record does not match it. mayMiss means that
// an unknown request is not a problem.
func (s *requestState) find(r *audit.Record, mayMiss bool) (*request, string) {
	if r.Request == nil || r.Request.ID == "" {
		return nil, "it names no request"
	}
	q := s.requests[r.Request.ID]
	switch {
	case q == nil && mayMiss:
		s.unchecked++
		return nil, ""
	case q == nil:
		return nil, "this log has no such request, or the request ended long before"
	case q.digest != r.Request.Digest:
		return nil, "it does not match the request, whose digest is " + q.digest.String()
	case q.entitlement.Value() != r.Request.Entitlement:
		return nil, "it does not match the request, whose entitlement is " + q.entitlement.Value()
	}
	return q, ""
}

// end sets the final status of a request, if it is known.
func (s *requestState) end(r *audit.Record, final status) {
	if r.Request == nil {
		return
	}
	if q := s.requests[r.Request.ID]; q != nil {
		q.status = final
	}
}

// vote adds a vote and checks the decision that it led to.
func (s *requestState) vote(r *audit.Record, signed bool) string {
	q, problem := s.find(r, s.now.Before(s.inherited))
	switch {
	case q == nil:
		return problem
	case q.status != pending:
		return "its request " + q.was()
	case r.Caller == nil || r.Approval == nil:
		problem = noVote
	default:
		problem = q.vote(r, signed)
	}
	switch r.Kind {
	case audit.RequestDenied:
		q.status = denied
	case audit.RequestApproved:
		q.approve(r.Time)
		if problem == "" {
			problem = q.approvals.missingApprovals(q.approvals.required, q.approvals.signed)
		}
		if problem == "" {
			problem = s.missingAssessment(q, q.assessment)
		}
	}
	return problem
}

const (
	noVote     = "it has no vote, or no caller who voted"
	notSigned  = "policy requires the signature of a passkey, and it has none"
	isExcluded = "the person made the request or is accountable for the requester or another in its chain, or it is on the person's behalf, and so may not approve or review it"
)

// vote adds a person's vote on a pending request if it counts. keyState reports a
// signature that is not valid.
func (q *request) vote(r *audit.Record, signed bool) string {
	f, a := r.Approval, q.approvals
	v := vote{accountsOf(r.Caller), f.Groups, f.Decision == "approve", signed, f.Scopes, f.TTL, f.Duration}
	switch {
	case f.Digest != q.digest:
		return q.sawAnother()
	case overlap(a.excluded, v.person):
		return isExcluded
	case v.approves && a.signed && r.Signature == nil:
		return notSigned
	}
	var problem string
	a.votes, problem = addVote(a.votes, v)
	return problem
}

func (q *request) sawAnother() string {
	return "the person saw something else than the request, whose digest is " + q.digest.String()
}

// approve starts the clock of the grant and narrows it as the approvers did.
func (q *request) approve(at time.Time) {
	q.status = approved
	if q.approvals != nil {
		scopes := split(q.scopes.Value())
		for _, v := range q.approvals.votes {
			if v.scopes != nil {
				scopes = slices.DeleteFunc(scopes, func(s string) bool { return !slices.Contains(v.scopes, s) })
			}
			if v.ttl > 0 {
				q.ttl = min(q.ttl, v.ttl)
			}
			if v.duration > 0 {
				q.duration = min(q.duration, v.duration)
			}
		}
		q.approvals.granted = scopes
	}
	if q.starts.Before(at) {
		q.starts = at
	}
	q.ends = q.starts.Add(q.duration)
}

// was describes the status of a request for a sentence that begins "its request".
func (q *request) was() string {
	return [...]string{"was still pending", "was already approved, or needed no approval", "was already denied", "was already withdrawn", "was already revoked"}[q.status]
}

// review adds a verdict on a break-glass use, and checks whether the last one
// completes the review. Reviews have no deadline.
func (s *requestState) review(r *audit.Record, signed bool) string {
	q, problem := s.find(r, s.continues)
	if q == nil {
		return problem
	}
	a := q.approvals
	switch {
	case r.Caller == nil || r.Approval == nil:
		return noVote
	case a == nil || len(a.reviews) == 0 || a.closed:
		return "its request needs no review"
	case r.Approval.Digest != q.digest:
		return q.sawAnother()
	case overlap(a.excluded, accountsOf(r.Caller)):
		return isExcluded
	case a.signed && r.Signature == nil:
		return notSigned
	}
	a.verdicts, problem = addVote(a.verdicts, vote{person: accountsOf(r.Caller), groups: r.Approval.Groups, signed: signed})
	if r.Kind == audit.ReviewClosed {
		a.closed = true
		if problem == "" {
			problem = missing("review", a.reviews, a.verdicts, a.signed)
		}
	}
	return problem
}

// lease checks the first record of a lease: its holder, and that the grant covers
// it. An issuer's lease has a second record without a request; leaseState checks
// that the first one precedes it.
func (s *requestState) lease(r *audit.Record) string {
	f := r.Request
	if f == nil && r.Kind == audit.LeaseIssued {
		return ""
	}
	if f != nil && (f.TTL > 0 || f.Duration > 0) { // the same call made the request
		if problem := s.create(r); problem != "" {
			return problem
		}
	}
	// Only grants that need no approval may have been dropped before their end. If
	// policy requires approvals now, the request must be known.
	needsApproval := r.Decision == nil || len(r.Decision.Approvals) > 0
	q, problem := s.find(r, s.now.Before(s.inherited) || !needsApproval && s.now.Before(s.dropped))
	switch {
	case q == nil:
		return problem
	case r.Caller == nil || r.Caller.ID != q.holder.Value():
		return "its holder is not the requester, " + q.holder.Value()
	case chainOf(r) != q.chain.Value():
		return "it is on behalf of another than its request, or others acted before"
	case r.Decision == nil || !r.Decision.Permit:
		return "policy did not permit it"
	case q.status > approved:
		return "its request " + q.was()
	}
	if problem := q.covers(r.Decision); problem != "" {
		return problem
	}
	need, readable := needOf(r.Decision)
	if !readable {
		return unreadable
	}
	if problem := s.missingAssessment(q, need); problem != "" {
		return problem
	}
	if problem := q.checkBinding(r); problem != "" {
		return problem
	}
	return q.checkGrant(r)
}

// covers returns which approvals are missing, as a problem, or "". It checks those
// that policy required at the request and those that it requires now.
func (q *request) covers(d *audit.DecisionFacts) string {
	if q.approvals != nil {
		if problem := q.approvals.missingApprovals(q.approvals.required, q.approvals.signed); problem != "" {
			return problem
		}
	}
	if q.status == pending {
		return "its request " + q.was()
	}
	required, ok := parseRequirements(d.Approvals)
	if !ok {
		return unreadable
	}
	return q.approvals.missingApprovals(required, d.Signed)
}

// checkGrant returns where a lease exceeds the grant, or "".
func (q *request) checkGrant(r *audit.Record) string {
	if r.Lease == nil {
		return "" // leaseState reports it
	}
	scopes, granted := r.Lease.Scopes, split(q.scopes.Value())
	if scopes == nil {
		scopes = r.Request.Scopes
	}
	if q.approvals != nil {
		granted = q.approvals.granted
	}
	for _, s := range scopes {
		if !slices.Contains(granted, s) {
			return "its scope " + s + " was not granted; the granted scopes are " + strings.Join(granted, " ")
		}
	}
	switch {
	case join(r.Request.Scopes) != q.scopes.Value():
		return "it does not match the request, whose scopes are " + strings.Join(split(q.scopes.Value()), " ")
	case r.Time.Add(slack).Before(q.starts):
		return "the grant had not started: it starts at " + q.starts.Format(audit.TimeFormat)
	case r.Time.After(q.ends.Add(slack)):
		return "the grant had ended at " + q.ends.Format(audit.TimeFormat)
	case r.Lease.Expires.IsZero() || r.Lease.Expires.After(r.Time.Add(q.ttl+slack)):
		return "it is valid for longer than the granted " + q.ttl.String()
	}
	return ""
}

// join encodes scopes, which contain no zero bytes, as one text. split reverses it.
func join(scopes []string) string { return strings.Join(scopes, "\x00") }

func split(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, "\x00")
}
