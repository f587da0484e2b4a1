package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A keeper is an HTTP/1.1 client that keeps its connection until the server wants it
// closed, and sends no call twice.
type keeper struct {
	address string
	config  *tls.Config
	conn    net.Conn
	read    *bufio.Reader
}

func (k *keeper) whoami() (status int, err error) {
	if k.conn == nil {
		raw, err := net.DialTimeout("tcp", k.address, 20*time.Second)
		if err != nil {
			return 0, err
		}
		k.conn = tls.Client(raw, k.config)
		k.read = bufio.NewReader(k.conn)
	}
	if _, err := io.WriteString(k.conn, "GET /v1/whoami HTTP/1.1\r\nHost: "+k.address+"\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(k.read, nil)
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	if resp.Close {
		_ = k.conn.Close()
		k.conn = nil
	}
	return resp.StatusCode, nil
}

// TestStopping stops the broker 25 times while 16 clients call it. They keep their
// connections and retry when they are refused. No answer is lost.
func TestStopping(t *testing.T) {
	t.Parallel() // it mostly waits
	const stops, clients, first = 25, 16, 5
	s := startSPIRE(t, "acme.test")
	s.register(t, "/agent/triage", ownBinary(t))
	w := newBroker(t, s)
	w.configure(t, []string{s.domain}, agentsPolicy)
	file, err := os.ReadFile(filepath.Join(w.dir, "broker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, "broker.yaml", fill(t, string(file), "drain: {delay: 0s}", "drain: {delay: 1s}"))
	w.start(t)
	src := source(t, s)
	svid := leaf(t, src)
	cert := tls.Certificate{PrivateKey: svid.PrivateKey}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	config := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}

	var round, answered atomic.Int64
	begun := make(chan struct{}, clients)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			defer end()
			k := &keeper{address: w.listen, config: config}
			for now, got := int64(0), 0; ctx.Err() == nil; {
				if r := round.Load(); r != now {
					now, got = r, 0
				}
				switch status, err := k.whoami(); {
				case errors.Is(err, syscall.ECONNREFUSED):
					time.Sleep(10 * time.Millisecond)
					continue
				case err != nil:
					t.Errorf("an answer is lost in round %d: %v", now, err)
					return
				case status != http.StatusOK:
					t.Errorf("got status %d in round %d", status, now)
					return
				}
				answered.Add(1)
				if got++; got == first && now > 0 {
					begun <- struct{}{} // never blocks
				}
				time.Sleep(time.Millisecond) // leaves the processors to other tests
			}
		})
	}
	for range stops {
		round.Add(1)
		for range clients {
			select {
			case <-begun:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			break
		}
		w.broker.stop()
		w.start(t)
	}
	end()
	all.Wait()
	if answered.Load() < stops*clients*first {
		t.Errorf("got %d answers, want at least %d", answered.Load(), stops*clients*first)
	}
}
