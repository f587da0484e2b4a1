package directory_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/store"
)

// A pair is two directories on one database, as two processes have them. Before an Update of
// one runs, it learns what the other one committed, and no earlier.
type pair struct {
	mu    sync.Mutex // one Update at a time, as the lock of the log's end has it
	store *store.Store
	seats [2]*seat
}

// A seat is the store of one process.
type seat struct {
	*store.Store
	pair *pair
	dir  *directory.Directory
	news [][]broker.Key // commits of the other process that this one has not seen
}

// putTx notes the rows that are put.
type putTx struct {
	broker.Tx
	keys *[]broker.Key
}

func (t putTx) Put(r broker.Row) {
	*t.keys = append(*t.keys, r.Key())
	t.Tx.Put(r)
}

func (s *seat) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	s.pair.mu.Lock()
	defer s.pair.mu.Unlock()
	s.learn()
	var keys []broker.Key
	err := s.Store.Update(ctx, reads, func(tx broker.Tx) error {
		keys = nil
		return f(putTx{tx, &keys})
	})
	if err == nil {
		for _, other := range s.pair.seats {
			if other != s {
				other.news = append(other.news, keys)
			}
		}
	}
	return err
}

// learn passes on what the other process committed.
func (s *seat) learn() {
	for _, keys := range s.news {
		s.dir.Changed(keys)
	}
	s.news = nil
}

func (s *seat) fresh(context.Context) error {
	s.pair.mu.Lock()
	defer s.pair.mu.Unlock()
	s.learn()
	return nil
}

