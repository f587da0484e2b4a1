package directory_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/policy"
	"accessbroker.internal/store"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// A world is a directory with its broker, on a real store.
type world struct {
	*directory.Directory
	store  *store.Store
	faults *faults
	broker *broker.Broker
}

// faults is a store whose Updates can fail, or lose their answer.
type faults struct {
	*store.Store
	fail func() (before, after error)
}

func (f *faults) Update(ctx context.Context, reads []broker.Key, g func(broker.Tx) error) error {
	if f.fail == nil {
		return f.Store.Update(ctx, reads, g)
	}
	before, after := f.fail()
	if before != nil {
		return before
	}
	if err := f.Store.Update(ctx, reads, g); err != nil {
		return err
	}
	return after
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: tables.URL(t, filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	check.OpenLog(t, s, noon)
	w := &world{store: s, faults: &faults{Store: s}}
	w.restart(t)
	return w
}

// restart opens the directory and the broker anew, as after a crash.
func (w *world) restart(t *testing.T) {
	t.Helper()
	w.faults.fail = nil
	corp := directory.Source{Name: "corp", Provider: "login", Groups: directory.GroupName, Manager: directory.ManagerID}
	d, err := directory.Open(t.Context(), directory.Config{Store: w.faults, Rows: store.DirectoryRows(w.store), Sources: []directory.Source{corp}})
	if err != nil {
		t.Fatal(err)
	}
	engine, err := policy.Load(policy.Inputs{FS: fstest.MapFS{"a.cedar": {Data: []byte("@id(\"a\")\npermit (principal, action == Action::\"view\", resource);")}}, Catalogue: broker.Catalogue{}, HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Providers: []string{"login"}})
	if err != nil {
		t.Fatal(err)
	}
	w.broker, err = broker.New(t.Context(), broker.Config{
		Store: w.faults, Reader: w.store, Blocks: w.store.Blocks, Issuers: map[string]broker.Issuer{}, Directory: d,
		Sources: map[string]broker.SourceRule{directory.FactSource("corp"): {Governs: corp.Governs}},
	}, engine.Rules(), broker.Caller{At: noon})
	if err != nil {
		t.Fatal(err)
	}
	d.Connect(w.broker.Facts)
	w.Directory = d
}

func at(d time.Duration) broker.Caller {
	return broker.Self(broker.Identity{ID: "scim:corp", Kind: broker.KindProvisioner}, noon.Add(d))
}

func change(name string, active bool) directory.UserChange {
	return directory.UserChange{UserName: name + "@acme.test", ExternalID: name, Subject: name, Active: active, Document: []byte("{}")}
}

func (w *world) user(t *testing.T, name string) *broker.DirectoryUser {
	t.Helper()
	row, err := w.CreateUser(t.Context(), at(0), "corp", change(name, true))
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// holds reports whether the person has access as far as facts know.
func (w *world) holds(t *testing.T, person string) bool {
	t.Helper()
	holds, err := w.broker.Facts.Holds(t.Context(), broker.StandingKey{Kind: broker.FactPerson, Name: person}, noon.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return holds
}

// A restart changes nothing of what the directory knows.
func TestRestartKeepsTheDirectory(t *testing.T) {
	w := newWorld(t)
	ana, bo := w.user(t, "ana"), w.user(t, "bo")
	g, err := w.CreateGroup(t.Context(), at(0), "corp", directory.GroupChange{Name: "Ops", ExternalID: "g1", Add: []broker.DirectoryUserID{ana.ID, bo.ID}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReplaceGroup(t.Context(), at(1), "corp", g, directory.GroupChange{Name: "Ops", ExternalID: "g1", Remove: []broker.DirectoryUserID{bo.ID}}); err != nil {
		t.Fatal(err)
	}
	gone := w.user(t, "gone")
	if err := w.DeleteUser(t.Context(), at(2), "corp", gone.ID, 0); err != nil {
		t.Fatal(err)
	}
	token, err := w.AddToken(t.Context(), at(3), "corp", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := w.AddToken(t.Context(), at(3), "corp", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.RevokeToken(t.Context(), at(4), revoked.ID); err != nil {
		t.Fatal(err)
	}
	before, err := w.Group("corp", g.ID)
	if err != nil {
		t.Fatal(err)
	}
	w.restart(t)
	after, err := w.Group("corp", g.ID)
	if err != nil || *after != *before {
		t.Errorf("got the group %+v, %v, want %+v", after, err, before)
	}
	if p, ok := w.Person("login/ana"); !ok || !slices.Equal(p.Groups, []string{"Ops"}) || p.Source != "scim:corp" {
		t.Errorf("ana: got %+v, %t", p, ok)
	}
	if p, ok := w.Person("login/bo"); !ok || p.Groups != nil {
		t.Errorf("bo, who left: got %+v, %t", p, ok)
	}
	if w.holds(t, "login/gone") || w.holds(t, "login/unknown") || !w.holds(t, "login/ana") {
		t.Error("the facts about people differ from the directory")
	}
	if _, ok := w.Token(token.ID, noon); !ok {
		t.Error("a token does not survive a restart")
	}
	if _, ok := w.Token(revoked.ID, noon); ok {
		t.Error("a revoked token counts again after a restart")
	}
	if _, ok := w.Token(token.ID, token.Expires); ok {
		t.Error("an expired token counts")
	}
	if _, err := w.User(t.Context(), "corp", gone.ID); !errors.Is(err, directory.ErrUnknown) {
		t.Errorf("the deleted user: got %v, want %v", err, directory.ErrUnknown)
	}
}

var errLost = errors.New("the answer is lost")

// Whatever step of a change fails, or loses its answer, no person has access whom the
// client wanted to end; and a repeated call ends in the wanted state, also after a restart.
func TestInterruptedChangesFailClosed(t *testing.T) {
	for name, c := range map[string]struct {
		run    func(*world, *broker.DirectoryUser) error
		active bool // the wanted state
	}{
		"deactivating": {func(w *world, row *broker.DirectoryUser) error {
			_, err := w.ReplaceUser(t.Context(), at(time.Second), row, change("ana", false))
			return err
		}, false},
		"deleting": {func(w *world, row *broker.DirectoryUser) error {
			return w.DeleteUser(t.Context(), at(time.Second), "corp", row.ID, 0)
		}, false},
		"renaming": {func(w *world, row *broker.DirectoryUser) error {
			_, err := w.ReplaceUser(t.Context(), at(time.Second), row, change("other", true))
			return err
		}, false},
	} {
		struck := 0
		for step := range 4 {
			for _, lost := range []bool{false, true} {
				w := newWorld(t)
				row := w.user(t, "ana")
				n, hit := 0, false
				w.faults.fail = func() (error, error) {
					n++
					switch {
					case n != step+1:
						return nil, nil
					case lost:
						hit = true
						return nil, errLost
					}
					hit = true
					return errLost, nil
				}
				err := c.run(w, row)
				if !hit {
					continue
				}
				struck++
				if err == nil {
					t.Errorf("%s, step %d, lost %t: got no error, want one", name, step, lost)
				}
				for _, restart := range []bool{false, true} {
					if restart {
						w.restart(t)
					}
					if step > 0 || lost { // the first step has ended the access
						if w.holds(t, "login/ana") != c.active {
							t.Errorf("%s, step %d, lost %t, restarted %t: the person has access", name, step, lost, restart)
						}
					}
				}
				w.faults.fail = nil
				if fresh, err := w.User(t.Context(), "corp", row.ID); err == nil {
					if err := c.run(w, fresh); err != nil {
						t.Errorf("%s, step %d, lost %t: repeated: %v", name, step, lost, err)
					}
				}
				if w.holds(t, "login/ana") {
					t.Errorf("%s, step %d, lost %t: the person has access after the repeated call", name, step, lost)
				}
			}
		}
		if struck < 3 {
			t.Errorf("%s: only %d faults were struck", name, struck)
		}
	}
}

// A change that is refused ends nothing.
func TestRefusedChangesEndNothing(t *testing.T) {
	w := newWorld(t)
	row := w.user(t, "ana")
	w.user(t, "bo")
	stale := *row
	fresh, err := w.ReplaceUser(t.Context(), at(0), row, change("ana", true))
	if err != nil {
		t.Fatal(err)
	}
	self := change("ana", false)
	self.Manager = row.ID.String()
	for name, c := range map[string]struct {
		row    *broker.DirectoryUser
		change directory.UserChange
		want   error
	}{
		"a taken name":       {fresh, change("bo", true), directory.ErrUnique},
		"an old version":     {&stale, change("ana", false), directory.ErrVersion},
		"their own manager":  {fresh, self, directory.ErrSelf},
		"not the form of it": {fresh, directory.UserChange{UserName: "x", Subject: "a b"}, nil},
	} {
		if _, err := w.ReplaceUser(t.Context(), at(time.Second), c.row, c.change); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if !w.holds(t, "login/ana") {
			t.Errorf("%s: the person lost access", name)
		}
	}
	if err := w.DeleteUser(t.Context(), at(time.Second), "corp", row.ID, stale.Version); !errors.Is(err, directory.ErrVersion) || !w.holds(t, "login/ana") {
		t.Errorf("deleting an old version: got %v", err)
	}
}

// Two changes at once take one name only once, and memory agrees with the rows afterwards.
func TestConcurrentChangesKeepNamesUnique(t *testing.T) {
	w := newWorld(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var all sync.WaitGroup
	var mu sync.Mutex
	created := 0
	for i := range 16 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 20 {
				row, err := w.CreateUser(t.Context(), at(0), "corp", change(fmt.Sprint("p", r.IntN(10)), true))
				switch {
				case errors.Is(err, directory.ErrUnique):
					continue
				case err != nil:
					t.Error(err)
					return
				}
				mu.Lock()
				created++
				mu.Unlock()
				if _, err := w.ReplaceUser(t.Context(), at(0), row, change(fmt.Sprint("p", r.IntN(10)), true)); err != nil && !errors.Is(err, directory.ErrUnique) {
					t.Error(err)
				}
				if r.IntN(2) == 0 {
					if err := w.DeleteUser(t.Context(), at(0), "corp", row.ID, 0); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	if created < 10 {
		t.Fatalf("only %d users were created", created)
	}
	names := map[string]bool{}
	list, err := w.Users(t.Context(), "corp", w.UserIDs("corp"))
	if err != nil || len(list) != len(w.UserIDs("corp")) {
		t.Fatalf("memory has %d users, the store %d, %v", len(w.UserIDs("corp")), len(list), err)
	}
	for _, u := range list {
		if names[u.UserName] {
			t.Errorf("two users are named %s", u.UserName)
		}
		names[u.UserName] = true
		if id, ok := w.FindUser("corp", "userName", u.UserName); !ok || id != u.ID {
			t.Errorf("%s is found as %v, %t", u.UserName, id, ok)
		}
	}
	before := w.UserIDs("corp")
	w.restart(t)
	if !slices.Equal(before, w.UserIDs("corp")) {
		t.Error("a restart changes the users")
	}
}

// A large group takes several transactions and records, each within its bound, and every
// member is in one of them.
func TestLargeGroupsAreRecorded(t *testing.T) {
	w := newWorld(t)
	var ids []broker.DirectoryUserID
	for i := range 1200 {
		ids = append(ids, w.user(t, fmt.Sprintf("person-with-a-long-name-%05d", i)).ID)
	}
	g, err := w.CreateGroup(t.Context(), at(0), "corp", directory.GroupChange{Name: "All", Add: ids})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.Members("corp", g.ID); len(got) != len(ids) {
		t.Errorf("got %d members, want %d", len(got), len(ids))
	}
	if err := w.DeleteGroup(t.Context(), at(1), "corp", g.ID, 0); err != nil {
		t.Fatal(err)
	}
	added, removed, records := map[string]bool{}, map[string]bool{}, 0
	for _, r := range check.Records(t, w.store) {
		if r.Kind != audit.DirectoryGroup {
			continue
		}
		records++
		for _, person := range r.Directory.Added {
			added[person] = true
		}
		for _, person := range r.Directory.Removed {
			removed[person] = true
		}
	}
	if len(added) != len(ids) || len(removed) != len(ids) || records < 10 {
		t.Errorf("%d records have %d members in and %d out, want %d", records, len(added), len(removed), len(ids))
	}
	if p, _ := w.Person("login/person-with-a-long-name-00007"); p.Groups != nil {
		t.Errorf("a member of a deleted group: got %+v", p)
	}
}

// A change of a large group that fails in the middle ends what the group permitted those
// who have left it: the repeated call does not find them in the group any more.
func TestInterruptedChangesOfGroupsEndAccess(t *testing.T) {
	for name, run := range map[string]func(*world, *directory.Group) error{
		"emptying": func(w *world, g *directory.Group) error {
			_, err := w.ReplaceGroup(t.Context(), at(1), "corp", g, directory.GroupChange{Name: "All", Clear: true})
			return err
		},
		"renaming": func(w *world, g *directory.Group) error {
			_, err := w.ReplaceGroup(t.Context(), at(1), "corp", g, directory.GroupChange{Name: "Others", Clear: true})
			return err
		},
		"deleting": func(w *world, g *directory.Group) error { return w.DeleteGroup(t.Context(), at(1), "corp", g.ID, 0) },
	} {
		w := newWorld(t)
		var ids []broker.DirectoryUserID
		for i := range 501 {
			ids = append(ids, w.user(t, fmt.Sprintf("p%d", i)).ID)
		}
		g, err := w.CreateGroup(t.Context(), at(0), "corp", directory.GroupChange{Name: "All", Add: ids})
		if err != nil {
			t.Fatal(err)
		}
		calls := 0
		w.faults.fail = func() (error, error) {
			if calls++; calls == 2 {
				return errLost, nil
			}
			return nil, nil
		}
		if err := run(w, g); err == nil || calls != 2 {
			t.Fatalf("%s: got %v after %d transactions, want the second one to fail", name, err, calls)
		}
		if left, got := len(ids)-len(w.Members("corp", g.ID)), w.Leaving("All"); left != 500 || got < left {
			t.Errorf("%s: %d left the group, and %d lose what it permitted", name, left, got)
		}
		w.faults.fail = nil
		fresh, err := w.Group("corp", g.ID)
		if err == nil {
			err = run(w, fresh)
		}
		if got := w.Leaving("All"); err != nil || got != len(ids) {
			t.Errorf("%s: repeated: %v, %d lose what the group permitted, want %d", name, err, got, len(ids))
		}
		w.restart(t)
		if got := w.Leaving("All"); got != len(ids) {
			t.Errorf("%s: after a restart, %d lose what the group permitted, want %d", name, got, len(ids))
		}
	}
}

// The end of a group's name survives a restart: whatever permitted its members something by
// that name does not any more.
func TestRestartContinuesTheEndOfAName(t *testing.T) {
	w := newWorld(t)
	ids := []broker.DirectoryUserID{w.user(t, "ana").ID, w.user(t, "bo").ID}
	g, err := w.CreateGroup(t.Context(), at(0), "corp", directory.GroupChange{Name: "one", Add: ids})
	if err != nil {
		t.Fatal(err)
	}
	change := func(now time.Duration, c directory.GroupChange) {
		t.Helper()
		if g, err = w.ReplaceGroup(t.Context(), at(now), "corp", g, c); err != nil {
			t.Fatal(err)
		}
	}
	leaving := func(want map[string]int) {
		t.Helper()
		w.restart(t)
		for name, n := range want {
			if got := w.Leaving(name); got != n {
				t.Errorf("%d lose what %q permitted, want %d", got, name, n)
			}
		}
		g, err = w.Group("corp", g.ID)
	}
	change(time.Second, directory.GroupChange{Name: "two"})
	leaving(map[string]int{"one": 2, "two": 0})
	change(2*time.Second, directory.GroupChange{Name: "three", Remove: ids[:1]})
	leaving(map[string]int{"one": 2, "two": 2, "three": 0})
	change(2*time.Hour, directory.GroupChange{Name: "three", ExternalID: "x"})
	leaving(map[string]int{"one": 1, "two": 1, "three": 0}) // the row of the first member who left
	if err := w.DeleteGroup(t.Context(), at(3*time.Hour), "corp", g.ID, 0); err != nil {
		t.Fatal(err)
	}
	leaving(map[string]int{"one": 1, "two": 1, "three": 1})
}

// A manager counts only if the directory knows an active user by the configured name.
func TestManagers(t *testing.T) {
	w := newWorld(t)
	boss, ana := w.user(t, "boss"), w.user(t, "ana")
	set := func(row *broker.DirectoryUser, name, manager string, active bool) (*broker.DirectoryUser, error) {
		c := change(name, active)
		c.Manager = manager
		return w.ReplaceUser(t.Context(), at(0), row, c)
	}
	if _, err := set(ana, "ana", ana.ID.String(), true); !errors.Is(err, directory.ErrSelf) {
		t.Errorf("their own manager: got %v, want %v", err, directory.ErrSelf)
	}
	for manager, want := range map[string]string{boss.ID.String(): "login/boss", "boss": "", "usr_0000": "", "": ""} {
		fresh, err := w.User(t.Context(), "corp", ana.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := set(fresh, "ana", manager, true); err != nil {
			t.Fatal(err)
		}
		if p, _ := w.Person("login/ana"); p.Manager != want {
			t.Errorf("manager %q: got %q, want %q", manager, p.Manager, want)
		}
	}
	fresh, err := w.User(t.Context(), "corp", ana.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set(fresh, "ana", boss.ID.String(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := set(boss, "boss", "", false); err != nil {
		t.Fatal(err)
	}
	if p, _ := w.Person("login/ana"); p.Manager != "" {
		t.Errorf("a manager who is not active: got %q, want none", p.Manager)
	}
}
