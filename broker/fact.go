package broker

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Access rests on facts outside of the broker: the contract of a supplier, the employment
// of a person, the state of a ticket. When such a fact ends, the access ends. A source
// states facts; the broker keeps what every source states about a subject in one row, its
// standing. report.go changes standings, rests.go checks them, and fact_end.go ends what
// rests on them.

// A FactKind is the kind of a fact's subject.
type FactKind string

// The kinds of subjects.
const (
	FactSupplier   FactKind = "supplier"
	FactPerson     FactKind = "person"     // "<provider>/<sub>"
	FactAgent      FactKind = "agent"      // the SPIFFE ID of an agent or of any other workload
	FactTicket     FactKind = "ticket"     // "<tracker>/<id>"
	FactAssessment FactKind = "assessment" // of the risk of a supplier, by its name
	FactMark       FactKind = "mark"       // a path of attest.workloads, with everything below it
	FactLease      FactKind = "lease"      // whose token was exchanged for tokens of sub-agents; no source states facts about it
	FactSource     FactKind = "source"     // a source that must be heard of regularly; see SourceRule.Silence
)

var factKinds = []FactKind{FactSupplier, FactPerson, FactAgent, FactTicket, FactAssessment, FactMark, FactSource}

// Check returns an error unless the kind exists.
func (k FactKind) Check() error {
	if !slices.Contains(factKinds, k) {
		return errors.New("it must be supplier, person, agent, ticket, assessment, mark or source")
	}
	return nil
}

// A StandingKey names the subject of facts.
type StandingKey struct {
	Kind FactKind
	Name string
}

func (StandingKey) isKey() {}

// String returns the key as records show it: "ticket jira/INC-7".
func (k StandingKey) String() string {
	if k == (StandingKey{}) {
		return ""
	}
	return string(k.Kind) + " " + k.Name
}

// A FactState is what a source states about a subject.
type FactState string

// The states.
const (
	FactActive    FactState = "active"
	FactEnded     FactState = "ended"
	FactWithdrawn FactState = "withdrawn" // the source no longer states anything about the subject, and should
)

// A Fact is what one source states about a subject. It holds in [From, Until).
type Fact struct {
	Source    string // "file", "scim:corp", "tickets:jira"
	State     FactState
	Cause     string            // of a state other than active: a code from a small set, such as "contract_ended"
	From      time.Time         // zero: unbounded
	Until     time.Time         // zero: unbounded
	Confirmed time.Time         // when the source last confirmed it
	StaleAt   time.Time         // when it goes stale unless it is confirmed again; zero: never. Report sets it
	Details   map[string]string // what else the source states, such as the assignee of a ticket
}

// Bounds of a fact. Lengths are in bytes.
const (
	MaxFactName    = 2048
	maxFactSource  = 128
	maxFactCause   = 64
	maxFactDetails = 4096 // of all together
	maxFacts       = 16   // of one subject
)

// A Standing is what all sources state about a subject. The strictest fact decides.
type Standing struct {
	StandingKey
	Version int    // changes with every fact, but not with a confirmation
	Facts   []Fact // sorted by source

	// Ended is when the standing stopped holding, or zero while it holds. Fallen is the same
	// for the last time that it did; what was granted before that never revives.
	Ended, Fallen time.Time
	Cause         string    // of Ended
	Ending        bool      // what rests on it is still being ended
	Held          bool      // it is stale, and the operator lets running leases continue
	Emptied       time.Time // when its last source left it; zero: it has facts
}

// Key implements Row.
func (s *Standing) Key() Key { return s.StandingKey }

// Causes of an end that the broker finds itself.
const (
	CauseUntil     = "ended"       // its time is over
	CauseStale     = "stale"       // its source was silent for too long
	CauseWithdrawn = "withdrawn"   // its source no longer names it
	CauseNotBegun  = "not_begun"   // its time has not begun
	CauseUnknown   = "not_known"   // a source that governs it does not know it
	CauseLink      = "revoked"     // a token of a chain of sub-agents has ended
	CauseFallen    = "ended_since" // it holds again, but ended after the grant
)