// newPair returns two directories. Only the first of them is ever fresh without an Update if
// stale is true: the other one learns as late as it may.
func newPair(t *testing.T, fresh bool) *pair {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: store.URL(filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	check.OpenLog(t, s, noon)
	p := &pair{store: s}
	for i := range p.seats {
		seat := &seat{Store: s, pair: p}
		cfg := directory.Config{Store: seat, Rows: store.DirectoryRows(s), Sources: []directory.Source{{Name: "corp", Provider: "corp", Groups: directory.GroupName, Manager: directory.ManagerID}}}
		if fresh {
			cfg.Fresh = seat.fresh
		}
		if seat.dir, err = directory.Open(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		p.seats[i] = seat
	}
	return p
}

func minute(n int) broker.Caller { return broker.Caller{At: noon.Add(time.Duration(n) * time.Minute)} }

func userNamed(name string) directory.UserChange {
	return directory.UserChange{UserName: name, Subject: name, Active: true, Document: []byte("{}")}
}

func TestTwoProcessesCannotTakeOneName(t *testing.T) {
	for _, fresh := range []bool{true, false} {
		t.Run(fmt.Sprintf("fresh %t", fresh), func(t *testing.T) {
			p := newPair(t, fresh)
			var wait sync.WaitGroup
			var errs [2][20]error
			for i, seat := range p.seats {
				for n := range 20 {
					wait.Go(func() {
						_, errs[i][n] = seat.dir.CreateUser(t.Context(), minute(n), "corp", userNamed(fmt.Sprintf("ana%d", n)))
					})
				}
			}
			wait.Wait()
			for n := range 20 {
				one, two := errs[0][n], errs[1][n]
				if (one == nil) == (two == nil) || !errors.Is(errors.Join(one, two), directory.ErrUnique) {
					t.Errorf("user %d: got %v and %v, want one success and one ErrUnique", n, one, two)
				}
			}
			for _, seat := range p.seats {
				if err := seat.dir.Refresh(t.Context(), noon); err != nil {
					t.Fatal(err)
				}
			}
			if !fresh { // the last commits may be unseen
				for _, seat := range p.seats {
					_ = seat.fresh(t.Context())
					_ = seat.dir.Refresh(t.Context(), noon)
				}
			}
			a, b := p.seats[0].dir.UserIDs("corp"), p.seats[1].dir.UserIDs("corp")
			if len(a) != 20 || !slices.Equal(a, b) {
				t.Errorf("got %d and %d users, want the same 20", len(a), len(b))
			}
		})
	}
}

func TestADirectoryFollowsAnotherProcess(t *testing.T) {
	p := newPair(t, true)
	a, b := p.seats[0].dir, p.seats[1].dir
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ana, err := a.CreateUser(t.Context(), minute(0), "corp", userNamed("ana"))
	must(err)
	ben, err := b.CreateUser(t.Context(), minute(1), "corp", userNamed("ben"))
	must(err)
	admins, err := b.CreateGroup(t.Context(), minute(2), "corp", directory.GroupChange{Name: "admins", Add: []broker.DirectoryUserID{ana.ID, ben.ID}})
	must(err)
	state := func(d *directory.Directory, person string) string {
		must(d.Refresh(t.Context(), noon))
		known, _ := d.Person(person)
		return fmt.Sprint(known.Groups)
	}
	want := func(step, person, groups string) {
		t.Helper()
		for i, d := range []*directory.Directory{a, b} {
			if got := state(d, person); got != groups {
				t.Errorf("%s: process %d has %s in %s, want %s", step, i, person, got, groups)
			}
		}
	}
	want("created", "corp/ana", "[admins]")
	want("created", "corp/ben", "[admins]")

	must(a.Refresh(t.Context(), noon))
	g, err := a.Group("corp", admins.ID)
	must(err)
	_, err = a.ReplaceGroup(t.Context(), minute(3), "corp", g, directory.GroupChange{Name: "operators", Remove: []broker.DirectoryUserID{ben.ID}})
	must(err)
	want("renamed", "corp/ana", "[operators]")
	want("removed", "corp/ben", "[]")
	if n := b.Leaving("admins"); n != 2 {
		t.Errorf("got %d people who leave the old name at the other process, want 2", n)
	}

	must(b.DeleteUser(t.Context(), minute(4), "corp", ana.ID, 0))
	want("deleted", "corp/ana", "[]")
	must(b.Refresh(t.Context(), noon))
	must(b.DeleteGroup(t.Context(), minute(5), "corp", admins.ID, 0))
	must(a.Refresh(t.Context(), noon))
	if list := a.GroupIDs("corp"); len(list) != 0 {
		t.Errorf("got the groups %v, want none", list)
	}
	// An ID that the other process deleted can't be written.
	if _, err := a.ReplaceUser(t.Context(), minute(6), ana, userNamed("ana")); !errors.Is(err, directory.ErrUnknown) {
		t.Errorf("got %v for a user whom the other process deleted, want ErrUnknown", err)
	}
}

func TestATokenThatAnotherProcessRevoked(t *testing.T) {
	p := newPair(t, true)
	a, b := p.seats[0].dir, p.seats[1].dir
	token, err := a.AddToken(t.Context(), minute(0), "corp", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	known := func(d *directory.Directory) bool {
		if err := d.Refresh(t.Context(), noon); err != nil {
			t.Fatal(err)
		}
		_, ok := d.Token(token.ID, noon)
		return ok
	}
	if !known(b) {
		t.Error("the other process does not know a new token")
	}
	if _, err := b.RevokeToken(t.Context(), minute(1), token.ID); err != nil {
		t.Fatal(err)
	}
	if known(a) {
		t.Error("a token that the other process revoked is in force")
	}
}

func TestADirectoryReadsEverythingAfterManyChanges(t *testing.T) {
	p := newPair(t, false)
	a, b := p.seats[0].dir, p.seats[1].dir
	var members []broker.DirectoryUserID
	for n := range 1200 {
		u, err := a.CreateUser(t.Context(), minute(0), "corp", userNamed(fmt.Sprintf("user%04d", n)))
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, u.ID)
	}
	if _, err := a.CreateGroup(t.Context(), minute(1), "corp", directory.GroupChange{Name: "all", Add: members}); err != nil {
		t.Fatal(err)
	}
	_ = p.seats[1].fresh(t.Context())
	if err := b.Refresh(t.Context(), noon); err != nil {
		t.Fatal(err)
	}
	if known, _ := b.Person("corp/user1199"); len(b.UserIDs("corp")) != 1200 || len(known.Groups) != 1 {
		t.Errorf("got %d users, and %v for the last one; want 1200 and its group", len(b.UserIDs("corp")), known)
	}
	// The copy is complete: names are taken.
	if _, err := b.CreateUser(t.Context(), minute(2), "corp", userNamed("USER0000")); !errors.Is(err, directory.ErrUnique) {
		t.Errorf("got %v, want ErrUnique", err)
	}
}

func TestAFailedReadingIsRepeated(t *testing.T) {
	p := newPair(t, true)
	a, b := p.seats[0].dir, p.seats[1].dir
	if _, err := a.CreateUser(t.Context(), minute(0), "corp", userNamed("ana")); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Refresh(gone, noon); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if err := b.Refresh(t.Context(), noon); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.FindUser("corp", "userName", "ana"); !ok {
		t.Error("the user is missing after a reading that failed")
	}
}
