package store

import (
	"strconv"
	"testing"
)

func TestTranslateWritesPostgreSQL(t *testing.T) {
	for _, c := range []struct{ name, sqlite, postgres string }{
		{"placeholders", "SELECT a FROM t WHERE b = ? AND c IN (?, ?)", "SELECT a FROM t WHERE b = $1 AND c IN ($2, $3)"},
		{"numbered placeholders", "SELECT ?2, ?1, ?", "SELECT $2, $1, $3"},
		{"many placeholders", "id IN (?1,?2,?12)", "id IN ($1,$2,$12)"},
		{"hint", "SELECT id FROM notices INDEXED BY notices_told WHERE due IS NULL", "SELECT id FROM notices  WHERE due IS NULL"},
		{"join", "FROM a CROSS JOIN b ON a.id = b.id", "FROM a JOIN b ON a.id = b.id"},
		{"join using", "FROM k CROSS JOIN uses USING (a, b)", "FROM k JOIN uses USING (a, b)"},
		{"bytes", "VALUES (x'', X'00ff')", `VALUES ('\x'::bytea, '\x00ff'::bytea)`},
		{"literals", `SELECT '? x''00'' CROSS JOIN', "a ""?"" b", 'it''s' WHERE a = ?`, `SELECT '? x''00'' CROSS JOIN', "a ""?"" b", 'it''s' WHERE a = $1`},
		{"names that end in x", "SELECT max('a'), ex, x FROM x", "SELECT max('a'), ex, x FROM x"},
		{"table", "CREATE TABLE t (id BLOB NOT NULL PRIMARY KEY, n INTEGER, name TEXT NOT NULL) WITHOUT ROWID;",
			`CREATE TABLE t (id BYTEA NOT NULL PRIMARY KEY, n BIGINT, name TEXT COLLATE "C" NOT NULL) ;`},
		{"only PostgreSQL", "SELECT a FROM b /*+ ORDER BY a LIMIT ?*/", "SELECT a FROM b  ORDER BY a LIMIT $1"},
		{"expression", "SELECT 1 WHERE instr(substr(body, 1, ?), ?) AND c = ?", "SELECT 1 WHERE pg_catalog.position(substr(body, 1, $1::int4), $2) AND c = $3"},
		{"open literal", "SELECT 'a", "SELECT 'a"},
		{"letters", "SELECT 'é' AS é", "SELECT 'é' AS é"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := translate(c.sqlite); got != c.postgres {
				t.Errorf("got  %q\nwant %q", got, c.postgres)
			}
		})
	}
}

func TestTranslateRemembersABoundedNumberOfTexts(t *testing.T) {
	var r translations
	for n := range maxTranslations + 10 {
		if got, want := r.of("SELECT ?"+strconv.Itoa(n+1)), "SELECT $"+strconv.Itoa(n+1); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if n := len(r.known); n != maxTranslations {
		t.Errorf("got %d texts, want %d", n, maxTranslations)
	}
}
