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

// maxNearMisses bounds how many policies an explanation shows that do not
// apply by their head: thousands may name the same path.
const maxNearMisses = 20

// An Explanation says why a decision is as it is. It shows policies whole, so
// it is for those who may read them.
type Explanation struct {
	Permit       bool          `json:"permit"`
	Error        string        `json:"error,omitempty"` // why the query can't be asked at all
	Policies     []Verdict     `json:"policies"`        // those that apply first
	NearMisses   int           `json:"near_misses_left_off,omitempty"`
	Obligations  []string      `json:"obligations,omitempty"`
	MaxTTL       string        `json:"max_ttl,omitempty"`      // the shortest of the permits' and the entitlement's
	Alternatives []Alternative `json:"alternatives,omitempty"` // if denied: what would be permitted
}

// A Verdict says what one policy has to do with the query.
type Verdict struct {
	ID      string `json:"id"`
	File    string `json:"file"`
	Line    int    `json:"line"`
	Effect  string `json:"effect"` // permit, forbid
	Applies bool   `json:"applies"`
	Reason  string `json:"reason,omitempty"`
	Failed  string `json:"failed,omitempty"` // the first clause that is not met
	Error   string `json:"error,omitempty"`  // of evaluating it
	byHead  bool   // Failed is of the head
}

// An Alternative is a scope that, asked for alone, would be permitted.
type Alternative struct {
	Scope       string   `json:"scope"`
	Obligations []string `json:"obligations,omitempty"`
}

// Explain decides and says why.
func (e *Engine) Explain(ctx context.Context, q broker.Query, now time.Time) Explanation {
	a, err := e.ask(q, now)
	if err != nil {
		return Explanation{Error: err.Error()}
	}
	d, _ := e.Decide(ctx, q, now) // the verdicts say what erred
	x := Explanation{Permit: d.Permit, Obligations: describe(d.Obligations)}
	x.Policies, x.NearMisses = e.verdicts(a)
	if q.Action != broker.ActionRequest {
		return x
	}
	if x.Permit {
		x.MaxTTL = broker.Short(fewer(e.in.Catalogue[q.Entitlement.Name].MaxTTL, d.Obligations.MaxTTL))
	} else {
		x.Alternatives = e.alternatives(ctx, q, now)
	}
	return x
}

// alternatives tries each scope of the entitlement alone.
func (e *Engine) alternatives(ctx context.Context, q broker.Query, now time.Time) (found []Alternative) {
	for _, s := range e.in.Catalogue[q.Entitlement.Name].Scopes {
		q.Scopes = []string{s}
		if d, err := e.Decide(ctx, q, now); err == nil && d.Permit {
			found = append(found, Alternative{s, describe(d.Obligations)})
		}
	}
	return found
}

// verdicts judges every policy on the action whose head fits, and some of the
// permits whose head fits only the principal or only the resource: a slip of
// the pen is often found there.
func (e *Engine) verdicts(a *question) (verdicts []Verdict, leftOff int) {
	for _, r := range e.sorted() {
		if !slices.Contains(r.actions, a.action) {
			continue
		}
		who := r.who.matches(a.principals[0], a.principals)
		what := r.what.matches(a.resources[0], a.resources)
		if who && what || r.permit && (who || what) {
			verdicts = append(verdicts, r.verdict(a, who, what))
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

// rank orders verdicts by how much they matter.
func (v Verdict) rank() int {
	switch {
	case v.Error != "":
		return 0
	case v.Applies && v.Effect == "forbid":
		return 1
	case v.Applies:
		return 2
	case !v.byHead && v.Effect == "permit":
		return 3
	case !v.byHead:
		return 4
	}
	return 5
}

func (r *rule) verdict(a *question, who, what bool) Verdict {
	line, _ := r.at()
	v := Verdict{ID: r.id, File: r.name, Line: line, Effect: r.effect(), Reason: r.reason, byHead: true}
	switch {
	case !who:
		v.Failed = r.who.text("principal")
	case !what:
		v.Failed = r.what.text("resource")
	case !r.appliesTo(a.foreign):
		v.Failed = "its head names no domain, path or group of the federated trust domain " + domainOf(string(a.principals[0].ID))
	default:
		v.byHead = false
		v.Failed, v.Error = r.failedClause(a)
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

// text writes a scope as it stands in a policy.
func (s scope) text(variable string) string {
	text := variable
	if s.kind != "" {
		text += " is " + string(s.kind)
	}
	switch {
	case s.eq:
		text += " == " + s.uid.String()
	case !s.uid.IsZero():
		text += " in " + s.uid.String()
	}
	return text
}

// failedClause evaluates the conditions one clause after the other, as Cedar
// does: each && of a when, each || of an unless.
func (r *rule) failedClause(a *question) (failed, erred string) {
	env := eval.Env{Entities: a, Principal: a.request.Principal, Action: a.request.Action, Resource: a.request.Resource, Context: a.request.Context}
	for _, c := range (*ast.Policy)(r.policy.AST()).Conditions {
		when := c.Condition == ast.ConditionWhen
		for _, clause := range clauses(c.Body, when) {
			holds, err := evaluate(clause, env)
			switch {
			case err != nil:
				return "", clauseText(clause, when) + ": " + err.Error()
			case holds != when:
				return clauseText(clause, when), ""
			}
		}
	}
	return "", ""
}

// clauses splits a condition at its outermost && (of a when) or || (of an
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

func evaluate(n ast.IsNode, env eval.Env) (bool, error) {
	v, err := eval.Eval(n, env)
	if err != nil {
		return false, err
	}
	holds, ok := v.(types.Boolean)
	if !ok {
		return false, errors.New("is neither true nor false")
	}
	return bool(holds), nil
}

// clauseText writes a clause in Cedar, by way of a policy with no other.
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

// String writes the explanation for people.
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
	for _, o := range x.Obligations {
		fmt.Fprintf(&b, "  demands %s\n", o)
	}
	if x.MaxTTL != "" {
		fmt.Fprintf(&b, "  for at most %s\n", x.MaxTTL)
	}
	writeVerdicts(&b, x.Policies)
	if x.NearMisses > 0 {
		fmt.Fprintf(&b, "and %d more permits that are about this principal or this resource, not both\n", x.NearMisses)
	}
	for _, a := range x.Alternatives {
		fmt.Fprintf(&b, "would be permitted: scope %s alone", a.Scope)
		if len(a.Obligations) > 0 {
			fmt.Fprintf(&b, ", demanding %s", strings.Join(a.Obligations, ", "))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func writeVerdicts(b *strings.Builder, verdicts []Verdict) {
	if len(verdicts) == 0 {
		b.WriteString("no policy is about this principal or this resource\n")
	}
	for _, v := range verdicts {
		fmt.Fprintf(b, "%s %s (%s:%d) ", v.Effect, v.ID, v.File, v.Line)
		switch {
		case v.Error != "":
			fmt.Fprintf(b, "could not be evaluated, which denies: %s\n", v.Error)
		case v.Applies:
			b.WriteString("applies\n")
		default:
			fmt.Fprintf(b, "does not apply: not met: %s\n", v.Failed)
		}
	}
}

// newCedar wraps a tree that is only printed.
func newCedar(p *ast.Policy) *cedar.Policy { return cedar.NewPolicyFromAST((*publicast.Policy)(p)) }
