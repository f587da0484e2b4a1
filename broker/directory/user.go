package directory

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A UserChange is a user as a client wants it to be.
type UserChange struct {
	UserName, ExternalID string
	Subject              string // the sub at the provider; empty: the user is no person yet
	Manager              string
	Active               bool
	Ends                 time.Time // of the access; zero: none is known
	Sponsor              string
	Document             []byte   // all attributes
	Changed              []string // the names of those that differ from before
}

// CreateUser stores a new user.
func (d *Directory) CreateUser(ctx context.Context, caller broker.Caller, sourceName string, c UserChange) (*broker.DirectoryUser, error) {
	row := &broker.DirectoryUser{ID: broker.NewDirectoryUserID(caller.At), Source: sourceName, Created: caller.At}
	return row, d.saveUser(ctx, caller, row, c, "created")
}

// ReplaceUser changes a user that was read before. ErrVersion means that it has changed
// since.
func (d *Directory) ReplaceUser(ctx context.Context, caller broker.Caller, row *broker.DirectoryUser, c UserChange) (*broker.DirectoryUser, error) {
	changed := *row
	return &changed, d.saveUser(ctx, caller, &changed, c, "changed")
}

// saveUser stores a user whose version is that of row, which it updates.
func (d *Directory) saveUser(ctx context.Context, caller broker.Caller, row *broker.DirectoryUser, c UserChange, op string) error {
	before := *row
	return d.retry(ctx, caller.At, func(seen uint64) error {
		*row = before
		return d.saveUserOnce(ctx, caller, seen, row, c, op)
	})
}

// saveUserOnce is saveUser. It returns errOvertaken if another process changed the directory.
func (d *Directory) saveUserOnce(ctx context.Context, caller broker.Caller, seen uint64, row *broker.DirectoryUser, c UserChange, op string) error {
	s, err := d.source(row.Source)
	if err != nil {
		return err
	}
	person := ""
	if c.Subject != "" {
		person = s.Provider + "/" + c.Subject
		if _, _, err := broker.ParsePerson(person); err != nil {
			return err
		}
	}
	defer d.locks.lock(row.ID)()
	before, version, wasActive, beforeEnds := row.Person, row.Version, row.Active, row.Ends
	row.Person, row.UserName, row.ExternalID, row.Manager, row.Active, row.Document = person, c.UserName, c.ExternalID, c.Manager, c.Active, c.Document
	row.Ends, row.Sponsor = c.Ends, c.Sponsor
	row.Version, row.Modified = version+1, caller.At
	names := userNames(row.UserName, row.ExternalID, row.Person)
	if err := d.reserveUser(s, row, names, version); err != nil {
		return err // nothing has happened
	}
	if wasActive && (!c.Active || before != person) { // this person loses access, whatever comes
		if err := d.reportEnd(ctx, caller, s, before, causeOf(person, before)); err != nil {
			d.releaseUser(s, row, names)
			return err
		}
	}
	if wasActive && c.Active && before == person && endsEarlier(row.Ends, beforeEnds) {
		if err := d.reportUser(ctx, caller, s, row); err != nil {
			d.releaseUser(s, row, names)
			return err
		}
	}
	record := audit.Record{Kind: audit.DirectoryUser, Caller: caller.Actor.Party(), Directory: &audit.DirectoryFacts{
		Source: FactSource(s.Name), ID: row.ID.String(), Op: op, Person: person, Active: row.Active, Manager: d.managerOf(s, row), Changed: c.Changed,
	}}
	if err := d.storeUser(ctx, seen, s, row, record, version); err != nil {
		d.releaseUser(s, row, names)
		return err
	}
	return d.reportUser(ctx, caller, s, row)
}

// storeUser stores a user, and takes it into memory.
func (d *Directory) storeUser(ctx context.Context, seen uint64, s *source, row *broker.DirectoryUser, record audit.Record, version int) error {
	d.others.stored.RLock()
	defer d.others.stored.RUnlock()
	err := d.write(ctx, seen, []broker.Key{row.ID}, record, func(tx broker.Tx) error { return putUser(tx, row, version) })
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.adoptUser(s, row)
	return nil
}

