package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"accessbroker.internal/api"
)

// A between stands between the broker and a server, and lets a test hold back
// answers, lose calls and answers, or give others.
type between struct {
	*httptest.Server
	token string // put into every call, as a Vault agent does; empty: none
	proxy http.Handler

	mu      sync.Mutex
	answer  func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	holding func(r *http.Request)                             // called before an answer is passed on
}

// standBetween stands before a server whose certificate is of the authority.
func standBetween(t *testing.T, server, caFile string, withTLS bool) *between {
	t.Helper()
	target, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	b := &between{}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 64}
	proxy.ErrorLog = nil
	proxy.ModifyResponse = func(resp *http.Response) error {
		b.mu.Lock()
		hold := b.holding
		b.mu.Unlock()
		if hold != nil {
			hold(resp.Request)
		}
		return nil
	}
	b.proxy = proxy
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		answer := b.answer
		b.mu.Unlock()
		if answer == nil || !answer(w, r) {
			b.pass(w, r)
		}
	}))
	if withTLS {
		b.StartTLS()
	} else {
		b.Start()
	}
	t.Cleanup(b.Close)
	return b
}

// pass has the server answer.
func (b *between) pass(w http.ResponseWriter, r *http.Request) {
	if b.token != "" && r.Header.Get("X-Vault-Token") == "" {
		r.Header.Set("X-Vault-Token", b.token)
	}
	b.proxy.ServeHTTP(w, r)
}

// complete has the server do what is asked to its end, whether or not who asked
// is still there, and keeps the answer.
func (b *between) complete(r *http.Request) *httptest.ResponseRecorder {
	kept := httptest.NewRecorder()
	b.pass(kept, r.WithContext(context.WithoutCancel(r.Context())))
	return kept
}

// cut ends the connection instead of answering.
func cut() { panic(http.ErrAbortHandler) }

// A fate is what becomes of a call.
type fate string

const (
	refused fate = "refused" // it is answered with a no, and not passed on
	failed  fate = "failed"  // its connection is cut, and it is not passed on
	lost    fate = "lost"    // it is passed on and done, and its connection is cut instead of the answer
)

