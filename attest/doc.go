// Package attest turns proofs into identities: an X.509-SVID of a TLS
// connection, or a JWT-SVID, becomes a broker.Identity, or is refused with a
// cause that can be counted and a sentence that says what to do.
//
// A Source says whom to trust: the bundles of the Workload API or of files,
// cut down to the trust domains that the operator listed. A Verifier checks
// proofs against it. Package localca beside it is a whole trust domain in a
// process, for tests and for trying things out.
//
// Nothing here logs, returns or counts a token or a part of one.
package attest
