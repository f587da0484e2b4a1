package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A spire is a trust domain: a SPIRE server and one agent.
type spire struct {
	owner         testing.TB // server and agent end with it
	domain        string
	dir           string
	bin           string
	port          int
	server, agent *process
}

// The server's keys are on disk because tests restart it. With new keys, its own
// agent would not trust it any more.
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
  KeyManager "disk" { plugin_data { keys_path = "%[2]s/server/keys.json" } }
}
`

// The agent tells workloads apart by the path of their binary, so that one user
// can run several and the tests need no root. It synchronizes every second
// instead of every 5 s, which only makes the tests faster.
const agentConf = `
agent {
  server_address = "127.0.0.1"
  server_port = "%[1]d"
  socket_path = "%[2]s/agent.sock"
  trust_domain = "%[3]s"
  data_dir = "%[2]s/agent"
  log_level = "INFO"
  trust_bundle_path = "%[2]s/bootstrap.pem"
  experimental { sync_interval = "1s" }
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { directory = "%[2]s/agent" } }
  WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }
}
`

// startSPIRE starts a trust domain and returns it when its agent is ready.
func startSPIRE(t testing.TB, domain string) *spire {
	t.Helper()
	dir, err := os.MkdirTemp("", "spire-") // short: sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &spire{owner: t, domain: domain, dir: dir, bin: built(t, "spire"), port: freePort(t)}
	for _, d := range []string{"server", "agent"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.write(t, "server.conf", fmt.Sprintf(serverConf, s.port, dir, domain))
	s.write(t, "agent.conf", fmt.Sprintf(agentConf, s.port, dir, domain))
	s.startServer(t)
	s.write(t, "bootstrap.pem", s.must(t, "bundle", "show"))
	token := regexp.MustCompile(`Token: (\S+)`).FindStringSubmatch(s.must(t, "token", "generate", "-spiffeID", s.id("/node")))
	if token == nil {
		t.Fatal("the SPIRE server printed no join token")
	}
	s.startAgent(t, "-joinToken", token[1])
	return s
}

func (s *spire) startServer(t testing.TB) {
	t.Helper()
	var err error
	if s.server, err = start(s.owner, "spire-server", s.path("spire-server"), "run", "-config", filepath.Join(s.dir, "server.conf")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start of the SPIRE server", time.Minute, func() error {
		_, err := s.run("healthcheck")
		return err
	})
	// An agent that starts before the server has a key for JWT-SVIDs learns of it seconds later,
	// and until then the broker accepts none.
	eventually(t, "the server's key for JWT-SVIDs", time.Minute, func() error {
		bundle, err := s.run("bundle", "show", "-format", "spiffe")
		if err == nil && !strings.Contains(bundle, "jwt-svid") {
			err = errors.New("the bundle has none")
		}
		return err
	})
}

// startAgent starts the agent. It needs a join token the first time only: the
// agent keeps its own identity, but not those of workloads.
func (s *spire) startAgent(t testing.TB, more ...string) {
	t.Helper()
	args := append([]string{"run", "-config", filepath.Join(s.dir, "agent.conf")}, more...)
	var err error
	if s.agent, err = start(s.owner, "spire-agent", s.path("spire-agent"), args...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start of the SPIRE agent", time.Minute, func() error {
		out, err := exec.Command(s.path("spire-agent"), "healthcheck", "-socketPath", filepath.Join(s.dir, "agent.sock")).CombinedOutput()
		if err != nil {
			return fmt.Errorf("checking the agent's health: %w: %s", err, out)
		}
		return nil
	})
}

func (s *spire) id(path string) string      { return "spiffe://" + s.domain + path }
func (s *spire) path(name string) string    { return filepath.Join(s.bin, name) }
func (s *spire) socket() string             { return "unix://" + filepath.Join(s.dir, "agent.sock") }
func (s *spire) environment() []string      { return []string{"SPIFFE_ENDPOINT_SOCKET=" + s.socket()} }
func (s *spire) bundle(t testing.TB) string { return s.must(t, "bundle", "show", "-format", "spiffe") }

func (s *spire) write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a command of spire-server. The words of the command come before its
// flags.
func (s *spire) run(args ...string) (string, error) {
	words := 0
	for words < len(args) && !strings.HasPrefix(args[words], "-") {
		words++
	}
	all := append(append([]string{}, args[:words]...), "-socketPath", filepath.Join(s.dir, "server.sock"))
	out, err := exec.Command(s.path("spire-server"), append(all, args[words:]...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("spire-server %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (s *spire) must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := s.run(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// register registers every process that runs the binary as the workload of that
// path. more has further flags of the entry, such as -x509SVIDTTL or
// -federatesWith.
func (s *spire) register(t testing.TB, path, binary string, more ...string) {
	t.Helper()
	s.must(t, append([]string{"entry", "create", "-parentID", s.id("/node"), "-spiffeID", s.id(path), "-selector", "unix:path:" + binary}, more...)...)
}

// federate imports the bundle of another server, as an operator would.
func (s *spire) federate(t testing.TB, other *spire) {
	t.Helper()
	path := s.write(t, other.domain+".json", other.bundle(t))
	s.must(t, "bundle", "set", "-format", "spiffe", "-id", "spiffe://"+other.domain, "-path", path)
}

// rotate activates a new authority, "x509" or "jwt", and returns the ID of the
// old one, whose signatures stay valid.
func (s *spire) rotate(t testing.TB, kind string) (old string) {
	t.Helper()
	old = s.authority(t, kind, "active")
	s.must(t, "localauthority", kind, "prepare")
	s.must(t, "localauthority", kind, "activate", "-authorityID", s.authority(t, kind, "prepared"))
	return old
}

// taint makes agents replace all SVIDs of an authority. revoke invalidates them.
func (s *spire) taint(t testing.TB, kind, id string) {
	t.Helper()
	s.must(t, "localauthority", kind, "taint", "-authorityID", id)
}

func (s *spire) revoke(t testing.TB, kind, id string) {
	t.Helper()
	s.must(t, "localauthority", kind, "revoke", "-authorityID", id)
}

func (s *spire) authority(t testing.TB, kind, state string) string {
	t.Helper()
	out := s.must(t, "localauthority", kind, "show", "-output", "json")
	var states map[string]json.RawMessage
	if err := json.Unmarshal([]byte(out), &states); err != nil {
		t.Fatalf("reading the %s authorities: %v\n%s", kind, err, out)
	}
	var authority struct {
		ID string `json:"authority_id"`
	}
	if err := json.Unmarshal(states[state], &authority); err != nil || authority.ID == "" {
		t.Fatalf("no %s %s authority in:\n%s", state, kind, out)
	}
	return authority.ID
}
