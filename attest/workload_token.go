package attest

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/attest/mapping"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// maxWorkloadToken is the largest OIDC token of a workload, in bytes. Those of GitLab may
// list groups.
const maxWorkloadToken = 16 << 10

// workloadFailure returns a Failure for an OIDC token of a workload.
func workloadFailure(cause Cause, detail string) error {
	return &Failure{broker.MethodOIDCToken, cause, "the workload's OIDC token " + detail}
}

// A workloadToken is a parsed token. Nothing in it is trustworthy until the signature is
// verified.
type workloadToken struct {
	personClaims // of which only the raw ones are used
	signed       *jwks.Signed
	issuer       *workloadIssuer
	id           string // jti; may be empty

	issued, notBefore, expires time.Time
}

// peek returns the issuer of a token by its unverified iss, nil if the token is not for the
// issuers. A token whose sub is a SPIFFE ID is a JWT-SVID, whatever its iss: an issuer cannot
// take over SVIDs, and SVIDs do not change their meaning if SPIRE's own issuer is listed.
func (w *WorkloadIssuers) peek(compact string) (t workloadToken, ok bool) {
	if w == nil || len(compact) > maxWorkloadToken {
		return t, false
	}
	var err error
	if t.signed, err = jwks.ParseCompact(compact); err != nil {
		return t, false
	}
	if t.personClaims, err = parseClaims(t.signed.Payload); err != nil {
		return t, false
	}
	issuer, subject := text(t.raw["iss"]), text(t.raw["sub"])
	if strings.HasPrefix(strings.ToLower(subject), "spiffe:") {
		return t, false
	}
	t.issuer = w.byURL[issuer]
	return t, true
}

// Issues reports whether a token claims to be one of an issuer for its audience. The claims
// are not verified.
func (w *WorkloadIssuers) Issues(compact string) bool {
	t, ok := w.peek(compact)
	return ok && t.issuer != nil && t.only("aud") == t.issuer.cfg.Audience
}

// cached returns the identity of a token that was verified before with keys that have not
// changed since.
func (w *WorkloadIssuers) cached(key [sha256.Size]byte) (known cachedWorkload, ok bool) {
	if w == nil {
		return known, false
	}
	if known, ok = w.tokens.get(key); !ok {
		return known, false
	}
	generation, trusted := known.issuer.keys.Generation()
	return known, trusted && generation == known.generation
}

// A cachedWorkload is what a verified token proves, and the keys that verified it.
type cachedWorkload struct {
	who        broker.Identity
	notBefore  time.Time
	issuer     *workloadIssuer
	generation jwks.Generation
}

// identity verifies a token.
func (w *WorkloadIssuers) identity(ctx context.Context, t workloadToken, key [sha256.Size]byte, now time.Time) (broker.Identity, error) {
	if t.issuer == nil {
		return broker.Identity{}, workloadFailure(CauseIssuer, "is of an issuer that the operator did not configure in attest.oidc_workloads: the iss must be the same, also in a slash at its end")
	}
	if err := t.read(); err != nil {
		return broker.Identity{}, err
	}
	if err := checkWorkloadTimes(t.notBefore, t.expires, now); err != nil {
		return broker.Identity{}, err
	}
	generation, _ := t.issuer.keys.Generation() // before: a fetch may replace the keys
	if err := w.verify(ctx, t.issuer, t.signed, now); err != nil {
		return broker.Identity{}, err
	}
	// Only then: the outcome tells which rules there are.
	id, err := mapping.Map(t.issuer.cfg.Rules, t.raw)
	if err != nil {
		return broker.Identity{}, mappingFailure(err)
	}
	who := broker.Identity{
		ID: id, TrustDomain: broker.TrustDomainOf(id), Paths: broker.SPIFFEPaths(id), Kind: broker.KindWorkload, Attested: broker.AttestedOIDC,
		Proof: broker.Proof{Method: broker.MethodOIDCToken, SHA256: key, Expires: t.expires},
	}
	if t.id != "" && !t.issuer.cfg.Reusable {
		once := audit.HashObject("accessbroker/workload-token/v1", audit.NewObject().String("id", t.id).String("issuer", t.issuer.cfg.Issuer))
		who.Once = []broker.Spent{{SpentKey: broker.SpentKey(once), Expires: t.expires.Add(Leeway)}}
	}
	if proof := (cachedProof{who: who}); proof.size() <= maxCachedProof { // otherwise, it is verified again for each call
		w.tokens.put(key, cachedWorkload{who, t.notBefore, t.issuer, generation})
	}
	return who, nil
}

