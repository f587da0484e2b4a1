package verify

import (
	"slices"
	"strings"
	"time"
	"unique"

	"accessbroker.internal/audit"
)

// A requestBook remembers the requests of a log for as long as something may be
// collected with them, and judges by them who approved what, and what was
// issued. Memory is bounded: it holds bookSize of those that people have to
// speak of, and as many of those that policy approved by itself.
type requestBook struct {
	requests map[string]*request // by id
	asked    ring                // those that people have to speak of
	granted  ring                // the others
	now      time.Time           // of the record that is looked at
	later    bool                // the log follows another one
	before   time.Time           // until then, requests of the log before may be met
	forgot   time.Time           // until then, grants of policy alone may be met that were forgotten while they lasted
	unjudged int64               // records about either
}

// oldGrants is how long requests of the log before may be met: to be approved,
// to begin and to end take a month each at most, but for policies that let
// requests wait for longer.
const oldGrants = 90 * 24 * time.Hour

type requestState uint8

// The states.
const (
	requestPending requestState = iota
	requestApproved
	requestDenied
	requestWithdrawn
	requestRevoked
)

// A request is what is remembered of one. Texts that many share are kept once.
type request struct {
	holder, entitlement, scopes unique.Handle[string]
	digest                      audit.Digest
	state                       requestState
	ttl, duration               time.Duration
	starts                      time.Time // as asked; approved: when the grant starts
	ends                        time.Time // when a pending one lapses, and a grant is over
	people                      *people   // nil: nobody has to speak of it
}

func newRequestBook() *requestBook { return &requestBook{requests: map[string]*request{}} }

// check says what is wrong with the record after those before it, or nothing.
// signed says that it holds a signature that is good.
func (b *requestBook) check(r *audit.Record, signed bool) string {
	b.now = r.Time
	switch r.Kind {
	case audit.LogOpened:
		if b.later = r.Log != nil && r.Log.Previous != ""; b.later {
			b.before = r.Time.Add(oldGrants)
		}
	case audit.RequestCreated:
		return b.created(r)
	case audit.ApprovalGiven, audit.RequestApproved:
		return b.voted(r, signed)
	case audit.RequestDenied:
		if r.Approval != nil {
			return b.voted(r, signed)
		}
		b.over(r, requestDenied) // by policy: it was never made
	case audit.RequestWithdrawn:
		b.over(r, requestWithdrawn)
	case audit.RequestRevoked:
		b.over(r, requestRevoked)
	case audit.ReviewGiven, audit.ReviewClosed:
		return b.reviewed(r, signed)
	case audit.LeaseOpened, audit.LeaseIssued:
		return b.lease(r)
	}
	return ""
}

// created takes in a request, which the record of its first lease may tell of
// as well.
func (b *requestBook) created(r *audit.Record) string {
	f, d := r.Request, r.Decision
	switch {
	case f == nil || f.ID == "":
		return "it names no request"
	case r.Caller == nil:
		return "nobody made the request"
	case b.requests[f.ID] != nil:
		return "the request was made before"
	case d == nil || !d.Permit:
		return "policy did not permit the request"
	case f.Sum(r.Caller.ID, d) != f.Digest:
		return "its digest, which people are shown and sign, is not of what it says: that would be " + f.Sum(r.Caller.ID, d).String()
	case f.BreakGlass && len(d.Review) == 0:
		return "it does without approval, and nobody has to review that"
	}
	needs, ok := parseNeeds(d.Approvals)
	review, readable := parseNeeds(d.Review)
	if !ok || !readable {
		return "what policy wants of people can't be read"
	}
	q := &request{
		holder: unique.Make(r.Caller.ID), entitlement: unique.Make(f.Entitlement), scopes: unique.Make(joined(f.Scopes)),
		digest: f.Digest, ttl: f.TTL, duration: f.Duration, starts: f.NotBefore, ends: f.LapsesAt,
	}
	last := &b.granted
	if len(needs)+len(review) > 0 {
		q.people = &people{needs: needs, review: review, signed: d.Signed, barred: append([]string{r.Caller.ID}, f.Accountable...)}
		last = &b.asked
	}
	if len(needs) == 0 {
		q.approve(r.Time)
	}
	b.forget(last.put(f.ID, b.wanted))
	b.requests[f.ID] = q
	return ""
}

