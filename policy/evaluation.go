package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// An evaluation is one query in Cedar's types. It is also the entity store of
// its decision: it holds the principal, the resource and the parameters, and
// shares the entitlements of the catalogue with all other evaluations.
type evaluation struct {
	request    cedar.Request
	action     int
	principals []types.EntityUID // the principal and all its ancestors
	resources  []types.EntityUID // the resource and all its ancestors
	foreign    bool              // a permit must name the principal's trust domain, a path or a group

	who    *principal
	member *principal // with the memberships that are suspended; nil: none is

	principal, resource, parameters types.Entity
	arguments                       types.Entity // of the tool in the element of authorization_details
	party                           types.Entity // the other side of a delegation
	catalogue                       map[types.EntityUID]types.Entity
}

var _ types.EntityGetter = (*evaluation)(nil)

// Get implements types.EntityGetter. The parents of every entity include all
// its ancestors, so Cedar never needs a parent that is not in the store.
func (ev *evaluation) Get(uid types.EntityUID) (types.Entity, bool) {
	switch uid {
	case ev.principal.UID:
		return ev.principal, true
	case ev.resource.UID:
		return ev.resource, true
	case ev.parameters.UID:
		return ev.parameters, true
	case ev.arguments.UID:
		return ev.arguments, true
	case ev.party.UID:
		return ev.party, true
	}
	if uid.Type != typeEntitlement {
		return types.Entity{}, false
	}
	e, ok := ev.catalogue[uid]
	return e, ok
}

// newEvaluation converts a query. It returns an error if the query is not
// valid, which the caller must treat as a denial.
func (e *Engine) newEvaluation(q broker.Query, now time.Time) (*evaluation, error) {
	ev := &evaluation{action: actionNumber(q.Action), catalogue: e.catalogue}
	if ev.action < 0 {
		return nil, fmt.Errorf("unknown action %q", q.Action)
	}
	if err := e.setPrincipal(ev, q.Principal); err != nil {
		return nil, err
	}
	ev.parameters.UID = parametersUID
	if err := e.setResource(ev, q); err != nil {
		return nil, err
	}
	party, err := e.setParty(ev, &q)
	if err != nil {
		return nil, err
	}
	context := newContext(q, now, party)
	if len(q.Details) > 0 {
		if context, err = ev.withDetail(context, q.Details); err != nil {
			return nil, err
		}
	}
	ev.request = cedar.Request{
		Principal: ev.principal.UID,
		Action:    types.NewEntityUID(typeAction, types.String(q.Action)),
		Resource:  ev.resource.UID,
		Context:   context,
	}
	return ev, nil
}

// parametersUID is the same for all requests, because policies can't name it. The
// parameters are an entity, not a record in the context, because the schema can
// only describe unknown keys as tags of an entity.
var parametersUID = types.NewEntityUID(typeParameters, "of the request")

// setPrincipal sets the principal and its ancestors.
func (e *Engine) setPrincipal(ev *evaluation, who broker.Identity) error {
	p := e.principals.find(&who)
	if p == nil {
		var err error
		if p, err = e.newPrincipal(who); err != nil {
			return err
		}
		e.principals.keep(p)
	}
	ev.who = p
	ev.principals, ev.principal, ev.foreign, ev.member = p.uids, p.entity, p.foreign, p.member
	return nil
}

// asMember returns the evaluation with the memberships that are suspended.
func (ev *evaluation) asMember() *evaluation {
	whole := *ev
	whole.principals, whole.principal = ev.member.uids, ev.member.entity
	return &whole
}

