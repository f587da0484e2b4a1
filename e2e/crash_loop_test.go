package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/store"
)

// The crash loop runs for crashTimeEnv (25 s by default) with the seed crashSeedEnv.
const (
	crashTimeEnv = "CRASH_LOOP"
	crashSeedEnv = "CRASH_SEED"
	crashTime    = 25 * time.Second
	crashClients = 8
)

// A crashLoop is a real broker under load that disasters strike.
type crashLoop struct {
	*plainWorld
	random *mathrand.Rand // of the disasters

	mu       sync.Mutex
	answered []answer
	returned map[string]bool // leases whose return was answered
	refused  int
	outages  []outage
}

// An answer is a credential that a caller got.
type answer struct {
	api.Credential
	token        [32]byte // SHA-256
	asked, until time.Time
}

// An outage is a time in which no call may be answered with a credential.
type outage struct{ from, to time.Time }

// TestCrashLoop strikes a broker under load with disasters in random order: kills,
// orderly ends, suspensions, a full disk and lost database files. Every token that a
// caller got has its record in the log, the log verifies offline, and each lease
// has ended or is live as its records say.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	l := &crashLoop{plainWorld: newPlainWorld(t), returned: map[string]bool{}}
	seed, length := mathrand.Uint64(), crashTime
	for name, parse := range map[string]func(string) error{
		crashSeedEnv: func(text string) (err error) { seed, err = strconv.ParseUint(text, 10, 64); return err },
		crashTimeEnv: func(text string) (err error) { length, err = time.ParseDuration(text); return err },
	} {
		if text := os.Getenv(name); text != "" {
			if err := parse(text); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	t.Logf("to repeat the order of disasters: %s=%d %s=%s", crashSeedEnv, seed, crashTimeEnv, length)
	l.random = mathrand.New(mathrand.NewPCG(seed, 0))
	l.start(t)

	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for n := range crashClients {
		clients.Go(func() { l.load(ctx, t, n) })
	}
	struck := l.strike(t, length)
	cancel()
	clients.Wait()
	l.broker.stop()
	for _, d := range disasters {
		if struck[d.name] == 0 {
			t.Errorf("%s: struck never", d.name)
		}
	}
	l.check(t)
	t.Logf("%d tokens were answered, %d calls refused, %d leases returned; disasters: %v", len(l.answered), l.refused, len(l.returned), struck)
}

// strike strikes with all disasters in random order, again and again. Between two of
// them, the clients get tokens.
func (l *crashLoop) strike(t *testing.T, length time.Duration) (struck map[string]int) {
	struck = map[string]int{}
	for end := time.Now().Add(length); time.Now().Before(end) || len(struck) < len(disasters); {
		for _, i := range l.random.Perm(len(disasters)) {
			l.awaitTokens(t, 1+l.random.IntN(200))
			disasters[i].strike(t, l)
			struck[disasters[i].name]++
			if t.Failed() || time.Now().After(end) && len(struck) == len(disasters) {
				return struck
			}
		}
	}
	return struck
}

func (l *crashLoop) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.answered)
}

func (l *crashLoop) awaitTokens(t *testing.T, n int) {
	t.Helper()
	before := l.count()
	eventually(t, fmt.Sprintf("%d tokens", n), 2*time.Minute, func() error {
		if l.broker.ended() {
			t.Fatalf("the broker ended by itself: %s", l.broker.out)
		}
		if got := l.count() - before; got < n {
			return fmt.Errorf("only %d", got)
		}
		return nil
	})
}

