package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	publicast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/eval"

	"accessbroker.internal/broker"
)

// maxNearMisses limits the policies in an explanation whose heads do not match.
// Thousands of policies may name the same path.
const maxNearMisses = 20

// An Explanation is a decision with the policies behind it. It shows conditions
// of policies, so show it only to people who may read them.
type Explanation struct {
	Permit       bool          `json:"permit"`
	Error        string        `json:"error,omitempty"`     // why the query is not valid
	Outside      string        `json:"outside,omitempty"`   // why no policy may permit it: the contract, the ceiling or the end of a person
	Element      string        `json:"element,omitempty"`   // of several elements of authorization_details, the one that the policies were evaluated for
	Suspended    []string      `json:"suspended,omitempty"` // the mark and the memberships of the principal that access reviews suspended
	Policies     []Verdict     `json:"policies"`            // sorted by relevance: policies that apply are first
	NearMisses   int           `json:"near_misses_left_off,omitempty"`
	Obligations  []string      `json:"obligations,omitempty"`
	MaxTTL       string        `json:"max_ttl,omitempty"`      // the smaller of the entitlement's and the permits'
	Alternatives []Alternative `json:"alternatives,omitempty"` // if denied

	// Subject explains the decision on the other side, if the principal acts for another.
	// Permit and Obligations are then those of both.
	Subject   *Explanation `json:"on_behalf_of,omitempty"`
	principal string
}

// A Verdict is the result of one policy for the query.
type Verdict struct {
	ID      string `json:"id"`
	File    string `json:"file"`
	Line    int    `json:"line"`
	Effect  string `json:"effect"` // "permit" or "forbid"
	Applies bool   `json:"applies"`
	Reason  string `json:"reason,omitempty"`
	Failed  string `json:"failed,omitempty"` // the first condition that is not met
	Error   string `json:"error,omitempty"`  // from evaluating the policy

	Suspended string `json:"suspended,omitempty"` // why the policy does not apply although its conditions are met

	byHead bool // the head does not match; Failed is part of the head
}

// An Alternative is a scope that would be permitted alone.
type Alternative struct {
	Scope       string   `json:"scope"`
	Obligations []string `json:"obligations,omitempty"`
}

// Explain evaluates q and explains the decision.
func (e *Engine) Explain(ctx context.Context, q broker.Query, now time.Time) Explanation {
	x := e.explain(ctx, q, now)
	if q.OnBehalfOf == nil || x.Error != "" {
		return x
	}
	subject := e.explain(ctx, q.OfSubject(), now)
	x.Subject = &subject
	d, err := e.decideBoth(ctx, q, now)
	if x.Permit = err == nil && d.Permit; x.Permit {
		x.Obligations, x.MaxTTL = describe(d.Obligations), e.maxTTL(&q, &d)
	} else {
		x.Obligations, x.MaxTTL, x.Alternatives = nil, "", e.alternatives(ctx, q, now)
	}
	return x
}

// explain is Explain for one side of a delegation.
func (e *Engine) explain(ctx context.Context, q broker.Query, now time.Time) Explanation {
	all := q
	q, element := e.explained(q, now)
	ev, err := e.newEvaluation(q, now)
	if err != nil {
		return Explanation{Error: err.Error()}
	}
	d, _ := e.Decide(ctx, all, now) // the verdicts contain the errors
	x := Explanation{Element: element, principal: q.Principal.ID, Permit: d.Permit, Obligations: describe(d.Obligations), Outside: e.outside(&q, ev.who, now)}
	x.Policies, x.NearMisses = e.verdicts(ev, q.Scopes)
	if s := e.suspendedMark(&q.Principal); s != nil {
		x.Suspended = []string{s.Text()}
	}
	for _, s := range e.suspended.membershipsOf(&q.Principal) {
		x.Suspended = append(x.Suspended, s.Text())
	}
	if q.Action != broker.ActionRequest {
		return x
	}
	if x.Permit {
		x.MaxTTL = e.maxTTL(&q, &d)
	} else {
		x.Alternatives = e.alternatives(ctx, q, now)
	}
	return x
}

// maxTTL returns the longest TTL that the entitlement and a permit allow.
func (e *Engine) maxTTL(q *broker.Query, d *broker.Decision) string {
	bound := broker.Obligations{MaxTTL: e.in.Catalogue[q.Entitlement.Name].MaxTTL}
	return broker.FormatDuration(d.Obligations.And(bound).MaxTTL)
}

