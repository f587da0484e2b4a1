package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"accessbroker.internal/audit"
)

// Facts are the facts that access rests on. It is safe for concurrent use.
type Facts struct {
	b    *Broker
	wake chan struct{} // an end is under way
	own  atomic.Bool   // this process changed what is under way

	under *Rules // changes are made only while these rules are in force; nil: always

	stating sync.Mutex  // the facts of the rules
	restate atomic.Bool // the facts of the rules are not all stated

	governing []string // the sources that must know some subjects, sorted
	watching  []string // the sources that watch some subjects, sorted
}

func newFacts(b *Broker) *Facts {
	sources := func(is func(SourceRule) bool) []string { return sourcesThat(b.cfg.Sources, is) }
	return &Facts{
		b: b, wake: make(chan struct{}, 1),
		governing: sources(func(r SourceRule) bool { return r.Governs != nil }),
		watching:  sources(func(r SourceRule) bool { return r.Watches != nil && r.Silence }),
	}
}

// A Report is what a source states about a subject.
type Report struct {
	Subject StandingKey
	Fact    Fact
}

// Report takes what a source states about a subject. A change is recorded; if the
// subject's standing no longer holds, what rests on it is ended from then on. A repeated
// statement only confirms the fact.
func (f *Facts) Report(ctx context.Context, caller Caller, subject StandingKey, fact Fact) error {
	return f.ReportAll(ctx, caller, []Report{{subject, fact}})
}

// ErrRestated means that a source has stated something else about the subject meanwhile.
var ErrRestated = errors.New("the source stated something else meanwhile")

// ReportAfter is Report for a statement that was decided on by an earlier one of the source;
// nil: none. It returns ErrRestated if the source, in this or in another process, has stated
// something else since.
func (f *Facts) ReportAfter(ctx context.Context, caller Caller, subject StandingKey, before *Fact, fact Fact) error {
	r := Report{subject, fact}
	if err := errors.Join(subject.checkForm(), r.Fact.checkForm()); err != nil {
		return fmt.Errorf("the fact about %s by %s: %w", subject, fact.Source, err)
	}
	return f.change(ctx, caller, []factChange{{subject, func(s *Standing) (bool, error) {
		now := s.Find(fact.Source)
		if (now == nil) != (before == nil) || now != nil && (now.State != before.State || now.Cause != before.Cause || !maps.Equal(now.Details, before.Details)) {
			return false, ErrRestated
		}
		return s.state(f.date(r, caller.At))
	}, fact.Source}})
}

// reportBatch is how many reports share a transaction.
const reportBatch = 256

// ReportAll is Report for many subjects, in transactions of a few hundred.
func (f *Facts) ReportAll(ctx context.Context, caller Caller, reports []Report) error {
	for i := range reports {
		r := &reports[i]
		if err := errors.Join(r.Subject.checkForm(), r.Fact.checkForm()); err != nil {
			return fmt.Errorf("the fact about %s by %s: %w", r.Subject, r.Fact.Source, err)
		}
	}
	for batch := range slices.Chunk(reports, reportBatch) {
		changes := make([]factChange, len(batch))
		for i, r := range batch {
			changes[i] = factChange{r.Subject, func(s *Standing) (bool, error) { return s.state(f.date(r, caller.At)) }, r.Fact.Source}
		}
		if err := f.change(ctx, caller, changes); err != nil {
			return err
		}
	}
	return nil
}

// Forget notes that a source no longer states anything about a subject. It is not an end:
// a source that governs the subject states FactWithdrawn.
func (f *Facts) Forget(ctx context.Context, caller Caller, subject StandingKey, source string) error {
	return f.change(ctx, caller, []factChange{{subject, func(s *Standing) (bool, error) {
		i, known := s.search(source)
		if known {
			s.Facts = slices.Delete(s.Facts, i, i+1)
			s.Version++
			if len(s.Facts) == 0 {
				s.Emptied = caller.At
			}
		}
		return known, nil
	}, source}})
}

// Confirm notes that a source that confirms all of its facts together was heard of. It is
// cheap, and may be called often.
func (f *Facts) Confirm(ctx context.Context, source string, at time.Time) error {
	rule, ok := f.b.cfg.Sources[source]
	if !ok || !rule.Silence || rule.StaleAfter == 0 {
		return nil
	}
	return f.Report(ctx, Caller{At: at}, StandingKey{FactSource, source}, Fact{Source: source, State: FactActive})
}

// Standing returns what all sources state about a subject, or ErrNotFound.
func (f *Facts) Standing(ctx context.Context, subject StandingKey) (*Standing, error) {
	s, err := f.b.cfg.Reader.Standing(ctx, subject)
	return s, Unavailable(err)
}

