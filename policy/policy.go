// Package policy evaluates Cedar policies and returns decisions.
//
// Load reads a policy folder. It rejects the whole folder if a policy does not
// fit the schema, has an unknown annotation, or names something that does not
// exist. The Engine that Load returns is immutable, so every decision matches
// the revision that it names.
//
// Files: source.go reads the folder; groups.go, catalogue.go and names.go read
// and check what policies refer to; suppliers.go and people.go read whose access ends,
// and entries.go what these files have in common; campaigns.go reads reviews.yaml, permissions.go
// lists what a campaign reviews, and suspend.go disables parts of the rules; rule.go loads one policy and obligation.go
// its annotations; token.go, syntax.go and expr.go read its text, and
// schemacheck.go and the type*.go files check it against the schema; index.go
// finds the policies for a request, and permits.go those for an identity; evaluation.go builds what policies see;
// decide.go makes the decision and combine.go adds up its obligations; lint.go
// warns; explain.go and scenario.go serve the authors of policies.
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Inputs holds everything that decisions depend on.
type Inputs struct {
	FS            fs.FS // the folder: *.cedar, groups.yaml, suppliers.yaml, people.yaml, reviews.yaml, *_test.yaml
	Catalogue     broker.Catalogue
	Labels        []broker.WorkloadLabels
	Aliases       [][]string                    // accounts of one person each, the main one first
	HomeDomain    string                        // the broker's own trust domain; all others are federated
	TrustDomains  []string                      // every domain whose workloads may authenticate, including HomeDomain
	OIDCDomains   []string                      // those of TrustDomains whose workloads have OIDC tokens, and no SVIDs
	Internal      []string                      // federated trust domains of the operator's own organization, which need no supplier
	OrphanGrace   map[broker.Kind]time.Duration // how long workloads of a kind get credentials after the last accountable person ended
	Providers     []string                      // login providers, such as "login" in "login/ana"; empty: not checked
	Channels      []string                      // notification channels, such as "slack:dba"; nil: not checked
	TicketStates  []string                      // states that the ticket systems define, such as "open"; empty: there is no ticket system
	TicketWindows bool                          // a ticket system has change windows
}

// An Engine evaluates one set of policies. It is immutable and safe for
// concurrent use.
type Engine struct {
	compiled

	principals principals // that asked before
	decisions  decisions  // on their requests
}

// compiled is the part of an engine that Load or Suspend makes, and that never changes.
type compiled struct {
	in        Inputs
	known     *names
	groups    map[string]*group
	suppliers broker.Suppliers
	people    map[string]broker.PersonEnd
	members   memberships // without those that are suspended
	rules     map[cedar.PolicyID]*rule
	index     *index
	standing  *standing
	catalogue map[types.EntityUID]types.Entity
	contents  map[string][]byte
	files     map[string]audit.Digest
	revision  audit.Digest
	warnings  []string
	governs   bool // there is a suppliers.yaml, so that federated domains need a supplier
	campaigns map[string]*broker.CampaignPlan
	covers    map[cedar.PolicyID]*coverage // of the permits
	peerIndex
	suspended suspensions
	base      audit.Digest // the revision without the suspensions

	allMembers *memberships    // with those that are suspended; nil: none is
	reads      map[string]bool // attributes of the context that some policy reads
}

// Names of the contents that do not come from the policy folder.
const (
	schemaName     = "schema.cedarschema"
	catalogueName  = "catalogue.json"
	identitiesName = "identities.json"
)

// Load reads, checks and compiles the policies. Its error joins one *Problem
// per mistake. The caller must not change the inputs afterwards.
func Load(in Inputs) (*Engine, error) {
	if !slices.Contains(in.TrustDomains, in.HomeDomain) {
		return nil, fmt.Errorf("loading policies: the home trust domain %q is not one of the trust domains %q: add it to attest.trust_domains", in.HomeDomain, in.TrustDomains)
	}
	schema, err := compiledSchema()
	if err != nil {
		return nil, err
	}
	dir, err := readFolder(in.FS)
	if err != nil {
		return nil, err
	}
	var ps problems
	e := &Engine{compiled: compiled{in: in, known: newNames(in)}}
	e.groups = loadGroups(dir.groups, e.known, &ps)
	e.suppliers = loadSuppliers(dir.suppliers, e.known, &ps)
	e.governs = dir.suppliers != nil
	e.people = loadPeople(dir.people, e.known, &ps)
	campaigns := loadCampaigns(dir.campaigns, e.known, &ps)
	checkCatalogue(in.Catalogue, e.known, &ps)
	checkInternal(in, e.known, &ps)
	checkLabels(in.Labels, in.Catalogue, e.known, &ps)
	checkAliases(in.Aliases, e.known, &ps)
	cover := newCoverages(in.Catalogue)
	l := ruleLoader{known: e.known, coverages: cover, schema: schema, problems: &ps, rules: map[cedar.PolicyID]*rule{}, reads: map[string]bool{}}
	for _, src := range dir.cedar {
		l.load(src)
	}
	campaigns.checkPermits(permitIDs(l.rules))
	if len(l.rules) > maxPolicies {
		return nil, fmt.Errorf("loading policies: %d policies exceed the limit of %d", len(l.rules), maxPolicies)
	}
	if err := ps.err(); err != nil {
		return nil, err
	}
	e.rules, e.reads, e.campaigns = l.rules, l.reads, campaigns.plans
	if err := e.compile(dir, cover); err != nil {
		return nil, err
	}
	return e, nil
}

