package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/e2e/servers"
)

// TestOpenAPI checks the document that a broker serves with the linters that most people
// use, and calls that broker with clients that are generated from the document. Then
// the clients decode the document's examples, of which there is one of each type of
// credential.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	d := startDev(t)
	text, err := d.get(t, "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	document := filepath.Join(t.TempDir(), "openapi.json")
	if err := os.WriteFile(document, text, 0o600); err != nil {
		t.Fatal(err)
	}
	examples := serveExamples(t, text)
	t.Run("redocly", func(t *testing.T) {
		lint(t, "redocly", "lint", "--config", filepath.Join("clients", "openapi", "redocly.yaml"), document)
	})
	t.Run("spectral", func(t *testing.T) {
		lint(t, "spectral", "lint", "--ruleset", filepath.Join("clients", "openapi", "spectral.yaml"), "--fail-severity", "hint", document)
	})
	for name, generate := range map[string]func(*testing.T, string) []string{"TypeScript": typeScriptClient, "Go": goClient} {
		t.Run(name, func(t *testing.T) {
			client := generate(t, document)
			got := d.runClient(t, client, d.url, "tickets-api", "unknown")
			want := []map[string]any{
				{"id": "spiffe://acme.test/agent/triage", "kind": "agent"},
				{"entitlement": "tickets-api", "status": 201.0, "type": "bearer", "use": "token ey", "expires": true},
				{"entitlement": "unknown", "status": 403.0, "code": "denied"},
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("against the broker: got %v, want %v", got, want)
			}
			testClientWithExamples(t, d, client, examples)
		})
	}
}

func lint(t *testing.T, linter string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), npmCommand(t, linter), args...)
	cmd.Env = append(os.Environ(), "REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", linter, err, out)
	}
}

func npmCommand(t *testing.T, name string) string {
	t.Helper()
	modules, err := servers.Modules("openapi")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(modules, ".bin", name)
}

// typeScriptClient generates types with openapi-typescript, compiles the client that
// uses them, and returns the command that runs it.
func typeScriptClient(t *testing.T, document string) []string {
	t.Helper()
	dir := clientFolder(t, "openapi", "client.mts", "tsconfig.json")
	modules, err := servers.Modules("openapi")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	printed(t, exec.CommandContext(t.Context(), npmCommand(t, "openapi-typescript"), document, "--output", filepath.Join(dir, "broker.d.ts")))
	printed(t, exec.CommandContext(t.Context(), npmCommand(t, "tsc"), "--project", dir))
	return []string{installed(t, "node"), filepath.Join(dir, "out", "client.mjs")}
}

// goClient generates a client with oapi-codegen, compiles it with the program that uses
// it, and returns the command that runs it.
func goClient(t *testing.T, document string) []string {
	t.Helper()
	dir := clientFolder(t, "openapi-go", "go.mod", "go.sum", "main.go", "generate.yaml")
	if err := os.Mkdir(filepath.Join(dir, "broker"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"tool", "oapi-codegen", "-config", "generate.yaml", document},
		{"build", "-trimpath", "-o", "client", "."}, // -trimpath: the cache serves any folder
	} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
		printed(t, cmd)
	}
	return []string{filepath.Join(dir, "client")}
}

// clientFolder copies files of a folder of clients into a new folder.
func clientFolder(t *testing.T, name string, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join("clients", name, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runClient runs a generated client and returns the lines that it prints.
func (d *devBroker) runClient(t *testing.T, client []string, args ...string) (lines []map[string]any) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), client[0], slices.Concat(client[1:], args)...)
	cmd.Env = append(os.Environ(), "SVID="+d.jwtSVID(t), "SSL_CERT_FILE="+d.bundle(), "NODE_EXTRA_CA_CERTS="+d.bundle())
	decoder := json.NewDecoder(bytes.NewReader(printed(t, cmd)))
	for {
		var line map[string]any
		err := decoder.Decode(&line)
		if err == io.EOF {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
}

// printed returns what a command prints and fails the test if the command fails.
func printed(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", filepath.Base(cmd.Path), err, out, errs.String())
	}
	return out
}

