package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/e2e/cluster"
	"accessbroker.internal/egress/egresstest"
)

// leakRound is the number of credentials of one proxy.
const leakRound = 50

const leakPolicy = `
@id("agents-call-the-hostile-host")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource)
when { resource.hasTag("env") && resource.getTag("env") == "hostile" };
`

// A leakHunt is a broker, a hostile host, and an edge between the host and a model.
type leakHunt struct {
	*devBroker
	t       *testing.T
	up      *egresstest.Upstream
	host    string // of the host, with the port
	caFile  string
	metrics string // the address of the broker's metrics

	mu      sync.Mutex
	sent    [][]byte // a sample of what the host sent
	secrets []string
}

// TestLeakHunt makes calls whose host repeats the credential in every form, place, coding
// and division, as a model's program does through "broker proxy" and as a model does with
// call_api. Then it searches what came back, the memory, environment and arguments of the
// program, the logs at level debug, the metrics, the database and all other files of the
// broker, and finds no credential in any form. The memory of the edge is not searched: it
// must hold the credentials, so the process is not dumpable.
//
// LEAK_SECRETS and LEAK_CALLS set the size, and LEAK_SEED the seed.
func TestLeakHunt(t *testing.T) {
	t.Parallel()
	secrets, calls := leakSize(t, "LEAK_SECRETS", 50), leakSize(t, "LEAK_CALLS", 1000)
	seed := leakSize(t, "LEAK_SEED", rand.IntN(1<<40))
	rounds := max(secrets/leakRound, 1)
	t.Logf("LEAK_SECRETS=%d LEAK_CALLS=%d LEAK_SEED=%d", secrets, calls, seed)
	h := startLeakHunt(t)
	began := time.Now()
	answers := 0
	for round := range rounds {
		answers += h.round(seed+round*calls, calls/rounds)
	}
	byModel := h.callAPI(seed, max(calls/50, 20))
	h.secrets = append(h.secrets, h.up.Forget()...)
	took := time.Since(began)
	h.searchAll(answers+byModel, calls+byModel)
	if len(h.secrets) < secrets {
		t.Errorf("got %d secrets, want %d", len(h.secrets), secrets)
	}
	t.Logf("%d secrets, %d calls by a program in %s, %d by a model", len(h.secrets), answers, took.Round(time.Second), byModel)
}

func leakSize(t *testing.T, name string, usual int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is no number", name, text)
	}
	return n
}

// startLeakHunt starts a broker that logs all it can, and the host.
func startLeakHunt(t *testing.T) *leakHunt {
	t.Helper()
	h := &leakHunt{devBroker: startDev(t), t: t, up: &egresstest.Upstream{}}
	h.up.Sent = h.sample
	server, caFile := startTLS(t, h.up)
	h.host, h.caFile = strings.TrimPrefix(server.URL, "https://"), caFile
	file := filepath.Join(h.dir, "broker.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var entitlements strings.Builder
	for i := range leakRound {
		inject := []string{"{as: bearer}", "{as: header, name: X-Api-Key, field: token}", "{as: header, name: Private-Token, field: token, prefix: \"Token \"}"}[i%3]
		fmt.Fprintf(&entitlements, "\n  hostile-%[1]d: {issuer: tickets, scopes: [\"hostile:%[1]d\"], default_scopes: [\"hostile:%[1]d\"], labels: {env: hostile}, egress: {record: %[2]t, inject: %[3]s, allow: [{hosts: [\"%[4]s\"], methods: [GET, POST], paths: [\"/e/%[1]d/**\"], headers: [range], websocket: true, addresses: [127.0.0.0/8]}]}}",
			i, i%2 == 0, inject, h.host)
	}
	edited := strings.Replace(string(text), "\nentitlements:\n", "\nentitlements:"+entitlements.String()+"\n", 1)
	verbose := strings.Replace(edited, "level: warn", "level: debug", 1)
	h.metrics = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	verbose = regexp.MustCompile(`(?m)^  metrics: .*$`).ReplaceAllString(verbose, "  metrics: "+h.metrics)
	if err := errors.Join(os.WriteFile(file, []byte(verbose), 0o600), os.WriteFile(filepath.Join(h.dir, "policies", "hostile.cedar"), []byte(leakPolicy), 0o600)); err != nil || edited == string(text) || verbose == edited {
		t.Fatal("the operator's file has no entitlements or no log level", err)
	}
	h.restart(t)
	return h
}

// sample keeps a sample of what the host sends.
func (h *leakHunt) sample(text []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.sent) < 500 {
		h.sent = append(h.sent, text)
	}
}

// round runs a program behind a new proxy, with new credentials. It returns the number of
// answers that the program received.
func (h *leakHunt) round(seed, calls int) (answers int) {
	h.t.Helper()
	dir := h.t.TempDir()
	plan := leakPlan{Host: h.host, Entitlements: leakRound, Seed: seed, Calls: calls, Dir: dir}
	metrics := fmt.Sprintf("127.0.0.1:%d", freePort(h.t))
	ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Minute)
	defer cancel()
	cmd := h.command(ctx, dir, "broker", "proxy", "--upstream-ca", h.caFile, "--metrics", metrics, "--", ownBinary(h.t))
	cmd.Env = append(cmd.Env, leakEnv+"="+plan.text())
	var out cluster.Output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	h.await(filepath.Join(dir, "done"), ended, &out)
	h.secrets = append(h.secrets, h.up.Forget()...)
	find := egresstest.NewFinder(h.secrets...)
	h.searchProgram(find, dir)
	h.searchMetrics(find, "http://"+metrics+"/metrics")
	if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := <-ended; err != nil {
		h.t.Fatalf("the program: %v\n%s", err, out.String())
	}
	h.search(find, "the output of the proxy and its program", []byte(out.String()))
	return h.searchAnswers(find, filepath.Join(dir, "answers"))
}