// Holds reports whether no source states that a subject has ended at now. A subject that
// no source knows holds, unless a source governs it.
func (f *Facts) Holds(ctx context.Context, subject StandingKey, now time.Time) (bool, error) {
	s, err := f.read(ctx, subject)
	if err != nil {
		return false, err
	}
	return f.Fault(s, now) == "", nil
}

// List returns standings of a kind, sorted by name, from after a name on.
func (f *Facts) List(ctx context.Context, kind FactKind, after string, limit int) (list []*Standing, err error) {
	err = f.b.cfg.Store.View(ctx, func(tx Tx) error {
		list, err = tx.Standings(StandingQuery{Kind: kind, After: after, Limit: min(max(limit, 1), pageMax)})
		return err
	})
	return list, Unavailable(err)
}

// latestTime is later than every end that means anything, and fits into the store.
var latestTime = time.Date(2200, 12, 31, 0, 0, 0, 0, time.UTC)

// date sets when a fact was confirmed, and when it goes stale. The facts of a source that
// confirms them together do not go stale one by one.
func (f *Facts) date(r Report, now time.Time) Fact {
	fact := r.Fact
	if fact.Confirmed.IsZero() {
		fact.Confirmed = now
	}
	if fact.Until.After(latestTime) { // directories write "never" as 9999-12-31
		fact.Until = time.Time{}
	}
	fact.StaleAt = time.Time{}
	rule := f.b.cfg.Sources[fact.Source]
	if rule.StaleAfter > 0 && fact.State == FactActive && (!rule.Silence || r.Subject.Kind == FactSource) {
		fact.StaleAt = fact.Confirmed.Add(rule.StaleAfter)
	}
	return fact
}

// read returns the standing of a subject; an empty one if no source states anything.
func (f *Facts) read(ctx context.Context, subject StandingKey) (*Standing, error) {
	s, err := f.b.cfg.Reader.Standing(ctx, subject)
	if isNotFound(err) {
		return &Standing{StandingKey: subject}, nil
	}
	return s, Unavailable(err)
}

// Fault returns why a standing does not hold at now; empty if it does.
func (f *Facts) Fault(s *Standing, now time.Time) (cause string) {
	cause = s.fault(now)
	if s.Kind == FactSource && len(s.Facts) == 0 { // it was never heard of
		return CauseStale
	}
	if cause != "" && cause != CauseStale && cause != CauseNotBegun {
		return cause
	}
	for _, source := range f.governing {
		if f.b.cfg.Sources[source].Governs(s.StandingKey) && s.Find(source) == nil {
			return CauseUnknown
		}
	}
	return cause
}

// holds reports whether the operator lets leases run on although a standing is stale.
func (f *Facts) holds(s *Standing, now time.Time) bool {
	for i := range s.Facts {
		if s.Facts[i].cause(now) == CauseStale && f.b.cfg.Sources[s.Facts[i].Source].OnStale != OnStaleHold {
			return false
		}
	}
	return true
}

// A factChange changes what a source states about a subject.
type factChange struct {
	subject StandingKey
	apply   func(*Standing) (changed bool, err error)
	source  string // for the record; empty: the broker found an end itself
}

// A changedStanding is a standing after a change, and the record of the change.
type changedStanding struct {
	*Standing
	version int // before
	entry   *audit.Entry
	ends    bool
}

// change makes the changes in one transaction, with a record for each that is more than
// a confirmation.
func (f *Facts) change(ctx context.Context, caller Caller, changes []factChange) error {
	return f.b.retry(func() error {
		list, err := f.prepare(ctx, caller, changes)
		if err != nil || len(list) == 0 {
			return err
		}
		reads := make([]Key, len(list))
		for i, c := range list {
			reads[i] = c.StandingKey
		}
		if f.under != nil {
			reads = append(reads, RevisionKey{})
		}
		err = f.b.cfg.Store.Update(ctx, reads, func(tx Tx) error {
			if err := f.checkUnder(tx); err != nil {
				return err
			}
			for _, c := range list {
				stored, err := Get[*Standing](tx, c.StandingKey)
				if ignoreNotFound(err) != nil {
					return err
				}
				if err == nil && stored.Version != c.version || err != nil && c.version != 0 {
					return errOvertaken
				}
				tx.Put(c.Standing)
				if c.entry != nil {
					tx.Append(c.entry)
				}
			}
			return nil
		})
		if err == nil && slices.ContainsFunc(list, func(c changedStanding) bool { return c.ends }) {
			f.hurryOwn()
		}
		return Unavailable(err)
	})
}

