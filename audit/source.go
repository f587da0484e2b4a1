package audit

import (
	"context"
	"iter"
)

// A Source is a whole log to be verified or exported: a database or an export.
type Source interface {
	// Header gives what the log says of itself.
	Header(ctx context.Context) (Header, error)
	// Items gives the records in the order of their index, as many as the
	// header says. It can be ranged over once. It ends with the first error.
	Items(ctx context.Context) iter.Seq2[Item, error]
}

// A Header is what a log says of itself.
type Header struct {
	Origin      string
	Key         string   // its public key, as a signed-note verifier key
	Size        int64    // number of records
	Root        Digest   // of the tree over them
	Checkpoints []string // signed notes, of any size up to Size
}

// An Item is one record as it is stored.
type Item struct {
	Index    int64
	Leaf     []byte
	Hashes   []byte // those of Tree.Append, or at least the first
	Openings []byte // nil: there are none, or they were erased
}
