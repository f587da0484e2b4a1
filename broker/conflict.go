package broker

import "slices"

// conflictOfInterest reports whether a person may never approve the request:
// its requester, and those accountable for the requester when it was filed or
// now; and the same of everyone else in a chain of delegation. Policy cannot lift this.
func (r *Request) conflictOfInterest(rules *Rules, person string) bool {
	if r.Requester.conflicts(rules, person) || r.Delegation != nil && rules.People.Contains(r.Delegation.Accountable, person) {
		return true
	}
	return slices.ContainsFunc(r.chain(), func(who Identity) bool { return who.conflicts(rules, person) })
}

// conflicts reports whether a person is the identity, or accountable for it.
func (who Identity) conflicts(rules *Rules, person string) bool {
	people := rules.People
	return people.Same(person, who.ID) || who.Is(person) || people.Contains(who.Accountable, person) ||
		people.Contains(rules.WithLabels(who).Accountable, person)
}

// chain returns the identities of a delegation apart from the requester.
func (r *Request) chain() []Identity {
	if r.Delegation == nil {
		return nil
	}
	list := []Identity{r.Delegation.Subject}
	for _, id := range r.Delegation.Actors {
		list = append(list, identityOf(id))
	}
	return list
}

// team returns the listed members of the requester's team, and of the teams of the other
// workloads in a chain of delegation. known is false if one of them has no team, or a team
// that is not a group, so that its members are unknown.
func (r *Request) team(rules *Rules) (members []string, known bool) {
	teams := r.teams(rules)
	for _, team := range teams {
		g, known := rules.Groups[team]
		if !known {
			return nil, false
		}
		members = slices.Concat(members, g.Members)
	}
	return members, true
}

// teams returns the teams of the workloads that a request is made by and for.
func (r *Request) teams(rules *Rules) []string {
	list := []string{r.Requester.Team}
	for _, who := range r.chain() {
		if who.Kind != KindPerson {
			list = append(list, rules.WithLabels(who).Team)
		}
	}
	return list
}

// manager returns the manager of the requester, or of the person for whom the requester acts:
// as a directory states it now, or as the provider of the person named it when the request was
// filed. No one is their own manager.
func (r *Request) manager(rules *Rules) []string {
	who := r.Requester
	if r.Delegation != nil && r.Delegation.Subject.Kind == KindPerson {
		who = r.Delegation.Subject
	}
	person := rules.WithLabels(who).Person
	if person == nil || person.Manager == "" || rules.People.Same(person.Manager, who.ID) {
		return nil
	}
	return []string{person.Manager}
}
