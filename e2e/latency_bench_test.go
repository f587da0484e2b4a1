//go:build bench

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// spent is what Vault took for each credential: by the lease, whose token's
// making names it, and whose token makes the user.
type spent struct {
	mu     sync.Mutex
	leases map[string]string        // by the token
	took   map[string]time.Duration // by the lease
	calls  map[string]int           // by the lease
	all    int
}

// between stands before Vault, and measures each call.
func (s *spent) between(b *between) {
	b.answers(func(w http.ResponseWriter, r *http.Request) bool {
		began := time.Now()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		token := r.Header.Get("X-Vault-Token")
		kept := httptest.NewRecorder()
		b.pass(kept, r)
		s.add(r.URL.Path, token, body, kept.Body.Bytes(), time.Since(began))
		for name, values := range kept.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(kept.Code)
		_, _ = w.Write(kept.Body.Bytes())
		return true
	})
}

func (s *spent) add(path, token string, asked, answered []byte, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all++
	lease := s.leases[token]
	if strings.HasSuffix(path, "/auth/token/create/broker-leases") {
		var ask struct{ Meta map[string]string }
		var answer vaultAnswer
		if json.Unmarshal(asked, &ask) != nil || json.Unmarshal(answered, &answer) != nil {
			return
		}
		lease = ask.Meta["lease"]
		s.leases[answer.Auth.ClientToken] = lease
	}
	if lease != "" {
		s.took[lease] += took
		s.calls[lease]++
	}
}

// TestOwnLatency measures the broker's own share of the time that a database
// user takes: all that the caller waits, less what Vault takes for the calls that
// name its lease. "make bench" runs it.
//
// First each client asks again once it is answered, which keeps both processors
// busy: the share is mostly waiting for one. Then the same clients ask for half of
// that. A call that does nothing goes the same way meanwhile, and tells what the
// machine, the client, TLS and HTTP take of it. BenchmarkOwnShare has the broker
// alone on a processor.
func TestOwnLatency(t *testing.T) {
	if runtime.NumCPU() > 1 {
		t.Setenv("GOMAXPROCS", "2") // what a broker gives itself that starts with one processor
	}
	l := startLab(t)
	if runtime.NumCPU() > 1 { // as in TestTenThousandDue
		pin(t, l.vault.server.cmd.Process.Pid, 0)
		pin(t, l.postgres.server.cmd.Process.Pid, 0)
		pin(t, l.broker.cmd.Process.Pid, 1)
		pin(t, os.Getpid(), 1)
	}
	s := &spent{leases: map[string]string{}, took: map[string]time.Duration{}, calls: map[string]int{}}
	s.between(l.agentVault)
	rate := s.shares(t, l, 0)
	s.shares(t, l, rate/2)
}

// shares has 16 clients ask at a rate that they share, or, if that is zero, as
// fast as they are answered. It gives the rate that they came to.
func (s *spent) shares(t *testing.T, l *lab, rate float64) float64 {
	t.Helper()
	const clients, warmUp, measured = 16, 2 * time.Second, 10 * time.Second
	var mu sync.Mutex
	waited := map[string]time.Duration{}
	var nothing []time.Duration
	start := time.Now()
	var all sync.WaitGroup
	paced := func(i, of int, rate float64, call func() error, done func(took time.Duration)) {
		for n := i; time.Since(start) < warmUp+measured; n += of {
			if rate > 0 {
				time.Sleep(time.Until(start.Add(time.Duration(float64(n) / rate * float64(time.Second)))))
			}
			began := time.Now()
			if err := call(); err != nil {
				t.Error(err)
				return
			}
			if took := time.Since(began); began.Sub(start) > warmUp {
				mu.Lock()
				done(took)
				mu.Unlock()
			}
		}
	}
	for i := range clients {
		all.Go(func() {
			var c *api.Credential
			paced(i, clients, rate, func() (err error) {
				c, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "orders-by-agent"})
				return err
			}, func(took time.Duration) { waited[c.Lease] = took })
		})
	}
	all.Go(func() {
		paced(0, 1, 50, func() error { _, err := l.agent.WhoAmI(t.Context()); return err }, func(took time.Duration) { nothing = append(nothing, took) })
	})
	all.Wait()
	if len(waited) == 0 || len(nothing) == 0 {
		t.Fatal("nothing was measured")
	}
	came := float64(len(waited)) / measured.Seconds()
	s.report(t, waited, nothing, fmt.Sprintf("%d credentials by %d clients, %.0f a second", len(waited), clients, came))
	return came
}

func (s *spent) report(t *testing.T, waited map[string]time.Duration, nothing []time.Duration, title string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var total, upstream, own []time.Duration
	most := 0
	for lease, took := range waited {
		total, upstream, own = append(total, took), append(upstream, s.took[lease]), append(own, took-s.took[lease])
		most = max(most, s.calls[lease])
	}
	t.Logf("%s; at most %d calls to Vault for one (target 2), %d so far for %d leases", title, most, s.all, len(s.calls))
	for _, row := range []struct {
		name string
		list []time.Duration
	}{{"in all", total}, {"Vault", upstream}, {"the broker's own share (target: p99 below 5 ms)", own}, {"a call that does nothing", nothing}} {
		slices.Sort(row.list)
		at := func(q float64) time.Duration {
			return row.list[min(int(q*float64(len(row.list))), len(row.list)-1)].Round(10 * time.Microsecond)
		}
		t.Logf("%s: p50 %s, p99 %s", row.name, at(0.5), at(0.99))
	}
}
