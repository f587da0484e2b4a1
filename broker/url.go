package broker

import (
	"errors"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// Errors of NormalURL complete a sentence that begins with the URL.
var (
	errNotURL  = errors.New("is not an http or https URL with a host")
	errURLUser = errors.New("contains a user: omit it")
	errURLTail = errors.New("has a query or a fragment: omit it")
	errURLHost = errors.New("has a host that browsers write in another way: use lower-case ASCII labels (xn--… for others) without a dot at the end, or an IP address in its usual form")
	errURLPort = errors.New("has a port that is not 1 to 65535")
	errURLPath = errors.New("has a path that clients write in another way: omit empty, relative and percent-encoded segments")
)

// NormalURL parses a URL of the broker and returns its one spelling: scheme and host in
// lower case, without the scheme's default port and without a slash at the end (RFC
// 3986, sections 6.2.2 and 6.2.3). Browsers write origins in this way, and clients
// compare issuers as texts. It refuses a URL that has no such spelling.
func NormalURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Opaque != "":
		return nil, errNotURL
	case u.User != nil:
		return nil, errURLUser
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#"):
		return nil, errURLTail
	}
	host, ok := normalHost(u.Hostname())
	if !ok {
		return nil, errURLHost
	}
	port, ok := normalPort(u)
	if !ok {
		return nil, errURLPort
	}
	clean := strings.TrimSuffix(u.Path, "/")
	if clean != "" && (path.Clean(clean) != clean || strings.HasSuffix(clean, "/") || u.EscapedPath() != u.Path || strings.Contains(text, "%")) {
		return nil, errURLPath
	}
	return &url.URL{Scheme: u.Scheme, Host: host + port, Path: clean}, nil
}

// Origin returns the origin of a normal URL (RFC 6454, section 6.2).
func Origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// normalHost returns a host in lower case, with brackets around an IPv6 address.
func normalHost(host string) (string, bool) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Is6() { // browsers write IPv4-mapped addresses without dots
			return "[" + addr.String() + "]", addr.Zone() == "" && !addr.Is4In6()
		}
		return addr.String(), true
	}
	host = strings.ToLower(host)
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" || label[0] == '-' || label[len(label)-1] == '-' {
			return "", false
		}
	}
	// Browsers read a name whose last label is a number as an IPv4 address (WHATWG URL,
	// section 3.5), such as 127.1 and 0x7f.0.0.1.
	last := labels[len(labels)-1]
	_, err := strconv.ParseUint(last, 0, 64)
	return host, len(host) <= 253 && err != nil && strings.Trim(last, "0123456789") != ""
}

// normalPort returns the port with its colon, or "" for the default port.
func normalPort(u *url.URL) (string, bool) {
	if u.Port() == "" {
		return "", true
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || n == 0 {
		return "", false
	}
	if u.Scheme == "https" && n == 443 || u.Scheme == "http" && n == 80 {
		return "", true
	}
	return ":" + strconv.FormatUint(n, 10), true
}
