package e2e

import (
	"fmt"
	"os"
	"sync"
	"testing"
)

// Starting the servers of a test takes seconds of both processors. Tests that
// neither stop a server, nor reconfigure it, nor move its clock share these. The
// others start their own.
var (
	sharedSPIRE shared[*spire]
	sharedLab   shared[*lab]
	sharedCloud shared[*cloud]
)

// A shared value is started by the first test that needs it and ended after the
// last test.
type shared[T any] struct {
	once  sync.Once
	ready bool
	value T
	turn  sync.Mutex
}

// get returns the value, for tests that use names of their own.
func (s *shared[T]) get(t *testing.T, start func(testing.TB) T) T {
	t.Helper()
	s.once.Do(func() {
		s.value = start(suite{t})
		s.ready = true
	})
	if !s.ready {
		t.Fatal("the shared servers did not start; the first test that needed them shows why")
	}
	return s.value
}

// take returns the value to one test at a time, for tests that count its contents,
// such as the users of a database.
func (s *shared[T]) take(t *testing.T, start func(testing.TB) T) T {
	t.Helper()
	s.turn.Lock()
	t.Cleanup(s.turn.Unlock)
	return s.get(t, start)
}

// spireOf returns the shared SPIRE. The test binary is its workload /agent/triage.
func spireOf(t *testing.T) *spire {
	t.Helper()
	return sharedSPIRE.get(t, func(t testing.TB) *spire {
		s := startSPIRE(t, "acme.test")
		s.register(t, "/agent/triage", ownBinary(t))
		return s
	})
}

// labOf returns the shared lab until the test ends.
func labOf(t *testing.T) *lab {
	t.Helper()
	s := spireOf(t)
	return sharedLab.take(t, func(t testing.TB) *lab { return startLab(t, s) })
}

// cloudOf returns the shared cloud until the test ends.
func cloudOf(t *testing.T) *cloud {
	t.Helper()
	s := spireOf(t)
	return sharedCloud.take(t, func(t testing.TB) *cloud { return startCloud(t, s) })
}

// A suite owns the shared servers. A failed start fails the test that started them.
// Their cleanups run in endSuite.
type suite struct{ testing.TB }

var ending struct {
	sync.Mutex
	cleanups []func()
	failures int
}

func (suite) Cleanup(f func()) {
	ending.Lock()
	defer ending.Unlock()
	ending.cleanups = append(ending.cleanups, f)
}

func (s suite) TempDir() string {
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Errorf is also called when no test runs any more.
func (suite) Errorf(format string, args ...any) {
	ending.Lock()
	ending.failures++
	ending.Unlock()
	fmt.Fprintf(os.Stderr, "--- FAIL: shared servers: "+format+"\n", args...)
}

func (s suite) Error(args ...any) { s.Errorf("%s", fmt.Sprintln(args...)) }

// Failed reports whether a shared server failed. The failure of a test that uses the
// servers does not print their output.
func (suite) Failed() bool {
	ending.Lock()
	defer ending.Unlock()
	return ending.failures > 0
}

func (suite) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// endSuite ends the shared servers, the last one first, and returns the exit
// code of the tests.
func endSuite(code int) int {
	for i := len(ending.cleanups) - 1; i >= 0; i-- {
		ending.cleanups[i]()
	}
	if ending.failures > 0 && code == 0 {
		code = 1
	}
	return code
}
