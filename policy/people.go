package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

// peopleName names the file of people whose access ends, next to the policies.
const peopleName = "people.yaml"

// A personText is one entry of people.yaml, "<provider>/<subject>".
type personText struct {
	Ends    string `yaml:"ends"`    // a day is the last one
	Sponsor string `yaml:"sponsor"` // a group of groups.yaml, or a person
}

// loadPeople reads people.yaml; src may be nil.
func loadPeople(src *source, known *names, ps *problems) map[string]broker.PersonEnd {
	people := map[string]broker.PersonEnd{}
	if src == nil {
		return people
	}
	f := newEntriesFile(src, ps, "person", "login/kim: {ends: 2026-12-31, sponsor: procurement}", known.checkPerson)
	for name, node := range f.entries() {
		if text := decodeEntry[personText](f, name, node); text != nil {
			people[name] = personEnd(f, name, text, known)
		}
	}
	return people
}

// personEnd converts an entry, and reports its mistakes.
func personEnd(f *entriesFile, name string, text *personText, known *names) broker.PersonEnd {
	ends, err := parseDay(text.Ends, true)
	f.reportAt(name, "ends", err)
	switch {
	case text.Ends == "" && text.Sponsor == "":
		f.reportAt(name, "", fmt.Errorf("the entry is empty: set ends or sponsor, or remove the entry"))
	case strings.Contains(text.Sponsor, "/"):
		f.reportAt(name, text.Sponsor, known.checkPerson(text.Sponsor))
		if text.Sponsor == name || known.labels.People.Same(text.Sponsor, name) {
			f.reportAt(name, text.Sponsor, fmt.Errorf("a person can't be their own sponsor: name another person or a group"))
		}
	case text.Sponsor != "":
		f.reportAt(name, text.Sponsor, known.checkGroup(text.Sponsor))
	}
	return broker.PersonEnd{Ends: ends, Sponsor: text.Sponsor}
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