// newPrincipal converts an identity. It derives the trust domain and the paths from
// the ID alone, and checks the domain again, because the operator may have removed
// it since the caller proved its identity.
func (e *Engine) newPrincipal(who broker.Identity) (*principal, error) {
	p := &principal{who: who}
	if who.Person != nil { // what is remembered belongs to the engine
		p.who.Person = &broker.Person{Provider: who.Person.Provider, Groups: slices.Clone(who.Person.Groups)}
	}
	kind := principalType(who.Kind)
	if kind == "" || who.ID == "" {
		return nil, fmt.Errorf("no policy applies to a caller of kind %q", who.Kind)
	}
	uids := make([]types.EntityUID, 1, 12) // the capacity fits a usual path with groups
	uids[0] = types.NewEntityUID(kind, types.String(who.ID))
	var paths []string
	if kind == typePerson {
		if err := e.known.checkPerson(who.ID); err != nil {
			return nil, err
		}
	} else {
		domain := broker.TrustDomainOf(who.ID)
		if !strings.HasPrefix(who.ID, spiffeScheme) || !e.known.domains[domain] {
			return nil, fmt.Errorf("trust domain %q is not listed in attest.trust_domains", domain)
		}
		p.federated = domain != e.known.home
		p.foreign = p.federated || who.Attested == broker.AttestedOIDC
		paths = broker.SPIFFEPaths(who.ID)
		for _, path := range paths {
			uids = append(uids, types.NewEntityUID(typePath, types.String(path)))
		}
		uids = append(uids, types.NewEntityUID(typeTrustDomain, types.String(domain)))
	}
	p.suppliers = e.suppliers.Of(who)
	for _, name := range p.suppliers {
		uids = append(uids, types.NewEntityUID(typeSupplier, types.String(name)))
	}
	p.setGroups(uids, paths, e.members)
	if e.allMembers != nil {
		whole := &principal{who: who, federated: p.federated, foreign: p.foreign}
		whole.setGroups(uids, paths, *e.allMembers)
		if len(whole.uids) != len(p.uids) {
			p.member = whole
		}
	}
	return p, nil
}

// setGroups sets the entity of a principal with its groups. uids has the principal and its
// paths.
func (p *principal) setGroups(uids []types.EntityUID, paths []string, m memberships) {
	p.uids = slices.Clip(m.appendClaimed(m.appendListed(slices.Clip(uids), p.who, paths), p.who))
	p.entity = types.Entity{UID: uids[0], Parents: types.NewEntityUIDSet(p.uids[1:]...), Attributes: principalAttributes(p.who)}
}

// attestedUnknown is the attestation of a workload that did not prove its identity in a call.
// Policies that demand one do not permit it anything.
const attestedUnknown = "unknown"

// principalAttributes returns the attributes of the schema. Optional ones are left
// out if they are empty, so that "has" in a policy means that there is a value.
func principalAttributes(who broker.Identity) types.Record {
	m := types.RecordMap{"id": types.String(who.ID)}
	if who.Kind == broker.KindPerson {
		provider, _, _ := strings.Cut(who.ID, "/")
		m["provider"] = types.String(provider)
		return types.NewRecord(m)
	}
	m["trust_domain"] = types.String(broker.TrustDomainOf(who.ID))
	m["attested"] = types.String(cmp.Or(string(who.Attested), attestedUnknown))
	if who.Team != "" {
		m["team"] = types.String(who.Team)
	}
	if who.Purpose != "" {
		m["purpose"] = types.String(who.Purpose)
	}
	if who.Model != "" {
		m["model"] = types.String(who.Model)
	}
	if who.Kind == broker.KindAgent {
		m["accountable"] = stringSet(who.Accountable)
	}
	return types.NewRecord(m)
}

func (e *Engine) setResource(ev *evaluation, q broker.Query) error {
	switch q.Action {
	case broker.ActionRequest:
		return e.setEntitlement(ev, q)
	case broker.ActionView, broker.ActionRevoke, broker.ActionApprove:
		return e.setRequest(ev, q.Request)
	}
	ev.resources = []types.EntityUID{brokerSelf}
	ev.resource.UID = brokerSelf
	return nil
}

// setEntitlement sets the entitlement as the resource. It checks the scopes again:
// an empty set would satisfy every containsAll, and so every permit that bounds the
// scopes with it.
func (e *Engine) setEntitlement(ev *evaluation, q broker.Query) error {
	if q.Entitlement == nil {
		return errors.New("the query names no entitlement")
	}
	known, ok := e.in.Catalogue[q.Entitlement.Name]
	if !ok {
		return fmt.Errorf("entitlement %q is not in the catalogue of this revision", q.Entitlement.Name)
	}
	if len(known.Scopes) > 0 && len(q.Scopes) == 0 {
		return fmt.Errorf("entitlement %q requires at least one scope: %w", known.Name, broker.ErrInvalidScope)
	}
	for _, s := range q.Scopes {
		if !slices.Contains(known.Scopes, s) {
			return fmt.Errorf("entitlement %q has no scope %q: %w", known.Name, s, broker.ErrInvalidScope)
		}
	}
	ev.resources = resourceUIDs(known)
	ev.resource = e.catalogue[ev.resources[0]]
	ev.parameters.Tags = stringRecord(q.Parameters)
	return nil
}

