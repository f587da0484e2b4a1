package brokertest

import (
	"context"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/storetest"
)

// replicasEnv is the environment variable with which every broker of a test is two replicas
// on one database of PostgreSQL. Each call of a client reaches the replica that did not have
// the call before, so that no test relies on a sticky session.
const replicasEnv = "STORE_TEST_REPLICAS"

// Replicas starts n brokers that share a database of PostgreSQL, and skips the test without
// one. They have one external URL; each has an address, files and a log of its own.
func Replicas(t testing.TB, n int, providers ...Provider) []*Broker {
	t.Helper()
	return startReplicas(t, n, files{}, providers...)
}

// startReplicas is Replicas with additions to the files of all.
func startReplicas(t testing.TB, n int, extra files, providers ...Provider) []*Broker {
	t.Helper()
	storetest.OnlyPostgres(t)
	if os.Getenv(replicasEnv) != "" {
		t.Skip("the replicas of this test are its own")
	}
	list := []*Broker{startBroker(t, nil, extra, providers...)}
	for len(list) < n {
		list = append(list, list[0].replica())
	}
	return list
}

// share starts further replicas, to which the clients of b go in turn.
func (b *Broker) share(n int) {
	b.t.Helper()
	b.replicas = []*Broker{b}
	for len(b.replicas) < n {
		b.replicas = append(b.replicas, b.replica())
	}
}

// balance makes each call of a client to the broker reach the next replica.
func (b *Broker) balance(transport *http.Transport) {
	var calls atomic.Int64
	transport.DisableKeepAlives, transport.ForceAttemptHTTP2 = true, false
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == b.address {
			address = b.replicas[calls.Add(1)%int64(len(b.replicas))].address
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}

// replica starts another broker on the database of b, with a copy of its files.
func (b *Broker) replica() *Broker {
	b.t.Helper()
	other := &Broker{t: b.t, dir: b.t.TempDir(), extra: b.extra, external: b.URL, CA: b.CA, Supplier: b.Supplier, Unlisted: b.Unlisted}
	b.copyFiles(other.dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	b.must(err)
	other.address = l.Addr().String()
	other.URL = "https://" + other.address
	path := filepath.Join(other.dir, "broker.yaml")
	text, err := os.ReadFile(path)
	b.must(err)
	changed := strings.Replace(string(text), `{listen: "`+b.address+`"`, `{listen: "`+other.address+`"`, 1)
	changed = strings.Replace(changed, b.adminSocket(), other.adminSocket(), 1)
	other.write("broker.yaml", changed)
	c, err := config.Load(path, nil)
	b.must(err)
	other.run(c, l, slog.New(slog.NewTextHandler(&other.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	return other
}

// copyFiles copies the operator's files, without what the broker itself writes.
func (b *Broker) copyFiles(dir string) {
	b.t.Helper()
	own := os.DirFS(b.dir)
	b.must(fs.WalkDir(own, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || strings.HasPrefix(name, "checkpoint") || strings.HasPrefix(name, "broker.db") {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(dir, name), 0o700)
		}
		text, err := fs.ReadFile(own, name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), text, 0o600)
	}))
}
