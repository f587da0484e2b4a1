//go:build bench

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTwoHundredCredentials measures the memory of "broker proxy" with 200 credentials,
// and how their renewals spread.
func TestTwoHundredCredentials(t *testing.T) {
	const n, watch = 200, 100 * time.Second
	var more strings.Builder
	flags := []string{"-q"}
	urls := new(strings.Builder)
	for i := range n {
		fmt.Fprintf(&more, "  c%d: {issuer: tickets, scopes: [c:%d], default_scopes: [c:%d], default_ttl: 2m, egress: {inject: {as: bearer}, allow: [{hosts: [\"api.acme.test:%%[1]d\"], methods: [GET], paths: [/api/c/%d], addresses: [127.0.0.0/8]}]}}\n", i, i, i, i)
		flags = append(flags, "--entitlement", fmt.Sprint("c", i))
	}
	p := startProxied(t, more.String())
	for i := range n {
		fmt.Fprintf(urls, "url = %s\noutput = /dev/null\n", p.url(fmt.Sprint("/api/c/", i)))
	}
	list := filepath.Join(p.home, "urls")
	if err := os.WriteFile(list, []byte(urls.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	metrics := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	cmd := p.proxy(append(flags, "--metrics", metrics), "sh", "-c", `curl -sSf -K "$0" && touch ready; while [ ! -e stop ]; do sleep 0.2; done`, list)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "200 calls", 2*time.Minute, func() error { _, err := os.Stat(filepath.Join(p.home, "ready")); return err })
	last, most, peak, private := 0, 0, 0, 0
	for end := time.Now().Add(watch); time.Now().Before(end); time.Sleep(time.Second) {
		renewed := metricOf(t, metrics, `broker_proxy_credentials_total\{kind="renewed"\} (\d+)`)
		most, last = max(most, renewed-last), renewed
		peak = max(peak, memoryOf(t, cmd.Process.Pid, "VmRSS"))
		private = max(private, memoryOf(t, cmd.Process.Pid, "RssAnon"))
	}
	if obtained := metricOf(t, metrics, `broker_proxy_credentials_total\{kind="obtained"\} (\d+)`); obtained != n || last < n {
		t.Errorf("%d credentials obtained and %d renewed, want %d and more", obtained, last, n)
	}
	t.Logf("%d credentials of 2 minutes: %d MB of private memory at most (target: 60 MB; with the pages of the program's file, %d MB), %d renewals in %s, at most %d in a second", n, private>>10, peak>>10, last, watch, most)
	if err := errors.Join(os.WriteFile(filepath.Join(p.home, "stop"), nil, 0o600), cmd.Wait()); err != nil {
		t.Error(err)
	}
}

// metricOf returns the value of a metric; zero before the metric first appears.
func metricOf(t *testing.T, address, pattern string) int {
	t.Helper()
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(pattern).FindSubmatch(text)
	if found == nil {
		return 0
	}
	value, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// memoryOf returns a kind of a process's memory in KiB: VmRSS, or RssAnon without the pages
// of files, which processes share.
func memoryOf(t *testing.T, pid int, kind string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(kind + `:\s+(\d+) kB`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in %s", kind, text)
	}
	value, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return value
}
