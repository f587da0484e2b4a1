package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// login returns the user who runs the tests, the only one that an unprivileged
// sshd can let in.
func login(t testing.TB) string {
	t.Helper()
	who, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return who.Username
}

const sshdConfig = `
ListenAddress 127.0.0.1
Port %[1]d
HostKey %[2]s/host
TrustedUserCAKeys %[2]s/ca.pub
AuthorizedKeysFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
PidFile none
`

// startSSHD starts a real sshd that trusts nothing but an authority.
func startSSHD(t testing.TB, ca string) (dir string, port int) {
	t.Helper()
	dir, port = t.TempDir(), freePort(t)
	keygen(t, dir, "host")
	for name, text := range map[string]string{"ca.pub": ca, "sshd_config": fmt.Sprintf(sshdConfig, port, dir)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd requires it
			t.Fatal(err)
		}
	}
	server, err := start(t, "sshd", installed(t, "sshd"), "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start of sshd", 30*time.Second, func() error {
		if server.ended() {
			t.Fatalf("sshd did not start:\n%s", server.out)
		}
		if !strings.Contains(server.out.String(), "Server listening") {
			return errors.New("sshd does not listen yet")
		}
		return nil
	})
	return dir, port
}

func keygen(t testing.TB, dir, name string) {
	t.Helper()
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", filepath.Join(dir, name)).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
}

// testSSH logs in with a certificate for a key that never leaves its holder. sshd
// refuses the certificate once it expired.
func testSSH(t *testing.T, l *lab) {
	dir, port := startSSHD(t, l.sshCA)
	keygen(t, dir, "id")
	public, err := os.ReadFile(filepath.Join(dir, "id.pub"))
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Join(strings.Fields(string(public))[:2], " ")
	ssh := func() (string, error) {
		out, err := exec.Command("ssh", "-F", "none", "-i", filepath.Join(dir, "id"), "-o", "CertificateFile="+filepath.Join(dir, "id-cert.pub"),
			"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
			"-p", fmt.Sprint(port), login(t)+"@127.0.0.1", "echo", "in").CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := ssh(); err == nil || !strings.Contains(out, "Permission denied") {
		t.Fatalf("without a certificate: %q, %v", out, err)
	}
	var c *api.Credential
	for ttl := 8 * time.Second; ; ttl *= 2 { // on a slow machine, the first one expires before sshd sees it
		began := time.Now()
		c = l.issue(t, api.Ask{Entitlement: "ssh-login", Parameters: map[string]string{"key": key}, TTL: api.Duration(ttl)})
		if c.Type != "data" || c.Revocation != "at_expiry" || !strings.HasPrefix(c.Secret["signed_key"], "ssh-ed25519-cert-v01@openssh.com ") {
			t.Fatalf("the credential is %s, %s", c.Type, c.Revocation)
		}
		if err := os.WriteFile(filepath.Join(dir, "id-cert.pub"), []byte(c.Secret["signed_key"]), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := ssh()
		if err == nil && out == "in" {
			break
		}
		if time.Since(began) < ttl/2 || ttl > time.Minute {
			t.Fatalf("with a certificate of %s: %q, %v", ttl, out, err)
		}
	}
	eventually(t, "the certificate's end", 3*time.Minute, func() error {
		if out, err := ssh(); err == nil || !strings.Contains(out, "Permission denied") {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
	if time.Now().Before(c.ExpiresAt.Add(-time.Second)) {
		t.Errorf("the certificate was refused before %s", c.ExpiresAt)
	}
	_, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "ssh-login", Parameters: map[string]string{"key": "ssh-rsa AAAA"}})
	if err := wantRefusal(err, api.InvalidParameter, 400); err != nil {
		t.Error(err)
	}
}
