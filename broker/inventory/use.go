// Package inventory knows which identities ever called the broker, and which of their
// permissions they used: entitlements, scopes, policies and memberships of groups.
//
// Seen, Use and their parts are a projection of the log. They add up the records in the
// order of the log, so counting the log again from its start yields the same. The only
// facts from outside the records are the addresses that requests came from, which the
// rows of the requests state.
package inventory

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// A Span is when something happened first and last, and how often. The zero value is
// empty. Its JSON is [first, last, number], with times in milliseconds since 1970.
type Span struct {
	First, Last time.Time
	N           int
}

// Add counts n events at a time.
func (s *Span) Add(at time.Time, n int) { s.Merge(Span{at, at, n}) }

// Merge adds the events of another span.
func (s *Span) Merge(o Span) {
	if o.N == 0 {
		return
	}
	if s.N == 0 || o.First.Before(s.First) {
		s.First = o.First
	}
	if s.N == 0 || o.Last.After(s.Last) {
		s.Last = o.Last
	}
	s.N += o.N
}

// IsZero reports whether nothing happened.
func (s Span) IsZero() bool { return s.N == 0 }

// Since reports whether something happened at a time or later.
func (s Span) Since(t time.Time) bool { return s.N > 0 && !s.Last.Before(t) }

// UnmarshalJSON implements json.Unmarshaler.
func (s *Span) UnmarshalJSON(text []byte) error {
	var v [3]int64
	if err := json.Unmarshal(text, &v); err != nil {
		return err
	}
	*s = Span{time.UnixMilli(v[0]).UTC(), time.UnixMilli(v[1]).UTC(), int(v[2])}
	return nil
}

// KeptDays is how many days back from the last one Days counts.
const KeptDays = 92

// Days count events by the day in UTC, numbered since 1970. Days that are KeptDays or more
// before the last one are dropped. The JSON is a string, such as "20000:3,,1": three
// events on day 20000 and one on day 20002.
type Days map[int]int

// DayOf returns the number of the day of t.
func DayOf(t time.Time) int { return int(t.Unix() / 86400) }

// Add counts an event at a time.
func (d *Days) Add(at time.Time) {
	if *d == nil {
		*d = Days{}
	}
	(*d)[DayOf(at)]++
	d.trim()
}

// Merge adds the events of other days.
func (d *Days) Merge(o Days) {
	if *d == nil && len(o) > 0 {
		*d = Days{}
	}
	for day, n := range o {
		(*d)[day] += n
	}
	d.trim()
}

func (d *Days) trim() {
	if len(*d) < 2 {
		return
	}
	last := 0
	for day := range *d {
		last = max(last, day)
	}
	for day := range *d {
		if day <= last-KeptDays {
			delete(*d, day)
		}
	}
}

// In returns the number of events in the last n days, the day of now included.
func (d Days) In(n int, now time.Time) (sum int) {
	today := DayOf(now)
	for day, count := range d {
		if day > today-n && day <= today {
			sum += count
		}
	}
	return sum
}

// MarshalText implements encoding.TextMarshaler.
func (d Days) MarshalText() ([]byte, error) {
	if len(d) == 0 {
		return nil, nil
	}
	return d.appendText(nil), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Days) UnmarshalText(text []byte) error {
	*d = nil
	if len(text) == 0 {
		return nil
	}
	from, counts, _ := strings.Cut(string(text), ":")
	first, err := strconv.Atoi(from)
	if err != nil {
		return err
	}
	*d = Days{}
	i := 0
	for count := range strings.SplitSeq(counts, ",") {
		if count != "" {
			if (*d)[first+i], err = strconv.Atoi(count); err != nil {
				return err
			}
		}
		i++
	}
	return nil
}

// A Usage is when a permission was requested and when it led to credentials. Only what
// policy permitted counts.
type Usage struct {
	Asked  Span `json:"asked,omitzero"`  // requests
	Issued Span `json:"issued,omitzero"` // credentials whose issuing began
}

// Merge adds another usage.
func (u *Usage) Merge(o Usage) {
	u.Asked.Merge(o.Asked)
	u.Issued.Merge(o.Issued)
}

// Last returns when the permission was last requested or used; zero: never.
func (u Usage) Last() time.Time {
	if u.Issued.Last.After(u.Asked.Last) {
		return u.Issued.Last
	}
	return u.Asked.Last
}

// Since reports whether the permission was requested or used at a time or later.
func (u Usage) Since(t time.Time) bool { return u.Asked.Since(t) || u.Issued.Since(t) }

// A Use is how an entitlement or a policy was used.
type Use struct {
	Usage
	Days     Days         `json:"days,omitempty"`     // credentials
	Scopes   Names[Usage] `json:"scopes,omitempty"`   // of an entitlement; of a policy, as "<entitlement> <scope>"
	Policies Names[Usage] `json:"policies,omitempty"` // that permitted it, by id
}

// maxNames bounds the scopes and the policies that a Use lists. Others counts further
// ones.
const maxNames = 128

// Others is the name under which names past a bound are counted.
const Others = "(others)"

// Merge adds another use.
func (u *Use) Merge(o *Use) {
	u.Usage.Merge(o.Usage)
	u.Days.Merge(o.Days)
	mergeNames(&u.Scopes, o.Scopes)
	mergeNames(&u.Policies, o.Policies)
}

func mergeNames(to *Names[Usage], from Names[Usage]) {
	for name, usage := range from.All() {
		to.at(name, maxNames).Merge(usage)
	}
}
