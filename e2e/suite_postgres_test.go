package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/e2e/cluster"
	"accessbroker.internal/internal/storetest"
)

// suites are the packages whose tests run on either database. Their tests take it from
// package storetest.
var suites = []string{"broker", "broker/campaign", "broker/directory", "broker/inventory", "broker/session"}

// longSuites take minutes more. They run if SUITES is "all".
var longSuites = []string{"store", "broker/signal", "broker/supplier", "notify", "server", "internal/brokertest"}

// The suites of the store, of the domain and of all flows of the broker pass on a real
// PostgreSQL.
func TestSuitesOnPostgreSQL(t *testing.T) {
	t.Parallel() // it takes minutes, and its processes wait as much as they work
	dir, err := os.MkdirTemp("", "suites-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// What is durable is not the subject: a test that kills a process does not kill the server.
	p, err := cluster.NewPostgres(t.Context(), dir, cluster.PostgresOptions{Settings: []string{"fsync = off", "max_connections = 400"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	server := p.DSN(cluster.Admin, "postgres")
	list := suites
	if os.Getenv("SUITES") == "all" {
		list = append(list, longSuites...)
	}
	for _, suite := range list {
		t.Run(suite, func(t *testing.T) {
			if passed := runSuite(t, suite, server); passed == 0 {
				t.Error("no test ran")
			}
		})
	}
	// Each call of a client reaches the replica that did not have the call before.
	t.Run("internal/brokertest on two replicas", func(t *testing.T) {
		if os.Getenv("SUITES") != "all" {
			t.Skip("it runs if SUITES is all")
		}
		if passed := runSuite(t, "internal/brokertest", server, "STORE_TEST_REPLICAS=1"); passed == 0 {
			t.Error("no test ran")
		}
	})
}

// runSuite runs the tests of a package and returns how many passed.
func runSuite(t *testing.T, suite, server string, env ...string) (passed int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-count=1", "-timeout=20m", "./"+suite)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), append(env, storetest.Env+"="+server)...)
	out, err := cmd.CombinedOutput()
	var failed bytes.Buffer
	outputs := map[string]string{} // of the tests that have not ended
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var event struct{ Action, Test, Output string }
		if json.Unmarshal(lines.Bytes(), &event) != nil {
			failed.WriteString(lines.Text() + "\n") // an error of the compiler
			continue
		}
		switch {
		case event.Action == "pass" && event.Test != "" && !strings.Contains(event.Test, "/"):
			passed++
		case event.Action == "output":
			outputs[event.Test] += event.Output
		case event.Action == "fail":
			failed.WriteString(outputs[event.Test])
		}
		if event.Action == "pass" || event.Action == "skip" || event.Action == "fail" {
			delete(outputs, event.Test)
		}
	}
	if err != nil {
		t.Errorf("go test ./%s: %v\n%s", suite, err, lastLines(failed.String(), 200))
	}
	return passed
}

// lastLines returns the end of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
