package directory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A GroupChange is a group as a client wants it to be.
type GroupChange struct {
	Name, ExternalID string
	Clear            bool // all members leave, except those of Add
	Add, Remove      []broker.DirectoryUserID
	Changed          []string
}

// A Group is a group as it is in memory.
type Group struct {
	ID               broker.DirectoryGroupID
	Name, ExternalID string
	Version          int
	Tag              string // its version with its members
	Created          time.Time
	Modified         time.Time
}

// Bounds of a source.
const maxGroupMembers = 200_000

// ErrTooLarge means that a group has too many members.
var ErrTooLarge = fmt.Errorf("a group has at most %d members", maxGroupMembers)

// CreateGroup stores a new group.
func (d *Directory) CreateGroup(ctx context.Context, caller broker.Caller, sourceName string, c GroupChange) (*Group, error) {
	row := &broker.DirectoryGroup{ID: broker.NewDirectoryGroupID(caller.At), Source: sourceName, Created: caller.At}
	return d.saveGroup(ctx, caller, row, c, "created")
}

// ReplaceGroup changes a group that was read before. ErrVersion means that it has changed
// since.
func (d *Directory) ReplaceGroup(ctx context.Context, caller broker.Caller, sourceName string, g *Group, c GroupChange) (*Group, error) {
	row := &broker.DirectoryGroup{ID: g.ID, Source: sourceName, Version: g.Version, Created: g.Created}
	return d.saveGroup(ctx, caller, row, c, "changed")
}

// saveGroup stores a group whose version is that of row.
func (d *Directory) saveGroup(ctx context.Context, caller broker.Caller, row *broker.DirectoryGroup, c GroupChange, op string) (g *Group, err error) {
	from := row.Version
	err = d.retry(ctx, caller.At, func(seen uint64) (err error) {
		if row.Version != from {
			op = "changed" // a part of the change is stored
		}
		g, err = d.saveGroupOnce(ctx, caller, seen, row, c, op)
		return err
	})
	return g, err
}

// saveGroupOnce is saveGroup. It returns errOvertaken if another process changed the
// directory.
func (d *Directory) saveGroupOnce(ctx context.Context, caller broker.Caller, seen uint64, row *broker.DirectoryGroup, c GroupChange, op string) (*Group, error) {
	s, err := d.source(row.Source)
	if err != nil {
		return nil, err
	}
	defer d.locks.lock(row.ID)()
	names := groupNames(c.Name, c.ExternalID)
	in, out, err := d.prepareGroup(s, row.ID, names, c)
	if err != nil {
		return nil, err
	}
	row.Name, row.ExternalID = c.Name, c.ExternalID
	d.rename(s, row, caller.At)
	err = d.writeGroup(ctx, caller, seen, s, row, op, c.Changed, in, out)
	if err != nil {
		d.mu.Lock()
		s.groups.release(row.ID, names)
		d.mu.Unlock()
		return nil, err
	}
	return d.Group(row.Source, row.ID)
}

// maxFormerly bounds the earlier names of a group. Each is kept for MemberLeftFor at least,
// unless as many later ones follow within that time.
const maxFormerly = 16

// rename keeps the earlier names of a group in its row.
func (d *Directory) rename(s *source, row *broker.DirectoryGroup, now time.Time) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	g := s.groups.byID[row.ID]
	if g == nil {
		return
	}
	if now.Sub(g.renamed) < broker.MemberLeftFor {
		row.Formerly, row.Renamed = slices.Clone(g.formerly), g.renamed
	}
	if before, after := s.claim(g), s.claimName(row.Name, row.ExternalID); before != after && before != "" {
		row.Formerly, row.Renamed = append(row.Formerly, before), now
		row.Formerly = row.Formerly[max(0, len(row.Formerly)-maxFormerly):]
	}
}

// claimOf returns the name by which claims mean a stored group.
func (d *Directory) claimOf(s *source, id broker.DirectoryGroupID) string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if g := s.groups.byID[id]; g != nil {
		return s.claim(g)
	}
	return ""
}

