package bench

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shareClients is the number of clients in the target for the broker's own share.
const shareClients = 16

// BenchmarkOwnShare measures the broker's own share of the latency of a database
// user: the time that a caller waits, minus the upstream's time for its two calls.
// The broker, with TLS and SQLite, has one processor to itself. The callers and a
// stand-in for Vault, which sleeps and does not compute, share another.
//
// Two relays are measured in turn with the broker: one only makes the two calls,
// the other also makes two lines durable. Their latency is that of the machine,
// TLS, HTTP and the disk, which is part of the broker's share as well.
//
// In the closed loop, each client repeats its request as soon as it is answered.
// The processor is the limit, so the share is mostly waiting for it. Paced, the
// same clients request an eighth of the rate that the broker reached then: few
// requests wait, so the share is the broker's own time.
func BenchmarkOwnShare(b *testing.B) {
	k := newKit(b)
	u := &upstream{took: map[string]time.Duration{}}
	server := httptest.NewServer(u)
	b.Cleanup(server.Close)
	k.issuers = fmt.Sprintf("  vault: {vault: {address: %q, auth: {agent: true}, token_role: broker-leases}}\n", server.URL)
	k.entitlements = "  orders-db-ro: {issuer: vault, vault: {path: database/creds/orders-ro, policies: [orders]}, max_ttl: 30m}\n"
	k.policies = `
@id("agents-orders")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"orders-db-ro");
`
	apart := runtime.NumCPU() > 1
	if apart {
		pin(b, 0, threads(b)...)
		runtime.LockOSThread()
		pin(b, 1, 0) // child processes inherit it
	}
	broker, relay := k.startBroker("broker"), k.startRelay(server.URL)
	if apart {
		pin(b, 0, 0)
		runtime.UnlockOSThread()
	}
	ways := []way{
		{"nothing but the two calls", relay, k.asks(relay.address, "/")},
		{"two durable lines besides", relay, k.asks(relay.address, "/durable")},
		{"the broker", broker, k.asks(broker.address, "/v1/credentials")},
	}
	for _, w := range ways {
		k.shares(w, u, 0, warmUp)
	}
	b.ResetTimer()
	closed := k.rounds(ways, u, 0)
	rate := closed[len(ways)-1].rate() / 8
	paced := k.rounds(ways, u, rate)
	b.StopTimer()
	b.Logf("a processor for the broker alone: %v; %d clients; the upstream takes %s a call", apart, shareClients, upstreamTakes)
	for i, w := range ways {
		b.Logf("%-28s closed loop: %s", w.name, closed[i])
		b.Logf("%-28s paced to %.0f/s: %s", "", rate, paced[i])
	}
	last := paced[len(ways)-1]
	b.Logf("the broker's own share, paced: p99 %s (target below 5 ms)", last.at(0.99).Round(10*time.Microsecond))
	b.ReportMetric(last.at(0.99).Seconds()*1e3, "p99-ms")
	b.ReportMetric(last.at(0.99).Seconds()*1e3-paced[1].at(0.99).Seconds()*1e3, "over-durable-ms")
}

// A way is a server in the comparison.
type way struct {
	name   string
	target *target
	asks   [][]byte
}

// rounds measures the ways in turn and returns the sum for each.
func (k *kit) rounds(ways []way, u *upstream, rate float64) []result {
	k.b.Helper()
	sums := make([]result, len(ways))
	for range rounds {
		for i, w := range ways {
			r := k.shares(w, u, rate, roundTime/2)
			sums[i].tokens, sums[i].took, sums[i].cpu = sums[i].tokens+r.tokens, sums[i].took+r.took, sums[i].cpu+r.cpu
			sums[i].latencies = append(sums[i].latencies, r.latencies...)
			k.b.Logf("%s: %s", w.name, r)
		}
	}
	for i := range sums {
		slices.Sort(sums[i].latencies)
	}
	return sums
}

