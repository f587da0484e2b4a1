package policy

import (
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

// A question is a query in Cedar's words. It is the entity store of its own
// decision: the few entities that depend on the query are in it, and the
// catalogue's are shared by all.
type question struct {
	request    cedar.Request
	action     int
	principals []types.EntityUID // the principal and all its ancestors
	resources  []types.EntityUID // the resource and all its ancestors
	foreign    bool              // the principal is of a federated trust domain

	principal, resource, parameters types.Entity
	catalogue                       map[types.EntityUID]types.Entity
}

var _ types.EntityGetter = (*question)(nil)

// Get implements types.EntityGetter. Parents are given with all their own, so
// that Cedar never has to climb.
func (q *question) Get(uid types.EntityUID) (types.Entity, bool) {
	switch uid {
	case q.principal.UID:
		return q.principal, true
	case q.resource.UID:
		return q.resource, true
	case q.parameters.UID:
		return q.parameters, true
	}
	if uid.Type != typeEntitlement {
		return types.Entity{}, false
	}
	e, ok := q.catalogue[uid]
	return e, ok
}

// ask turns a query into a question. An error means that it can't be asked,
// which is a denial.
func (e *Engine) ask(q broker.Query, now time.Time) (*question, error) {
	a := &question{action: actionNumber(q.Action), catalogue: e.catalogue}
	if a.action < 0 {
		return nil, fmt.Errorf("unknown action %q", q.Action)
	}
	if err := e.askAbout(a, q.Principal); err != nil {
		return nil, err
	}
	a.parameters.UID = parametersUID
	if err := e.askFor(a, q); err != nil {
		return nil, err
	}
	a.request = cedar.Request{
		Principal: a.principal.UID,
		Action:    types.NewEntityUID(typeAction, types.String(q.Action)),
		Resource:  a.resource.UID,
		Context:   newContext(q, now),
	}
	return a, nil
}

var parametersUID = types.NewEntityUID(typeParameters, "of the request")

// askAbout sets the principal. Its ID alone says where it is from, and is
// checked once more: the rules may be newer than the proof.
func (e *Engine) askAbout(a *question, who broker.Identity) error {
	kind := principalType(who.Kind)
	if kind == "" || who.ID == "" {
		return fmt.Errorf("a caller of kind %q is not policy's to decide about", who.Kind)
	}
	uids := make([]types.EntityUID, 1, 12)
	uids[0] = types.NewEntityUID(kind, types.String(who.ID))
	var paths []string
	if kind == typePerson {
		if err := e.known.person(who.ID); err != nil {
			return err
		}
	} else {
		domain := domainOf(who.ID)
		if !strings.HasPrefix(who.ID, spiffeScheme) || !e.known.domains[domain] {
			return fmt.Errorf("trust domain %q is not listed", domain)
		}
		a.foreign = domain != e.known.home
		paths = broker.SPIFFEPaths(who.ID)
		for _, p := range paths {
			uids = append(uids, types.NewEntityUID(typePath, types.String(p)))
		}
		uids = append(uids, types.NewEntityUID(typeTrustDomain, types.String(domain)))
	}
	a.principals = e.members.appendClaimed(e.members.appendListed(uids, who, paths), who)
	a.principal = types.Entity{UID: uids[0], Parents: types.NewEntityUIDSet(a.principals[1:]...), Attributes: principalAttributes(who)}
	return nil
}

func principalAttributes(who broker.Identity) types.Record {
	m := types.RecordMap{"id": types.String(who.ID)}
	if who.Kind == broker.KindPerson {
		provider, _, _ := strings.Cut(who.ID, "/")
		m["provider"] = types.String(provider)
		return types.NewRecord(m)
	}
	m["trust_domain"] = types.String(domainOf(who.ID))
	if who.Team != "" {
		m["team"] = types.String(who.Team)
	}
	if who.Kind == broker.KindAgent {
		m["accountable"] = stringSet(who.Accountable)
	}
	return types.NewRecord(m)
}

// askFor sets the resource.
func (e *Engine) askFor(a *question, q broker.Query) error {
	switch q.Action {
	case broker.ActionRequest:
		return e.askForEntitlement(a, q)
	case broker.ActionView, broker.ActionRevoke, broker.ActionApprove:
		return e.askForRequest(a, q.Request)
	}
	a.resources = []types.EntityUID{brokerSelf}
	a.resource.UID = brokerSelf
	return nil
}

// askForEntitlement checks the scopes once more: the empty set would satisfy
// every containsAll.
func (e *Engine) askForEntitlement(a *question, q broker.Query) error {
	if q.Entitlement == nil {
		return errors.New("which entitlement?")
	}
	known, ok := e.in.Catalogue[q.Entitlement.Name]
	if !ok {
		return fmt.Errorf("entitlement %q is not in the catalogue that was loaded with the policies", q.Entitlement.Name)
	}
	if len(known.Scopes) > 0 && len(q.Scopes) == 0 {
		return fmt.Errorf("entitlement %q has scopes and none is asked for: %w", known.Name, broker.ErrInvalidScope)
	}
	for _, s := range q.Scopes {
		if !slices.Contains(known.Scopes, s) {
			return fmt.Errorf("entitlement %q has no scope %q: %w", known.Name, s, broker.ErrInvalidScope)
		}
	}
	a.resources = resourceUIDs(known)
	a.resource = e.catalogue[a.resources[0]]
	a.parameters.Tags = stringRecord(q.Parameters)
	return nil
}

// askForRequest puts the request in its entitlement, if the catalogue still
// has that.
func (e *Engine) askForRequest(a *question, r *broker.Request) error {
	if r == nil {
		return errors.New("which request?")
	}
	a.resources = []types.EntityUID{types.NewEntityUID(typeRequest, types.String(r.ID.String()))}
	if known, ok := e.in.Catalogue[r.Entitlement]; ok {
		a.resources = append(a.resources, resourceUIDs(known)...)
	}
	m := types.RecordMap{
		"requester":   types.String(r.Requester.ID),
		"accountable": stringSet(r.Requester.Accountable),
		"scopes":      stringSet(r.Scopes),
	}
	if r.Requester.Team != "" {
		m["team"] = types.String(r.Requester.Team)
	}
	a.resource = types.Entity{UID: a.resources[0], Parents: types.NewEntityUIDSet(a.resources[1:]...), Attributes: types.NewRecord(m)}
	return nil
}

func newContext(q broker.Query, now time.Time) types.Record {
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
	if q.Justification != "" {
		m["justification"] = types.String(q.Justification)
	}
	if q.Ticket != "" {
		m["ticket"] = types.String(q.Ticket)
	}
	return types.NewRecord(m)
}

// resourceUIDs are an entitlement and its ancestors.
func resourceUIDs(e *broker.Entitlement) []types.EntityUID {
	uids := []types.EntityUID{types.NewEntityUID(typeEntitlement, types.String(e.Name))}
	if e.System != "" {
		uids = append(uids, types.NewEntityUID(typeSystem, types.String(e.System)))
	}
	return uids
}

// catalogueEntities are the entitlements as policies see them.
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
