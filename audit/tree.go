package audit

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// A Tree is the Merkle tree of RFC 6962, section 2.1. It keeps only its size and
// right edge, which suffice to append records and to compute the root. It is not
// safe for concurrent use.
type Tree struct {
	size int64
	edge []tlog.Hash // roots of the complete subtrees, largest first; their sizes add up to size
}

// LoadTree returns the tree over the first size records. r reads their hashes.
func LoadTree(size int64, r tlog.HashReader) (*Tree, error) {
	if size < 0 {
		return nil, fmt.Errorf("loading the tree: negative size %d", size)
	}
	var indexes []int64
	done := int64(0)
	for level := 62; level >= 0; level-- {
		if size&(1<<level) != 0 {
			indexes = append(indexes, tlog.StoredHashIndex(level, done>>level))
			done += 1 << level
		}
	}
	edge, err := r.ReadHashes(indexes)
	if err != nil {
		return nil, fmt.Errorf("loading the tree: %w", err)
	}
	return &Tree{size, edge}, nil
}

// Size returns the number of records.
func (t *Tree) Size() int64 { return t.size }

// Append adds a record by the hash of its leaf. It returns the hashes for the
// record's row: the hash of the leaf, then those of the subtrees that the record
// completes, smallest first. Node n of a level is therefore in the row of record
// ((n+1)<<level)-1.
func (t *Tree) Append(leaf Digest) []tlog.Hash {
	hash := tlog.Hash(leaf)
	stored := append(make([]tlog.Hash, 0, 1+bits.TrailingZeros64(^uint64(t.size))), hash)
	for n := t.size; n&1 == 1; n >>= 1 {
		last := len(t.edge) - 1
		hash = tlog.NodeHash(t.edge[last], hash)
		t.edge = t.edge[:last]
		stored = append(stored, hash)
	}
	t.edge = append(t.edge, hash)
	t.size++
	return stored
}

// ReplaceLast replaces the hash that the last Append added to the right edge, so
// that a verifier can continue from a stored hash that differs from its own.
func (t *Tree) ReplaceLast(hash tlog.Hash) { t.edge[len(t.edge)-1] = hash }

// Root returns the root hash. The root of an empty tree is the hash of an empty
// string.
func (t *Tree) Root() Digest {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	root := t.edge[len(t.edge)-1]
	for _, left := range slices.Backward(t.edge[:len(t.edge)-1]) {
		root = tlog.NodeHash(left, root)
	}
	return Digest(root)
}

// Clone returns an independent copy.
func (t *Tree) Clone() *Tree { return &Tree{t.size, slices.Clone(t.edge)} }

// Rows reads the hashes in the row of a record, concatenated in the order of
// Append. Proofs use it as their tlog.HashReader.
type Rows func(record int64) ([]byte, error)

// ReadHashes implements tlog.HashReader.
func (rows Rows) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		record := (n+1)<<level - 1
		row, err := rows(record)
		if err != nil {
			return nil, fmt.Errorf("reading the hashes of record %d: %w", record, err)
		}
		if len(row) < (level+1)*tlog.HashSize {
			return nil, fmt.Errorf("reading the hashes of record %d: the row of %d bytes has no node of level %d", record, len(row), level)
		}
		copy(hashes[i][:], row[level*tlog.HashSize:])
	}
	return hashes, nil
}

// RootAt returns the root of the tree over the first size records. r reads their
// hashes.
func RootAt(size int64, r tlog.HashReader) (Digest, error) {
	if size == 0 {
		return sha256.Sum256(nil), nil
	}
	root, err := tlog.TreeHash(size, r)
	if err != nil {
		return Digest{}, fmt.Errorf("computing the root over %d records: %w", size, err)
	}
	return Digest(root), nil
}
