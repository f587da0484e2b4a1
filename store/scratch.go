package store

import "accessbroker.internal/broker"

// A scratch is the memory of a group: its rows and their bodies. The next group uses it
// again, so whatever outlives a group must be copied. Only the leader of the queue uses
// it.
type scratch struct {
	rows   map[broker.Key]*row // see group
	order  []*row              // see group
	slab   []*row
	used   int // rows of the slab
	bodies []byte
	args   []any          // of a statement
	filed  broker.Request // see updateTx
	rest   broker.Lease   // see updateTx.carry
}

const (
	maxSlab      = 1024      // rows that are kept for the next group
	maxBodies    = 256 << 10 // bytes that are kept for the next group
	bodiesStep   = 64 << 10
	largestShare = bodiesStep / 8 // longer bodies have memory of their own
)

// reset forgets the rows of the last group.
func (s *scratch) reset() {
	if s.rows == nil || len(s.rows) > maxSlab {
		s.rows = map[broker.Key]*row{}
	}
	clear(s.rows)
	clear(s.order)
	for _, r := range s.slab[:s.used] {
		*r = row{}
	}
	if len(s.slab) > maxSlab {
		s.slab = s.slab[:maxSlab:maxSlab]
	}
	if cap(s.bodies) > maxBodies {
		s.bodies = nil
	}
	clear(s.args[:cap(s.args)])
	s.filed, s.rest = broker.Request{}, broker.Lease{}
	s.order, s.used, s.bodies = s.order[:0], 0, s.bodies[:0]
}

// row returns an empty row.
func (s *scratch) row() *row {
	if s.used == len(s.slab) {
		s.slab = append(s.slab, new(row))
	}
	s.used++
	return s.slab[s.used-1]
}

// copy returns a copy of a body, with room for more bytes.
func (s *scratch) copy(body []byte, room int) []byte {
	n := len(body) + room
	if s == nil || n > largestShare {
		return append(make([]byte, 0, n), body...)
	}
	if len(s.bodies)+n > cap(s.bodies) {
		// Bodies in the memory so far keep it.
		s.bodies = make([]byte, 0, min(max(2*cap(s.bodies), bodiesStep), maxBodies))
	}
	start := len(s.bodies)
	s.bodies = append(s.bodies, body...)[:start+n]
	return s.bodies[start : start+len(body) : start+n]
}
