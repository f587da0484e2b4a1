package attest

import (
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"strconv"
	"testing"
)

// Metrics start the series of all failures at zero, so no cause may be missing.
func TestFailuresHasEveryCause(t *testing.T) {
	f, err := parser.ParseFile(gotoken.NewFileSet(), "failure.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, failure := range Failures() {
		listed[failure[1]] = true
	}
	causes := 0
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); !ok || name.Name != "Cause" {
			return true
		}
		causes++
		cause, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil || !listed[cause] {
			t.Errorf("Failures lacks the cause %q: %v", cause, err)
		}
		return true
	})
	if causes == 0 || causes != len(listed) {
		t.Errorf("%d causes, and %d in Failures", causes, len(listed))
	}
}
