// Package verify checks the access tokens of an Access Broker. It is for the services that
// accept the tokens: OAuth calls them resource servers.
//
//	v, err := verify.New(verify.Config{
//		Issuer:   "https://broker.acme.test",  // the broker's external URL
//		Audience: "https://tickets.acme.test", // the audience of the service's tokens
//	})
//	…
//	http.Handle("/tickets", v.Handler(tickets, "tickets:read"))
//
// A Verifier accepts a token only if all of this holds:
//
//   - It is a JWT access token (RFC 9068) that a key of the issuer signed (RFC 8414 metadata,
//     RFC 7517 keys) with ES256, RS256 or EdDSA.
//   - Issuer and audience are exactly the configured ones. It is not expired, and not from
//     the future.
//   - It has all the scopes that the call needs. The service enforces every type of its
//     authorization_details (RFC 9396), as Config.DetailTypes states.
//   - If it is bound to a key (cnf), the caller proves to have the key: with the client
//     certificate of the connection (RFC 8705) or with a DPoP proof (RFC 9449).
//   - It is not revoked: according to its status list (draft-ietf-oauth-status-list) if it
//     names one, or to an introspection (RFC 7662) if Config.Introspection is set.
//
// What the package can't check, it refuses. Zero values of Config are safe.
//
// The package depends on the standard library alone, and on nothing else of the broker.
//
// # Standards
//
// RFC 6750 (October 2012), RFC 7515, 7517, 7519 (May 2015), RFC 7638 (September 2015), RFC 7662
// (October 2015), RFC 8414 (June 2018), RFC 8693, section 4.1 (January 2020), RFC 8705 (February
// 2020), RFC 8725 (February 2020), RFC 9068 (October 2021), RFC 9396 (May 2023), RFC 9449
// (September 2023), RFC 9728 (April 2025), draft-ietf-oauth-status-list-20 (April 2026).
package verify
