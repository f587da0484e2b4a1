package accessbroker

import (
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// clientRooms are the packages of the module that do not run in a broker.
var clientRooms = []string{"agent", "api", "audit/verify", "cmd", "deploy", "e2e", "egress", "internal/brokertest", "internal/devworld", "internal/mutate", "attest/localca", "verify"}

// TestEveryStateIsDocumented keeps the state table of docs/operations.md complete: state
// that calls share needs a lock, an atomic value or a channel, so every type of a broker
// that has one is in the table, with its kind.
func TestEveryStateIsDocumented(t *testing.T) {
	listed := listedStates(t)
	found, declared := map[string]bool{}, map[string]bool{}
	eachFile(t, func(name, pkg string, file *ast.File, fset *token.FileSet) {
		if strings.HasSuffix(name, "_test.go") || isTestRoom(pkg) || inRooms(pkg, clientRooms) {
			return
		}
		for name, shared := range statesOf(file) {
			declared[pkg+"."+name] = true
			found[pkg+"."+name] = found[pkg+"."+name] || shared
		}
	})
	if len(declared) < 1000 {
		t.Fatalf("got %d types and variables, want those of the broker", len(declared))
	}
	for _, state := range slices.Sorted(maps.Keys(found)) {
		if found[state] && !listed[state] {
			t.Errorf("%s is not in the state table of docs/operations.md", state)
		}
	}
	for _, state := range slices.Sorted(maps.Keys(listed)) {
		if !declared[state] {
			t.Errorf("the state table of docs/operations.md lists %s, which does not exist", state)
		}
	}
}

// isTestRoom reports whether a package is for tests, such as tickets/ticketstest.
func isTestRoom(pkg string) bool {
	room := path.Base(pkg)
	return strings.HasSuffix(room, "test") && room != "attest"
}

func inRooms(pkg string, rooms []string) bool {
	return slices.ContainsFunc(rooms, func(room string) bool { return pkg == room || strings.HasPrefix(pkg, room+"/") })
}

var (
	stateRow  = regexp.MustCompile(`(?m)^\|(.*)\|$`)
	stateName = regexp.MustCompile("`([a-z/0-9]+\\.[A-Za-z]+)`")
)

// stateKinds are the kinds of state that the table may name.
var stateKinds = []string{"shared", "owned", "local"}

// listedStates returns the types in the state table. Each row has the types, the kind and
// the mechanism.
func listedStates(t *testing.T) map[string]bool {
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n### Every state in memory\n")
	if !ok {
		t.Fatal("docs/operations.md has no section \"Every state in memory\"")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	listed := map[string]bool{}
	for _, row := range stateRow.FindAllStringSubmatch(section, -1) {
		columns := strings.Split(row[1], " | ")
		names := stateName.FindAllStringSubmatch(columns[0], -1)
		if len(names) == 0 {
			continue // the heading
		}
		if len(columns) != 4 || !slices.Contains(stateKinds, strings.TrimSpace(columns[2])) || strings.TrimSpace(columns[3]) == "" {
			t.Errorf("got the row %q, want types, state, kind and mechanism", row[1])
		}
		for _, name := range names {
			listed[name[1]] = true
		}
	}
	return listed
}

// statesOf returns the types and variables of a file, and whether they have a lock, an
// atomic value or a channel.
func statesOf(file *ast.File) map[string]bool {
	names := map[string]bool{}
	for _, decl := range file.Decls {
		general, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range general.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				names[s.Name.Name] = isShared(s.Type)
			case *ast.ValueSpec:
				for i, name := range s.Names {
					names[name.Name] = s.Type != nil && isShared(s.Type) || i < len(s.Values) && isShared(typeOf(s.Values[i]))
				}
			}
		}
	}
	return names
}

// typeOf returns the type of a composite literal; of other expressions, the expression.
func typeOf(value ast.Expr) ast.Expr {
	if literal, ok := value.(*ast.CompositeLit); ok {
		return literal.Type
	}
	return value
}

// isShared reports whether a type, or a field of it, is for several goroutines.
func isShared(e ast.Expr) bool {
	switch x := e.(type) {
	case *ast.StructType:
		return slices.ContainsFunc(x.Fields.List, func(f *ast.Field) bool { return isShared(f.Type) })
	case *ast.ChanType:
		return true
	case *ast.ArrayType:
		return isShared(x.Elt)
	case *ast.MapType:
		return isShared(x.Value)
	case *ast.IndexExpr:
		return isShared(x.X)
	case *ast.SelectorExpr:
		in, ok := x.X.(*ast.Ident)
		return ok && (in.Name == "atomic" || in.Name == "singleflight" || in.Name == "sync" && slices.Contains([]string{"Mutex", "RWMutex", "Map", "Cond"}, x.Sel.Name))
	}
	return false
}
