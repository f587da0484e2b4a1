package checker

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	mathrand "math/rand/v2"

	"accessbroker.internal/e2e/cluster"
)

// seedEnv repeats a run.
const seedEnv = "CHECKER_SEED"

func seed(t *testing.T) uint64 {
	t.Helper()
	n := mathrand.Uint64()
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	t.Logf("to repeat the order of calls and faults: %s=%d", seedEnv, n)
	return n
}

// builds is the folder of the builds of the broker. It ends with the tests.
var builds string

// lengthEnv sets the length of a run.
const lengthEnv = "CHECKER_LENGTH"

func length(t *testing.T, d time.Duration) time.Duration {
	t.Helper()
	if text := os.Getenv(lengthEnv); text != "" {
		var err error
		if d, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", lengthEnv, err)
		}
	}
	return d
}

// folder returns a folder for the history and the log of a run. It stays if the test fails.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "checker-run-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the history and the log are in %s", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	return dir
}

var broker = sync.OnceValues(func() (string, error) {
	path := filepath.Join(builds, "broker")
	return path, cluster.Build(context.Background(), path)
})

func TestMain(m *testing.M) {
	var err error
	if builds, err = os.MkdirTemp("", "checker-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(builds)
	os.Exit(code)
}

// check runs the checker and fails the test for each finding.
func check(t *testing.T, c Config) *Result {
	t.Helper()
	var err error
	if c.Binary, err = broker(); err != nil {
		t.Fatal(err)
	}
	c.Dir = folder(t)
	result, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range result.Findings {
		t.Error(f)
	}
	t.Log(result.Summary())
	return result
}

// TestOneReplica checks one broker on SQLite.
func TestOneReplica(t *testing.T) {
	t.Parallel()
	check(t, Config{Seed: seed(t), Length: 20 * time.Second, Clients: 6, Replicas: 1})
}

// TestReplicas checks three replicas on PostgreSQL, which fails over to a standby.
func TestReplicas(t *testing.T) {
	t.Parallel()
	check(t, Config{Seed: seed(t), Length: length(t, 2*time.Minute), Clients: 12, Replicas: 3, Postgres: true, Standby: true})
}

// soakEnv makes TestSoak run for a time.
const soakEnv = "CHECKER_SOAK"

// TestSoak checks three replicas for a long time, and that what the first one uses stays
// flat. Its process never ends; everything else does.
func TestSoak(t *testing.T) {
	text := os.Getenv(soakEnv)
	if text == "" {
		t.Skipf("set %s=1h, or run make soak", soakEnv)
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", soakEnv, err)
	}
	s := &Sampler{Every: max(time.Second, length/400)}
	check(t, Config{
		Seed: seed(t), Length: length, Clients: 12, Replicas: 3, Postgres: true, Standby: true, Spare: true,
		Pace: 200 * time.Millisecond, Calm: 5 * time.Second, Observe: s.Observe,
	})
	for _, one := range []Sample{s.Samples[len(s.Samples)/4], s.Samples[len(s.Samples)-1]} {
		t.Logf("%s: %.0f MB, %.0f goroutines, %.0f open files, %.0f connections to the database", one.At.Format(time.TimeOnly), one.Memory/(1<<20), one.Goroutines, one.Descriptors, one.Connections)
	}
	found, err := Growing(s.Samples)
	if err != nil {
		t.Error(err)
	}
	for _, f := range found {
		t.Error(f)
	}
}