// wanted says whether records about a request may still come.
func (b *requestBook) wanted(id string) bool {
	q := b.requests[id]
	if q.people != nil && len(q.people.review) > 0 && !q.people.closed {
		return true
	}
	return q.state <= requestApproved && b.now.Before(q.ends.Add(slack))
}

func (b *requestBook) forget(id string) {
	q := b.requests[id]
	if q == nil {
		return
	}
	if ends := q.ends.Add(slack); q.people == nil && q.state == requestApproved && ends.After(b.forgot) {
		b.forgot = ends
	}
	delete(b.requests, id)
}

// about gives the request that a record is about; nil, and what is wrong with
// that, if there is none or the record says something else of it. old says that
// an older request than are known need not be wrong.
func (b *requestBook) about(r *audit.Record, old bool) (*request, string) {
	if r.Request == nil || r.Request.ID == "" {
		return nil, "it names no request"
	}
	q := b.requests[r.Request.ID]
	switch {
	case q == nil && old:
		b.unjudged++
		return nil, ""
	case q == nil:
		return nil, "nobody made its request in this log, or it was over long before"
	case q.digest != r.Request.Digest:
		return nil, "it is not about what was asked: the digest of the request was " + q.digest.String()
	case q.entitlement.Value() != r.Request.Entitlement:
		return nil, "it is not about what was asked: the request was for " + q.entitlement.Value()
	}
	return q, ""
}

// over ends a request, if it is known.
func (b *requestBook) over(r *audit.Record, state requestState) {
	if r.Request == nil {
		return
	}
	if q := b.requests[r.Request.ID]; q != nil {
		q.state = state
	}
}

// voted takes in a person's yes or no, and judges what it led to.
func (b *requestBook) voted(r *audit.Record, signed bool) string {
	q, what := b.about(r, b.now.Before(b.before))
	switch {
	case q == nil:
		return what
	case q.state != requestPending:
		return "its request " + q.was()
	case r.Caller == nil || r.Approval == nil:
		what = "nobody said it"
	default:
		what = q.hear(r, signed)
	}
	switch r.Kind {
	case audit.RequestDenied:
		q.state = requestDenied
	case audit.RequestApproved:
		q.approve(r.Time)
		if what == "" {
			what = q.people.lacking(q.people.needs, q.people.signed)
		}
	}
	return what
}

const notSigned = "policy wanted it signed by a passkey, and it is not"

// hear takes in what a person says of a pending request, if it counts. What is
// wrong with a signature is said by the key book.
func (q *request) hear(r *audit.Record, signed bool) string {
	a, p := r.Approval, q.people
	v := voice{r.Caller.ID, a.Groups, a.Decision == "approve", signed, a.Scopes, a.TTL, a.Duration}
	switch {
	case a.Digest != q.digest:
		return "what the person saw is not what was asked: the digest of the request was " + q.digest.String()
	case slices.Contains(p.barred, v.person):
		return "nobody speaks of what they asked for, or what was asked by a workload that they answer for"
	case v.approves && p.signed && r.Signature == nil:
		return notSigned
	}
	var what string
	p.said, what = add(p.said, v)
	return what
}

