package directory

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// Other processes that share the store change the directory too. The store calls Changed for
// each of their commits before it runs an Update that comes after it. So a change here is
// prepared with the copy in memory, and its Update fails if another process changed the
// directory since: the names that it reserved may be taken. Then it is prepared again.

// others are the rows that other processes changed and that memory does not have yet.
type others struct {
	// stored is held for reading from an Update of this process until memory has its rows,
	// and for writing while rows of other processes are taken into memory.
	stored sync.RWMutex

	mu    sync.Mutex
	count uint64 // of changes by other processes
	stale map[broker.Key]bool
	all   bool // any row may have changed
}

// maxStale is how many rows are read one by one. If more have changed, all rows are read.
const maxStale = 1000

// Changed notes that another process changed rows; nil keys mean that any row may have
// changed. It does not block. It reports whether some of the rows are of the directory.
func (d *Directory) Changed(keys []broker.Key) bool {
	o := &d.others
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.count
	for _, key := range keys {
		switch key.(type) {
		case broker.DirectoryUserID, broker.DirectoryGroupID, broker.DirectoryMemberKey, broker.SCIMTokenID:
			if o.count++; o.stale == nil {
				o.stale = map[broker.Key]bool{}
			}
			o.stale[key] = true
		}
	}
	if keys == nil {
		o.count++
		o.all = true
	}
	if len(o.stale) > maxStale {
		o.all = true
	}
	if o.all {
		o.stale = nil
	}
	return o.count != before
}

// take returns the rows to read, and the number of changes that they cover.
func (o *others) take() (keys []broker.Key, all bool, seen uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for key := range o.stale {
		keys = append(keys, key)
	}
	all, seen = o.all, o.count
	o.stale, o.all = nil, false
	return keys, all, seen
}

// current returns the number of changes, if memory has all of them.
func (o *others) current() (seen uint64, ok bool) {
	o.stored.RLock() // waits for a reading
	defer o.stored.RUnlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count, len(o.stale) == 0 && !o.all
}

// check returns errOvertaken if another process changed the directory since.
func (o *others) check(seen uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count != seen {
		return errOvertaken
	}
	return nil
}

// errOvertaken means that another process changed the directory.
var errOvertaken = errors.New("overtaken by another process")

// maxTries bounds how often a change is made again after errOvertaken.
const maxTries = 100

// retry makes a change until no other process changes the directory meanwhile.
func (d *Directory) retry(ctx context.Context, now time.Time, change func(seen uint64) error) error {
	for range maxTries {
		seen, err := d.refresh(ctx, now)
		if err != nil {
			return err
		}
		if err := change(seen); !errors.Is(err, errOvertaken) {
			return err
		}
	}
	return &broker.Refusal{Err: broker.ErrSlowDown, Detail: "other calls made changes at the same time: try again"}
}

// Refresh takes the changes of other processes before the call into memory.
func (d *Directory) Refresh(ctx context.Context, now time.Time) error {
	_, err := d.refresh(ctx, now)
	return err
}

// refresh is Refresh. It returns the number of changes that memory has.
func (d *Directory) refresh(ctx context.Context, now time.Time) (seen uint64, err error) {
	if err := d.cfg.Fresh(ctx); err != nil {
		return 0, broker.Unavailable(err)
	}
	o := &d.others
	if seen, ok := o.current(); ok {
		return seen, nil
	}
	o.stored.Lock()
	defer o.stored.Unlock()
	keys, all, seen := o.take()
	if all {
		err = d.reload(ctx, now)
	} else if len(keys) > 0 {
		err = d.read(ctx, keys, now)
	}
	if err != nil {
		if all {
			keys = nil
		}
		d.Changed(keys)
		return 0, fmt.Errorf("reading the directory: %w", broker.Unavailable(err))
	}
	return seen, nil
}

// foreignLook is when the leases of a person who left a group by another process are looked
// at. That process has ended them by then, unless it died.
const foreignLook = 5 * time.Second

// reload reads all rows.
func (d *Directory) reload(ctx context.Context, now time.Time) error {
	fresh, err := Open(ctx, d.cfg)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, s := range d.sources {
		s.users, s.groups = fresh.sources[name].users, fresh.sources[name].groups
		for _, u := range s.users.byID {
			u.source = s
		}
		for _, g := range s.groups.byID {
			g.source = s
		}
	}
	d.people = fresh.people
	for _, t := range fresh.tokens {
		d.takeToken(t)
	}
	d.leaveLater(fresh.left, now)
	return nil
}

