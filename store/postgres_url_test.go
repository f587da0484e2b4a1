package store

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// secret is a password that no text may show. Each URL of these tests has it where a
// password belongs, or where a mistake put it.
const secret = "hunter2"

func TestURLsAreRefusedWithoutTheirPassword(t *testing.T) {
	for _, test := range []struct{ url, says string }{
		{"", "has no URL"},
		{"mysql://u:hunter2@db/broker", `unknown scheme "mysql"`},
		{"postgre://u:hunter2@db/broker", `unknown scheme "postgre"`},
		{"POSTGRES://u:hunter2@db/broker", `unknown scheme "POSTGRES"`},
		{"postgres:u:hunter2@db/broker", "lacks the // after postgres:"},
		{"postgresql:/var/lib/broker.db", "lacks the // after postgresql:"},
		{"host=db user=u password=hunter2 dbname=broker", "written as keywords"},
		{"u:hunter2@db/broker", `unknown scheme "u"`},
		{"/var/lib/broker.db", "is a path and not a URL: write sqlite:/var/lib/broker.db"},
		{"sqlite://u:hunter2@db/broker", "begins with sqlite: and names a server"},
		{"sqlite:postgres://u:hunter2@db/broker", "begins with sqlite: and names a server"},
		{"postgres:///var/lib/broker/broker.db", "names the file /var/lib/broker/broker.db: for a database of SQLite, write sqlite:/var/lib/broker/broker.db"},
		{"postgres://u:hunter2@/broker", "names no host"},
		{"postgres://u:hunter2@:5432/broker", "empty host"},
		{"postgres://u:hunter2@a,,b/broker", "empty host"},
		{"postgres://u:hunter2@a,/broker", "empty host"},
		{"postgres://u:hunter2@db", "names no database"},
		{"postgres://u:hunter2@db/", "names no database"},
		{"postgres://u:hunter2@db/?sslmode=require", "names no database"},
		{"postgres://db/broker", "names no user"},
		{"postgres://:hunter2@db/broker", "names no user"},
		{"postgres://u:hunter2@db:0/broker", `port of host "db"`},
		{"postgres://u:hunter2@db:65536/broker", `port of host "db"`},
		{"postgres://u:hunter2@db:/broker", `port of host "db"`},
		{"postgres://u:hunter2@db:5432x/broker", `port of host "db"`},
		{"postgres://u:hunter2/broker", `port of host "u"`},
		{"postgres://u:hunter2@2001:db8::1/broker", "more than one colon"},
		{"postgres://u:hunter2@[2001:db8::1/broker", "not an IPv6 address in brackets"},
		{"postgres://u:hunter2@[db]/broker", "not an IPv6 address in brackets"},
		{"postgres://u:hunter2@d%20b/broker", `host "d b"`},
		{"postgres://u:hunter2@db'x/broker", "not a host's name"},
		{"postgres://u:hun@ter2@db/broker", "write @ as %40"},
		{"postgres://u:hunter2/x@db/broker", "write @ as %40"},
		{"postgres://u:hunter2?x@db/broker", "write @ as %40"},
		{"postgres://u:hunter2%zz@db/broker", "password in the URL of the store is not percent-encoded"},
		{"postgres://u%zz:hunter2@db/broker", "user name in the URL of the store is not percent-encoded"},
		{"postgres://u:hunter2@db/br%zz", "database's name in the store's URL is not percent-encoded"},
		{"postgres://u:hunter2@db/broker/x", "more than a database's name"},
		{"postgres://u:hunter2@db/bro ker", "space or a control character"},
		{"postgres://u:hunter2@db/" + strings.Repeat("x", 64), "longer than the 63 bytes"},
		{"postgres://u:hunter2@db/broker?sslmod=require", `unknown option "sslmod"; the options are`},
		{"postgres://u:hunter2@db/broker?pool_max_conns=5", `option "pool_max_conns" of the store's URL is not supported`},
		{"postgres://u:hunter2@db/broker?options=-csearch_path%3Dx", `option "options" of the store's URL is not supported`},
		{"postgres://u:hunter2@db/broker?sslmode=require&sslmode=disable", "option sslmode twice"},
		{"postgres://u:hunter2@db/broker?sslmode", "option sslmode of the store's URL has no value"},
		{"postgres://u:hunter2@db/broker?sslmode=verify", `option sslmode of the store's URL is "verify"; write one of verify-full`},
		{"postgres://u:hunter2@db/broker?sslrootcert=", "option sslrootcert of the store's URL is empty"},
		{"postgres://u:hunter2@db/broker?sslcert=a.pem", "only one of the options sslcert and sslkey"},
		{"postgres://u:hunter2@a,b/broker?target_session_attrs=standby", "the broker writes: use read-write"},
		{"postgres://u:hunter2@a,b/broker?target_session_attrs=writable", `is "writable"`},
		{"postgres://u:hunter2@db/broker?connect_timeout=0", "from 1 to 60"},
		{"postgres://u:hunter2@db/broker?application_name=%00", "printable ASCII"},
		{"postgres://u:hunter2@db/broker?password=hunter2", "two values for the password"},
		{"postgres://u:hunter2@db/broker?password_file=/x", "more than one way"},
		{"postgres://u@db/broker?password_file=/x&passfile=/y", "more than one way"},
		{"postgres://u:hunter2@db/broker?host=db2", "two values for the host"},
		{"postgres://u:hunter2@db/broker?port=5433", "write HOST:PORT"},
		{"postgres://u@/broker?host=/run/postgresql&sslmode=verify-full", "a Unix socket has no TLS"},
		{"postgres://u@a,b,c,d,e,f,g,h,i/broker", "names 9 hosts"},
	} {
		_, err := CheckURL(test.url)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s:\ngot  %v\nwant %s", test.url, err, test.says)
		}
		if text := fmt.Sprint(err, Redacted(test.url)); strings.Contains(text, secret) || strings.Contains(text, "ter2") {
			t.Errorf("%s: the password is in %s", test.url, text)
		}
	}
}

