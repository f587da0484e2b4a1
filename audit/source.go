package audit

import (
	"context"
	"iter"
)

// A Source reads a whole log, from a database or an export.
type Source interface {
	// Header returns the log's description of itself.
	Header(ctx context.Context) (Header, error)
	// Items returns the records in the order of their index, as many as Header
	// states. The sequence can be used once. It ends after the first error.
	Items(ctx context.Context) iter.Seq2[Item, error]
}

// A Header is a log's description of itself. A verifier checks it.
type Header struct {
	Origin      string
	Key         string   // public key, as a signed-note verifier key
	Size        int64    // number of records
	Root        Digest   // root of the tree over the records
	Checkpoints []string // signed notes, each of at most Size records
}

// An Item is one stored record.
type Item struct {
	Index    int64
	Leaf     []byte
	Hashes   []byte // result of Tree.Append, or only its first hash
	Openings []byte // nil: none, or erased
}