// read reads rows.
func (d *Directory) read(ctx context.Context, keys []broker.Key, now time.Time) error {
	rows := map[broker.Key]broker.Row{}
	err := d.cfg.Store.View(ctx, func(tx broker.Tx) error {
		clear(rows)
		for _, key := range keys {
			row, err := tx.Get(key)
			if err != nil && !errors.Is(err, broker.ErrNotFound) {
				return err
			}
			if err == nil {
				rows[key] = row
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, key := range keys { // users and groups before members
		switch key := key.(type) {
		case broker.DirectoryUserID:
			d.takeUser(key, rows[key])
		case broker.DirectoryGroupID:
			d.takeGroup(key, rows[key], now)
		case broker.SCIMTokenID:
			d.takeToken(rows[key])
		}
	}
	for _, key := range keys {
		if key, ok := key.(broker.DirectoryMemberKey); ok {
			d.takeMember(key, rows[key], now)
		}
	}
	return nil
}

// takeToken takes a token of another process into memory. One that was revoked here stays so,
// even if that could not be stored. The caller holds mu.
func (d *Directory) takeToken(row broker.Row) {
	t, ok := row.(*broker.SCIMToken)
	if !ok {
		return
	}
	if known := d.tokens[t.ID]; known == nil || known.Revoked.IsZero() {
		d.tokens[t.ID] = t
	}
}

// takeUser takes a user of another process into memory. The caller holds mu.
func (d *Directory) takeUser(id broker.DirectoryUserID, row broker.Row) {
	r, ok := row.(*broker.DirectoryUser)
	if ok && r.Deleted.IsZero() {
		if s := d.sources[r.Source]; s != nil {
			d.adoptUser(s, r)
		}
		return
	}
	for _, s := range d.sources {
		if u := s.users.byID[id]; u != nil {
			d.removeUser(s, u)
		}
	}
}

// removeUser removes a user from memory. The caller holds mu.
func (d *Directory) removeUser(s *source, u *user) {
	for _, g := range u.groups {
		delete(g.members, u.id)
	}
	s.users.remove(u.id)
	if d.people[u.person] == u {
		delete(d.people, u.person)
	}
}

// takeGroup takes a group of another process into memory. The caller holds mu.
func (d *Directory) takeGroup(id broker.DirectoryGroupID, row broker.Row, now time.Time) {
	r, ok := row.(*broker.DirectoryGroup)
	if ok && r.Deleted.IsZero() {
		s := d.sources[r.Source]
		if s == nil {
			return
		}
		before := ""
		if g := s.groups.byID[id]; g != nil {
			before = s.claim(g)
		}
		d.adoptGroup(s, r)
		if g := s.groups.byID[id]; before != "" && s.claim(g) != before {
			for _, u := range g.members {
				d.leaveLater(u.leftAs([]string{before}), now)
			}
		}
		return
	}
	for _, s := range d.sources {
		if g := s.groups.byID[id]; g != nil {
			for _, u := range g.members {
				delete(u.groups, id)
			}
			s.groups.remove(id)
		}
	}
}

// takeMember takes a membership of another process into memory. The caller holds mu.
func (d *Directory) takeMember(key broker.DirectoryMemberKey, row broker.Row, now time.Time) {
	m, ok := row.(*broker.DirectoryMember)
	for _, s := range d.sources {
		u, g := s.users.byID[key.User], s.groups.byID[key.Group]
		switch {
		case u == nil:
		case ok && m.Left.IsZero() && g != nil:
			g.members[u.id], u.groups[g.id] = u, g
		case !ok || !m.Left.IsZero():
			if g != nil {
				delete(g.members, u.id)
				delete(u.groups, g.id)
			}
			if ok {
				d.leaveLater(u.leftAs(m.As), now)
			}
		}
	}
}

// leaveLater has Run look whether the process that changed memberships ended what they
// permitted. The caller holds mu.
func (d *Directory) leaveLater(list []leftGroup, now time.Time) {
	for _, l := range list {
		l.again = now.Add(foreignLook)
		d.left = append(d.left, l)
	}
}
