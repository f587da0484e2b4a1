package attest

import (
	"crypto/x509"
	"net/http"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// Proofs are what one call carried.
type Proofs struct {
	Chain  []*x509.Certificate // of the TLS client; empty if there is none
	Bearer string              // of the Authorization header; empty if there is none

	// Subject is a token in the body that is to be the caller's own proof:
	// subject_token (RFC 8693) or client_assertion (RFC 7523).
	Subject string
}

// Authenticate finds out who made a request; subject is a token in its body
// (see Proofs), or empty. It gives exactly one identity, or an error that
// wraps a sentinel of package broker.
func (v *Verifier) Authenticate(r *http.Request, subject string) (broker.Identity, error) {
	p := Proofs{Subject: subject}
	if r.TLS != nil {
		p.Chain = r.TLS.PeerCertificates
	}
	bearer, err := bearer(r.Header)
	if err != nil {
		return broker.Identity{}, v.count(err)
	}
	p.Bearer = bearer
	return v.Caller(p, time.Now())
}

// bearer reads the Authorization header (RFC 6750, section 2.1).
func bearer(h http.Header) (string, error) {
	values := h.Values("Authorization")
	switch len(values) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", &broker.Refusal{Err: broker.ErrTwoIdentities, Detail: "send one Authorization header"}
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", refused(CauseMalformed, "the Authorization header must be: Bearer <JWT-SVID>")
	}
	return token, nil
}

// Caller finds the one caller of a call. A call has one proof:
//
//   - A certificate and a bearer token are two, and refused with
//     broker.ErrTwoIdentities, even if both name the same workload: which of
//     them the record shows, and which one's end bounds what is issued, must
//     not be a matter of choice.
//   - A subject token alone is the caller's proof.
//   - A subject token that is, byte for byte, the bearer token is the same
//     proof.
//   - Any other subject token beside a proof is either a second proof of the
//     same workload, and broker.ErrTwoIdentities; or it is about somebody
//     else, or proves nothing: that would be a delegation, and is
//     broker.ErrForeignSubject.
func (v *Verifier) Caller(p Proofs, now time.Time) (broker.Identity, error) {
	hasChain := len(p.Chain) > 0
	switch {
	case hasChain && p.Bearer != "":
		return broker.Identity{}, &broker.Refusal{Err: broker.ErrTwoIdentities,
			Detail: "this call carries a client certificate and a bearer token: send one of them, even if both are yours"}
	case !hasChain && p.Bearer == "" && p.Subject == "":
		return broker.Identity{}, &broker.Refusal{Err: broker.ErrUnauthenticated,
			Detail: "prove who you are: connect with an X.509-SVID, or send a JWT-SVID as Authorization: Bearer"}
	case !hasChain && p.Bearer == "":
		return v.JWT(p.Subject, now)
	}
	who, err := v.first(p, now)
	if err != nil || p.Subject == "" || p.Subject == p.Bearer {
		return who, err
	}
	return broker.Identity{}, v.foreign(who, p.Subject, now)
}

func (v *Verifier) first(p Proofs, now time.Time) (broker.Identity, error) {
	if p.Bearer != "" {
		return v.JWT(p.Bearer, now)
	}
	return v.X509(p.Chain, now)
}

// foreign says what is wrong with a subject token that is not the caller's
// proof.
func (v *Verifier) foreign(who broker.Identity, subject string, now time.Time) error {
	if other, err := v.jwt(subject, now); err == nil && other.ID == who.ID {
		return &broker.Refusal{Err: broker.ErrTwoIdentities,
			Detail: "this call carries two proofs of the same workload: send the token in the body alone, without certificate and without another bearer token"}
	}
	return &broker.Refusal{Err: broker.ErrForeignSubject,
		Detail: "the token in the body is not the proof that this call was made with; acting for others is not offered: send your own JWT-SVID, and no other proof"}
}
