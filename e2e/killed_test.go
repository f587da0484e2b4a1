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
	path string // of the call; what it ends with
	at   func(t *testing.T, w *world, b *between, rw http.ResponseWriter, r *http.Request)
}

// The points around a call that makes something.
func killedBefore(_ *testing.T, w *world, _ *between, _ http.ResponseWriter, _ *http.Request) {
	w.broker.kill()
	cut()
}

// killedDuring kills it when the server has made what was asked for, and has not
// answered. That the server ends what it does makes it exact: Vault forgets what
// it makes for somebody who hangs up in the middle.
func killedDuring(t *testing.T, w *world, b *between, _ http.ResponseWriter, r *http.Request) {
	if kept := b.complete(r); kept.Code != http.StatusOK {
		t.Errorf("%s %s: %d", r.Method, r.URL.Path, kept.Code)
	}
	w.broker.kill()
	cut()
}

// killedRecording kills it when it has the answer, and can't have recorded that.
func killedRecording(t *testing.T, w *world, b *between, rw http.ResponseWriter, r *http.Request) {
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
	eventually(t, "the broker's reading the answer", 10*time.Second, func() error { return allRead(r.RemoteAddr) })
	w.broker.kill()
}

// lockDatabase keeps the broker from writing, as another process that writes
// does: it holds the one lock for that, at byte 120 of the shared memory
// (SQLite, "WAL-Mode File Format", section 2.3.1).
func (w *world) lockDatabase(t *testing.T) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, "broker.db-shm"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 120, Len: 1}
	eventually(t, "the lock on the database", 10*time.Second, func() error { return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock) })
	return func() { _ = f.Close() } // which gives the lock back
}

// allRead says whether who is connected from an address has read all that it
// was sent.
func allRead(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	ip := net.ParseIP(host).To4()
	slices.Reverse(ip) // /proc/net/tcp writes them so
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
				return fmt.Errorf("0x%s bytes are not read yet", unread)
			}
			return nil
		}
	}
	return fmt.Errorf("nobody is connected from %s", address)
}

// killedBetween has the next call meet the crash. done waits until it did.
func (b *between) killedBetween(t *testing.T, w *world, c crash) (done func()) {
	t.Helper()
	var once atomic.Bool
	met := make(chan struct{})
	b.answers(func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, c.path) || !once.CompareAndSwap(false, true) {
			return false
		}
		defer close(met)
		c.at(t, w, b, rw, r)
		return true
	})
	return func() {
		t.Helper()
		select {
		case <-met:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: there was no call to %s", c.name, c.path)
		}
		b.answers(nil)
	}
}

// answerLost asks the broker for a credential, and kills the broker as soon as
// it answers, before anybody has the answer.
func (w *world) answerLost(t *testing.T, src *workloadapi.X509Source, ask api.Ask, key string) {
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
	// By HTTP/1.1, nothing but the answer comes back for what is asked.
	http1 := client(t, tlsconfig.MTLSClientConfig(src, src, tlsconfig.AuthorizeID(brokerID)), false)
	http1.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	}
	c := &api.Client{BaseURL: "https://" + w.listen, HTTP: http1}
	if _, err := c.WhoAmI(t.Context()); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	if got, err := once(t, c, ask, key); err == nil {
		t.Fatalf("the answer came through: lease %s", got.Lease)
	}
	if !w.broker.ended() {
		t.Fatal("the broker was not killed")
	}
}

