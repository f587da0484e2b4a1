package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// run runs a command of the broker's binary as its operator does.
func (w *world) run(args ...string) (string, error) {
	cmd := exec.Command(w.bin, args...)
	cmd.Env = append(cmd.Environ(), w.spire.environment()...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (w *world) must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := w.run(args...)
	if err != nil {
		t.Fatalf("broker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// The credentials that were issued after the backup from which the database was restored have
// no records. The broker does not start until they are dealt with, and then they end, also if
// Vault does not answer at first and the command is killed. Those from before the backup work.
func TestRestoreEndsWhatWasIssuedSince(t *testing.T) {
	t.Parallel()
	l := startLab(t, spireOf(t))
	config, backup := filepath.Join(l.dir, "broker.yaml"), filepath.Join(t.TempDir(), "broker.backup")
	before := l.issue(t, orders)
	if out := l.must(t, "backup", "--config", config, backup); !strings.Contains(out, "keep apart") {
		t.Errorf("backup:\n%s", out)
	}
	after := []*api.Credential{l.issue(t, orders), l.issue(t, api.Ask{Entitlement: "orders-by-token"})}
	vaultToken := l.issue(t, api.Ask{Entitlement: "kv-token", Scopes: []string{"kv:read"}, Justification: "e2e"})
	l.vault.as(t, vaultToken.Secret["token"], "GET", "kv/data/shop", nil)
	l.broker.stop()
	l.must(t, "restore", "--config", config, "--force", backup)
	if out, err := l.run("serve", "--config", config); err == nil || !strings.Contains(out, "broker audit new-epoch") {
		t.Fatalf("the broker started with the restored database: %v\n%s", err, out)
	}
	for _, c := range append(after, before) {
		if err := l.works(c); err != nil {
			t.Errorf("before the recovery: %v", err)
		}
	}

	// The command is killed while Vault does not answer. The broker continues.
	l.vault.policyText(t, "broker", docPolicy(t, "broker.hcl")+docPolicy(t, "broker-recovery.hcl"))
	l.vault.seal(t)
	killed, err := startIn(l.spire.environment(), t, "new-epoch", l.bin, "audit", "new-epoch", "--config", config, "--wait", "10m")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new log", time.Minute, func() error {
		if out, err := l.run("audit", "recovery", "sqlite:"+filepath.Join(l.dir, "broker.db")); err != nil || !strings.Contains(out, "not searched") {
			return fmt.Errorf("%w\n%s", errors.Join(err, errors.New("nothing was tried")), out)
		}
		return nil
	})
	killed.kill()
	l.vault.unseal(t)
	l.start(t)
	for _, c := range after {
		eventually(t, "the end of what was issued after the backup", time.Minute, func() error { return l.rejected(c) })
	}
	eventually(t, "the end of the token", time.Minute, func() error {
		var refusal *vaultRefusal
		if _, err := l.vault.call(vaultToken.Secret["token"], "GET", "kv/data/shop", nil); !errors.As(err, &refusal) || refusal.status != 403 {
			return fmt.Errorf("the token still works: %w", err)
		}
		return nil
	})
	if err := l.works(before); err != nil {
		t.Errorf("a credential from before the backup: %v", err)
	}
	eventually(t, "the end of the recovery", time.Minute, func() error {
		out := l.must(t, "audit", "recovery", "sqlite:"+filepath.Join(l.dir, "broker.db"))
		for _, want := range []string{"complete since", after[0].Lease, after[1].Lease, vaultToken.Lease, "WORKS until"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("the outcome lacks %q:\n%s", want, out)
			}
		}
		if strings.Contains(out, before.Lease) {
			t.Errorf("a lease that is known was taken for a lost one:\n%s", out)
		}
		return nil
	})
	if out, err := l.run("audit", "verify", backup); err != nil {
		t.Errorf("the old log: %v\n%s", err, out)
	}
}
