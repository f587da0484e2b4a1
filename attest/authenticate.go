package attest

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// Authenticate returns the identity of the caller of r. tokens are the caller's own
// JWT-SVIDs in the body, if any: client_assertion (RFC 7523) and subject_token (RFC 8693).
// An OIDC token of an issuer of workload tokens may take the place of each JWT-SVID.
// Errors wrap a sentinel of package broker.
//
// One rule holds for every combination of certificate, bearer token and tokens in the body:
//
//   - Each proof is verified in full. A token that is sent twice is one proof.
//   - All proofs must prove the same SPIFFE ID, else the error is broker.ErrTwoIdentities.
//     A person's token next to an SVID is one of another identity, too.
//   - They are then one caller, whose proofs the records name. The proof is the
//     certificate, because issued tokens are bound to it, or else the first token. It
//     expires with the earliest of them.
func (v *Verifier) Authenticate(r *http.Request, tokens ...string) (broker.Identity, error) {
	now := time.Now()
	bearer, err := bearer(r.Header)
	if err != nil {
		return broker.Identity{}, v.countFailure(err)
	}
	var who broker.Identity
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		if who, err = v.verifyConn(r.Context(), r.TLS.PeerCertificates, now); err != nil {
			return broker.Identity{}, err
		}
	}
	if who, err = v.join(r.Context(), who, bearer, now); err != nil {
		return broker.Identity{}, err
	}
	for i, token := range tokens {
		if token == bearer || slices.Contains(tokens[:i], token) {
			continue
		}
		if who, err = v.join(r.Context(), who, token, now); err != nil {
			return broker.Identity{}, err
		}
	}
	if who.ID == "" {
		return broker.Identity{}, v.countFailure(&Failure{methodNone, CauseNoProof, "the request has no proof of identity: connect with an X.509-SVID, or send a JWT-SVID as Authorization: Bearer"})
	}
	return who, nil
}

// join verifies a token and adds it to the proofs of who, the caller by the proofs before.
func (v *Verifier) join(ctx context.Context, who broker.Identity, token string, now time.Time) (broker.Identity, error) {
	if token == "" {
		return who, nil
	}
	next, err := v.token(ctx, token, now)
	switch {
	case who.ID == "":
		return next, v.countFailure(err)
	case isForeign(err) || err == nil && next.ID != who.ID:
		return broker.Identity{}, v.twoIdentities()
	case err != nil:
		return broker.Identity{}, v.countFailure(err)
	}
	return who.With(next), nil
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

// isForeign reports whether err means that a token belongs to an identity that
// can't call the broker with it, such as a person's ID token.
func isForeign(err error) bool {
	f, ok := err.(*Failure)
	return ok && (f.Cause == CauseSPIFFEID || f.Cause == CauseTrustDomain || f.Method == broker.MethodOIDCToken && f.Cause == CauseIssuer)
}

func (v *Verifier) twoIdentities() error {
	v.failed(methodNone, string(CauseTwoIdentities))
	return &broker.Refusal{Err: broker.ErrTwoIdentities,
		Detail: "the proofs of this call are of different identities, so that the caller is not known: send only your own certificate and JWT-SVIDs; the token of a person for whom you act needs its subject_token_type"}
}
