package policy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// A group is one entry of groups.yaml.
type group struct {
	Members   []string `yaml:"members"`   // people, "<provider>/<subject>"
	Claims    []claim  `yaml:"claims"`    // people whose provider claims one of these groups
	Workloads []string `yaml:"workloads"` // SPIFFE paths, with everything below them; or trust domains
	Notify    []string `yaml:"notify"`    // channels, "slack:dba"
}

// A claim makes every person a member who is in the provider's group of this name.
type claim struct {
	Provider string `yaml:"provider"`
	Group    string `yaml:"group"`
}

// fullyListed reports whether the listed members are all the members. With
// claims, only the provider knows.
func (g *group) fullyListed() bool { return len(g.Claims) == 0 }

// loadGroups reads groups.yaml; src may be nil. It adds every name to known, even
// if the group is malformed, so that one mistake leads to one problem. If the names can't
// be read, known accepts all of them.
func loadGroups(src *source, known *names, ps *problems) map[string]*group {
	groups := map[string]*group{}
	if src == nil {
		return groups
	}
	f := groupsFile{newEntriesFile(src, ps, "group", `dba: {members: [login/ana]}`, checkGroupName)}
	entries := f.entries()
	known.anyGroup = f.unknown
	for name := range f.lines { // also those that are not valid
		known.groups[name] = true
	}
	for name, node := range entries {
		if g := decodeEntry[group](f.entriesFile, name, node); g != nil {
			groups[name] = g
		}
	}
	for name, g := range groups {
		f.check(name, g, known)
	}
	return groups
}

func checkGroupName(name string) error {
	if !groupForm.MatchString(name) || name == groupOwner || name == groupManager {
		return fmt.Errorf("%q can't name a group: use 1 to 64 of a-z, 0-9, '.', '-' and '_', start with a letter or digit, and avoid the reserved %q and %q", name, groupOwner, groupManager)
	}
	return nil
}

// A groupsFile is groups.yaml while it is loaded.
type groupsFile struct{ *entriesFile }

// check reports names in a group that do not exist and duplicates.
func (f *groupsFile) check(name string, g *group, known *names) {
	for _, m := range g.Members {
		f.reportAt(name, m, known.checkPerson(m))
	}
	for _, w := range g.Workloads {
		f.reportAt(name, w, known.checkPathOrDomain(w))
	}
	for _, c := range g.Claims {
		f.reportAt(name, c.Provider, known.checkProvider(c.Provider))
		if c.Provider == "" || c.Group == "" {
			f.reportAt(name, "claims", errors.New("a claim needs both provider and group"))
		}
	}
	for _, c := range g.Notify {
		if known.channels != nil && !known.channels[c] {
			f.reportAt(name, c, fmt.Errorf("channel %q does not exist: configure it in notify or correct the name", c))
		}
	}
	for _, list := range [][]string{g.Members, g.Workloads, g.Notify} {
		if twice := duplicate(list); twice != "" {
			f.reportAt(name, twice, fmt.Errorf("%q appears twice: remove one", twice))
		}
	}
}

// duplicate returns an item that occurs twice in list, or "".
func duplicate(list []string) string {
	sorted := slices.Sorted(slices.Values(list))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return sorted[i]
		}
	}
	return ""
}

// memberships is the index from identities to groups.
type memberships struct {
	listed  map[string][]types.EntityUID // by person, SPIFFE path or trust domain ("spiffe://acme.test")
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

// appendListed appends the groups that list who. It may append a group twice.
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
	return append(uids, m.listed[spiffeScheme+broker.TrustDomainOf(who.ID)]...)
}

// appendClaimed appends the groups that the claims of a person's provider add.
// Claims match only with their provider, because two providers may have groups
// of the same name.
func (m memberships) appendClaimed(uids []types.EntityUID, who broker.Identity) []types.EntityUID {
	if who.Kind != broker.KindPerson || who.Person == nil {
		return uids
	}
	for _, name := range who.Person.Groups {
		uids = append(uids, m.claimed[claim{who.Person.Provider, name}]...)
	}
	return uids
}
