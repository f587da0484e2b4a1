// Package outbound makes the HTTP clients with which the broker calls other systems at
// addresses of the operator's file. They follow no redirect, use no proxy, and reach
// private addresses only if the operator allows it. They never reach the addresses at
// which clouds serve the credentials of a machine.
package outbound

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"syscall"
	"time"
)

// Timeout bounds one call of a client.
const Timeout = 10 * time.Second

// maxHeader bounds the header of an answer in bytes.
const maxHeader = 64 << 10

// privateNetworks are the networks that a client reaches only with allowPrivate: this
// machine, its neighbours, and all networks that the special-purpose registries of IANA
// (RFC 6890, as of October 2025) do not state to be globally reachable.
var privateNetworks = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
	"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"2001::/23", "2001:db8::/32", "3fff::/20",
)

// globalUnicast is the network of all public IPv6 addresses (RFC 4291, section 2.4).
var globalUnicast = netip.MustParsePrefix("2000::/3")

// metadataNetworks are the networks with the metadata services of clouds. No client
// reaches them.
var metadataNetworks = prefixes(
	"169.254.0.0/16", "fe80::/10",
	"fd00:ec2::254/128", "fd00:ec2::23/128", // AWS: the instance, and the agent of EKS Pod Identity
	"fd20:ce::254/128",                         // Google Cloud
	"fd00:c1::a9fe:a9fe/128", "192.0.0.192/32", // Oracle
	"168.63.129.16/32",   // Azure: the wire server, at a public address
	"100.100.100.200/32", // Alibaba
)

// embedding are IPv6 networks whose addresses contain an IPv4 address at the
// offset (RFC 6052, RFC 3056).
var embedding = map[netip.Prefix]int{netip.MustParsePrefix("64:ff9b::/96"): 12, netip.MustParsePrefix("2002::/16"): 2}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// within reports whether an address is in one of the networks.
func within(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Errors of addresses that a client does not reach.
var (
	errPrivate  = errors.New("the address is not public; set allow_private to allow it")
	errMetadata = errors.New("the address is one of a cloud's metadata services, which the broker never calls")
)

// A Reach is from where an address can be reached.
type Reach int

// The zero Reach is the one with the least access.
const (
	Metadata Reach = iota // link-local, or a cloud's metadata service
	Private               // this machine, its neighbours, and networks for special purposes
	Public
)

// ReachOf returns the reach of an address, or of the IPv4 address in it.
func ReachOf(a netip.Addr) Reach {
	a = a.Unmap().WithZone("")
	for p, at := range embedding {
		if p.Contains(a) {
			raw := a.As16()
			return ReachOf(netip.AddrFrom4([4]byte(raw[at : at+4])))
		}
	}
	switch {
	case !a.IsValid() || within(metadataNetworks, a):
		return Metadata
	case within(privateNetworks, a), a.Is6() && !globalUnicast.Contains(a):
		return Private
	}
	return Public
}

// check refuses an address that a client may not reach.
func check(a netip.Addr, allowPrivate bool) error {
	switch reach := ReachOf(a); {
	case reach == Metadata:
		return errMetadata
	case reach == Private && !allowPrivate:
		return errPrivate
	}
	return nil
}

// Control returns a function for net.Dialer.Control that rejects private addresses when
// the dialer has resolved the name. A check before the dial could see another address
// than the dial.
func Control(allowPrivate bool) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("reading the address: %w", err)
		}
		return check(at.Addr(), allowPrivate)
	}
}

// Client returns a client that follows no redirects and uses no proxy. Nil roots are
// those of the system.
func Client(roots *x509.CertPool, allowPrivate bool) *http.Client {
	dialer := &net.Dialer{Timeout: Timeout, Control: Control(allowPrivate)}
	return &http.Client{
		Timeout:       Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: Timeout, MaxConnsPerHost: 4, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
			MaxResponseHeaderBytes: maxHeader, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		},
	}
}

// CheckURL rejects URLs without https, except http on loopback with allowPrivate.
func CheckURL(text string, allowPrivate bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return errors.New("use an https URL without user and fragment")
	case u.Scheme == "https", u.Scheme == "http" && allowPrivate && isLoopback(u.Hostname()):
		return nil
	}
	return errors.New("use an https URL; http works only for this machine, with allow_private")
}

func isLoopback(host string) bool {
	return host == "127.0.0.1" || host == "::1" || host == "localhost"
}

// Cause removes the URL from an error of a client, because a URL may contain a secret.
func Cause(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		return failed.Err
	}
	return err
}
