package inbound

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// The headers in which a proxy can name its client.
const (
	Forwarded     = "Forwarded"       // RFC 7239
	XForwardedFor = "X-Forwarded-For" // a list of addresses
)

// Proxies are the reverse proxies whose word about their clients counts. The zero value
// trusts none.
type Proxies struct {
	Networks []netip.Prefix
	Header   string // Forwarded or XForwardedFor, which the proxies set; "": none is read
}

// Trusts reports whether an address is that of a trusted proxy.
func (p Proxies) Trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// Bounds of a header.
const (
	maxForwarded = 4 << 10 // bytes
	maxHops      = 32
)

// ErrForwarded means that a trusted proxy sent a header that is not valid.
var ErrForwarded = errors.New("the header by which the proxy names its client is not valid")

// Client returns the address of the client of a request. If the peer is a trusted proxy,
// that is the last address in its header that is not a trusted proxy: the addresses
// before it are what that client claims. The address is zero if the proxy does not know
// it.
func (p Proxies) Client(peer netip.Addr, h http.Header) (addr netip.Addr, err error) {
	lines := h.Values(p.Header)
	if p.Header == "" || len(lines) == 0 || !p.Trusts(peer) {
		return peer, nil
	}
	if size := len(strings.Join(lines, ",")); size > maxForwarded {
		return netip.Addr{}, ErrForwarded
	}
	hops := lastElements
	if p.Header == Forwarded {
		hops = forElements
	}
	nodes, err := hops(lines)
	if err != nil || len(nodes) > maxHops {
		return netip.Addr{}, ErrForwarded
	}
	for _, node := range slices.Backward(nodes) {
		if addr, err = parseNode(node); err != nil || !p.Trusts(addr) {
			return addr, err
		}
	}
	return addr, nil // the first proxy itself called
}

// lastElements returns the last elements of X-Forwarded-For. Clients can begin the list
// with anything, so elements that cannot matter are neither parsed nor counted.
func lastElements(lines []string) (nodes []string, err error) {
	nodes = strings.Split(strings.Join(lines, ","), ",")
	nodes = nodes[max(0, len(nodes)-maxHops):]
	for i, node := range nodes {
		nodes[i] = strings.Trim(node, " \t")
	}
	return nodes, nil
}

// forElements returns the "for" parameter of each element of Forwarded; "unknown" if it
// has none. Every line is parsed from its start, because a quoted string may contain
// commas, and is refused as a whole if it is not well-formed: an unbalanced quotation
// mark of a client must not hide what the proxy appended.
func forElements(lines []string) (nodes []string, err error) {
	for _, line := range lines {
		for rest, more := line, true; more; {
			var node string
			if node, rest, more, err = forElement(rest); err != nil {
				return nil, err
			}
			nodes = append(nodes, node)
		}
	}
	return nodes, nil
}

// forElement parses forwarded-element (RFC 7239, section 4): pairs with semicolons
// between them. more reports whether a comma and another element follow.
func forElement(text string) (node, rest string, more bool, err error) {
	node = "unknown"
	for seen := []string{}; ; {
		name, after, ok := strings.Cut(strings.TrimLeft(text, " \t"), "=")
		name = strings.ToLower(name)
		if !ok || !isToken(name) || slices.Contains(seen, name) {
			return "", "", false, ErrForwarded
		}
		seen = append(seen, name)
		value, after, err := pairValue(after)
		if err != nil {
			return "", "", false, err
		}
		if name == "for" {
			node = value
		}
		after = strings.TrimLeft(after, " \t")
		switch {
		case after == "":
			return node, "", false, nil
		case after[0] == ',':
			return node, after[1:], true, nil
		case after[0] != ';':
			return "", "", false, ErrForwarded
		}
		text = after[1:]
	}
}

// pairValue parses a token or a quoted string (RFC 9110, sections 5.6.2 and 5.6.4).
func pairValue(text string) (value, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		end := strings.IndexAny(text, ",; \t")
		if end < 0 {
			end = len(text)
		}
		if !isToken(text[:end]) {
			return "", "", ErrForwarded
		}
		return text[:end], text[end:], nil
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			return b.String(), text[i+1:], nil
		case c == '\\' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		case c < 0x20 && c != '\t' || c == 0x7f || c == '\\':
			return "", "", ErrForwarded
		default:
			b.WriteByte(c)
		}
	}
	return "", "", ErrForwarded
}

func isToken(text string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return text != "" && strings.Trim(text, "!#$%&'*+-.^_`|~0123456789"+letters+strings.ToUpper(letters)) == ""
}

// parseNode parses a node (RFC 7239, section 6): an address, an IPv6 address in
// brackets, each with or without a port, "unknown", or a name that begins with an
// underscore. X-Forwarded-For also has IPv6 addresses without brackets. The address is
// zero if the node has none.
func parseNode(node string) (netip.Addr, error) {
	if strings.EqualFold(node, "unknown") || strings.HasPrefix(node, "_") && isToken(node) {
		return netip.Addr{}, nil
	}
	host, port := node, ""
	if strings.HasPrefix(node, "[") {
		var ok bool
		host, port, ok = strings.Cut(node[1:], "]")
		if !ok || !strings.Contains(host, ":") {
			return netip.Addr{}, ErrForwarded
		}
	} else if strings.Count(node, ":") == 1 {
		at := strings.IndexByte(node, ':')
		host, port = node[:at], node[at:]
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Zone() != "" || port != "" && !isNodePort(port) {
		return netip.Addr{}, ErrForwarded
	}
	return addr.Unmap(), nil
}

// isNodePort reports whether text is a colon and a port or an obfuscated one.
func isNodePort(text string) bool {
	name, ok := strings.CutPrefix(text, ":")
	if strings.HasPrefix(name, "_") {
		return ok && isToken(name)
	}
	_, isPort := parsePort(name)
	return ok && isPort
}