// endsEarlier reports whether an end is earlier than another. The zero time means never.
func endsEarlier(end, other time.Time) bool {
	return !end.IsZero() && (other.IsZero() || end.Before(other))
}

// causeOf returns why a person loses access by a change.
func causeOf(person, before string) string {
	if person != before {
		return "account_renamed"
	}
	return "account_disabled"
}

// releaseUser returns the names of a change that failed.
func (d *Directory) releaseUser(s *source, row *broker.DirectoryUser, names []name) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.users.release(row.ID, names)
}

// reserveUser reserves the names of a user. It refuses a change that does not start from
// the stored version, and a user who is their own manager.
func (d *Directory) reserveUser(s *source, row *broker.DirectoryUser, names []name, version int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch u := s.users.byID[row.ID]; {
	case u == nil && version != 0:
		return ErrUnknown
	case u != nil && u.version != version:
		return ErrVersion
	}
	if row.Manager != "" && s.isSelf(row) {
		return ErrSelf
	}
	if !s.users.reserve(row.ID, names) {
		return ErrUnique
	}
	return nil
}

// isSelf reports whether a user names themselves as their manager.
func (s *source) isSelf(row *broker.DirectoryUser) bool {
	switch s.Manager {
	case ManagerUserName:
		return fold(row.Manager) == fold(row.UserName)
	case ManagerExternalID:
		return row.Manager == row.ExternalID
	}
	return row.Manager == row.ID.String()
}

func (d *Directory) managerOf(s *source, row *broker.DirectoryUser) string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if m := s.manager(row.Manager); m != nil {
		return m.person
	}
	return ""
}

// checkStored returns an error unless a row has the version from which a change starts. read
// is the error of reading it; version is 0 for a new row.
func checkStored(read error, stored int, deleted time.Time, version int) error {
	switch {
	case errors.Is(read, broker.ErrNotFound):
		if version != 0 {
			return ErrUnknown
		}
		return nil
	case read != nil:
		return read
	case !deleted.IsZero():
		return ErrUnknown
	case stored != version:
		return ErrVersion
	}
	return nil
}

// putUser stores a user if its version is the expected one.
func putUser(tx broker.Tx, row *broker.DirectoryUser, version int) error {
	stored, err := broker.Get[*broker.DirectoryUser](tx, row.ID)
	if err != nil {
		stored = &broker.DirectoryUser{}
	}
	if err := checkStored(err, stored.Version, stored.Deleted, version); err != nil {
		return err
	}
	tx.Put(row)
	return nil
}

// DeleteUser deletes a user and its memberships. The ID is never used again.
func (d *Directory) DeleteUser(ctx context.Context, caller broker.Caller, sourceName string, id broker.DirectoryUserID, version int) error {
	return d.retry(ctx, caller.At, func(seen uint64) error { return d.deleteUserOnce(ctx, caller, seen, sourceName, id, version) })
}