// leftBehind returns who left the group that claims mean by a name: those who left, and
// all members if the group has another name now.
func (d *Directory) leftBehind(s *source, id broker.DirectoryGroupID, before string, out []*user) (list []leftGroup) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	gone := out
	if g := s.groups.byID[id]; g != nil && s.claim(g) != before {
		for _, u := range g.members {
			gone = append(gone, u)
		}
	}
	for _, u := range gone {
		list = append(list, u.leftAs([]string{before})...)
	}
	return list
}

// prepareGroup reserves the names of a group, and returns the users who enter and leave it.
func (d *Directory) prepareGroup(s *source, id broker.DirectoryGroupID, names []name, c GroupChange) (in, out []*user, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var members map[broker.DirectoryUserID]*user
	if g := s.groups.byID[id]; g != nil {
		members = g.members
	}
	wanted := make(map[broker.DirectoryUserID]bool, len(c.Add))
	for _, member := range c.Add {
		u := s.users.byID[member]
		if u == nil {
			return nil, nil, ErrMember
		}
		if wanted[member] {
			continue
		}
		if wanted[member] = true; members[member] == nil {
			in = append(in, u)
		}
	}
	if c.Clear {
		for member, u := range members {
			if !wanted[member] {
				out = append(out, u)
			}
		}
	} else {
		for _, member := range c.Remove {
			if u := members[member]; u != nil && !wanted[member] {
				out = append(out, u)
			}
		}
	}
	if len(members)+len(in)-len(out) > maxGroupMembers {
		return nil, nil, ErrTooLarge
	}
	byID := func(a, b *user) int { return bytes.Compare(a.id[:], b.id[:]) }
	slices.SortFunc(in, byID)
	slices.SortFunc(out, byID)
	out = slices.Compact(out)
	if !s.groups.reserve(id, names) {
		return nil, nil, ErrUnique
	}
	return in, out, nil
}

// membersPerUpdate is how many members one transaction changes. Issuing waits for it.
const membersPerUpdate = 500

// writeGroup stores a group and its members. A large change takes several transactions,
// in which members leave before others enter.
func (d *Directory) writeGroup(ctx context.Context, caller broker.Caller, seen uint64, s *source, row *broker.DirectoryGroup, op string, changed []string, in, out []*user) error {
	for first := true; first || len(in)+len(out) > 0; first = false {
		n := min(len(out), membersPerUpdate)
		m := min(len(in), membersPerUpdate-n)
		leaving, entering := out[:n], in[:m]
		out, in = out[n:], in[m:]
		if err := d.writeMembers(ctx, caller, seen, s, row, op, changed, entering, leaving); err != nil {
			return err
		}
		op, changed = "changed", nil
	}
	return nil
}

// writeMembers is one transaction of writeGroup. Memory follows it, and so does the end of
// what the memberships permitted: a later transaction of the change may fail.
func (d *Directory) writeMembers(ctx context.Context, caller broker.Caller, seen uint64, s *source, row *broker.DirectoryGroup, op string, changed []string, in, out []*user) error {
	version := row.Version
	row.Version, row.Modified = version+1, caller.At
	entries, err := groupRecords(ctx, caller, row, op, changed, in, out)
	if err != nil {
		return err
	}
	claimed := d.claimOf(s, row.ID)
	as := append(slices.Clone(row.Formerly), claimed)
	d.others.stored.RLock()
	defer d.others.stored.RUnlock()
	err = d.cfg.Store.Update(ctx, []broker.Key{row.ID}, func(tx broker.Tx) error {
		if err := errors.Join(d.others.check(seen), putGroup(tx, row, version)); err != nil {
			return err
		}
		for _, u := range in {
			tx.Put(&broker.DirectoryMember{DirectoryMemberKey: broker.DirectoryMemberKey{Group: row.ID, User: u.id}, Since: caller.At})
		}
		for _, u := range out {
			tx.Put(&broker.DirectoryMember{DirectoryMemberKey: broker.DirectoryMemberKey{Group: row.ID, User: u.id}, Left: caller.At, As: as})
		}
		for _, e := range entries {
			tx.Append(e)
		}
		return nil
	})
	if err != nil {
		row.Version = version
		if errors.Is(err, errOvertaken) || errors.Is(err, ErrVersion) || errors.Is(err, ErrUnknown) {
			return err
		}
		return broker.Unavailable(err)
	}
	d.adoptMembers(s, row, in, out)
	d.leave(d.leftBehind(s, row.ID, claimed, out))
	return nil
}

