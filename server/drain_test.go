package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"accessbroker.internal/server/inbound"
)

// A keeper is an HTTP/1.1 client that keeps its connection until the server wants it
// closed. Unlike http.Client, it never sends a request again by itself.
type keeper struct {
	address string
	conn    net.Conn
	read    *bufio.Reader
}

// get makes a call and returns its answer.
func (k *keeper) get(path string) (*http.Response, error) {
	if k.conn == nil {
		c, err := net.Dial("tcp", k.address)
		if err != nil {
			return nil, err
		}
		k.conn, k.read = c, bufio.NewReader(c)
	}
	if _, err := io.WriteString(k.conn, "GET "+path+" HTTP/1.1\r\nHost: "+k.address+"\r\nAuthorization: Bearer "+agent+"\r\n\r\n"); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(k.read, nil)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return nil, err
	}
	if resp.Close {
		k.close()
	}
	return resp, nil
}

func (k *keeper) close() {
	if k.conn != nil {
		_ = k.conn.Close()
	}
	k.conn = nil
}

// Clients that keep their connections and retry when they are refused get an answer to
// every call, however often the broker stops and starts.
func TestStoppingLosesNoAnswer(t *testing.T) {
	t.Parallel()
	const stops, clients, first = 3, 16, 20
	w := newQuietWorld(t, func(cfg *Config) { cfg.DrainDelay, cfg.CallsPerSecond = 3*time.Second, 1e9 }) // long enough for a call of each client on a busy machine
	l, err := inbound.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	var round, answered, refused, closed atomic.Int64
	begun := make(chan struct{}, clients) // a client has got some answers in this round
	calling, end := context.WithCancel(t.Context())
	defer end()
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			defer end() // after a failure, the others need not go on
			k := &keeper{address: address}
			defer k.close()
			for now, got := int64(0), 0; calling.Err() == nil; {
				if r := round.Load(); r != now {
					now, got = r, 0
				}
				resp, err := k.get("/v1/whoami")
				switch {
				case errors.Is(err, syscall.ECONNREFUSED):
					refused.Add(1)
					time.Sleep(time.Millisecond)
					continue
				case err != nil:
					t.Errorf("an answer is lost: %v", err)
					return
				case resp.StatusCode != http.StatusOK:
					t.Errorf("got %s, want 200", resp.Status)
					return
				case resp.Close:
					closed.Add(1)
				}
				answered.Add(1)
				if got++; got == first && now > 0 {
					begun <- struct{}{} // never blocks
				}
			}
		})
	}
	for range stops {
		round.Add(1)
		s, err := New(w.cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, inbound.New(l, inbound.Config{}), s.Handler(API), nil) }()
		for range clients {
			select {
			case <-begun:
			case <-calling.Done():
			}
		}
		stop()
		if err := <-served; err != nil {
			t.Fatal(err)
		}
		for l = nil; l == nil; {
			if l, err = inbound.Listen("tcp", address); err != nil && !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatal(err)
			}
		}
	}
	end()
	_ = l.Close() // refuses the clients that still connect
	all.Wait()
	if answered.Load() < stops*clients*first || refused.Load() == 0 || closed.Load() < stops*clients {
		t.Errorf("got %d answers, %d of them the last of their connection, and %d refused connections", answered.Load(), closed.Load(), refused.Load())
	}
}

// During a drain, an answer asks its client to leave the connection, also if the call
// began before.
func TestDrainClosesConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	k := &keeper{address: w.url[len("http://"):]}
	defer k.close()
	for _, path := range []string{"/v1/whoami", "/nope", "/ui/"} {
		if resp, err := k.get(path); err != nil || resp.Close {
			t.Fatalf("%s before: got %v, %v", path, resp, err)
		}
	}
	w.Drain()
	for _, path := range []string{"/v1/whoami", "/nope", "/ui/"} {
		if resp, err := k.get(path); err != nil || !resp.Close {
			t.Errorf("%s: got %+v, %v; want Connection: close", path, resp, err)
		}
	}
	begun := httptest.NewRecorder() // an answer of a call that began before
	out := &writer{ResponseWriter: begun, draining: w.draining}
	if _, err := out.Write(nil); err != nil || begun.Header().Get("Connection") != "close" {
		t.Errorf("got %v, %v; want Connection: close", begun.Header(), err)
	}
}

// Over HTTP/2, the client gets GOAWAY and opens another connection.
func TestDrainSendsGoAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	server := httptest.NewUnstartedServer(nil)
	server.Config = w.HTTPServer(w.Handler(API), nil)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	reused := func() (again bool) {
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { again = i.Reused }})
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := server.Client().Do(r)
		if err != nil || resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
			t.Fatalf("got %v, %v", resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return again
	}
	if reused() || !reused() {
		t.Fatal("before the drain, the client did not keep its connection")
	}
	w.Drain()
	for reused() { // the answer may overtake GOAWAY
	}
}
