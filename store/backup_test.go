package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"

	"accessbroker.internal/internal/storetest"
)

func checkLog(ctx context.Context, src audit.Source) error {
	_, err := verify.Verify(ctx, src, verify.Options{})
	return err
}

func backUp(t *testing.T, database, file string, o BackupOptions) *BackupInfo {
	t.Helper()
	o.Check = checkLog
	info, err := Backup(t.Context(), database, file, o)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// A store with enough pages for several steps of a backup, and with the file of a rule.
func storeToBackUp(t *testing.T) (s *Store, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "broker.db")
	s = open(t, path)
	for i := range 40 {
		if err := issueOne(t, s, i); err != nil {
			t.Fatal(err)
		}
	}
	fill := strings.Repeat("x", 1<<20)
	for range 2 {
		if err := s.exec(t.Context(), func(ctx context.Context, w *writer) error {
			return w.exec(ctx, "INSERT INTO checkpoints (id, note) VALUES (?, ?)", -int64(len(fill)), fill)
		}); err != nil {
			t.Fatal(err)
		}
		fill += "x"
	}
	rules := []byte("permit (principal, action, resource);")
	if err := s.KeepRules(map[string][]byte{"a": rules}, map[string]audit.Digest{"a": sha256.Sum256(rules)}); err != nil {
		t.Fatal(err)
	}
	return s, path
}

func issueOne(t *testing.T, s *Store, n int) error {
	t.Helper()
	i := newIssuance(t, n)
	return i.store(t.Context(), s)
}

// A broker that commits during a backup does not disturb it: the copy is as of its start.
func TestBackupIsOneSnapshotOfADatabaseInUse(t *testing.T) {
	storetest.OnlySQLite(t, "a backup is a file of SQLite")
	s, path := storeToBackUp(t)
	before := s.Head()
	steps := 0
	file := filepath.Join(t.TempDir(), "b.backup")
	info := backUp(t, path, file, BackupOptions{Program: "test", step: func() {
		steps++
		if err := issueOne(t, s, 100+steps); err != nil {
			t.Error(err)
		}
	}})
	if steps < 2 {
		t.Errorf("%d steps, want several", steps)
	}
	if s.Head().Size < before.Size+int64(steps) {
		t.Errorf("the log has %d records, want %d more than %d", s.Head().Size, steps, before.Size)
	}
	if info.Records != before.Size || info.Root != before.Root || info.Rules != 1 || info.Program != "test" {
		t.Errorf("got %+v, want the head %+v", info, before)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 || st.Size() != info.Size {
		t.Errorf("the file: %v, %v", st, err)
	}
	again, err := VerifyBackup(t.Context(), file, checkLog)
	if err != nil || *again != *info {
		t.Errorf("verifying: got %+v, %v, want %+v", again, err, info)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(file), "*")); err != nil || len(left) != 1 {
		t.Errorf("got files %q (%v), want the backup alone", left, err)
	}
	src, err := OpenSource(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	verifyLog(t, src)
	if err := src.Close(); err != nil {
		t.Error(err)
	}
}

// A backup of a database that no broker uses is the same, and changes no file next to it.
func TestBackupWithoutABroker(t *testing.T) {
	storetest.OnlySQLite(t, "a backup is a file of SQLite")
	s, path := storeToBackUp(t)
	size := s.Head().Size
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b.backup")
	if info := backUp(t, "sqlite:"+path, file, BackupOptions{}); info.Records != size {
		t.Errorf("got %d records, want %d", info.Records, size)
	}
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the backup left a write-ahead log: %v", err)
	}
}

