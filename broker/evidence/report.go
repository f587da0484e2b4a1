package evidence

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// A Query selects the records that a report is about.
type Query struct {
	From, To time.Time // from From until just before To
	Size     int64     // only the first records of the log; zero: as many as the newest checkpoint covers
}

// A Basis states which records a report is about.
type Basis struct {
	Origin string       `json:"origin"` // of the log
	Size   int64        `json:"size"`   // records of the log that the report knows
	Root   audit.Digest `json:"root"`   // of the tree over them
	First  int64        `json:"first"`  // index of the first record of the period
	Count  int64        `json:"count"`  // records of the period
}

// A Source reads a log. It is safe for concurrent use.
type Source interface {
	// Tally counts the records of a query.
	Tally(ctx context.Context, q Query) (Tally, Basis, error)

	// Record returns a record as it is stored.
	Record(ctx context.Context, index int64) (audit.Item, error)
}

// The states of a control in a report.
const (
	HasEvidence = "evidence"
	NoEvidence  = "no_evidence"
	OutOfScope  = "out_of_scope"
)

// A Report is the evidence for a framework in a period.
type Report struct {
	Framework string          `json:"framework"`
	Title     string          `json:"title"`
	Revision  string          `json:"revision"`
	Source    string          `json:"source"`
	From      time.Time       `json:"from"`
	To        time.Time       `json:"to"`
	Log       Basis           `json:"log"`
	Reproduce string          `json:"reproduce"` // the command
	Controls  []ControlReport `json:"controls"`
}

// A ControlReport is the evidence for a control.
type ControlReport struct {
	ID         string         `json:"id"`
	Title      string         `json:"title"`
	State      string         `json:"state"`
	Shows      []string       `json:"shows,omitempty"`
	Figures    []FigureReport `json:"figures,omitempty"`
	Exceptions []FigureReport `json:"exceptions,omitempty"`
	Records    []SampleRecord `json:"records,omitempty"`
	OutOfScope []string       `json:"out_of_scope,omitempty"`
}

// A FigureReport is a figure with the records to check it by.
type FigureReport struct {
	Name    string     `json:"name"`
	Text    string     `json:"text"`
	Value   int64      `json:"value"`   // a number of events; of a longest lifetime, milliseconds
	Unit    string     `json:"unit"`    // events or ms
	Records int64      `json:"records"` // that were counted; a record can stand for several events
	Count   []Selector `json:"count"`
	Samples []int64    `json:"samples,omitempty"` // indexes of records
}

// A SampleRecord is a record of the log that a figure counts.
type SampleRecord struct {
	Index    int64        `json:"index"`
	Time     time.Time    `json:"time"`
	Kind     audit.Kind   `json:"kind"`
	Who      string       `json:"who"`             // caused it
	About    string       `json:"about,omitempty"` // the request, lease or subject concerned
	Outcome  string       `json:"outcome,omitempty"`
	LeafHash audit.Digest `json:"leaf_hash"`
}

// Build makes the report of a framework.
func Build(ctx context.Context, f *Framework, src Source, q Query) (*Report, error) {
	m, err := embedded()
	if err != nil {
		return nil, err
	}
	tally, basis, err := src.Tally(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("counting the records of the period: %w", err)
	}
	r := &Report{
		Framework: f.ID, Title: f.Title, Revision: f.Revision, Source: f.Source, From: q.From.UTC(), To: q.To.UTC(), Log: basis,
		Reproduce: fmt.Sprintf("broker evidence --framework %s --from %s --to %s --size %d", f.ID, q.From.UTC().Format(time.RFC3339), q.To.UTC().Format(time.RFC3339), basis.Size),
	}
	b := builder{m, tally, src, map[int64]SampleRecord{}}
	for i := range f.Controls {
		c, err := b.control(ctx, &f.Controls[i])
		if err != nil {
			return nil, err
		}
		r.Controls = append(r.Controls, c)
	}
	return r, nil
}