// meets gives the next calls whose path ends so a fate. stop lets them pass
// again, and says how many there were, with those that were passed.
func (b *between) meets(path string, f fate, times int) (stop func() int) {
	var calls atomic.Int64
	b.answers(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, path) {
			return false
		}
		if calls.Add(1) > int64(times) {
			return false
		}
		switch f {
		case refused:
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`)
			return true
		case lost:
			b.complete(r)
		}
		cut()
		return true
	})
	return func() int { b.answers(nil); return int(calls.Load()) }
}

func (b *between) answers(f func(w http.ResponseWriter, r *http.Request) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = f
}

func (b *between) holds(f func(r *http.Request)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = f
}

// writeCA writes the certificate that the between shows.
func (b *between) writeCA(t *testing.T, path string) {
	t.Helper()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Certificate().Raw})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// testLogins gets a user, and gives it back, by every way to log in at Vault,
// after the login before has come to its end.
func testLogins(t *testing.T, l *lab) {
	for _, name := range []string{"orders-by-cert", "orders-by-token", "orders-by-agent"} {
		for range 2 {
			c := l.get(t, api.Ask{Entitlement: name})
			if err := l.works(c); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
			if err != nil || lease.Revocation != "immediate" {
				t.Errorf("%s: given back: %+v, %v", name, lease, err)
			}
			if err := l.ended(c); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// A token file is read again when its token is refused.
	l.vault.must(t, "POST", "auth/token/revoke", fields{"token": l.fileToken})
	l.fileToken = l.brokerToken(t)
	l.write(t, "vault.token", l.fileToken)
	eventually(t, "the new token's being read", 30*time.Second, func() error {
		_, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-by-token"})
		return err
	})
	l.clean(t)
}

// brokerToken makes a token as an operator would for a token file, or for an
// agent.
func (l *lab) brokerToken(t *testing.T) string {
	t.Helper()
	return l.vault.must(t, "POST", "auth/token/create", fields{"policies": []string{"broker"}, "no_parent": true, "ttl": "1h"}).Auth.ClientToken
}

// testDiskFull takes the disk from the broker while Vault makes a credential:
// nobody gets it, it is ended, and the broker says that it can't record
// anything. With the disk it goes on.
func testDiskFull(t *testing.T, l *lab) {
	l.agentVault.holds(func(r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/database/creds/orders-ro") {
			limitFiles(t, l.broker.cmd.Process.Pid, 1)
		}
	})
	_, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-by-agent"})
	l.agentVault.holds(nil)
	if err := refusedWith(err, api.Unavailable, http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}
	// The disk is still full, and the user is gone.
	eventually(t, "the end of the user that nobody got", 30*time.Second, func() error {
		if n, lost := l.users(t), l.lost(); n > lost {
			return fmt.Errorf("%d users, and Vault lost at most %d", n, lost)
		}
		return nil
	})
	if err := l.ready(); err == nil {
		t.Error("the broker says that it is ready, and can record nothing")
	}
	_, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
	if err := refusedWith(err, api.Unavailable, http.StatusServiceUnavailable); err != nil {
		t.Errorf("the broker's own tokens: %v", err)
	}
	limitFiles(t, l.broker.cmd.Process.Pid, unix.RLIM_INFINITY)
	eventually(t, "the broker's going on", time.Minute, func() error {
		if err := l.ready(); err != nil {
			return err
		}
		c, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-by-agent"})
		if err == nil {
			err = l.works(c)
		}
		return err
	})
	l.clean(t)
}

// limitFiles lets a process write no file beyond a size, as a full disk would:
// its writes fail.
func limitFiles(t *testing.T, pid int, size uint64) {
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &old); err != nil {
		t.Error(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: old.Max}, nil); err != nil {
		t.Error(err)
	}
}

// testThrottled puts an STS that has had enough between the broker and the real
// one: a few refusals are got over, many are an error, and other issuers go on.
func testThrottled(t *testing.T, c *cloud) {
	sts := standBetween(t, c.minio.address(), c.minio.caFile(), true)
	sts.writeCA(t, filepath.Join(c.dir, "between.pem"))
	c.broker.stop()
	c.configureSTS(sts.URL, "between.pem")
	c.start(t)
	ask := func() (string, string, int) {
		return c.run("request", "reports", "--scope", "read", "--param", "prefix=acme", "-o", "env")
	}
	var left, refused atomic.Int64
	sts.answers(func(w http.ResponseWriter, _ *http.Request) bool {
		if left.Add(-1) < 0 {
			return false
		}
		refused.Add(1)
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>Throttling</Code><Message>Rate exceeded</Message></Error><RequestId>r</RequestId></ErrorResponse>`)
		return true
	})
	left.Store(2)
	if out, errs, code := ask(); code != 0 || !strings.Contains(out, "AWS_SESSION_TOKEN=") || refused.Load() != 2 {
		t.Errorf("after two refusals: %d %s (%d refused)", code, errs, refused.Load())
	}
	left.Store(1 << 30)
	if _, errs, code := ask(); code == 0 || !strings.Contains(errs, string(api.IssuerUnavailable)) {
		t.Errorf("while it throttles: %d %s", code, errs)
	}
	if _, errs, code := c.run("request", "tickets-api", "--scope", "tickets:read"); code != 0 {
		t.Errorf("another issuer meanwhile: %d %s", code, errs)
	}
	left.Store(0)
	eventually(t, "a session when it throttles no more", time.Minute, func() error {
		if _, errs, code := ask(); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	c.broker.stop()
	c.configureSTS(c.minio.address(), c.minio.caFile())
	c.start(t)
}

// A rush is what many credentials that fell due at once did to the rest.
type rush struct {
	took   time.Duration // until the last had ended
	tokens rates         // of the broker's own
	vault  rates         // of the same Vault's, each given back at once
}

// rates are how many a second there were before and meanwhile.
type rates struct{ before, during float64 }

func (r rates) String() string {
	return fmt.Sprintf("%.0f a second before, %.0f meanwhile", r.before, r.during)
}

// fallDue has many credentials of Vault's end within a second because their time
// is over, while others go on being issued, by the broker itself and by the
// same Vault. All end, none before its time, and nothing fails meanwhile.
func fallDue(t *testing.T, l *lab, ask api.Ask, n int) (r rush) {
	t.Helper()
	const window = 5 * time.Second // in which the rates before are measured
	var due time.Time
	var all []string
	for takes := l.takes(t, ask, n); ; takes *= 2 {
		due = time.Now().Add(takes + window + 3*time.Second).Truncate(time.Second)
		// Of whole seconds, and counted from when the broker hears of it: within one
		// second of due.
		all = l.getMany(t, ask, n, func() time.Duration { return max(time.Until(due), 0).Truncate(time.Second) + time.Second })
		if time.Until(due) >= window {
			break
		}
		t.Logf("%d credentials took longer than %s: once more", n, takes)
	}
	time.Sleep(time.Until(due) - window)
	tokens, stopTokens := l.keepIssuing(t, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}, false)
	vault, stopVault := l.keepIssuing(t, api.Ask{Entitlement: "kv-token", Scopes: []string{"kv:read"}}, true)
	time.Sleep(time.Until(due))
	r.tokens.before, r.vault.before = float64(tokens.Swap(0))/window.Seconds(), float64(vault.Swap(0))/window.Seconds()
	for i := 0; i < n; i += max(1, n/100) { // looking costs, too
		l.waitEnded(t, all[i], 10*time.Minute)
	}
	rushed := time.Since(due).Seconds()
	r.tokens.during, r.vault.during = float64(tokens.Load())/rushed, float64(vault.Load())/rushed
	stopTokens()
	stopVault()
	for _, id := range all {
		lease := l.waitEnded(t, id, time.Minute)
		if lease.Status != api.LeaseRevoked || lease.Revocation != "immediate" || lease.EndHow != "expired" ||
			lease.ExpiresAt.Before(due) || lease.ExpiresAt.After(due.Add(time.Second)) || lease.EndedAt.Before(lease.ExpiresAt) {
			t.Errorf("lease %s is %s, %s by %q at %s; it was due at %s", id, lease.Status, lease.Revocation, lease.EndHow, lease.EndedAt, lease.ExpiresAt)
		}
		r.took = max(r.took, lease.EndedAt.Sub(due))
	}
	return r
}

