package checker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"accessbroker.internal/e2e/cluster"
)

// A Mutant is a broker with a planted bug. The go command builds it with an overlay of edited
// copies, so that the shipped source has no switch for it.
type Mutant struct {
	Name  string
	Edits []Edit

	// The run that finds the bug, and the judges of which at least one must find it.
	Config Config
	Judges []string
}

// An Edit replaces a text in a file of the product, which must contain it exactly once, or
// adds a file.
type Edit struct {
	File     string // relative to the root of the product
	Old, New string // an empty Old adds the file
}

// Mutants returns the planted bugs.
func Mutants() []Mutant {
	return []Mutant{lostFence(), limitOutside(), answerEarly()}
}

// lostFence lets a group write to a head that it neither locks nor compares with the one that
// it knows. The keys of the records and of the feed are a second fence, which alone would make
// the group start again: it is lost, too.
func lostFence() Mutant {
	return Mutant{
		Name: "the fence on the head is lost",
		Edits: []Edit{
			{"store/postgres_engine.go", " FROM head FOR UPDATE`", " FROM head`"},
			{"store/feed.go", "func (s *Store) rewind() error {\n", "func (s *Store) rewind() error { return nil }\n\nfunc (s *Store) noticed() error {\n"},
			{"store/postgres_engine.go", "AS BIGINT), ?)\", g.seq", "AS BIGINT), ?) ON CONFLICT (seq) DO NOTHING\", g.seq"},
			{"store/flush.go", `VALUES (?, ?, ?, ?)"` + "\n\nfunc (g *group) writeRecords", `VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"` + "\n\nfunc (g *group) writeRecords"},
		},
		Config: Config{Length: 8 * time.Second, Clients: 12, Replicas: 2, Postgres: true, Workload: Mixed, Only: map[string]bool{}, Recovery: 5 * time.Second},
		Judges: []string{"the log verifies and continues every checkpoint", "no credential without a record", "no acknowledged write is lost"},
	}
}

// limitOutside reads the counters of limits before the transaction that takes a place, so
// that two calls at a time see the same count.
func limitOutside() Mutant {
	const early = `package broker

import "context"

// earlyTx answers reads of counters with what they were before the transaction.
type earlyTx struct {
	Tx
	counters map[Key]*Counter
}

func (tx earlyTx) Get(key Key) (Row, error) {
	k, ok := key.(CounterKey)
	if !ok {
		return tx.Tx.Get(key)
	}
	if c := tx.counters[k]; c != nil {
		return c, nil
	}
	return nil, ErrNotFound
}

func (b *Broker) readCounters(ctx context.Context, c *collection) (map[Key]*Counter, error) {
	counters := map[Key]*Counter{}
	err := b.cfg.Store.View(ctx, func(tx Tx) error {
		for _, key := range limitKeys(c.decision.Obligations, c.caller.Subject, c.e.Name) {
			row, err := Get[*Counter](tx, key)
			if err == nil {
				counters[key] = row
			} else if !isNotFound(err) {
				return err
			}
		}
		return nil
	})
	return counters, err
}
`
	return Mutant{
		Name: "a limit is read outside of the transaction",
		Edits: []Edit{
			{"broker/early_counters.go", "", early},
			{
				"broker/issue.go",
				"	receipt, err := b.write(ctx, c.reads(), record, func(tx Tx) error { return b.enter(tx, c, l) })\n",
				`	counters, err := b.readCounters(ctx, c)
	if err != nil {
		return nil, err
	}
	receipt, err := b.write(ctx, c.reads(), record, func(tx Tx) error { return b.enter(earlyTx{tx, counters}, c, l) })
`,
			},
		},
		Config: Config{Length: 10 * time.Second, Clients: 12, Replicas: 1, Workload: Bounded, Calm: 5 * time.Second, Only: map[string]bool{"SIGSTOP": true}},
		Judges: []string{"limits hold", "max_active holds"},
	}
}

// answerEarly answers the members of a group before the group is committed.
func answerEarly() Mutant {
	return Mutant{
		Name: "the answer precedes the commit",
		Edits: []Edit{{
			"store/group.go",
			`	committing = true
	if err := w.commit(ctx, g.nonce); err != nil {
		return err
	}
	// The point of no return: the group is durable, if the file is the database.
	g.adopt(s)
`,
			`	committing = true
	g.adopt(s)
	for i, m := range group {
		if i > 0 { // the first one leads
			m.wake <- struct{}{}
		}
	}
	if err := w.commit(ctx, g.nonce); err != nil {
		return err
	}
`,
		}},
		Config: Config{Length: 20 * time.Second, Clients: 24, Replicas: 1, Workload: Issuing, Calm: time.Second, Only: map[string]bool{"kill -9": true}},
		Judges: []string{"no credential without a record", "no acknowledged write is lost", "no token is accepted after its end"},
	}
}

// Build builds the mutant.
func (m *Mutant) Build(ctx context.Context, path string) error {
	dir, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	overlay, err := m.overlay(ctx, dir)
	if err != nil {
		return fmt.Errorf("planting %q: %w", m.Name, err)
	}
	return cluster.Build(ctx, path, "-overlay="+overlay)
}

// overlay writes the edited copies and the file that names them to dir.
func (m *Mutant) overlay(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "accessbroker.internal").Output()
	if err != nil {
		return "", fmt.Errorf("finding the source: %w", err)
	}
	root := strings.TrimSpace(string(out))
	edited, copies := map[string]string{}, map[string]string{}
	for _, e := range m.Edits {
		file := filepath.Join(root, e.File)
		text, err := textOf(edited, file)
		switch {
		case errors.Is(err, fs.ErrNotExist) && e.Old == "":
			edited[file] = e.New
		case err != nil:
			return "", err
		case e.Old == "":
			return "", fmt.Errorf("%s exists", e.File)
		case strings.Count(text, e.Old) != 1:
			return "", fmt.Errorf("%s contains the text to edit %d times, want once: %q", e.File, strings.Count(text, e.Old), e.Old)
		default:
			edited[file] = strings.Replace(text, e.Old, e.New, 1)
		}
	}
	for file, text := range edited {
		copies[file] = filepath.Join(dir, fmt.Sprintf("%d.go", len(copies)))
		if err := os.WriteFile(copies[file], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": copies})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, list, 0o600)
}

// textOf returns the text of a file, as edited so far.
func textOf(edited map[string]string, file string) (string, error) {
	if text, ok := edited[file]; ok {
		return text, nil
	}
	text, err := os.ReadFile(file)
	return string(text), err
}
