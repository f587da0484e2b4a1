package e2e

import (
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// TestVaultCalls issues and ends credentials while calls are lost, the broker is killed
// between two of them or its disk is full, and with a wrong clock of Vault.
func TestVaultCalls(t *testing.T) {
	t.Parallel() // it mostly waits
	l := startOwnLab(t)
	t.Run("answers lost", func(t *testing.T) { testAnswersLost(t, l) })
	t.Run("broker killed at a point", func(t *testing.T) { testKilledAt(t, l) })
	t.Run("disk full at the second transaction", func(t *testing.T) { testDiskFull(t, l) })
	t.Run("clock of Vault", func(t *testing.T) { testVaultClock(t, l) })
}

// TestVaultOutages issues and ends credentials while the servers that the broker needs,
// or the broker itself, are down.
func TestVaultOutages(t *testing.T) {
	t.Parallel() // it mostly waits
	l := startOwnLab(t)
	t.Run("Vault sealed", func(t *testing.T) { testSealed(t, l) })
	t.Run("Vault killed", func(t *testing.T) { testVaultKilled(t, l) })
	t.Run("Vault hangs", func(t *testing.T) { testVaultHangs(t, l) })
	t.Run("permission removed", func(t *testing.T) { testPermissionRemoved(t, l) })
	t.Run("PostgreSQL down at revocation", func(t *testing.T) { testPostgresDown(t, l) })
	t.Run("broker killed", func(t *testing.T) { testBrokerKilled(t, l) })
	t.Run("identity provider down", func(t *testing.T) { testProviderDown(t, l) })
	t.Run("started without identity provider", func(t *testing.T) { testStartedAlone(t, l) })
}

// startOwnLab starts a lab with a SPIRE server of its own.
func startOwnLab(t *testing.T) *lab {
	t.Helper()
	s := startSPIRE(t, "acme.test")
	s.register(t, "/agent/triage", ownBinary(t))
	return startLab(t, s)
}

// testSealed seals Vault. The broker issues nothing, a returned lease is pending,
// and it ends once Vault is unsealed.
func testSealed(t *testing.T, l *lab) {
	c := l.issue(t, orders)
	l.vault.seal(t)
	_, _, err := l.agent.AskAndCollect(t.Context(), orders)
	if err := wantRefusal(err, api.IssuerUnavailable, http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Status != api.LeaseRevoking || lease.Revocation != "pending" {
		t.Errorf("returned while Vault is sealed: %+v, %v", lease, err)
	}
	if err := l.works(c); err != nil {
		t.Errorf("a credential whose revocation is pending does not work: %v", err)
	}
	l.vault.unseal(t)
	l.waitStatus(t, c.Lease, "revoked", "immediate")
	if err := l.rejected(c); err != nil {
		t.Error(err)
	}
}

func testVaultKilled(t *testing.T, l *lab) {
	c := l.issue(t, orders)
	l.vault.kill()
	_, _, err := l.agent.AskAndCollect(t.Context(), orders)
	if err := wantRefusal(err, api.IssuerUnavailable, http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}
	l.vault.start(t)
	if err := l.works(c); err != nil {
		t.Errorf("a credential from before the kill: %v", err)
	}
	if _, err := l.agent.Revoke(t.Context(), c.Lease, "done"); err != nil {
		t.Error(err)
	}
	l.waitStatus(t, c.Lease, "revoked", "immediate")
	l.endAll(t)
}

// testVaultHangs suspends Vault while it creates credentials. The callers get an
// error, and what Vault creates after it is resumed is revoked.
func testVaultHangs(t *testing.T, l *lab) {
	const before = 8 // credentials that are issued before Vault hangs
	signal := func(s syscall.Signal) {
		if err := l.vault.server.cmd.Process.Signal(s); err != nil {
			t.Error(err)
		}
	}
	defer signal(syscall.SIGCONT) // twice does no harm
	var all sync.WaitGroup
	var answered atomic.Int64
	began := time.Now()
	for range 8 {
		all.Go(func() {
			for {
				_, _, err := l.agent.AskAndCollect(t.Context(), orders)
				if err == nil {
					if answered.Add(1) == before {
						signal(syscall.SIGSTOP)
					}
					continue
				}
				if err := wantRefusal(err, api.IssuerUnavailable, http.StatusServiceUnavailable); err != nil {
					t.Error(err)
				}
				return
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took > time.Minute {
		t.Errorf("callers waited for %s", took)
	}
	if answered.Load() < before {
		t.Fatalf("only %d credentials were issued before Vault hung", answered.Load())
	}
	signal(syscall.SIGCONT)
	l.abandonedCalls += 8
	l.waitReconciled(t, 2*time.Minute)
	t.Logf("%d credentials were issued before Vault hung", answered.Load())
	l.endAll(t)
}

// testPermissionRemoved removes the broker's permission to revoke. The broker
// retries, and succeeds once the permission is back.
func testPermissionRemoved(t *testing.T, l *lab) {
	c := l.issue(t, orders)
	l.vault.policy(t, "broker", "auth/token/create/broker-leases", "update")
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Revocation != "pending" {
		t.Errorf("without the permission: %+v, %v", lease, err)
	}
	l.vault.policyText(t, "broker", docPolicy(t, "broker.hcl"))
	l.waitStatus(t, c.Lease, "revoked", "immediate")
	if err := l.rejected(c); err != nil {
		t.Error(err)
	}
}

// testPostgresDown stops the database behind Vault. A revocation is pending until
// the database is back, and the broker reports it as pending.
func testPostgresDown(t *testing.T, l *lab) {
	c := l.issue(t, orders)
	l.postgres.stop()
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Revocation != "pending" {
		t.Errorf("while PostgreSQL is down: %+v, %v", lease, err)
	}
	l.postgres.start(t)
	l.waitStatus(t, c.Lease, "revoked", "immediate")
	if err := l.rejected(c); err != nil {
		t.Error(err)
	}
}

// testBrokerKilled kills the broker after 41 answers, while it issues further
// credentials to eight callers. Within 30 s after the restart, no user is left
// without a lease. testKilledAt kills the broker at each point of one call.
func testBrokerKilled(t *testing.T, l *lab) {
	l.endAll(t)
	var all sync.WaitGroup
	answered := make(chan *api.Credential, 1000)
	for range 8 {
		all.Go(func() {
			for {
				c, _, err := l.agent.AskAndCollect(t.Context(), orders)
				if err != nil {
					return
				}
				answered <- c
			}
		})
	}
	first := <-answered
	for range 40 {
		<-answered
	}
	l.broker.kill()
	all.Wait()
	l.abandonedCalls += 8
	l.start(t)
	l.waitReconciled(t, 30*time.Second)
	if err := l.works(first); err != nil {
		t.Errorf("a credential that was answered before the kill: %v", err)
	}
	l.endAll(t)
}
