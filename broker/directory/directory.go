// Package directory has the people and groups that providers' directories provision, and
// decides what they mean for access.
//
//	directory.go   Config, Open, the copy in memory
//	index.go       what is unique at a source, and where it is found
//	user.go        creating, changing and deleting users
//	group.go       the same for groups and their members
//	effects.go     facts about people, and the end of what a membership permitted
//	person.go      what decisions ask: Person implements broker.Directory
//	token.go       the tokens of provisioning clients
//	others.go      changes by other processes
//
// Each change is one transaction with its record. Memory follows the commit. A person who
// loses access is reported before the change is stored, and a person who gains access is
// reported after it: if the broker stops in between, the person has no access, and the
// client repeats a call that was not answered.
package directory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A Source is a directory that provisions the people of one provider.
type Source struct {
	Name     string // "corp"
	Provider string // whose people it provisions
	Groups   string // the attribute of groups that claims name: GroupName or GroupExternalID
	Manager  string // what users name their manager by: ManagerID, ManagerUserName or ManagerExternalID
	Open     bool   // people whom the source does not know keep their claims
}

// The attributes that a Source can choose.
const (
	GroupName         = "displayName"
	GroupExternalID   = "externalId"
	ManagerID         = "id"
	ManagerUserName   = "userName"
	ManagerExternalID = "externalId"
)

// FactSource returns the name of a source in facts and records.
func FactSource(name string) string { return "scim:" + name }

// Config configures a Directory. Store and Rows are required.
type Config struct {
	Store broker.Store

	// Rows calls f for every row of the directory, users and groups before members.
	Rows func(ctx context.Context, f func(broker.Row) error) error

	// Fresh returns when Changed was called for every commit of another process before the
	// call; nil: no other process writes.
	Fresh func(ctx context.Context) error

	Sources []Source
	Log     *slog.Logger // nil: discarded
}

// A Directory has the users and groups of all sources. It is safe for concurrent use.
type Directory struct {
	cfg     Config
	facts   *broker.Facts // set by Connect
	changes chan struct{} // wakes Run
	locks   locks
	others  others

	mu      sync.RWMutex
	sources map[string]*source                       // guarded by mu, as is what it leads to
	people  map[string]*user                         // by person
	tokens  map[broker.SCIMTokenID]*broker.SCIMToken // guarded by mu
	left    []leftGroup                              // guarded by mu; what Run has to look at
}

// A source is the copy of a source's rows.
type source struct {
	Source
	users  index[broker.DirectoryUserID, *user]
	groups index[broker.DirectoryGroupID, *group]
	heard  atomic.Int64 // when its client called last, in milliseconds since 1970
}

// A user is what memory keeps of a row.
type user struct {
	source                                *source
	id                                    broker.DirectoryUserID
	person, userName, externalID, manager string
	sponsor                               string
	ends                                  time.Time
	active                                bool
	version                               int
	groups                                map[broker.DirectoryGroupID]*group
}

// A group is what memory keeps of a row, and its members.
type group struct {
	source           *source
	id               broker.DirectoryGroupID
	name, externalID string
	version          int
	created          time.Time
	modified         time.Time
	formerly         []string // its earlier names, until some time after renamed
	renamed          time.Time
	members          map[broker.DirectoryUserID]*user
}

