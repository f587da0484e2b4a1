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

// TestDPoPClients lets independent clients prove the possession of a key: openid-client and
// oauth4webapi get bound tokens, and repeat calls that lack a nonce; dpop and jose make
// proofs for /v1 and introspection, good and forged ones; jose verifies the tokens.
func TestDPoPClients(t *testing.T) {
	t.Parallel() // it mostly waits
	d := startDev(t)
	modules, err := servers.Modules("dpop")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // Node.js resolves imports from the program's folder
	text, err := os.ReadFile(filepath.Join("clients", "dpop", "client.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "client.mjs"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), installed(t, "node"), filepath.Join(dir, "client.mjs"), d.url, "spiffe://acme.test/agent/triage")
	cmd.Env = append(os.Environ(), "SVID="+d.jwtSVID(t), "NODE_EXTRA_CA_CERTS="+d.bundle())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, &out, &errs)
	}
	var got map[string]map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s%s", err, &out, &errs)
	}
	const invalid, required, nonce = "invalid_dpop_proof", "binding_required", "use_dpop_nonce"
	bound := map[string]any{"type": "dpop", "bound": true}
	for name, want := range map[string]map[string]any{
		"openid-client ES256": bound, "openid-client Ed25519": bound, "openid-client PS256": bound, "openid-client RS256": bound,
		"oauth4webapi": {
			"algorithms": []any{"ES256", "Ed25519", "EdDSA", "PS256", "RS256"}, "repeated": true, "type": "dpop", "again": "dpop", "bound": true,
		},
		"dpop": {
			"first": "401 " + nonce, "challenge": true, "got": 201., "replayed": "401 " + invalid, "stolen": invalid, "stripped": required, "wrong": required,
			"moved": invalid, "renewed": 201., "bound": true, "type": "DPoP", "jkt": true, "otherKey": invalid, "otherToken": invalid,
		},
		"jose": {
			"good": 201., "none": invalid, "hmac": invalid, "private": invalid, "past": invalid, "future": invalid, "method": invalid,
			"host": invalid, "nonce": nonce, "type": invalid, "big": invalid,
		},
	} {
		if !reflect.DeepEqual(got[name], want) {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
	if len(got) != 7 {
		t.Errorf("got %d results: %v", len(got), got)
	}
}
