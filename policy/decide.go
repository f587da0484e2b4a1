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

// reasonUnevaluable is what a caller is told when a policy erred.
const reasonUnevaluable = "a policy could not be evaluated; the operator must correct it"

var _ broker.Policy = (*Engine)(nil)

// Decide implements broker.Policy.
//
// A policy that errs denies, and is named among the decision's policies: Cedar
// itself skips it, which would let a broken forbid through. The error that
// comes with the denial is for the operator's log. It is also an error if the
// query can't be put to policy at all; that denial says nothing but the
// revision.
//
// The action "approve" is the other way about: whom an @approval names may
// approve, so it is permitted unless a policy forbids it.
func (e *Engine) Decide(_ context.Context, q broker.Query, now time.Time) (broker.Decision, error) {
	denied := broker.Decision{Revision: e.revision}
	a, err := e.ask(q, now)
	if err != nil {
		return denied, fmt.Errorf("putting %q to policy: %w", q.Action, err)
	}
	found := e.index.find(a.action, a.principals, a.resources, a.foreign)
	effect, diagnostic := cedar.Authorize(found, a, a.request)
	switch {
	case len(diagnostic.Errors) > 0:
		return e.unevaluable(effect, diagnostic)
	case effect == cedar.Allow:
		return e.permitted(e.determining(diagnostic), q)
	case q.Action == broker.ActionApprove && len(diagnostic.Reasons) == 0:
		denied.Permit = true
		return denied, nil
	}
	determining := e.determining(diagnostic)
	denied.Policies, denied.Reasons = explainRules(determining)
	denied.Lasting = slices.ContainsFunc(determining, func(r *rule) bool { return r.lasting })
	return denied, nil
}

// determining gives the rules that made the decision, in the order of their
// ids: Cedar's order is that of the index, which differs between runs.
func (e *Engine) determining(d cedar.Diagnostic) []*rule {
	rules := make([]*rule, len(d.Reasons))
	for i, reason := range d.Reasons {
		rules[i] = e.rules[reason.PolicyID]
	}
	slices.SortFunc(rules, byID)
	return rules
}

func byID(a, b *rule) int { return cmp.Compare(a.id, b.id) }

func explainRules(rules []*rule) (ids, reasons []string) {
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

// permitted adds up what the permits demand.
//
// A permit with @break_glass is for asks that break the glass, and those need
// one. Whatever the others demand of them stands, but that approvals are asked
// for before: they become the review's.
func (e *Engine) permitted(permits []*rule, q broker.Query) (broker.Decision, error) {
	d := broker.Decision{Revision: e.revision}
	if !q.BreakGlass {
		permits = slices.DeleteFunc(permits, func(r *rule) bool { return r.glass != "" })
	}
	if len(permits) == 0 || q.BreakGlass && !slices.ContainsFunc(permits, func(r *rule) bool { return r.glass != "" }) {
		return d, nil
	}
	d.Permit = true
	d.Policies, d.Reasons = explainRules(permits)
	for _, r := range permits {
		d.Obligations = combine(d.Obligations, r.Obligations)
	}
	if len(d.Obligations.Approvals) == 0 {
		return d, nil
	}
	known := e.in.Catalogue[q.Entitlement.Name] // only permits of "request" have obligations
	needs, err := resolveOwner(d.Obligations.Approvals, known.Owner)
	if err != nil {
		return broker.Decision{Revision: e.revision}, fmt.Errorf("deciding on entitlement %q: %w", q.Entitlement.Name, err)
	}
	d.Obligations.Approvals = needs
	if q.BreakGlass {
		d.Obligations = doWithout(d.Obligations)
	}
	return d, nil
}

// unevaluable denies because of the policies that erred, and of the forbids
// that apply besides.
func (e *Engine) unevaluable(effect cedar.Decision, d cedar.Diagnostic) (broker.Decision, error) {
	var rules []*rule
	var errs []error
	if effect == cedar.Deny {
		rules = e.determining(d)
	}
	for _, erred := range d.Errors {
		r := e.rules[erred.PolicyID]
		rules = append(rules, r)
		line, column := r.at()
		errs = append(errs, &Problem{File: r.name, Line: line, Column: column, Policy: r.id, Text: "evaluating it: " + erred.Message})
	}
	slices.SortFunc(rules, byID)
	denied := broker.Decision{Revision: e.revision}
	denied.Policies, denied.Reasons = explainRules(rules)
	denied.Reasons = append(denied.Reasons, reasonUnevaluable)
	return denied, errors.Join(errs...)
}
