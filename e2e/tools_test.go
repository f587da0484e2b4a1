// Package e2e runs the product against real servers: SPIRE, Vault, PostgreSQL,
// MinIO, an OpenID provider, Prometheus, sshd and Chromium. Package servers builds them.
// Every server listens on loopback, in a temporary folder, and ends with the
// tests.
package e2e

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"accessbroker.internal/e2e/cluster"
	"accessbroker.internal/e2e/servers"
)

func TestMain(m *testing.M) {
	if audience := os.Getenv(workloadEnv); audience != "" {
		os.Exit(workloadMain(audience))
	}
	if plan := os.Getenv(leakEnv); plan != "" {
		os.Exit(leakMain(plan))
	}
	code := endSuite(m.Run())
	if product.path != "" {
		_ = os.RemoveAll(filepath.Dir(product.path))
	}
	os.Exit(code)
}

// built returns the folder of the commands of a server that make servers built.
func built(t testing.TB, name string) string {
	t.Helper()
	dir, err := servers.Dir(name)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// installed returns the path of a command of the distribution.
func installed(t testing.TB, name string) string {
	t.Helper()
	path, err := servers.Command(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var product struct {
	sync.Once
	path string
	err  error
}

// brokerBinary returns the path of the product, which each run builds once.
func brokerBinary(t testing.TB) string {
	t.Helper()
	product.Do(func() {
		dir, err := os.MkdirTemp("", "broker-e2e-")
		if err != nil {
			product.err = err
			return
		}
		product.path = filepath.Join(dir, "broker")
		product.err = buildBroker(product.path)
	})
	if product.err != nil {
		t.Fatal(product.err)
	}
	return product.path
}

func buildBroker(path string, flags ...string) error {
	return cluster.Build(context.Background(), path, flags...)
}