// disasters strike a broker that serves, and leave one that serves.
var disasters = []struct {
	name   string
	strike func(t *testing.T, l *crashLoop)
}{
	{"kill -9", func(t *testing.T, l *crashLoop) {
		l.broker.kill()
		l.start(t)
	}},
	{"SIGTERM", func(t *testing.T, l *crashLoop) {
		l.broker.stop()
		if state := l.broker.cmd.ProcessState; state.ExitCode() != 0 {
			t.Errorf("on SIGTERM, the broker ended with %s", state)
		}
		l.start(t)
	}},
	{"SIGSTOP", func(t *testing.T, l *crashLoop) {
		l.signal(t, syscall.SIGSTOP)
		l.pause()
		l.signal(t, syscall.SIGCONT)
	}},
	{"kill -9 while suspended", func(t *testing.T, l *crashLoop) {
		l.signal(t, syscall.SIGSTOP)
		l.pause()
		l.broker.kill()
		l.start(t)
	}},
	{"full disk", func(t *testing.T, l *crashLoop) {
		limitFiles(t, l.broker.cmd.Process.Pid, 1)
		l.awaitNotReady(t)
		limitFiles(t, l.broker.cmd.Process.Pid, unix.RLIM_INFINITY)
		l.start(t)
	}},
	{"kill -9 with a full disk", func(t *testing.T, l *crashLoop) {
		limitFiles(t, l.broker.cmd.Process.Pid, 1)
		l.pause()
		l.broker.kill()
		l.start(t)
	}},
	{"database moved away", func(t *testing.T, l *crashLoop) {
		l.without(t, func() error { return os.Rename(l.file(""), l.file(".away")) }, func() error { return os.Rename(l.file(".away"), l.file("")) })
		l.start(t)
	}},
	{"another database moved over it", func(t *testing.T, l *crashLoop) {
		l.without(t, func() error {
			return errors.Join(os.Link(l.file(""), l.file(".kept")), os.WriteFile(l.file(".other"), nil, 0o600), os.Rename(l.file(".other"), l.file("")))
		}, func() error { return os.Rename(l.file(".kept"), l.file("")) })
		l.start(t)
	}},
	{"database removed", func(t *testing.T, l *crashLoop) {
		// The links stand for a recovery of the open files from /proc.
		l.without(t, func() error {
			return errors.Join(os.Link(l.file(""), l.file(".kept")), os.Link(l.file("-wal"), l.file("-wal.kept")),
				os.Remove(l.file("")), os.Remove(l.file("-wal")), os.Remove(l.file("-shm")))
		}, func() error {
			l.broker.kill()
			return errors.Join(os.Rename(l.file(".kept"), l.file("")), os.Rename(l.file("-wal.kept"), l.file("-wal")))
		})
		l.start(t)
	}},
}

func (l *crashLoop) file(suffix string) string { return filepath.Join(l.dir, "broker.db"+suffix) }

func (l *crashLoop) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := l.broker.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// pause lets the clients run into the disaster. No test depends on its length.
func (l *crashLoop) pause() { time.Sleep(time.Duration(l.random.IntN(300)) * time.Millisecond) }

func (l *crashLoop) awaitNotReady(t *testing.T) {
	t.Helper()
	eventually(t, "the broker to report that it is not ready", time.Minute, func() error {
		if l.ready() == nil {
			return errors.New("it is ready")
		}
		return nil
	})
}

// without takes the database away until the broker has noticed and refused calls.
func (l *crashLoop) without(t *testing.T, lose, undo func() error) {
	t.Helper()
	if err := lose(); err != nil {
		t.Fatal(err)
	}
	from := time.Now()
	l.awaitNotReady(t)
	l.mu.Lock()
	refused := l.refused
	l.mu.Unlock()
	eventually(t, "refused calls", time.Minute, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.refused < refused+2*crashClients {
			return fmt.Errorf("only %d", l.refused-refused)
		}
		return nil
	})
	to := time.Now()
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outages = append(l.outages, outage{from, to})
}

// load requests tokens until ctx ends, repeats some of the calls, and returns some
// of the leases.
func (l *crashLoop) load(ctx context.Context, t *testing.T, n int) {
	c := l.workload(t, fmt.Sprintf("spiffe://acme.test/agent/a%d", n))
	for i := 0; ctx.Err() == nil; i++ {
		key := rand.Text()
		got := l.ask(ctx, t, c, key)
		switch {
		case got == nil: // perhaps the call succeeded, and its answer was lost
			l.ask(ctx, t, c, key)
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
			}
		case i%5 == 0:
			l.ask(ctx, t, c, key)
		case i%3 == 0:
			if lease, err := c.Revoke(ctx, got.Lease, ""); err == nil && lease.Status == api.LeaseRevoked {
				l.mu.Lock()
				l.returned[got.Lease] = true
				l.mu.Unlock()
			}
		}
	}
}

// ask makes one call, and keeps what it is answered.
func (l *crashLoop) ask(ctx context.Context, t *testing.T, c *api.Client, key string) *answer {
	a := &answer{asked: time.Now()}
	err := l.call(ctx, c, key, &a.Credential)
	a.until = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.refused++
		return nil
	}
	a.token = sha256.Sum256([]byte(a.Secret["token"]))
	l.answered = append(l.answered, *a)
	if a.Secret["token"] == "" {
		t.Errorf("lease %s was answered without a token", a.Lease)
	}
	return a
}

