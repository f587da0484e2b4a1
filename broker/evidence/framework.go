package evidence

import (
	"embed"
	"errors"
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"

	"accessbroker.internal/audit"
	"accessbroker.internal/internal/strictyaml"
)

//go:embed frameworks/*.yaml
var files embed.FS

// A Framework is a set of controls, and what the log says about each of them.
type Framework struct {
	ID       string `yaml:"framework"`
	Title    string
	Revision string
	Source   string // the address of the framework's text
	Controls []Control
}

// A Control is one control, or one risk, of a framework.
type Control struct {
	ID    string
	Title string // as the framework has it
	// Shows is what the product does for the control, and so what the figures prove.
	Shows      []string
	Figures    []string // names of figures
	Exceptions []string // names of figures that an auditor wants explained
	// Outside are the parts of the control that the product does not cover.
	Outside []string `yaml:"out_of_scope"`
}

// A figure is a number that is read from the log.
type figure struct {
	Text string // such as "Credentials issued"
	// Count selects records: a record counts if one of the selectors fits.
	Count []Selector
	// Longest makes the figure the longest lifetime of the credentials instead of their number.
	Longest bool
}

// A Selector fits records by their traits. An empty list fits every value.
type Selector struct {
	Kind       []string `yaml:"kind" json:"kind"`
	Caller     []string `json:"caller,omitempty"`
	Method     []string `json:"method,omitempty"`
	Outcome    []string `json:"outcome,omitempty"`
	Cause      []string `json:"cause,omitempty"`
	About      []string `json:"about,omitempty"`
	Source     []string `json:"source,omitempty"`
	Type       []string `json:"type,omitempty"`
	Revocation []string `json:"revocation,omitempty"`
	Lifetime   []string `json:"lifetime,omitempty"`
	// With are traits that are either present or not: break_glass, approvals, review,
	// signed, bulk, narrowed, reason, ticket.
	With    []string `json:"with,omitempty"`
	Without []string `json:"without,omitempty"`
}

// flags are the traits that a Selector names in With and Without.
var flags = map[string]func(*audit.Traits) bool{
	"break_glass": func(t *audit.Traits) bool { return t.BreakGlass },
	"approvals":   func(t *audit.Traits) bool { return t.Approvals },
	"review":      func(t *audit.Traits) bool { return t.Review },
	"bulk":        func(t *audit.Traits) bool { return t.Bulk },
	"signed":      func(t *audit.Traits) bool { return t.Signed },
	"narrowed":    func(t *audit.Traits) bool { return t.Narrowed },
	"reason":      func(t *audit.Traits) bool { return t.Reason },
	"ticket":      func(t *audit.Traits) bool { return t.Ticket },
}

// Fits reports whether records with these traits are selected.
func (s *Selector) Fits(t *audit.Traits) bool {
	for _, one := range []struct {
		wanted []string
		have   string
	}{
		{s.Kind, string(t.Kind)}, {s.Caller, t.Caller}, {s.Method, t.Method}, {s.Outcome, t.Outcome}, {s.Cause, t.Cause}, {s.About, t.About},
		{s.Source, t.Source}, {s.Type, t.Type}, {s.Revocation, t.Revocation}, {s.Lifetime, t.Lifetime},
	} {
		if len(one.wanted) > 0 && !slices.Contains(one.wanted, one.have) {
			return false
		}
	}
	has := func(name string) bool { return flags[name](t) }
	return !slices.ContainsFunc(s.With, func(name string) bool { return !has(name) }) && !slices.ContainsFunc(s.Without, has)
}

// check returns a mistake in a selector.
func (s *Selector) check() error {
	if len(s.Kind) == 0 {
		return fmt.Errorf("a selector names no kind of record")
	}
	for _, kind := range s.Kind {
		if !slices.Contains(audit.Kinds(), audit.Kind(kind)) {
			return fmt.Errorf("there is no kind of record %q", kind)
		}
	}
	for _, name := range slices.Concat(s.With, s.Without) {
		if flags[name] == nil {
			return fmt.Errorf("there is no trait %q that is present or not", name)
		}
	}
	for _, name := range s.Lifetime {
		if name != audit.Longer && !slices.ContainsFunc(audit.Lifetimes, func(l audit.Lifetime) bool { return l.Name == name }) {
			return fmt.Errorf("lifetimes are not counted by %q", name)
		}
	}
	return nil
}

// A mapping is everything in the embedded files.
type mapping struct {
	figures    map[string]*figure
	frameworks map[string]*Framework
}

// embedded reads the files once. A test reads them, so a broken file is never released.
var embedded = sync.OnceValues(load)

func load() (*mapping, error) {
	m := &mapping{frameworks: map[string]*Framework{}}
	if err := read("figures.yaml", &m.figures); err != nil {
		return nil, err
	}
	for name, f := range m.figures {
		if f.Text == "" || len(f.Count) == 0 {
			return nil, fmt.Errorf("the figure %s has no text or counts nothing", name)
		}
		for i := range f.Count {
			if err := f.Count[i].check(); err != nil {
				return nil, fmt.Errorf("the figure %s: %w", name, err)
			}
		}
	}
	entries, err := files.ReadDir("frameworks")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() == "figures.yaml" {
			continue
		}
		f := &Framework{}
		if err := read(e.Name(), f); err != nil {
			return nil, err
		}
		if f.ID+".yaml" != e.Name() {
			return nil, fmt.Errorf("%s is the framework %q", e.Name(), f.ID)
		}
		if err := m.check(f); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
		m.frameworks[f.ID] = f
	}
	return m, nil
}

func (m *mapping) check(f *Framework) error {
	for _, c := range f.Controls {
		for _, name := range slices.Concat(c.Figures, c.Exceptions) {
			if m.figures[name] == nil {
				return fmt.Errorf("%s: there is no figure %q", c.ID, name)
			}
		}
		if c.ID == "" || c.Title == "" || len(c.Figures) == 0 && len(c.Outside) == 0 {
			return fmt.Errorf("%s %s: a control has figures or is out of scope", c.ID, c.Title)
		}
	}
	return nil
}

// read decodes an embedded file.
func read(name string, into any) error {
	text, err := files.ReadFile(path.Join("frameworks", name))
	if err != nil {
		return err
	}
	roots, err := strictyaml.Parse(text)
	if err != nil {
		return fmt.Errorf("%s:%w", name, err)
	}
	if len(roots) != 1 || roots[0] == nil {
		return fmt.Errorf("%s: want one document", name)
	}
	root, wrong := strictyaml.Settle(roots[0], reflect.TypeOf(into).Elem())
	if len(wrong) > 0 {
		return fmt.Errorf("%s:%w", name, wrong[0])
	}
	if err := strictyaml.Decode(root, into); err != nil {
		return fmt.Errorf("%s:%w", name, err)
	}
	return nil
}

// Frameworks returns all frameworks in the order of their ids.
func Frameworks() ([]*Framework, error) {
	m, err := embedded()
	if err != nil {
		return nil, fmt.Errorf("reading the frameworks: %w", err)
	}
	list := slices.Collect(maps.Values(m.frameworks))
	slices.SortFunc(list, func(a, b *Framework) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// ErrUnknown means that there is no such framework.
var ErrUnknown = errors.New("there is no such framework")

// Named returns a framework by its id.
func Named(id string) (*Framework, error) {
	list, err := Frameworks()
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(list))
	for i, f := range list {
		if ids[i] = f.ID; f.ID == id {
			return f, nil
		}
	}
	return nil, fmt.Errorf("%w: name one of %s", ErrUnknown, strings.Join(ids, ", "))
}
