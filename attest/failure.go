package attest

import "accessbroker.internal/broker"

// A Cause says why a proof did not hold. The set is closed, so that it can be
// the label of a metric.
type Cause string

// The causes.
const (
	CauseNoProof        Cause = "no_proof"        // neither certificate nor token
	CauseTwoIdentities  Cause = "two_identities"  // more than one proof, or proofs of two identities
	CauseForeignSubject Cause = "foreign_subject" // a token in the body that is about somebody else
	CauseMalformed      Cause = "malformed"       // not an SVID at all, or one that breaks a rule of its format
	CauseOversized      Cause = "oversized"       // longer than MaxTokenSize
	CauseAlgorithm      Cause = "algorithm"       // none, HMAC, or anything else that the SPIFFE specification does not list
	CauseSPIFFEID       Cause = "spiffe_id"       // none, several, or one that names no workload
	CauseTrustDomain    Cause = "trust_domain"    // not listed in trust_domains, whatever bundles were delivered
	CauseAudience       Cause = "audience"        // none, several, or somebody else's
	CauseExpired        Cause = "expired"         // exp or NotAfter has passed
	CauseNotYetValid    Cause = "not_yet_valid"   // nbf, iat or NotBefore is yet to come
	CauseLifetime       Cause = "lifetime"        // exp is further away than MaxLifetime
	CauseNoBundle       Cause = "no_bundle"       // of a listed trust domain; nothing of it can be verified
	CauseUnknownKey     Cause = "unknown_key"     // the bundle has no such key
	CauseSignature      Cause = "signature"       // made by another key, or over something else
	CauseUsage          Cause = "usage"           // a certificate that is not for this: a CA, or one for other uses
	CauseUntrusted      Cause = "untrusted"       // no chain to an authority in the bundle
)

// methodNone is what is counted where there was no proof, or more than one.
const methodNone broker.Method = "none"

// A Failure is a proof that did not hold. It wraps a *broker.Refusal of
// broker.ErrUnauthenticated, whose Detail is the sentence for the caller.
type Failure struct {
	Method broker.Method
	Cause  Cause
	Detail string // what to do; never holds the proof or a part of it
}

func (f *Failure) Error() string {
	return string(f.Method) + ": " + string(f.Cause) + ": " + f.Detail
}

// Unwrap gives what package server answers with.
func (f *Failure) Unwrap() error {
	return &broker.Refusal{Err: broker.ErrUnauthenticated, Detail: f.Detail}
}
