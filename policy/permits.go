package policy

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/eval"

	"accessbroker.internal/broker"
)

// standing are the rules on requests by the principal that their heads name, for the
// question what an identity may request. A decision asks about one entitlement; this asks
// about all of them.
type standing struct {
	permits map[types.EntityUID][]*standingPermit // by the head's principal; zero: none
	forbids map[types.EntityUID][]standingForbid
}

// A standingForbid is a forbid of requests without conditions.
type standingForbid struct {
	*rule
	coverage *coverage
}

// A standingPermit is a permit on requests. What it grants does not depend on who asks, so
// it is worked out once.
type standingPermit struct {
	*rule
	coverage   *coverage
	conditions bool // on the principal
	once       sync.Once
	permit     broker.Permit
}

func newStanding(rules []*rule, cover *coverages) *standing {
	s := &standing{map[types.EntityUID][]*standingPermit{}, map[types.EntityUID][]standingForbid{}}
	request := actionNumber(broker.ActionRequest)
	for _, r := range rules {
		uid := r.principal.uid
		switch {
		case !slices.Contains(r.actions, request):
		case r.permit:
			p := &standingPermit{rule: r, coverage: cover.of(r.resource), conditions: slices.ContainsFunc(conditionsOf(r), readsPrincipal)}
			s.permits[uid] = append(s.permits[uid], p)
		case len(conditionsOf(r)) == 0:
			s.forbids[uid] = append(s.forbids[uid], standingForbid{r, cover.of(r.resource)})
		}
	}
	return s
}

func conditionsOf(r *rule) []ast.ConditionType { return (*ast.Policy)(r.policy.AST()).Conditions }

// readsPrincipal reports whether a condition reads the principal.
func readsPrincipal(c ast.ConditionType) (reads bool) {
	ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
		v, ok := n.(ast.NodeTypeVariable)
		reads = reads || ok && v.Name == "principal"
		return !reads
	})
	return reads
}

// Permits implements broker.PermitLister. It returns the permits on requests whose heads
// match an identity, sorted by id, and at most limit of them. Conditions on the request,
// such as those on a ticket, count as met; conditions on the identity and on the scopes
// are evaluated. An entitlement that the identity never gets is left out.
func (e *Engine) Permits(who broker.Identity, limit int) (list []*broker.Permit, more bool) {
	who.Attested = e.assumed(&who)
	p := e.principals.find(&who)
	if p == nil {
		var err error
		if p, err = e.newPrincipal(who); err != nil {
			return nil, false
		}
		e.principals.keep(p)
	}
	if e.governs && p.federated && len(p.suppliers) == 0 && !slices.Contains(e.in.Internal, broker.TrustDomainOf(who.ID)) {
		return nil, false // see outside
	}
	var found []*standingPermit
	for _, uid := range append(slices.Clone(p.uids), types.EntityUID{}) {
		for _, s := range e.standing.permits[uid] {
			if s.principal.matches(p.uids[0], p.uids) && s.appliesTo(p.foreign) && !slices.Contains(found, s) {
				found = append(found, s)
			}
		}
	}
	slices.SortFunc(found, func(a, b *standingPermit) int { return byID(a.rule, b.rule) })
	if e.suspendedMark(&who) != nil {
		return nil, false
	}
	denied := e.deniedTo(p)
	for _, s := range found {
		if len(list) == limit {
			return list, true
		}
		if one := e.suspended.permits[s.id]; one != nil && len(one.Left) == 0 {
			continue
		}
		if s.conditions && !s.mayPermit(eval.Env{Entities: only{p.entity}, Principal: p.entity.UID, Resource: variable("resource"), Context: variable("context")}) {
			continue
		}
		if permit := within(without(s.granted(e), denied), who.Ceiling); len(permit.Reaches) > 0 {
			list = append(list, permit)
		}
	}
	return list, false
}

