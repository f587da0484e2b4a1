package pictures

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// A world is a running "broker dev".
type world struct {
	broker string // the program
	dir    string
	url    string // of the broker
	pages  string // the URL of the pages
}

// inWorld runs "broker dev" while f runs.
func inWorld(ctx context.Context, broker string, f func(*world) error) (err error) {
	dir, err := os.MkdirTemp("", "pictures-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	w := &world{broker, dir, "https://127.0.0.1:" + ports[0], "http://localhost:" + ports[1]}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd := exec.CommandContext(ctx, broker, "dev", "--dir", dir, "--listen", "127.0.0.1:"+ports[0], "--pages", "127.0.0.1:"+ports[1], "--login", "127.0.0.1:"+ports[2], "--tickets", "127.0.0.1:"+ports[3])
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); stop() }()
	defer func() {
		stop()
		if <-ended; err != nil {
			err = fmt.Errorf("%w\nbroker dev: %s", err, said.String())
		}
	}()
	if err := w.await(ctx); err != nil {
		return err
	}
	return f(w)
}

// freePorts returns ports of loopback that are free at the moment.
func freePorts(n int) (ports []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }() // after the loop, so that no two are the same
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// await waits until the pages answer.
func (w *world) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.pages+"/ui/login?out", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(r); err == nil {
			return resp.Body.Close()
		}
		select {
		case <-ctx.Done():
			return errors.New("the pages of broker dev do not answer")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// file files a request and returns its ID. Policy may deny the request.
func (w *world) file(ctx context.Context, r request) (id string, err error) {
	out, err := w.run(ctx, r, append([]string{"request", "tickets-api", "-o", "json"}, r.args...))
	if id := requestID.Find(out); id != nil {
		return string(id), nil
	}
	return "", fmt.Errorf("filing a request: %v\n%s", err, out)
}

var requestID = regexp.MustCompile(`\breq_[0-9a-v]+`)

// collect collects the credential of an approved request.
func (w *world) collect(ctx context.Context, r request, id string) error {
	if out, err := w.run(ctx, r, []string{"collect", id, "-o", "json"}); err != nil {
		return fmt.Errorf("collecting: %w\n%s", err, out)
	}
	return nil
}

// run runs a command as the caller of a request.
func (w *world) run(ctx context.Context, r request, args []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, w.broker, args...)
	cmd.Env = append(os.Environ(), "BROKER_URL="+w.url, "SPIFFE_ENDPOINT_SOCKET=unix://"+filepath.Join(w.dir, "identities", r.caller+".sock"))
	return cmd.CombinedOutput()
}
