package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// A dueResult is the effect of many credentials that fall due at once.
type dueResult struct {
	took   time.Duration // until the last one was revoked
	tokens rates         // of issuing tokens that the broker signs
	vault  rates         // of issuing and returning tokens of the same Vault
}

// rates are credentials per second, before and during the revocations.
type rates struct{ before, during float64 }

func (r rates) String() string {
	return fmt.Sprintf("%.0f per second before, %.0f meanwhile", r.before, r.during)
}

// fallDue issues n Vault credentials that expire within two seconds, and then other ones,
// of the broker and of the same Vault, while the first are revoked. It checks that
// each is revoked at its expiry and that no call fails in the meantime.
func fallDue(t testing.TB, l *lab, ask api.Ask, n int) (r dueResult) {
	t.Helper()
	const window = 5 * time.Second // for measuring the rates before
	var due time.Time
	var all []string
	for takes := l.estimate(t, ask, n); ; takes *= 2 {
		due = time.Now().Add(takes + window + 3*time.Second).Truncate(time.Second)
		// A TTL has whole seconds and counts from the time when the broker receives
		// the request. Vault counts whole seconds as well, from the time when it makes
		// the token. So the lease expires within two seconds after due.
		all = l.getMany(t, ask, n, func() time.Duration { return max(time.Until(due), 0).Truncate(time.Second) + 2*time.Second })
		if time.Until(due) >= window {
			break
		}
		t.Logf("issuing %d credentials took longer than %s: repeating with twice the time", n, takes)
	}
	time.Sleep(time.Until(due) - window)
	tokens, stopTokens := l.keepIssuing(t, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}, false)
	vault, stopVault := l.keepIssuing(t, api.Ask{Entitlement: "kv-token", Scopes: []string{"kv:read"}}, true)
	time.Sleep(time.Until(due))
	r.tokens.before, r.vault.before = float64(tokens.Swap(0))/window.Seconds(), float64(vault.Swap(0))/window.Seconds()
	for i := 0; i < n; i += max(1, n/100) { // reading every lease would slow down the revocations
		l.waitEnded(t, all[i], 10*time.Minute)
	}
	rushed := time.Since(due).Seconds()
	r.tokens.during, r.vault.during = float64(tokens.Load())/rushed, float64(vault.Load())/rushed
	stopTokens()
	stopVault()
	off := 0
	for _, id := range all {
		lease := l.waitEnded(t, id, 2*time.Minute)
		if lease.Status != api.LeaseRevoked || lease.Revocation != "immediate" || lease.EndHow != "expired" || lease.EndedAt.Before(lease.ExpiresAt) {
			t.Errorf("lease %s is %s, %s by %q at %s; it expired at %s", id, lease.Status, lease.Revocation, lease.EndHow, lease.EndedAt, lease.ExpiresAt)
		}
		// A request that arrived more than a second late, or an answer of Vault whose
		// Date was a second old: the broker then counts from the earlier second.
		if lease.ExpiresAt.Before(due.Add(-2 * time.Second)) {
			t.Errorf("lease %s expired at %s, long before it was due", id, lease.ExpiresAt)
		}
		if lease.ExpiresAt.Before(due) || lease.ExpiresAt.After(due.Add(2*time.Second)) {
			off++
		}
		r.took = max(r.took, lease.EndedAt.Sub(due))
	}
	if off > n/10 {
		t.Errorf("%d of %d leases did not expire within two seconds after they were due", off, n)
	}
	return r
}

// estimate returns how long issuing n credentials may take.
func (l *lab) estimate(t testing.TB, ask api.Ask, n int) time.Duration {
	t.Helper()
	const probes = 40
	began := time.Now()
	probed := l.getMany(t, ask, probes, func() time.Duration { return time.Minute })
	one := time.Since(began) / probes
	for _, id := range probed {
		if _, err := l.agent.Revoke(t.Context(), id, "only measured how long one takes"); err != nil {
			t.Fatal(err)
		}
	}
	const most = 12 * time.Minute // the longest TTL is 15m
	return min(time.Duration(n)*one*4/3, most)
}

