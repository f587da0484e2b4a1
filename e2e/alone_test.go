package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// operator runs a command on the broker's own machine, by the admin socket.
func (l *lab) operator(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := l.cli(l.bin, append(args, "--admin-socket", filepath.Join(l.dir, "admin.sock"))...)
	if code != 0 {
		t.Errorf("broker %s: %d %s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// withoutIdentities stops the identity provider until it is called back: nobody
// has new identities, the broker neither.
func (l *lab) withoutIdentities(t *testing.T) (back func()) {
	t.Helper()
	l.spire.agent.stop()
	return func() {
		l.spire.startAgent(t)
		l.start(t)
		eventually(t, "a credential with the identity provider back", time.Minute, func() error {
			_, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-by-agent"})
			return err
		})
		l.clean(t)
	}
}

// testProviderDown pulls the kill switch, lifts the block, and gives back, on the
// broker's own machine, with the identity provider down.
func testProviderDown(t *testing.T, l *lab) {
	one, other := l.get(t, api.Ask{Entitlement: "orders-by-agent"}), l.get(t, api.Ask{Entitlement: "orders-by-token"})
	defer l.withoutIdentities(t)()
	l.operator(t, "return", one.Lease)
	if err := l.ended(one); err != nil {
		t.Error(err)
	}
	l.operator(t, "kill", "--entitlement", "orders-by-token", "--why", "INC-2", "--yes")
	eventually(t, "the end of what the kill switch hit", 30*time.Second, func() error { return l.ended(other) })
	if out := l.operator(t, "blocks"); !strings.Contains(out, "orders-by-token") {
		t.Errorf("blocks: %s", out)
	}
	l.operator(t, "blocks", "lift", "--entitlement", "orders-by-token", "--why", "over")
	if out := l.operator(t, "blocks"); strings.Contains(out, "orders-by-token") {
		t.Errorf("blocks, after it was lifted: %s", out)
	}
}

// testStartedAlone starts the broker with the identity provider down: nobody can
// call it, and it ends what is due and what its operator says.
func testStartedAlone(t *testing.T, l *lab) {
	kept := l.get(t, api.Ask{Entitlement: "orders-by-agent"})
	due := l.get(t, api.Ask{Entitlement: "orders-by-token", TTL: api.Duration(12 * time.Second)})
	defer l.withoutIdentities(t)()
	l.broker.kill()
	var err error
	if l.broker, err = start(l.owner, "broker", l.bin, "serve", "--config", filepath.Join(l.dir, "broker.yaml")); err != nil {
		t.Fatal(err)
	}
	l.brokers = append(l.brokers, l.broker)
	eventually(t, "the admin socket's answering", 30*time.Second, func() error {
		if l.broker.ended() {
			t.Fatalf("the broker ended: %s", l.broker.out)
		}
		_, errs, code := l.cli(l.bin, "leases", "--holder", "*", "--live", "--admin-socket", filepath.Join(l.dir, "admin.sock"))
		if code != 0 {
			return fmt.Errorf("%d %s", code, errs)
		}
		return nil
	})
	if err := l.ready(); err == nil {
		t.Error("the broker says that it is ready, and can't prove itself to anybody")
	}
	if err := l.works(kept); err != nil {
		t.Error(err)
	}
	l.operator(t, "return", kept.Lease)
	if err := l.ended(kept); err != nil {
		t.Error(err)
	}
	eventually(t, "the end of what is due", time.Minute, func() error { return l.ended(due) })
	// Vault ends the token, of whole seconds, by itself: up to two before.
	if time.Now().Before(due.ExpiresAt.Add(-2 * time.Second)) {
		t.Errorf("it ended before its time, %s", due.ExpiresAt)
	}
	eventually(t, "the record that it ended", 30*time.Second, func() error {
		for _, lease := range l.newest(t, "orders-by-token") {
			if lease.ID == due.Lease && lease.Status == api.LeaseRevoked {
				return nil
			}
		}
		return errors.New("it is not recorded yet")
	})
}