// String formats the result of a round, whose latencies are shares.
func (r result) String() string {
	at := func(q float64) time.Duration { return r.at(q).Round(10 * time.Microsecond) }
	return fmt.Sprintf("%.0f/s, CPU %.2f ms each, own share p50 %s, p90 %s, p99 %s", r.rate(), r.perThousand(), at(0.5), at(0.9), at(0.99))
}

// shares runs the clients for the duration d, at a common rate or, if that is zero,
// as fast as they are answered. The latencies of the result are the shares.
func (k *kit) shares(w way, u *upstream, rate float64, d time.Duration) (r result) {
	k.b.Helper()
	before, start := cpuTime(k.b, w.target.cmd.Process.Pid), time.Now()
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range shareClients {
		all.Go(func() {
			list := k.asker(w, u, i, rate, start, d)
			mu.Lock()
			defer mu.Unlock()
			r.latencies = append(r.latencies, list...)
		})
	}
	all.Wait()
	r.took, r.cpu, r.tokens = time.Since(start), cpuTime(k.b, w.target.cmd.Process.Pid)-before, len(r.latencies)
	slices.Sort(r.latencies)
	if r.tokens == 0 {
		k.b.Fatal("no credential was answered")
	}
	return r
}

// asker is one of the clients. Paced clients take turns.
func (k *kit) asker(w way, u *upstream, i int, rate float64, start time.Time, d time.Duration) (own []time.Duration) {
	conn, err := tls.Dial("tcp", w.target.address, &tls.Config{RootCAs: k.pool, MinVersion: tls.VersionTLS13})
	if err != nil {
		k.b.Error(err)
		return nil
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReaderSize(conn, 8<<10)
	for n := i; ; n += shareClients {
		if rate > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(float64(n) / rate * float64(time.Second)))))
		}
		began := time.Now()
		if began.Sub(start) > d {
			return own
		}
		_, err := conn.Write(w.asks[n%identities])
		var answer []byte
		if err == nil {
			answer, err = readAnswer(in)
		}
		took := time.Since(began)
		if err != nil {
			k.b.Error(err)
			return own
		}
		_, lease, _ := bytes.Cut(answer, []byte(`"lease":"`))
		lease, _, _ = bytes.Cut(lease, []byte(`"`))
		upstream, ok := u.spent(string(lease))
		if !ok {
			k.b.Errorf("the broker answered without a call to the upstream: %s", answer)
			return own
		}
		own = append(own, took-upstream)
	}
}

// asks returns requests for a database user, one by each identity.
func (k *kit) asks(address, path string) (list [][]byte) {
	const body = `{"entitlement":"orders-db-ro"}`
	for _, token := range k.tokens {
		list = append(list, fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, address, token, len(body), body))
	}
	return list
}

func (k *kit) startRelay(upstream string) *target {
	k.b.Helper()
	address := freeAddress(k.b)
	cmd := exec.Command(os.Args[0], address, filepath.Join(k.dir, "cert.pem"), filepath.Join(k.dir, "key.pem"), upstream, filepath.Join(k.dir, "relay.log"))
	cmd.Env = append(os.Environ(), "BENCH_RELAY=1", "GOGC=400", "GOMAXPROCS=2") // the broker's settings
	return k.run(cmd, address, "/")
}

// pin binds threads to one processor. Thread 0 is the calling thread.
func pin(b *testing.B, cpu int, threads ...int) {
	b.Helper()
	var set unix.CPUSet
	set.Set(cpu)
	for _, id := range threads {
		if err := unix.SchedSetaffinity(id, &set); err != nil {
			b.Fatal(err)
		}
	}
}

// threads returns the threads of this process.
func threads(b *testing.B) (ids []int) {
	b.Helper()
	list, err := os.ReadDir("/proc/self/task")
	if err != nil {
		b.Fatal(err)
	}
	for _, entry := range list {
		id, err := strconv.Atoi(entry.Name())
		if err != nil {
			b.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}