// alternatives returns each scope of the entitlement that would be permitted
// alone. It does not try sets of scopes, whose number grows exponentially.
func (e *Engine) alternatives(ctx context.Context, q broker.Query, now time.Time) (found []Alternative) {
	for _, s := range e.in.Catalogue[q.Entitlement.Name].Scopes {
		q.Scopes = []string{s}
		if d, err := e.decideBoth(ctx, q, now); err == nil && d.Permit {
			found = append(found, Alternative{s, describe(d.Obligations)})
		}
	}
	return found
}

// verdicts returns a verdict for every policy on the action whose head matches,
// and for some permits whose head matches only the principal or only the
// resource, because a typo in a head shows up there. leftOff counts the others.
func (e *Engine) verdicts(ev *evaluation, scopes []string) (verdicts []Verdict, leftOff int) {
	for _, r := range e.sorted() {
		if !slices.Contains(r.actions, ev.action) {
			continue
		}
		principal := r.principal.matches(ev.principals[0], ev.principals)
		resource := r.resource.matches(ev.resources[0], ev.resources)
		if principal && resource || r.permit && (principal || resource) {
			v := r.verdict(ev, principal, resource)
			if s := e.suspended.suspends(r, scopes); s != nil && v.Applies {
				v.Applies, v.Suspended = false, s.Text()
			}
			verdicts = append(verdicts, v)
		}
	}
	slices.SortStableFunc(verdicts, func(x, y Verdict) int { return x.rank() - y.rank() })
	if near := slices.IndexFunc(verdicts, func(v Verdict) bool { return v.byHead }); near >= 0 {
		keep := min(len(verdicts), near+maxNearMisses)
		leftOff = len(verdicts) - keep
		verdicts = verdicts[:keep]
	}
	return verdicts, leftOff
}

// rank returns the position of a verdict in an explanation: errors first, then
// forbids and permits that apply, and near misses last.
func (v Verdict) rank() int {
	switch {
	case v.Error != "":
		return 0
	case v.Applies && v.Effect == "forbid":
		return 1
	case v.Applies, v.Suspended != "":
		return 2
	case !v.byHead && v.Effect == "permit":
		return 3
	case !v.byHead:
		return 4
	}
	return 5
}

// verdict returns the verdict of r. principal and resource report whether the
// head matches them.
func (r *rule) verdict(ev *evaluation, principal, resource bool) Verdict {
	line, _ := r.at()
	v := Verdict{ID: r.id, File: r.name, Line: line, Effect: r.effect(), Reason: r.reason, byHead: true}
	switch {
	case !principal:
		v.Failed = r.principal.text("principal")
	case !resource:
		v.Failed = r.resource.text("resource")
	case !r.appliesTo(ev.foreign):
		of := "the federated trust domain " + broker.TrustDomainOf(string(ev.principals[0].ID))
		if !ev.who.federated {
			of = broker.TrustDomainOf(string(ev.principals[0].ID)) + ", as it must for a workload without an SVID"
		}
		v.Failed = "the head names no domain, path or group of " + of
	default:
		v.byHead = false
		v.Failed, v.Error = r.failedClause(ev)
		v.Applies = v.Failed == "" && v.Error == ""
	}
	return v
}

func (r *rule) effect() string {
	if r.permit {
		return "permit"
	}
	return "forbid"
}

// text returns the constraint in Cedar.
func (c constraint) text(variable string) string {
	text := variable
	if c.kind != "" {
		text += " is " + string(c.kind)
	}
	switch {
	case c.eq:
		text += " == " + c.uid.String()
	case !c.uid.IsZero():
		text += " in " + c.uid.String()
	}
	return text
}

// failedClause returns the first clause that keeps the policy from applying, or
// the first that errs. The clauses are the operands of && in a when and of || in
// an unless. It evaluates them in Cedar's order and stops where Cedar stops, so
// that a guard ("context has ticket && …") keeps the next clause from erring.
func (r *rule) failedClause(ev *evaluation) (failed, erred string) {
	env := eval.Env{Entities: ev, Principal: ev.request.Principal, Action: ev.request.Action, Resource: ev.request.Resource, Context: ev.request.Context}
	for _, c := range (*ast.Policy)(r.policy.AST()).Conditions {
		when := c.Condition == ast.ConditionWhen
		for _, clause := range clauses(c.Body, when) {
			value, err := evaluate(clause, env)
			switch {
			case err != nil:
				return "", clauseText(clause, when) + ": " + err.Error()
			case value != when:
				return clauseText(clause, when), ""
			}
		}
	}
	return "", ""
}