func TestBackupRefusesFiles(t *testing.T) {
	storetest.OnlySQLite(t, "a backup is a file of SQLite")
	_, path := storeToBackUp(t)
	dir := t.TempDir()
	exists, pipe := filepath.Join(dir, "exists"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(exists, []byte("mine"), 0o644), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		file    string
		replace bool
		says    string
	}{
		{exists, false, "exists"},
		{"-", true, "standard output"},
		{"", true, "standard output"},
		{dir, true, "is a folder"},
		{pipe, true, "pipe"},
		{path, true, "belongs to the database"},
		{path + ".lock", true, "belongs to the database"},
		{filepath.Join(dir, "none", "x"), false, "no such file"},
	} {
		if _, err := Backup(t.Context(), path, test.file, BackupOptions{Replace: test.replace}); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%q: got %v, want %q", test.file, err, test.says)
		}
	}
	if text, err := os.ReadFile(exists); err != nil || string(text) != "mine" {
		t.Errorf("the file that exists: %q, %v", text, err)
	}
	if backUp(t, path, exists, BackupOptions{Replace: true}); !isBackup(t, exists) {
		t.Error("the file was not replaced")
	}
	if _, err := Backup(t.Context(), filepath.Join(dir, "no.db"), filepath.Join(dir, "y"), BackupOptions{}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no database: %v", err)
	}
}

func isBackup(t *testing.T, file string) bool {
	t.Helper()
	_, err := VerifyBackup(t.Context(), file, nil)
	return err == nil
}

