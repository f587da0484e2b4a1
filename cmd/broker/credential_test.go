package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

func testCredential(kind string, secret map[string]string) *api.Credential {
	return &api.Credential{
		Lease: "lse_1", Request: "req_1", Type: kind, Secret: secret,
		ExpiresAt: time.Date(2026, 11, 2, 13, 0, 0, 0, time.FixedZone("", 3600)),
	}
}

// A shell reads from -o env exactly the values of the credential.
func TestEnvForAShell(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal("the test needs a shell: ", err)
	}
	for _, value := range []string{"plain", "it's", "''", "two\nlines\n", "$HOME `id` $(id) \\ \" * ; & #", "-n", "ä\t", "="} {
		var out bytes.Buffer
		a := &app{terminal: terminal{out: &out}, output: asEnv}
		if err := a.printCredential(testCredential("userpass", map[string]string{"username": "u", "password": value})); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(shell, "-euc", out.String()+`
printf '%s|' "$PGPASSWORD" "$PGUSER" "${PGPASSFILE-none}"`)
		cmd.Env = append(os.Environ(), "PGPASSFILE=old", "PGPASSWORD=old")
		if got, err := cmd.Output(); err != nil || string(got) != value+"|u|none|" {
			t.Errorf("got %q, %v, want %q", got, err, value)
		}
	}
}

// A password file does not select the user, so -o pgpass names it on standard error.
func TestPgpassNamesUser(t *testing.T) {
	var out, errs strings.Builder
	a := &app{terminal: terminal{out: &out, err: &errs}, output: asPgpass}
	if err := a.printCredential(testCredential("userpass", map[string]string{"username": "v-ag'ent", "password": "s3cret"})); err != nil {
		t.Fatal(err)
	}
	if out.String() != "*:*:*:v-ag'ent:s3cret\n" || !strings.Contains(errs.String(), `psql -U 'v-ag'\''ent'`) || strings.Contains(errs.String(), "s3cret") {
		t.Errorf("got %q and %q", out.String(), errs.String())
	}
}
