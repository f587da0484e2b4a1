package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cedar-policy/cedar-go"

	"accessbroker.internal/broker"
)

// reasonEvaluationFailed is the reason that callers see if a policy erred. It
// has no detail: the error is for the operator's log.
const reasonEvaluationFailed = "a policy could not be evaluated; the operator must correct it"

var _ broker.Policy = (*Engine)(nil)

// Decide implements broker.Policy. Every decision names the revision.
//
// Cedar skips a policy that errs, so a forbid that errs would no longer forbid.
// Decide therefore denies if any policy errs. It lists these policies in the
// decision and returns their errors for the operator's log. It also denies with
// an error if q is not valid; that decision has neither policies nor reasons.
//
// The action "approve" is permitted unless a policy forbids it, because naming
// a group in @approval already lets its members approve.
//
// A request with authorization_details is decided once for each element.
func (e *Engine) Decide(_ context.Context, q broker.Query, now time.Time) (broker.Decision, error) {
	if len(q.Details) > 1 {
		return e.decideEach(q, now)
	}
	return e.decideOne(q, now)
}

// decideOne is Decide for one element of authorization_details at most.
func (e *Engine) decideOne(q broker.Query, now time.Time) (broker.Decision, error) {
	key, remember := e.rememberable(&q)
	if remember && e.governed(key.principal) {
		// The contract, the ceiling and the end are not part of what is remembered.
		if denied, outside := e.deniedOutside(&q, key.principal, now); outside {
			return denied, nil
		}
	}
	if remember {
		if known, ok := e.decisions.find(key); ok {
			return known, nil
		}
	}
	d, err := e.decide(q, now)
	if remember && err == nil {
		e.decisions.keep(key, d)
	}
	return d, err
}

// decide is Decide without memory.
//
// An identity with a suspended membership is decided on twice: as a member, so that a
// forbid on the group still applies, and without the membership. Both must permit, and the
// obligations of both add up, so that a suspension never permits anything.
func (e *Engine) decide(q broker.Query, now time.Time) (broker.Decision, error) {
	denied := broker.Decision{Revision: e.revision}
	if s := e.suspendedMark(&q.Principal); s != nil {
		denied.Reasons = []string{s.Reason()}
		return denied, nil
	}
	ev, err := e.newEvaluation(q, now)
	if err != nil {
		return denied, fmt.Errorf("evaluating action %q: %w", q.Action, err)
	}
	if denied, outside := e.deniedOutside(&q, ev.who, now); outside {
		return denied, nil
	}
	if ev.member == nil {
		return e.decideOn(ev, q)
	}
	whole := ev.asMember()
	before, err := e.decideOn(whole, q)
	if err != nil || !before.Permit {
		return before, err
	}
	d, err := e.decideOn(ev, q)
	if err != nil || !d.Permit {
		for _, s := range e.suspended.membershipsOf(&q.Principal) {
			d.Reasons = append(d.Reasons, s.Reason())
		}
		return d, err
	}
	d.Obligations = d.Obligations.And(before.Obligations)
	return d, nil
}

// decideOn decides on one evaluation.
func (e *Engine) decideOn(ev *evaluation, q broker.Query) (broker.Decision, error) {
	denied := broker.Decision{Revision: e.revision}
	found := e.index.find(ev.action, ev.principals, ev.resources, ev.foreign)
	active := e.suspended.active(found, q.Scopes)
	effect, diagnostic := cedar.Authorize(active, ev, ev.request)
	switch {
	case len(diagnostic.Errors) > 0:
		return e.denyErrors(effect, diagnostic)
	case effect == cedar.Allow:
		return e.permitted(e.determining(diagnostic), q)
	case q.Action == broker.ActionApprove && len(diagnostic.Reasons) == 0: // no forbid applies
		denied.Permit = true
		return denied, nil
	}
	determining := e.determining(diagnostic)
	denied.Policies, denied.Reasons = idsAndReasons(determining)
	denied.Lasting = slices.ContainsFunc(determining, func(r *rule) bool { return r.lasting })
	if len(determining) == 0 && len(e.suspended.permits) > 0 {
		denied.Reasons = e.suspendedReasons(ev, q)
	}
	return denied, nil
}

