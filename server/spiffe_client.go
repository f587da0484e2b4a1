package server

import (
	"slices"
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// Client authentication with SVIDs, as draft-ietf-oauth-spiffe-client-auth-02 profiles it.

// Clients are the OAuth clients that the operator registered for the token endpoint. Every
// workload is a client by its SPIFFE ID.
type Clients struct {
	// IDs are the SPIFFE IDs of further client identifiers. One that ends with "/*" stands for
	// all IDs below it.
	IDs map[string][]string

	// RequireID means that a caller with an X.509-SVID alone must send its client_id.
	RequireID bool

	// WithoutSVIDs means that no client can have an SVID.
	WithoutSVIDs bool
}

// has reports whether a client identifier is registered for a SPIFFE ID.
func (l *Clients) has(client, id string) bool {
	return slices.ContainsFunc(l.IDs[client], func(pattern string) bool {
		if below, ok := strings.CutSuffix(pattern, "*"); ok { // with its slash, so that it is a whole segment
			return strings.HasPrefix(id, below) && len(id) > len(below)
		}
		return id == pattern
	})
}

// clientID returns the client_id of the form, or the caller's SPIFFE ID if it is one that the
// operator registered for it. It decides nothing: policies, leases and records have the SPIFFE
// ID of the caller, also if several are one client.
func (c *call) clientID() string {
	id := c.form.get("client_id")
	if c.s.cfg.Clients.has(id, c.who.ID) {
		return c.who.ID
	}
	return id
}

// checkClientID refuses a client_id that is not the authenticated identity (RFC 8705,
// section 2), nor registered for it. A client identifier that is a URL is not fetched: what
// it states about the client would be the client's own word.
func (c *call) checkClientID() error {
	if id := c.clientID(); id != "" && id != c.who.ID {
		return refuse(broker.ErrUnauthenticated, "client_id must be the SPIFFE ID of the caller, or one that the operators registered for it in server.oauth.clients")
	}
	return c.requireClientID()
}

// requireClientID refuses a caller who must send a client_id and sends none.
func (c *call) requireClientID() error {
	if c.form.get("client_id") == "" && c.s.cfg.Clients.RequireID && c.who.Proof.Method == broker.MethodX509SVID && len(c.who.Also) == 0 {
		return refuse(broker.ErrUnauthenticated, "client_id is missing: a client with an X.509-SVID sends its SPIFFE ID")
	}
	return nil
}

// checkAssertion makes the checks of a client_assertion that depend on its type. The verifier
// makes all others. A jwt-spiffe assertion is a JWT-SVID, no other JWT (section "The JWT SVID
// iss claim"), and its only audience is the issuer identifier of the broker: one that a
// workload uses for other calls must not authenticate it as an OAuth client.
func (c *call) checkAssertion(proofs formProofs) error {
	if proofs.assertion == "" || c.form.get("client_assertion_type") != assertionSPIFFE {
		return nil
	}
	claims := unverifiedClaims(proofs.assertion)
	subject, _ := strictjson.Text(claims["sub"])
	audience, _ := strictjson.Text(claims["aud"])
	if list, ok := strictjson.Elements(claims["aud"]); ok && len(list) == 1 {
		audience, _ = strictjson.Text(list[0])
	}
	issuer := c.s.external.String()
	switch {
	case !strings.HasPrefix(subject, "spiffe://"):
		return refuse(broker.ErrUnauthenticated, "client_assertion must be a JWT-SVID, whose sub is a SPIFFE ID: the client_assertion_type of other tokens is "+api.AssertionTypeJWT)
	case audience != issuer:
		return refuse(broker.ErrUnauthenticated, "the only audience of client_assertion must be the broker's issuer identifier, "+issuer+": fetch a JWT-SVID for it")
	}
	return nil
}
