package e2e

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"

	"accessbroker.internal/api"
)

// A crash kills the broker at a point of one call to a server.
type crash struct {
	name string
	path string // the suffix of the call's path
	at   func(t *testing.T, w *world, b *interceptor, rw http.ResponseWriter, r *http.Request)
}

// killedBefore kills the broker before the server gets the call.
func killedBefore(_ *testing.T, w *world, _ *interceptor, _ http.ResponseWriter, _ *http.Request) {
	w.broker.kill()
	cut()
}

// killedDuring kills the broker after the server handled the call and before it
// answers. It waits for the server to complete the call, because otherwise Vault may
// discard what it creates for a caller that hangs up.
func killedDuring(t *testing.T, w *world, b *interceptor, _ http.ResponseWriter, r *http.Request) {
	if kept := b.complete(r); kept.Code != http.StatusOK {
		t.Errorf("%s %s: %d", r.Method, r.URL.Path, kept.Code)
	}
	w.broker.kill()
	cut()
}

// killedRecording kills the broker after it read the answer and before it can
// have recorded it.
func killedRecording(t *testing.T, w *world, b *interceptor, rw http.ResponseWriter, r *http.Request) {
	kept := b.complete(r)
	unlock := w.lockDatabase(t)
	defer unlock()
	for name, values := range kept.Header() {
		rw.Header()[name] = values
	}
	rw.Header().Set("Content-Length", strconv.Itoa(kept.Body.Len()))
	rw.WriteHeader(kept.Code)
	_, err := rw.Write(kept.Body.Bytes())
	if err == nil {
		err = http.NewResponseController(rw).Flush()
	}
	if err != nil {
		t.Error(err)
	}
	eventually(t, "the broker to read the answer", time.Minute, func() error { return allRead(r.RemoteAddr) })
	w.broker.kill()
}

// lockDatabase keeps the broker from writing, like another process that writes:
// it takes SQLite's write lock, at byte 120 of the shared memory (SQLite,
// "WAL-Mode File Format", section 2.3.1).
func (w *world) lockDatabase(t testing.TB) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, "broker.db-shm"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 120, Len: 1}
	eventually(t, "the lock on the database", time.Minute, func() error { return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock) })
	return func() { _ = f.Close() } // releases the lock
}

// allRead returns nil if the peer that is connected from the address has read
// everything that was sent to it.
func allRead(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	ip := net.ParseIP(host).To4()
	slices.Reverse(ip) // /proc/net/tcp has the least significant byte first
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return err
	}
	local := strings.ToUpper(hex.EncodeToString(ip)) + fmt.Sprintf(":%04X", n)
	for line := range strings.Lines(string(table)) {
		// sl local_address rem_address st tx_queue:rx_queue …
		if f := strings.Fields(line); len(f) > 4 && f[1] == local {
			if _, unread, _ := strings.Cut(f[4], ":"); strings.Trim(unread, "0") != "" {
				return fmt.Errorf("0x%s bytes are unread", unread)
			}
			return nil
		}
	}
	return fmt.Errorf("no connection from %s", address)
}

// crashOn arms a crash for the next call with its path. done waits until the
// crash struck and returns its name.
func (b *interceptor) crashOn(t *testing.T, w *world, c crash) (done func() string) {
	t.Helper()
	var once atomic.Bool
	met := make(chan struct{})
	b.handle(func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, c.path) || !once.CompareAndSwap(false, true) {
			return false
		}
		defer close(met)
		c.at(t, w, b, rw, r)
		return true
	})
	return func() string {
		t.Helper()
		select {
		case <-met:
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s: there was no call to %s", c.name, c.path)
		}
		if !w.broker.ended() {
			t.Fatalf("%s: the broker was not killed", c.name)
		}
		b.handle(nil)
		return c.name
	}
}

// answerLost requests a credential and kills the broker as soon as it answers,
// before the answer reaches the caller.
func (w *world) answerLost(t testing.TB, src *workloadapi.X509Source, ask api.Ask, key string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var armed atomic.Bool
	go func() {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", w.listen)
		if err != nil {
			_ = near.Close()
			return
		}
		go func() { _, _ = io.Copy(far, near) }()
		buffer := make([]byte, 64<<10)
		for {
			n, err := far.Read(buffer)
			if armed.Load() && n > 0 {
				w.broker.kill()
				n, err = 0, io.EOF
			}
			if n > 0 {
				_, _ = near.Write(buffer[:n])
			}
			if err != nil {
				_ = near.Close()
				_ = far.Close()
				return
			}
		}
	}()
	// With HTTP/1.1, the first byte in return belongs to the answer.
	http1 := client(t, tlsconfig.MTLSClientConfig(src, src, tlsconfig.AuthorizeID(brokerID)), false)
	http1.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	}
	c := &api.Client{BaseURL: "https://" + w.listen, HTTP: http1}
	if _, err := c.WhoAmI(t.Context()); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	if got, err := askOnce(t, c, ask, key); err == nil {
		t.Fatalf("the answer arrived: lease %s", got.Lease)
	}
	if !w.broker.ended() {
		t.Fatal("the broker was not killed")
	}
}

