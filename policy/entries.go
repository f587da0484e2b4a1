package policy

import (
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
	problems  *problems
	unknown   bool // the names can't be read
}

func newEntriesFile(src *source, ps *problems, noun, example string, checkName func(string) error) *entriesFile {
	return &entriesFile{source: src, noun: noun, example: example, checkName: checkName, lines: map[string]int{}, problems: ps}
}

func (f *entriesFile) report(p Problem) { f.problems.add(p) }

// decodeEntry decodes an entry. It returns nil after a problem.
func decodeEntry[T any](f *entriesFile, name string, node ast.Node) *T {
	node, errs := strictyaml.Settle(node, reflect.TypeFor[T]())
	for _, err := range errs {
		err.Key = name + "/" + err.Key
		f.report(yamlProblem(f.source, err))
	}
	if len(errs) > 0 {
		return nil
	}
	entry := new(T)
	if err := strictyaml.Decode(node, entry); err != nil {
		f.report(yamlProblem(f.source, err))
		return nil
	}
	return entry
}

// entries returns the YAML nodes of the entries by name.
func (f *entriesFile) entries() map[string]ast.Node {
	roots, err := strictyaml.Parse(f.text)
	if err != nil {
		f.unknown = true
		f.report(yamlProblem(f.source, err))
		return nil
	}
	entries := map[string]ast.Node{}
	for _, root := range roots {
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
	return entries
}

// entry adds the node of one entry. The YAML parser rejects a duplicate key within a
// document; entry rejects it across documents.
func (f *entriesFile) entry(entries map[string]ast.Node, v *ast.MappingValueNode) {
	at := v.Key.GetToken().Position
	name := v.Key.GetToken().Value
	fail := func(text string) { f.report(Problem{File: f.name, Line: at.Line, Column: at.Column, Text: text}) }
	if _, isNull := v.Key.(*ast.NullNode); isNull {
		fail(fmt.Sprintf("the key %s is null in YAML: quote it, or write another name", name))
		return
	}
	f.lines[name] = at.Line
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
