package server

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// An authority is a host and a port, in the form in which two spellings of the same
// authority are equal (RFC 3986, sections 3.2.2, 6.2.2.1 and 6.2.3).
type authority struct {
	host string // lower case, without brackets and the trailing dot
	port string // decimal; "" in a list of hosts: the port on which a listener was reached
}

// hosts are the authorities by which clients may address the broker. A web page whose
// name resolves to the broker's address (DNS rebinding) sends the page's own name, so
// refusing other names keeps it from reading answers.
type hosts map[authority]bool

// newHosts returns the hosts of some URLs, and more of the form NAME or NAME:PORT. The
// name of a URL also counts with the port of a listener.
func newHosts(urls []*url.URL, more []string) (hosts, error) {
	list := hosts{}
	for _, u := range urls {
		a, ok := parseAuthority(u.Host, defaultPort(u.Scheme == "https"))
		if !ok {
			return nil, fmt.Errorf("the URL %q has no valid host", u)
		}
		list[a], list[authority{host: a.host}] = true, true
	}
	for _, text := range more {
		a, ok := parseAuthority(text, "")
		if !ok {
			return nil, fmt.Errorf("%q is not a host name with or without a port", text)
		}
		if list[a] = true; a.port == "" {
			list[authority{a.host, defaultPort(true)}] = true
		}
	}
	return list, nil
}

func defaultPort(tls bool) string {
	if tls {
		return "443"
	}
	return "80"
}

// parseAuthority parses HOST or HOST:PORT strictly. An omitted or empty port is the
// default one.
func parseAuthority(text, port string) (a authority, ok bool) {
	host, rest := text, ""
	if strings.HasPrefix(text, "[") {
		host, rest, ok = strings.Cut(text[1:], "]")
		addr, err := netip.ParseAddr(host)
		if !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return a, false
		}
		host = addr.String()
	} else if at := strings.IndexByte(text, ':'); at >= 0 {
		host, rest = text[:at], text[at:]
	}
	if rest != "" {
		given, isPort := strings.CutPrefix(rest, ":")
		if n, err := strconv.ParseUint(given, 10, 16); given != "" && (err != nil || strconv.FormatUint(n, 10) != given) || !isPort {
			return a, false
		}
		if given != "" {
			port = given
		}
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return authority{host, port}, isHostName(host)
}

// isHostName reports whether a lower-case host has only the characters of names and
// addresses.
func isHostName(host string) bool {
	return host != "" && len(host) <= 255 && strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789.-_:") == ""
}

// accept reports whether the request addresses the broker: by a listed host, or by the
// address at which the listener was reached. A Host header that differs from
// ":authority" is refused (RFC 9113, section 8.3.1). X-Forwarded-Host is never read.
func (h hosts) accept(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if ok && local.Network() == "unix" {
		return true // the admin socket: no browser can connect to it
	}
	for _, host := range r.Header["Host"] {
		if host != r.Host {
			return false
		}
	}
	a, ok := parseAuthority(r.Host, defaultPort(r.TLS != nil))
	if !ok {
		return false
	}
	at, _ := local.(*net.TCPAddr)
	if at == nil {
		return h[a]
	}
	reached := strconv.Itoa(at.Port)
	ip := at.AddrPort().Addr().Unmap().WithZone("")
	return h[a] || a.port == reached && (h[authority{host: a.host}] || a.host == ip.String() || a.host == "localhost" && ip.IsLoopback())
}

// checkHost refuses a call that addresses another host. A health check over HTTP/1.0
// has no host.
func (c *call) checkHost() error {
	if c.r.Host == "" && c.route.health {
		return nil
	}
	if !c.s.hosts.accept(c.r) {
		return errMisdirected
	}
	return nil
}

// OnlyOwnHosts serves h for calls that address the broker, and answers others with 421.
func (s *Server) OnlyOwnHosts(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.hosts.accept(r) {
			http.Error(w, "misdirected request: use a host of the broker", http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}