// testClientWithExamples lets a client decode an example of each type of credential, and
// of the other answers to the same call.
func testClientWithExamples(t *testing.T, d *devBroker, client []string, url string) {
	t.Helper()
	want := []map[string]any{{"id": "spiffe://acme.test/agent/triage", "kind": "agent"}}
	var names []string
	for _, one := range []struct{ name, kind, use string }{
		{"credentialBearer", "bearer", "token ey"},
		{"credentialAWS", "aws", "key ASIAIOSFODNN7EXAMPLE"},
		{"credentialUserpass", "userpass", "user v-broker-orders-4k1x"},
		{"credentialCertificate", "certificate", "chain -----BEGIN CERTIFICATE-----"},
		{"credentialVault", "vault", "token hvs."},
		{"credentialData", "data", "fields serial_number,signed_key"},
		{"credentialMembership", "membership", "member of Sales in crm"},
	} {
		names = append(names, one.name)
		want = append(want, map[string]any{"entitlement": one.name, "status": 201.0, "type": one.kind, "use": one.use, "expires": true})
	}
	names = append(names, "requestPending", "problemDenied")
	want = append(want,
		map[string]any{"entitlement": "requestPending", "status": 202.0, "pending": "req_06h2a5itdho0140us7upegi1ak"},
		map[string]any{"entitlement": "problemDenied", "status": 403.0, "code": "denied"})
	if got := d.runClient(t, client, append([]string{url}, names...)...); !reflect.DeepEqual(got, want) {
		t.Errorf("with the examples: got %v, want %v", got, want)
	}
}

type (
	openAPIReference struct {
		Ref string `json:"$ref"`
	}
	openAPIResponse struct {
		openAPIReference
		Content map[string]struct{ Examples map[string]openAPIReference }
	}
	openAPIDocument struct {
		Paths      map[string]map[string]struct{ Responses map[string]openAPIResponse }
		Components struct {
			Responses map[string]openAPIResponse
			Examples  map[string]struct{ Value json.RawMessage }
			Schemas   map[string]openAPISchema
		}
	}
	openAPISchema struct {
		openAPIReference
		Required      []string
		Properties    map[string]openAPISchema
		AllOf         []openAPISchema
		Discriminator struct{ Mapping map[string]string }
	}
)

func (d *openAPIDocument) schema(ref string) openAPISchema {
	return d.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")]
}

// answer writes the example of an operation that has this name.
func (d *openAPIDocument) answer(w http.ResponseWriter, method, path, name string) {
	for status, response := range d.Paths[path][strings.ToLower(method)].Responses {
		if response.Ref != "" {
			response = d.Components.Responses[strings.TrimPrefix(response.Ref, "#/components/responses/")]
		}
		for mediaType, content := range response.Content {
			if example, ok := content.Examples[name]; ok {
				w.Header().Set("Content-Type", mediaType)
				code, _ := strconv.Atoi(status)
				w.WriteHeader(code)
				_, _ = w.Write(d.Components.Examples[strings.TrimPrefix(example.Ref, "#/components/examples/")].Value)
				return
			}
		}
	}
	http.Error(w, "no such example", http.StatusTeapot)
}

// serveExamples answers with the examples of the document. The entitlement of a call is
// the name of the example.
func serveExamples(t *testing.T, text []byte) (url string) {
	t.Helper()
	var document openAPIDocument
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var ask struct{ Entitlement string }
		if r.Method == http.MethodPost {
			_ = json.NewDecoder(r.Body).Decode(&ask)
		}
		document.answer(w, r.Method, r.URL.Path, cmp.Or(ask.Entitlement, "identity"))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// sourceDocument returns the OpenAPI document in the source.
var sourceDocument = sync.OnceValues(func() (document openAPIDocument, err error) {
	text, err := os.ReadFile(filepath.Join("..", "server", "openapi.json"))
	if err != nil {
		return document, err
	}
	return document, json.Unmarshal(text, &document)
})

// checkSecret compares the fields of a secret with the schema of its type in the OpenAPI
// document.
func checkSecret(t testing.TB, c *api.Credential) {
	t.Helper()
	document, err := sourceDocument()
	if err != nil {
		t.Fatal(err)
	}
	union := document.Components.Schemas["Credential"]
	member := document.schema(union.Discriminator.Mapping[c.Type])
	if len(member.AllOf) != 2 {
		t.Fatalf("the type %q is not in the OpenAPI document", c.Type)
	}
	secret := document.schema(member.AllOf[1].Properties["secret"].Ref)
	for _, field := range secret.Required {
		if c.Secret[field] == "" {
			t.Errorf("a credential of type %s lacks the field %s of the OpenAPI document", c.Type, field)
		}
	}
	for field := range c.Secret {
		if _, known := secret.Properties[field]; !known && c.Type != "data" {
			t.Errorf("a credential of type %s has the field %s, which is not in the OpenAPI document", c.Type, field)
		}
	}
}