func TestURLsAreReadAndRedacted(t *testing.T) {
	for _, test := range []struct{ url, redacted, hosts, user, password, database string }{
		{"postgres://u@db/broker", "postgres://u@db/broker", "[db:5432 ]", "u", "", "broker"},
		{"postgresql://u:hunter2@db:6432/broker", "postgres://u:xxxxx@db:6432/broker", "[db:6432 ]", "u", secret, "broker"},
		{"postgres://u:hunter2@a,b:5433/broker?target_session_attrs=read-write", "postgres://u:xxxxx@a,b:5433/broker?target_session_attrs=read-write", "[a:5432 b:5433 ]", "u", secret, "broker"},
		{"postgres://u:p%40hunter2%3A%2F%25@[::1]:5433/broker", "postgres://u:xxxxx@[::1]:5433/broker", "[::1:5433 ]", "u", "p@hunter2:/%", "broker"},
		{`postgres://u:hunter2%27%5C@db/broker`, "postgres://u:xxxxx@db/broker", "[db:5432 ]", "u", `hunter2'\`, "broker"},
		{"postgres://o%27b%22+r:hunter2@db/it%27s%20%22+", "postgres://o%27b%22%2Br:xxxxx@db/it%27s%20%22%2B", "[db:5432 ]", `o'b"+r`, secret, `it's "+`},
		{"postgres:///broker?host=/run/postgresql", "postgres://%2Frun%2Fpostgresql/broker", "[/run/postgresql:5432 ]", "", "", "broker"},
		{"postgres://u@%2Frun%2Fpostgresql:5433/broker", "postgres://u@%2Frun%2Fpostgresql:5433/broker", "[/run/postgresql:5433 ]", "u", "", "broker"},
		{"postgres://?host=/tmp&port=5433&user=u&dbname=broker", "postgres://u@%2Ftmp:5433/broker", "[/tmp:5433 ]", "u", "", "broker"},
		{"postgres://u@db/broker?password=hunter2&sslrootcert=/etc/a%40b.pem", "postgres://u:xxxxx@db/broker?sslrootcert=/etc/a%40b.pem", "[db:5432 ]", "u", secret, "broker"},
	} {
		u, err := parsePostgresURL(test.url)
		if err != nil {
			t.Errorf("%s: %v", test.url, err)
			continue
		}
		hosts := "["
		for _, h := range u.hosts {
			hosts += fmt.Sprintf("%s:%d ", h.name, h.port)
		}
		if hosts += "]"; hosts != test.hosts || u.user != test.user || u.password != test.password || u.database != test.database {
			t.Errorf("%s: got hosts %s, user %q, password %q, database %q", test.url, hosts, u.user, u.password, u.database)
		}
		if got := Redacted(test.url); got != test.redacted {
			t.Errorf("got %s, want %s", got, test.redacted)
		}
		again, err := parsePostgresURL(u.format(u.password))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(u) || again.password != u.password {
			t.Errorf("%s does not survive being written: %v, %v", test.url, again, err)
		}
		if HasPassword(test.url) != (test.password != "") {
			t.Errorf("%s: HasPassword is wrong", test.url)
		}
	}
	if got := Redacted("sqlite:/var/lib/broker.db"); got != "sqlite:/var/lib/broker.db" {
		t.Error(got)
	}
}

func TestTLSVerifiesTheServerOffThisMachine(t *testing.T) {
	for _, test := range []struct {
		url   string
		mode  string
		warns string
	}{
		{"postgres://u@db.example/broker", "verify-full", ""},
		{"postgres://u@10.0.0.1/broker", "verify-full", ""},
		{"postgres://u@127.0.0.1,db.example/broker", "verify-full", ""},
		{"postgres://u@db.example/broker?sslrootcert=system", "verify-full", ""},
		{"postgres://u@localhost/broker", "none", ""},
		{"postgres://u@127.0.0.2/broker", "none", ""},
		{"postgres://u@[::1]/broker", "none", ""},
		{"postgres://u@localhost/broker?sslmode=verify-full", "verify-full", ""},
		{"postgres:///broker?host=/tmp", "none", ""},
		{"postgres://u@db.example/broker?sslmode=disable", "none", "readable text"},
		{"postgres://u@db.example/broker?sslmode=require", "any", "does not check the certificate"},
		{"postgres://u@db.example/broker?sslmode=prefer", "any", "with or without TLS"},
		{"postgres://u@db.example/broker?sslmode=allow", "none", "with or without TLS"},
		{"postgres://u@db.example/broker?sslmode=verify-ca", "chain", "whatever its name"},
	} {
		c, err := parsePostgres(test.url)
		if err != nil {
			t.Errorf("%s: %v", test.url, err)
			continue
		}
		if got := modeOf(c.TLSConfig, c.Host); got != test.mode {
			t.Errorf("%s: got %s, want %s", test.url, got, test.mode)
		}
		for _, f := range c.Fallbacks {
			if test.mode == "verify-full" && modeOf(f.TLSConfig, f.Host) != "verify-full" {
				t.Errorf("%s: another host is %s", test.url, modeOf(f.TLSConfig, f.Host))
			}
		}
		warnings, err := CheckURL(test.url)
		if err != nil || (test.warns == "") != (len(warnings) == 0) || !strings.Contains(strings.Join(warnings, "\n"), test.warns) {
			t.Errorf("%s: got %q, %v, want %q", test.url, warnings, err, test.warns)
		}
	}
}

func modeOf(c *tls.Config, host string) string {
	switch {
	case c == nil:
		return "none"
	case c.InsecureSkipVerify && c.VerifyPeerCertificate != nil:
		return "chain"
	case c.InsecureSkipVerify:
		return "any"
	case c.ServerName == host:
		return "verify-full"
	}
	return "another name"
}

func TestURLIgnoresTheEnvironmentOfPsql(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for name, value := range map[string]string{
		"PGHOST": "evil", "PGPORT": "1", "PGUSER": "evil", "PGDATABASE": "evil", "PGPASSWORD": "evil", "PGSSLMODE": "disable", "PGSSLROOTCERT": "/evil", "PGSSLCERT": "/evil",
		"PGSSLKEY": "/evil", "PGOPTIONS": "-c evil=1", "PGAPPNAME": "evil", "PGTARGETSESSIONATTRS": "standby", "PGTZ": "evil", "PGCONNECT_TIMEOUT": "evil", "PGREQUIREAUTH": "evil",
		"PGMINPROTOCOLVERSION": "evil", "PGCHANNELBINDING": "evil", "PGSSLNEGOTIATION": "direct", "PGSSLCERTMODE": "", "PGSERVICEFILE": "/evil",
	} {
		t.Setenv(name, value)
	}
	c, err := parsePostgres("postgres://u@db/broker")
	if err != nil {
		t.Fatal(err)
	}
	if c.Host != "db" || c.Port != 5432 || c.User != "u" || c.Database != "broker" || c.Password != "" || modeOf(c.TLSConfig, "db") != "verify-full" || c.ValidateConnect != nil ||
		fmt.Sprint(c.RuntimeParams) != "map[application_name:access-broker]" {
		t.Errorf("got %+v", c.Config)
	}
	t.Setenv("PGSERVICE", "evil")
	if _, err := parsePostgres("postgres://u@db/broker"); err == nil || !strings.Contains(err.Error(), "PGSERVICE") {
		t.Error(err)
	}
}

func TestPasswordComesFromAPrivateFile(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("PGPASSFILE", "")
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one := write("one", secret+"\n", 0o600)
	open := write("open", secret, 0o644)
	two := write("two", secret+"\nx\n", 0o600)
	lines := write("lines", "# hunter\nother:5432:broker:u:no\ndb:*:bro\\:ker:u\\\\:hun\\:ter2\n*:5432:*:u:"+secret+"\n", 0o400)
	for _, test := range []struct{ url, password, says string }{
		{"postgres://u@db/broker?password_file=" + one, secret, ""},
		{"postgres://u@db/broker?password_file=" + open, "", "can be read by other users (mode 644): run chmod 600"},
		{"postgres://u@db/broker?password_file=" + two, "", "must have one line"},
		{"postgres://u@db/broker?password_file=" + write("none", "\n", 0o600), "", "must have one line"},
		{"postgres://u@db/broker?password_file=" + dir, "", "is not a file"},
		{"postgres://u@db/broker?password_file=" + one + "x", "", "no such file"},
		{"postgres://u@db/broker?passfile=" + lines, secret, ""},
		{"postgres://u%5C@db:7/bro%3Aker?passfile=" + lines, "hun:ter2", ""},
		{"postgres://v@db:7/broker?passfile=" + lines, "", "has no line for db:7:broker:v"},
		{"postgres://u@db/broker?passfile=" + open, "", "can be read by other users"},
		{"postgres://u@/broker?host=/tmp&passfile=" + write("socket", "localhost:5432:broker:u:"+secret, 0o600), secret, ""},
		{"postgres://u@db/broker", "", ""},
	} {
		c, err := parsePostgres(test.url)
		switch {
		case test.says != "":
			if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %v", test.url, err)
			}
		case err != nil || c.Password != test.password:
			t.Errorf("%s: %v", test.url, err)
		}
	}
	write(".pgpass", "db:5432:broker:u:"+secret, 0o600)
	if c, err := parsePostgres("postgres://u@db/broker"); err != nil || c.Password != secret {
		t.Errorf("from the home directory: %v", err)
	}
	t.Setenv("PGPASSFILE", write("named", "db:*:*:*:other", 0o600))
	if c, err := parsePostgres("postgres://u@db/broker"); err != nil || c.Password != "other" {
		t.Errorf("from PGPASSFILE: %v", err)
	}
}

