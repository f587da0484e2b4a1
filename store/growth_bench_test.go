package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accessbroker.internal/broker"
)

// BenchmarkGrowth issues into databases with more and more rows, in turns with an empty one:
// HISTORY are the numbers of leases that have ended, with their requests and records, and
// ACTIVE those of leases that work. With STORE_TEST_POSTGRES, the URL of a server's superuser,
// it measures PostgreSQL, too. It also measures the start, and what an agent holds.
//
//	HISTORY=1000000,10000000 ACTIVE=5000000 STORE_TEST_POSTGRES=postgres://… go test -run '^$' -bench Growth -benchtime 20000x -timeout 3h ./store
func BenchmarkGrowth(b *testing.B) {
	for name, create := range growthDatabases(b) {
		b.Run(name, func(b *testing.B) {
			empty := create(b, "empty")
			for kind, at := range map[string]time.Time{"HISTORY": time.Now().Add(-40 * testDay), "ACTIVE": time.Now().Add(-time.Minute)} {
				for _, n := range sizes(b, kind, 2_000) {
					name := fmt.Sprintf("%s-%d", strings.ToLower(kind), n)
					full := create(b, strings.ReplaceAll(name, "-", "_"))
					grown(b, full, n, at)
					b.Run(name, func(b *testing.B) { benchmarkGrowth(b, empty, full, n) })
				}
			}
		})
	}
}

// sizes returns the numbers in a variable of the environment.
func sizes(b *testing.B, name string, usual int) (list []int) {
	text := os.Getenv(name)
	if text == "" {
		return []int{usual}
	}
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil {
			b.Fatal(err)
		}
		list = append(list, n)
	}
	return list
}

// growthDatabases returns what creates a database of each kind and returns its URL.
func growthDatabases(b *testing.B) map[string]func(*testing.B, string) string {
	b.Helper()
	// The folder for temporary files may be in memory, where nothing is durable.
	dir, err := os.MkdirTemp(".", "growth-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	kinds := map[string]func(*testing.B, string) string{
		"sqlite": func(_ *testing.B, name string) string {
			path, err := filepath.Abs(filepath.Join(dir, name+".db"))
			if err != nil {
				b.Fatal(err)
			}
			return "sqlite:" + path
		},
	}
	if server := os.Getenv(postgresEnv); server != "" {
		kinds["postgres"] = func(b *testing.B, name string) string { return createGrown(b, server, "growth_"+name) }
	}
	return kinds
}

