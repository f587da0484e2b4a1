package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

const spiffeScheme = "spiffe://"

// names holds every name that policies, groups and labels may refer to.
type names struct {
	home         string
	domains      set
	providers    set
	channels     set // nil: not checked
	ticketStates set
	windows      bool // a ticket system has change windows
	groups       set
	anyGroup     bool // groups.yaml can't be read, which is reported once
	suppliers    set
	anySupplier  bool // suppliers.yaml can't be read, which is reported once
	entitlements set
	systems      set
	tags         map[types.EntityType]set // labels of entitlements, and their parameters
	labels       *broker.Rules
}

type set map[string]bool

func newSet(items []string) set {
	s := make(set, len(items))
	for _, i := range items {
		s[i] = true
	}
	return s
}

func newNames(in Inputs) *names {
	n := &names{
		home: in.HomeDomain, domains: newSet(in.TrustDomains), providers: newSet(in.Providers),
		ticketStates: newSet(in.TicketStates), windows: in.TicketWindows, groups: set{}, suppliers: set{}, entitlements: set{}, systems: set{}, labels: linkedLabels(in),
		tags: map[types.EntityType]set{typeEntitlement: {}, typeParameters: {}, typeArguments: {}},
	}
	if in.Channels != nil {
		n.channels = newSet(in.Channels)
	}
	for name, e := range in.Catalogue {
		n.entitlements[name] = true
		if e.System != "" {
			n.systems[e.System] = true
		}
		for key := range e.Labels {
			n.tags[typeEntitlement][key] = true
		}
		for key := range e.Parameters {
			n.tags[typeParameters][key] = true
		}
		for _, key := range argumentNames(e) {
			n.tags[typeArguments][key] = true
		}
	}
	return n
}

// linkedLabels returns the labels of workloads, with the bounds of broader paths, and the
// linked accounts. The owners of a workload are accountable with all of their accounts.
func linkedLabels(in Inputs) *broker.Rules {
	people, err := broker.NewPeople(in.Aliases)
	if err != nil { // checkAliases reports it
		return &broker.Rules{Labels: broker.NestLabels(in.Labels)}
	}
	labels := broker.NestLabels(in.Labels)
	for i := range labels {
		labels[i].Accountable = people.Expand(labels[i].Accountable)
	}
	return &broker.Rules{Labels: labels, People: people}
}

// checkEntity returns an error if a policy must not name uid. It does not check
// actions, because the schema does.
func (n *names) checkEntity(uid types.EntityUID) error {
	id := string(uid.ID)
	switch uid.Type {
	case typeWorkload, typeAgent:
		return n.checkWorkload(uid.Type, id)
	case typePerson:
		return n.checkPerson(id)
	case typePath:
		return n.checkPath(id)
	case typeTrustDomain:
		return n.checkDomain(id)
	case typeGroup:
		return n.checkGroup(id)
	case typeSupplier:
		return n.checkSupplier(id)
	case typeEntitlement:
		return checkExists(n.entitlements, "entitlement", id, "add it to the catalogue or correct the name")
	case typeSystem:
		return checkExists(n.systems, "system", id, "set it on an entitlement of the catalogue or correct the name")
	case typeBroker: // an enum in the schema, but cedar-go does not check its values
		return checkExists(set{"self": true}, "broker", id, `write Broker::"self"`)
	case typeRequest, typeParameters, typeArguments:
		return fmt.Errorf("a policy can't name a single %s: use its attributes in a condition", uid.Type)
	}
	return nil
}

func checkExists(known set, what, id, fix string) error {
	if known[id] {
		return nil
	}
	near := broker.Nearest(id, slices.Sorted(maps.Keys(known)))
	return fmt.Errorf("%s %q does not exist%s", what, id, cmp.Or(broker.DidYouMean(near), ": "+fix))
}

func (n *names) checkDomain(id string) error {
	return checkExists(n.domains, "trust domain", id, "list it in attest.trust_domains or correct the name")
}

func (n *names) checkGroup(id string) error {
	if id == groupOwner || id == groupManager {
		return fmt.Errorf("%q is reserved for @approval and is not a group: name a group of %s", id, groupsName)
	}
	if n.anyGroup {
		return nil
	}
	return checkExists(n.groups, "group", id, "declare it in "+groupsName+" or correct the name")
}

func (n *names) checkSupplier(id string) error {
	if n.anySupplier {
		return nil
	}
	return checkExists(n.suppliers, "supplier", id, "declare it in "+suppliersName+" or correct the name")
}

// checkTerms returns an error for terms that no ticket can meet, because the broker does
// not ask any ticket system, or because none has the state.
func (n *names) checkTerms(t broker.TicketTerms) error {
	switch {
	case len(t.TicketStates)+len(t.TicketAssignees) == 0 && !t.ChangeWindow:
		return nil
	case len(n.ticketStates) == 0:
		return errors.New("@ticket_state, @ticket_assignee and @change_window need a ticket system: add it to tickets in the operator's file")
	case t.ChangeWindow && !n.windows:
		return errors.New("@change_window needs a ticket system with change windows: name the fields of the window in the operator's file (GitHub's issues have none)")
	}
	for _, state := range t.TicketStates {
		if err := checkExists(n.ticketStates, "ticket state", state, "add it to the states of a tracker in the operator's file, or correct the name"); err != nil {
			return err
		}
	}
	return nil
}

func (n *names) checkPath(id string) error {
	domain, path, err := broker.ParseSPIFFEID(id)
	if err != nil {
		return err
	}
	if path == "" {
		return fmt.Errorf("%q is a whole trust domain: write TrustDomain::%q", id, domain)
	}
	return n.checkDomain(domain)
}

// checkWorkload checks a SPIFFE ID that a policy names as Workload or Agent.
// The operator's labels decide which of the two it is; a policy with the wrong
// one would never match.
func (n *names) checkWorkload(kind types.EntityType, id string) error {
	if err := n.checkAnyWorkload(id); err != nil {
		return err
	}
	who := n.labels.WithLabels(broker.Identity{ID: id, Kind: broker.KindWorkload})
	if labelled := principalType(who.Kind); labelled != kind {
		return fmt.Errorf("%q has kind %s: write %s::%q, or change its kind in attest.workloads", id, who.Kind, labelled, id)
	}
	return nil
}

// checkAnyWorkload checks a SPIFFE ID of a workload of either kind.
func (n *names) checkAnyWorkload(id string) error {
	domain, _, err := broker.ParseWorkloadID(id)
	if err != nil {
		return err
	}
	return n.checkDomain(domain)
}

func (n *names) checkPerson(id string) error {
	provider, _, err := broker.ParsePerson(id)
	if err != nil {
		return err
	}
	return n.checkProvider(provider)
}

// checkProvider checks a login provider. Without configured providers it
// accepts every name.
func (n *names) checkProvider(id string) error {
	if len(n.providers) == 0 {
		return nil
	}
	return checkExists(n.providers, "provider", id, "configure it in attest.people or correct the name")
}

// checkPathOrDomain checks a SPIFFE path or a trust domain's SPIFFE ID, as
// groups and labels name them.
func (n *names) checkPathOrDomain(id string) error {
	domain, _, err := broker.ParseSPIFFEID(id)
	if err != nil {
		return err
	}
	return n.checkDomain(domain)
}

// principalType returns the entity type of a kind of identity, or "" if the
// kind can't be a principal.
func principalType(kind broker.Kind) types.EntityType {
	switch kind {
	case broker.KindWorkload:
		return typeWorkload
	case broker.KindAgent:
		return typeAgent
	case broker.KindPerson:
		return typePerson
	}
	return ""
}
