package server

import (
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// Client authentication with SVIDs, as draft-ietf-oauth-spiffe-client-auth-02 profiles it.

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