// suspendedReasons returns the suspensions without which a permit would apply.
func (e *Engine) suspendedReasons(ev *evaluation, q broker.Query) (reasons []string) {
	found := e.index.find(ev.action, ev.principals, ev.resources, ev.foreign)
	slices.SortFunc(found, byID)
	for _, r := range found {
		s := e.suspended.suspends(r, q.Scopes)
		if s == nil || r.breakGlass != "" && !q.BreakGlass {
			continue
		}
		if effect, _ := cedar.Authorize(candidates{r}, ev, ev.request); effect == cedar.Allow {
			reasons = append(reasons, s.Reason())
		}
	}
	return reasons
}

// determining returns the rules that determined the decision, sorted by id.
// Cedar returns its reasons in the order of iteration, which differs between
// runs because the index is built from a map; decisions and audit records must
// not.
func (e *Engine) determining(d cedar.Diagnostic) []*rule {
	rules := make([]*rule, len(d.Reasons))
	for i, reason := range d.Reasons {
		rules[i] = e.rules[reason.PolicyID]
	}
	slices.SortFunc(rules, byID)
	return rules
}

func byID(a, b *rule) int { return cmp.Compare(a.id, b.id) }

func idsAndReasons(rules []*rule) (ids, reasons []string) {
	if len(rules) == 0 {
		return nil, nil
	}
	ids = make([]string, len(rules))
	for i, r := range rules {
		ids[i] = r.id
		if r.reason != "" {
			reasons = append(reasons, r.reason)
		}
	}
	return ids, reasons
}

// permitted adds up the obligations of the permits that apply.
//
// A permit with @break_glass applies only to break-glass requests, and a
// break-glass request needs at least one. The obligations of the other permits
// still apply to it, except that their approvals become reviews afterwards.
func (e *Engine) permitted(permits []*rule, q broker.Query) (broker.Decision, error) {
	d := broker.Decision{Revision: e.revision}
	// Without break-glass such a permit must disappear completely: it has no
	// @approval, so it would be an unconditional permit.
	if !q.BreakGlass {
		permits = slices.DeleteFunc(permits, func(r *rule) bool { return r.breakGlass != "" })
	}
	if len(permits) == 0 || q.BreakGlass && !slices.ContainsFunc(permits, func(r *rule) bool { return r.breakGlass != "" }) {
		return d, nil
	}
	d.Permit = true
	d.Policies, d.Reasons = idsAndReasons(permits)
	d.Obligations.Delegates = broker.MaxDelegates // no permit states more
	for _, r := range permits {
		d.Obligations = d.Obligations.And(r.Obligations)
	}
	if d.Obligations.Binding != broker.BindingNone {
		if reason := bindTo(&d.Obligations, e.in.Catalogue[q.Entitlement.Name]); reason != "" {
			return broker.Decision{Revision: e.revision, Policies: d.Policies, Reasons: append(d.Reasons, reason)}, nil
		}
	}
	if len(d.Obligations.Approvals) == 0 {
		return d, nil
	}
	known := e.in.Catalogue[q.Entitlement.Name] // not nil: only permits of "request" have obligations
	needs, err := resolveOwner(d.Obligations.Approvals, known.Owner)
	if err != nil {
		return broker.Decision{Revision: e.revision}, fmt.Errorf("deciding on entitlement %q: %w", q.Entitlement.Name, err)
	}
	d.Obligations.Approvals = needs
	if q.BreakGlass {
		d.Obligations = breakGlass(d.Obligations)
	}
	return d, nil
}

// denyErrors returns a denial that lists the policies that erred and the
// forbids that apply, and joins the errors.
func (e *Engine) denyErrors(effect cedar.Decision, d cedar.Diagnostic) (broker.Decision, error) {
	var rules []*rule
	var errs []error
	if effect == cedar.Deny {
		rules = e.determining(d)
	}
	for _, erred := range d.Errors {
		r := e.rules[erred.PolicyID]
		rules = append(rules, r)
		line, column := r.at()
		errs = append(errs, &Problem{File: r.name, Line: line, Column: column, Policy: r.id, Text: "evaluation failed: " + erred.Message})
	}
	slices.SortFunc(rules, byID)
	denied := broker.Decision{Revision: e.revision}
	denied.Policies, denied.Reasons = idsAndReasons(rules)
	denied.Reasons = append(denied.Reasons, reasonEvaluationFailed)
	return denied, errors.Join(errs...)
}
