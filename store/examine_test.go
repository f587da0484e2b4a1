package store

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestExamineReportsWhatIsWeak(t *testing.T) {
	u := emptyPostgres(t, "")
	owner := connectPostgres(t, u)
	role := createRole(t, owner, u, "CONNECTION LIMIT 3")
	quoted := pgx.Identifier{role.user}.Sanitize()
	url := role.format(role.password)
	if r, err := Examine(t.Context(), u.format(u.password)); err != nil || !strings.Contains(strings.Join(r.Warnings, "\n"), "the next start migrates the database to schema version") {
		t.Errorf("an empty database: %v, %v", r, err)
	}
	if _, err := owner.ExecContext(t.Context(), "REVOKE CREATE ON SCHEMA public FROM PUBLIC"); err != nil {
		t.Fatal(err)
	}
	if _, err := Examine(t.Context(), url); err == nil || !strings.Contains(err.Error(), "the database is empty, and the role") {
		t.Errorf("an empty database and a role without rights: %v", err)
	}
	if _, err := migratePostgres(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	if err := grantTo(t.Context(), owner, role.user); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"ALTER ROLE " + quoted + " SET synchronous_commit = off", "GRANT UPDATE ON records TO " + quoted} {
		if _, err := owner.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Examine(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	warnings := strings.Join(r.Warnings, "\n")
	for _, says := range []string{"synchronous_commit is off", "it has UPDATE on records", "may open 3 connections"} {
		if !strings.Contains(warnings, says) {
			t.Errorf("the warnings %q lack %s", warnings, says)
		}
	}
	if text := r.String(); !strings.Contains(text, fmt.Sprintf("role %s, schema %d, TLS disable", role.user, len(migrations))) || r.Pooler || strings.Contains(text+r.URL+warnings, secret) {
		t.Errorf("got %s, %+v", text, r)
	}
}

func TestExamineNamesWhatCannotBeReached(t *testing.T) {
	u := emptyPostgres(t, "")
	owner := connectPostgres(t, u)
	role := createRole(t, owner, u, "")
	if _, err := owner.ExecContext(t.Context(), "ALTER ROLE "+pgx.Identifier{role.user}.Sanitize()+" NOLOGIN"); err != nil {
		t.Fatal(err)
	}
	gone, unknown, refused := *u, *role, *u
	gone.database += "x"
	unknown.hosts = []postgresHost{{"no-such-host.invalid", 5432}}
	refused.hosts = []postgresHost{{"127.0.0.1", 1}}
	for _, test := range []struct {
		url  string
		says string
	}{
		{gone.format(""), "the database does not exist"},
		{role.format(secret), "the database refuses the broker's role, password or certificate"},
		{unknown.format(secret), "the host name of the database has no address"},
		{refused.format(secret), "no database listens at its address"},
		{"postgres://u:hunter2@db/broker?passfil=x", "unknown option"},
	} {
		_, err := Examine(t.Context(), test.url)
		if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), secret) {
			t.Errorf("got %v, want %s", err, test.says)
		}
		_, err = Open(t.Context(), Config{URL: test.url})
		if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), secret) {
			t.Errorf("Open: got %v, want %s", err, test.says)
		}
	}
}
