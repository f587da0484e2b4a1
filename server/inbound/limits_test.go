package inbound

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// accepted opens n connections and accepts them.
func accepted(t *testing.T, l *Listener, n int) (clients, servers []net.Conn) {
	t.Helper()
	for range n {
		clients = append(clients, dial(t, l, ""))
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, c)
	}
	return clients, servers
}

func isClosed(c net.Conn) bool {
	_, err := c.Read(make([]byte, 1))
	return err != nil
}

func TestLimitOfOneAddress(t *testing.T) {
	t.Parallel()
	l, refused := listen(t, Config{Limits: NewLimits(10, 2)})
	_, servers := accepted(t, l, 2)
	third := dial(t, l, "")
	next := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		next <- c
	}()
	if !isClosed(third) {
		t.Error("the third connection of an address is open")
	}
	_ = servers[0].Close()
	_ = servers[0].Close() // counts once
	fourth := dial(t, l, "x")
	if c := <-next; c.RemoteAddr().String() != fourth.LocalAddr().String() || l.Limits().Open() != 2 {
		t.Errorf("after one has closed: got a connection of %s and %d open, want 2", c.RemoteAddr(), l.Limits().Open())
	}
	if refused.of(CauseAddress) != 1 || refused.of(CauseTotal) != 0 {
		t.Errorf("got %d refused", refused.of(CauseAddress))
	}
}

// A trusted proxy brings the connections of many clients.
func TestProxiesHaveNoLimitOfTheirOwn(t *testing.T) {
	t.Parallel()
	l, _ := listen(t, Config{Limits: NewLimits(10, 2), Proxies: Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}})
	if accepted(t, l, 5); l.Limits().Open() != 5 {
		t.Errorf("got %d open, want 5", l.Limits().Open())
	}
}

// At the limit, a new connection takes the place of an idle one, or of one that has sent
// no request. Connections with running calls stay.
func TestTotalLimitShedsIdleConnections(t *testing.T) {
	t.Parallel()
	limits := NewLimits(3, 0)
	l, refused := listen(t, Config{Limits: limits})
	clients, servers := accepted(t, l, 3)
	limits.State(servers[0], http.StateActive)
	limits.State(servers[1], http.StateActive)
	limits.State(servers[1], http.StateIdle)

	_, fourth := accepted(t, l, 1)
	if !isClosed(clients[1]) {
		t.Error("the idle connection is open")
	}
	limits.State(servers[1], http.StateActive) // http.Server reports it late
	_, fifth := accepted(t, l, 1)
	if !isClosed(clients[2]) {
		t.Error("the silent connection is open")
	}
	for _, c := range []net.Conn{fourth[0], fifth[0]} {
		limits.State(c, http.StateActive)
	}
	sixth := dial(t, l, "")
	go func() { _, _ = l.Accept() }()
	if !isClosed(sixth) {
		t.Error("a connection above the limit is open")
	}
	if limits.Open() != 3 || refused.of(CauseTotal) != 1 {
		t.Errorf("got %d open and %d refused, want 3 and one for the total", limits.Open(), refused.of(CauseTotal))
	}
}

// While a listener drains and closes, every connection that a client has opened is
// accepted: the others are refused, and none is reset.
func TestDrainLosesNoConnection(t *testing.T) {
	t.Parallel()
	const rounds, clients, first = 10, 4, 20
	var refused, answered atomic.Int64
	var all sync.WaitGroup
	for range rounds {
		l, _ := listen(t, Config{})
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
		begun := make(chan struct{}, clients*first)
		for range clients {
			all.Go(func() {
				for i := 0; ; i++ {
					switch err := echo(l.Addr().String()); {
					case errors.Is(err, syscall.ECONNREFUSED):
						refused.Add(1)
						return
					case err != nil:
						t.Errorf("got %v, want an answer or a refused connection", err)
						return
					}
					if answered.Add(1); i < first {
						begun <- struct{}{}
					}
				}
			})
		}
		all.Go(func() {
			for range clients * first {
				<-begun
			}
			if err := l.Drain(t.Context()); err != nil {
				t.Error(err)
			}
			_ = l.Close()
		})
	}
	all.Wait()
	if answered.Load() < rounds*clients*first || refused.Load() != rounds*clients {
		t.Errorf("got %d answers and %d refused connections, want at least %d and %d", answered.Load(), refused.Load(), rounds*clients*first, rounds*clients)
	}
}

func echo(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "x"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}
