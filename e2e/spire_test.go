package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A process is a server that ends with its test. Its output is shown if the
// test fails.
type process struct {
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func start(t *testing.T, name string, env []string, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), out: &output{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.out)
		}
	})
	return p
}

// stop ends the process and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, within time.Duration, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within %s: %v", what, within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// A spire is a trust domain: a SPIRE server and one agent.
type spire struct {
	t      *testing.T
	domain string
	dir    string
	bin    string
	port   int
	agent  *process
}

const serverConf = `
server {
  bind_address = "127.0.0.1"
  bind_port = "%[1]d"
  socket_path = "%[2]s/server.sock"
  trust_domain = "%[3]s"
  data_dir = "%[2]s/server"
  log_level = "INFO"
  jwt_issuer = "https://%[3]s"
  ca_ttl = "24h"
  default_x509_svid_ttl = "1h"
  default_jwt_svid_ttl = "5m"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3"  connection_string = "%[2]s/server.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
`

const agentConf = `
agent {
  server_address = "127.0.0.1"
  server_port = "%[1]d"
  socket_path = "%[2]s/agent.sock"
  trust_domain = "%[3]s"
  data_dir = "%[2]s/agent"
  log_level = "INFO"
  trust_bundle_path = "%[2]s/bootstrap.pem"
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { directory = "%[2]s/agent" } }
  WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }
}
`

// startSPIRE starts a trust domain. Workloads are told apart by the path of
// their binary, so that one user can be several of them.
func startSPIRE(t *testing.T, domain string) *spire {
	t.Helper()
	dir, err := os.MkdirTemp("", "spire-") // short: sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &spire{t: t, domain: domain, dir: dir, bin: spireBinaries(t), port: freePort(t)}
	for _, d := range []string{"server", "agent"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.write("server.conf", fmt.Sprintf(serverConf, s.port, dir, domain))
	s.write("agent.conf", fmt.Sprintf(agentConf, s.port, dir, domain))
	start(t, "spire-server", nil, filepath.Join(s.bin, "spire-server"), "run", "-config", filepath.Join(dir, "server.conf"))
	eventually(t, "the start of the SPIRE server", time.Minute, func() error {
		_, err := s.server("healthcheck")
		return err
	})
	s.write("bootstrap.pem", s.must("bundle", "show"))
	token := regexp.MustCompile(`Token: (\S+)`).FindStringSubmatch(s.must("token", "generate", "-spiffeID", s.id("/node")))
	if token == nil {
		t.Fatal("the SPIRE server gave no join token")
	}
	s.startAgent("-joinToken", token[1])
	return s
}

func (s *spire) startAgent(args ...string) {
	s.t.Helper()
	args = append([]string{"run", "-config", filepath.Join(s.dir, "agent.conf")}, args...)
	s.agent = start(s.t, "spire-agent", nil, filepath.Join(s.bin, "spire-agent"), args...)
	eventually(s.t, "the start of the SPIRE agent", time.Minute, func() error {
		out, err := exec.Command(filepath.Join(s.bin, "spire-agent"), "healthcheck", "-socketPath", filepath.Join(s.dir, "agent.sock")).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func (s *spire) id(path string) string { return "spiffe://" + s.domain + path }
func (s *spire) socket() string        { return "unix://" + filepath.Join(s.dir, "agent.sock") }
func (s *spire) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// server runs a command of spire-server.
func (s *spire) server(args ...string) (string, error) {
	n := 1
	if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
		n = 2
	}
	if args[0] == "localauthority" {
		n = 3
	}
	all := append(append([]string{}, args[:n]...), "-socketPath", filepath.Join(s.dir, "server.sock"))
	out, err := exec.Command(filepath.Join(s.bin, "spire-server"), append(all, args[n:]...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("spire-server %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (s *spire) must(args ...string) string {
	s.t.Helper()
	out, err := s.server(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// register makes whoever runs the binary the workload of that path.
func (s *spire) register(path, binary string, more ...string) {
	s.t.Helper()
	args := append([]string{"entry", "create", "-parentID", s.id("/node"), "-spiffeID", s.id(path), "-selector", "unix:path:" + binary}, more...)
	s.must(args...)
}

// federate gives this server the bundle of another, as an operator would.
func (s *spire) federate(other *spire) {
	s.t.Helper()
	path := s.write(other.domain+".json", other.must("bundle", "show", "-format", "spiffe"))
	s.must("bundle", "set", "-format", "spiffe", "-id", "spiffe://"+other.domain, "-path", path)
}

// copyOf gives a copy of a binary, which is another workload.
func copyOf(t *testing.T, binary, name string) string {
	t.Helper()
	text, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// self is the test's own binary, as the agent sees it.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	return path
}
