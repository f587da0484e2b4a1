package inbound

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

func v2(command, family byte, body string) string {
	b := []byte(signature)
	b = append(b, 0x20|command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return string(b) + body
}

const (
	body4 = "\xc0\x00\x02\x01\xc0\x00\x02\x02\x12\x67\x01\xbb" // 192.0.2.1:4711 to 192.0.2.2:443
	body6 = "\x20\x01\x0d\xb8\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
		"\x20\x01\x0d\xb8\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02" + "\x12\x67\x01\xbb"
)

var proxyHeaders = []struct {
	name, header string
	want         string // "local", "unknown", an address, or "bad"
}{
	{"TCP4", "PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n", "192.0.2.1:4711"},
	{"TCP6", "PROXY TCP6 2001:db8:2::1 2001:db8:2::2 4711 443\r\n", "[2001:db8:2::1]:4711"},
	{"TCP6 of IPv4", "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 4711 443\r\n", "192.0.2.1:4711"},
	{"UNKNOWN", "PROXY UNKNOWN\r\n", "unknown"},
	{"UNKNOWN with anything", "PROXY UNKNOWN ffff:f...f:ffff 65535 x\r\n", "unknown"},
	{"v2 TCP4", v2(1, 0x11, body4), "192.0.2.1:4711"},
	{"v2 TCP6", v2(1, 0x21, body6), "[2001:db8:2::1]:4711"},
	{"v2 with extensions", v2(1, 0x11, body4+"\x04\x00\x01x"), "192.0.2.1:4711"},
	{"v2 with TLS in the extensions", v2(1, 0x11, body4+"\x04\x00\x01x\x20\x00\x05\x01\x00\x00\x00\x00"), "192.0.2.1:4711 tls"},
	{"v2 with TLS and its version", v2(1, 0x21, body6+"\x20\x00\x0f\x07\x00\x00\x00\x01\x21\x00\x07TLSv1.3"), "[2001:db8:2::1]:4711 tls"},
	{"v2 without TLS in the extensions", v2(1, 0x11, body4+"\x20\x00\x05\x00\x00\x00\x00\x01"), "192.0.2.1:4711"},
	{"v2 with a cut extension", v2(1, 0x11, body4+"\x20\x00\x05\x01\x00"), "bad"},
	{"v2 with a cut extension header", v2(1, 0x11, body4+"\x20\x00"), "bad"},
	{"v2 with an empty TLS extension", v2(1, 0x11, body4+"\x20\x00\x00"), "bad"},
	{"v2 local", v2(0, 0, ""), "local"},
	{"v2 local with an address", v2(0, 0x11, body4), "local"},
	{"v2 unspecified", v2(1, 0, ""), "unknown"},
	{"v2 unspecified with anything", v2(1, 0, "x"), "unknown"},
	{"v2 unspecified with TLS", v2(1, 0, "\x20\x00\x05\x01\x00\x00\x00\x00"), "unknown tls"},

	{"no header", "GET / HTTP/1.1\r\n", "bad"},
	{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "bad"},
	{"lower case", "proxy TCP4 192.0.2.1 192.0.2.2 4711 443\r\n", "bad"},
	{"two spaces", "PROXY  TCP4 192.0.2.1 192.0.2.2 4711 443\r\n", "bad"},
	{"without CR", "PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\n", "bad"},
	{"family mismatch", "PROXY TCP4 2001:db8::1 2001:db8::2 4711 443\r\n", "bad"},
	{"family mismatch 6", "PROXY TCP6 192.0.2.1 192.0.2.2 4711 443\r\n", "bad"},
	{"UDP", "PROXY UDP4 192.0.2.1 192.0.2.2 4711 443\r\n", "bad"},
	{"port too large", "PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n", "bad"},
	{"port with zeros", "PROXY TCP4 192.0.2.1 192.0.2.2 04711 443\r\n", "bad"},
	{"port with a sign", "PROXY TCP4 192.0.2.1 192.0.2.2 +4711 443\r\n", "bad"},
	{"address with zeros", "PROXY TCP4 192.0.02.1 192.0.2.2 4711 443\r\n", "bad"},
	{"zone", "PROXY TCP6 fe80::1%lo fe80::2 4711 443\r\n", "bad"},
	{"name", "PROXY TCP4 client 192.0.2.2 4711 443\r\n", "bad"},
	{"too few fields", "PROXY TCP4 192.0.2.1 4711\r\n", "bad"},
	{"only a word", "PROXY \r\n", "bad"},
	{"trailing space", "PROXY TCP4 192.0.2.1 192.0.2.2 4711 443 \r\n", "bad"},
	{"too long", "PROXY UNKNOWN " + strings.Repeat("x", 107) + "\r\n", "bad"},
	{"v2 of version 3", strings.Replace(v2(1, 0x11, body4), "\x21\x11", "\x31\x11", 1), "bad"},
	{"v2 unknown command", v2(2, 0x11, body4), "bad"},
	{"v2 UDP", v2(1, 0x12, body4), "bad"},
	{"v2 Unix", v2(1, 0x31, strings.Repeat("\x00", 216)), "bad"},
	{"v2 too short for its family", v2(1, 0x11, body4[:11]), "bad"},
	{"v2 too long", v2(1, 0x11, body4+strings.Repeat("x", 2048)), "bad"},
}

func TestProxyHeaders(t *testing.T) {
	t.Parallel()
	for _, test := range proxyHeaders {
		t.Run(test.name, func(t *testing.T) {
			h, size, err := parseProxyHeader([]byte(test.header + "rest"))
			got := h.source.String()
			switch {
			case err != nil:
				got = "bad"
			case h.local:
				got = "local"
			case !h.source.IsValid():
				got = "unknown"
			}
			if h.tls {
				got += " tls"
			}
			if got != test.want || errors.Is(err, errProxyShort) || err == nil && size != len(test.header) {
				t.Errorf("got %s, %d bytes, %v; want %s, %d bytes", got, size, err, test.want, len(test.header))
			}
			if test.want == "bad" {
				return
			}
			for i := range test.header { // in pieces
				if _, _, err := parseProxyHeader([]byte(test.header[:i])); !errors.Is(err, errProxyShort) {
					t.Fatalf("the first %d bytes: got %v, want %v", i, err, errProxyShort)
				}
			}
		})
	}
}

// The parser neither panics nor waits for more than a header can have.
func FuzzProxyHeader(f *testing.F) {
	for _, test := range proxyHeaders {
		f.Add([]byte(test.header))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, size, err := parseProxyHeader(b)
		switch {
		case errors.Is(err, errProxyShort) && len(b) >= maxV2:
			t.Errorf("%d bytes are not enough", len(b))
		case err == nil && (size > len(b) || size > maxV2):
			t.Errorf("got %d bytes of %d", size, len(b))
		case err == nil && h.source.IsValid() && h.local:
			t.Error("the proxy's own connection has a client")
		}
	})
}

