package store

import (
	"os"
	"path/filepath"
	"testing"

	"accessbroker.internal/audit"

	"accessbroker.internal/internal/storetest"
)

func TestRulesAreKeptByDigest(t *testing.T) {
	storetest.OnlySQLite(t, "PostgreSQL keeps the rules in a table")
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	contents := map[string][]byte{"a.cedar": []byte("permit"), "groups.yaml": []byte("support: {}")}
	digests := map[string]audit.Digest{"a.cedar": {1}, "groups.yaml": {2}}
	for range 2 { // the second time, they are there already
		if err := s.KeepRules(contents, digests); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(path + ".rules")
	if err != nil || len(files) != len(contents) {
		t.Fatalf("kept %v, %v", files, err)
	}
	for name, content := range contents {
		kept := filepath.Join(path+".rules", digests[name].String())
		if got, err := os.ReadFile(kept); err != nil || string(got) != string(content) {
			t.Errorf("%s is kept as %q, %v", name, got, err)
		}
		if info, err := os.Stat(kept); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v, %v", name, info.Mode(), err)
		}
	}
}

func TestDatabasesAreRecognized(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	path := filepath.Join(t.TempDir(), "broker.db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !IsDatabase(content[:HeaderSize]) || IsDatabase(content[1:]) || IsDatabase(nil) {
		t.Error("IsDatabase is wrong about a database or about another file")
	}
	if FilePath("sqlite:"+path) != path || FilePath(path) != path {
		t.Errorf("the path is %q and %q, want %q", FilePath("sqlite:"+path), FilePath(path), path)
	}
}
