package notify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"accessbroker.internal/internal/retryafter"
)

const (
	clientTimeout = 10 * time.Second // of one call
	maxAnswer     = 64 << 10         // bytes of an answer that are read
)

// privateNetworks are the networks that a message reaches only with allow_private:
// this machine, its neighbours, and the metadata services of clouds.
var privateNetworks = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16",
	"198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4", // RFC 6890
	"::/128", "::1/128", "64:ff9b:1::/48", "fc00::/7", "fe80::/10", "ff00::/8",
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

// isPrivate reports whether an address is not public.
func isPrivate(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range privateNetworks {
		if p.Contains(a) {
			return true
		}
	}
	for p, at := range embedding {
		if p.Contains(a) {
			raw := a.As16()
			return isPrivate(netip.AddrFrom4([4]byte(raw[at : at+4])))
		}
	}
	return false
}

var errPrivate = errors.New("the address is not public; set allow_private to allow it")

// dialControl rejects private addresses when the dialer has resolved the name. A
// check before the dial could see another address than the dial.
func dialControl(allowPrivate bool) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("reading the address: %w", err)
		}
		if !allowPrivate && isPrivate(at.Addr()) {
			return errPrivate
		}
		return nil
	}
}

// newClient returns a client that follows no redirects and uses no proxy.
func newClient(roots *x509.CertPool, allowPrivate bool) *http.Client {
	dialer := &net.Dialer{Timeout: clientTimeout, Control: dialControl(allowPrivate)}
	return &http.Client{
		Timeout:       clientTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: clientTimeout, MaxConnsPerHost: 4, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
			MaxResponseHeaderBytes: maxAnswer, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		},
	}
}

// send sends a request and returns the start of the body of the answer. A status
// other than 2xx is an error: ErrChannelGone for 410, and a *RetryAfter if the
// answer has a Retry-After header.
func send(ctx context.Context, client *http.Client, req *http.Request) ([]byte, error) {
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		return nil, errors.Join(errors.New("the call failed"), unwrapURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case resp.StatusCode == http.StatusGone:
		return nil, ErrChannelGone
	case resp.StatusCode/100 == 3:
		return nil, fmt.Errorf("the receiver answered with a redirect (%d), which is not followed", resp.StatusCode)
	case resp.StatusCode/100 != 2:
		failed := fmt.Errorf("the receiver answered %d", resp.StatusCode)
		if after := retryafter.Parse(resp.Header); after > 0 {
			return nil, &RetryAfter{Err: failed, After: after}
		}
		return nil, failed
	}
	return body, err
}

// unwrapURL removes the URL from an error of the client, because the URL of a
// webhook may contain a secret.
func unwrapURL(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}
