package attest

import (
	"context"
	"crypto/x509"
	"net"
	"sync/atomic"
	"time"

	"accessbroker.internal/broker"
)

type connKey struct{}

// A conn remembers what the certificate of one connection proved. A TLS 1.3
// client can't change its certificate after the handshake, so that one check
// is good for as long as the same keys are trusted.
type conn struct{ held atomic.Pointer[heldCert] }

// heldCert is the outcome for one leaf. It is not changed once made.
type heldCert struct {
	leaf *x509.Certificate
	remembered
}

// ConnContext gives connections a place where what their certificate proved is
// remembered: set it as the ConnContext of an http.Server. Without it, every
// request costs the verification of its chain.
func (v *Verifier) ConnContext(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &conn{})
}

// overConn is X509 with the connection's memory: the chain is verified once a
// generation of trust, and its times are looked at for every request, since
// neither TLS nor a connection that lives on does that.
func (v *Verifier) overConn(ctx context.Context, chain []*x509.Certificate, now time.Time) (broker.Identity, error) {
	c, _ := ctx.Value(connKey{}).(*conn)
	if c == nil {
		return v.X509(chain, now)
	}
	trusted := v.source.trust.Load()
	if h := c.held.Load(); h != nil && h.generation == trusted.generation && h.leaf == chain[0] {
		if err := lasts(h.notBefore, h.who.Proof.Expires, now); err != nil {
			return broker.Identity{}, v.count(err)
		}
		return h.who, nil
	}
	r, err := verifyX509(trusted, chain, now)
	if err != nil {
		return broker.Identity{}, v.count(err)
	}
	c.held.Store(&heldCert{chain[0], r})
	return r.who, nil
}
