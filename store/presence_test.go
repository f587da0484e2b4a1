package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

// losses are the ways in which a running broker can lose the files of its database.
// Those with an undo can be taken back.
var losses = []struct {
	name string
	says string
	lose func(path string) error
	undo func(path string) error
}{
	{"database removed", "broker.db was removed", func(p string) error { return os.Remove(p) }, nil},
	{"all files removed", "broker.db was removed", func(p string) error {
		return errors.Join(os.Remove(p), os.Remove(p+"-wal"), os.Remove(p+"-shm"))
	}, nil},
	{"log removed", "broker.db-wal was removed", func(p string) error { return os.Remove(p + "-wal") }, nil},
	{"shared memory removed", "broker.db-shm was removed", func(p string) error { return os.Remove(p + "-shm") }, nil},
	{"database renamed", "broker.db was removed or moved", func(p string) error { return os.Rename(p, p+".old") }, func(p string) error { return os.Rename(p+".old", p) }},
	{"log renamed", "broker.db-wal was removed or moved", func(p string) error { return os.Rename(p+"-wal", p+".old") }, func(p string) error { return os.Rename(p+".old", p+"-wal") }},
	{"another file moved over it", "broker.db was replaced", func(p string) error {
		return errors.Join(os.Link(p, p+".kept"), os.WriteFile(p+".new", []byte("another"), 0o600), os.Rename(p+".new", p))
	}, func(p string) error { return os.Rename(p+".kept", p) }},
	{"copied over by rename", "broker.db-wal was replaced", func(p string) error {
		return errors.Join(os.Link(p+"-wal", p+".kept"), os.WriteFile(p+".new", nil, 0o600), os.Rename(p+".new", p+"-wal"))
	}, func(p string) error { return os.Rename(p+".kept", p+"-wal") }},
	{"folder renamed", "broker.db was removed or moved", func(p string) error { return os.Rename(filepath.Dir(p), filepath.Dir(p)+".old") },
		func(p string) error { return os.Rename(filepath.Dir(p)+".old", filepath.Dir(p)) }},
	{"folder replaced by a file", "broker.db cannot be reached", func(p string) error {
		return errors.Join(os.Rename(filepath.Dir(p), filepath.Dir(p)+".old"), os.WriteFile(filepath.Dir(p), nil, 0o600))
	}, func(p string) error {
		return errors.Join(os.Remove(filepath.Dir(p)), os.Rename(filepath.Dir(p)+".old", filepath.Dir(p)))
	}},
}

// openLogged opens a store in a folder of its own.
func openLogged(t *testing.T) (s *Store, path string, logged *bytes.Buffer) {
	t.Helper()
	path, logged = filepath.Join(t.TempDir(), "data", "broker.db"), &bytes.Buffer{}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{URL: "sqlite:" + path, Reserve: 1 << 16, NoSync: true, Log: slog.New(slog.NewTextHandler(logged, nil))})
	if err == nil {
		err = openLog(t.Context(), s)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, path, logged
}

// While the files are lost, nothing is written, and leases can still be read.
func TestLostFiles(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	for _, loss := range losses {
		t.Run(loss.name, func(t *testing.T) {
			s, path, logged := openLogged(t)
			earlier := newIssuance(t, 1)
			if err := earlier.store(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if err := loss.lose(path); err != nil {
				t.Fatal(err)
			}
			for n := range 3 {
				i := newIssuance(t, n)
				if err := i.store(t.Context(), s); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), loss.says) {
					t.Errorf("issuance %d: got %v, want %q", n, err, loss.says)
				}
			}
			if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), loss.says) || !strings.Contains(err.Error(), "restore a backup") {
				t.Errorf("Ping: got %v, want %q", err, loss.says)
			}
			if err := s.Degraded(); err == nil {
				t.Error("the store is not degraded")
			}
			if n := strings.Count(logged.String(), "level=ERROR"); n != 1 || !strings.Contains(logged.String(), loss.says) || !s.FilesLost() {
				t.Errorf("got %d errors in the log, lost %t, want one error:\n%s", n, s.FilesLost(), logged)
			}
			if _, err := get(t, s, earlier.lease.ID); err != nil {
				t.Errorf("reading a lease: got %v", err)
			}
			if loss.undo == nil {
				return
			}
			if err := loss.undo(path); err != nil {
				t.Fatal(err)
			}
			if err := s.Ping(t.Context()); err != nil || s.FilesLost() {
				t.Errorf("with the files back: Ping returns %v, lost %t", err, s.FilesLost())
			}
			works(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if r := verifyLog(t, open(t, path).Source()); r.Records != 4 { // the first issuance after the loss was in the file
				t.Errorf("got %d records, want 4", r.Records)
			}
		})
	}
}

