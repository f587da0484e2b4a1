package attest

import "accessbroker.internal/broker"

// A Cause is the reason why a proof was rejected. The set is closed, so that
// metrics can use it as a label.
type Cause string

// Causes.
const (
	CauseNoProof       Cause = "no_proof"       // neither a certificate nor a token
	CauseTwoIdentities Cause = "two_identities" // proofs of two identities in one call
	CauseMalformed     Cause = "malformed"      // not an SVID, or not in the required format
	CauseOversized     Cause = "oversized"      // larger than MaxTokenSize
	CauseAlgorithm     Cause = "algorithm"      // not in the list of JWT-SVID, section 2.1; so neither none nor HMAC
	CauseSPIFFEID      Cause = "spiffe_id"      // no SPIFFE ID, several, or one without a path
	CauseTrustDomain   Cause = "trust_domain"   // not listed in trust_domains, even if its bundle was delivered
	CauseAudience      Cause = "audience"       // none, several, or not the broker's
	CauseExpired       Cause = "expired"        // exp or NotAfter has passed
	CauseNotYetValid   Cause = "not_yet_valid"  // nbf, iat or NotBefore is in the future
	CauseLifetime      Cause = "lifetime"       // exp is more than MaxLifetime from now
	CauseNoBundle      Cause = "no_bundle"      // the trust domain is listed, but its bundle is missing
	CauseUnknownKey    Cause = "unknown_key"    // kid is not in the bundle
	CauseSignature     Cause = "signature"      // the signature does not verify
	CauseUsage         Cause = "usage"          // a CA certificate, or one for other purposes
	CauseUntrusted     Cause = "untrusted"      // no chain to an authority of the bundle

	// Of the tokens of people, and CauseType and CauseIssuer of the OIDC tokens of workloads.
	CauseType       Cause = "type"       // typ, or the claims, are of another kind of token
	CauseIssuer     Cause = "issuer"     // iss is not a provider or an issuer that may issue such tokens
	CauseActor      Cause = "actor"      // the token is for another client or actor
	CausePossession Cause = "possession" // the token is bound to a key that the caller did not prove to have
	CauseClaims     Cause = "claims"     // a claim about the person is missing or malformed
	CauseTenant     Cause = "tenant"     // the token is of another tenant of its issuer
	CauseResource   Cause = "resource"   // the token is for another resource

	// Of the OIDC tokens of workloads only.
	CauseRule Cause = "rule" // no rule of the operator maps the claims to one SPIFFE ID
)

// Failures returns the method and the cause of every Failure that can occur.
func Failures() (all [][2]string) {
	for _, cause := range []Cause{CauseNoProof, CauseTwoIdentities} {
		all = append(all, [2]string{string(methodNone), string(cause)})
	}
	for _, method := range []broker.Method{broker.MethodX509SVID, broker.MethodJWTSVID} {
		for _, cause := range []Cause{
			CauseMalformed, CauseOversized, CauseAlgorithm, CauseSPIFFEID, CauseTrustDomain, CauseAudience, CauseExpired,
			CauseNotYetValid, CauseLifetime, CauseNoBundle, CauseUnknownKey, CauseSignature, CauseUsage, CauseUntrusted,
		} {
			all = append(all, [2]string{string(method), string(cause)})
		}
	}
	for _, cause := range []Cause{
		CauseMalformed, CauseType, CauseAlgorithm, CauseIssuer, CauseAudience, CauseExpired, CauseNotYetValid, CauseLifetime, CauseRule, CauseSignature,
	} {
		all = append(all, [2]string{string(broker.MethodOIDCToken), string(cause)})
	}
	for _, method := range []broker.Method{broker.MethodIDJAG, broker.MethodAccessToken} {
		for _, cause := range []Cause{
			CauseMalformed, CauseOversized, CauseType, CauseIssuer, CauseAudience, CauseExpired, CauseNotYetValid, CauseLifetime,
			CauseActor, CausePossession, CauseClaims, CauseTenant, CauseResource, CauseSignature,
		} {
			all = append(all, [2]string{string(method), string(cause)})
		}
	}
	return all
}

// Expired reports whether the proof was rejected because its time is over.
func (f *Failure) Expired() bool { return f.Cause == CauseExpired }

// methodNone is the method of failures without a proof or with more than one.
const methodNone broker.Method = "none"

// A Failure is the rejection of a proof. It wraps a *broker.Refusal with the same Detail:
// of broker.ErrForeignSubject for the token of a person on whose behalf the caller wants to
// act, or broker.ErrActorNotAllowed if the token is for another caller; otherwise of
// broker.ErrUnauthenticated.
type Failure struct {
	Method broker.Method
	Cause  Cause
	Detail string // what the caller should do; never contains any part of the proof
}

func (f *Failure) Error() string {
	return string(f.Method) + ": " + string(f.Cause) + ": " + f.Detail
}

// Unwrap returns the error that package server maps to a response.
func (f *Failure) Unwrap() error {
	err := broker.ErrUnauthenticated
	switch {
	case f.Cause == CauseActor:
		err = broker.ErrActorNotAllowed
	case f.Method == broker.MethodIDJAG || f.Method == broker.MethodAccessToken:
		err = broker.ErrForeignSubject
	}
	return &broker.Refusal{Err: err, Detail: f.Detail}
}