// adoptMembers takes a stored group and the change of its members into memory.
func (d *Directory) adoptMembers(s *source, row *broker.DirectoryGroup, in, out []*user) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.adoptGroup(s, row)
	g := s.groups.byID[row.ID]
	for _, u := range out {
		delete(g.members, u.id)
		delete(u.groups, g.id)
	}
	for _, u := range in {
		if s.users.byID[u.id] == u { // it may have been deleted meanwhile
			g.members[u.id], u.groups[g.id] = u, g
		}
	}
}

// putGroup stores a group if its version is the expected one.
func putGroup(tx broker.Tx, row *broker.DirectoryGroup, version int) error {
	stored, err := broker.Get[*broker.DirectoryGroup](tx, row.ID)
	if err != nil {
		stored = &broker.DirectoryGroup{}
	}
	if err := checkStored(err, stored.Version, stored.Deleted, version); err != nil {
		return err
	}
	tx.Put(row)
	return nil
}

// groupRecords returns the records of a change. Each lists all members that it stands for.
func groupRecords(ctx context.Context, caller broker.Caller, row *broker.DirectoryGroup, op string, changed []string, in, out []*user) (entries []*audit.Entry, err error) {
	added, removed := nameLists(in), nameLists(out)
	for i := range max(len(added), len(removed), 1) {
		record := audit.Record{Kind: audit.DirectoryGroup, Caller: caller.Actor.Party(), Trace: broker.TraceOf(ctx), Directory: &audit.DirectoryFacts{
			Source: FactSource(row.Source), ID: row.ID.String(), Op: op, Changed: changed,
		}}
		digest, opening := audit.Commit(row.Name)
		record.Directory.Name, record.Openings = digest, map[string]audit.Opening{"name": opening}
		if i < len(added) {
			record.Directory.Added = added[i]
		}
		if i < len(removed) {
			record.Directory.Removed = removed[i]
		}
		entry, err := record.Entry()
		if err != nil {
			return nil, fmt.Errorf("encoding the record of a group: %w", err)
		}
		entries = append(entries, entry)
		op, changed = "changed", nil
	}
	return entries, nil
}

// nameLists returns the names of users in lists that fit into a record.
func nameLists(users []*user) (lists [][]string) {
	size := 0
	for _, u := range users {
		text := u.person
		if text == "" {
			text = u.id.String()
		}
		encoded := len(audit.AppendString(nil, text)) + 1
		if len(lists) == 0 || size+encoded > audit.MaxMembers-2 {
			lists, size = append(lists, nil), 0
		}
		lists[len(lists)-1] = append(lists[len(lists)-1], text)
		size += encoded
	}
	return lists
}

// DeleteGroup deletes a group. Its members leave it.
func (d *Directory) DeleteGroup(ctx context.Context, caller broker.Caller, sourceName string, id broker.DirectoryGroupID, version int) error {
	left := false
	return d.retry(ctx, caller.At, func(seen uint64) error {
		if left {
			version = 0 // the members have left, which made a new version
		}
		return d.deleteGroupOnce(ctx, caller, seen, sourceName, id, version, &left)
	})
}

