package server

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/server/inbound"
)

// The proofs of a call's caller: in its connection, its header or its form.

// provesInHeader reports whether the header, or the connection, claims an identity.
func (c *call) provesInHeader() bool {
	_, inSession := c.sessionToken()
	return inSession || c.r.Header.Get("Authorization") != "" || c.hasCertificate()
}

// hasOwnCallers reports whether a Handler authenticates the callers of the route.
func (c *call) hasOwnCallers() bool {
	return c.route.handler != nil && c.route.handler.Authenticate != nil
}

func (c *call) hasCertificate() bool { return c.r.TLS != nil && len(c.r.TLS.PeerCertificates) > 0 }

// enterForm reads the form. If the form has a proof, it authenticates the caller, or must
// fit the proof in the header.
func (c *call) enterForm() error {
	if err := c.readForm(); err != nil {
		return err
	}
	inHeader := c.who.ID != ""
	if c.now = time.Now(); inHeader { // the body may have arrived slowly
		if err := c.arrived(); err != nil {
			return err
		}
	}
	if c.route.proofs == nil {
		return nil
	}
	proofs, err := c.route.proofs(c.form)
	switch more := proofs != (formProofs{}); {
	case c.session != nil && err == nil && more:
		return broker.ErrTwoIdentities
	case c.session != nil:
		return nil
	case err != nil:
		return err
	case !inHeader:
		return c.enter(proofs)
	case !more:
		return nil
	}
	return c.identify(proofs)
}

// enter authenticates the caller and enters the admissions, which leave leaves.
func (c *call) enter(proofs formProofs) error {
	if err := c.identify(proofs); err != nil {
		return err
	}
	if c.held != nil {
		c.held.end()
	}
	class := c.s.limits.identity
	if c.route.handler != nil && c.route.handler.admission != nil {
		class = c.route.handler.admission
	}
	if c.route.introspects && c.s.cfg.Broker.Rules().IsResourceServer(c.who.ID) {
		class = c.s.limits.resource
	}
	if err := c.admit(class); err != nil {
		return err
	}
	if c.route.scans && c.who.Kind != broker.KindOperator {
		return c.admit(c.s.limits.scan)
	}
	return nil
}

// identify authenticates the caller. It is the only place that verifies proofs.
func (c *call) identify(proofs formProofs) error {
	if token, ok := c.sessionToken(); ok && !c.hasOwnCallers() {
		return c.enterSession(token)
	}
	if c.route.audience == UI {
		return broker.ErrUnauthenticated
	}
	if c.byProxy && c.hasCertificate() {
		return refuse(broker.ErrUnauthenticated, "the client certificate of this connection is that of a reverse proxy, which proves nothing about the caller: let the proxy present none and send a JWT-SVID, or call the broker directly")
	}
	if err := c.checkAssertion(proofs); err != nil {
		c.unproved = true
		return err
	}
	who, err := c.verify(proofs)
	if err != nil {
		c.unproved = true
		return err
	}
	c.who = who
	return nil
}

// verify authenticates the caller, in turn if that is costly.
func (c *call) verify(proofs formProofs) (who broker.Identity, err error) {
	failed := func() bool { return err != nil && errorRowOf(err).fault == clientFault }
	if !c.costly(proofs) {
		if who, err = c.authenticateAll(proofs); failed() && c.hasCertificate() {
			c.s.verifying.failed(c.sender())
		}
		return who, err
	}
	done, err := c.s.verifying.enter(c.r.Context(), c.sender())
	if err != nil {
		return broker.Identity{}, err
	}
	defer func() { done(failed()) }()
	c.now = time.Now()
	who, err = c.authenticateAll(proofs)
	return who, err
}

// sender returns the connection of the call, which takes turns with others.
func (c *call) sender() sender { return sender{inbound.Network(c.from), c.r.RemoteAddr} }

// authenticateAll verifies all proofs of a call, which must prove one identity. It judges
// those of the client first: if they fail, the client is invalid. If the subject_token
// or the actor_token fails, the request is (RFC 8693, section 2.2.2).
func (c *call) authenticateAll(proofs formProofs) (broker.Identity, error) {
	switch {
	case proofs == formProofs{}:
		return c.authenticate()
	case proofs.subject == "" && proofs.actor == "":
		return c.authenticate(proofs.assertion)
	}
	if c.hasCertificate() || proofs.assertion != "" || len(c.r.Header.Values("Authorization")) > 0 {
		if _, err := c.authenticate(proofs.assertion); err != nil {
			return broker.Identity{}, err
		}
	}
	c.proofIsSubject = true
	return c.authenticate(proofs.assertion, proofs.subject, proofs.actor)
}

// costly reports whether authenticating the caller costs the broker a signature check
// that the caller did not pay for. A token that was verified before is remembered. A
// caller with a certificate has completed a handshake, which costs more than verifying
// its chain; but the handshake pays only once.
func (c *call) costly(proofs formProofs) bool {
	remembers := c.s.cfg.Remembers
	if c.hasOwnCallers() {
		remembers = c.route.handler.Remembers
	}
	_, bearer, _ := strings.Cut(c.r.Header.Get("Authorization"), " ")
	for _, token := range []string{bearer, proofs.assertion, proofs.subject, proofs.actor} {
		if token != "" && (remembers == nil || !remembers(token)) {
			return true
		}
	}
	return c.hasCertificate() && c.s.verifying.isFailing(c.sender())
}

// arrived updates the call's time after its body was read, which may have taken
// long. The proof must still be valid then.
func (c *call) arrived() error {
	if c.now = time.Now(); !c.route.open && !c.who.Proof.Valid(c.now) {
		return broker.ErrProofExpired
	}
	return nil
}

// authenticate verifies the proofs of the connection and the header, and the tokens of
// the body. Their expiry is checked by Authenticate, here and again by the domain.
func (c *call) authenticate(tokens ...string) (broker.Identity, error) {
	authenticate := c.s.cfg.Authenticate
	if c.hasOwnCallers() {
		authenticate = func(r *http.Request, _ ...string) (broker.Identity, error) { return c.route.handler.Authenticate(r) }
	}
	who, err := authenticate(c.r, tokens...)
	switch {
	case err == nil && who.ID == "":
		err = broker.ErrUnauthenticated
	case err == nil && !who.Proof.Valid(c.now):
		err = broker.ErrProofExpired
	case err == nil:
		return who, nil
	}
	return broker.Identity{}, fmt.Errorf("authenticating: %w", err)
}