// OnStale is what happens to running leases whose fact goes stale.
type OnStale string

// What happens to running leases. The zero value ends them.
const (
	OnStaleEnd  OnStale = "end"
	OnStaleHold OnStale = "hold"
)

// A SourceRule is the operator's rule for a source of facts.
type SourceRule struct {
	// StaleAfter is how long a fact counts without a confirmation; zero: for ever.
	StaleAfter time.Duration
	OnStale    OnStale

	// Silence means that the source confirms all of its facts together (see
	// Facts.Confirm), rather than each.
	Silence bool

	// Governs reports whether the source must know a subject: one that it does not know has
	// no access. nil: it governs none.
	Governs func(StandingKey) bool

	// Watches reports whether the source would state the end of a subject, although it
	// states nothing about most subjects: a subject that it watches has no access while the
	// source is silent. It needs Silence. nil: it watches none.
	Watches func(StandingKey) bool
}

// checkForm returns an error unless the fact is within bounds.
func (f *Fact) checkForm() error {
	size := 0
	for name, value := range f.Details {
		size += len(name) + len(value)
	}
	switch {
	case f.Source == "" || len(f.Source) > maxFactSource:
		return fmt.Errorf("a fact needs a source of at most %d bytes", maxFactSource)
	case f.State != FactActive && f.State != FactEnded && f.State != FactWithdrawn:
		return fmt.Errorf("the state %q of a fact is unknown", f.State)
	case len(f.Cause) > maxFactCause || f.State != FactActive && f.Cause == "":
		return fmt.Errorf("a fact that is not active needs a cause of at most %d bytes", maxFactCause)
	case size > maxFactDetails:
		return fmt.Errorf("the details of a fact are longer than %d bytes", maxFactDetails)
	}
	return nil
}

// checkForm returns an error unless the key is within bounds.
func (k StandingKey) checkForm() error {
	if !slices.Contains(factKinds, k.Kind) || k.Name == "" || len(k.Name) > MaxFactName {
		return fmt.Errorf("%q is not the subject of a fact", quoted(k.String()))
	}
	return CheckLine(ErrInvalidRequest, "the subject of a fact", k.Name, MaxFactName)
}

// cause returns why the fact does not hold at now; empty if it does.
func (f *Fact) cause(now time.Time) string {
	switch {
	case f.State == FactWithdrawn:
		return cmp.Or(f.Cause, CauseWithdrawn)
	case f.State != FactActive:
		return f.Cause
	case now.Before(f.From):
		return CauseNotBegun
	case !f.Until.IsZero() && !now.Before(f.Until):
		return CauseUntil
	case !f.StaleAt.IsZero() && !now.Before(f.StaleAt):
		return CauseStale
	}
	return ""
}

// fault returns why the standing does not hold at now; empty if it does. An end weighs
// more than a fact that is stale or has not begun.
func (s *Standing) fault(now time.Time) (cause string) {
	for i := range s.Facts {
		switch c := s.Facts[i].cause(now); {
		case c == "":
		case cause == "", cause == CauseStale, cause == CauseNotBegun && c != CauseStale:
			cause = c
		}
	}
	if cause == "" && s.Ending {
		cause = cmp.Or(s.Cause, CauseUntil)
	}
	return cause
}

// Until returns the earliest known end of the facts; zero: none is known.
func (s *Standing) Until() (first time.Time) {
	for i := range s.Facts {
		first = earlier(first, s.Facts[i].Until)
	}
	return first
}

// earlier returns the earlier of two times. The zero time means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// shorter returns the shorter of two durations; zero stands for none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// Due returns when the standing must be looked at: at once if an end is under way,
// otherwise when the next fact begins, ends or goes stale; zero: never.
func (s *Standing) Due() (at time.Time) {
	switch {
	case s.Ending:
		return time.Unix(0, 0) // whatever the clocks say
	case s.Cause == CauseNotBegun:
		return s.begins()
	case !s.Ended.IsZero():
		return time.Time{}
	}
	for i := range s.Facts {
		if at = earlier(at, s.Facts[i].Until); !s.Held {
			at = earlier(at, s.Facts[i].StaleAt)
		}
	}
	return at
}