// AllPermits implements broker.PermitLister.
func (e *Engine) AllPermits() (list []*broker.Permit) {
	for _, heads := range e.standing.permits {
		for _, s := range heads {
			list = append(list, s.granted(e))
		}
	}
	slices.SortFunc(list, func(a, b *broker.Permit) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// granted returns what the permit grants to those whom it matches.
func (s *standingPermit) granted(e *Engine) *broker.Permit {
	s.once.Do(func() {
		line, _ := s.at()
		s.permit = broker.Permit{ID: s.id, File: s.name, Line: line, Reason: s.reason, BreakGlass: s.breakGlass != "", Groups: groupsNamed(s.rule)}
		for _, known := range s.coverage.entitlements {
			reach := broker.Reach{Entitlement: known.Name}
			for _, scope := range known.Scopes {
				if s.mayGrant(e, known, scope) {
					reach.Scopes = append(reach.Scopes, scope)
				}
			}
			if together := s.scopesNamed(known); len(reach.Scopes) == 0 && len(together) > 1 && s.mayGrant(e, known, together...) {
				reach.Scopes = together // none alone
			}
			if len(reach.Scopes) > 0 || len(known.Scopes) == 0 && s.mayGrant(e, known) {
				s.permit.Reaches = append(s.permit.Reaches, reach)
			}
		}
	})
	return &s.permit
}

// scopesNamed returns the scopes of an entitlement that the permit's conditions name.
func (s *standingPermit) scopesNamed(known *broker.Entitlement) (scopes []string) {
	for _, scope := range known.Scopes {
		if slices.ContainsFunc(s.mentions, func(m mention) bool { return m.field == "context.scopes" && m.value == types.String(scope) }) {
			scopes = append(scopes, scope)
		}
	}
	return scopes
}

// mayGrant reports whether the permit may permit these scopes of an entitlement.
func (s *standingPermit) mayGrant(e *Engine, known *broker.Entitlement, scopes ...string) bool {
	if len(conditionsOf(s.rule)) == 0 {
		return true
	}
	uid := types.NewEntityUID(typeEntitlement, types.String(known.Name))
	context := types.RecordMap{"scopes": stringSet(scopes)}
	for _, name := range []types.String{"ttl", "duration", "justification", "ticket", "parameters", "break_glass", "now", "source_ip", "depth"} {
		context[name] = eval.Variable(name)
	}
	// The permit may be one for delegations, or for requests with details, alone.
	for _, detail := range []bool{false, true} {
		for _, side := range []types.String{"", "on_behalf_of", "actor"} {
			shown := maps.Clone(context)
			if detail {
				shown["detail"] = eval.Variable("detail")
			}
			if side != "" {
				shown[side] = eval.Variable(side)
			}
			if s.mayPermit(eval.Env{Entities: only{e.catalogue[uid]}, Principal: variable("principal"), Resource: uid, Context: types.NewRecord(shown)}) {
				return true
			}
		}
	}
	return false
}

// mayPermit reports whether the permit's conditions can be met. Variables of the
// environment are unknown.
func (s *standingPermit) mayPermit(env eval.Env) bool {
	env.Action = types.NewEntityUID(typeAction, types.String(broker.ActionRequest))
	p := ast.Permit() // without a head, because the rule's matches
	for _, c := range conditionsOf(s.rule) {
		// Each clause alone: cedar-go keeps a conjunction whose first part is unknown.
		for _, clause := range clauses(c.Body, bool(c.Condition)) {
			p.Conditions = append(p.Conditions, ast.ConditionType{Condition: c.Condition, Body: clause})
		}
	}
	_, keep := eval.PartialPolicy(env, p)
	return keep
}

func variable(name types.String) types.EntityUID {
	uid, _ := eval.Variable(name).(types.EntityUID) // always is one
	return uid
}

// only is a store with one entity.
type only struct{ types.Entity }

// Get implements types.EntityGetter.
func (o only) Get(uid types.EntityUID) (types.Entity, bool) { return o.Entity, uid == o.UID }

// deniedTo returns the entitlements that a principal never gets, whatever permits say: those
// that forbids without conditions deny, and those above the ceiling of its supplier.
func (e *Engine) deniedTo(p *principal) set {
	denied := set{}
	for name := range e.in.Catalogue {
		if slices.ContainsFunc(p.suppliers, func(supplier string) bool { return !e.suppliers.Named(supplier).Allows(name) }) {
			denied[name] = true
		}
	}
	for _, uid := range append(slices.Clone(p.uids), types.EntityUID{}) {
		for _, r := range e.standing.forbids[uid] {
			if !r.principal.matches(p.uids[0], p.uids) {
				continue
			}
			for _, known := range r.coverage.entitlements {
				denied[known.Name] = true
			}
		}
	}
	return denied
}

// without returns the permit without the grants of some entitlements.
func without(p *broker.Permit, denied set) *broker.Permit {
	if !slices.ContainsFunc(p.Reaches, func(g broker.Reach) bool { return denied[g.Entitlement] }) {
		return p
	}
	rest := *p
	rest.Reaches = slices.DeleteFunc(slices.Clone(p.Reaches), func(g broker.Reach) bool { return denied[g.Entitlement] })
	return &rest
}

// within returns the permit without what is above the ceiling of a mark.
func within(p *broker.Permit, ceiling *broker.Ceiling) *broker.Permit {
	if ceiling == nil {
		return p
	}
	rest := *p
	rest.Reaches = nil
	for _, reach := range p.Reaches {
		part, found := ceiling.Part(reach.Entitlement)
		if !found {
			continue
		}
		if len(part.Scopes) > 0 {
			reach.Scopes = slices.DeleteFunc(slices.Clone(reach.Scopes), func(scope string) bool { return !ceiling.Allows(reach.Entitlement, scope) })
			if len(reach.Scopes) == 0 {
				continue
			}
		}
		rest.Reaches = append(rest.Reaches, reach)
	}
	return &rest
}

// groupsNamed returns the groups whose members a rule matches because of their membership,
// by its head or by a condition; sorted.
func groupsNamed(r *rule) (names []string) {
	if r.principal.uid.Type == typeGroup {
		names = append(names, string(r.principal.uid.ID))
	}
	for _, m := range r.mentions {
		if uid, ok := m.value.(types.EntityUID); ok && uid.Type == typeGroup && m.field == "principal" {
			names = append(names, string(uid.ID))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// UnmeasuredGroups implements broker.PermitLister.
func (e *Engine) UnmeasuredGroups() (names []string) {
	request := actionNumber(broker.ActionRequest)
	for _, r := range e.rules {
		if r.permit && !r.anyAction && len(r.actions) == 1 && r.actions[0] == request {
			names = append(names, groupsExcluded(r)...)
			continue
		}
		names = append(names, groupsNamed(r)...)
	}
	for _, s := range e.suppliers.All() {
		names = append(names, s.Assessors, s.Extenders, s.SponsorGroup())
	}
	for _, p := range e.people {
		names = append(names, p.Sponsor)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return e.groups[name] == nil })
	slices.Sort(names)
	return slices.Compact(names)
}
