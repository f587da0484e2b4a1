package attest

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	"accessbroker.internal/broker"
)

// Limits for the times of a JWT-SVID.
const (
	MaxLifetime = time.Hour        // from now to exp
	Leeway      = 30 * time.Second // of the issuer's clock: for nbf, iat and MaxLifetime; an expired token has none
)

// VerifierConfig configures a Verifier. Source and Audiences are required.
type VerifierConfig struct {
	Source    *Source
	Audiences []string         // accepted in JWT-SVIDs
	Workloads *WorkloadIssuers // of OIDC tokens of workloads; nil: none is accepted

	// CacheSize is the number of verified tokens to cache. The cache stores hashes,
	// not tokens. Zero means 8,192, which takes about 4 MB.
	CacheSize int

	// OnFailure is called for every rejected proof; it may be nil. The method is
	// "none" if there was no proof or more than one.
	OnFailure func(method broker.Method, cause string)
}

// A Verifier verifies SVIDs. It is safe for concurrent use.
//
// It caches verified proofs, so that a busy caller costs a hash instead of a
// signature check. An entry is valid until any bundle changes, and its times are
// checked on every use. Rejected proofs are never cached: a bundle that arrives
// later may make them valid.
type Verifier struct {
	source    *Source
	audiences []string
	workloads *WorkloadIssuers
	failed    func(broker.Method, string)
	tokens    *proofCache
}

// NewVerifier returns a Verifier.
func NewVerifier(cfg VerifierConfig) *Verifier {
	if cfg.CacheSize == 0 {
		cfg.CacheSize = 8192
	}
	if cfg.OnFailure == nil {
		cfg.OnFailure = func(broker.Method, string) {}
	}
	return &Verifier{
		source:    cfg.Source,
		audiences: slices.Clone(cfg.Audiences),
		workloads: cfg.Workloads,
		failed:    cfg.OnFailure,
		tokens:    newProofCache(cfg.CacheSize),
	}
}

// JWT verifies a JWT-SVID and returns its identity. The error is a *Failure.
func (v *Verifier) JWT(compact string, now time.Time) (broker.Identity, error) {
	who, err := v.jwt(compact, now)
	return who, v.countFailure(err)
}

// token verifies a token of a workload: a JWT-SVID, or an OIDC token of an issuer.
func (v *Verifier) token(ctx context.Context, compact string, now time.Time) (broker.Identity, error) {
	if v.workloads == nil || len(compact) > maxWorkloadToken {
		return v.jwt(compact, now)
	}
	key := hashOf(compact)
	if known, ok := v.workloads.cached(key); ok {
		if err := checkWorkloadTimes(known.notBefore, known.who.Proof.Expires, now); err != nil {
			return broker.Identity{}, err
		}
		return known.who, nil
	}
	if _, ok := v.tokens.get(key, v.source.trust.Load().generation); !ok {
		if t, ok := v.workloads.peek(compact); ok {
			return v.workloads.identity(ctx, t, key, now)
		}
	}
	return v.jwt(compact, now)
}

// Cached reports whether a token was verified before under the current bundles and keys,
// so that verifying it is cheap. The token may have expired since.
func (v *Verifier) Cached(compact string) bool {
	if len(compact) > maxWorkloadToken {
		return false
	}
	key := hashOf(compact)
	if _, ok := v.workloads.cached(key); ok {
		return true
	}
	_, ok := v.tokens.get(key, v.source.trust.Load().generation)
	return ok
}

