// Package evidence reports what the log proves about the controls of security
// frameworks: for each control the figures of a period, and records behind them.
//
// The mapping from controls to figures is data (frameworks/*.yaml). A figure selects
// records by their traits (audit.Traits). Every trait is in the record, so anyone who has
// the log counts the same figures without a broker.
//
// A report depends on a framework, a period and the number of the log's records, and on
// nothing else: the same three always make the same bytes.
package evidence

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"slices"

	"accessbroker.internal/audit"
)

// A Tally counts records by their traits. The tally of a range of records is the sum of
// the tallies of its parts, in any order.
type Tally map[audit.Traits]*Sum

// A Sum is what a Tally has of records with equal traits.
type Sum struct {
	Records int64 `json:"records"`
	Events  int64 `json:"events"`            // that the records stand for
	Longest int64 `json:"longest,omitempty"` // lifetime of a credential in milliseconds

	// Samples, by their index: the first record, the last one, and the one whose leaf has
	// the lowest hash. No one can choose the latter, so it is as good as drawn by lot.
	First int64  `json:"first"`
	Last  int64  `json:"last"`
	Drawn int64  `json:"drawn"`
	Lot   uint64 `json:"lot"` // the first bytes of the drawn leaf's hash
}

// Add counts a record.
func (t Tally) Add(index int64, hash audit.Digest, s audit.Sample) {
	t.merge(s.Traits, Sum{
		Records: 1, Events: int64(s.Events), Longest: s.Lifetime.Milliseconds(),
		First: index, Last: index, Drawn: index, Lot: binary.BigEndian.Uint64(hash[:8]),
	})
}

// Merge adds another tally.
func (t Tally) Merge(o Tally) {
	for traits, sum := range o {
		t.merge(traits, *sum)
	}
}

func (t Tally) merge(traits audit.Traits, o Sum) {
	if sum := t[traits]; sum != nil {
		sum.merge(o)
		return
	}
	first := o // only a new sum is allocated
	t[traits] = &first
}

func (s *Sum) merge(o Sum) {
	if s.Records == 0 {
		*s = o
		return
	}
	s.Records += o.Records
	s.Events += o.Events
	s.Longest = max(s.Longest, o.Longest)
	s.First, s.Last = min(s.First, o.First), max(s.Last, o.Last)
	if cmp.Or(cmp.Compare(o.Lot, s.Lot), cmp.Compare(o.Drawn, s.Drawn)) < 0 {
		s.Lot, s.Drawn = o.Lot, o.Drawn
	}
}

// samples returns the indexes of the samples, each once and in order.
func (s *Sum) samples() []int64 {
	list := []int64{s.First, s.Drawn, s.Last}
	slices.Sort(list)
	return slices.Compact(list)
}

// A row is an entry of an encoded Tally.
type row struct {
	audit.Traits
	Sum
}

// MarshalJSON encodes the tally in an order that depends on its content alone.
func (t Tally) MarshalJSON() ([]byte, error) {
	rows := make([]row, 0, len(t))
	for traits, sum := range t {
		rows = append(rows, row{traits, *sum})
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.First, b.First) }) // a record has one set of traits
	return json.Marshal(rows)
}

// UnmarshalJSON decodes a tally.
func (t *Tally) UnmarshalJSON(text []byte) error {
	var rows []row
	if err := json.Unmarshal(text, &rows); err != nil {
		return err
	}
	*t = make(Tally, len(rows))
	for _, r := range rows {
		t.merge(r.Traits, r.Sum)
	}
	return nil
}