// setRequest sets the request as the resource. The request is in its entitlement
// and system, unless the catalogue no longer has the entitlement.
func (e *Engine) setRequest(ev *evaluation, r *broker.Request) error {
	if r == nil {
		return errors.New("the query names no request")
	}
	ev.resources = []types.EntityUID{types.NewEntityUID(typeRequest, types.String(r.ID.String()))}
	if known, ok := e.in.Catalogue[r.Entitlement]; ok {
		ev.resources = append(ev.resources, resourceUIDs(known)...)
	}
	m := types.RecordMap{
		"requester":   types.String(r.Requester.ID),
		"accountable": stringSet(r.Requester.Accountable),
		"scopes":      stringSet(r.Scopes),
	}
	if r.Requester.Team != "" {
		m["team"] = types.String(r.Requester.Team)
	}
	ev.resource = types.Entity{UID: ev.resources[0], Parents: types.NewEntityUIDSet(ev.resources[1:]...), Attributes: types.NewRecord(m)}
	return nil
}

// newContext returns the context record. An IPv4 address that arrived over an
// IPv6 socket (::ffff:10.0.0.1) becomes an IPv4 address, so that isInRange with
// an IPv4 range matches it.
func newContext(q broker.Query, now time.Time, party types.Record) types.Record {
	m := types.RecordMap{"now": types.NewDatetime(now)}
	if q.SourceIP.IsValid() {
		ip := q.SourceIP.Unmap().WithZone("")
		m["source_ip"] = types.IPAddr(netip.PrefixFrom(ip, ip.BitLen()))
	}
	if q.Action != broker.ActionRequest {
		return types.NewRecord(m)
	}
	m["scopes"] = stringSet(q.Scopes)
	m["ttl"] = types.NewDuration(q.TTL)
	m["duration"] = types.NewDuration(q.Duration)
	m["parameters"] = parametersUID
	m["break_glass"] = types.Boolean(q.BreakGlass)
	m["depth"] = types.Long(q.Depth)
	switch {
	case q.OnBehalfOf != nil:
		m["on_behalf_of"] = party
	case q.Actor != nil:
		m["actor"] = party
	}
	if q.Justification != "" {
		m["justification"] = types.String(q.Justification)
	}
	if q.Ticket != "" {
		m["ticket"] = types.String(q.Ticket)
	}
	return types.NewRecord(m)
}

// resourceUIDs returns an entitlement and its ancestors.
func resourceUIDs(e *broker.Entitlement) []types.EntityUID {
	uids := []types.EntityUID{types.NewEntityUID(typeEntitlement, types.String(e.Name))}
	if e.System != "" {
		uids = append(uids, types.NewEntityUID(typeSystem, types.String(e.System)))
	}
	return uids
}

// catalogueEntities returns the entitlements as Cedar entities.
func catalogueEntities(c broker.Catalogue) map[types.EntityUID]types.Entity {
	entities := make(map[types.EntityUID]types.Entity, len(c))
	for e := range maps.Values(c) {
		uids := resourceUIDs(e)
		m := types.RecordMap{"issuer": types.String(e.Issuer), "scopes": stringSet(e.Scopes)}
		if e.Owner != "" {
			m["owner"] = types.NewEntityUID(typeGroup, types.String(e.Owner))
		}
		entities[uids[0]] = types.Entity{
			UID: uids[0], Parents: types.NewEntityUIDSet(uids[1:]...), Attributes: types.NewRecord(m), Tags: stringRecord(e.Labels),
		}
	}
	return entities
}

func stringSet(items []string) types.Set {
	values := make([]types.Value, len(items))
	for i, s := range items {
		values[i] = types.String(s)
	}
	return types.NewSet(values...)
}

func stringRecord(items map[string]string) types.Record {
	if len(items) == 0 {
		return types.Record{}
	}
	m := make(types.RecordMap, len(items))
	for k, v := range items {
		m[types.String(k)] = types.String(v)
	}
	return types.NewRecord(m)
}
