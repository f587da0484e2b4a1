package inbound

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The PROXY protocol, versions 1 and 2 (HAProxy, doc/proxy-protocol.txt, revision of
// 2020/03/05).

const (
	maxV1     = 107 // bytes of a header, with CR LF (section 2.1)
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	maxV2     = 16 + 2048 // with extensions (TLVs)
)

var (
	errProxyHeader = errors.New("the PROXY header is not valid")
	errProxyShort  = errors.New("the PROXY header is incomplete")
)

// A proxyHeader is what a proxy says about a connection.
type proxyHeader struct {
	local  bool           // the proxy's own connection, such as a health check
	source netip.AddrPort // the client; zero: unknown
	tls    bool           // the proxy says that the client's TLS connection ends at the proxy
}

// readProxyHeader reads the header with which the proxy begins the connection, and
// sets the client's address.
func (c *Conn) readProxyHeader(within time.Duration) error {
	if err := c.Conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	buf := make([]byte, 0, 256)
	for {
		h, size, err := parseProxyHeader(buf)
		if err == nil {
			c.early = buf[size:]
			if !h.local {
				c.remote, c.endsTLS = h.addr(), h.tls
			}
			return c.Conn.SetReadDeadline(time.Time{})
		}
		if !errors.Is(err, errProxyShort) {
			return err
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, 4*cap(buf)), buf...)
		}
		n, err := c.Conn.Read(buf[len(buf):cap(buf)])
		if n == 0 && err != nil {
			return err
		}
		buf = buf[:len(buf)+n]
	}
}

// addr returns the client's address. Without one, no limit or policy may take the
// proxy for the client.
func (h proxyHeader) addr() net.Addr {
	if !h.source.IsValid() {
		return &net.UnixAddr{Name: "unknown", Net: "unknown"}
	}
	return net.TCPAddrFromAddrPort(h.source)
}

// parseProxyHeader parses the header at the start of b and returns its size. It
// returns errProxyShort if more bytes are needed; a header has at most maxV2 bytes.
func parseProxyHeader(b []byte) (h proxyHeader, size int, err error) {
	if len(b) >= len(signature) && string(b[:len(signature)]) == signature {
		return parseV2(b)
	}
	if bytes.HasPrefix([]byte(signature), b) {
		return h, 0, errProxyShort
	}
	end := bytes.IndexByte(b[:min(len(b), maxV1)], '\n')
	switch {
	case !bytes.HasPrefix([]byte("PROXY "), b[:min(len(b), 6)]):
		return h, 0, errProxyHeader
	case end < 0 && len(b) < maxV1:
		return h, 0, errProxyShort
	case end < 0 || b[end-1] != '\r':
		return h, 0, errProxyHeader
	}
	h, err = parseV1(string(b[:end-1]))
	return h, end + 1, err
}

// parseV1 parses the line of version 1, such as "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443".
func parseV1(line string) (h proxyHeader, err error) {
	fields := strings.Split(line, " ")
	if fields[1] == "UNKNOWN" { // receivers ignore the rest
		return proxyHeader{}, nil
	}
	if len(fields) != 6 {
		return h, errProxyHeader
	}
	var ends [2]netip.AddrPort // source and destination
	for i := range ends {
		addr, err := netip.ParseAddr(fields[2+i])
		port, ok := parsePort(fields[4+i])
		if err != nil || !ok || addr.Zone() != "" || fields[1] != "TCP4" && fields[1] != "TCP6" || addr.Is4() != (fields[1] == "TCP4") {
			return h, errProxyHeader
		}
		ends[i] = netip.AddrPortFrom(addr.Unmap(), port)
	}
	return proxyHeader{source: ends[0]}, nil
}

// parsePort parses a decimal port without leading zeros.
func parsePort(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil && strconv.FormatUint(n, 10) == text
}

// parseV2 parses version 2 (section 2.2): signature, version and command, family and
// protocol, length, addresses.
func parseV2(b []byte) (h proxyHeader, size int, err error) {
	if len(b) < 16 {
		return h, 0, errProxyShort
	}
	version, command, family := b[12]>>4, b[12]&0xf, b[13]
	size = 16 + int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case version != 2 || command > 1 || size > maxV2:
		return h, 0, errProxyHeader
	case len(b) < size:
		return h, 0, errProxyShort
	case command == 0: // LOCAL: receivers ignore the addresses
		return proxyHeader{local: true}, size, nil
	}
	bytesOf := map[byte]int{0x11: 4, 0x21: 16}[family] // TCP over IPv4, and over IPv6
	switch {
	case family == 0: // unspecified; a proxy may send anything after it
		h.tls, _ = clientTLS(b[16:size])
		return h, size, nil
	case bytesOf == 0 || size < 16+2*bytesOf+4:
		return h, 0, errProxyHeader
	}
	if h.tls, err = clientTLS(b[16+2*bytesOf+4 : size]); err != nil {
		return proxyHeader{}, 0, err
	}
	addr, _ := netip.AddrFromSlice(b[16 : 16+bytesOf])
	port := binary.BigEndian.Uint16(b[16+2*bytesOf:])
	h.source = netip.AddrPortFrom(addr.Unmap(), port)
	return h, size, nil
}

// clientTLS reports whether the extension PP2_TYPE_SSL says that the client connected to
// the proxy by TLS (section 2.2.6). Other extensions are ignored.
func clientTLS(extensions []byte) (yes bool, err error) {
	const typeSSL, clientSSL = 0x20, 0x01
	for b := extensions; len(b) > 0; {
		if len(b) < 3 {
			return false, errProxyHeader
		}
		size := 3 + int(binary.BigEndian.Uint16(b[1:]))
		switch {
		case len(b) < size:
			return false, errProxyHeader
		case b[0] == typeSSL && size < 3+5: // flags, and the result of the verification
			return false, errProxyHeader
		case b[0] == typeSSL && b[3]&clientSSL != 0:
			yes = true
		}
		b = b[size:]
	}
	return yes, nil
}