// takes says how long it may take to get n credentials.
func (l *lab) takes(t *testing.T, ask api.Ask, n int) time.Duration {
	t.Helper()
	const probes = 40
	began := time.Now()
	probed := l.getMany(t, ask, probes, func() time.Duration { return time.Minute })
	one := time.Since(began) / probes
	for _, id := range probed {
		if _, err := l.agent.Revoke(t.Context(), id, "only to see how long one takes"); err != nil {
			t.Fatal(err)
		}
	}
	return time.Duration(n) * one * 4 / 3
}

// getMany gets many credentials, several at a time, and gives their leases.
func (l *lab) getMany(t *testing.T, ask api.Ask, n int, ttl func() time.Duration) []string {
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

// waitEnded waits until a lease has ended, in whatever way.
func (l *lab) waitEnded(t *testing.T, id string, within time.Duration) (lease *api.Lease) {
	t.Helper()
	eventually(t, "the end of lease "+id, within, func() (err error) {
		if lease, err = l.agent.Lease(t.Context(), id); err == nil && lease.EndedAt.IsZero() {
			err = fmt.Errorf("it is %s, %s", lease.Status, lease.Revocation)
		}
		return err
	})
	return lease
}

// keepIssuing asks for credentials, and counts them, until stop is called.
func (l *lab) keepIssuing(t *testing.T, ask api.Ask, giveBack bool) (issued *atomic.Int64, stop func()) {
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

// testManyDue has users of a database, and ten thousand tokens, fall due at once.
// How fast that goes is for TestTenThousandDue to measure.
func testManyDue(t *testing.T, l *lab) {
	l.clean(t)
	r := fallDue(t, l, orders, 200)
	t.Logf("200 users ended in %s; the broker's own tokens: %s; the same Vault's: %s", r.took.Round(time.Millisecond), r.tokens, r.vault)
	if left := len(l.vault.leases(t, "database/creds/orders-ro")); left != 0 {
		t.Errorf("Vault has %d leases left", left)
	}
	l.empty(t)
	r = fallDue(t, l, api.Ask{Entitlement: "kv-due"}, 10_000)
	t.Logf("10,000 tokens ended in %s; the broker's own: %s; the same Vault's: %s", r.took.Round(time.Millisecond), r.tokens, r.vault)
	if left := l.vault.must(t, "LIST", "auth/token/accessors", nil).Data["keys"].([]any); len(left) > 50 {
		t.Errorf("Vault has %d tokens left", len(left))
	}
	const most = 512 << 10 // KiB
	if peak := peakMemory(t, l.broker.cmd.Process.Pid); peak > most {
		t.Errorf("the broker needed %d MiB", peak>>10)
	}
}

// peakMemory is the most that a process has had of memory, in KiB.
func peakMemory(t *testing.T, pid int) int {
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
