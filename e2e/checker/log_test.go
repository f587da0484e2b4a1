package checker

import (
	"bytes"
	"context"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
)

// A madeLog is a log that a test makes.
type madeLog struct {
	header audit.Header
	items  []audit.Item
	roots  []audit.Digest // by size
	signer *audit.Signer
}

func makeLog(t *testing.T, origin, secret, public string, reasons ...string) *madeLog {
	t.Helper()
	signer, err := audit.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	l := &madeLog{signer: signer}
	records := []audit.Record{{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}}}
	for _, reason := range reasons {
		records = append(records, audit.Record{Kind: audit.BlockPlaced, Caller: &audit.Party{ID: "login/dan", Kind: "person"}, Block: &audit.BlockFacts{Selector: "holder " + reason}})
	}
	var tree audit.Tree
	l.roots = append(l.roots, tree.Root())
	for i, r := range records {
		entry, err := r.Entry()
		if err != nil {
			t.Fatal(err)
		}
		entry.SetTime(time.Date(2026, 11, 29, 12, 0, i, 0, time.UTC))
		item := audit.Item{Index: int64(i), Leaf: bytes.Clone(entry.Leaf())}
		for _, h := range tree.Append(entry.Hash()) {
			item.Hashes = append(item.Hashes, h[:]...)
		}
		l.items, l.roots = append(l.items, item), append(l.roots, tree.Root())
	}
	l.header = audit.Header{Origin: origin, Key: public, Size: tree.Size(), Root: tree.Root()}
	return l
}

func (l *madeLog) Header(context.Context) (audit.Header, error) { return l.header, nil }

func (l *madeLog) Items(context.Context) iter.Seq2[audit.Item, error] {
	return func(yield func(audit.Item, error) bool) {
		for _, item := range l.items {
			if !yield(item, nil) {
				return
			}
		}
	}
}

// note returns the signed checkpoint over the first records.
func (l *madeLog) note(t *testing.T, size int) string {
	t.Helper()
	signed, err := l.signer.Sign(audit.Checkpoint{Origin: l.header.Origin, Size: int64(size), Root: l.roots[size]})
	if err != nil {
		t.Fatal(err)
	}
	return string(signed)
}

func TestLogContinuesCheckpoints(t *testing.T) {
	origin := audit.NewOrigin("broker.acme.test")
	secret, public, err := audit.NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	log := makeLog(t, origin, secret, public, "a", "b", "c")
	fork := makeLog(t, origin, secret, public, "a", "x", "c", "d")
	file := filepath.Join(t.TempDir(), "log.jsonl")
	var export bytes.Buffer
	if err := verify.Export(t.Context(), &export, log); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, export.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		notes []string
		want  string
	}{
		"all checkpoints":     {[]string{log.note(t, 1), log.note(t, 3), log.note(t, 4)}, ""},
		"before the fork":     {[]string{fork.note(t, 2)}, ""},
		"two of one size":     {[]string{log.note(t, 3), fork.note(t, 3)}, "their signed checkpoint has"},
		"a longer log":        {[]string{fork.note(t, 5)}, "records are missing at the end"},
		"a damaged signature": {[]string{strings.Replace(log.note(t, 3), "\n3\n", "\n2\n", 1)}, "opening a checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadLog(t.Context(), file, test.notes)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Join(got.Problems, "\n")
			if (text == "") != (test.want == "") || !strings.Contains(text, test.want) || len(got.Records) != 4 {
				t.Errorf("got %d records and %q, want 4 and %q", len(got.Records), text, test.want)
			}
		})
	}
}
