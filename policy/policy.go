// Package policy turns a query into a decision by Cedar policies.
//
// Load reads the folder of policies and refuses it whole if anything in it is
// not understood: a policy that does not fit the schema, an annotation that
// does not exist, a name of nothing. What it returns never changes, so a
// decision and the revision it names always belong together.
//
// Where to look: obligation.go says what annotations mean; rule.go what makes
// a policy load; index.go how a decision stays cheap; question.go what
// policies see; decide.go how the answer is made; lint.go what loads and is
// still suspect; explain.go and scenario.go what people use to understand and
// test their policies.
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

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Inputs are everything that decisions depend on.
type Inputs struct {
	FS           fs.FS // the folder: *.cedar, groups.yaml, *_test.yaml
	Catalogue    broker.Catalogue
	Marks        []broker.Mark
	HomeDomain   string   // the broker's own trust domain; the others are federated
	TrustDomains []string // all that may authenticate, the home domain among them
	Providers    []string // of people: the "login" of "login/ana"; empty: people are not checked for theirs
	Channels     []string // that groups may be told by, "slack:dba"; nil: groups are not checked for theirs
}

// An Engine decides by one set of rules. It is immutable and safe for
// concurrent use.
type Engine struct {
	in        Inputs
	known     *names
	groups    map[string]*group
	members   memberships
	rules     map[cedar.PolicyID]*rule
	index     *index
	catalogue map[types.EntityUID]types.Entity
	contents  map[string][]byte
	files     map[string]audit.Digest
	revision  audit.Digest
	warnings  []string
}

// Names of the contents that are no file of the folder.
const (
	schemaName     = "schema.cedarschema"
	catalogueName  = "catalogue.json"
	identitiesName = "identities.json"
)

// Load reads, checks and compiles the rules. Its error joins a *Problem for
// each thing that is wrong. The inputs must not be changed afterwards.
func Load(in Inputs) (*Engine, error) {
	if !slices.Contains(in.TrustDomains, in.HomeDomain) {
		return nil, fmt.Errorf("loading policies: the home trust domain %q is not among the trust domains %q", in.HomeDomain, in.TrustDomains)
	}
	validator, err := newValidator()
	if err != nil {
		return nil, err
	}
	dir, err := readFolder(in.FS)
	if err != nil {
		return nil, err
	}
	var ps problems
	e := &Engine{in: in, known: newNames(in)}
	e.groups = loadGroups(dir.groups, e.known, &ps)
	checkCatalogue(in.Catalogue, e.known, &ps)
	checkMarks(in.Marks, e.known, &ps)
	l := ruleLoader{known: e.known, catalogue: in.Catalogue, validator: validator, problems: &ps, rules: map[cedar.PolicyID]*rule{}}
	for _, src := range dir.cedar {
		l.load(src)
	}
	if len(l.rules) > maxPolicies {
		return nil, fmt.Errorf("loading policies: %d are more than %d", len(l.rules), maxPolicies)
	}
	if err := ps.err(); err != nil {
		return nil, err
	}
	e.rules = l.rules
	if err := e.compile(dir); err != nil {
		return nil, err
	}
	return e, nil
}

// compile derives everything else from what was read.
func (e *Engine) compile(dir folder) error {
	e.members = newMemberships(e.groups)
	e.index = newIndex(e.rules)
	for _, r := range e.rules {
		r.lasting = e.lasts(r)
	}
	e.catalogue = catalogueEntities(e.in.Catalogue)
	catalogue, err1 := renderCatalogue(e.in.Catalogue)
	identities, err2 := renderIdentities(e.in)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	e.contents = map[string][]byte{schemaName: schemaText, catalogueName: catalogue, identitiesName: identities}
	for _, src := range dir.cedar {
		e.contents[src.name] = src.text
	}
	if dir.groups != nil {
		e.contents[groupsName] = dir.groups.text
	}
	e.files, e.revision = digests(e.contents)
	e.warnings = lint(e, dir)
	return nil
}

// digests hashes each content, and the list of names and hashes.
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

// Rules gives the engine together with the catalogue and the marks that it was
// loaded with, so that what decides and what is decided about belong together.
func (e *Engine) Rules() *broker.Rules {
	groups := make(map[string]broker.Group, len(e.groups))
	for name, g := range e.groups {
		groups[name] = broker.Group{Members: g.Members, Claimed: !g.closed(), Notify: toStrings(g.Notify)}
	}
	return &broker.Rules{
		Policy: e, Catalogue: e.in.Catalogue, Groups: groups, Marks: e.in.Marks, Revision: e.revision, Files: e.Files(),
	}
}

// Revision names everything that a decision reads, by its content.
func (e *Engine) Revision() audit.Digest { return e.revision }

// Files gives the digests of what the revision consists of, by name: the
// files of the folder, the schema, the catalogue and what makes an identity.
func (e *Engine) Files() map[string]audit.Digest { return maps.Clone(e.files) }

// Contents gives what Files has the digests of. The bytes must not be changed.
func (e *Engine) Contents() map[string][]byte { return maps.Clone(e.contents) }

// Len is the number of policies.
func (e *Engine) Len() int { return len(e.rules) }

// Groups implements broker.Policy.
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