// deleteGroupOnce is DeleteGroup. It returns errOvertaken if another process changed the
// directory. left becomes true when members have left.
func (d *Directory) deleteGroupOnce(ctx context.Context, caller broker.Caller, seen uint64, sourceName string, id broker.DirectoryGroupID, version int, left *bool) error {
	s, err := d.source(sourceName)
	if err != nil {
		return err
	}
	defer d.locks.lock(id)()
	g, err := d.Group(sourceName, id)
	if err != nil {
		return err
	}
	if version != 0 && version != g.Version {
		return ErrVersion
	}
	_, out, err := d.prepareGroup(s, id, nil, GroupChange{Clear: true})
	if err != nil {
		return err
	}
	row := &broker.DirectoryGroup{ID: id, Source: sourceName, Name: g.Name, ExternalID: g.ExternalID, Version: g.Version, Created: g.Created}
	d.rename(s, row, caller.At)
	if len(out) > 0 {
		err := d.writeGroup(ctx, caller, seen, s, row, "changed", nil, nil, out)
		*left = *left || row.Version != g.Version
		if err != nil {
			return err
		}
	}
	record := audit.Record{Kind: audit.DirectoryGroup, Caller: caller.Actor.Party(), Directory: &audit.DirectoryFacts{Source: FactSource(sourceName), ID: id.String(), Op: "deleted"}}
	d.others.stored.RLock()
	defer d.others.stored.RUnlock()
	err = d.write(ctx, seen, []broker.Key{id}, record, func(tx broker.Tx) error {
		gone := &broker.DirectoryGroup{ID: id, Source: sourceName, Version: row.Version + 1, Created: g.Created, Deleted: caller.At}
		return putGroup(tx, gone, row.Version)
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	s.groups.remove(id)
	d.mu.Unlock()
	return nil
}

// Group returns a group of a source, or ErrUnknown.
func (d *Directory) Group(sourceName string, id broker.DirectoryGroupID) (*Group, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := d.sources[sourceName]
	if s == nil {
		return nil, ErrUnknown
	}
	g := s.groups.byID[id]
	if g == nil {
		return nil, ErrUnknown
	}
	return &Group{g.id, g.name, g.externalID, g.version, fmt.Sprint(g.version) + tag(g.members), g.created, g.modified}, nil
}

// GroupIDs returns the IDs of all groups of a source, the earliest created first.
func (d *Directory) GroupIDs(sourceName string) []broker.DirectoryGroupID {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := d.sources[sourceName]
	if s == nil {
		return nil
	}
	return slices.Clone(s.groups.order)
}

// FindGroup returns the ID of the group with a displayName or an externalId.
func (d *Directory) FindGroup(sourceName, attribute, text string) (id broker.DirectoryGroupID, ok bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := d.sources[sourceName]
	if s == nil {
		return id, false
	}
	n := name{nameGroup, fold(text)}
	if attribute == "externalId" {
		n = name{nameExternal, text}
	}
	g, ok := s.groups.find(n)
	if !ok {
		return id, false
	}
	return g.id, true
}

// Members returns the IDs of a group's members, sorted.
func (d *Directory) Members(sourceName string, id broker.DirectoryGroupID) (list []broker.DirectoryUserID) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s := d.sources[sourceName]; s != nil {
		if g := s.groups.byID[id]; g != nil {
			for member := range g.members {
				list = append(list, member)
			}
		}
	}
	slices.SortFunc(list, func(a, b broker.DirectoryUserID) int { return bytes.Compare(a[:], b[:]) })
	return list
}

// Counts are the numbers of a source's resources, for gauges.
type Counts struct {
	Users, Active, Groups, Members int
	Heard                          time.Time // when its client called last; zero: not since the start
}

// Count returns the numbers of the sources' resources, by name.
func (d *Directory) Count() map[string]Counts {
	d.mu.RLock()
	defer d.mu.RUnlock()
	counts := map[string]Counts{}
	for name, s := range d.sources {
		c := Counts{Users: len(s.users.byID), Groups: len(s.groups.byID)}
		if at := s.heard.Load(); at != 0 {
			c.Heard = time.UnixMilli(at)
		}
		for _, u := range s.users.byID {
			if u.active {
				c.Active++
			}
		}
		for _, g := range s.groups.byID {
			c.Members += len(g.members)
		}
		counts[name] = c
	}
	return counts
}
