package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

// checkAccounts warns if several providers serve approvers and one of them has no account
// that is linked to an account of another: a person with an account at each counts twice.
func (l *linter) checkAccounts() {
	serving := l.approverProviders()
	var unlinked []string
	for _, provider := range slices.Sorted(maps.Keys(serving)) {
		if !l.linked(provider, serving) {
			unlinked = append(unlinked, provider)
		}
	}
	if len(serving) < 2 || len(unlinked) == 0 {
		return
	}
	l.problems.add(Problem{File: "people.aliases", Text: fmt.Sprintf(
		"the providers %s serve approvers, and no account of %s is linked to another provider: a person with two accounts counts as two people: list the accounts of each person",
		strings.Join(slices.Sorted(maps.Keys(serving)), ", "), strings.Join(unlinked, ", "))})
}

// linked reports whether some person has accounts at the provider and at another one of the
// set.
func (l *linter) linked(provider string, serving set) bool {
	return slices.ContainsFunc(l.in.Aliases, func(accounts []string) bool {
		here, elsewhere := false, false
		for _, account := range accounts {
			p := providerOf(account)
			here, elsewhere = here || p == provider, elsewhere || p != provider && serving[p]
		}
		return here && elsewhere
	})
}

// approverProviders returns the providers whose people approve or review.
func (l *linter) approverProviders() set {
	groups := set{}
	for _, r := range l.rules {
		for _, need := range slices.Concat(r.Approvals, r.Review) {
			for _, name := range approverGroups(need.Group, l.coverages.of(r.resource).owners) {
				groups[name] = true
			}
		}
	}
	found := set{}
	for name := range groups {
		g := l.groups[name]
		if g == nil { // "manager"
			continue
		}
		for _, member := range g.Members {
			found[providerOf(member)] = true
		}
		for _, c := range g.Claims {
			found[c.Provider] = true
		}
	}
	return found
}

// providerOf returns the provider of a person.
func providerOf(person string) string {
	provider, _, _ := broker.ParsePerson(person)
	return provider
}

// countPeople returns the number of people with these accounts.
func (l *linter) countPeople(accounts []string) int {
	main := set{}
	for _, account := range accounts {
		main[l.known.labels.People.Accounts(account)[0]] = true
	}
	return len(main)
}
