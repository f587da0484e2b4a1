package attest

import (
	"net/http"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// Authenticate finds out who made a request. The bodyToken is a token in its
// body that is to be the caller's own proof: subject_token (RFC 8693) or
// client_assertion (RFC 7523); "" if there is none. It gives exactly one
// identity, or an error that wraps a sentinel of package broker:
//
//   - A certificate and a bearer token are two proofs, and refused with
//     broker.ErrTwoIdentities, even if both name the same workload: which of
//     them the record shows, and which one's end bounds what is issued, must
//     not be a matter of choice.
//   - A token in the body alone is the caller's proof. Byte for byte the bearer
//     token, it is the same proof.
//   - Beside a certificate, a token in the body must prove the same workload.
//     The certificate is the proof then: it is what tokens are bound to.
//   - Beside another bearer token, one in the body is a second proof:
//     broker.ErrTwoIdentities.
//   - If it is about somebody else, that would be a delegation:
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
		return broker.Identity{}, v.twoIdentities("this call carries a client certificate and a bearer token: send one of them, even if both are yours")
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
	return broker.Identity{}, v.countFailure(&Failure{methodNone, CauseNoProof, "prove who you are: connect with an X.509-SVID, or send a JWT-SVID as Authorization: Bearer"})
}

// bearer reads the Authorization header (RFC 6750, section 2.1).
//
// Several headers, or a value that is not one token, are refused: what stands
// in front of us and what stands behind might each take another one.
func bearer(h http.Header) (string, error) {
	values := h.Values("Authorization")
	switch len(values) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", jwtFailure(CauseMalformed, "send one Authorization header: Bearer <JWT-SVID>")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" || strings.ContainsAny(token, " \t,") {
		return "", jwtFailure(CauseMalformed, "the Authorization header must be: Bearer <JWT-SVID>")
	}
	return token, nil
}

// checkSameIdentity wants a token in the body to prove whom the certificate proved.
func (v *Verifier) checkSameIdentity(who broker.Identity, bodyToken string, now time.Time) error {
	other, err := v.jwt(bodyToken, now)
	if isForeign(err) || err == nil && other.ID != who.ID {
		return v.foreignSubject()
	}
	return v.countFailure(err)
}

// second says what is wrong with a token in the body that is not the bearer
// token.
func (v *Verifier) rejectSecondToken(who broker.Identity, bodyToken string, now time.Time) error {
	if err := v.checkSameIdentity(who, bodyToken, now); err != nil {
		return err
	}
	return v.twoIdentities("this call carries two different tokens: send the one in the body alone, or the same one twice")
}

// isForeign says whether a token is about somebody that can't be a caller
// here, such as a person's ID token.
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
		Detail: "the token in the body is not the proof that this call was made with; acting for others is not offered: send your own JWT-SVID, and no other proof"}
}
