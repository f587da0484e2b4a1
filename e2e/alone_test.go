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

// operator runs a command on the broker's machine, through the admin socket.
func (l *lab) operator(t testing.TB, args ...string) string {
	t.Helper()
	out, errs, code := l.cli(l.bin, append(args, "--admin-socket", filepath.Join(l.dir, "admin.sock"))...)
	if code != 0 {
		t.Errorf("broker %s: %d %s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// stopIdentities stops the SPIRE agent, so that neither callers nor the broker get
// new identities. back starts the agent again.
func (l *lab) stopIdentities(t testing.TB) (back func()) {
	t.Helper()
	l.spire.agent.stop()
	return func() {
		l.spire.startAgent(t)
		l.start(t)
		eventually(t, "a credential with the identity provider back", 2*time.Minute, func() error {
			_, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-by-agent"})
			return err
		})
		l.endAll(t)
	}
}

// testProviderDown uses the kill switch, lifts the block and returns a lease on
// the broker's machine while the identity provider is down.
func testProviderDown(t *testing.T, l *lab) {
	one, other := l.issue(t, api.Ask{Entitlement: "orders-by-agent"}), l.issue(t, api.Ask{Entitlement: "orders-by-token"})
	defer l.stopIdentities(t)()
	l.operator(t, "return", one.Lease)
	if err := l.rejected(one); err != nil {
		t.Error(err)
	}
	l.operator(t, "kill", "--entitlement", "orders-by-token", "--why", "INC-2", "--yes")
	eventually(t, "the end of the killed credential", time.Minute, func() error { return l.rejected(other) })
	if out := l.operator(t, "blocks"); !strings.Contains(out, "orders-by-token") {
		t.Errorf("blocks: %s", out)
	}
	l.operator(t, "blocks", "lift", "--entitlement", "orders-by-token", "--why", "over")
	if out := l.operator(t, "blocks"); strings.Contains(out, "orders-by-token") {
		t.Errorf("blocks, after the lift: %s", out)
	}
}

// testStartedAlone starts the broker while the identity provider is down. No
// caller can use the broker, but it revokes the leases that are due or that its operator
// revokes.
func testStartedAlone(t *testing.T, l *lab) {
	kept := l.issue(t, api.Ask{Entitlement: "orders-by-agent"})
	due := l.dueAtNextStart(t, api.Ask{Entitlement: "orders-by-token"})
	defer l.stopIdentities(t)()
	var err error
	if l.broker, err = start(l.owner, "broker", l.bin, "serve", "--config", filepath.Join(l.dir, "broker.yaml")); err != nil {
		t.Fatal(err)
	}
	l.brokers = append(l.brokers, l.broker)
	eventually(t, "an answer from the admin socket", time.Minute, func() error {
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
		t.Error("the broker reports that it is ready and has no identity")
	}
	if err := l.works(kept); err != nil {
		t.Error(err)
	}
	l.operator(t, "return", kept.Lease)
	if err := l.rejected(kept); err != nil {
		t.Error(err)
	}
	eventually(t, "the end of the due lease", 2*time.Minute, func() error { return l.rejected(due) })
	// Vault ends its token by itself. The token's TTL has whole seconds, so it may
	// end up to two seconds before the lease.
	if time.Now().Before(due.ExpiresAt.Add(-2 * time.Second)) {
		t.Errorf("the credential ended before %s", due.ExpiresAt)
	}
	eventually(t, "the record of the end", time.Minute, func() error {
		for _, lease := range l.newestLeases(t, "orders-by-token") {
			if lease.ID == due.Lease && lease.Status == api.LeaseRevoked {
				return nil
			}
		}
		return errors.New("the lease is not revoked yet")
	})
}

// dueAtNextStart issues a credential and kills the broker before the lease
// expires. On a slow machine it repeats that with a longer lease.
func (l *lab) dueAtNextStart(t testing.TB, ask api.Ask) *api.Credential {
	t.Helper()
	for ttl := 12 * time.Second; ttl < 5*time.Minute; ttl *= 2 {
		ask.TTL = api.Duration(ttl)
		c := l.issue(t, ask)
		l.broker.kill()
		if time.Until(c.ExpiresAt) > ttl/3 {
			return c
		}
		l.start(t)
	}
	t.Fatal("every lease expired before the broker was killed")
	return nil
}
