package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of what is read. They are far above any real set of policies and
// keep a wrong folder from being read whole.
const (
	maxFile     = 4 << 20
	maxFiles    = 2000
	maxPolicies = 50000
)

const (
	cedarSuffix = ".cedar"
	groupsName  = "groups.yaml"
)

// A Problem is something wrong at a place: a reason why rules do not load, a
// warning, a policy that erred. Its text says what to do.
type Problem struct {
	File   string // relative to the folder of policies; or a key of the configuration, "entitlements.reports"
	Line   int    // from 1; zero: the file as a whole
	Column int    // from 1, in characters
	Policy string // the @id, if the problem is in a policy that has one
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

// problems collects, so that an operator sees all of them in one run.
type problems []*Problem

func (ps *problems) add(p Problem) { *ps = append(*ps, &p) }

// err joins the problems in the order of their places, or is nil.
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

// A source is one file of the folder.
type source struct {
	name string
	text []byte
	code []byte // text, in Cedar with comments blanked, so that searching it finds no comment
}

// A place is a part of a source: the bytes from, up to to.
type place struct {
	*source
	from, to int
}

// at gives the line and column of the first of needles in the place that is
// there, or else of the place's start.
func (p place) at(needles ...string) (line, column int) {
	offset := p.from
	for _, n := range needles {
		if i := bytes.Index(p.code[p.from:p.to], []byte(n)); i >= 0 {
			offset += i
			break
		}
	}
	before := p.text[:offset]
	start := bytes.LastIndexByte(before, '\n') + 1
	return bytes.Count(before, []byte{'\n'}) + 1, utf8.RuneCount(before[start:]) + 1
}

// blankComments replaces Cedar's line comments by spaces, leaving every other
// byte where it is.
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

// A folder is what stands in the folder of policies.
type folder struct {
	cedar     []*source
	groups    *source  // nil: there is none
	scenarios []string // names of *_test.yaml
	ignored   []string // names of files that mean nothing to the broker
}

// readFolder reads all *.cedar files, in folders below too, and groups.yaml
// at the top. Names that begin with a dot are skipped: the editor's, git's,
// and the hidden folders in which Kubernetes keeps what it mounts.
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

func (f *folder) add(fsys fs.FS, name string) (err error) {
	switch {
	case strings.HasSuffix(name, cedarSuffix):
		if len(f.cedar) == maxFiles {
			return fmt.Errorf("more than %d files of policies", maxFiles)
		}
		s, err := readSource(fsys, name)
		f.cedar = append(f.cedar, s)
		return err
	case name == groupsName:
		f.groups, err = readSource(fsys, name)
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
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: a file may have at most %d; split it", name, len(text), maxFile)
	}
	if !utf8.Valid(text) {
		return nil, fmt.Errorf("%s: not UTF-8", name)
	}
	src := &source{name: name, text: text, code: text}
	if strings.HasSuffix(name, cedarSuffix) {
		src.code = blankComments(text)
	}
	return src, nil
}
