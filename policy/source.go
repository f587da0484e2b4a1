package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"accessbroker.internal/internal/strictyaml"
)

// Limits of a policy folder. They are far above real folders and stop the
// loader early if it is pointed at a wrong one.
const (
	maxFile     = 4 << 20 // bytes; of people.yaml: maxPeople
	maxPeople   = 16 << 20
	maxFiles    = 2000 // *.cedar files
	maxPolicies = 50000
)

const (
	cedarSuffix = ".cedar"
	groupsName  = "groups.yaml"
)

// A Problem is a mistake with its position. Load returns Problems as errors,
// Warnings formats them, and Decide returns one for each policy that erred. The
// text states what to do.
type Problem struct {
	File   string // relative to the policy folder; or a configuration key, such as "entitlements.reports"
	Line   int    // from 1; zero: the whole file
	Column int    // from 1, in characters
	Policy string // the @id of the policy, if it has one
	Key    string // in the operator's file, such as "entitlements/reports/owner", if the mistake is there
	Text   string
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	if p.Policy != "" {
		fmt.Fprintf(&b, ": policy %q", p.Policy)
	}
	return b.String() + ": " + p.Text
}

// problems collects every problem, so that one run shows them all.
type problems []*Problem

func (ps *problems) add(p Problem) { *ps = append(*ps, &p) }

// err sorts the problems by position and joins the first 100. It returns nil if
// there is none.
func (ps problems) err() error {
	const most = 100
	slices.SortStableFunc(ps, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	var errs []error
	for i, p := range ps {
		if i == most {
			errs = append(errs, fmt.Errorf("and %d more problems", len(ps)-most))
			break
		}
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

// A source is one file of the policy folder.
type source struct {
	name string
	raw  []byte // as the file has it
	text []byte // without a byte order mark
	code []byte // text with Cedar comments blanked, for searches

	lines []int // the offset of each line
}

// A span is the part of a source in [from, to), in bytes.
type span struct {
	*source
	from, to int
}

// at returns the line and column of the first needle that occurs in the span,
// or of the start of the span if none does. Columns count characters.
func (p span) at(needles ...string) (line, column int) {
	offset := p.from
	for _, n := range needles {
		if i := bytes.Index(p.code[p.from:p.to], []byte(n)); i >= 0 {
			offset += i
			break
		}
	}
	return p.position(offset)
}

// position returns the line and column of an offset.
func (s *source) position(offset int) (line, column int) {
	line = sort.Search(len(s.lines), func(i int) bool { return s.lines[i] > offset })
	return line, utf8.RuneCount(s.text[s.lines[line-1]:offset]) + 1
}

// blankComments replaces Cedar's line comments by spaces, so that a search finds
// no text in comments and offsets stay valid.
func blankComments(text []byte) []byte {
	out := bytes.Clone(text)
	inString, inComment := false, false
	for i := 0; i < len(out); i++ {
		switch c := out[i]; {
		case c == '\n':
			inComment = false
		case inComment:
			out[i] = ' '
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case !inString && c == '/' && i+1 < len(out) && out[i+1] == '/':
			inComment = true
			out[i] = ' '
		}
	}
	return out
}

// A folder is the content of the policy folder.
type folder struct {
	cedar     []*source
	groups    *source  // nil: no groups.yaml
	suppliers *source  // nil: no suppliers.yaml
	people    *source  // nil: no people.yaml
	campaigns *source  // nil: no reviews.yaml
	scenarios []string // names of *_test.yaml
	ignored   []string // names of other files, except *.md
}

// readFolder reads *.cedar files in all folders, and groups.yaml, suppliers.yaml, people.yaml and reviews.yaml at the top. It
// skips names that start with a dot: files of editors, .git, and the ..data
// folders of Kubernetes volumes, which repeat every mounted file.
func readFolder(fsys fs.FS) (folder, error) {
	var f folder
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name != "." && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return nil
		}
		return f.add(fsys, name)
	})
	if err != nil {
		return folder{}, fmt.Errorf("reading the policies: %w", err)
	}
	return f, nil
}

// add reads a policy or groups file, and notes the names of scenario files and of
// files that nothing reads. Test reads scenarios only when it runs them.
func (f *folder) add(fsys fs.FS, name string) (err error) {
	switch {
	case strings.HasSuffix(name, cedarSuffix):
		if len(f.cedar) == maxFiles {
			return fmt.Errorf("more than %d *.cedar files: check that this is the policy folder", maxFiles)
		}
		s, err := readSource(fsys, name)
		f.cedar = append(f.cedar, s)
		return err
	case name == groupsName:
		f.groups, err = readSource(fsys, name)
		return err
	case name == suppliersName:
		f.suppliers, err = readSource(fsys, name)
		return err
	case name == peopleName:
		f.people, err = readSource(fsys, name)
		return err
	case name == campaignsName:
		f.campaigns, err = readSource(fsys, name)
		return err
	case strings.HasSuffix(name, scenarioSuffix):
		f.scenarios = append(f.scenarios, name)
	case path.Ext(name) != ".md":
		f.ignored = append(f.ignored, name)
	}
	return nil
}

func readSource(fsys fs.FS, name string) (*source, error) {
	text, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, err
	}
	most := maxFile
	if name == peopleName {
		most = maxPeople
	}
	if len(text) > most {
		return nil, fmt.Errorf("%s has %d bytes, more than %d: split the file", name, len(text), most)
	}
	if !utf8.Valid(text) {
		return nil, fmt.Errorf("%s is not UTF-8: save it as UTF-8", name)
	}
	src := &source{name: name, raw: text, text: strictyaml.WithoutMark(text)}
	src.code, src.lines = src.text, []int{0}
	for i, c := range src.text {
		if c == '\n' {
			src.lines = append(src.lines, i+1)
		}
	}
	if strings.HasSuffix(name, cedarSuffix) {
		src.code = blankComments(src.text)
	}
	return src, nil
}