// await waits for a file of the program.
func (h *leakHunt) await(file string, ended chan error, out *cluster.Output) {
	h.t.Helper()
	for {
		if _, err := os.Stat(file); err == nil {
			return
		}
		select {
		case err := <-ended:
			h.t.Fatalf("the program ended early: %v\n%s", err, out.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// search fails the test if a text has a part of a credential.
func (h *leakHunt) search(find *egresstest.Finder, where string, text []byte) {
	h.t.Helper()
	const size, overlap = 64 << 10, 4 << 10
	look := find.Find
	if len(text) > size {
		look = find.Once // decoding a large text in all ways takes minutes
	}
	for at := 0; at < len(text); at += size {
		part := text[at:min(at+size+overlap, len(text))]
		if secret := look(part); secret != "" {
			h.t.Errorf("%s: a credential that ends in %q is in %.2000q", where, secret[len(secret)-6:], part)
			return
		}
	}
}

// searchAnswers searches all that the program received.
func (h *leakHunt) searchAnswers(find *egresstest.Finder, file string) (answers int) {
	h.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for {
		answer, err := readAnswer(f)
		if err == io.EOF {
			return answers
		} else if err != nil {
			h.t.Fatal(err)
		}
		answers++
		h.search(find, "an answer", answer)
	}
}

// searchProgram searches the memory, the environment and the arguments of the program.
// Its memory is what a core file would have.
func (h *leakHunt) searchProgram(find *egresstest.Finder, dir string) {
	h.t.Helper()
	pid, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		h.t.Fatal(err)
	}
	proc := "/proc/" + string(pid) + "/"
	for _, name := range []string{"environ", "cmdline"} {
		text, err := os.ReadFile(proc + name)
		if err != nil || len(text) == 0 {
			h.t.Fatal(name, err)
		}
		h.search(find, "the program's "+name, text)
	}
	maps, err := os.ReadFile(proc + "maps")
	if err != nil {
		h.t.Fatal(err)
	}
	mem, err := os.Open(proc + "mem")
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	searched := 0
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		searched += h.searchMemory(find, mem, from, to)
	}
	if searched < 1<<20 {
		h.t.Errorf("searched %d bytes of the program's memory", searched)
	}
}

// searchMemory searches a part of a program's memory.
func (h *leakHunt) searchMemory(find *egresstest.Finder, mem io.ReaderAt, from, to int64) (searched int) {
	h.t.Helper()
	buf := make([]byte, 1<<20)
	for at := from; at < to; at += int64(len(buf)) - 4096 {
		n, err := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
		if n == 0 && err != nil {
			return searched // reserved, and never used
		}
		searched += n
		if secret := find.Raw(buf[:n]); secret != "" {
			h.t.Errorf("the memory of the program has a credential that ends in %q", secret[len(secret)-6:])
			return searched
		}
	}
	return searched
}

func (h *leakHunt) searchMetrics(find *egresstest.Finder, url string) {
	h.t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(text, []byte("broker_")) {
		h.t.Errorf("got metrics %q, %v", text, err)
	}
	h.search(find, "the metrics", text)
}

// searchAll searches what the broker keeps, and proves that the search can find.
func (h *leakHunt) searchAll(answers, calls int) {
	h.t.Helper()
	find := egresstest.NewFinder(h.secrets...)
	h.searchMetrics(find, "http://"+h.metrics+"/metrics")
	h.search(find, "the log of the broker", []byte(h.process.out.String()))
	files := 0
	err := filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		files++
		h.search(find, path, text)
		return err
	})
	if err != nil || files < 5 {
		h.t.Errorf("searched %d files of the broker: %v", files, err)
	}
	found := 0
	for _, text := range h.sent {
		if find.Find(text) != "" {
			found++
		}
	}
	if len(h.sent) == 0 || found != len(h.sent) {
		h.t.Errorf("the search finds a credential in %d of %d answers as the host sent them", found, len(h.sent))
	}
	if answers != calls {
		h.t.Errorf("got %d answers to %d calls", answers, calls)
	}
}

// callAPI makes calls as a model does, and returns their number.
func (h *leakHunt) callAPI(seed, calls int) int {
	h.t.Helper()
	var log cluster.Output
	cmd := h.command(h.t.Context(), h.t.TempDir(), "broker", "mcp", "--upstream-ca", h.caFile)
	cmd.Stderr = &log
	session, err := mcp.NewClient(&mcp.Implementation{Name: "model", Version: "1"}, nil).Connect(h.t.Context(), &mcp.CommandTransport{Command: cmd}, nil)
	if err != nil {
		h.t.Fatal(err, log.String())
	}
	var results [][]byte
	for i := range calls {
		url := fmt.Sprintf("https://%s/e/%d/x?seed=%d", h.host, i%leakRound, seed+i)
		got, err := session.CallTool(h.t.Context(), &mcp.CallToolParams{Name: "call_api", Arguments: map[string]any{"method": "GET", "url": url}})
		if err != nil {
			h.t.Fatal(err, log.String())
		}
		text := fmt.Sprint(got.StructuredContent)
		for _, c := range got.Content {
			if c, ok := c.(*mcp.TextContent); ok {
				text += "\n" + c.Text
			}
		}
		if !strings.Contains(text, "status") && i == 0 {
			h.t.Errorf("got %q", text)
		}
		results = append(results, []byte(text))
	}
	find := egresstest.NewFinder(h.up.Secrets()...)
	if err := session.Close(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		h.t.Error(err)
	}
	for _, text := range results {
		h.search(find, "a result of call_api", text)
	}
	h.search(find, "the log of the MCP server", []byte(log.String()))
	return calls
}
