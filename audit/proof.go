package audit

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// A Proof is an inclusion proof (RFC 6962, section 2.1.1). Together with the
// log's public key it shows that a record is in the log. It is a JSON document.
type Proof struct {
	Origin     string      `json:"origin"`
	Index      int64       `json:"index"`
	Leaf       []byte      `json:"leaf"`   // base64 in JSON
	Hashes     []tlog.Hash `json:"hashes"` // audit path, from the leaf to the root; base64 in JSON
	Checkpoint string      `json:"checkpoint"`
}

// Prove returns the proof that leaf is the record with this index in the log of
// the signed checkpoint. r reads the hashes of the log.
func Prove(index int64, leaf []byte, signed []byte, public string, r tlog.HashReader) (*Proof, error) {
	c, err := OpenCheckpoint(signed, public)
	if err != nil {
		return nil, fmt.Errorf("proving record %d: %w", index, err)
	}
	if index < 0 || index >= c.Size {
		return nil, fmt.Errorf("proving record %d: the checkpoint covers %d records", index, c.Size)
	}
	path, err := tlog.ProveRecord(c.Size, index, r)
	if err != nil {
		return nil, fmt.Errorf("proving record %d: %w", index, err)
	}
	return &Proof{c.Origin, index, leaf, path, string(signed)}, nil
}

// Verify checks the proof with the log's public key and returns the record. The
// key must not come from the source of the proof.
func (p *Proof) Verify(public string) (Record, error) {
	c, err := OpenCheckpoint([]byte(p.Checkpoint), public)
	if err != nil {
		return Record{}, err
	}
	if p.Origin != c.Origin {
		return Record{}, fmt.Errorf("verifying a proof: its origin is %q, its checkpoint's origin is %q", p.Origin, c.Origin)
	}
	if p.Index < 0 || p.Index >= c.Size {
		return Record{}, fmt.Errorf("verifying a proof: its checkpoint covers %d records, not record %d", c.Size, p.Index)
	}
	err = tlog.CheckRecord(p.Hashes, c.Size, tlog.Hash(c.Root), p.Index, tlog.RecordHash(p.Leaf))
	if err != nil {
		return Record{}, fmt.Errorf("verifying a proof: the hashes do not lead from record %d to the root of the checkpoint", p.Index)
	}
	return Decode(p.Leaf)
}

// A Consistency is a consistency proof (RFC 6962, section 2.1.2). It shows that a
// log only grew between two checkpoints. It is a JSON document.
type Consistency struct {
	Old    string      `json:"old"` // signed notes
	New    string      `json:"new"`
	Hashes []tlog.Hash `json:"hashes"`
}

// ProveConsistency returns the proof between two signed checkpoints of a log. r
// reads the hashes of the log. The older checkpoint must cover at least one record.
func ProveConsistency(older, newer []byte, public string, r tlog.HashReader) (*Consistency, error) {
	from, to, err := openBoth(older, newer, public)
	if err != nil {
		return nil, fmt.Errorf("proving consistency: %w", err)
	}
	hashes, err := tlog.ProveTree(to.Size, from.Size, r)
	if err != nil {
		return nil, fmt.Errorf("proving consistency: %w", err)
	}
	return &Consistency{string(older), string(newer), hashes}, nil
}

// Verify checks the proof with the log's public key and returns both checkpoints.
func (p *Consistency) Verify(public string) (older, newer Checkpoint, err error) {
	older, newer, err = openBoth([]byte(p.Old), []byte(p.New), public)
	if err != nil {
		return Checkpoint{}, Checkpoint{}, fmt.Errorf("verifying consistency: %w", err)
	}
	if tlog.CheckTree(p.Hashes, newer.Size, tlog.Hash(newer.Root), older.Size, tlog.Hash(older.Root)) != nil {
		return Checkpoint{}, Checkpoint{}, fmt.Errorf("verifying consistency: the log of %d records does not continue the log of %d", newer.Size, older.Size)
	}
	return older, newer, nil
}

func openBoth(older, newer []byte, public string) (from, to Checkpoint, err error) {
	if from, err = OpenCheckpoint(older, public); err != nil {
		return from, to, err
	}
	if to, err = OpenCheckpoint(newer, public); err != nil {
		return from, to, err
	}
	if from.Size < 1 || from.Size > to.Size {
		return from, to, fmt.Errorf("the older checkpoint covers %d records, the newer one %d", from.Size, to.Size)
	}
	return from, to, nil
}
