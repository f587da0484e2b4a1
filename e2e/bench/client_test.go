package bench

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// load keeps n clients busy for the duration d.
func (k *kit) load(m *mode, n int, d time.Duration) result {
	k.b.Helper()
	t := m.target
	before, start := t.cpu(k.b), time.Now()
	stop := start.Add(d)
	latencies := make([][]time.Duration, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { latencies[i] = k.client(m, i, n, stop) })
	}
	all.Wait()
	r := k.merge(t, latencies, time.Since(start))
	r.cpu = t.cpu(k.b) - before
	return r
}

// merge returns the result of clients.
func (k *kit) merge(t *target, latencies [][]time.Duration, took time.Duration) result {
	k.b.Helper()
	r := result{took: took}
	for _, list := range latencies {
		r.latencies = append(r.latencies, list...)
	}
	slices.Sort(r.latencies)
	r.tokens = len(r.latencies)
	t.answered += r.tokens
	if r.tokens == 0 {
		k.b.Fatal("no token was answered")
	}
	return r
}

// client requests tokens until stop. It does not use net/http because the load shares
// the machine with the server that it measures.
func (k *kit) client(m *mode, i, clients int, stop time.Time) (latencies []time.Duration) {
	c := &connection{k: k, address: m.target.of(i).address}
	if m.config != nil {
		c.config = m.config(i)
	}
	defer c.close()
	for n := 0; ; n++ {
		start := time.Now()
		request := m.request(i, clients, n)
		if start.After(stop) || request == nil {
			return latencies
		}
		answer, err := c.exchange(request)
		if err == nil && len(answer) < 300 {
			err = fmt.Errorf("an answer of %d bytes holds no token", len(answer))
		}
		if err != nil {
			k.b.Errorf("%s: %v", m.name, err)
			return latencies
		}
		if m.reconnect {
			c.close()
		}
		latencies = append(latencies, time.Since(start))
	}
}

// A connection is that of one client. It is opened when it is needed.
type connection struct {
	k       *kit
	address string
	config  *tls.Config // with the client's certificate; may be nil
	conn    *tls.Conn
	in      *bufio.Reader
}

func (c *connection) exchange(request []byte) ([]byte, error) {
	if c.conn == nil {
		config := &tls.Config{RootCAs: c.k.pool, MinVersion: tls.VersionTLS13}
		if c.config != nil {
			config.Certificates = c.config.Certificates
		}
		conn, err := tls.Dial("tcp", c.address, config)
		if err != nil {
			return nil, err
		}
		c.conn, c.in = conn, bufio.NewReaderSize(conn, 4<<10)
	}
	if _, err := c.conn.Write(request); err != nil {
		return nil, err
	}
	return readAnswer(c.in)
}

// close closes the connection without a TIME-WAIT state, of which thousands of
// connections would use up all ports.
func (c *connection) close() {
	if c.conn == nil {
		return
	}
	if tcp, ok := c.conn.NetConn().(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.conn.Close()
	c.conn = nil
}

// readAnswer returns the body of a successful response.
func readAnswer(in *bufio.Reader) ([]byte, error) {
	status, err := in.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 20")) {
		rest := make([]byte, 600)
		n, _ := in.Read(rest)
		return nil, fmt.Errorf("%s%s", status, rest[:n])
	}
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		if len(line) <= 2 {
			break
		}
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return nil, err
			}
		}
	}
	body := make([]byte, length)
	_, err = io.ReadFull(in, body)
	return body, err
}