func (v *Verifier) jwt(compact string, now time.Time) (broker.Identity, error) {
	if len(compact) > MaxTokenSize {
		return broker.Identity{}, jwtFailure(CauseOversized, "the JWT-SVID is larger than 8 KiB: fetch one with fewer claims")
	}
	key := hashOf(compact)
	trusted := v.source.trust.Load()
	if m, ok := v.tokens.get(key, trusted.generation); ok {
		if err := checkTimes(m.notBefore, m.who.Proof.Expires, now); err != nil {
			return broker.Identity{}, err
		}
		return m.who, nil
	}
	t, err := parseToken(compact)
	if err != nil {
		return broker.Identity{}, err
	}
	if err := v.check(t, trusted, now); err != nil {
		return broker.Identity{}, err
	}
	who := identity(t.id, broker.Proof{Method: broker.MethodJWTSVID, SHA256: key, Expires: t.expires})
	v.tokens.put(key, cachedProof{who: who, generation: trusted.generation, notBefore: t.notBefore})
	return who, nil
}

// hashOf returns the hash by which a token is cached and recorded.
func hashOf(compact string) [sha256.Size]byte {
	var text [2048]byte // on the stack; a longer token is copied to the heap
	return sha256.Sum256(append(text[:0], compact...))
}

// check verifies a token. The signature comes last, because it is the expensive
// part and anyone can send tokens.
func (v *Verifier) check(t token, trusted *trust, now time.Time) error {
	if !trusted.listed[t.id.TrustDomain()] {
		return jwtFailure(CauseTrustDomain, "workloads of this trust domain may not authenticate: ask the operator to list it in attest.trust_domains")
	}
	if !slices.Contains(v.audiences, t.audience) {
		return jwtFailure(CauseAudience, "the JWT-SVID has another audience: fetch one for the audience in the broker's discovery document")
	}
	if err := checkTimes(t.notBefore, t.expires, now); err != nil {
		return err
	}
	if t.expires.Sub(now) > MaxLifetime+Leeway {
		return jwtFailure(CauseLifetime, "the JWT-SVID is valid for more than 1 h from now: fetch one with a shorter lifetime")
	}
	return t.verify(trusted)
}

// checkTimes returns a Failure unless now is in [notBefore - Leeway, expires).
func checkTimes(notBefore, expires, now time.Time) error {
	if !now.Before(expires) {
		return jwtFailure(CauseExpired, "the JWT-SVID has expired: fetch a new one from the Workload API")
	}
	if now.Add(Leeway).Before(notBefore) {
		return jwtFailure(CauseNotYetValid, "the JWT-SVID is not valid yet: compare the clocks of its issuer and of the broker")
	}
	return nil
}

// verify checks the signature with the key that kid names in the bundle of the
// token's trust domain. The key of another trust domain never verifies it.
func (t token) verify(trusted *trust) error {
	bundle, ok := trusted.jwt[t.id.TrustDomain()]
	if !ok {
		return jwtFailure(CauseNoBundle, "the broker has no JWT authorities of this trust domain: ask the operator to check the broker's log")
	}
	keys := bundle[t.kid]
	if len(keys) == 0 {
		return jwtFailure(CauseUnknownKey, "the JWT-SVID is signed with a key that is not in the bundle of its trust domain: fetch a new one")
	}
	for i := range keys {
		if keys[i].Verify(t.alg, []byte(t.signed), t.signature) == nil {
			return nil
		}
	}
	return jwtFailure(CauseSignature, "the signature of the JWT-SVID is not valid: fetch a new one from the Workload API")
}

// countFailure reports a Failure to OnFailure and returns err.
func (v *Verifier) countFailure(err error) error {
	if f, ok := err.(*Failure); ok {
		v.failed(f.Method, string(f.Cause))
	}
	return err
}

// X509 verifies the certificate chain of a TLS connection, leaf first, and
// returns the identity of its X.509-SVID. The TLS handshake has already proved
// that the peer has the key. The error is a *Failure.
//
// X509 verifies the chain on every call. Authenticate caches the result for each
// connection.
func (v *Verifier) X509(chain []*x509.Certificate, now time.Time) (broker.Identity, error) {
	r, err := verifyX509(v.source.trust.Load(), chain, now)
	return r.who, v.countFailure(err)
}
