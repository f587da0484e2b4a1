package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accessbroker.internal/e2e/cluster"
)

// postgresFloorMain is the floor's process with PostgreSQL: its arguments are address,
// certificate, key, the callers' public key and the URL of a database. In place of a line of
// a file, it inserts a row. Concurrent callers share one INSERT, which is a transaction.
func postgresFloorMain(args []string) error {
	public, err := readPublic(args[3])
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(context.Background(), args[4])
	if err != nil {
		return err
	}
	if _, err := conn.Exec(context.Background(), "CREATE TABLE IF NOT EXISTS floor (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, line text NOT NULL)"); err != nil {
		return err
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	f := &floor{public: public, own: own, log: &groupRows{conn: conn}}
	server := &http.Server{Addr: args[0], Handler: http.HandlerFunc(f.serve), ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServeTLS(args[1], args[2])
}

// groupRows inserts rows. Concurrent callers share one transaction, as those of a groupLog
// share one fdatasync.
type groupRows struct {
	conn    *pgx.Conn
	mu      sync.Mutex
	pending []string
	group   *logGroup
	leading bool
}

func (l *groupRows) append(line []byte) error {
	l.mu.Lock()
	l.pending = append(l.pending, string(line))
	if l.group == nil {
		l.group = &logGroup{done: make(chan struct{})}
	}
	mine := l.group
	if l.leading {
		l.mu.Unlock()
		<-mine.done
		return mine.err
	}
	l.leading = true
	for l.group != nil {
		group, lines := l.group, l.pending
		l.group, l.pending = nil, nil
		l.mu.Unlock()
		_, group.err = l.conn.Exec(context.Background(), "INSERT INTO floor (line) SELECT unnest($1::text[])", lines)
		close(group.done)
		l.mu.Lock()
	}
	l.leading = false
	l.mu.Unlock()
	<-mine.done
	return mine.err
}

// startPostgres starts a PostgreSQL with Debian's settings. Its data are on the disk, and
// every commit waits for it.
func (k *kit) startPostgres() *cluster.Postgres {
	k.b.Helper()
	// A socket's path must be short, and PostgreSQL's user must be able to pass.
	dir, err := os.MkdirTemp(filepath.Dir(k.dir), "pg-")
	if err != nil {
		k.b.Fatal(err)
	}
	k.b.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		k.b.Fatal(err)
	}
	p, err := cluster.NewPostgres(k.b.Context(), dir, cluster.PostgresOptions{})
	if err != nil {
		k.b.Skip(err) // it is not installed
	}
	k.b.Cleanup(p.Stop)
	if err := p.Start(k.b.Context()); err != nil {
		k.b.Fatal(err)
	}
	for _, setting := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
		if value, err := p.Exec(k.b.Context(), "postgres", "SHOW "+setting); err != nil || strings.TrimSpace(value) != "on" {
			k.b.Fatalf("%s is %q (%v)", setting, value, err)
		}
	}
	return p
}

// create creates a database and returns its URL.
func (k *kit) create(p *cluster.Postgres, name string) string {
	k.b.Helper()
	if err := p.CreateDatabase(k.b.Context(), name); err != nil {
		k.b.Fatal(err)
	}
	return p.DSN(cluster.Owner, name)
}

func (k *kit) startPostgresFloor(p *cluster.Postgres, url string) *target {
	public, err := k.key.PublicKey.Bytes()
	if err != nil {
		k.b.Fatal(err)
	}
	path, address := k.write("callers.key", public), freeAddress(k.b)
	cmd := exec.Command(os.Args[0], address, filepath.Join(k.dir, "cert.pem"), filepath.Join(k.dir, "key.pem"), path, url)
	cmd.Env = append(os.Environ(), "BENCH_FLOOR_POSTGRES=1", "GOGC=400")
	t := k.run(cmd, address, "/")
	t.database = p.PID()
	return t
}