// compile derives the engine's other fields from the rules, the groups and the
// inputs. Every rule is valid by then.
func (e *Engine) compile(dir folder, cover *coverages) error {
	e.members = newMemberships(e.groups)
	e.index = newIndex(e.rules)
	e.standing = newStanding(e.sorted(), cover)
	e.covers = map[cedar.PolicyID]*coverage{}
	for id, r := range e.rules {
		r.lasting = e.isLasting(r)
		if r.permit {
			e.covers[id] = cover.of(r.resource)
		}
	}
	e.peerIndex = newPeerIndex(e.sorted(), e.in.Labels, e.groups)
	e.catalogue = catalogueEntities(e.in.Catalogue)
	catalogue, err1 := renderCatalogue(e.in.Catalogue)
	identities, err2 := renderIdentities(e.in)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	e.contents = map[string][]byte{schemaName: schemaText, catalogueName: catalogue, identitiesName: identities}
	for _, src := range dir.cedar {
		e.contents[src.name] = src.raw
	}
	for _, src := range []*source{dir.groups, dir.suppliers, dir.people, dir.campaigns} {
		if src != nil {
			e.contents[src.name] = src.raw
		}
	}
	e.files, e.revision = digests(e.contents)
	e.base = e.revision
	e.warnings = lint(e, dir, cover)
	return nil
}

// digests returns the digest of each content, and the revision: the digest of
// the sorted list of names and digests.
func digests(contents map[string][]byte) (map[string]audit.Digest, audit.Digest) {
	files := make(map[string]audit.Digest, len(contents))
	all := sha256.New()
	_, _ = io.WriteString(all, "accessbroker/revision/v1\n")
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		d := sha256.Sum256(contents[name])
		files[name] = d
		_, _ = fmt.Fprintf(all, "%s %q\n", hex.EncodeToString(d[:]), name)
	}
	return files, audit.Digest(all.Sum(nil))
}

// Rules returns the engine with the catalogue, groups and labels that it was
// loaded with, so that the broker replaces them together.
func (e *Engine) Rules() *broker.Rules {
	groups := make(map[string]broker.Group, len(e.groups))
	for name, g := range e.groups {
		groups[name] = broker.Group{Members: g.Members, Workloads: g.Workloads, Claimed: !g.fullyListed(), Notify: g.Notify}
	}
	return &broker.Rules{
		Policy: e, Catalogue: e.in.Catalogue, Groups: groups, Labels: e.known.labels.Labels, People: e.known.labels.People,
		Suppliers: e.suppliers, PersonEnds: e.people, OrphanGrace: e.in.OrphanGrace,
		TrustDomains: e.in.TrustDomains, Providers: e.in.Providers, Revision: e.revision, Files: e.Files(),
		Campaigns: e.campaigns, Permissions: e, Suspensions: e.suspended.list, Base: e.base,
	}
}

// Revision returns the digest of everything that a decision reads.
func (e *Engine) Revision() audit.Digest { return e.revision }

// Files returns the digests that make up the revision, by name: those of the
// *.cedar files, groups.yaml, suppliers.yaml and people.yaml, and of the rendered schema, catalogue and
// identities.
func (e *Engine) Files() map[string]audit.Digest { return maps.Clone(e.files) }

// Contents returns the bytes whose digests Files returns. The caller must not
// change them.
func (e *Engine) Contents() map[string][]byte { return maps.Clone(e.contents) }

// Len returns the number of policies.
func (e *Engine) Len() int { return len(e.rules) }

// Groups implements broker.Policy: it returns the sorted names of the groups
// that list who, and of those that the claims of who's login provider add.
func (e *Engine) Groups(who broker.Identity) (listed, claimed []string) {
	return groupNames(e.members.appendListed(nil, who, broker.SPIFFEPaths(who.ID))),
		groupNames(e.members.appendClaimed(nil, who))
}

func groupNames(uids []types.EntityUID) (names []string) {
	for _, uid := range uids {
		names = append(names, string(uid.ID))
	}
	slices.Sort(names)
	return slices.Compact(names)
}
