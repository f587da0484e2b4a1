package policy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"accessbroker.internal/broker"
)

// A group is one entry of groups.yaml.
type group struct {
	Members   []string `yaml:"members"`   // people, "<provider>/<subject>"
	Claims    []claim  `yaml:"claims"`    // people by what their provider says of them
	Workloads []string `yaml:"workloads"` // SPIFFE paths: whatever is at or below one; or whole trust domains
	Notify    []plain  `yaml:"notify"`    // how to tell the group, "slack:dba"
}

// A claim makes members of everybody whom the provider puts in its group.
type claim struct {
	Provider string `yaml:"provider"`
	Group    string `yaml:"group"`
}

// closed says whether the members that are listed are all there can be.
func (g *group) closed() bool { return len(g.Claims) == 0 }

// groupsFile is what the loader knows of groups.yaml.
type groupsFile struct {
	*source
	lines    map[string]int // of the groups' names
	problems *problems
}

// loadGroups reads groups.yaml; src may be nil. It adds the names to known, those
// of malformed groups too: what names them is no further problem.
func loadGroups(src *source, known *names, ps *problems) map[string]*group {
	groups := map[string]*group{}
	if src == nil {
		return groups
	}
	f := groupsFile{src, map[string]int{}, ps}
	for name, node := range f.entries() {
		known.groups[name] = true
		g := &group{}
		if err := yaml.NodeToValue(node, g, yaml.Strict()); err != nil {
			f.report(yamlProblem(f.source, err))
			continue
		}
		groups[name] = g
	}
	for name, g := range groups {
		f.check(name, g, known)
	}
	return groups
}

func (f *groupsFile) report(p Problem) { f.problems.add(p) }

// entries gives the groups' nodes by name.
func (f *groupsFile) entries() map[string]ast.Node {
	file, err := parser.ParseBytes(f.text, 0)
	if err != nil {
		f.report(yamlProblem(f.source, err))
		return nil
	}
	entries := map[string]ast.Node{}
	for _, doc := range file.Docs {
		switch body := doc.Body.(type) {
		case nil:
		case *ast.MappingNode:
			for _, v := range body.Values {
				f.entry(entries, v)
			}
		case *ast.MappingValueNode:
			f.entry(entries, body)
		case *ast.NullNode, *ast.CommentGroupNode:
		default:
			f.report(Problem{File: f.name, Line: 1, Column: 1, Text: "write one group a key, as in \"dba: {members: [login/ana]}\""})
		}
	}
	return entries
}

func (f *groupsFile) entry(entries map[string]ast.Node, v *ast.MappingValueNode) {
	at := v.Key.GetToken().Position
	name := v.Key.GetToken().Value
	f.lines[name] = at.Line
	switch _, twice := entries[name]; {
	case twice:
		f.report(Problem{File: f.name, Line: at.Line, Column: at.Column, Text: fmt.Sprintf("group %q stands twice", name)})
	case !groupForm.MatchString(name) || name == groupOwner || name == groupManager:
		f.report(Problem{File: f.name, Line: at.Line, Column: at.Column,
			Text: fmt.Sprintf("%q is no name for a group: use a-z, 0-9, '.', '-' and '_', and neither %q nor %q", name, groupOwner, groupManager)})
	default:
		entries[name] = v.Value
	}
}

// check reports what a group names and does not exist.
func (f *groupsFile) check(name string, g *group, known *names) {
	for _, m := range g.Members {
		f.unless(known.person(m), name, m)
	}
	for _, w := range g.Workloads {
		f.unless(known.place(w), name, w)
	}
	for _, c := range g.Claims {
		f.unless(known.provider(c.Provider), name, c.Provider)
		if c.Provider == "" || c.Group == "" {
			f.unless(errors.New("a claim names a provider and a group"), name, "claims")
		}
	}
	for _, c := range g.Notify {
		if known.channels != nil && !known.channels[string(c)] {
			f.unless(fmt.Errorf("there is no channel %q (notify, in the operator's file)", c), name, string(c))
		}
	}
	for _, list := range [][]string{g.Members, g.Workloads, toStrings(g.Notify)} {
		if twice := duplicate(list); twice != "" {
			f.unless(fmt.Errorf("%q stands twice", twice), name, twice)
		}
	}
}

// unless reports err, if there is one, at needle in the entry of the group.
func (f *groupsFile) unless(err error, name, needle string) {
	if err == nil {
		return
	}
	from := 0
	for range f.lines[name] - 1 {
		from += bytes.IndexByte(f.text[from:], '\n') + 1
	}
	line, column := place{f.source, from, len(f.text)}.at(needle)
	f.report(Problem{File: f.name, Line: line, Column: column, Text: fmt.Sprintf("group %q: %v", name, err)})
}

func duplicate(list []string) string {
	sorted := slices.Sorted(slices.Values(list))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return sorted[i]
		}
	}
	return ""
}

// memberships answer which groups an identity is in.
type memberships struct {
	listed  map[string][]types.EntityUID // by person, SPIFFE path or "spiffe://<trust domain>"
	claimed map[claim][]types.EntityUID
}

func newMemberships(groups map[string]*group) memberships {
	m := memberships{map[string][]types.EntityUID{}, map[claim][]types.EntityUID{}}
	for name, g := range groups {
		uid := types.NewEntityUID(typeGroup, types.String(name))
		for _, who := range slices.Concat(g.Members, g.Workloads) {
			m.listed[who] = append(m.listed[who], uid)
		}
		for _, c := range g.Claims {
			m.claimed[c] = append(m.claimed[c], uid)
		}
	}
	return m
}

// appendListed appends the groups that list who. A group may be among them
// twice.
func (m memberships) appendListed(uids []types.EntityUID, who broker.Identity, paths []string) []types.EntityUID {
	if len(m.listed) == 0 {
		return uids
	}
	if who.Kind == broker.KindPerson {
		return append(uids, m.listed[who.ID]...)
	}
	for _, p := range paths {
		uids = append(uids, m.listed[p]...)
	}
	return append(uids, m.listed[spiffeScheme+domainOf(who.ID)]...)
}

// appendClaimed appends the groups that a person is in by what its provider
// says: of this provider only, so that two providers may have groups of one
// name.
func (m memberships) appendClaimed(uids []types.EntityUID, who broker.Identity) []types.EntityUID {
	if who.Kind != broker.KindPerson || who.Person == nil {
		return uids
	}
	for _, name := range who.Person.Groups {
		uids = append(uids, m.claimed[claim{who.Person.Provider, name}]...)
	}
	return uids
}