// getMany collects n credentials, eight at a time, and returns their leases.
func (l *lab) getMany(t testing.TB, ask api.Ask, n int, ttl func() time.Duration) []string {
	t.Helper()
	var all sync.WaitGroup
	var next atomic.Int64
	leases := make([]string, n)
	for range 8 {
		all.Go(func() {
			for ask := ask; ; {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				ask.TTL = api.Duration(ttl())
				c, _, err := l.agent.AskAndCollect(t.Context(), ask)
				if err != nil {
					t.Errorf("%s: %v", ask.Entitlement, err)
					return
				}
				leases[i] = c.Lease
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return leases
}

// waitEnded waits until a lease has ended.
func (l *lab) waitEnded(t testing.TB, id string, within time.Duration) (lease *api.Lease) {
	t.Helper()
	eventually(t, "the end of lease "+id, within, func() (err error) {
		if lease, err = l.agent.Lease(t.Context(), id); err == nil && lease.EndedAt.IsZero() {
			err = fmt.Errorf("lease %s: got status %s, revocation %s", id, lease.Status, lease.Revocation)
		}
		return err
	})
	return lease
}

// keepIssuing requests credentials and counts them until stop is called.
func (l *lab) keepIssuing(t testing.TB, ask api.Ask, giveBack bool) (issued *atomic.Int64, stop func()) {
	issued = new(atomic.Int64)
	var over atomic.Bool
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for !over.Load() {
				c, _, err := l.agent.AskAndCollect(t.Context(), ask)
				if err == nil && giveBack {
					_, err = l.agent.Revoke(t.Context(), c.Lease, "done")
				}
				if err != nil {
					t.Errorf("issuing %s meanwhile: %v", ask.Entitlement, err)
					return
				}
				issued.Add(1)
			}
		})
	}
	return issued, func() { over.Store(true); all.Wait() }
}

// TestManyUsersDue lets 200 database users expire at once.
func TestManyUsersDue(t *testing.T) {
	t.Parallel()
	l := startDueLab(t)
	r := fallDue(t, l, orders, 200)
	t.Logf("200 users ended in %s; the broker's own tokens: %s; the same Vault's: %s", r.took.Round(time.Millisecond), r.tokens, r.vault)
	if left := len(l.vault.leases(t, "database/creds/orders-ro")); left != 0 {
		t.Errorf("Vault has %d leases left", left)
	}
	l.waitNoUsers(t)
}

// TestManyTokensDue lets ten thousand tokens expire at once. TestTenThousandDue
// measures how fast they are revoked.
func TestManyTokensDue(t *testing.T) {
	t.Parallel()
	l := startDueLab(t)
	r := fallDue(t, l, api.Ask{Entitlement: "kv-due"}, 10_000)
	t.Logf("10,000 tokens ended in %s; the broker's own: %s; the same Vault's: %s", r.took.Round(time.Millisecond), r.tokens, r.vault)
	if left := l.vault.must(t, "LIST", "auth/token/accessors", nil).Data["keys"].([]any); len(left) > 50 {
		t.Errorf("Vault has %d tokens left", len(left))
	}
	const most = 512 << 10 // KiB
	if peak := peakMemory(t, l.broker.cmd.Process.Pid); peak > most {
		t.Errorf("the broker needed %d MiB", peak>>10)
	}
}

func startDueLab(t *testing.T) *lab {
	t.Helper()
	s := spireOf(t)
	l := startLab(t, s)
	// With tokens of seconds, a call of a busy machine may outlast the broker's
	// token, and Vault refuses it.
	l.brokerLogins(t, s, "5m", "30m")
	l.broker.stop()
	l.start(t)
	return l
}

// peakMemory returns the peak resident memory of a process in KiB.
func peakMemory(t testing.TB, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest + " ?")[0])
	if err != nil {
		t.Fatalf("the peak of its memory: %v", err)
	}
	return kib
}
