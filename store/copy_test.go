package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accessbroker.internal/audit"
)

// toCopy creates a database of SQLite with n issuances and the rules of its log.
func toCopy(t *testing.T, n int) (path string, head Head) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "broker.db")
	s, err := Open(t.Context(), Config{URL: URL(path), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(openLog(t.Context(), s), s.KeepRules(map[string][]byte{"a.cedar": []byte("permit"), "empty": {}}, map[string]audit.Digest{"a.cedar": {1}, "empty": {2}}))
	for i := range n {
		issued := newIssuance(t, i)
		err = errors.Join(err, issued.store(t.Context(), s))
	}
	head = s.Head()
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return path, head
}

// filesOf returns the files of a folder with their contents.
func filesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	for _, path := range list {
		if content, err := os.ReadFile(path); err == nil { // not a folder
			files[filepath.Base(path)] = string(content)
		}
	}
	return files
}

func TestCopyMovesADatabaseToPostgres(t *testing.T) {
	const issuances = 300
	path, head := toCopy(t, issuances)
	before := filesOf(t, filepath.Dir(path))
	u := emptyPostgres(t, "")
	role := createRole(t, connectPostgres(t, u), u, "")
	to := role.format(role.password)
	shown := map[string]int64{}
	report, err := Copy(t.Context(), URL(path), u.format(u.password), CopyOptions{Roles: []string{role.user}, Progress: func(table string, done, of int64) { shown[table] = done }})
	if err != nil {
		t.Fatal(err)
	}
	if report.Records != head.Size || report.Root != head.Root || report.Tables["records"] != head.Size || report.Tables["rule_files"] != 2 || shown["records"] != head.Size {
		t.Errorf("got %+v, the log has %d records", report, head.Size)
	}
	after := filesOf(t, filepath.Dir(path))
	if !strings.Contains(after["broker.db.moved"], fmt.Sprintf("with %d records", head.Size)) {
		t.Errorf("the marker is %q", after["broker.db.moved"])
	}
	delete(after, "broker.db.moved")
	delete(after, "broker.db.lock")
	delete(before, "broker.db.lock")
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Error("the files of the source changed")
	}
	if _, err := Open(t.Context(), Config{URL: URL(path)}); err == nil || !strings.Contains(err.Error(), "Serving it again would fork the log") {
		t.Errorf("opening the source: %v", err)
	}

	// The broker continues in the copy, with its own role.
	s, err := Open(t.Context(), Config{URL: to})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if got := s.Head(); got.Size != head.Size || got.Root != head.Root {
		t.Errorf("the head is %+v, want %+v", got, head)
	}
	more := newIssuance(t, issuances)
	if err := more.store(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if r := verifyLog(t, s.Source()); r.Records != head.Size+1 {
		t.Errorf("the copy has %d records, want %d", r.Records, head.Size+1)
	}
	if files, err := s.keptRules(t.Context(), map[string]audit.Digest{"a.cedar": {1}, "empty": {2}}); err != nil || len(files) != 2 || string(files["a.cedar"]) != "permit" {
		t.Errorf("the rules are %q, %v", files, err)
	}
	if _, err := Copy(t.Context(), URL(path), u.format(u.password), CopyOptions{}); err == nil || !strings.Contains(err.Error(), "This database was copied to postgres://") {
		t.Errorf("copying again: %v", err)
	}
	if err := os.Remove(report.Marker); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), URL(path), u.format(u.password), CopyOptions{}); err == nil || !strings.Contains(err.Error(), "the target has rows in the table") {
		t.Errorf("copying into a database with rows: %v", err)
	}
	if _, err := os.Stat(report.Marker); err == nil {
		t.Error("a copy that was refused left a marker")
	}
}

func TestCopyIsCompleteOrNothing(t *testing.T) {
	for _, test := range []struct{ name, statement, says string }{
		{"a value of another type", "UPDATE requests SET lapses = 'soon' WHERE id = (SELECT min(id) FROM requests)", "copying the table requests: row 1: the column lapses has a value of another type (string)"},
		{"a text that PostgreSQL refuses", "UPDATE logs SET public = 'a' || char(0)", "copying the table logs: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			path, head := toCopy(t, 3)
			change := func(statement string) {
				db, err := sql.Open(driverName, path)
				if err != nil {
					t.Fatal(err)
				}
				_, err = db.ExecContext(t.Context(), statement)
				if err := errors.Join(err, db.Close()); err != nil {
					t.Fatal(err)
				}
			}
			kept, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			change(test.statement)
			u := emptyPostgres(t, "")
			to := u.format(u.password)
			if _, err := Copy(t.Context(), URL(path), to, CopyOptions{}); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %s", err, test.says)
			}
			if _, err := os.Stat(movedMarker(path)); err == nil {
				t.Error("a copy that failed left a marker")
			}
			for _, suffix := range []string{"-wal", "-shm"} {
				_ = os.Remove(path + suffix)
			}
			if err := os.WriteFile(path, kept, 0o600); err != nil {
				t.Fatal(err)
			}
			if report, err := Copy(t.Context(), URL(path), to, CopyOptions{}); err != nil || report.Records != head.Size {
				t.Errorf("copying again: %+v, %v", report, err)
			}
		})
	}
}

func TestCopyRefusesSources(t *testing.T) {
	path, _ := toCopy(t, 0)
	dir := filepath.Dir(path)
	text := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("notes ", 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	u := emptyPostgres(t, "")
	to := u.format(u.password)
	for source, says := range map[string]string{
		URL(path + "x"):                "does not exist",
		URL(text):                      "is not the database of a broker",
		"postgres://u:hunter2@db/name": "unknown",
	} {
		if _, err := Copy(t.Context(), source, to, CopyOptions{}); err == nil || strings.Contains(err.Error(), secret) || says != "unknown" && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", source, err)
		}
	}
	if _, err := os.Stat(path + "x"); err == nil {
		t.Error("copying from no database created one")
	}
	s, err := Open(t.Context(), Config{URL: URL(path), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), URL(path), to, CopyOptions{}); err == nil || !strings.Contains(err.Error(), "in use by another broker") {
		t.Errorf("a running broker: %v", err)
	}
	_, err = s.w.conn.ExecContext(t.Context(), "PRAGMA user_version = 12")
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), URL(path), to, CopyOptions{}); err == nil || !strings.Contains(err.Error(), "broker store migrate --store sqlite:") {
		t.Errorf("an older schema: %v", err)
	}
	role := createRole(t, connectPostgres(t, u), u, "")
	if _, err := Copy(context.Background(), URL(path), role.format(role.password), CopyOptions{}); err == nil {
		t.Error("a role that owns nothing is accepted")
	}
}
