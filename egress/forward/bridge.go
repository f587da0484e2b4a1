package forward

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"accessbroker.internal/egress"
)

// A Bridge makes a proxy behind a Unix socket reachable for programs that know only
// proxies on TCP. It admits those that have its token.
type Bridge struct {
	Token string
	Dial  func() (net.Conn, error) // connects to the socket
}

// Serve bridges connections until the listener is closed.
func (b *Bridge) Serve(l net.Listener) error {
	var open sync.WaitGroup
	defer open.Wait()
	bounded := newLimited(l, maxConnections)
	for {
		c, err := bounded.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		open.Go(func() {
			defer func() { _ = c.Close() }()
			b.bridge(c)
		})
	}
}

// bridge checks the first call of a connection, and passes on all that follows. The token
// admits the connection, because one process has it.
func (b *Bridge) bridge(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(headerTimeout))
	var seen bytes.Buffer
	r, err := http.ReadRequest(bufio.NewReaderSize(io.TeeReader(io.LimitReader(c, maxHeader), &seen), maxHeader))
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		return
	}
	if !hasToken(r, sha256.Sum256([]byte(User+":"+b.Token))) {
		body, contentType := explain(r, foreign, http.StatusProxyAuthRequired)
		fmt.Fprintf(c, "HTTP/1.1 407 %s\r\nProxy-Authenticate: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", foreign.What, challenge, contentType, len(body), body)
		return
	}
	target, err := b.Dial()
	if err != nil {
		body, contentType := explain(r, gone, http.StatusBadGateway)
		fmt.Fprintf(c, "HTTP/1.1 502 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", gone.What, contentType, len(body), body)
		return
	}
	_ = c.SetDeadline(time.Time{})
	join(&joined{c, io.MultiReader(&seen, c)}, target)
}

// foreign refuses a client that has no token.
var foreign = &egress.Refusal{Code: CodeToken, What: "This proxy belongs to another process", Next: `start the program with "broker proxy -- COMMAND"`}

// gone refuses a call while the proxy behind the socket is away.
var gone = &egress.Refusal{Code: egress.CodeUnreachable, What: "The proxy behind the socket does not answer", Next: `check that "broker proxy --socket" is running`}

// challenge is how clients prove that they belong to the proxy.
const challenge = `Basic realm="Access Broker proxy"`
