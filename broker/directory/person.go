package directory

import (
	"accessbroker.internal/broker"
)

var _ broker.Directory = (*Directory)(nil)

// Person implements broker.Directory. A person of a provider with a directory has the
// groups and the manager that the directory states, and no others. A person whom the
// directory does not know, or who is not active, has none, unless the operator left the
// directory open.
func (d *Directory) Person(id string) (broker.DirectoryPerson, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if u := d.people[id]; u != nil {
		return d.stated(u), true
	}
	for _, s := range d.sources {
		if s.owns(id) {
			return broker.DirectoryPerson{Source: FactSource(s.Name)}, !s.Open
		}
	}
	return broker.DirectoryPerson{}, false
}

// owns reports whether a person is of the source's provider.
func (s *source) owns(person string) bool {
	n := len(s.Provider)
	return len(person) > n && person[:n] == s.Provider && person[n] == '/'
}

// Governs reports whether a source governs a subject of facts: then it must know it.
func (s *Source) Governs(key broker.StandingKey) bool {
	return !s.Open && key.Kind == broker.FactPerson && (&source{Source: *s}).owns(key.Name)
}

func (d *Directory) stated(u *user) broker.DirectoryPerson {
	p := broker.DirectoryPerson{Source: FactSource(u.source.Name)}
	if !u.active {
		return p
	}
	p.Manager = u.managerPerson()
	if len(u.groups) > 0 {
		p.Memberships = make(map[string]broker.DirectoryMemberKey, len(u.groups))
	}
	for _, g := range u.groups {
		if name := u.source.claim(g); name != "" {
			p.Groups = append(p.Groups, name)
			p.Memberships[name] = broker.DirectoryMemberKey{Group: g.id, User: u.id}
		}
	}
	return p
}

// managerPerson returns the manager as a person; empty if the user names none, one that
// the source does not know, or themselves.
func (u *user) managerPerson() string {
	m := u.source.manager(u.manager)
	if m == nil || m == u || !m.active {
		return ""
	}
	return m.person
}

// manager returns the user whom other users name as their manager by this text.
func (s *source) manager(text string) *user {
	if text == "" {
		return nil
	}
	switch s.Manager {
	case ManagerUserName:
		u, _ := s.users.find(name{nameUser, fold(text)})
		return u
	case ManagerExternalID:
		u, _ := s.users.find(name{nameExternal, text})
		return u
	}
	id, err := broker.ParseDirectoryUserID(text)
	if err != nil {
		return nil
	}
	return s.users.byID[id]
}
