package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"accessbroker.internal/e2e/cluster"
)

// Two users of the machine that have no other process.
const firstUser, secondUser = 64711, 64712

// A socketed is "broker proxy --socket" for one user.
type socketed struct {
	*proxied
	user int
	path string
}

// startSocket starts a proxy with an identity of the broker's world for a user.
func (p *proxied) startSocket(identity string, user int) *socketed {
	p.t.Helper()
	dir, err := os.MkdirTemp("", "px-") // short: sockets have short paths
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &socketed{p, user, filepath.Join(dir, "proxy.sock")}
	cmd := p.inside("env", "SPIFFE_ENDPOINT_SOCKET=unix://"+filepath.Join(p.dir, "identities", identity+".sock"),
		"broker", "proxy", "--upstream-ca", p.up.caFile, "--entitlement", "upstream", "--why", "a test", "--socket", s.path, "--peer", strconv.Itoa(user))
	cmd = &exec.Cmd{Path: cmd.Path, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir, SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}} // it outlives the test's context
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cluster.StartOnThread(cmd); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("the proxy at the socket ended with %v", err)
		}
		p.up.check(p.t, out.String())
		if p.t.Failed() {
			p.t.Logf("the output of the proxy at the socket:\n%s", out.String())
		}
	})
	// The file is there before the proxy listens. The socket refuses the user of the test, and
	// closes the connection.
	eventually(p.t, "the socket", time.Minute, func() error {
		conn, err := net.Dial("unix", s.path)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return s
}

// connect returns a command of a user whose calls go through the socket.
func (s *socketed) connect(program string, user int, command ...string) *exec.Cmd {
	args := append([]string{"proxy", "--connect", s.path, "--"}, command...)
	cmd := exec.CommandContext(s.t.Context(), program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}}
	cmd.Env, cmd.Dir = []string{"PATH=" + os.Getenv("PATH"), "HOME=/"}, "/"
	return cmd
}

// TestProxyPeers has two agents on one host: two users, each with an identity and a socket
// of its own. Neither uses the socket, the credential or the loopback proxy of the other.
func TestProxyPeers(t *testing.T) {
	t.Parallel() // it mostly waits
	p := startProxied(t)
	first, second := p.startSocket("agent", firstUser), p.startSocket("service", secondUser)
	bin := everyonesBinary(t, p.bin)

	// Each calls as itself.
	for _, s := range []*socketed{first, second} {
		out, errs, err := outputOf(s.connect(bin, s.user, "curl", "-sS", p.url("/api/x")))
		if err != nil {
			t.Fatalf("user %d: %v\n%s%s", s.user, err, out, errs)
		}
		wantAll(t, out, `"authorization":"Bearer ****`)
		p.up.check(t, out+errs)
	}
	if n := len(p.up.secrets); n != 2 {
		t.Errorf("the upstream saw %d credentials, want one of each agent", n)
	}

	// The socket's mode keeps other users out, and so do the peer credentials alone.
	refused := func(name string, s *socketed, user int, want string) {
		t.Helper()
		out, errs, err := outputOf(s.connect(bin, user, "curl", "-sS", p.url("/api/deputy")))
		if err == nil {
			t.Errorf("%s: got %q", name, out)
		}
		wantAll(t, errs, want)
	}
	refused("another user", first, secondUser, "permission denied")
	for _, s := range []*socketed{first, second} {
		if err := os.Chmod(s.path, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	refused("another user at an open socket", first, secondUser, fmt.Sprintf("belongs to user %d, not to user %d", firstUser, secondUser))
	refused("the reverse", second, firstUser, fmt.Sprintf("belongs to user %d", secondUser))
	refused("root", first, 0, fmt.Sprintf("belongs to user %d, not to user 0", firstUser))

	// A second process of the same user, while the first one is alive.
	holder := first.connect(bin, firstUser, "sh", "-c", `curl -sS "$0" >/dev/null; echo ready; echo "$HTTPS_PROXY"; read line`, p.url("/api/held"))
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" || !lines.Scan() {
		t.Fatalf("got %q, %v", lines.Text(), lines.Err())
	}
	refused("another process of the same user", first, firstUser, "belongs to process")

	// The proxy on loopback is for processes with its token.
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(lines.Text())
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = fmt.Fprintf(c, "CONNECT %s:%d HTTP/1.1\r\nHost: x\r\n\r\n", upstreamName, p.up.port)
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 407 ") {
		t.Errorf("without the token: got %q, %v", line, err)
	}
	_ = in.Close()
	var exit *exec.ExitError
	if err := holder.Wait(); err != nil && !errors.As(err, &exit) { // "read" fails at the end of its input
		t.Error(err)
	}
	p.up.mu.Lock()
	defer p.up.mu.Unlock()
	for _, call := range p.up.calls {
		if strings.Contains(call, "deputy") {
			t.Errorf("a refused user reached the upstream: %s", call)
		}
	}
}

// everyonesBinary returns a copy of the product that every user can execute.
func everyonesBinary(t *testing.T, bin string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	text, err := os.ReadFile(bin)
	path := filepath.Join(dir, "broker")
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(path, text, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}
