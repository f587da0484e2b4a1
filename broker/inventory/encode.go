package inventory

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"accessbroker.internal/audit"
)

// Rows of the inventory are written for every identity that calls, so their JSON is
// appended without reflection. encoding/json reads it by the tags of the fields.

// AppendJSON appends the JSON of the identity, without its ID.
func (s *Seen) AppendJSON(b []byte) []byte {
	o := object{b: append(b, '{')}
	o.b = audit.AppendString(o.member("kind"), string(s.Kind))
	o.b = s.Records.appendJSON(o.member("records"))
	if len(s.Methods) > 0 {
		o.b = appendNames(o.member("methods"), s.Methods)
	}
	o.span("asked", s.Asked)
	o.span("denied", s.Denied)
	o.span("issued", s.Issued)
	o.days(s.Days)
	if len(s.Votes) > 0 {
		o.b = appendNames(o.member("votes"), s.Votes)
	}
	if len(s.Places) > 0 {
		o.b = s.Places.appendJSON(o.member("places"))
	}
	return append(o.b, '}')
}

// AppendJSON appends the JSON of the use.
func (u *Use) AppendJSON(b []byte) []byte {
	o := object{b: append(b, '{')}
	o.usage(u.Usage)
	o.days(u.Days)
	if len(u.Scopes) > 0 {
		o.b = appendNames(o.member("scopes"), u.Scopes)
	}
	if len(u.Policies) > 0 {
		o.b = appendNames(o.member("policies"), u.Policies)
	}
	return append(o.b, '}')
}

// MarshalJSON implements json.Marshaler.
func (s *Seen) MarshalJSON() ([]byte, error) { return s.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (u *Use) MarshalJSON() ([]byte, error) { return u.AppendJSON(nil), nil }

func (u Usage) appendJSON(b []byte) []byte {
	o := object{b: append(b, '{')}
	o.usage(u)
	return append(o.b, '}')
}

func (s Span) appendJSON(b []byte) []byte {
	b = strconv.AppendInt(append(b, '['), s.First.UnixMilli(), 10)
	b = strconv.AppendInt(append(b, ','), s.Last.UnixMilli(), 10)
	b = strconv.AppendInt(append(b, ','), int64(s.N), 10)
	return append(b, ']')
}

func (p Places) appendJSON(b []byte) []byte {
	o := object{b: append(b, '{')}
	for _, from := range slices.SortedFunc(maps.Keys(p), netip.Addr.Compare) {
		o.b = strconv.AppendInt(o.member(from.String()), p[from], 10)
	}
	return append(o.b, '}')
}

func appendNames[V interface{ appendJSON([]byte) []byte }](b []byte, n Names[V]) []byte {
	o := object{b: append(b, '{')}
	for name, value := range n.All() {
		o.b = value.appendJSON(o.member(name))
	}
	return append(o.b, '}')
}

// An object is a JSON object that is being written.
type object struct {
	b    []byte
	more bool // it has a member
}

// member appends the name of a member, whose value follows.
func (o *object) member(name string) []byte {
	if o.more {
		o.b = append(o.b, ',')
	}
	o.more = true
	return append(audit.AppendString(o.b, name), ':')
}

func (o *object) span(name string, s Span) {
	if s.N > 0 {
		o.b = s.appendJSON(o.member(name))
	}
}

func (o *object) usage(u Usage) {
	o.span("asked", u.Asked)
	o.span("issued", u.Issued)
}

func (o *object) days(d Days) {
	if len(d) == 0 {
		return
	}
	o.b = append(d.appendText(append(o.member("days"), '"')), '"')
}

// appendText appends the text of the days. There is at least one.
func (d Days) appendText(b []byte) []byte {
	first, last := bounds(d)
	b = append(strconv.AppendInt(b, int64(first), 10), ':')
	for day := first; day <= last; day++ {
		if day > first {
			b = append(b, ',')
		}
		if n := d[day]; n > 0 {
			b = strconv.AppendInt(b, int64(n), 10)
		}
	}
	return b
}

// bounds returns the first and the last day.
func bounds(d Days) (first, last int) {
	one := false
	for day := range d {
		if !one {
			first, last, one = day, day, true
		}
		first, last = min(first, day), max(last, day)
	}
	return first, last
}