// refusals counts refused connections by cause.
type refusals struct {
	mu     sync.Mutex
	counts map[string]int // guarded by mu
}

func (r *refusals) add(cause string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[cause]++
}

func (r *refusals) of(cause string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[cause]
}

// listen returns a listener on loopback that ends with the test, and counts refusals.
func listen(t *testing.T, cfg Config) (*Listener, *refusals) {
	t.Helper()
	inner, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := &refusals{counts: map[string]int{}}
	cfg.OnRefuse = refused.add
	l := New(inner, cfg)
	t.Cleanup(func() { _ = l.Close() })
	return l, refused
}

func dial(t *testing.T, l net.Listener, first string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, first); err != nil {
		t.Fatal(err)
	}
	return c
}

// Behind a proxy, a connection has the client's address, and what follows the header
// is the client's.
func TestListenerReadsProxyHeaders(t *testing.T) {
	t.Parallel()
	l, refused := listen(t, Config{ProxyProtocol: true, Proxies: Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}})
	for header, want := range map[string]string{
		proxyHeaders[0].header: "192.0.2.1:4711", v2(1, 0x21, body6+"\x04\x00\x00"): "[2001:db8:2::1]:4711", "PROXY UNKNOWN\r\n": "unknown",
	} {
		first := dial(t, l, header[:7])
		bad := dial(t, l, "GET / HTTP/1.1\r\n\r\n")
		if _, err := io.WriteString(first, header[7:]+"hello"); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, []byte("hello")) || c.RemoteAddr().String() != want {
			t.Errorf("%q: got %q from %s, %v; want it from %s", header, got, c.RemoteAddr(), err, want)
		}
		_ = c.Close()
		if _, err := bad.Read(got); err == nil {
			t.Error("a connection without a header got an answer")
		}
	}
	local := dial(t, l, v2(0, 0, ""))
	c, err := l.Accept()
	if err != nil || c.RemoteAddr().String() != local.LocalAddr().String() {
		t.Errorf("a health check: got %v, %v; want the peer's own address", c.RemoteAddr(), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: got %v, want %v", err, net.ErrClosed)
	}
	if refused.of(CauseProxy) != 3 {
		t.Errorf("got %d refused, want 3 for the header", refused.of(CauseProxy))
	}
}

// On a listener with the PROXY protocol, a peer that is not a trusted proxy gets
// nothing: it could claim any address.
func TestListenerRefusesHeadersOfOthers(t *testing.T) {
	t.Parallel()
	l, _ := listen(t, Config{ProxyProtocol: true, Proxies: Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}})
	go func() { _, _ = l.Accept() }()
	c := dial(t, l, proxyHeaders[0].header)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("got an answer")
	}
}

// Connections whose client the proxy does not know, such as its health checks, leave
// room when they close.
func TestUnknownClientsLeaveRoom(t *testing.T) {
	t.Parallel()
	l, _ := listen(t, Config{ProxyProtocol: true, Limits: NewLimits(10, 1), Proxies: Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}})
	l.cfg.OnRefuse = func(cause string) {
		t.Errorf("a connection was refused: %s", cause)
		_ = l.Close()
	}
	for range 3 {
		dial(t, l, "PROXY UNKNOWN\r\n")
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if l.Limits().Open() != 0 || len(l.Limits().networks) != 0 {
		t.Errorf("got %d open, networks %v, want none", l.Limits().Open(), l.Limits().networks)
	}
}