// createGrown creates a database on a PostgreSQL, and drops it at the end.
func createGrown(b *testing.B, server, name string) string {
	b.Helper()
	connect := func() *sql.DB {
		return openPostgres(postgresConfig{settings: func() (*pgx.ConnConfig, error) { return parsePostgres(server) }})
	}
	u, err := url.Parse(server)
	if err != nil {
		b.Fatal(err)
	}
	db := connect()
	defer func() { _ = db.Close() }()
	for _, query := range []string{"DROP DATABASE IF EXISTS " + name, "CREATE DATABASE " + name} {
		if _, err := db.ExecContext(b.Context(), query); err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(func() {
		db := connect()
		_, err := db.ExecContext(context.Background(), "DROP DATABASE "+name)
		if err := errors.Join(err, db.Close()); err != nil {
			b.Error(err)
		}
	})
	u.Path = "/" + name
	return u.String()
}

// grown fills a database.
func grown(b *testing.B, u string, n int, at time.Time) {
	s := openGrown(b, u)
	start := time.Now()
	grow(b, s, n, at)
	b.Logf("wrote %d issuances in %s", n, time.Since(start).Round(time.Second))
	for _, p := range []*projection{s.counting, s.surveying, s.tallying} {
		if err := s.catchUp(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := s.Sweep(b.Context(), time.Now()); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// benchmarkGrowth opens a database, and issues into it in turns with an empty one.
func benchmarkGrowth(b *testing.B, empty, full string, n int) {
	heap := heapInUse()
	start := time.Now()
	s := openGrown(b, full)
	opened := time.Since(start)
	if err := s.loadHoldings(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Logf("opened in %s, with its live leases in %s, of which each takes %d bytes", opened.Round(time.Millisecond), time.Since(start).Round(time.Millisecond), (heapInUse()-heap)/int64(max(n, 1)))
	b.ReportMetric(time.Since(start).Seconds(), "open-s")
	b.ReportMetric(holderTime(b, s).Seconds()*1e3, "holder-ms")
	none := openGrown(b, empty)
	var ratios []float64
	for turn := range 5 {
		var rates [2]float64
		for i, one := range []*Store{none, s} {
			began := time.Now()
			issueMany(b, one, b.N/5+64, turn)
			rates[i] = float64(b.N/5+64) / time.Since(began).Seconds()
		}
		ratios = append(ratios, rates[1]/rates[0])
		b.Logf("empty %.0f/s, full %.0f/s", rates[0], rates[1])
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "full/empty")
}

func openGrown(b *testing.B, u string) *Store {
	b.Helper()
	s, err := Open(b.Context(), Config{URL: u, Reserve: 1 << 16})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	if err := openLog(b.Context(), s); err != nil && !errors.Is(err, ErrLogOpen) {
		b.Fatal(err)
	}
	return s
}

// grow stores issuances of a time with their records, from as many callers as fit into a group.
func grow(b *testing.B, s *Store, n int, at time.Time) {
	ctx, stop := context.WithCancel(b.Context())
	var running, all sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	for c := range maxGroup {
		all.Go(func() {
			for k := c; k < n; k += maxGroup {
				i := newIssuanceAt(b, k, at, 50*time.Minute)
				err := s.Update(ctx, nil, func(tx broker.Tx) error {
					tx.Put(&i.request)
					tx.Put(&i.lease)
					tx.Append(i.entry)
					return nil
				})
				if err != nil {
					b.Error(err)
					return
				}
				i.entry.Release()
			}
		})
	}
	all.Wait()
	stop()
	running.Wait()
}

// issueMany stores n issuances of 64 callers.
func issueMany(b *testing.B, s *Store, n, turn int) { issueBy(b, s, n, turn, 64) }

func issueBy(b *testing.B, s *Store, n, turn, callers int) {
	ctx, stop := context.WithCancel(b.Context())
	var running, all sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	for c := range callers {
		all.Go(func() {
			for k := c; k < n; k += callers {
				i := newIssuanceAt(b, turn*n+k, time.Now(), 10*time.Minute)
				if err := i.store(ctx, s); err != nil {
					b.Error(err)
					return
				}
				i.entry.Release()
			}
		})
	}
	all.Wait()
	stop()
	running.Wait()
}

// holderTime returns how long "what does this agent hold?" takes: the median of 21.
func holderTime(b *testing.B, s *Store) time.Duration {
	var list []time.Duration
	for n := range 21 {
		start := time.Now()
		err := s.View(b.Context(), func(tx broker.Tx) error {
			_, _, err := tx.Leases(broker.LeaseQuery{Live: true, Now: time.Now(), Holder: fmt.Sprintf("spiffe://acme.test/agent/a%d", n), Limit: 100})
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		list = append(list, time.Since(start))
	}
	slices.Sort(list)
	return list[len(list)/2]
}

// BenchmarkReplicas stores issuances of 64 callers with one and with several processes' stores
// on one PostgreSQL. It needs STORE_TEST_POSTGRES; REPLICAS is the number of stores.
func BenchmarkReplicas(b *testing.B) {
	create := growthDatabases(b)["postgres"]
	if create == nil {
		b.Skip("needs a PostgreSQL: set " + postgresEnv)
	}
	u := create(b, "replicas")
	n, _ := strconv.Atoi(os.Getenv("REPLICAS"))
	var stores []*Store
	for range max(n, 1) {
		stores = append(stores, openGrown(b, u))
	}
	for _, s := range stores {
		if err := s.loadHoldings(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	cpu := processorTime(b)
	b.ResetTimer()
	var all sync.WaitGroup
	for i, s := range stores {
		all.Go(func() { issueBy(b, s, b.N/len(stores), i, 64/len(stores)) })
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
	b.ReportMetric((processorTime(b)-cpu).Seconds()/float64(b.N)*1e6, "cpu-us/op")
	b.ReportMetric(float64(b.N)/float64(stores[0].feed.seq), "updates/commit")
}
