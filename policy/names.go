package policy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

var (
	domainForm  = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
	segmentForm = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)
)

const spiffeScheme = "spiffe://"

// parseSPIFFE takes a SPIFFE ID apart (SPIFFE-ID, sections 2.1 and 2.2). The
// path of a trust domain itself is empty.
func parseSPIFFE(id string) (domain, path string, err error) {
	rest, ok := strings.CutPrefix(id, spiffeScheme)
	if !ok || len(id) > 2048 {
		return "", "", fmt.Errorf("%q is no SPIFFE ID: it begins with %s and has at most 2048 bytes", id, spiffeScheme)
	}
	domain, path, hasPath := strings.Cut(rest, "/")
	if !domainForm.MatchString(domain) {
		return "", "", fmt.Errorf("%q is no trust domain: it has only a-z, 0-9, '.', '-' and '_'", domain)
	}
	if !hasPath {
		return domain, "", nil
	}
	for segment := range strings.SplitSeq(path, "/") {
		if !segmentForm.MatchString(segment) || segment == "." || segment == ".." {
			return "", "", fmt.Errorf("%q is no SPIFFE path: segments have only letters, digits, '.', '-' and '_', "+
				"are neither empty nor '.' nor '..', and no '/' ends the path", id)
		}
	}
	return domain, path, nil
}

// names are what exists: whatever else a policy or a group names is refused.
type names struct {
	home         string
	domains      set
	providers    set
	channels     set // nil: not checked
	groups       set
	entitlements set
	systems      set
	marks        *broker.Rules
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
		groups: set{}, entitlements: set{}, systems: set{}, marks: &broker.Rules{Marks: in.Marks},
	}
	if in.Channels != nil {
		n.channels = newSet(in.Channels)
	}
	for name, e := range in.Catalogue {
		n.entitlements[name] = true
		if e.System != "" {
			n.systems[e.System] = true
		}
	}
	return n
}

// entity says why a policy may not name uid; nil: it exists.
func (n *names) entity(uid types.EntityUID) error {
	id := string(uid.ID)
	switch uid.Type {
	case typeWorkload, typeAgent:
		return n.workload(uid.Type, id)
	case typePerson:
		return n.person(id)
	case typePath:
		return n.path(id)
	case typeTrustDomain:
		return n.domain(id)
	case typeGroup:
		return n.group(id)
	case typeEntitlement:
		return listed(n.entitlements, "entitlement", id, "add it to the catalogue or correct the name")
	case typeSystem:
		return listed(n.systems, "system", id, "no entitlement of the catalogue belongs to it")
	case typeBroker: // the schema says so too, but cedar-go does not look
		return listed(set{"self": true}, "broker", id, `write Broker::"self"`)
	case typeRequest, typeParameters:
		return fmt.Errorf("a policy can't name a single %s: speak of its attributes instead", uid.Type)
	}
	return nil // actions are the schema's to check
}

func listed(known set, what, id, fix string) error {
	if known[id] {
		return nil
	}
	return fmt.Errorf("%s %q does not exist: %s", what, id, fix)
}

func (n *names) domain(id string) error {
	return listed(n.domains, "trust domain", id, "list it in attest.trust_domains or correct the name")
}

func (n *names) group(id string) error {
	if id == groupOwner || id == groupManager {
		return fmt.Errorf("%q is a term of @approval and no group", id)
	}
	return listed(n.groups, "group", id, "declare it in "+groupsName+" or correct the name")
}

func (n *names) path(id string) error {
	domain, path, err := parseSPIFFE(id)
	if err != nil {
		return err
	}
	if path == "" {
		return fmt.Errorf("%q is a whole trust domain: write TrustDomain::%q", id, domain)
	}
	return n.domain(domain)
}

// workload checks a whole identity, of which the marks say what kind it is. A
// policy that names an agent as a workload would never match.
func (n *names) workload(kind types.EntityType, id string) error {
	domain, _, err := parseSPIFFE(id)
	if err != nil {
		return err
	}
	if err := n.domain(domain); err != nil {
		return err
	}
	who := n.marks.Mark(broker.Identity{ID: id, Kind: broker.KindWorkload})
	if marked := principalType(who.Kind); marked != kind {
		return fmt.Errorf("%q is marked as %s: write %s::%q, or correct attest.workloads", id, who.Kind, marked, id)
	}
	return nil
}

func (n *names) person(id string) error {
	provider, subject, ok := strings.Cut(id, "/")
	if !ok || provider == "" || subject == "" {
		return fmt.Errorf("%q is no person: write <provider>/<subject>, as in %q", id, "login/ana")
	}
	return n.provider(provider)
}

// provider checks a provider of people, if any are known.
func (n *names) provider(id string) error {
	if len(n.providers) == 0 {
		return nil
	}
	return listed(n.providers, "provider", id, "configure it in attest.people or correct the name")
}

// place checks a path or a whole trust domain, as groups list them.
func (n *names) place(id string) error {
	domain, _, err := parseSPIFFE(id)
	if err != nil {
		return err
	}
	return n.domain(domain)
}

// principalType is the entity type of a kind of identity; empty: it has none.
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

// domainOf gives the trust domain of a valid SPIFFE ID.
func domainOf(id string) string {
	domain, _, _ := strings.Cut(strings.TrimPrefix(id, spiffeScheme), "/")
	return domain
}
