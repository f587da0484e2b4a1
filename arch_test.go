// Package accessbroker has no code: this file holds the house together.
package accessbroker

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"os"
)

const module = "accessbroker.internal"

// ours says what a package may import of ours. It reads the source files
// itself: "go list" in a test is served from the test cache and misses new
// imports. Tests may import more; see below.
var ours = map[string][]string{
	"api":                       {},
	"agent":                     {"api"},
	"audit":                     {},
	"audit/verify":              {"audit"},
	"broker":                    {"audit"},
	"broker/session":            {"broker", "audit"},
	"attest":                    {"broker", "audit"}, // audit for Digest, the type of a proof's hash
	"attest/localca":            {},
	"policy":                    {"broker", "audit"},
	"issuers/token":             {"broker", "audit"},
	"issuers/vault":             {"broker", "audit"},
	"issuers/aws":               {"broker", "audit", "issuers/token"}, // token signs its assertions
	"issuers/issuertest":        {"broker", "audit", "store"},
	"notify":                    {"broker", "audit"},
	"store":                     {"broker", "audit"},
	"server":                    {"api", "audit", "broker", "broker/session", "server/ui"},
	"server/ui":                 {},
	"internal/brokertest":       {"*"},
	"internal/brokertest/check": {"audit", "audit/verify", "broker", "store"},
	"internal/devworld":         {"internal/config", "internal/service", "attest/localca"},
	"internal/config":           {"policy", "issuers/token", "issuers/vault", "issuers/aws", "notify", "attest", "broker", "audit"},
	"internal/service":          {"internal/config", "server", "store", "attest", "policy", "issuers/token", "issuers/vault", "issuers/aws", "notify", "audit", "broker", "broker/session"},
	"internal/softkey":          {},
	"internal/mutate":           {},
	"cmd/broker": {
		"internal/config", "internal/service", "internal/devworld", "agent", "api", "policy", "audit", "audit/verify",
		"attest", "broker", "store", // clients by SVID; ids and limits; a log that is verified in its database
	},
}

// rooms says where a third-party library lives. Tests may use any.
var rooms = map[string][]string{
	"github.com/spiffe/go-spiffe":         {"attest", "attest/localca"},
	"google.golang.org/grpc":              {"attest", "attest/localca"},
	"google.golang.org/protobuf":          {"attest/localca"},
	"github.com/go-jose/go-jose":          {"attest", "attest/localca"},
	"github.com/go-webauthn/webauthn":     {"attest"},
	"github.com/coreos/go-oidc":           {"attest"},
	"golang.org/x/oauth2":                 {"attest"},
	"github.com/cedar-policy/cedar-go":    {"policy"},
	"github.com/golang-jwt/jwt":           {"issuers/token", "issuers/vault", "cmd/broker", "internal/devworld"}, // cmd/broker: the demo's resource server; internal/devworld: the login
	"modernc.org/sqlite":                  {"store"},
	"database/sql":                        {"store"},
	"golang.org/x/mod":                    {"audit", "audit/verify", "store"},
	"golang.org/x/crypto":                 {"issuers/vault"}, // SSH certificates
	"github.com/prometheus/client_golang": {"server"},
	"github.com/spf13/cobra":              {"cmd/broker"},
	"github.com/goccy/go-yaml":            {"policy", "internal/config"},
	"golang.org/x/time":                   {"server", "broker"},
	"golang.org/x/sync":                   {"broker", "attest", "issuers/vault", "notify", "cmd/broker", "internal/service", "internal/devworld", "internal/brokertest"},
	"github.com/hashicorp/vault/api":      {"issuers/vault"},
	"github.com/aws/aws-sdk-go-v2":        {"issuers/aws"},
	"golang.org/x/sys":                    {"store"},
}

