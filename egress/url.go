package egress

import (
	"net/netip"
	"strconv"
	"strings"
)

// maxURL bounds a URL in bytes. RFC 9110, section 4.1, recommends support for 8,000.
const maxURL = 16 << 10

// An origin is the scheme, host and port of a URL in canonical form.
type origin struct {
	scheme string // https or http
	host   string // a name in lower case, or an address without brackets
	port   uint16
}

// authority returns the host and the port as a URL has them, without the default port.
func (o origin) authority() string {
	host := o.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if o.port == defaultPort(o.scheme) {
		return host
	}
	return host + ":" + strconv.Itoa(int(o.port))
}

func defaultPort(scheme string) uint16 {
	if scheme == "http" {
		return 80
	}
	return 443
}

const (
	nextURL  = "write the URL as https://host/path?query, without user, fragment, backslashes and control characters"
	nextHost = "write the host as a name in ASCII, or as an address in its usual form"
)

// splitURL splits a URL into its origin, path and query. Parsers of URLs disagree about
// what is unusual, so splitURL refuses it: the host that is checked must be the host that
// is called.
func splitURL(raw string) (o origin, path, query string, err *Refusal) {
	if len(raw) > maxURL {
		return o, "", "", refuse(CodeInvalidURL, "shorten the URL", "The URL is longer than %d bytes", maxURL)
	}
	for i := range len(raw) {
		switch b := raw[i]; {
		case b <= ' ' || b >= 0x7f:
			return o, "", "", refuse(CodeInvalidURL, "percent-encode all characters that are not printable ASCII, and write an international host name in its xn-- form", "The URL contains a space, a control character or a character that is not ASCII")
		case b == '\\':
			return o, "", "", refuse(CodeInvalidURL, nextURL, "The URL contains a backslash")
		case b == '#':
			return o, "", "", refuse(CodeInvalidURL, "remove the fragment; a server never receives it", "The URL has a fragment")
		}
	}
	scheme, rest, ok := strings.Cut(raw, "://")
	o.scheme = strings.ToLower(scheme)
	if !ok || o.scheme != "https" && o.scheme != "http" {
		return o, "", "", refuse(CodeInvalidURL, nextURL, "The URL does not start with https://")
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	if o.host, o.port, err = splitAuthority(rest[:end], defaultPort(o.scheme)); err != nil {
		return o, "", "", err
	}
	path, query, _ = strings.Cut(rest[end:], "?")
	if path == "" {
		path = "/"
	}
	return o, path, query, nil
}

func splitAuthority(text string, port uint16) (string, uint16, *Refusal) {
	if strings.Contains(text, "@") {
		return "", 0, refuse(CodeInvalidURL, "remove everything up to the @; the credential is added for you", "The URL contains a user name")
	}
	host, digits, hasPort := text, "", false
	if bracket := strings.LastIndexByte(text, ']'); bracket >= 0 {
		host, digits = text[:bracket+1], text[bracket+1:]
		if digits, hasPort = strings.CutPrefix(digits, ":"); !hasPort && digits != "" {
			return "", 0, refuse(CodeInvalidURL, nextHost, "The URL has text after the address")
		}
	} else {
		host, digits, hasPort = strings.Cut(text, ":")
	}
	if hasPort {
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != digits {
			return "", 0, refuse(CodeInvalidURL, "write the port as a number from 1 to 65535", "The port of the URL is not a number")
		}
		port = uint16(n)
	}
	host, err := canonicalHost(host)
	return host, port, err
}

// canonicalHost returns a host in the form in which rules have it.
func canonicalHost(host string) (string, *Refusal) {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		a, err := netip.ParseAddr(inner)
		if !ok || err != nil || a.Is4() || a.Zone() != "" {
			return "", refuse(CodeInvalidURL, nextHost, "The URL has brackets without an IPv6 address, or with a zone")
		}
		return a.Unmap().String(), nil
	}
	if isName(host) {
		return strings.ToLower(host), nil
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Is4() {
		return a.String(), nil
	}
	return "", refuse(CodeInvalidURL, nextHost, "The host of the URL is not a name")
}

// isName reports whether a text is a host name (RFC 1123, section 2.1; with underscores,
// which some services have). A name whose last label starts with a digit is an address to
// some parsers: decimal, octal or hexadecimal.
func isName(host string) bool {
	if host == "" || len(host) > 253 {
		return false
	}
	label := ""
	for label = range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if b := label[i]; !isAlphanumeric(b) && b != '-' && b != '_' {
				return false
			}
		}
	}
	return label[0] < '0' || label[0] > '9'
}

func isAlphanumeric(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9'
}
