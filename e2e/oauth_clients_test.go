package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"accessbroker.internal/e2e/servers"
)

// runClient runs a program of the folder clients that prints one JSON object.
func runClient(t *testing.T, w *world, into any, program string, args ...string) {
	t.Helper()
	svid := jwtSVID(t, w.spire, w.url)
	cmd := exec.CommandContext(t.Context(), program, append(args, w.url, svid.ID.String())...)
	// The broker's certificate is an X.509-SVID, which has no host name.
	cmd.Env = append(os.Environ(), "SVID="+svid.Marshal(), "NODE_TLS_REJECT_UNAUTHORIZED=0", "NODE_NO_WARNINGS=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s%s", program, args, err, out.String(), errs.String())
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		t.Fatalf("reading the output: %v\n%s%s", err, out.String(), errs.String())
	}
}

// testJavaScriptClients lets openid-client and oauth4webapi get tokens, and learn why
// they are refused. They do not read the body of an answer that has a challenge.
func testJavaScriptClients(t *testing.T, w *world) {
	modules, err := servers.Modules("javascript")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // Node.js resolves imports from the program's folder
	text, err := os.ReadFile(filepath.Join("clients", "javascript", "client.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "client.mjs"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		Type, Scope, Thrown, Error, Description string
		Live, Dead                              bool
		Status                                  int
		Details                                 []map[string]any
	}
	var got map[string]answer
	runClient(t, w, &got, installed(t, "node"), filepath.Join(dir, "client.mjs"))
	for name, want := range map[string]answer{
		"assertion":    {Type: "bearer", Scope: "tickets:read"},
		"bearer":       {Type: "bearer", Scope: "tickets:read"},
		"introspected": {Live: true},
		"api":          {Status: 200},
		"details":      {Details: []map[string]any{{"type": "urn:access-broker:parameters", "parameters": map[string]any{"queue": "billing"}}}},
	} {
		if !reflect.DeepEqual(got[name], want) {
			t.Errorf("%s: got %+v, want %+v", name, got[name], want)
		}
	}
	for name, want := range map[string]string{
		"assertion_bad": "invalid_client", "bearer_bad": "invalid_client", "no_proof": "invalid_client", "introspection_bad": "invalid_client",
		"denied": "invalid_target", "details_refused": "invalid_authorization_details", "api_bad": "invalid_token", "api_denied": "insufficient_scope",
	} {
		if a := got[name]; a.Thrown == "" || a.Error != want || len(a.Description) < 10 {
			t.Errorf("%s: got %+v, want the error %s and a description", name, a, want)
		}
	}
	if len(got) != 13 {
		t.Errorf("got %d results: %+v", len(got), got)
	}
}

// testAuthlib lets Authlib validate the metadata strictly, get a token, verify it and end
// it.
func testAuthlib(t *testing.T, w *world) {
	installed(t, "python3-authlib")
	installed(t, "python3-requests")
	var got map[string]any
	runClient(t, w, &got, installed(t, "python3"), filepath.Join("clients", "authlib", "client.py"))
	want := map[string]any{
		"oauth": "valid", "openid": "valid", "token": "Bearer", "verified": ticketsAudience, "active": true, "revoked": float64(200), "inactive": false,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