// approve starts the clock of the grant, and narrows it to what people left of it.
func (q *request) approve(at time.Time) {
	q.state = requestApproved
	if q.people != nil {
		scopes := split(q.scopes.Value())
		for _, v := range q.people.said {
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
		q.people.left = scopes
	}
	if q.starts.Before(at) {
		q.starts = at
	}
	q.ends = q.starts.Add(q.duration)
}

// was says what became of a request.
func (q *request) was() string {
	return [...]string{"waited for people", "had been approved before, or waited for nobody", "was denied before", "was withdrawn before", "was revoked before"}[q.state]
}

// reviewed takes in a verdict on a broken glass, and judges whether the last
// one is. Nobody knows how late it may come.
func (b *requestBook) reviewed(r *audit.Record, signed bool) string {
	q, what := b.about(r, b.later)
	if q == nil {
		return what
	}
	p := q.people
	switch {
	case r.Caller == nil || r.Approval == nil:
		return "nobody said it"
	case p == nil || len(p.review) == 0 || p.closed:
		return "there was nothing to review"
	case r.Approval.Digest != q.digest:
		return "what the person saw is not what was asked: the digest of the request was " + q.digest.String()
	case slices.Contains(p.barred, r.Caller.ID):
		return "nobody speaks of what they asked for, or what was asked by a workload that they answer for"
	case p.signed && r.Signature == nil:
		return notSigned
	}
	p.verdicts, what = add(p.verdicts, voice{person: r.Caller.ID, groups: r.Approval.Groups, signed: signed})
	if r.Kind == audit.ReviewClosed {
		p.closed = true
		if what == "" {
			what = missing("reviewed", p.review, p.verdicts, p.signed)
		}
	}
	return what
}

// lease judges the record that first tells of a lease: who it is for, and for
// what. The lease book wants the issuing of those that upstreams make to follow.
func (b *requestBook) lease(r *audit.Record) string {
	f := r.Request
	if f == nil && r.Kind == audit.LeaseIssued {
		return ""
	}
	if f != nil && (f.TTL > 0 || f.Duration > 0) { // filed by the same call
		if what := b.created(r); what != "" {
			return what
		}
	}
	// Grants that are forgotten were policy's own: one that people had to
	// approve is known, or this one is wrong.
	asks := r.Decision == nil || len(r.Decision.Approvals) > 0
	q, what := b.about(r, b.now.Before(b.before) || !asks && b.now.Before(b.forgot))
	switch {
	case q == nil:
		return what
	case r.Caller == nil || r.Caller.ID != q.holder.Value():
		return "its holder is not who asked for it: that was " + q.holder.Value()
	case r.Decision == nil || !r.Decision.Permit:
		return "policy did not permit it"
	case q.state > requestApproved:
		return "its request " + q.was()
	}
	if what := q.covers(r.Decision); what != "" {
		return what
	}
	return q.bounds(r)
}

// covers says what is missing to the approvals that were demanded when the
// request was made, and are demanded by now.
func (q *request) covers(d *audit.DecisionFacts) string {
	if q.people != nil {
		if what := q.people.lacking(q.people.needs, q.people.signed); what != "" {
			return what
		}
	}
	if q.state == requestPending {
		return "its request " + q.was()
	}
	needs, ok := parseNeeds(d.Approvals)
	if !ok {
		return "what policy wants of people can't be read"
	}
	return q.people.lacking(needs, d.Signed)
}

// bounds says where a lease is more than was granted.
func (q *request) bounds(r *audit.Record) string {
	if r.Lease == nil {
		return "" // the lease book says so
	}
	scopes, left := r.Lease.Scopes, split(q.scopes.Value())
	if scopes == nil {
		scopes = r.Request.Scopes
	}
	if q.people != nil {
		left = q.people.left
	}
	for _, s := range scopes {
		if !slices.Contains(left, s) {
			return "its scope " + s + " was not granted: those were " + strings.Join(left, " ")
		}
	}
	switch {
	case joined(r.Request.Scopes) != q.scopes.Value():
		return "it is not about what was asked: the request was for the scopes " + strings.Join(split(q.scopes.Value()), " ")
	case r.Time.Add(slack).Before(q.starts):
		return "the grant had not begun: it starts at " + q.starts.Format(audit.TimeFormat)
	case r.Time.After(q.ends.Add(slack)):
		return "the grant was over: it ended at " + q.ends.Format(audit.TimeFormat)
	case r.Lease.Expires.IsZero() || r.Lease.Expires.After(r.Time.Add(q.ttl+slack)):
		return "it lives for longer than was granted: that was " + q.ttl.String()
	}
	return ""
}

// joined makes one text of scopes, which hold no zero bytes, and split takes
// it apart.
func joined(scopes []string) string { return strings.Join(scopes, "\x00") }

func split(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, "\x00")
}
