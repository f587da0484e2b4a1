package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"accessbroker.internal/e2e/servers"
)

// buildFixture builds cmd/mcpfixture with the fixture tools of the Go SDK, whose command
// cannot be imported. The overlay puts both into the product's module, whose packages the
// fixture runs.
func buildFixture(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/modelcontextprotocol/go-sdk").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "conformance", "everything-server", "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	library := strings.Replace(string(text), "\nfunc main() {", "\nfunc mainOfTheSDK() {", 1)
	if library == string(text) {
		t.Fatal("the SDK's conformance server has another form")
	}
	everything := filepath.Join(dir, "everything.go")
	if err := os.WriteFile(everything, []byte(library), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	replaced := map[string]string{}
	replaced[filepath.Join(root, "internal", "mcpfixture", "everything.go")] = everything
	for _, name := range []string{"main.go", "tasks.go"} {
		replaced[filepath.Join(root, "internal", "mcpfixture", name)] = filepath.Join(root, "e2e", "cmd", "mcpfixture", name)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	file, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "mcpfixture")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "conformance", "-overlay", file, "-o", binary, "./internal/mcpfixture")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the fixture: %v\n%s", err, out)
	}
	return binary
}

// The MCP endpoint passes the protocol's conformance suite for both revisions, behind its
// authorization. testdata/mcp lists what does not apply, with reasons; an entry that passes
// fails the test.
func TestMCPConformance(t *testing.T) {
	t.Parallel()
	modules, err := servers.Modules("conformance")
	if err != nil {
		t.Fatal(err)
	}
	fixture := exec.Command(buildFixture(t))
	in, err := fixture.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := fixture.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	fixture.Stderr = &log
	if err := fixture.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		if err := fixture.Wait(); err != nil {
			t.Errorf("the fixture: %v\n%s", err, log.String())
		}
	}()
	line := bufio.NewScanner(out)
	if !line.Scan() {
		t.Fatalf("the fixture did not start: %v", line.Err())
	}
	node, total := newNodeClient(t).node, regexp.MustCompile(`Total: (\d+) passed`)
	for revision, atLeast := range map[string]int{"2026-07-28": 190, "2025-11-25": 60} {
		expected, err := filepath.Abs(filepath.Join("testdata", "mcp", revision+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		suite := exec.Command(node, filepath.Join(modules, "@modelcontextprotocol", "conformance", "dist", "index.js"), "server",
			"--url", line.Text(), "--requirements", revision, "--expected-failures", expected, "-o", t.TempDir())
		report, err := suite.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", revision, err, report)
		}
		passed := 0
		if found := total.FindSubmatch(report); found != nil {
			passed, _ = strconv.Atoi(string(found[1]))
		}
		if passed < atLeast {
			t.Errorf("%s: %d checks passed, want at least %d\n%s", revision, passed, atLeast, report)
		}
		fmt.Println(revision, passed, "checks of the conformance suite passed")
	}
}
