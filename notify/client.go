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
	"strconv"
	"syscall"
	"time"
)

// callTime bounds one call; maxAnswer is how much of its answer is read.
const (
	callTime  = 10 * time.Second
	maxAnswer = 64 << 10
)

// inner are networks that a message never goes to unless the operator says so:
// this machine, its neighbours, and where clouds hand out credentials.
var inner = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16",
	"198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4", // RFC 6890
	"::/128", "::1/128", "64:ff9b:1::/48", "fc00::/7", "fe80::/10", "ff00::/8",
)

// wrapping are IPv6 networks whose addresses stand for an IPv4 address at the
// offset (RFC 6052, RFC 3056).
var wrapping = map[netip.Prefix]int{netip.MustParsePrefix("64:ff9b::/96"): 12, netip.MustParsePrefix("2002::/16"): 2}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// isInner says whether an address is not one of the internet's.
func isInner(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range inner {
		if p.Contains(a) {
			return true
		}
	}
	for p, at := range wrapping {
		if p.Contains(a) {
			raw := a.As16()
			return isInner(netip.AddrFrom4([4]byte(raw[at : at+4])))
		}
	}
	return false
}

// errInner is what a channel that leads inside gets.
var errInner = errors.New("its address is not one of the internet's: say allow_private if that is meant")

// control refuses, when the address is known and before anything is sent, what
// leads inside: a name's address may have changed since it was looked at.
func control(allowPrivate bool) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("reading the address: %w", err)
		}
		if !allowPrivate && isInner(at.Addr()) {
			return errInner
		}
		return nil
	}
}

// newClient makes a client that follows no redirect and knows no proxy.
func newClient(roots *x509.CertPool, allowPrivate bool) *http.Client {
	dialer := &net.Dialer{Timeout: callTime, Control: control(allowPrivate)}
	return &http.Client{
		Timeout:       callTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: callTime, MaxConnsPerHost: 4, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
			MaxResponseHeaderBytes: maxAnswer, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		},
	}
}

// send makes the call, and reads its answer. Whatever is not 2xx is an error;
// one that says when to come back is a *RetryAfter.
func send(ctx context.Context, client *http.Client, req *http.Request) ([]byte, error) {
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		return nil, errors.Join(errors.New("the call came to nothing"), unwrapURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case resp.StatusCode == http.StatusGone:
		return nil, ErrChannelGone
	case resp.StatusCode/100 == 3:
		return nil, fmt.Errorf("it redirects (%d), which is not followed", resp.StatusCode)
	case resp.StatusCode/100 != 2:
		failed := fmt.Errorf("it answered %d", resp.StatusCode)
		if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
			return nil, &RetryAfter{Err: failed, After: time.Duration(min(seconds, 3600)) * time.Second}
		}
		return nil, failed
	}
	return body, err
}

// unwrapURL takes the URL off an error: those of webhooks may hold secrets.
func unwrapURL(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}
