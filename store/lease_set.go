package store

import (
	"bytes"
	"iter"
	"slices"
	"sort"

	"accessbroker.internal/broker"
)

// A held is what the store keeps in memory of a lease whose credential may work: 40
// bytes with the hash of its holder. Texts are hashed: a caller that needs an exact
// answer reads the row.
type held struct {
	id      broker.LeaseID
	until   int64  // as in the table live or lingering
	request uint32 // random bits of the ID
	group   uint32 // its kind, and inRequest
}

// inRequest is a bit of held.group: the lease's request carries it, so that it has no row in
// live.
const inRequest = 1 << 31

func newHeld(id broker.LeaseID, until int64, request broker.RequestID, kind int32, carried bool) held {
	h := held{id, until, requestHash(request), uint32(kind)}
	if carried {
		h.group |= inRequest
	}
	return h
}

func (h *held) kind() int32 { return int32(h.group &^ inRequest) }

func (h *held) carried() bool { return h.group&inRequest != 0 }

// A leaseSet is a set of leases in the order of their ids. It is a list of chunks:
// ids are ordered by time, so almost every lease is added to the last chunk.
// Two neighbouring chunks are more than three eighths full, so a lease takes 40
// bytes if leases end in the order in which they were issued, and 107 at most. It is
// not safe for concurrent use.
type leaseSet struct {
	chunks []chunk // none of them is empty
	size   int
}

// A chunk has the hashes of its holders apart from the leases, so that the search for
// a holder reads a fifth of the memory.
type chunk struct {
	leases  []held
	holders []uint64
}

const (
	chunkSize = 512
	mergeSize = chunkSize * 3 / 4
)

// newChunk returns a chunk with copies of leases.
func newChunk(leases []held, holders []uint64) chunk {
	return chunk{append(make([]held, 0, chunkSize), leases...), append(make([]uint64, 0, chunkSize), holders...)}
}

func (c *chunk) last() broker.LeaseID { return c.leases[len(c.leases)-1].id }

func (c *chunk) full() bool { return len(c.leases) == chunkSize }

func (c *chunk) insert(at int, h held, holder uint64) {
	c.leases, c.holders = slices.Insert(c.leases, at, h), slices.Insert(c.holders, at, holder)
}

func (c *chunk) cut(from, to int) {
	c.leases, c.holders = slices.Delete(c.leases, from, to), slices.Delete(c.holders, from, to)
}

// find returns the place of a lease: its chunk, and its position there.
func (s *leaseSet) find(id broker.LeaseID) (i, at int, found bool) {
	if n := len(s.chunks); n == 0 || compareIDs(s.chunks[n-1].last(), id) < 0 {
		return n, 0, false // the usual case: it is the newest
	}
	i = sort.Search(len(s.chunks), func(i int) bool { return compareIDs(s.chunks[i].last(), id) >= 0 })
	at, found = slices.BinarySearchFunc(s.chunks[i].leases, id, func(h held, id broker.LeaseID) int { return compareIDs(h.id, id) })
	return i, at, found
}

func compareIDs(a, b broker.LeaseID) int { return bytes.Compare(a[:], b[:]) }

// put adds or replaces a lease with the hash of its holder.
func (s *leaseSet) put(h held, holder uint64) {
	i, at, found := s.find(h.id)
	if found {
		s.chunks[i].leases[at], s.chunks[i].holders[at] = h, holder
		return
	}
	s.size++
	if i == len(s.chunks) { // after all others
		if i == 0 || s.chunks[i-1].full() {
			s.chunks = append(s.chunks, newChunk(nil, nil))
		} else {
			i--
		}
		at = len(s.chunks[i].leases)
	}
	if s.chunks[i].full() {
		const half = chunkSize / 2
		s.chunks = slices.Insert(s.chunks, i+1, newChunk(s.chunks[i].leases[half:], s.chunks[i].holders[half:]))
		s.chunks[i].cut(half, chunkSize)
		if at > half {
			i, at = i+1, at-half
		}
	}
	s.chunks[i].insert(at, h, holder)
}

// remove removes a lease, if it is there.
func (s *leaseSet) remove(id broker.LeaseID) {
	i, at, found := s.find(id)
	if !found {
		return
	}
	s.size--
	s.chunks[i].cut(at, at+1)
	if len(s.chunks[i].leases) == 0 {
		s.chunks = slices.Delete(s.chunks, i, i+1)
		return
	}
	if !s.merge(i) {
		s.merge(i - 1)
	}
}

// merge moves the leases of the next chunk into a chunk if there is room.
func (s *leaseSet) merge(i int) bool {
	if i < 0 || i+1 >= len(s.chunks) || len(s.chunks[i].leases)+len(s.chunks[i+1].leases) > mergeSize {
		return false
	}
	c, next := &s.chunks[i], s.chunks[i+1]
	c.leases, c.holders = append(c.leases, next.leases...), append(c.holders, next.holders...)
	s.chunks = slices.Delete(s.chunks, i+1, i+2)
	return true
}

// join adds the leases of another set, which are all newer.
func (s *leaseSet) join(newer *leaseSet) {
	i := len(s.chunks)
	s.chunks = append(s.chunks, newer.chunks...)
	s.size += newer.size
	s.merge(i - 1)
}

// merged returns the leases of two sets. Adding those of one to the other would split the
// chunks that are full.
func merged(a, b *leaseSet) (all leaseSet) {
	if a.size == 0 {
		return *b
	}
	next, stop := iter.Pull2(b.each())
	defer stop()
	h, holder, ok := next()
	for l, of := range a.each() {
		for ; ok && compareIDs(h.id, l.id) < 0; h, holder, ok = next() {
			all.put(*h, holder)
		}
		all.put(*l, of)
	}
	for ; ok; h, holder, ok = next() {
		all.put(*h, holder)
	}
	return all
}

// each returns the leases with the hashes of their holders, the oldest first.
func (s *leaseSet) each() iter.Seq2[*held, uint64] {
	return func(yield func(*held, uint64) bool) {
		for _, c := range s.chunks {
			for at := range c.leases {
				if !yield(&c.leases[at], c.holders[at]) {
					return
				}
			}
		}
	}
}

// all returns the leases, the oldest first.
func (s *leaseSet) all() iter.Seq[*held] {
	return func(yield func(*held) bool) {
		for _, c := range s.chunks {
			for at := range c.leases {
				if !yield(&c.leases[at]) {
					return
				}
			}
		}
	}
}

// before returns the leases with lower ids than this one in chunks, the newest chunk
// first. Within a chunk, the oldest lease is first. The zero ID is above all.
func (s *leaseSet) before(id broker.LeaseID) iter.Seq[chunk] {
	return func(yield func(chunk) bool) {
		end, at := len(s.chunks), 0
		if !id.IsZero() {
			end, at, _ = s.find(id)
		}
		if at > 0 && !yield(chunk{s.chunks[end].leases[:at], s.chunks[end].holders[:at]}) {
			return
		}
		for _, c := range slices.Backward(s.chunks[:end]) {
			if !yield(c) {
				return
			}
		}
	}
}
