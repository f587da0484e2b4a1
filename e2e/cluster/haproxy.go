package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"accessbroker.internal/e2e/servers"
)

// An HAProxy balances the load of replicas. It passes TLS on, adds the client's address
// with the PROXY protocol, and leaves out replicas that are not ready.
type HAProxy struct {
	Port int

	dir     string
	process *Process
}

const haproxyFile = `defaults
    timeout connect 5s
    timeout client 120s
    timeout server 120s

frontend broker
    mode tcp
    bind 127.0.0.1:%d
    default_backend replicas

backend replicas
    mode tcp
    balance leastconn
    option httpchk GET /readyz
    option redispatch
    default-server check check-ssl check-send-proxy verify none inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions
`

// NewHAProxy starts an HAProxy in a new folder under dir, on a port, in front of listeners
// that expect the PROXY protocol.
func NewHAProxy(ctx context.Context, dir string, port int, targets []string) (*HAProxy, error) {
	h := &HAProxy{Port: port, dir: filepath.Join(dir, "haproxy")}
	if err := os.Mkdir(h.dir, 0o700); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(haproxyFile, port)
	for i, target := range targets {
		text += fmt.Sprintf("    server broker%d %s send-proxy-v2\n", i+1, target)
	}
	if err := os.WriteFile(h.config(), []byte(text), 0o600); err != nil {
		return nil, err
	}
	return h, h.Start(ctx)
}

func (h *HAProxy) config() string { return filepath.Join(h.dir, "haproxy.cfg") }

// Start starts HAProxy again with the same port.
func (h *HAProxy) Start(ctx context.Context) error {
	path, err := servers.Command("haproxy")
	if err != nil {
		return err
	}
	if h.process, err = Launch(Command{Name: "haproxy", Path: path, Args: []string{"-db", "-f", h.config()}, Log: filepath.Join(h.dir, "log")}); err != nil {
		return err
	}
	return Await(ctx, "the start of HAProxy", time.Minute, func() error {
		if h.process.Ended() {
			return fmt.Errorf("%w:\n%s", errEnded, h.process.Out)
		}
		return listens(fmt.Sprintf("127.0.0.1:%d", h.Port))
	})
}

// Process returns the running process.
func (h *HAProxy) Process() *Process { return h.process }

// Stop ends HAProxy and its connections.
func (h *HAProxy) Stop() { h.process.Stop() }