// testKilledAt kills the broker at each crash point of issuing. Within 30 s after
// a restart, no user is left without a lease at the broker and at Vault, and no
// caller got one.
func testKilledAt(t *testing.T, l *lab) {
	l.endAll(t)
	ask := api.Ask{Entitlement: "orders-by-agent", TTL: api.Duration(10 * time.Minute)}
	last := l.lastLease(t, ask.Entitlement)
	restarted := map[string]time.Time{} // when the broker was back, by lease
	var struck []string
	for _, c := range []crash{
		{"the token is not made", "/auth/token/create/broker-leases", killedBefore},
		{"the token is made", "/auth/token/create/broker-leases", killedDuring},
		{"before", "/database/creds/orders-ro", killedBefore},
		{"during", "/database/creds/orders-ro", killedDuring},
		{"recording", "/database/creds/orders-ro", killedRecording},
	} {
		crashed := l.vaultProxy.crashOn(t, l.world, c)
		if got, err := askOnce(t, l.agent, ask, rand.Text()); err == nil {
			t.Errorf("%s: the broker was killed and answered %s", c.name, got.Lease)
		}
		struck = append(struck, crashed())
		l.start(t)
		since := l.leasesSince(t, ask.Entitlement, last)
		if opened := strings.Contains(c.path, "database"); opened != (len(since) == 1) || !opened && len(since) > 0 {
			t.Fatalf("%s: there are %d new leases", c.name, len(since))
		}
		for _, lease := range since {
			last, restarted[lease.ID] = lease.ID, time.Now()
		}
	}
	if want := []string{"the token is not made", "the token is made", "before", "during", "recording"}; !slices.Equal(struck, want) {
		t.Fatalf("the broker was killed at %q, want %q", struck, want)
	}
	key := rand.Text()
	l.answerLost(t, l.src, ask, key)
	l.start(t)
	since := l.leasesSince(t, ask.Entitlement, last)
	if len(since) != 1 || since[0].Status != api.LeaseActive {
		t.Fatalf("the leases that were answered before the kill: %+v", since)
	}
	l.waitReconciled(t, 30*time.Second)
	if n := l.vaultUsers(t); n != 1 {
		t.Errorf("there are %d users, one was answered", n)
	}
	if len(restarted) != 3 {
		t.Errorf("%d leases never became active, want 3", len(restarted))
	}
	for id, at := range restarted {
		lease, err := l.agent.Lease(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		// Vault accepted the revocation of the accessor and does not report its end.
		if lease.EndHow != "deadline" || lease.Status != api.LeaseRevoking || lease.Revocation != "pending" || lease.EndAskedAt.After(at.Add(30*time.Second)) {
			t.Errorf("a lease that never became active is %s, %s, by %q at %s; the broker was back at %s", lease.Status, lease.Revocation, lease.EndHow, lease.EndAskedAt, at)
		}
	}
	// The caller whose answer was lost repeats the request: the new credential
	// replaces the lost one.
	replaced, err := askOnce(t, l.agent, ask, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.works(replaced); err != nil {
		t.Error(err)
	}
	l.waitStatus(t, since[0].ID, "revoked", "immediate")
	l.waitReconciled(t, 30*time.Second)
	if n := l.vaultUsers(t); n != 1 {
		t.Errorf("there are %d users, one was answered", n)
	}
	l.endAll(t)
}

// testSessionsKilledAt kills the broker at each crash point of a call to an STS. A
// session can't be revoked: the broker reports that each session that may exist
// ends by expiring, and no caller got one.
func testSessionsKilledAt(t *testing.T, c *cloud) {
	sts := intercept(t, c.minio.address(), c.minio.caFile(), true)
	sts.writeCA(t, filepath.Join(c.dir, "between.pem"))
	c.broker.stop()
	c.configureSTS(sts.URL, "between.pem")
	c.start(t)
	src := source(t, c.spire)
	agent := c.mtlsClient(t, src)
	agent.BaseURL = "https://" + c.listen
	ask := api.Ask{Entitlement: "reports", Scopes: []string{"read"}, Parameters: map[string]string{"prefix": "acme"}, TTL: api.Duration(20 * time.Minute)}
	var struck []string
	for _, crash := range []crash{{"before", "/", killedBefore}, {"during", "/", killedDuring}, {"recording", "/", killedRecording}} {
		crashed := sts.crashOn(t, c.world, crash)
		if got, err := askOnce(t, agent, ask, rand.Text()); err == nil {
			t.Errorf("%s: the broker was killed and answered %s", crash.name, got.Lease)
		}
		struck = append(struck, crashed())
		c.start(t)
	}
	if want := []string{"before", "during", "recording"}; !slices.Equal(struck, want) {
		t.Fatalf("the broker was killed at %q, want %q", struck, want)
	}
	c.answerLost(t, src, ask, rand.Text())
	c.start(t)
	var leases []api.Lease
	eventually(t, "the end of the leases that never became active", time.Minute, func() error {
		page, err := agent.Leases(t.Context(), api.LeaseFilter{Entitlement: "reports"})
		if err != nil {
			return err
		}
		leases = page.Leases
		for _, lease := range leases {
			if lease.Status == api.LeaseIssuing {
				return errors.New("a lease is still being issued")
			}
		}
		return nil
	})
	if len(leases) != 4 {
		t.Fatalf("there are %d leases", len(leases))
	}
	for i, lease := range leases { // the newest first
		status, how := api.LeaseRevoked, "deadline"
		if i == 0 {
			status, how = api.LeaseActive, "" // it was answered, so it stays active until it expires
		}
		if lease.Status != status || lease.EndHow != how || lease.Revocation != "at_expiry" || lease.ExpiresAt.Sub(lease.OpenedAt) < 19*time.Minute {
			t.Errorf("lease %d is %s, %s by %q, from %s until %s", i, lease.Status, lease.Revocation, lease.EndHow, lease.OpenedAt, lease.ExpiresAt)
		}
	}
	c.broker.stop()
	c.configureSTS(c.minio.address(), c.minio.caFile())
	c.start(t)
}