// begins returns when the last of the facts begins.
func (s *Standing) begins() (last time.Time) {
	for i := range s.Facts {
		if s.Facts[i].From.After(last) {
			last = s.Facts[i].From
		}
	}
	return last
}

// Find returns what a source states; nil: nothing.
func (s *Standing) Find(source string) *Fact {
	if i, ok := s.search(source); ok {
		return &s.Facts[i]
	}
	return nil
}

func (s *Standing) search(source string) (int, bool) {
	return slices.BinarySearchFunc(s.Facts, source, func(f Fact, source string) int { return strings.Compare(f.Source, source) })
}

var errTooManyFacts = errors.New("too many sources state facts about one subject")

// state replaces what the fact's source states. It returns false if only the confirmation
// is new.
func (s *Standing) state(f Fact) (changed bool, err error) {
	i, known := s.search(f.Source)
	switch {
	case known && s.Facts[i].equal(&f):
		if f.Confirmed.After(s.Facts[i].Confirmed) {
			s.Facts[i].Confirmed, s.Facts[i].StaleAt = f.Confirmed, f.StaleAt
		}
		return false, nil
	case known && s.Kind == FactTicket && f.State == FactActive && s.Facts[i].State != FactActive && f.Confirmed.Before(s.Facts[i].Confirmed):
		return false, nil // a look that a later one has overtaken
	case known:
		s.Facts[i] = f
	case len(s.Facts) >= maxFacts:
		return false, errTooManyFacts
	default:
		s.Facts = slices.Insert(s.Facts, i, f)
	}
	s.Emptied = time.Time{}
	s.Version++
	return true, nil
}

// Idle returns when the row of a standing without facts can be deleted: no grant from
// before its last end is left. It is zero if the standing has facts.
func (s *Standing) Idle() time.Time {
	if s.Emptied.IsZero() || s.Ending {
		return time.Time{}
	}
	return s.Emptied.Add(MaxDuration + 24*time.Hour)
}

// equal reports whether two facts of a source state the same.
func (f *Fact) equal(o *Fact) bool {
	return f.State == o.State && f.Cause == o.Cause && f.From.Equal(o.From) && f.Until.Equal(o.Until) && maps.Equal(f.Details, o.Details)
}

// revive notes that the standing holds at now if it did before a change, although no one has
// noticed its beginning. What was granted meanwhile must end with the next end.
func (s *Standing) revive(before *Standing, now time.Time) {
	if !before.Ended.IsZero() && before.fault(now) == "" && s.fault(now) != "" {
		s.Ended, s.Cause = time.Time{}, ""
	}
}

// settle notes that the standing holds, or does not hold, at now. It reports whether what
// rests on it must be ended.
func (s *Standing) settle(now time.Time, hold bool) (ends bool) {
	cause := s.fault(now)
	switch {
	case cause == "" && !s.Ending:
		s.Held = false
		if !s.Ended.IsZero() {
			s.Ended, s.Cause = time.Time{}, ""
			s.Version++
		}
	case cause == CauseNotBegun:
		// Nothing can rest on it yet, unless it moved into the future.
		return s.fall(cause, now)
	case cause == CauseStale && hold:
		if !s.Held {
			s.Held = true
			s.Version++
		}
	default:
		return s.fall(cause, now)
	}
	return false
}

// fall notes that the standing does not hold. It reports whether it held until now.
func (s *Standing) fall(cause string, now time.Time) bool {
	if !s.Ended.IsZero() {
		if s.Cause == CauseNotBegun && cause != CauseNotBegun && !s.Ending {
			s.Cause = cause // it need not be looked at when it begins
			s.Version++
		}
		return false
	}
	s.Ended, s.Fallen, s.Cause, s.Ending, s.Held = now, now, cause, true, false
	s.Version++
	return true
}

// A FactEnd is the end of access because of a fact.
type FactEnd struct {
	Subject StandingKey
	Cause   string
}

func (e *FactEnd) String() string { return e.Subject.String() + ": " + e.Cause }
