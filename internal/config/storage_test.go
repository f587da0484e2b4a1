package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStoreOfPostgreSQL(t *testing.T) {
	for name, test := range map[string]struct{ store, checkpoint, mode, want, says, warns string }{
		"a URL":               {store: "postgres://broker@db/broker", checkpoint: "cp", want: "postgres://broker@db/broker"},
		"relative files":      {store: "postgres://broker@db/broker?password_file=pw&sslrootcert=/ca.pem", checkpoint: "cp", want: "postgres://broker@db/broker?password_file=DIR/pw&sslrootcert=/ca.pem"},
		"the system's roots":  {store: "postgres://broker@db/broker?sslrootcert=system", checkpoint: "cp", want: "postgres://broker@db/broker?sslrootcert=system"},
		"a Unix socket":       {store: "postgres:///broker?host=/run/postgresql", checkpoint: "cp", want: "postgres://%2Frun%2Fpostgresql/broker"},
		"in a file":           {store: "file:url", checkpoint: "cp", want: "postgres://broker:hunter2@db/broker"},
		"in a variable":       {store: "env:STORE", checkpoint: "cp", want: "postgres://broker:hunter2@db/env"},
		"no variable":         {store: "env:NONE", checkpoint: "cp", says: `store: the store's URL is in the variable "NONE", which is not set`},
		"no checkpoint":       {store: "postgres://broker@db/broker", says: "server.checkpoint_file: with PostgreSQL, write the path of a file on this machine"},
		"weak TLS":            {store: "postgres://broker@db/broker?sslmode=require", checkpoint: "cp", want: "postgres://broker@db/broker?sslmode=require", warns: "store: sslmode=require accepts any server"},
		"a readable password": {store: "postgres://broker:hunter2@db/broker", checkpoint: "cp", mode: "644", want: "postgres://broker:hunter2@db/broker", warns: "store: other users can read the database's password in this file"},
		"a private password":  {store: "postgres://broker:hunter2@db/broker", checkpoint: "cp", want: "postgres://broker:hunter2@db/broker"},
		"an unknown option":   {store: "postgres://broker:hunter2@db/broker?sslmod=x", checkpoint: "cp", says: `store: the store's URL has the unknown option "sslmod"`},
		"a misplaced @":       {store: "postgres://broker:hun@ter2@db/broker", checkpoint: "cp", says: "write @ as %40"},
		"a file of SQLite":    {store: "postgres:///var/lib/broker.db", checkpoint: "cp", says: "store: the store's URL names the file /var/lib/broker.db: for a database of SQLite, write sqlite:/var/lib/broker.db"},
		"a path":              {store: "/var/lib/broker.db", says: `store: the store "/var/lib/broker.db" is a path and not a URL: write sqlite:/var/lib/broker.db`},
		"an open quote":       {store: `"postgres://broker:hunter2@db/broker`, checkpoint: "cp", says: "broker.yaml"},
		"a list":              {store: `[postgres://broker:hunter2@db/broker]`, checkpoint: "cp", says: "store: "},
		"a map":               {store: `{url: "postgres://broker:hunter2@db/broker"}`, checkpoint: "cp", says: "store: "},
		"a colon":             {store: `postgres: //broker:hunter2@db/broker`, checkpoint: "cp", says: "broker.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := sealedDir(t)
			text := strings.Replace(goodConfig, "store: sqlite:broker.db", "store: "+test.store, 1)
			if test.checkpoint != "" {
				text = strings.Replace(text, "  metrics:", "  checkpoint_file: "+test.checkpoint+"\n  metrics:", 1)
			}
			path, mode := filepath.Join(dir, "broker.yaml"), os.FileMode(0o600)
			if test.mode != "" {
				mode = 0o644
			}
			if err := os.WriteFile(path, []byte(text), mode); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "url"), []byte("postgres://broker:hunter2@db/broker\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := Load(path, func(name string) string {
				return map[string]string{"STORE": "postgres://broker:hunter2@db/env"}[name]
			})
			if test.says != "" {
				if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "ter2") {
					t.Errorf("got %v, want %s", err, test.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.ReplaceAll(test.want, "DIR", dir); c.Store != want || c.CheckpointFile != filepath.Join(dir, "cp") {
				t.Errorf("got %s and %s, want %s", c.Store, c.CheckpointFile, want)
			}
			warnings := strings.Join(c.Warnings, "\n")
			if !strings.Contains(warnings, test.warns) || (test.warns == "") != (warnings == "") || strings.Contains(warnings, "hunter2") {
				t.Errorf("got the warnings %q, want %q", warnings, test.warns)
			}
		})
	}
}