func (l *crashLoop) call(ctx context.Context, c *api.Client, key string, into *api.Credential) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.BaseURL+"/v1/credentials", bytes.NewReader([]byte(`{"entitlement":"tickets-api","scopes":["tickets:read"]}`)))
	if err != nil {
		return err
	}
	token, err := c.Token(ctx)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", key)
	r.GetBody = nil // with it, net/http may repeat the request
	resp, err := c.HTTP.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return json.Unmarshal(text, into)
}

// check looks up every answered token in the log and compares every lease with its
// records. The log itself is verified from an export, and at the end of the world.
func (l *crashLoop) check(t *testing.T) {
	t.Helper()
	export := filepath.Join(l.dir, "export.jsonl")
	for _, args := range [][]string{{"audit", "export", "sqlite:" + l.file("")}, {"audit", "verify", export}} {
		var out, errs bytes.Buffer
		cmd := exec.Command(l.bin, args...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s", args, err, &errs)
		}
		if args[1] == "export" {
			l.write(t, "export.jsonl", out.String())
		}
	}
	db, err := store.Open(t.Context(), store.Config{URL: store.URL(l.file("")), Reserve: 1 << 16, Existing: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	issued, ended := map[string]int64{}, map[string]bool{}
	records := check.Records(t, db)
	for i, r := range records {
		switch {
		case r.Kind == audit.LeaseIssued:
			issued[r.Lease.ID] = int64(i)
		case r.Kind == audit.LeaseRevoked:
			ended[r.Lease.ID] = true
		}
	}
	l.checkAnswers(t, records, issued)
	l.checkLeases(t, db, issued, ended)
}

func (l *crashLoop) checkAnswers(t *testing.T, records []audit.Record, issued map[string]int64) {
	t.Helper()
	for _, a := range l.answered {
		index, ok := issued[a.Lease]
		if !ok || index != a.Receipt.Index || records[index].Lease.Credential != audit.Digest(a.token) {
			t.Errorf("the token of lease %s, answered at %s with the record %d, is not in the log: found %t, record %d", a.Lease, a.until, a.Receipt.Index, ok, index)
		}
		for _, o := range l.outages {
			if a.asked.After(o.from) && a.until.Before(o.to) {
				t.Errorf("lease %s was requested at %s and answered at %s, when the database was away (from %s to %s)", a.Lease, a.asked, a.until, o.from, o.to)
			}
		}
	}
	if len(l.answered) == 0 || l.refused == 0 || len(l.outages) == 0 || len(l.returned) == 0 {
		t.Errorf("%d tokens were answered, %d calls refused, %d leases returned, in %d outages: want some of each", len(l.answered), l.refused, len(l.returned), len(l.outages))
	}
}

// checkLeases reads every lease that was issued.
func (l *crashLoop) checkLeases(t *testing.T, db *store.Store, issued map[string]int64, ended map[string]bool) {
	t.Helper()
	replaced := map[broker.LeaseID]bool{}
	var all []*broker.Lease
	for text := range issued {
		id, err := broker.ParseLeaseID(text)
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(t.Context(), func(tx broker.Tx) error {
			lease, err := broker.Get[*broker.Lease](tx, id)
			if err == nil {
				all = append(all, lease)
				replaced[lease.Replaces] = true
			}
			return err
		})
		if err != nil {
			t.Errorf("lease %s has a record and no row: %v", text, err)
		}
	}
	live := 0
	for _, lease := range all {
		id := lease.ID.String()
		if lease.Status == broker.LeaseActive {
			live++
		}
		// A lease that was replaced has its end in the record of its successor.
		want := broker.LeaseActive
		if ended[id] || replaced[lease.ID] {
			want = broker.LeaseRevoked
		}
		if lease.Status != want || l.returned[id] && want == broker.LeaseActive {
			t.Errorf("lease %s has the status %d and ended by %q; its return was answered: %t; its records say %d", id, lease.Status, lease.EndHow, l.returned[id], want)
		}
	}
	if live == 0 || live == len(all) {
		t.Errorf("%d of %d leases are live, want some and not all", live, len(all))
	}
}
