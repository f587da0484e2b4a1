package store

import (
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// The queries of this package have one text, in SQLite's words. The driver of PostgreSQL
// (postgres_driver.go) translates it: placeholders, types and hints have other names there.
// Two things are not a matter of words:
//
//   - What only PostgreSQL needs stands in a comment that begins with /*+, which SQLite skips.
//     It is an ORDER BY, as a rule: SQLite reads a join in the order of its first table, and
//     PostgreSQL in any.
//   - An expression that PostgreSQL writes differently is in expressions.

// expressions are SQLite's expressions and PostgreSQL's. Both have the same placeholders in
// the same order.
var expressions = []string{
	// The role of a broker cannot change records: see logGuards.
	"UPDATE records SET openings = NULL WHERE id IN", "SELECT erase_text(id) FROM records WHERE id IN",
	"CAST(id || request || holder AS BLOB)", "id || request || convert_to(holder, 'UTF8')",
	"SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'suspensions'", "SELECT count(*) FROM pg_catalog.pg_class WHERE oid = to_regclass('suspensions')",
	"INSERT INTO carried SELECT 1, coalesce(max(id), x'') FROM requests", "INSERT INTO carried VALUES (1, x'')", // a migration of what PostgreSQL never had
	"instr(substr(body, 1, ?), ?)", "pg_catalog.position(substr(body, 1, ?::int4), ?)",
}

var expressionReplacer = strings.NewReplacer(expressions...)

// translations are the texts that were translated. They are some hundred: a text depends on
// which conditions a query has, and on the number of its keys.
type translations struct {
	mu    sync.RWMutex
	known map[string]string // texts in PostgreSQL's words, by those in SQLite's
}

// maxTranslations bounds the texts that are remembered.
const maxTranslations = 4096

var remembered translations

// translate returns a query in PostgreSQL's words.
func translate(query string) string { return remembered.of(query) }

func (r *translations) of(query string) string {
	r.mu.RLock()
	t, ok := r.known[query]
	r.mu.RUnlock()
	if ok {
		return t
	}
	t = toPostgres(expressionReplacer.Replace(query))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[string]string{}
	}
	if len(r.known) < maxTranslations {
		r.known[strings.Clone(query)] = t
	}
	return t
}

// words are SQLite's words and PostgreSQL's. An empty word is left out.
var words = map[string]string{"BLOB": "BYTEA", "INTEGER": "BIGINT", "TEXT": `TEXT COLLATE "C"`}

// toPostgres translates a text token by token.
func toPostgres(query string) string {
	w := translator{rest: query}
	for w.rest != "" {
		w.next()
	}
	return w.out.String()
}

type translator struct {
	rest string
	out  strings.Builder
	last int // the highest number of a placeholder
}

// next translates a token.
func (t *translator) next() {
	switch c := t.rest[0]; {
	case c == '\'' || c == '"':
		t.copy(quoted(t.rest, c))
	case c == '?':
		t.placeholder()
	case strings.HasPrefix(t.rest, "/*+"):
		// What only PostgreSQL needs.
		inside, after, _ := strings.Cut(t.rest[len("/*+"):], "*/")
		t.rest = inside + after
	case (c == 'x' || c == 'X') && strings.HasPrefix(t.rest[1:], "'"):
		literal := quoted(t.rest[1:], '\'')
		t.rest = t.rest[1+len(literal):]
		t.out.WriteString(`'\x` + literal[1:] + "::bytea")
	case isWord(c):
		t.word()
	default:
		_, size := utf8.DecodeRuneInString(t.rest)
		t.copy(t.rest[:size])
	}
}

func (t *translator) copy(token string) {
	t.out.WriteString(token)
	t.rest = t.rest[len(token):]
}

// quoted returns the literal or name in quotation marks at the start of a text.
func quoted(text string, mark byte) string {
	for i := 1; i < len(text); i++ {
		if text[i] != mark {
			continue
		}
		if i+1 == len(text) || text[i+1] != mark {
			return text[:i+1]
		}
		i++ // a doubled mark stands for itself
	}
	return text
}

// placeholder translates ? and ?N, which SQLite numbers in the same way.
func (t *translator) placeholder() {
	digits := 1
	for digits < len(t.rest) && t.rest[digits] >= '0' && t.rest[digits] <= '9' {
		digits++
	}
	n, err := strconv.Atoi(t.rest[1:digits])
	if err != nil {
		n = t.last + 1
	}
	t.last = max(t.last, n)
	t.rest = t.rest[digits:]
	t.out.WriteString("$" + strconv.Itoa(n))
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func firstWord(text string) string {
	n := 0
	for n < len(text) && isWord(text[n]) {
		n++
	}
	return text[:n]
}

// phrases are SQLite's phrases and PostgreSQL's. The name of an index after INDEXED BY is left
// out, too: PostgreSQL has statistics instead of hints.
var phrases = []struct{ sqlite, postgres string }{
	{"CROSS JOIN", "JOIN"}, // in SQLite, it fixes the order of the tables; ON or USING follows
	{"WITHOUT ROWID", ""},
	{"INDEXED BY", ""},
}

func (t *translator) word() {
	for _, p := range phrases {
		if !strings.HasPrefix(t.rest, p.sqlite) {
			continue
		}
		t.rest = t.rest[len(p.sqlite):]
		if p.sqlite == "INDEXED BY" {
			t.rest = strings.TrimPrefix(t.rest, " ")
			t.rest = t.rest[len(firstWord(t.rest)):]
		}
		t.out.WriteString(p.postgres)
		return
	}
	word := firstWord(t.rest)
	t.rest = t.rest[len(word):]
	if other, ok := words[word]; ok {
		word = other
	}
	t.out.WriteString(word)
}
