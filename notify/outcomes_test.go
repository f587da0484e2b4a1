package notify

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Metrics start the series of all outcomes at zero, so no outcome may be missing.
func TestOutcomesIsComplete(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "outbox.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var constants []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if ok && strings.HasPrefix(spec.Names[0].Name, "outcome") {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Error(err)
			}
			constants = append(constants, value)
		}
		return true
	})
	all := Outcomes()
	slices.Sort(constants)
	slices.Sort(all)
	if !slices.Equal(constants, all) {
		t.Errorf("the constants are %v, and Outcomes returns %v", constants, all)
	}
}
