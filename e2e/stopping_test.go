package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
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

// TestHalfSentBodies opens 400 connections with 125 half-sent bodies each. The broker
// needs a bounded amount of memory for them.
func TestHalfSentBodies(t *testing.T) {
	t.Parallel()                                     // it mostly waits
	const conns, streams, most = 400, 125, 400 << 10 // KiB
	s := startSPIRE(t, "acme.test")
	w := startBroker(t, s)
	for range conns {
		if err := halfSend(t, w.listen, streams); err != nil {
			t.Fatal(err)
		}
	}
	const waiting = (32 << 20) / (16 << 10) // bodies that the default budget has room for
	eventually(t, "the end of the other bodies", time.Minute, func() error {
		if n := strings.Count(w.broker.out.String(), `"code":"slow_down"`); n < conns*streams-waiting {
			return fmt.Errorf("%d of %d bodies were refused", n, conns*streams)
		}
		return nil
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.broker.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(string(status))
	if found == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	if peak, err := strconv.Atoi(found[1]); err != nil || peak > most {
		t.Errorf("got %d KiB at the peak (%v), want at most %d KiB", peak, err, most)
	}
	if err := w.ready(); err != nil {
		t.Errorf("the broker does not answer others: %v", err)
	}
}

// halfSend opens a connection with half-sent bodies, which stays open until the test
// ends. It returns when the broker has read all of them.
func halfSend(t testing.TB, address string, streams int) error {
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return err
	}
	f := http2.NewFramer(conn, bufio.NewReader(conn))
	if err := f.WriteSettings(); err != nil {
		return err
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for i := range streams {
		block.Reset()
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", address}, {":path", "/oauth2/token"}, {"content-type", "application/x-www-form-urlencoded"}, {"content-length", "60000"}} {
			_ = encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := uint32(2*i + 1)
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
			return err
		}
		if err := f.WriteData(id, false, []byte("grant_type="+strings.Repeat("x", 400))); err != nil {
			return err
		}
	}
	if err := f.WritePing(false, [8]byte{}); err != nil {
		return err
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return err
		}
		if ping, ok := frame.(*http2.PingFrame); ok && ping.IsAck() {
			go func() { _, _ = io.Copy(io.Discard, conn) }() // until the test ends
			return nil
		}
	}
}
