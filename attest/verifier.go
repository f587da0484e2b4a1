package attest

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"accessbroker.internal/broker"
)

// Bounds of JWT-SVIDs in time.
const (
	MaxLifetime = time.Hour        // from now to exp
	Leeway      = 30 * time.Second // for nbf and iat; there is none for exp
)

// VerifierConfig is what a Verifier is made of. Source and Audiences are
// required.
type VerifierConfig struct {
	Source    *Source
	Audiences []string // accepted in JWT-SVIDs

	// Remember is how many tokens are remembered (by their hashes) once they
	// were verified; zero means 8,192, which takes about 4 MB.
	CacheSize int

	// Failed is told of every proof that did not hold; nil: nobody is. The
	// method is "none" where there was no proof, or more than one.
	OnFailure func(method broker.Method, cause string)
}

// A Verifier turns proofs into identities. It is safe for concurrent use.
//
// A proof that held is remembered until it expires or any bundle changes, so
// that a busy caller costs a hash and not a signature check. Its times are
// looked at each time. What did not hold is never remembered.
type Verifier struct {
	source    *Source
	audiences []string
	failed    func(broker.Method, string)
	tokens    *proofCache
}

// NewVerifier makes a Verifier.
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
		failed:    cfg.OnFailure,
		tokens:    newProofCache(cfg.CacheSize),
	}
}

// JWT checks a JWT-SVID, and says whom it proves. What does not hold is a
// *Failure.
func (v *Verifier) JWT(compact string, now time.Time) (broker.Identity, error) {
	who, err := v.jwt(compact, now)
	return who, v.countFailure(err)
}

// Remembers says whether a token held before, so that looking at it again
// costs a hash. It may have expired since.
func (v *Verifier) Cached(compact string) bool {
	if len(compact) > MaxTokenSize {
		return false
	}
	_, ok := v.tokens.get(sha256.Sum256([]byte(compact)), v.source.trust.Load().generation)
	return ok
}

func (v *Verifier) jwt(compact string, now time.Time) (broker.Identity, error) {
	if len(compact) > MaxTokenSize {
		return broker.Identity{}, jwtFailure(CauseOversized, "the JWT-SVID is larger than 8 KiB: fetch one with fewer claims")
	}
	key := sha256.Sum256([]byte(compact))
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
	if err := v.check(t, compact, trusted, now); err != nil {
		return broker.Identity{}, err
	}
	who := identity(t.id, broker.Proof{Method: broker.MethodJWTSVID, SHA256: key, Expires: t.expires})
	v.tokens.put(key, cachedProof{who, trusted.generation, t.notBefore})
	return who, nil
}

// check goes from what is cheap to what is not: the signature comes last.
func (v *Verifier) check(t token, compact string, trusted *trust, now time.Time) error {
	if !trusted.listed[t.id.TrustDomain()] {
		return jwtFailure(CauseTrustDomain, "workloads of this trust domain may not authenticate here: the operator lists those that may in attest.trust_domains")
	}
	if !slices.Contains(v.audiences, t.audience) {
		return jwtFailure(CauseAudience, "fetch a JWT-SVID for the broker's audience: its discovery document names it")
	}
	if err := checkTimes(t.notBefore, t.expires, now); err != nil {
		return err
	}
	if t.expires.Sub(now) > MaxLifetime {
		return jwtFailure(CauseLifetime, "the JWT-SVID is valid for more than 1 h from now: fetch a shorter one")
	}
	return t.verify(compact, trusted, v.audiences)
}

// inTime wants now to be in [notBefore - Leeway, expires). go-jose allows
// itself a minute on both sides, which is why this is checked here.
func checkTimes(notBefore, expires, now time.Time) error {
	if !now.Before(expires) {
		return jwtFailure(CauseExpired, "the JWT-SVID has expired: fetch a fresh one from the Workload API")
	}
	if now.Add(Leeway).Before(notBefore) {
		return jwtFailure(CauseNotYetValid, "the JWT-SVID is not valid yet: compare the clocks of its issuer and of the broker")
	}
	return nil
}

// verify checks the signature by the authority that kid names.
func (t token) verify(compact string, trusted *trust, audiences []string) error {
	bundle, ok := trusted.jwt[t.id.TrustDomain()]
	if !ok {
		return jwtFailure(CauseNoBundle, "the broker has no JWT authorities of this trust domain, so it can't verify a JWT-SVID of it: its operator finds the cause in the log")
	}
	if _, ok := bundle.FindJWTAuthority(t.kid); !ok {
		return jwtFailure(CauseUnknownKey, "the JWT-SVID is signed by a key that is not in the bundle of its trust domain: fetch a fresh one")
	}
	svid, err := jwtsvid.ParseAndValidate(compact, trusted, audiences)
	if err != nil {
		return jwtFailure(CauseSignature, "the signature of the JWT-SVID does not hold: fetch a fresh one from the Workload API")
	}
	// Two parsers read it. If they ever disagree, believe neither.
	if svid.ID != t.id || !svid.Expiry.Equal(t.expires) || !slices.Equal(svid.Audience, []string{t.audience}) {
		return jwtFailure(CauseMalformed, "the JWT-SVID can be read in more than one way")
	}
	return nil
}

// count tells of a failure, and gives err as it is.
func (v *Verifier) countFailure(err error) error {
	if f, ok := err.(*Failure); ok {
		v.failed(f.Method, string(f.Cause))
	}
	return err
}

// X509 checks the X.509-SVID that a TLS connection came with, leaf first, and
// says whom it proves. That the peer holds its key, TLS has seen to. What does
// not hold is a *Failure.
//
// It verifies the whole chain; Authenticate remembers what a connection proved.
func (v *Verifier) X509(chain []*x509.Certificate, now time.Time) (broker.Identity, error) {
	r, err := verifyX509(v.source.trust.Load(), chain, now)
	return r.who, v.countFailure(err)
}