// deleteUserOnce is DeleteUser. It returns errOvertaken if another process changed the
// directory.
func (d *Directory) deleteUserOnce(ctx context.Context, caller broker.Caller, seen uint64, sourceName string, id broker.DirectoryUserID, version int) error {
	s, err := d.source(sourceName)
	if err != nil {
		return err
	}
	defer d.locks.lock(id)()
	u, groups, err := d.userToDelete(s, id, version)
	if err != nil {
		return err
	}
	if err := d.reportEnd(ctx, caller, s, u.person, "account_deleted"); err != nil {
		return err
	}
	record := audit.Record{Kind: audit.DirectoryUser, Caller: caller.Actor.Party(), Directory: &audit.DirectoryFacts{
		Source: FactSource(s.Name), ID: id.String(), Op: "deleted", Person: u.person,
	}}
	d.others.stored.RLock()
	defer d.others.stored.RUnlock()
	err = d.write(ctx, seen, []broker.Key{id}, record, func(tx broker.Tx) error {
		stored, err := broker.Get[*broker.DirectoryUser](tx, id)
		if err != nil {
			return err
		}
		tx.Put(&broker.DirectoryUser{ID: id, Source: stored.Source, Version: stored.Version + 1, Created: stored.Created, Deleted: caller.At})
		for _, g := range groups {
			tx.Put(&broker.DirectoryMember{DirectoryMemberKey: broker.DirectoryMemberKey{Group: g, User: id}, Left: caller.At})
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.removeUser(s, u)
	return nil
}

// userToDelete returns a user and the IDs of its groups.
func (d *Directory) userToDelete(s *source, id broker.DirectoryUserID, version int) (*user, []broker.DirectoryGroupID, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	u := s.users.byID[id]
	if u == nil {
		return nil, nil, ErrUnknown
	}
	if version != 0 && u.version != version {
		return nil, nil, ErrVersion
	}
	var groups []broker.DirectoryGroupID
	for g := range u.groups {
		groups = append(groups, g)
	}
	return u, groups, nil
}

// User returns a user of a source, or ErrUnknown.
func (d *Directory) User(ctx context.Context, sourceName string, id broker.DirectoryUserID) (row *broker.DirectoryUser, err error) {
	err = d.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		row, err = broker.Get[*broker.DirectoryUser](tx, id)
		return err
	})
	switch {
	case errors.Is(err, broker.ErrNotFound):
		return nil, ErrUnknown
	case err != nil:
		return nil, broker.Unavailable(err)
	case row.Source != sourceName || !row.Deleted.IsZero():
		return nil, ErrUnknown
	}
	return row, nil
}

// Users returns the users of a source with these IDs, in their order. It leaves out those
// that do not exist.
func (d *Directory) Users(ctx context.Context, sourceName string, ids []broker.DirectoryUserID) (list []*broker.DirectoryUser, err error) {
	err = d.cfg.Store.View(ctx, func(tx broker.Tx) error {
		list = list[:0]
		for _, id := range ids {
			row, err := broker.Get[*broker.DirectoryUser](tx, id)
			switch {
			case errors.Is(err, broker.ErrNotFound):
				continue
			case err != nil:
				return err
			}
			if row.Source == sourceName && row.Deleted.IsZero() {
				list = append(list, row)
			}
		}
		return nil
	})
	return list, broker.Unavailable(err)
}

// UserIDs returns the IDs of all users of a source, the earliest created first.
func (d *Directory) UserIDs(sourceName string) []broker.DirectoryUserID {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := d.sources[sourceName]
	if s == nil {
		return nil
	}
	return append([]broker.DirectoryUserID(nil), s.users.order...)
}

// FindUser returns the ID of the user with a userName or an externalId.
func (d *Directory) FindUser(sourceName, attribute, text string) (id broker.DirectoryUserID, ok bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := d.sources[sourceName]
	if s == nil {
		return id, false
	}
	n := name{nameUser, fold(text)}
	if attribute == "externalId" {
		n = name{nameExternal, text}
	}
	u, ok := s.users.find(n)
	if !ok {
		return id, false
	}
	return u.id, true
}

// A Membership is a group of a user, as the user's resource shows it.
type Membership struct {
	ID   broker.DirectoryGroupID
	Name string
}

// GroupsOf returns the groups of a user.
func (d *Directory) GroupsOf(sourceName string, id broker.DirectoryUserID) (list []Membership) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s := d.sources[sourceName]; s != nil {
		if u := s.users.byID[id]; u != nil {
			for _, g := range u.groups {
				list = append(list, Membership{g.id, g.name})
			}
		}
	}
	return list
}

// tag returns a text that changes with a set of IDs, for entity tags.
func tag[ID ~[16]byte, T any](set map[ID]T) string {
	var sum uint64
	for id := range set {
		h := fnv.New64a()
		_, _ = h.Write(id[:])
		sum ^= h.Sum64()
	}
	if len(set) == 0 {
		return ""
	}
	var b [8]byte
	for i := range b {
		b[i] = byte(sum >> (8 * i))
	}
	return "." + hex.EncodeToString(b[:])
}

// UserTag returns the version of a user with its groups.
func (d *Directory) UserTag(row *broker.DirectoryUser) string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	text := fmt.Sprint(row.Version)
	if s := d.sources[row.Source]; s != nil {
		if u := s.users.byID[row.ID]; u != nil {
			text += tag(u.groups)
		}
	}
	return text
}