// files says which packages read files or the environment, and why.
var files = map[string]string{
	"cmd/broker":          "flags, files, environment, terminal",
	"internal/brokertest": "test kit",
	"internal/devworld":   "the files of a world",
	"internal/config":     "the operator's file, secrets and authorities",
	"internal/service":    "the admin socket, the checkpoint file, and the files of the rules",
	"internal/mutate":     "a program for developers: reads source files, prints survivors",
	"attest":              "bundle and certificate files, read again when they change",
	"attest/localca":      "the development CA's own folder",
	"audit":               "the checkpoint that is remembered outside of the database",
	"issuers/aws":         "the files of the AWS tools, for the broker's own AWS credentials",
	"store":               "the database's own files",
}

func TestImportsPointOneWay(t *testing.T) {
	eachFile(t, func(name, pkg string, f *ast.File, _ *token.FileSet) {
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if rest, isOurs := strings.CutPrefix(imported, module+"/"); isOurs {
				allowed, known := ours[pkg]
				if !known {
					t.Errorf("%s: package %s has no place in the house: add it to arch_test.go", name, pkg)
				} else if !slices.Contains(allowed, rest) && !slices.Contains(allowed, "*") {
					t.Errorf("%s: %s may not import %s", name, pkg, rest)
				}
				continue
			}
			checkRoom(t, name, pkg, imported)
		}
	})
}

func checkRoom(t *testing.T, name, pkg, imported string) {
	t.Helper()
	for library, where := range rooms {
		if imported == library || strings.HasPrefix(imported, library+"/") {
			if !slices.Contains(where, pkg) {
				t.Errorf("%s: %s lives in %s, not in %s", name, library, strings.Join(where, " and "), pkg)
			}
			return
		}
	}
	if first, _, _ := strings.Cut(imported, "/"); strings.Contains(first, ".") {
		t.Errorf("%s: %s has no room: add it to arch_test.go, and say in the commit why it is needed", name, imported)
	}
}

func TestOnlySomePackagesTouchFilesAndEnvironment(t *testing.T) {
	forbidden := []string{"Getenv", "LookupEnv", "Environ", "ReadFile", "WriteFile", "Open", "OpenFile", "Create", "Stdin", "Stdout", "Stderr", "Args", "Exit"}
	eachFile(t, func(name, pkg string, f *ast.File, fset *token.FileSet) {
		if files[pkg] != "" {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "os" && slices.Contains(forbidden, s.Sel.Name) {
				t.Errorf("%s: os.%s: only cmd/broker knows of files and environment", fset.Position(s.Pos()), s.Sel.Name)
			}
			return true
		})
	})
}

// TestSizes keeps functions and files readable.
func TestSizes(t *testing.T) {
	const function, file = 80, 500
	eachFile(t, func(name, _ string, f *ast.File, fset *token.FileSet) {
		if lines := fset.Position(f.End()).Line; lines > file {
			t.Errorf("%s has %d lines, more than %d: is it one room?", name, lines, file)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; lines > function {
				t.Errorf("%s: %s has %d lines, more than %d", fset.Position(fn.Pos()), fn.Name.Name, lines, function)
			}
		}
	})
}

func TestNoDrawersForOddments(t *testing.T) {
	eachFile(t, func(name, pkg string, f *ast.File, _ *token.FileSet) {
		for _, bad := range []string{"pkg", "util", "utils", "common", "helper", "helpers", "types", "models"} {
			if slices.Contains(strings.Split(pkg, "/"), bad) || f.Name.Name == bad {
				t.Errorf("%s: a package is named by what it gives, not %q", name, bad)
			}
		}
	})
}

// eachFile parses every Go file of this module that is no test.
func eachFile(t *testing.T, f func(name, pkg string, file *ast.File, fset *token.FileSet)) {
	t.Helper()
	fset, found := token.NewFileSet(), 0
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "e2e") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		found++
		f(name, path.Dir(name), parsed, fset)
		return nil
	})
	if err != nil || found < 50 {
		t.Fatalf("reading the source: %d files, %v", found, err)
	}
}
