package attest

import (
	"net/http"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// Authenticate returns the identity of the caller of r. bodyToken is the caller's
// own token from the body, if any: subject_token (RFC 8693) or client_assertion
// (RFC 7523). Errors wrap a sentinel of package broker.
//
//   - A certificate and a bearer token are two proofs: broker.ErrTwoIdentities,
//     even if both prove the same workload. Otherwise the caller could choose
//     which proof the audit record names and which expiry bounds the lease.
//   - A body token alone is the proof. A body token that equals the bearer token
//     is the same proof.
//   - With a certificate, the body token must prove the same workload. The
//     certificate is the proof, because issued tokens are bound to it.
//   - With a different bearer token for the same workload, the body token is a
//     second proof: broker.ErrTwoIdentities.
//   - A body token for another identity would be a delegation:
//     broker.ErrForeignSubject.
func (v *Verifier) Authenticate(r *http.Request, bodyToken string) (broker.Identity, error) {
	now := time.Now()
	bearer, err := bearer(r.Header)
	if err != nil {
		return broker.Identity{}, v.countFailure(err)
	}
	hasCert := r.TLS != nil && len(r.TLS.PeerCertificates) > 0
	switch {
	case hasCert && bearer != "":
		return broker.Identity{}, v.twoIdentities("the request has a client certificate and a bearer token: send only one of them")
	case hasCert:
		who, err := v.verifyConn(r.Context(), r.TLS.PeerCertificates, now)
		if err == nil && bodyToken != "" {
			err = v.checkSameIdentity(who, bodyToken, now)
		}
		if err != nil {
			return broker.Identity{}, err
		}
		return who, nil
	case bearer != "":
		who, err := v.JWT(bearer, now)
		if err != nil || bodyToken == "" || bodyToken == bearer {
			return who, err
		}
		return broker.Identity{}, v.rejectSecondToken(who, bodyToken, now)
	case bodyToken != "":
		return v.JWT(bodyToken, now)
	}
	return broker.Identity{}, v.countFailure(&Failure{methodNone, CauseNoProof, "the request has no proof of identity: connect with an X.509-SVID, or send a JWT-SVID as Authorization: Bearer"})
}

// bearer returns the token of the Authorization header (RFC 6750, section 2.1), or
// "" if there is no header. It rejects several headers and values with more than
// one token, because a proxy in front might use another one than the broker.
func bearer(h http.Header) (string, error) {
	values := h.Values("Authorization")
	switch len(values) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", jwtFailure(CauseMalformed, "the request has several Authorization headers: send one, Bearer <JWT-SVID>")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" || strings.ContainsAny(token, " \t,") {
		return "", jwtFailure(CauseMalformed, "the Authorization header must be: Bearer <JWT-SVID>")
	}
	return token, nil
}

// checkSameIdentity returns an error unless bodyToken proves the identity who.
func (v *Verifier) checkSameIdentity(who broker.Identity, bodyToken string, now time.Time) error {
	other, err := v.jwt(bodyToken, now)
	if isForeign(err) || err == nil && other.ID != who.ID {
		return v.foreignSubject()
	}
	return v.countFailure(err)
}

// rejectSecondToken returns the error for a body token that differs from the
// bearer token, which proves who.
func (v *Verifier) rejectSecondToken(who broker.Identity, bodyToken string, now time.Time) error {
	if err := v.checkSameIdentity(who, bodyToken, now); err != nil {
		return err
	}
	return v.twoIdentities("the bearer token and the token in the body differ: send only the one in the body, or the same token in both places")
}

// isForeign reports whether err means that a token belongs to an identity that
// can't call the broker with it, such as a person's ID token.
func isForeign(err error) bool {
	f, ok := err.(*Failure)
	return ok && (f.Cause == CauseSPIFFEID || f.Cause == CauseTrustDomain)
}

func (v *Verifier) twoIdentities(detail string) error {
	v.failed(methodNone, string(CauseTwoIdentities))
	return &broker.Refusal{Err: broker.ErrTwoIdentities, Detail: detail}
}

func (v *Verifier) foreignSubject() error {
	v.failed(methodNone, string(CauseForeignSubject))
	return &broker.Refusal{Err: broker.ErrForeignSubject,
		Detail: "the token in the body belongs to another identity, and delegation is not supported: send your own JWT-SVID and no other proof"}
}