func TestExpandReadsReferences(t *testing.T) {
	path := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(path, []byte("postgres://u:hunter2@db/broker\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	getenv := func(name string) string { return map[string]string{"STORE": "postgres://u@db/env"}[name] }
	for reference, want := range map[string]string{
		"env:STORE": "postgres://u@db/env", "file:" + path: "postgres://u:hunter2@db/broker", "sqlite:/x": "sqlite:/x",
	} {
		if got, err := Expand(reference, getenv); got != want || err != nil {
			t.Errorf("%s: got %s, %v", reference, got, err)
		}
	}
	for reference, says := range map[string]string{"env:OTHER": "not set", "file:" + path + "x": "no such file"} {
		if _, err := Expand(reference, getenv); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", reference, err)
		}
	}
	if got := ResolveURL("postgres://u:hunter2@db/broker?sslrootcert=ca.pem&sslcert=/a&sslkey=b", "/etc/broker"); got != "postgres://u:hunter2@db/broker?sslcert=/a&sslkey=/etc/broker/b&sslrootcert=/etc/broker/ca.pem" {
		t.Error(got)
	}
	if got := ResolveURL("sqlite:broker.db", "/etc/broker"); got != "sqlite:/etc/broker/broker.db" {
		t.Error(got)
	}
}

// A URL that is not valid, and has no password, is refused for its fault and not for a
// password.
func TestHasPasswordOfInvalidURLs(t *testing.T) {
	for u, want := range map[string]bool{
		"mysql://broker@db/broker":                      false,
		"postgres://broker@db/broker?pasword_file=/x":   false,
		"postgres://broker@db:port/broker":              false,
		"/var/lib/broker/broker.db":                     false,
		"mysql://broker:hunter2@db/broker":              true,
		"postgres://broker:hun/ter@2@db/broker":         true,
		"postgres://broker:hun ter2@db/broker":          true,
		"postgres://broker:hunter2@db/broker?pasword=x": true,
		"host=db user=broker password=hunter2":          true,
	} {
		if _, err := CheckURL(u); err == nil {
			t.Errorf("%s is valid", u)
		}
		if got := HasPassword(u); got != want {
			t.Errorf("%s: got %t, want %t", u, got, want)
		}
	}
}
