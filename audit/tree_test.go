package audit

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

const origin = "broker.test/log/abcdefgh"

var (
	secret, public, _ = NewLogKey(origin)
	signer, _         = NewSigner(secret)
)

// A memory is a log in memory, with the rows of a database.
type memory struct {
	tree  Tree
	items []Item
	notes []string
}

func (m *memory) append(leaf, openings []byte) {
	var row []byte
	for _, h := range m.tree.Append(Digest(tlog.RecordHash(leaf))) {
		row = append(row, h[:]...)
	}
	m.items = append(m.items, Item{int64(len(m.items)), leaf, row, openings})
}

func (m *memory) rows(record int64) ([]byte, error) {
	if record >= int64(len(m.items)) {
		return nil, errors.New("no such record")
	}
	return m.items[record].Hashes, nil
}

func (m *memory) sign(t testing.TB) []byte {
	t.Helper()
	signed, err := signer.Sign(Checkpoint{origin, m.tree.Size(), m.tree.Root()})
	if err != nil {
		t.Fatal(err)
	}
	m.notes = append(m.notes, string(signed))
	return signed
}

// leaves returns a log of n leaves that are not records.
func leaves(n int) *memory {
	m := &memory{}
	for i := range n {
		m.append(fmt.Appendf(nil, "leaf %d", i), nil)
	}
	return m
}

// The reference, golang.org/x/mod/sumdb/tlog, stores all hashes in one sequence.
func TestTreeEqualsTlog(t *testing.T) {
	m := &memory{}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, err error) {
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for n := range int64(70) {
		leaf := fmt.Appendf(nil, "leaf %d", n)
		hashes, err := tlog.StoredHashes(n, leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
		m.append(leaf, nil)
		var row []byte
		for _, h := range hashes {
			row = append(row, h[:]...)
		}
		if string(row) != string(m.items[n].Hashes) {
			t.Fatalf("the row of record %d differs from the hashes that tlog stores", n)
		}
		want, err := tlog.TreeHash(n+1, reader)
		if err != nil || m.tree.Root() != Digest(want) {
			t.Fatalf("got root %s over %d records, want %s (%v)", m.tree.Root(), n+1, want, err)
		}
		loaded, err := LoadTree(n+1, Rows(m.rows))
		if err != nil || loaded.Root() != m.tree.Root() {
			t.Fatalf("loading the tree of %d records: %v", n+1, err)
		}
		if root, err := RootAt(n/2, Rows(m.rows)); err != nil || root != rootOf(t, n/2) {
			t.Fatalf("got root %s over %d records, %v", root, n/2, err)
		}
	}
	if (&Tree{}).Root() != sha256.Sum256(nil) {
		t.Error("the root of an empty tree is not the hash of an empty string (RFC 6962, section 2.1)")
	}
	copied := m.tree.Clone()
	before := m.tree.Root()
	copied.Append(digest(1))
	copied.Append(digest(2))
	if m.tree.Root() != before {
		t.Error("appending to a clone changed the tree")
	}
}

func rootOf(t *testing.T, n int64) Digest {
	t.Helper()
	return leaves(int(n)).tree.Root()
}

func TestInclusionProofs(t *testing.T) {
	m := &memory{}
	for range 20 {
		m.append(mustEntry(t, fullRecord()).Leaf(), nil)
	}
	signed := m.sign(t)
	for index := range int64(20) {
		p, err := Prove(index, m.items[index].Leaf, signed, public, Rows(m.rows))
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var read Proof
		if err := json.Unmarshal(b, &read); err != nil {
			t.Fatal(err)
		}
		if r, err := read.Verify(public); err != nil || r.Kind != LeaseIssued {
			t.Fatalf("record %d: %v", index, err)
		}
	}
	_, otherKey, err := NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Proof){
		"another index":      func(p *Proof) { p.Index++ },
		"an index too high":  func(p *Proof) { p.Index = 20 },
		"a negative index":   func(p *Proof) { p.Index = -1 },
		"another leaf":       func(p *Proof) { p.Leaf[5] ^= 1 },
		"another hash":       func(p *Proof) { p.Hashes[0][0] ^= 1 },
		"a hash too few":     func(p *Proof) { p.Hashes = p.Hashes[1:] },
		"a hash too many":    func(p *Proof) { p.Hashes = append(p.Hashes, p.Hashes[0]) },
		"another origin":     func(p *Proof) { p.Origin = "x" },
		"another checkpoint": func(p *Proof) { p.Checkpoint = strings.Replace(p.Checkpoint, "\n20\n", "\n21\n", 1) },
	} {
		p, err := Prove(7, append([]byte(nil), m.items[7].Leaf...), signed, public, Rows(m.rows))
		if err != nil {
			t.Fatal(err)
		}
		change(p)
		if _, err := p.Verify(public); err == nil {
			t.Errorf("%s: the proof verifies", name)
		}
	}
	p, err := Prove(7, m.items[7].Leaf, signed, public, Rows(m.rows))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verify(otherKey); err == nil {
		t.Error("the proof verifies with another key of the same name")
	}
	if _, err := Prove(20, nil, signed, public, Rows(m.rows)); err == nil {
		t.Error("Prove accepted a record beyond the checkpoint")
	}
}