// A builder makes the reports of controls.
type builder struct {
	*mapping
	tally Tally
	src   Source
	known map[int64]SampleRecord // that were read
}

func (b *builder) control(ctx context.Context, c *Control) (r ControlReport, err error) {
	r = ControlReport{ID: c.ID, Title: c.Title, State: NoEvidence, Shows: c.Shows, OutOfScope: c.Outside}
	if len(c.Figures) == 0 {
		r.State = OutOfScope
	}
	for _, name := range c.Figures {
		f := b.figure(name)
		if f.Records > 0 {
			r.State = HasEvidence
		}
		r.Figures = append(r.Figures, f)
	}
	for _, name := range c.Exceptions {
		r.Exceptions = append(r.Exceptions, b.figure(name))
	}
	r.Records, err = b.records(ctx, slices.Concat(r.Figures, r.Exceptions))
	return r, err
}

// figure counts the records that one of the figure's selectors fits.
func (b *builder) figure(name string) FigureReport {
	f := b.figures[name]
	var sum Sum
	for traits, s := range b.tally {
		if slices.ContainsFunc(f.Count, func(sel Selector) bool { return sel.Fits(&traits) }) {
			sum.merge(*s)
		}
	}
	r := FigureReport{Name: name, Text: f.Text, Value: sum.Events, Unit: "events", Records: sum.Records, Count: f.Count}
	if f.Longest {
		r.Value, r.Unit = sum.Longest, "ms"
	}
	if sum.Records > 0 {
		r.Samples = sum.samples()
	}
	return r
}

// records reads the samples of figures, each once.
func (b *builder) records(ctx context.Context, list []FigureReport) (records []SampleRecord, err error) {
	var indexes []int64
	for _, f := range list {
		indexes = append(indexes, f.Samples...)
	}
	slices.Sort(indexes)
	for _, index := range slices.Compact(indexes) {
		s, known := b.known[index]
		if !known {
			if s, err = b.record(ctx, index); err != nil {
				return nil, err
			}
			b.known[index] = s
		}
		records = append(records, s)
	}
	return records, nil
}

func (b *builder) record(ctx context.Context, index int64) (s SampleRecord, err error) {
	item, err := b.src.Record(ctx, index)
	if err != nil {
		return s, fmt.Errorf("reading record %d: %w", index, err)
	}
	r, err := audit.Decode(item.Leaf)
	if err != nil {
		return s, fmt.Errorf("record %d: %w", index, err)
	}
	return SampleRecord{Index: index, Time: r.Time, Kind: r.Kind, Who: who(&r), About: about(&r), Outcome: r.Sample(r.Time).Outcome, LeafHash: audit.LeafHash(item.Leaf)}, nil
}

// who returns the identity that caused a record.
func who(r *audit.Record) string {
	if r.Caller == nil {
		return "broker"
	}
	return cmp.Or(r.Caller.ID, "unknown")
}

// about returns what a record is about.
func about(r *audit.Record) string {
	switch {
	case r.Lease != nil:
		return r.Lease.ID
	case r.Request != nil:
		return cmp.Or(r.Request.ID, r.Request.Entitlement)
	case r.Fact != nil:
		return r.Fact.Subject
	case r.Supplier != nil:
		return r.Supplier.Name
	case r.Membership != nil:
		return r.Membership.System + " " + r.Membership.Group
	case r.Campaign != nil:
		return cmp.Or(r.Campaign.Permission, r.Campaign.Name)
	case r.Signal != nil:
		return r.Signal.Transmitter
	case r.Directory != nil:
		return cmp.Or(r.Directory.Person, r.Directory.ID)
	case r.Block != nil:
		return r.Block.Selector
	case r.Key != nil:
		return r.Key.ID
	case r.Rules != nil:
		return "revision " + r.Rules.Revision.String()[:12]
	case r.Subject != nil:
		return r.Subject.ID
	case r.Log != nil:
		return r.Log.Origin
	}
	return ""
}