// A backup that does not finish leaves no file, and one that was killed is in no one's way.
func TestBackupIsWrittenCompletelyOrNotAtAll(t *testing.T) {
	storetest.OnlySQLite(t, "a backup is a file of SQLite")
	_, path := storeToBackUp(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "b.backup")
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Backup(ctx, path, file, BackupOptions{step: cancel}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	broken := errors.New("the log is broken")
	if _, err := Backup(t.Context(), path, file, BackupOptions{Check: func(context.Context, audit.Source) error { return broken }}); !errors.Is(err, broken) {
		t.Errorf("a log that does not verify: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Fatalf("got files %v (%v), want none", left, err)
	}
	if err := os.WriteFile(file+".partial", []byte("of a process that was killed"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := createPartial(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Backup(t.Context(), path, file, BackupOptions{}); err == nil || !strings.Contains(err.Error(), "another process is writing it") {
		t.Errorf("two at once: %v", err)
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	if backUp(t, path, file, BackupOptions{}); !isBackup(t, file) {
		t.Error("there is no backup")
	}
}

// A process that is killed between the two steps of naming a file leaves it with both names.
func TestPartialFileKeepsWhatHasItsName(t *testing.T) {
	storetest.OnlySQLite(t, "a backup is a file of SQLite")
	file := filepath.Join(t.TempDir(), "b.backup")
	if err := os.WriteFile(file, []byte("complete"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(file, file+".partial"); err != nil {
		t.Fatal(err)
	}
	p, err := createPartial(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "complete" {
		t.Errorf("got %q, %v", got, err)
	}
}

// Root works in folders of other users, who must not lead it to other files.
func TestFilesAreNotWrittenThroughLinks(t *testing.T) {
	storetest.OnlySQLite(t, "the files are those of SQLite")
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "broker.db")
	if err := os.WriteFile(victim, []byte("as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	for suffix, write := range map[string]func() error{
		".lock":    func() error { _, err := lockFile(path + ".lock"); return err },
		".new":     func() error { return writeFile(path, []byte("other")) },
		".partial": func() error { _, err := (&partial{path: path + ".partial"}).open(0); return err },
	} {
		if err := os.Symlink(victim, path+suffix); err != nil {
			t.Fatal(err)
		}
		if err := write(); err == nil {
			t.Errorf("%s: got no error", suffix)
		}
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "as it was" {
		t.Errorf("got %q, %v", got, err)
	}
	if os.Geteuid() != 0 {
		return
	}
	foreign := filepath.Join(dir, "foreign")
	if err := errors.Join(os.WriteFile(foreign+".partial", nil, 0o600), os.Chown(foreign+".partial", 4711, 4711)); err != nil {
		t.Fatal(err)
	}
	if _, err := createPartial(foreign); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Errorf("a file of another user: got %v", err)
	}
}

func TestVerifyBackupFindsDamage(t *testing.T) {
	storetest.OnlySQLite(t, "a backup is a file of SQLite")
	_, path := storeToBackUp(t)
	for name, test := range map[string]struct{ sql, says string }{
		"a changed row":      {"UPDATE requests SET body = x'00' WHERE id = (SELECT min(id) FROM requests)", "rows are not those"},
		"a missing row":      {"DELETE FROM requests WHERE id = (SELECT min(id) FROM requests)", "rows are not those"},
		"a foreign row":      {"INSERT INTO signing_keys VALUES (x'00', x'00', 'token')", "rows are not those"},
		"a changed rule":     {"UPDATE backup_files SET content = 'permit' WHERE name LIKE 'rules/%'", "is damaged"},
		"a missing rule":     {"DELETE FROM backup_files WHERE name LIKE 'rules/%'", "rows are not those"},
		"another manifest":   {"UPDATE backup_files SET content = replace(content, '\"records\":', '\"records\":1') WHERE name = 'manifest.json'", "rows are not those"},
		"a newer format":     {"UPDATE backup_files SET content = replace(content, '\"format\":1', '\"format\":7') WHERE name = 'manifest.json'", "format 7"},
		"a database":         {"DROP TABLE backup_files", "it is no backup"},
		"no database's rows": {"DROP TABLE head", "no such table"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "b.backup")
			backUp(t, path, file, BackupOptions{})
			db, err := openCopy(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = db.ExecContext(t.Context(), test.sql)
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := VerifyBackup(t.Context(), file, checkLog); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q", err, test.says)
			}
			if _, err := Restore(t.Context(), file, filepath.Join(t.TempDir(), "x.db"), RestoreOptions{Check: checkLog}); err == nil {
				t.Error("it was restored")
			}
		})
	}
	t.Run("truncated", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "b.backup")
		info := backUp(t, path, file, BackupOptions{})
		if err := os.Truncate(file, info.Size/2); err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyBackup(t.Context(), file, checkLog); err == nil {
			t.Error("it was accepted")
		}
	})
}

// Restore replaces a database in one step and deletes none.
func TestRestore(t *testing.T) {
	storetest.OnlySQLite(t, "a backup is a file of SQLite")
	s, path := storeToBackUp(t)
	file := filepath.Join(t.TempDir(), "b.backup")
	info := backUp(t, path, file, BackupOptions{})
	if err := issueOne(t, s, 500); err != nil { // after the backup
		t.Fatal(err)
	}
	later := s.Head()
	if _, err := Restore(t.Context(), file, path, RestoreOptions{}); !errors.Is(err, ErrExists) {
		t.Errorf("a database is there: got %v, want %v", err, ErrExists)
	}
	if _, err := Restore(t.Context(), file, path, RestoreOptions{Replace: true}); err == nil || !strings.Contains(err.Error(), "in use by another broker") {
		t.Errorf("a broker runs: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path + ".rules"); err != nil {
		t.Fatal(err)
	}
	r, err := Restore(t.Context(), file, path, RestoreOptions{Replace: true, Check: checkLog})
	if err != nil {
		t.Fatal(err)
	}
	restored := open(t, path)
	if head := restored.Head(); head.Size != info.Records || head.Root != info.Root {
		t.Errorf("restored: got the head %+v, want %+v", head, info)
	}
	if rules, err := os.ReadDir(path + ".rules"); err != nil || len(rules) != 1 {
		t.Errorf("restored rules: %v, %v", rules, err)
	}
	works(t, restored)
	var tables int
	if err := restored.readers.QueryRow("SELECT count(*) FROM sqlite_schema WHERE name = 'backup_files'").Scan(&tables); err != nil || tables != 0 {
		t.Errorf("the table of the backup is still there: %d, %v", tables, err)
	}
	if aside := open(t, r.Aside); aside.Head().Size != later.Size {
		t.Errorf("the database from before: got %d records, want %d", aside.Head().Size, later.Size)
	}
}

func TestRestoreToAnEmptyPlace(t *testing.T) {
	storetest.OnlySQLite(t, "a backup is a file of SQLite")
	_, path := storeToBackUp(t)
	file, to := filepath.Join(t.TempDir(), "b.backup"), filepath.Join(t.TempDir(), "new.db")
	info := backUp(t, path, file, BackupOptions{})
	r, err := Restore(t.Context(), file, "sqlite:"+to, RestoreOptions{Check: checkLog})
	if err != nil || r.Aside != "" {
		t.Fatalf("got %+v, %v", r, err)
	}
	if _, err := os.Stat(to + ".partial"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a partial file is left: %v", err)
	}
	if head := open(t, to).Head(); head.Size != info.Records {
		t.Errorf("got %d records, want %d", head.Size, info.Records)
	}
}