func TestConsistencyProofs(t *testing.T) {
	m := &memory{}
	for range 33 {
		m.append(fmt.Appendf(nil, "leaf %d", m.tree.Size()), nil)
		m.sign(t)
	}
	for _, pair := range [][2]int{{1, 33}, {7, 8}, {8, 33}, {31, 33}, {33, 33}} {
		p, err := ProveConsistency([]byte(m.notes[pair[0]-1]), []byte(m.notes[pair[1]-1]), public, Rows(m.rows))
		if err != nil {
			t.Fatal(err)
		}
		if from, to, err := p.Verify(public); err != nil || from.Size != int64(pair[0]) || to.Size != int64(pair[1]) {
			t.Errorf("%v: %v, %v, %v", pair, from, to, err)
		}
		if pair[0] < pair[1] {
			p.Hashes[0][0] ^= 1
			if _, _, err := p.Verify(public); err == nil {
				t.Errorf("%v: the proof verifies with another hash", pair)
			}
		}
	}
	if _, err := ProveConsistency([]byte(m.notes[9]), []byte(m.notes[3]), public, Rows(m.rows)); err == nil {
		t.Error("ProveConsistency accepted a log that shrank")
	}
}

func TestCheckpoints(t *testing.T) {
	c := Checkpoint{origin, 17, digest(3)}
	signed, err := signer.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenCheckpoint(signed, public); err != nil || got != c {
		t.Errorf("%+v, %v", got, err)
	}
	if !strings.HasPrefix(string(signed), origin+"\n17\nAwMD") || !strings.Contains(string(signed), "\n\n— "+origin+" ") {
		t.Errorf("not a C2SP checkpoint:\n%s", signed)
	}
	if _, err := signer.Sign(Checkpoint{"other", 1, digest(1)}); err == nil {
		t.Error("Sign accepted a checkpoint of another log")
	}
	if _, _, err := NewLogKey("a b/log/x"); err == nil {
		t.Error("NewLogKey accepted an origin with a space")
	}
	if _, err := NewSigner("PRIVATE+KEY+secret"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a malformed key: %v", err)
	}
	a, b := NewOrigin("broker.test"), NewOrigin("broker.test")
	if a == b || len(a) != len(origin) || !strings.HasPrefix(a, "broker.test/log/") {
		t.Errorf("origins: %s, %s", a, b)
	}
	for _, text := range []string{"", "o\n", "o\n1\n", "o\n01\nAAAA\n", "o\n-1\n" + c.String()[len(origin)+4:], "o\nx\n" + c.String()[len(origin)+4:], "o\n1\nAAAA\n", "\n1\n" + c.String()[len(origin)+4:], "o\n1\n" + strings.Repeat("A", 42) + "B=\n"} {
		if c, err := parseCheckpoint(text); err == nil {
			t.Errorf("%q parsed as %+v", text, c)
		}
	}
	if _, err := parseCheckpoint(c.String() + "an extension\n"); err != nil {
		t.Errorf("with an extension line: %v", err)
	}
}