// mappingFailure returns the Failure of a token that no rule maps. It does not say which
// condition failed: the caller may be of another repository, and the rules are the
// operator's.
func mappingFailure(err error) error {
	var segment *mapping.SegmentError
	switch {
	case errors.Is(err, mapping.ErrAmbiguous):
		return workloadFailure(CauseRule, "matches rules of several identities: ask the operator to make the rules exclude each other")
	case errors.As(err, &segment):
		return workloadFailure(CauseRule, "matches a rule that cannot be applied: "+segment.Error())
	}
	return workloadFailure(CauseRule, "matches no rule of its issuer: ask the operator which workloads may call, and compare the claims of the token")
}

// read checks everything of a token but its times against the clock and its signature.
func (t *workloadToken) read() error {
	if err := t.readHeader(); err != nil {
		return err
	}
	// Claims of ID tokens of people, logout tokens and security events, whatever the header
	// says, and of tokens that are more than a bearer token of the caller.
	for _, name := range []string{"nonce", "at_hash", "c_hash", "s_hash", "events", "act", "may_act", "cnf"} {
		if t.raw[name] != nil {
			return workloadFailure(CauseType, "has the claim "+name+" of another kind of token")
		}
	}
	var subject string
	for name, into := range map[string]*string{"sub": &subject, "jti": &t.id} {
		var err error
		if *into, err = t.text(name); err != nil || len(*into) > maxClaimText || t.raw[name] != nil && *into == "" {
			return workloadFailure(CauseMalformed, "has a "+name+" that is not a text of 1 to 512 bytes")
		}
	}
	if t.only("aud") != t.issuer.cfg.Audience {
		return workloadFailure(CauseAudience, "must have exactly one audience, that of the broker: get one for the audience "+t.issuer.cfg.Audience)
	}
	return t.readTimes()
}

// readHeader checks typ and alg (RFC 8725, sections 3.1 and 3.11). Kubernetes leaves typ out.
func (t *workloadToken) readHeader() error {
	if typ := strings.ToLower(t.signed.Type); typ != "" && typ != "jwt" {
		return workloadFailure(CauseType, "must have the typ JWT, or none")
	}
	if !slices.Contains(t.issuer.cfg.Algorithms, t.signed.Algorithm) {
		return workloadFailure(CauseAlgorithm, "is signed with an algorithm that its issuer may not use: the operator lists them in attest.oidc_workloads")
	}
	return nil
}

func (t *workloadToken) readTimes() (err error) {
	for name, into := range map[string]*time.Time{"exp": &t.expires, "iat": &t.issued, "nbf": &t.notBefore} {
		if *into, err = t.seconds(name); err != nil {
			return workloadFailure(CauseMalformed, "has a malformed "+name+": it must be in seconds (RFC 7519, section 2)")
		}
	}
	t.expires = t.expires.Truncate(time.Second)
	switch longest := t.issuer.cfg.MaxLifetime; {
	case t.expires.IsZero() || t.issued.IsZero():
		return workloadFailure(CauseMalformed, "needs exp and iat")
	case !t.issued.Before(t.expires) || t.expires.Sub(t.issued) > longest+Leeway:
		return workloadFailure(CauseLifetime, "is valid for longer than "+broker.FormatDuration(longest)+": get one with a shorter lifetime, or ask the operator for a longer max_lifetime")
	}
	if t.issued.After(t.notBefore) {
		t.notBefore = t.issued
	}
	return nil
}

// checkWorkloadTimes returns a Failure unless now is in [notBefore - Leeway, expires).
func checkWorkloadTimes(notBefore, expires, now time.Time) error {
	if !now.Before(expires) {
		return workloadFailure(CauseExpired, "has expired: get a new one from its issuer")
	}
	if now.Add(Leeway).Before(notBefore) {
		return workloadFailure(CauseNotYetValid, "is not valid yet: compare the clocks of its issuer and of the broker")
	}
	return nil
}