// Open reads the directory. It starts no goroutine: call Connect, and then Run.
func Open(ctx context.Context, cfg Config) (*Directory, error) {
	if cfg.Store == nil || cfg.Rows == nil {
		return nil, errors.New("a directory needs a store and its rows")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Fresh == nil {
		cfg.Fresh = func(context.Context) error { return nil }
	}
	d := &Directory{cfg: cfg, changes: make(chan struct{}, 1), sources: map[string]*source{}, people: map[string]*user{}, tokens: map[broker.SCIMTokenID]*broker.SCIMToken{}}
	for _, s := range cfg.Sources {
		d.sources[s.Name] = &source{Source: s, users: newIndex[broker.DirectoryUserID, *user](), groups: newIndex[broker.DirectoryGroupID, *group]()}
	}
	if err := cfg.Rows(ctx, d.load); err != nil {
		return nil, fmt.Errorf("reading the directory: %w", err)
	}
	return d, nil
}

// Connect sets the facts to which the directory reports. The domain is created after the
// directory, which it reads.
func (d *Directory) Connect(facts *broker.Facts) { d.facts = facts }

// load takes a row into memory. Rows of sources that the operator removed are left out:
// they mean nothing.
func (d *Directory) load(row broker.Row) error {
	switch r := row.(type) {
	case *broker.DirectoryUser:
		if s := d.sources[r.Source]; s != nil && r.Deleted.IsZero() {
			d.adoptUser(s, r)
		}
	case *broker.DirectoryGroup:
		if s := d.sources[r.Source]; s != nil && r.Deleted.IsZero() {
			d.adoptGroup(s, r)
		}
	case *broker.DirectoryMember:
		d.loadMember(r)
	case *broker.SCIMToken:
		d.tokens[r.ID] = r
	}
	return nil
}

// loadMember takes a membership into memory. What ends with a membership, or with the name
// of a group, may not have ended yet.
func (d *Directory) loadMember(m *broker.DirectoryMember) {
	for _, s := range d.sources {
		u, g := s.users.byID[m.User], s.groups.byID[m.Group]
		switch {
		case u == nil: // deleted at the same time, or another source's
		case !m.Left.IsZero():
			names := m.As
			if names == nil && g != nil { // written by an earlier version
				names = []string{s.claim(g)}
			}
			d.left = append(d.left, u.leftAs(names)...)
		case g != nil:
			g.members[u.id], u.groups[g.id] = u, g
			d.left = append(d.left, u.leftAs(g.formerly)...)
		}
	}
}

// leftAs returns the groups, by the names that claims have for them, that a user has left.
func (u *user) leftAs(names []string) (list []leftGroup) {
	for _, name := range names {
		if u.person != "" && name != "" {
			list = append(list, leftGroup{person: u.person, group: name})
		}
	}
	return list
}

// adoptUser takes a stored user into memory.
func (d *Directory) adoptUser(s *source, r *broker.DirectoryUser) {
	u := s.users.byID[r.ID]
	if u == nil {
		u = &user{source: s, id: r.ID, groups: map[broker.DirectoryGroupID]*group{}}
	} else if d.people[u.person] == u {
		delete(d.people, u.person)
	}
	u.person, u.userName, u.externalID, u.manager = r.Person, r.UserName, r.ExternalID, r.Manager
	u.active, u.ends, u.sponsor, u.version = r.Active, r.Ends, r.Sponsor, r.Version
	s.users.put(r.ID, u, userNames(r.UserName, r.ExternalID, r.Person)...)
	if u.person != "" {
		d.people[u.person] = u
	}
}

// adoptGroup takes a stored group into memory.
func (d *Directory) adoptGroup(s *source, r *broker.DirectoryGroup) {
	g := s.groups.byID[r.ID]
	if g == nil {
		g = &group{source: s, id: r.ID, members: map[broker.DirectoryUserID]*user{}}
	}
	g.name, g.externalID, g.version, g.created, g.modified = r.Name, r.ExternalID, r.Version, r.Created, r.Modified
	g.formerly, g.renamed = r.Formerly, r.Renamed
	s.groups.put(r.ID, g, groupNames(r.Name, r.ExternalID)...)
}

// claim returns the name by which claims mean a group.
func (s *source) claim(g *group) string { return s.claimName(g.name, g.externalID) }

func (s *source) claimName(name, externalID string) string {
	if s.Groups == GroupExternalID {
		return externalID
	}
	return name
}

// source returns a source, or broker.ErrNotFound.
func (d *Directory) source(name string) (*source, error) {
	if s := d.sources[name]; s != nil {
		return s, nil
	}
	return nil, &broker.Refusal{Err: broker.ErrNotFound, Detail: "there is no source of that name"}
}

// Sources returns the sources, as configured.
func (d *Directory) Sources() []Source { return d.cfg.Sources }

// write appends one record in the transaction f: see broker.Write. It returns errOvertaken if
// other processes made more changes than memory has seen.
func (d *Directory) write(ctx context.Context, seen uint64, reads []broker.Key, record audit.Record, f func(broker.Tx) error) error {
	_, err := broker.Write(ctx, d.cfg.Store, reads, record, func(tx broker.Tx) error {
		if err := d.others.check(seen); err != nil {
			return err
		}
		return f(tx)
	})
	return err
}

// Errors of changes. The protocol answers them with 409, 412 and 404.
var (
	ErrUnique  = errors.New("another resource has this name")
	ErrVersion = errors.New("the resource has changed")
	ErrSelf    = errors.New("a user can't be their own manager")
	ErrMember  = errors.New("no user has this id")
	ErrUnknown = errors.New("there is no such resource")
)

// locks serialize the changes of one resource. Resources share them, by their ID.
type locks [256]sync.Mutex

func (l *locks) lock(id [16]byte) (unlock func()) {
	m := &l[id[15]]
	m.Lock()
	return m.Unlock
}

func fold(s string) string { return strings.ToLower(s) }