// An Update whose files are lost between its COMMIT and its answer fails: its record
// is in no file that a later start would open.
func TestFilesLostBeforeTheAnswer(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	for _, step := range commitSteps {
		t.Run(step, func(t *testing.T) {
			s, path, _ := openLogged(t)
			removed := 0
			s.w.fault = func(at string, f func() error) error {
				if at == step {
					removed++
					return errors.Join(f(), os.Remove(path))
				}
				return f()
			}
			i := newIssuance(t, 1)
			err := i.store(t.Context(), s)
			if removed != 1 {
				t.Fatalf("removed %d files, want 1", removed)
			}
			if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "was removed") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A COMMIT whose answer is lost together with the files must not wait forever for
// the files: callers and revocations would hang.
func TestCommitUnknownWithLostFiles(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	s, path, _ := openLogged(t)
	s.w.fault = func(at string, f func() error) error {
		if at != "commit" {
			return f()
		}
		// Without its connection, the writer cannot read the head.
		return errors.Join(errFault, s.w.engine.closeStatements(s.w), s.w.conn.Close(), os.Rename(path, path+".old"))
	}
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	s.w.fault = nil
	if err := i.store(t.Context(), s); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("the next Update: got %v", err)
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	works(t, s)
}

// Run notices lost files without any Update.
func TestRunNoticesLostFiles(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	s, path, _ := openLogged(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	await(t, "lost", func() bool { return s.FilesLost() })
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	await(t, "back", func() bool { return !s.FilesLost() })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	works(t, s)
}

// A broker that ends must not touch the files of another database at its paths:
// SQLite would delete the other one's write-ahead log.
func TestCloseLeavesAnotherDatabaseAlone(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	s, path, _ := openLogged(t)
	works(t, s)
	want := map[string]string{path: "another database", path + "-wal": "its changes", path + "-shm": "its memory"}
	for name, content := range want {
		if err := errors.Join(os.WriteFile(name+".new", []byte(content), 0o600), os.Rename(name+".new", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for name, content := range want {
		if got, err := os.ReadFile(name); err != nil || string(got) != content {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, content)
		}
	}
}

// await waits until a condition holds. The limit only ends a test that fails.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute until the files were %s", what)
		}
	}
}

// A new connection must not read another database, such as an older copy in which
// revoked leases are active.
func TestNewConnectionsRefuseAnotherFile(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	s, path, _ := openLogged(t)
	works(t, s)
	copied, err := os.ReadFile(path)
	if err == nil {
		err = errors.Join(os.Remove(path), os.WriteFile(path, copied, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.readers.SetMaxIdleConns(0) // closes the open connections
	if err := s.View(t.Context(), func(broker.Tx) error { return nil }); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// openElsewhere opens a database in another process and returns its output.
func openElsewhere(t *testing.T, path string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), openPath+"="+path)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// openPath is the environment variable that makes the test binary open a database
// once.
const openPath = "STORE_TEST_OPEN"

// A second process is refused, whatever path leads it to the database, and leaves
// no files behind.
func TestSecondProcessIsRefused(t *testing.T) {
	storetest.OnlySQLite(t, "PostgreSQL serves several processes")
	for name, second := range map[string]func(t *testing.T, dir, path string) (string, error){
		"same path":     func(_ *testing.T, _, path string) (string, error) { return path, nil },
		"removed .lock": func(_ *testing.T, _, path string) (string, error) { return path, os.Remove(path + ".lock") },
		"hard link": func(_ *testing.T, dir, path string) (string, error) {
			return dir + "/link.db", os.Link(path, dir+"/link.db")
		},
		"symbolic link": func(_ *testing.T, dir, path string) (string, error) {
			return dir + "/link.db", os.Symlink(path, dir+"/link.db")
		},
		"hard link in another folder": func(_ *testing.T, dir, path string) (string, error) {
			return dir + "/other/broker.db", errors.Join(os.Mkdir(dir+"/other", 0o700), os.Link(path, dir+"/other/broker.db"))
		},
		"link to the folder": func(_ *testing.T, dir, path string) (string, error) {
			return dir + "/other/broker.db", errors.Join(os.Remove(path+".lock"), os.Symlink(filepath.Dir(path), dir+"/other"))
		},
		"bind mount": func(t *testing.T, dir, path string) (string, error) {
			return dir + "/other.db", errors.Join(os.WriteFile(dir+"/other.db", nil, 0o600), bindMount(t, path, dir+"/other.db"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, path, _ := openLogged(t)
			dir := t.TempDir()
			other, err := second(t, dir, path)
			if errors.Is(err, os.ErrPermission) {
				t.Skipf("only root can do this: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := slices.Concat(names(t, filepath.Dir(path)), names(t, filepath.Dir(other)))
			if out := openElsewhere(t, other); !strings.Contains(out, "in use by another broker") {
				t.Errorf("got %q", out)
			}
			if after := slices.Concat(names(t, filepath.Dir(path)), names(t, filepath.Dir(other))); !slices.Equal(after, before) {
				t.Errorf("got files %q, want %q", after, before)
			}
			works(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if out := openElsewhere(t, path); !strings.Contains(out, "opened") {
				t.Errorf("after the end of the first: got %q", out)
			}
		})
	}
}

// openOnce is the other process of openElsewhere.
func openOnce(path string) {
	s, err := Open(context.Background(), Config{URL: "sqlite:" + path, Reserve: 1 << 16})
	if err == nil {
		err = s.Close()
	}
	fmt.Println("opened", err)
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// A start that fails after Open leaves the folder as it was.
func TestDiscard(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	for name, test := range map[string]struct {
		prepare func(path string) error
		want    []string
	}{
		"an empty folder":       {func(string) error { return nil }, nil},
		"an empty file":         {func(path string) error { return os.WriteFile(path, nil, 0o600) }, []string{"broker.db"}},
		"rules of an older log": {func(path string) error { return os.MkdirAll(path+".rules/kept", 0o700) }, []string{"broker.db.rules"}},
		"a lock file":           {func(path string) error { return os.WriteFile(path+".lock", nil, 0o600) }, []string{"broker.db.lock"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "broker.db")
			if err := test.prepare(path); err != nil {
				t.Fatal(err)
			}
			s := open(t, path)
			works(t, s)
			if err := s.KeepRules(map[string][]byte{"a": []byte("b")}, map[string]audit.Digest{"a": {1}}); err != nil {
				t.Fatal(err)
			}
			if err := s.Discard(); err != nil || !s.Fresh() {
				t.Fatalf("got %v, fresh %t", err, s.Fresh())
			}
			if got := names(t, filepath.Dir(path)); !slices.Equal(got, test.want) {
				t.Errorf("got files %q, want %q", got, test.want)
			}
			if info, err := os.Stat(path); err == nil && info.Size() != 0 {
				t.Errorf("the file has %d bytes", info.Size())
			}
		})
	}
}

// Discard keeps a database that was there before, and a file that is not its own. It
// removes the lock and the reserve, unless they were there, too.
func TestDiscardKeepsOtherDatabases(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	path := filepath.Join(t.TempDir(), "broker.db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	before := names(t, filepath.Dir(path))
	s := open(t, path)
	works(t, s)
	if err := s.Discard(); err != nil || s.Fresh() {
		t.Fatalf("got %v, fresh %t", err, s.Fresh())
	}
	if got := names(t, filepath.Dir(path)); !slices.Equal(got, before) {
		t.Errorf("got files %q, want %q", got, before)
	}
	if err := errors.Join(os.Remove(path+".lock"), os.Remove(path+".reserve")); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Discard(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, filepath.Dir(path)); !slices.Equal(got, []string{"broker.db"}) {
		t.Errorf("of a copy: got files %q, want only the database", got)
	}
	if r := verifyLog(t, open(t, path).Source()); r.Records != 2 {
		t.Errorf("got %d records, want 2", r.Records)
	}

	path = filepath.Join(t.TempDir(), "broker.db")
	s = open(t, path)
	if err := errors.Join(os.WriteFile(path+".new", []byte("another"), 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "another" {
		t.Errorf("got %q, %v, want the other file", content, err)
	}
}

func TestFailedOpenLeavesNoFiles(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	for name, open := range map[string]func() error{
		"canceled": func() error {
			_, err := Open(ctx, Config{URL: "sqlite:" + dir + "/broker.db"})
			return err
		},
		"no database": func() error {
			_, err := Open(t.Context(), Config{URL: "sqlite:" + dir + "/broker.db", Existing: true})
			return err
		},
		"a folder": func() error {
			_, err := Open(t.Context(), Config{URL: "sqlite:" + dir})
			return err
		},
	} {
		if err := open(); err == nil {
			t.Errorf("%s: the database was opened", name)
		}
		if got := names(t, dir); len(got) > 0 {
			t.Errorf("%s: got files %q", name, got)
		}
		if got := names(t, filepath.Dir(dir)); len(got) != 1 {
			t.Errorf("%s: got files %q", name, got)
		}
	}
}

// A revocation whose COMMIT may have happened when the files were lost is no secret to
// introspection: readers see what the open files have, not what was read before.
func TestLeaseIsReadAgainAfterUncertainCommit(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	s, path, _ := openLogged(t)
	id := broker.NewLeaseID(time.Now())
	putLease(t, s, id, broker.LeaseActive)
	if l, err := s.Lease(t.Context(), id); err != nil || l.Status != broker.LeaseActive {
		t.Fatalf("got %+v, %v", l, err)
	}
	s.w.fault = func(step string, f func() error) error {
		if step != "commit" {
			return f()
		}
		return errors.Join(f(), errFault, s.w.engine.closeStatements(s.w), s.w.conn.Close(), os.Rename(path, path+".old"))
	}
	err := s.Update(t.Context(), []broker.Key{id}, func(tx broker.Tx) error {
		l, err := broker.Get[*broker.Lease](tx, id)
		if err != nil {
			return err
		}
		l.Status = broker.LeaseRevoked
		tx.Put(l)
		return nil
	})
	if s.w.fault = nil; !errors.Is(err, broker.ErrUnavailable) || !s.w.stale {
		t.Fatalf("got %v, stale %t, want an unknown outcome", err, s.w.stale)
	}
	if l, err := s.Lease(t.Context(), id); err != nil || l.Status != broker.LeaseRevoked {
		t.Errorf("got %+v, %v, want the revoked lease", l, err)
	}
}
