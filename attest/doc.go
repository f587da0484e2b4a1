// Package attest authenticates callers: it turns proofs into identities.
//
// A Verifier checks the X.509-SVID of a TLS connection or a JWT-SVID and returns
// a broker.Identity, or a Failure with a cause for metrics and a sentence for
// the caller. It checks them against a Source, which holds the trust bundles of
// the trust domains that the operator listed and follows changes of the Workload
// API or of bundle files. The Source also holds the broker's own SVID and
// configures TLS for servers and clients.
//
// People authenticates people with OpenID providers. Passkeys enrols the keys
// with which people sign approvals.
//
// No log line, error or Failure contains a token, a code or a secret. Only
// FetchJWTSVID and the methods of People return tokens.
//
// Files: authenticate.go decides which proof of a request counts; jwt.go and
// x509.go check one proof; cache.go remembers verified proofs; source.go,
// trust.go, bundle.go, delivery.go, files.go and workloadapi.go provide trust;
// people.go, provider.go, keyset.go and claims.go implement OpenID Connect. Package
// jwks reads public keys and verifies signatures for both. Package localca is a trust domain in one
// process, for tests and development.
package attest