// testKilledAt kills the broker at each point of issuing. Within half a minute
// after a restart no user is left that has no lease of the broker's and of
// Vault's, and nobody got one.
func testKilledAt(t *testing.T, l *lab) {
	l.clean(t)
	ask := api.Ask{Entitlement: "orders-by-agent", TTL: api.Duration(10 * time.Minute)}
	last := l.last(t, ask.Entitlement)
	restarted := map[string]time.Time{} // by the lease
	for _, c := range []crash{
		{"the token is not made", "/auth/token/create/broker-leases", killedBefore},
		{"the token is made", "/auth/token/create/broker-leases", killedDuring},
		{"before", "/database/creds/orders-ro", killedBefore},
		{"during", "/database/creds/orders-ro", killedDuring},
		{"recording", "/database/creds/orders-ro", killedRecording},
	} {
		met := l.agentVault.killedBetween(t, l.world, c)
		if got, err := once(t, l.agent, ask, rand.Text()); err == nil {
			t.Errorf("%s: the broker was killed, and answered %s", c.name, got.Lease)
		}
		met()
		l.start(t)
		since := l.since(t, ask.Entitlement, last)
		if opened := strings.Contains(c.path, "database"); opened != (len(since) == 1) || !opened && len(since) > 0 {
			t.Fatalf("%s: there are %d new leases", c.name, len(since))
		}
		for _, lease := range since {
			last, restarted[lease.ID] = lease.ID, time.Now()
		}
	}
	key := rand.Text()
	l.answerLost(t, l.src, ask, key)
	l.start(t)
	since := l.since(t, ask.Entitlement, last)
	if len(since) != 1 || since[0].Status != api.LeaseActive {
		t.Fatalf("what was answered before the kill: %+v", since)
	}
	l.accounted(t, 30*time.Second)
	if n := l.users(t); n != 1 {
		t.Errorf("there are %d users, one was answered", n)
	}
	for id, at := range restarted {
		lease, err := l.agent.Lease(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		// The accessor was told, and nobody says when Vault has done it.
		if lease.EndHow != "deadline" || lease.Status != api.LeaseRevoking || lease.Revocation != "pending" || lease.EndAskedAt.After(at.Add(30*time.Second)) {
			t.Errorf("a lease that never became active is %s, %s, by %s at %s; the broker was back at %s", lease.Status, lease.Revocation, lease.EndHow, lease.EndAskedAt, at)
		}
	}
	// Whose answer was lost may ask again: the one takes the other's place.
	again, err := once(t, l.agent, ask, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.works(again); err != nil {
		t.Error(err)
	}
	l.becomes(t, since[0].ID, "revoked", "immediate")
	l.accounted(t, 30*time.Second)
	if n := l.users(t); n != 1 {
		t.Errorf("there are %d users, one was answered", n)
	}
	l.clean(t)
}

// testSessionsKilledAt does the same with an STS. No session can be called back:
// the broker says so of each that there may be, and nobody got one.
func testSessionsKilledAt(t *testing.T, c *cloud) {
	sts := standBetween(t, c.minio.address(), c.minio.caFile(), true)
	sts.writeCA(t, filepath.Join(c.dir, "between.pem"))
	c.broker.stop()
	c.configureSTS(sts.URL, "between.pem")
	c.start(t)
	src := source(t, c.spire)
	agent := c.overMTLS(t, src)
	agent.BaseURL = "https://" + c.listen
	ask := api.Ask{Entitlement: "reports", Scopes: []string{"read"}, Parameters: map[string]string{"prefix": "acme"}, TTL: api.Duration(20 * time.Minute)}
	for _, crash := range []crash{{"before", "/", killedBefore}, {"during", "/", killedDuring}, {"recording", "/", killedRecording}} {
		met := sts.killedBetween(t, c.world, crash)
		if got, err := once(t, agent, ask, rand.Text()); err == nil {
			t.Errorf("%s: the broker was killed, and answered %s", crash.name, got.Lease)
		}
		met()
		c.start(t)
	}
	c.answerLost(t, src, ask, rand.Text())
	c.start(t)
	var leases []api.Lease
	eventually(t, "the end of what never became active", 30*time.Second, func() error {
		page, err := agent.Leases(t.Context(), api.LeaseFilter{Entitlement: "reports"})
		if err != nil {
			return err
		}
		leases = page.Leases
		for _, lease := range leases {
			if lease.Status == api.LeaseIssuing {
				return errors.New("one is still being issued")
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
			status, how = api.LeaseActive, "" // it was answered, and is the holder's until its time is over
		}
		if lease.Status != status || lease.EndHow != how || lease.Revocation != "at_expiry" || lease.ExpiresAt.Sub(lease.OpenedAt) < 19*time.Minute {
			t.Errorf("lease %d is %s, %s by %q, from %s until %s", i, lease.Status, lease.Revocation, lease.EndHow, lease.OpenedAt, lease.ExpiresAt)
		}
	}
	c.broker.stop()
	c.configureSTS(c.minio.address(), c.minio.caFile())
	c.start(t)
}
