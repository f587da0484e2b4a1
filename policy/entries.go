package policy

import (
	"bytes"
	"fmt"
	"reflect"

	"github.com/goccy/go-yaml/ast"

	"accessbroker.internal/internal/strictyaml"
)

// An entriesFile is a YAML file whose keys name its entries, such as groups.yaml, while
// it is loaded.
type entriesFile struct {
	*source
	noun      string // what a key names
	example   string // of an entry
	checkName func(name string) error
	lines     map[string]int // by name, from 1
	offsets   map[string]int // by name: the lines above the part that it was parsed with
	above     int            // the lines above the present part
	problems  *problems
	unknown   bool // the names can't be read
}

func newEntriesFile(src *source, ps *problems, noun, example string, checkName func(string) error) *entriesFile {
	return &entriesFile{source: src, noun: noun, example: example, checkName: checkName, lines: map[string]int{}, offsets: map[string]int{}, problems: ps}
}

func (f *entriesFile) report(p Problem) { f.problems.add(p) }

// decodeEntry decodes an entry. It returns nil after a problem.
func decodeEntry[T any](f *entriesFile, name string, node ast.Node) *T {
	node, errs := strictyaml.Settle(node, reflect.TypeFor[T]())
	for _, err := range errs {
		err.Key = name + "/" + err.Key
		f.report(f.below(name, err))
	}
	if len(errs) > 0 {
		return nil
	}
	entry := new(T)
	if err := strictyaml.Decode(node, entry); err != nil {
		f.report(f.below(name, err))
		return nil
	}
	return entry
}

// below converts an error of an entry, whose position is in its part.
func (f *entriesFile) below(name string, err error) Problem {
	p := yamlProblem(f.source, err)
	if p.Line > 0 {
		p.Line += f.offsets[name]
	}
	return p
}

// entries returns the YAML nodes of the entries by name.
func (f *entriesFile) entries() map[string]ast.Node {
	parts, err := f.parse(f.parts())
	if err != nil {
		parts, err = f.parse([]part{{text: f.text}}) // with the error's position in the file
	}
	if err != nil {
		f.unknown = true
		f.report(yamlProblem(f.source, err))
		return nil
	}
	entries := map[string]ast.Node{}
	for _, p := range parts {
		f.entriesOf(p, entries)
	}
	return entries
}

// partLines is how many lines of a long file are parsed together: the time that the YAML
// parser takes grows with the square of the number of keys.
const partLines = 1000

// A part is some entries of the file, which begin after a number of lines.
type part struct {
	text  []byte
	lines int
	roots []ast.Node
}

// parts cuts a long file before lines that begin an entry. What spans such a line does not
// parse on its own.
func (f *entriesFile) parts() (list []part) {
	if len(f.source.lines) < 2*partLines || bytes.ContainsAny(f.text, "&*") || bytes.Contains(f.text, []byte("\n---")) {
		return []part{{text: f.text}}
	}
	from, first := 0, 0
	for i, at := range f.source.lines {
		if i-first >= partLines && at < len(f.text) && ('a' <= f.text[at] && f.text[at] <= 'z' || '0' <= f.text[at] && f.text[at] <= '9') {
			list = append(list, part{text: f.text[from:at], lines: first})
			from, first = at, i
		}
	}
	return append(list, part{text: f.text[from:], lines: first})
}

func (f *entriesFile) parse(parts []part) ([]part, error) {
	for i := range parts {
		var err error
		if parts[i].roots, err = strictyaml.Parse(parts[i].text); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// entriesOf adds the entries of a part.
func (f *entriesFile) entriesOf(p part, entries map[string]ast.Node) {
	f.above = p.lines
	for _, root := range p.roots {
		switch body := root.(type) {
		case nil:
		case *ast.MappingNode:
			for _, v := range body.Values {
				f.entry(entries, v)
			}
		case *ast.MappingValueNode:
			f.entry(entries, body)
		case *ast.NullNode, *ast.CommentGroupNode:
		default:
			f.unknown = true
			f.report(Problem{File: f.name, Line: 1, Column: 1, Text: fmt.Sprintf("the file must be a mapping of %s names, such as %q", f.noun, f.example)})
		}
	}
}

// entry adds the node of one entry. The YAML parser rejects a duplicate key within a
// document; entry rejects it across documents.
func (f *entriesFile) entry(entries map[string]ast.Node, v *ast.MappingValueNode) {
	at := v.Key.GetToken().Position
	name := v.Key.GetToken().Value
	fail := func(text string) {
		f.report(Problem{File: f.name, Line: at.Line + f.above, Column: at.Column, Text: text})
	}
	if _, isNull := v.Key.(*ast.NullNode); isNull {
		fail(fmt.Sprintf("the key %s is null in YAML: quote it, or write another name", name))
		return
	}
	f.lines[name], f.offsets[name] = at.Line+f.above, f.above
	_, twice := entries[name]
	if twice {
		fail(fmt.Sprintf("%s %q appears twice: merge the two entries", f.noun, name))
		return
	}
	if err := f.checkName(name); err != nil {
		fail(err.Error())
		return
	}
	entries[name] = v.Value
}

// reportAt reports err, unless it is nil, at the first needle after the start of the
// entry.
func (f *entriesFile) reportAt(name, needle string, err error) {
	if err == nil {
		return
	}
	line, column := span{f.source, f.source.lines[f.lines[name]-1], len(f.text)}.at(needle)
	f.report(Problem{File: f.name, Line: line, Column: column, Text: fmt.Sprintf("%s %q: %v", f.noun, name, err)})
}
