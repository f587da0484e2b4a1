package audit

import "time"

// An Entry is a record made ready for the log: its canonical bytes, in which
// only the time is still to be set, and the openings of its commitments.
type Entry struct {
	leaf     []byte
	timeAt   int // offset of the time's digits in leaf
	openings []byte

	// Index and LeafHash are set by the store once the entry is durable.
	Index    int64
	LeafHash Digest
}

// Leaf gives the canonical bytes. They are the entry's: don't change them.
func (e *Entry) Leaf() []byte { return e.leaf }

// SetTime writes the time into the leaf.
func (e *Entry) SetTime(t time.Time) {
	copy(e.leaf[e.timeAt:], t.UTC().Format(timeFormat))
}

const timeFormat = "2006-01-02T15:04:05.000Z"
