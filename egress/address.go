package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"accessbroker.internal/internal/outbound"
)

// A Resolver finds the addresses of a host. *net.Resolver implements it.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// errAddress means that a host resolves to an address that a rule does not allow.
var errAddress = errors.New("the address is not allowed")

// errResolve means that a host has no address.
var errResolve = errors.New("the host has no address")

const (
	dialTimeout  = 10 * time.Second
	maxAddresses = 8 // of a host that are tried
)

// allowsAddress reports whether calls under a rule may reach an address: a public one, or
// one in a network that the rule names. A link-local address or one of a cloud's metadata
// services must be named alone, because a network could contain it unintentionally.
func (r *rule) allowsAddress(a netip.Addr) bool {
	a = a.Unmap()
	if a.Zone() != "" {
		return false
	}
	named := func(alone bool) bool {
		return slices.ContainsFunc(r.networks, func(p netip.Prefix) bool { return p.Contains(a) && (!alone || p.IsSingleIP()) })
	}
	switch outbound.ReachOf(a) {
	case outbound.Public:
		return true
	case outbound.Private:
		return named(false)
	}
	return named(true)
}

// resolve returns the addresses of a host, all of which the rule allows. An answer with
// one address that it does not allow is refused as a whole, because a name that is public
// and local at once is the mark of DNS rebinding.
func (r *rule) resolve(ctx context.Context, resolver Resolver, host string) ([]netip.Addr, error) {
	list := []netip.Addr{}
	if a, err := netip.ParseAddr(host); err == nil {
		list = append(list, a)
	} else if list, err = resolver.LookupNetIP(ctx, "ip", host); err != nil || len(list) == 0 {
		return nil, errResolve
	}
	for i, a := range list {
		if !r.allowsAddress(a) {
			return nil, fmt.Errorf("%s: %w", a, errAddress)
		}
		list[i] = a.Unmap()
	}
	return list[:min(len(list), maxAddresses)], nil
}

// dial connects to one of the checked addresses of a host. The connection can't reach
// another address, whatever DNS answers later.
func (t *Transport) dial(ctx context.Context, r *rule, o origin) (net.Conn, error) {
	resolver := t.Resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	list, err := r.resolve(ctx, resolver, o.host)
	if err != nil {
		return nil, err
	}
	connect := t.Dial
	if connect == nil {
		connect = (&net.Dialer{}).DialContext
	}
	for i, a := range list {
		deadline, _ := ctx.Deadline()
		attempt, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(list)-i))
		conn, failed := connect(attempt, "tcp", netip.AddrPortFrom(a, o.port).String())
		cancel()
		if failed == nil {
			return conn, nil
		}
		err = failed
	}
	return nil, err
}