// hurryOwn is hurry after a change by this process.
func (f *Facts) hurryOwn() {
	f.own.Store(true)
	f.hurry()
}

// errSuperseded means that other rules are in force than those that state facts.
var errSuperseded = errors.New("other rules are in force")

func (f *Facts) checkUnder(tx Tx) error {
	if f.under == nil {
		return nil
	}
	inForce, err := Get[*Revision](tx, RevisionKey{})
	if err == nil && inForce.Digest != f.under.Revision {
		return errSuperseded
	}
	return err
}

// hurry has the ender look for ends at once.
func (f *Facts) hurry() {
	select {
	case f.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// prepare applies the changes to copies of the standings. It leaves out what need not be
// written.
func (f *Facts) prepare(ctx context.Context, caller Caller, changes []factChange) (list []changedStanding, err error) {
	seen := map[StandingKey]bool{}
	for _, c := range changes {
		if seen[c.subject] { // only one change of a subject fits into a transaction
			return nil, f.eachAlone(ctx, caller, changes)
		}
		seen[c.subject] = true
		s, err := f.read(ctx, c.subject)
		if err != nil {
			return nil, err
		}
		next, err := f.apply(ctx, caller, s, c)
		if err != nil {
			return nil, err
		}
		if next.Standing != nil {
			list = append(list, next)
		}
	}
	return list, nil
}

// eachAlone makes changes one after the other.
func (f *Facts) eachAlone(ctx context.Context, caller Caller, changes []factChange) error {
	for _, c := range changes {
		if err := f.change(ctx, caller, []factChange{c}); err != nil {
			return err
		}
	}
	return nil
}

// apply returns the standing after a change; a nil one if nothing needs to be written.
func (f *Facts) apply(ctx context.Context, caller Caller, s *Standing, c factChange) (next changedStanding, err error) {
	before := *s
	s.Facts = slices.Clone(s.Facts)
	changed, err := c.apply(s)
	if err != nil {
		return next, err
	}
	s.revive(&before, caller.At)
	ends := s.settle(caller.At, f.holds(s, caller.At))
	next = changedStanding{Standing: s, version: before.Version, ends: ends}
	if !changed && s.Version == before.Version { // a confirmation at most
		if !f.worthWriting(&before, s, c.source) && s.Held == before.Held {
			next.Standing = nil
		}
		return next, nil
	}
	next.entry, err = f.record(ctx, caller, s, c, ends).Entry()
	return next, err
}

// worthWriting reports whether a confirmation moves the time at which a fact goes stale by
// enough. Written each time, the confirmations of a busy source would fill the disk.
func (f *Facts) worthWriting(before, after *Standing, source string) bool {
	was, is := before.Find(source), after.Find(source)
	return was != nil && is != nil && is.StaleAt.Sub(was.StaleAt) > f.b.cfg.Sources[source].StaleAfter/10
}

// record returns the record of a change.
func (f *Facts) record(ctx context.Context, caller Caller, s *Standing, c factChange, ends bool) *audit.Record {
	record := &audit.Record{Kind: audit.FactChanged, Caller: caller.Actor.Party(), Trace: TraceOf(ctx)}
	if ends {
		record.Kind = audit.FactEnded
	}
	record.Fact = &audit.FactFacts{Subject: s.String(), Source: c.source, Cause: s.Cause}
	if fact := s.Find(c.source); fact != nil {
		record.Fact.State, record.Fact.From, record.Fact.Until = string(fact.State), fact.From, fact.Until
		if record.Fact.Cause == "" {
			record.Fact.Cause = fact.Cause
		}
		if len(fact.Details) > 0 {
			text := string(audit.AppendStrings(nil, fact.Details))
			digest, opening := audit.Commit(text)
			record.Fact.Details, record.Openings = digest, map[string]audit.Opening{"details": opening}
		}
	} else if c.source != "" {
		record.Fact.State = string(FactWithdrawn)
	}
	return record
}

// heardTogether returns the sources on whose silence access to the subject depends, apart
// from its own facts: those that confirm all of their facts together.
func (f *Facts) heardTogether(s *Standing) (names []string) {
	add := func(name string) {
		if rule := f.b.cfg.Sources[name]; rule.Silence && rule.StaleAfter > 0 && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for i := range s.Facts {
		add(s.Facts[i].Source)
	}
	for _, name := range f.watching {
		if f.b.cfg.Sources[name].Watches(s.StandingKey) {
			add(name)
		}
	}
	return names
}

// sourcesThat returns the names of the sources whose rule is of a sort, sorted.
func sourcesThat(sources map[string]SourceRule, is func(SourceRule) bool) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		if is(sources[name]) {
			names = append(names, name)
		}
	}
	return names
}