func TestSyntaxOfKeysAndCheckpoints(t *testing.T) {
	m := leaves(9)
	m.sign(t)
	if err := errors.Join(CheckKey(public), CheckNote([]byte(m.notes[0]))); err != nil {
		t.Error(err)
	}
	if err := CheckKey("foo"); err == nil || !strings.Contains(err.Error(), "not the public key of a log") {
		t.Errorf("a text that is not a key: %v", err)
	}
	for text, want := range map[string]string{
		"foo": "not a signed checkpoint",
		strings.Replace(m.notes[0], "\n", "\nx", 1): "size \"x",
	} {
		if err := CheckNote([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestCheckpointFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	if signed, err := ReadCheckpointFile(path); signed != nil || err != nil {
		t.Errorf("without a file: %q, %v", signed, err)
	}
	m := leaves(9)
	nine := m.sign(t)
	m.append([]byte("more"), nil)
	if err := WriteCheckpointFile(path, []byte("older")); err != nil {
		t.Fatal(err)
	}
	if err := WriteCheckpointFile(path, nine); err != nil {
		t.Fatal(err)
	}
	signed, err := ReadCheckpointFile(path)
	if err != nil || string(signed) != string(nine) {
		t.Fatalf("got %q, %v", signed, err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("got files %v, %v, want one", files, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v", info.Mode(), err)
	}
	if err := WriteCheckpointFile(filepath.Join(path, "x", "y"), nine); err == nil {
		t.Error("WriteCheckpointFile accepted a directory that is a file")
	}

	changed := leaves(10)
	changed.items[7].Hashes[3*tlog.HashSize] ^= 1 // the node over the first 8 records
	_, foreign, err := NewLogKey("other/log/x")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		signed []byte
		public string
		log    *memory
		want   string
	}{
		"no checkpoint":  {nil, public, m, ""},
		"the log grew":   {nine, public, m, ""},
		"the same log":   {nine, public, leaves(9), ""},
		"an old copy":    {nine, public, leaves(8), "it has 8 records, and the checkpoint file covers 9"},
		"an empty log":   {nine, public, leaves(0), "it has 0 records"},
		"other records":  {nine, public, &memory{tree: *leaves(9).tree.Clone(), items: leavesFrom("x", 9).items}, "its first 9 records have the root"},
		"a changed node": {nine, public, changed, "its first 9 records have the root"},
		"another log":    {nine, foreign, m, "is not of this log"},
		"a changed file": {[]byte(strings.Replace(string(nine), "\n9\n", "\n1\n", 1)), public, m, "is not of this log"},
	} {
		err := CheckContinuation(test.signed, test.public, test.log.tree.Size(), Rows(test.log.rows))
		if test.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, ErrRollback) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "`broker audit new-epoch`") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// leavesFrom is like leaves, with other texts.
func leavesFrom(text string, n int) *memory {
	m := &memory{}
	for i := range n {
		m.append(fmt.Appendf(nil, "%s %d", text, i), nil)
	}
	return m
}

func TestCommitments(t *testing.T) {
	d, o := Commit("because")
	again, other := Commit("because")
	if d == again || o.Salt == other.Salt {
		t.Error("two commitments to one text are equal, so a guessed text can be confirmed")
	}
	if !o.Opens(d) || o.Commitment() != d || other.Opens(d) || (Opening{o.Salt, "Because"}).Opens(d) {
		t.Error("an opening must match its own commitment and no other")
	}
	// The expected value is from: printf 'accessbroker/commitment/v1\n0123456789abcdefhello' | sha256sum
	known := Opening{[16]byte([]byte("0123456789abcdef")), "hello"}
	if got := known.Commitment().String(); got != "7f623a0c0d7a11cf7ce95e485505c4e77ced5f9e340c17de9dfd5d4bc2da42e3" {
		t.Errorf("got commitment %s", got)
	}
	for _, stored := range []string{`[]`, `{"a":{"salt":"00","text":""}}`, `{"a":{"salt":"zz000000000000000000000000000000","text":""}}`, `{"a":{"colour":""}}`, `{`} {
		if o, err := DecodeOpenings([]byte(stored)); err == nil {
			t.Errorf("%s decoded to %v", stored, o)
		}
	}
}