// startReplicas starts brokers on one database.
func (k *kit) startReplicas(p *cluster.Postgres, url string, n int) *target {
	k.b.Helper()
	before, lines := k.store, k.server
	defer func() { k.store, k.server = before, lines }()
	k.store, k.server = strconv.Quote(url), k.server+"  checkpoint_file: broker.checkpoint\n"
	all := &target{database: p.PID()}
	for i := range n {
		all.replicas = append(all.replicas, k.startBroker(fmt.Sprintf("replica-%d-of-%d", i+1, n)))
	}
	return all
}

// of returns the server of a client.
func (t *target) of(client int) *target {
	if len(t.replicas) == 0 {
		return t
	}
	return t.replicas[client%len(t.replicas)]
}

// cpu returns the processor time of a target's processes, those of its database included.
func (t *target) cpu(b *testing.B) (sum time.Duration) {
	b.Helper()
	if t.database != 0 {
		sum = treeTime(t.database)
	}
	for _, r := range t.replicas {
		sum += cpuTime(b, r.cmd.Process.Pid)
	}
	if t.cmd != nil {
		sum += cpuTime(b, t.cmd.Process.Pid)
	}
	return sum
}

// treeTime returns the processor time of a process and its children, those that ended
// included (proc(5)).
func treeTime(pid int) (sum time.Duration) {
	names, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is valid
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		own := name == fmt.Sprintf("/proc/%d/stat", pid)
		if len(f) < 15 || !own && f[1] != strconv.Itoa(pid) {
			continue
		}
		last := 13
		if own {
			last = 15 // and its children that ended
		}
		for _, ticks := range f[11:last] {
			n, _ := strconv.Atoi(ticks)
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}

// BenchmarkPostgres compares brokers on one PostgreSQL with the least that a server can do
// for a durable row there (see postgresFloorMain), in turns: one, two and three replicas, and
// with OTHER=/path/to/broker also one replica of that build. The processor time is that of
// the brokers and of PostgreSQL together. A second floor has a file in place of the database.
//
// REPLICAS=1 measures one broker only.
func BenchmarkPostgres(b *testing.B) {
	k := newKit(b)
	p := k.startPostgres()
	floor := k.startPostgresFloor(p, k.create(p, "floor"))
	file := k.startFloor()
	keep := &mode{name: "floor", target: floor, request: remembered(floor)}
	modes := []*mode{keep, {name: "floor-file", target: file, floor: keep, request: remembered(file)}}
	most := 3
	if text := os.Getenv("REPLICAS"); text != "" {
		most, _ = strconv.Atoi(text)
	}
	var one *mode
	for n := 1; n <= most; n++ {
		t := k.startReplicas(p, k.create(p, fmt.Sprintf("broker%d", n)), n)
		m := &mode{name: fmt.Sprintf("replicas-%d", n), target: t, floor: keep, request: remembered(t)}
		if one == nil {
			one = m
		}
		modes = append(modes, m)
	}
	for _, m := range modes {
		k.load(m, clients, warmUp)
	}
	b.ResetTimer()
	for _, n := range []int{clients, 1} {
		measured := k.compare(modes, n)
		for _, m := range modes[3:] {
			rate, _, _ := ratios(measured[m], measured[one])
			b.Logf("clients: %-3d %s: %.2f of one replica's rate", n, m.name, rate)
			b.ReportMetric(rate, fmt.Sprintf("%s-%d-rate/one", m.name, n))
		}
	}
	b.StopTimer()
	for _, m := range modes[2:] {
		for _, r := range m.target.replicas {
			k.stop(r)
		}
	}
	k.countPostgres(p, one.target)
}

// countPostgres checks that every answered token has its record.
func (k *kit) countPostgres(p *cluster.Postgres, t *target) {
	k.b.Helper()
	out, err := p.Exec(k.b.Context(), "broker1", "SELECT count(*) FROM records WHERE position('\"kind\":\"lease.issued\"'::bytea IN leaf) > 0")
	issued, wrong := strconv.Atoi(strings.TrimSpace(out))
	if err = errors.Join(err, wrong); err != nil {
		k.b.Fatal(err)
	}
	if issued != t.answered {
		k.b.Errorf("%d tokens were answered, %d are recorded", t.answered, issued)
	}
	k.b.Logf("%d tokens were answered, and each is recorded", t.answered)
}
