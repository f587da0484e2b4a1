// Package dpop verifies proofs of possession (RFC 9449): that the caller of a request holds
// a key.
//
// A proof needs a nonce of the broker. Nonces are stateless: each is a minute and its MAC
// under a key that all replicas share, so that every replica accepts the nonces of the
// others, also after a restart. A nonce dates a proof, whatever the clock of its client
// states, and bounds for how long a proof can be replayed.
//
// Within that time, a Verifier remembers the proofs that it accepted. What it remembers is
// its own: another replica may accept the same proof once. A call that issues a credential
// therefore also spends its proof in the database (see broker.Spent), in the transaction
// that opens the lease.
package dpop

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Header and NonceHeader are the names of the headers with a proof and with a nonce (RFC
// 9449, sections 4.1 and 8), in the form of http.Header.
const (
	Header      = "Dpop"
	NonceHeader = "Dpop-Nonce"
)

// Algorithms returns the algorithms that proofs may have. Ed25519 and EdDSA are two names of
// one (RFC 9864, section 2.2).
func Algorithms() []string { return []string{"ES256", "Ed25519", "EdDSA", "PS256", "RS256"} }

// maxSkew is how far the clock of a client may be off. The nonce dates the proof, so it is
// only a bound on clocks that are plainly wrong.
const maxSkew = 10 * time.Minute

// A Config configures a Verifier. All replicas of a broker need the same.
type Config struct {
	External *url.URL // of the broker
	Secrets  [][]byte // from which the keys of nonces are derived; the first makes them, all are accepted

	// Restored is when the database was last restored to an earlier time; zero: never. Which
	// proofs were used before is lost, so their nonces are not accepted.
	Restored time.Time
}

// A Verifier verifies the proofs of requests to one broker. It is safe for concurrent use.
type Verifier struct {
	external *url.URL
	nonces   *nonces
	seen     seen
	headers  headers
}

// New returns a Verifier.
func New(cfg Config) (*Verifier, error) {
	context := cfg.External.String()
	if !cfg.Restored.IsZero() {
		context += "\n" + cfg.Restored.UTC().Format(time.RFC3339Nano)
	}
	n, err := newNonces(cfg.Secrets, context)
	if err != nil {
		return nil, err
	}
	return &Verifier{external: cfg.External, nonces: n}, nil
}

// A Proof is a verified proof. The zero Proof proves nothing.
type Proof struct {
	Key   audit.Digest    // thumbprint of the key (RFC 7638)
	Once  broker.SpentKey // the proof
	Until time.Time       // when no replica accepts it any longer

	tokenHash string // ath; may be empty
}

// IsFor reports whether the proof names the token (ath; RFC 9449, section 4.2), or none.
func (p Proof) IsFor(token string) bool { return p.tokenHash == "" || p.Names(token) }

// Names reports whether the proof names the token (ath; RFC 9449, section 7.1).
func (p Proof) Names(token string) bool {
	hash := sha256.Sum256([]byte(token))
	want := base64.RawURLEncoding.EncodeToString(hash[:])
	return subtle.ConstantTimeCompare([]byte(p.tokenHash), []byte(want)) == 1
}

// Sent reports whether a request has a proof, valid or not.
func Sent(r *http.Request) bool { return len(r.Header[Header]) > 0 }

// Nonce returns the nonce for the next proofs.
func (v *Verifier) Nonce(now time.Time) string { return v.nonces.current(now) }

// Check returns the proof of a request (RFC 9449, section 4.3), or the zero Proof if the
// request has none. Errors are a *broker.Refusal of ErrInvalidDPoP or ErrUseDPoPNonce. The
// host of the request must be one of the broker's.
func (v *Verifier) Check(r *http.Request, now time.Time) (Proof, error) {
	p, err := v.Verify(r, now)
	if err == nil && !p.Key.IsZero() {
		err = v.Spend(p, now)
	}
	if err != nil {
		return Proof{}, err
	}
	return p, nil
}

// Spend returns an error if the proof was spent before. The caller has proven an identity and
// is admitted: otherwise anyone could fill the memory of proofs, which then forgets early.
func (v *Verifier) Spend(p Proof, now time.Time) error {
	if !v.seen.add(p.Once, now) {
		return invalid("the DPoP proof was used before: make a new one for each call")
	}
	return nil
}

// Verify is Check without Spend.
func (v *Verifier) Verify(r *http.Request, now time.Time) (Proof, error) {
	switch sent := r.Header[Header]; {
	case len(sent) == 0:
		return Proof{}, nil
	case len(sent) > 1:
		return Proof{}, invalid("the call has more than one DPoP header")
	default:
		return v.check(r, sent[0], now)
	}
}

// CheckToken returns nil if a request that presents an access token proves the key that the
// token is bound to, with a proof for that token (RFC 9449, section 7.1).
func (v *Verifier) CheckToken(r *http.Request, token string, bound audit.Digest, now time.Time) error {
	proof, err := v.Check(r, now)
	switch {
	case err != nil:
		return err
	case proof.Key.IsZero():
		return invalid("the token is bound to a key, and the call has no DPoP header")
	case bound.IsZero() || proof.Key != bound:
		return invalid("the DPoP proof is of another key than the token is bound to")
	case !proof.Names(token):
		return invalid("the ath of the DPoP proof is missing or of another token")
	}
	return nil
}

func (v *Verifier) check(r *http.Request, text string, now time.Time) (Proof, error) {
	p, err := v.headers.parse(text)
	if err != nil {
		return Proof{}, err
	}
	switch {
	case p.method != r.Method:
		return Proof{}, invalid("the htm of the DPoP proof is not the method of the call, " + r.Method)
	case !v.addresses(p.target, r):
		return Proof{}, invalid("the htu of the DPoP proof is not the URL of the call, " + v.external.String() + r.URL.EscapedPath())
	case p.nonce == "":
		return Proof{}, useNonce("the DPoP proof has no nonce: repeat the call with the nonce of the DPoP-Nonce header")
	}
	until, ok := v.nonces.accept(p.nonce, now)
	if !ok {
		return Proof{}, useNonce("the nonce of the DPoP proof has expired or is not the broker's: repeat the call with the nonce of the DPoP-Nonce header")
	}
	if skew := now.Sub(p.issued).Abs(); skew > maxSkew {
		return Proof{}, invalid("the iat of the DPoP proof is more than " + broker.FormatDuration(maxSkew) + " off: correct the clock")
	}
	return Proof{Key: p.thumbprint, Once: p.once(), Until: until, tokenHash: p.tokenHash}, nil
}

// Challenge returns the value of WWW-Authenticate for a request whose proof was refused
// (RFC 9449, section 7.1), or which lacks one. code may be empty.
func Challenge(code, description string) string {
	value := `DPoP algs="` + strings.Join(Algorithms(), " ") + `"`
	if code != "" {
		value += `, error="` + code + `", error_description="` + description + `"`
	}
	return value
}

func invalid(detail string) error { return &broker.Refusal{Err: broker.ErrInvalidDPoP, Detail: detail} }

func useNonce(detail string) error {
	return &broker.Refusal{Err: broker.ErrUseDPoPNonce, Detail: detail}
}
