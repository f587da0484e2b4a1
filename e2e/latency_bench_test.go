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

// spent is the time that Vault took for each lease. The call that creates a token
// names the lease, and the call that creates the user uses that token.
type spent struct {
	mu     sync.Mutex
	leases map[string]string        // by the token
	took   map[string]time.Duration // by the lease
	calls  map[string]int           // by the lease
	all    int
}

// between measures each call that the interceptor passes on to Vault.
func (s *spent) between(b *interceptor) {
	b.handle(func(w http.ResponseWriter, r *http.Request) bool {
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

// TestOwnLatency measures the broker's own share of the latency of a database
// user: the time that the caller waits, minus the time of the calls to Vault that
// name its lease. "make bench" runs it.
//
// First, each client repeats its request as soon as it is answered. Both
// processors are busy, so the share is mostly waiting for one. Then the same
// clients request half as many per second. Calls that do nothing are measured at
// the same time; they show the part of the machine, the client, TLS and HTTP. In
// BenchmarkOwnShare the broker has a processor of its own.
func TestOwnLatency(t *testing.T) {
	if runtime.NumCPU() > 1 {
		t.Setenv("GOMAXPROCS", "2") // the broker's own minimum
	}
	l := startLab(t, spireOf(t))
	if runtime.NumCPU() > 1 { // as in TestTenThousandDue
		pin(t, l.vault.server.cmd.Process.Pid, 0)
		pin(t, l.postgres.server.cmd.Process.Pid, 0)
		pin(t, l.broker.cmd.Process.Pid, 1)
		pin(t, os.Getpid(), 1)
	}
	s := &spent{leases: map[string]string{}, took: map[string]time.Duration{}, calls: map[string]int{}}
	s.between(l.vaultProxy)
	rate := s.shares(t, l, 0)
	s.shares(t, l, rate/2)
}

// shares runs 16 clients at a common rate or, if that is zero, as fast as they are
// answered. It returns the rate that they reached.
func (s *spent) shares(t testing.TB, l *lab, rate float64) float64 {
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

func (s *spent) report(t testing.TB, waited map[string]time.Duration, nothing []time.Duration, title string) {
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
