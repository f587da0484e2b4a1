// Package accessbroker has no code. Its test enforces the architecture: which package
// imports which, and how large files and functions are.
package accessbroker

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"os"
)

const module = "accessbroker.internal"

// ours lists the packages of this module that a package may import. Tests may import any.
// The test parses the source files itself, because the result of "go list" would not
// invalidate Go's test cache.
var ours = map[string][]string{
	"api":                       {},
	"agent":                     {"api"},
	"agent/pipeline":            {"agent/tokensource", "internal/visible"},
	"agent/tokensource":         {},
	"egress":                    {"agent", "api", "broker", "egress/scrub", "internal/outbound"}, // broker: the operator's rules
	"egress/forward":            {"egress"},
	"audit":                     {"internal/strictjson"},
	"audit/verify":              {"audit", "internal/strictjson"},
	"broker":                    {"audit"},
	"broker/activity":           {"broker", "audit"},
	"broker/campaign":           {"broker", "broker/inventory", "audit"},
	"broker/recovery":           {"broker", "audit"},
	"broker/inventory":          {"broker", "audit"},
	"broker/evidence":           {"audit", "internal/strictyaml"},
	"broker/directory":          {"broker", "audit"},
	"broker/membership":         {"broker", "audit"},
	"broker/session":            {"broker", "audit"},
	"broker/supplier":           {"broker", "audit"},
	"broker/signal":             {"broker", "broker/session", "audit"},
	"attest":                    {"broker", "audit", "attest/jwks", "attest/mapping", "internal/outbound", "internal/strictjson"}, // audit for Digest, the type of a proof's hash
	"attest/mapping":            {"broker", "internal/strictjson"},                                                                // the form of SPIFFE IDs
	"attest/dpop":               {"attest/jwks", "broker", "audit", "internal/strictjson"},
	"attest/jwks":               {"internal/strictjson"},
	"attest/localca":            {"broker"}, // the form of SPIFFE IDs
	"policy":                    {"broker", "audit", "internal/strictyaml"},
	"issuers/token":             {"broker", "audit"},
	"issuers/vault":             {"broker", "audit", "internal/retryafter"},
	"issuers/aws":               {"broker", "audit", "issuers/token", "internal/retryafter"}, // token signs its assertions
	"issuers/ldap":              {"broker", "broker/membership"},
	"issuers/scim":              {"broker", "broker/membership", "internal/outbound", "internal/retryafter"},
	"issuers/issuertest":        {"broker", "audit", "store", "internal/storetest/tables"},
	"mcp":                       {"agent", "egress", "api", "audit", "broker", "internal/strictjson", "internal/visible"}, // audit and broker: the forms of trace contexts and ids
	"notify":                    {"broker", "audit", "internal/outbound", "internal/retryafter", "internal/visible"},
	"signals":                   {"attest/jwks", "broker", "broker/signal", "internal/outbound", "internal/retryafter", "internal/strictjson"},
	"signals/signalstest":       {},
	"store":                     {"broker", "broker/activity", "broker/evidence", "broker/inventory", "audit"},
	"scim":                      {"broker", "broker/directory", "internal/strictjson"},
	"server":                    {"api", "egress", "attest/dpop", "audit", "broker", "broker/activity", "broker/evidence", "broker/inventory", "broker/session", "internal/strictjson", "server/inbound", "server/plot", "server/ui", "broker/supplier", "broker/signal", "broker/membership", "broker/campaign"},
	"tickets/ticketstest":       {},
	"verify":                    {}, // services outside the broker use it
	"tickets":                   {"broker", "internal/outbound", "internal/retryafter"},
	"server/plot":               {},
	"server/inbound":            {},
	"server/ui":                 {"internal/visible"},
	"egress/egresstest":         {},
	"egress/scrub":              {"api"},
	"internal/brokertest":       {"*"},
	"internal/storetest":        {},
	"internal/storetest/tables": {"internal/storetest", "store"},
	"internal/brokertest/check": {"audit", "audit/verify", "broker", "store"},
	"internal/devworld":         {"broker", "verify", "internal/config", "internal/service", "attest/localca"},
	"internal/devworld/browser": {},
	"internal/config":           {"api", "egress", "internal/strictyaml", "scim", "broker/directory", "policy", "issuers/token", "issuers/vault", "issuers/aws", "notify", "tickets", "attest", "attest/jwks", "attest/mapping", "internal/outbound", "signals", "broker", "audit", "store", "issuers/ldap", "issuers/scim", "broker/membership"}, // store parses its own URL
	"internal/handoff":          {"api"},
	"internal/outbound":         {},
	"internal/retryafter":       {},
	"internal/screen":           {},
	"internal/service":          {"internal/config", "mcp", "scim", "broker/directory", "server", "server/inbound", "store", "attest", "attest/dpop", "policy", "issuers/token", "issuers/vault", "issuers/aws", "notify", "tickets", "audit", "broker", "broker/inventory", "broker/session", "broker/supplier", "broker/signal", "signals", "issuers/ldap", "issuers/scim", "broker/membership", "internal/outbound", "broker/campaign", "broker/recovery"},
	"internal/softkey":          {},
	"internal/strictyaml":       {},
	"internal/visible":          {},
	"internal/strictjson":       {},
	"internal/mutate":           {},
	"cmd/broker": {
		"internal/config", "internal/service", "internal/devworld", "internal/devworld/browser", "internal/handoff", "internal/screen", "internal/visible", "egress", "egress/forward", "egress/scrub", "agent", "agent/pipeline", "agent/tokensource", "api", "mcp", "policy", "audit", "audit/verify",
		"broker/evidence",           // a report from an export
		"attest", "broker", "store", // clients by SVID; ids and limits; a log that is verified in its database
	},
}

