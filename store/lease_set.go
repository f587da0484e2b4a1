package store

import (
	"bytes"
	"iter"
	"slices"
	"sort"

	"accessbroker.internal/broker"
)

// A held is what the store keeps in memory of a lease whose credential may work: 48
// bytes. Texts are hashed: a caller that needs an exact answer reads the row.
type held struct {
	id      broker.LeaseID
	until   int64  // as in the table live or lingering
	holder  uint64 // hash
	request uint64 // the random part of the ID
	kind    int64
}

// A leaseSet is a set of leases in the order of their ids. It is a list of chunks:
// ids are ordered by time, so almost every lease is added to the last chunk.
// Two neighbouring chunks are more than three eighths full, so a lease takes 48
// bytes if leases end in the order in which they were issued, and 128 at most. It is
// not safe for concurrent use.
type leaseSet struct {
	chunks [][]held // none of them is empty
	size   int
}

const (
	chunkSize = 512
	mergeSize = chunkSize * 3 / 4
)

// find returns the place of a lease: its chunk, and its position there.
func (s *leaseSet) find(id broker.LeaseID) (chunk, at int, found bool) {
	if n := len(s.chunks); n == 0 || compareIDs(s.chunks[n-1][len(s.chunks[n-1])-1].id, id) < 0 {
		return n, 0, false // the usual case: it is the newest
	}
	chunk = sort.Search(len(s.chunks), func(i int) bool { return compareIDs(s.chunks[i][len(s.chunks[i])-1].id, id) >= 0 })
	at, found = slices.BinarySearchFunc(s.chunks[chunk], id, func(h held, id broker.LeaseID) int { return compareIDs(h.id, id) })
	return chunk, at, found
}

func compareIDs(a, b broker.LeaseID) int { return bytes.Compare(a[:], b[:]) }

// put adds or replaces a lease.
func (s *leaseSet) put(h held) {
	i, at, found := s.find(h.id)
	if found {
		s.chunks[i][at] = h
		return
	}
	s.size++
	if i == len(s.chunks) { // after all others
		if i == 0 || len(s.chunks[i-1]) == chunkSize {
			s.chunks = append(s.chunks, make([]held, 0, chunkSize))
		} else {
			i--
		}
		s.chunks[i] = append(s.chunks[i], h)
		return
	}
	if len(s.chunks[i]) == chunkSize {
		upper := append(make([]held, 0, chunkSize), s.chunks[i][chunkSize/2:]...)
		s.chunks[i] = s.chunks[i][:chunkSize/2]
		s.chunks = slices.Insert(s.chunks, i+1, upper)
		if at > chunkSize/2 {
			i, at = i+1, at-chunkSize/2
		}
	}
	s.chunks[i] = slices.Insert(s.chunks[i], at, h)
}

// remove removes a lease, if it is there.
func (s *leaseSet) remove(id broker.LeaseID) {
	i, at, found := s.find(id)
	if !found {
		return
	}
	s.size--
	s.chunks[i] = slices.Delete(s.chunks[i], at, at+1)
	switch {
	case len(s.chunks[i]) == 0:
		s.chunks = slices.Delete(s.chunks, i, i+1)
	case i+1 < len(s.chunks) && len(s.chunks[i])+len(s.chunks[i+1]) <= mergeSize:
		s.merge(i)
	case i > 0 && len(s.chunks[i-1])+len(s.chunks[i]) <= mergeSize:
		s.merge(i - 1)
	}
}

// merge moves the leases of the next chunk into a chunk.
func (s *leaseSet) merge(i int) {
	s.chunks[i] = append(s.chunks[i], s.chunks[i+1]...)
	s.chunks = slices.Delete(s.chunks, i+1, i+2)
}

// all returns the leases, the oldest first.
func (s *leaseSet) all() iter.Seq[*held] {
	return func(yield func(*held) bool) {
		for _, chunk := range s.chunks {
			for at := range chunk {
				if !yield(&chunk[at]) {
					return
				}
			}
		}
	}
}

// before returns the leases with lower ids than this one, the newest first. The zero
// ID is above all.
func (s *leaseSet) before(id broker.LeaseID) iter.Seq[*held] {
	return func(yield func(*held) bool) {
		last, end := len(s.chunks)-1, 0
		if last >= 0 {
			end = len(s.chunks[last])
		}
		if !id.IsZero() {
			if last, end, _ = s.find(id); last == len(s.chunks) {
				last, end = last-1, chunkSize
			}
		}
		for i := last; i >= 0; i-- {
			chunk := s.chunks[i]
			if i == last {
				chunk = chunk[:min(end, len(chunk))]
			}
			for at := range slices.Backward(chunk) {
				if !yield(&chunk[at]) {
					return
				}
			}
		}
	}
}