// clauses splits a condition at its outermost && (in a when) or || (in an
// unless).
func clauses(n ast.IsNode, when bool) []ast.IsNode {
	var pair ast.BinaryNode
	switch n := n.(type) {
	case ast.NodeTypeAnd:
		if !when {
			return []ast.IsNode{n}
		}
		pair = n.BinaryNode
	case ast.NodeTypeOr:
		if when {
			return []ast.IsNode{n}
		}
		pair = n.BinaryNode
	default:
		return []ast.IsNode{n}
	}
	return append(clauses(pair.Left, when), clauses(pair.Right, when)...)
}

// evaluate returns the value of a clause. Strict validation rules out clauses that
// are not boolean.
func evaluate(n ast.IsNode, env eval.Env) (bool, error) {
	v, err := eval.Eval(n, env)
	if err != nil {
		return false, err
	}
	value, ok := v.(types.Boolean)
	if !ok {
		return false, errors.New("is neither true nor false")
	}
	return bool(value), nil
}

// clauseText returns a clause in Cedar. It marshals a policy with this one
// clause, because cedar-go exports no marshaller for expressions.
func clauseText(n ast.IsNode, when bool) string {
	p := ast.Permit()
	keyword := "when"
	if when {
		p.When(ast.NewNode(n))
	} else {
		p.Unless(ast.NewNode(n))
		keyword = "unless"
	}
	text := string(newCedar(p).MarshalCedar())
	_, body, _ := strings.Cut(text, keyword)
	body = strings.TrimSuffix(strings.TrimSpace(body), ";")
	return keyword + " " + strings.Join(strings.Fields(body), " ")
}

// String returns the explanation as text.
func (x Explanation) String() string {
	var b strings.Builder
	switch {
	case x.Error != "":
		fmt.Fprintf(&b, "deny: %s\n", x.Error)
		return b.String()
	case x.Permit:
		b.WriteString("permit\n")
	default:
		b.WriteString("deny\n")
	}
	if x.Outside != "" {
		fmt.Fprintf(&b, "  no policy may permit it: %s\n", x.Outside)
	}
	if x.Element != "" {
		fmt.Fprintf(&b, "  for %s\n", x.Element)
	}
	for _, s := range x.Suspended {
		fmt.Fprintf(&b, "  %s\n", s)
	}
	for _, o := range x.Obligations {
		fmt.Fprintf(&b, "  requires %s\n", o)
	}
	if x.MaxTTL != "" {
		fmt.Fprintf(&b, "  allows a TTL of at most %s\n", x.MaxTTL)
	}
	x.writeVerdicts(&b)
	for _, a := range x.Alternatives {
		fmt.Fprintf(&b, "scope %s alone would be permitted", a.Scope)
		if len(a.Obligations) > 0 {
			fmt.Fprintf(&b, " and requires %s", strings.Join(a.Obligations, ", "))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// writeVerdicts writes the verdicts, on both sides of a delegation.
func (x Explanation) writeVerdicts(b *strings.Builder) {
	if x.Subject == nil {
		x.writeSide(b)
		return
	}
	fmt.Fprintf(b, "policies for %s, which acts:\n", x.principal)
	x.writeSide(b)
	fmt.Fprintf(b, "policies for %s, on whose behalf:\n", x.Subject.principal)
	if x.Subject.Error != "" {
		fmt.Fprintf(b, "deny: %s\n", x.Subject.Error)
		return
	}
	x.Subject.writeSide(b)
}

func (x Explanation) writeSide(b *strings.Builder) {
	writeVerdicts(b, x.Policies)
	if x.NearMisses > 0 {
		fmt.Fprintf(b, "%d more permits match only the principal or only the resource\n", x.NearMisses)
	}
}

func writeVerdicts(b *strings.Builder, verdicts []Verdict) {
	if len(verdicts) == 0 {
		b.WriteString("no policy matches this principal or this resource\n")
	}
	for _, v := range verdicts {
		fmt.Fprintf(b, "%s %s (%s:%d) ", v.Effect, v.ID, v.File, v.Line)
		switch {
		case v.Error != "":
			fmt.Fprintf(b, "could not be evaluated, so the request is denied: %s\n", v.Error)
		case v.Suspended != "":
			fmt.Fprintf(b, "does not apply: %s\n", v.Suspended)
		case v.Applies:
			b.WriteString("applies\n")
		default:
			fmt.Fprintf(b, "does not apply: not met: %s\n", v.Failed)
		}
	}
}

// newCedar wraps a tree that is only marshalled.
func newCedar(p *ast.Policy) *cedar.Policy { return cedar.NewPolicyFromAST((*publicast.Policy)(p)) }