// rooms lists the packages that may import a third-party library. Tests may import any.
var rooms = map[string][]string{
	"github.com/spiffe/go-spiffe":            {"attest", "attest/localca"},
	"google.golang.org/grpc":                 {"attest", "attest/localca"},
	"google.golang.org/protobuf":             {"attest/localca"},
	"github.com/go-jose/go-jose":             {"attest", "attest/localca"},
	"github.com/go-webauthn/webauthn":        {"attest"},
	"github.com/coreos/go-oidc":              {"attest"},
	"golang.org/x/oauth2":                    {"attest"},
	"github.com/cedar-policy/cedar-go":       {"policy"},
	"github.com/golang-jwt/jwt":              {"issuers/token", "issuers/vault", "cmd/broker", "internal/devworld"}, // cmd/broker: the demo's resource server; internal/devworld: the login
	"modernc.org/sqlite":                     {"store"},
	"github.com/jackc/pgx":                   {"store", "internal/storetest"},
	"database/sql":                           {"store"},
	"golang.org/x/mod":                       {"audit", "audit/verify", "store"},
	"golang.org/x/crypto":                    {"issuers/vault"}, // SSH certificates
	"github.com/prometheus/client_golang":    {"server", "egress/forward"},
	"github.com/spf13/cobra":                 {"cmd/broker"},
	"github.com/goccy/go-yaml":               {"internal/strictyaml", "policy", "internal/config"}, // the last two walk the tree
	"golang.org/x/time":                      {"tickets", "server", "broker"},
	"golang.org/x/sync":                      {"broker", "broker/recovery", "attest", "issuers/vault", "notify", "cmd/broker", "internal/service", "internal/devworld", "internal/brokertest"},
	"github.com/modelcontextprotocol/go-sdk": {"mcp"},
	"github.com/google/jsonschema-go":        {"mcp"}, // the SDK's schemas
	"github.com/go-ldap/ldap":                {"issuers/ldap"},
	"github.com/go-asn1-ber/asn1-ber":        {"issuers/ldap"}, // the bound on a packet
	"github.com/hashicorp/vault/api":         {"issuers/vault"},
	"github.com/aws/aws-sdk-go-v2":           {"issuers/aws", "egress"},                 // egress: signatures
	"golang.org/x/sys":                       {"store", "cmd/broker", "server/inbound"}, // server/inbound: the queue and the filter of a listening socket
}

// files lists the packages that use files or the terminal, and what for.
var files = map[string]string{
	"agent/tokensource":   "the file of a projected token",
	"cmd/broker":          "flags, files, terminal",
	"internal/brokertest": "test kit",
	"internal/devworld":   "the files of a world",
	"internal/config":     "the operator's file, secrets and authorities",
	"internal/handoff":    "the private folder of a child's credential",
	"internal/service":    "the admin socket and the checkpoint file",
	"internal/mutate":     "a program for developers: reads source files, prints survivors",
	"attest":              "files of bundles and certificates",
	"attest/localca":      "the development CA's own folder",
	"audit":               "the checkpoint file",
	"issuers/aws":         "the files of the AWS tools, for the broker's own AWS credentials",
	"store":               "the files of the database and of the rules next to it",
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
					t.Errorf("%s: package %s is unknown: add it to arch_test.go", name, pkg)
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
				t.Errorf("%s: only %s may import %s, not %s", name, strings.Join(where, " and "), library, pkg)
			}
			return
		}
	}
	if first, _, _ := strings.Cut(imported, "/"); strings.Contains(first, ".") {
		t.Errorf("%s: %s is unknown: add it to arch_test.go, and explain in the commit why it is needed", name, imported)
	}
}

// Only cmd/broker and internal packages read the environment, and the store what the programs
// of PostgreSQL read there. Only the packages of files
// use files and the terminal.
func TestFilesAndEnvironment(t *testing.T) {
	environment := []string{"Getenv", "LookupEnv", "Environ"}
	others := []string{"ReadFile", "WriteFile", "Open", "OpenFile", "Create", "Stdin", "Stdout", "Stderr", "Args", "Exit"}
	eachFile(t, func(name, pkg string, f *ast.File, fset *token.FileSet) {
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); !ok || x.Name != "os" {
				return true
			}
			if slices.Contains(environment, s.Sel.Name) && pkg != "cmd/broker" && !strings.HasPrefix(pkg, "internal/") && name != "store/postgres_config.go" {
				t.Errorf("%s: os.%s: %s may not read the environment", fset.Position(s.Pos()), s.Sel.Name, pkg)
			}
			if slices.Contains(others, s.Sel.Name) && files[pkg] == "" {
				t.Errorf("%s: os.%s: %s may not use files or the terminal", fset.Position(s.Pos()), s.Sel.Name, pkg)
			}
			return true
		})
	})
}

// Functions and files stay readable.
func TestSizes(t *testing.T) {
	const function, file, exported = 80, 500, 40
	methods := map[string]int{} // exported ones, by package and type
	eachFile(t, func(name, pkg string, f *ast.File, fset *token.FileSet) {
		if lines := fset.Position(f.End()).Line; lines > file {
			t.Errorf("%s has %d lines, more than %d: split it", name, lines, file)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; lines > function {
				t.Errorf("%s: %s has %d lines, more than %d", fset.Position(fn.Pos()), fn.Name.Name, lines, function)
			}
			if fn.Recv != nil && fn.Name.IsExported() {
				methods[pkg+"."+receiver(fn)]++
			}
		}
	})
	if methods["broker.Broker"] == 0 {
		t.Fatal("the methods of broker.Broker were not counted")
	}
	for name, n := range methods {
		if n > exported {
			t.Errorf("%s has %d exported methods, more than %d: split it", name, n, exported)
		}
	}
}

// receiver returns the name of a method's type.
func receiver(fn *ast.FuncDecl) string {
	t := fn.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	switch t := t.(type) {
	case *ast.Ident:
		return t.Name
	case *ast.IndexExpr: // one type parameter
		return t.X.(*ast.Ident).Name
	case *ast.IndexListExpr:
		return t.X.(*ast.Ident).Name
	}
	return ""
}

// A package is named after what it provides.
func TestPackageNames(t *testing.T) {
	eachFile(t, func(name, pkg string, f *ast.File, _ *token.FileSet) {
		for _, bad := range []string{"pkg", "util", "utils", "common", "helper", "helpers", "types", "models"} {
			if slices.Contains(strings.Split(pkg, "/"), bad) || f.Name.Name == bad {
				t.Errorf("%s: name the package after what it provides, not %q", name, bad)
			}
		}
	})
}

// eachFile parses the Go files of this module, except for tests.
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

// Every fuzz target has a kept corpus, from which CI runs it.
func TestFuzzTargetsHaveCorpora(t *testing.T) {
	target := regexp.MustCompile(`(?m)^func (Fuzz\w*)\(`)
	found := 0
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "e2e" {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, m := range target.FindAllSubmatch(text, -1) {
			found++
			corpus := path.Join(path.Dir(name), "testdata/fuzz", string(m[1]))
			if files, err := os.ReadDir(corpus); err != nil || len(files) == 0 {
				t.Errorf("%s has no corpus: keep some inputs in %s", m[1], corpus)
			}
		}
		return nil
	})
	if err != nil || found < 30 {
		t.Fatalf("reading the tests: %d fuzz targets, %v", found, err)
	}
}
