package token

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// maxInspected is the length of the longest token that Inspect parses, in bytes.
const maxInspected = 16 << 10

// Inspect returns the lease that one of this issuer's tokens belongs to, and
// broker.ErrNotFound for any other text. It verifies everything except the
// token's times.
func (t *Issuer) Inspect(_ context.Context, token string) (broker.LeaseID, error) {
	if len(token) > maxInspected {
		return broker.LeaseID{}, errNotOurs
	}
	found, err := t.keys.verify(token, time.Now(), t.isOurs)
	if err != nil || !t.isOurs(&found) {
		return broker.LeaseID{}, errNotOurs
	}
	return found.lease, nil
}

// Remembers reports whether a token is cheap to verify, because it was minted or
// verified here before.
func (k *Keys) Remembers(token string) bool {
	if len(token) > maxInspected {
		return true // it is refused without verifying it
	}
	known, ok := k.verified.get(maphash.String(tokenSeed, token))
	return ok && known.hash == sha256.Sum256([]byte(token))
}

func (t *Issuer) isOurs(found *inspected) bool { return *found.target == t.target }

// errNotOurs gives no reason, which could help an attacker.
var errNotOurs = fmt.Errorf("%w: not a token of this issuer", broker.ErrNotFound)

// inspected are the claims of an access token that lead to its lease.
type inspected struct {
	hash   audit.Digest // SHA-256 of the token
	key    *signingKey
	target *target
	lease  broker.LeaseID
}

// verify returns the claims of an access token that one of the published keys signed.
// All issuers share the keys, so it remembers tokens of all of them, and answers quickly
// if a remembered token is not wanted.
func (k *Keys) verify(token string, now time.Time, wanted func(*inspected) bool) (inspected, error) {
	fast := maphash.String(tokenSeed, token)
	known, ok := k.verified.get(fast)
	if ok && !wanted(&known) {
		return known, nil
	}
	hash := audit.Digest(sha256.Sum256([]byte(token)))
	if ok && known.hash == hash {
		if k.isPublished(known.key, now) {
			return known, nil
		}
		return inspected{}, errNoKey
	}
	var claims struct {
		jwt.RegisteredClaims
		Audience string `json:"aud"`
	}
	var found inspected
	keyOf := func(token *jwt.Token) (any, error) {
		// The token must have that key's algorithm and the type of access tokens (RFC
		// 8725, sections 3.1 and 3.11).
		for _, key := range k.published(now) {
			if token.Header["kid"] == key.kid && token.Method.Alg() == key.row.Algorithm && token.Header["typ"] == accessToken {
				found.key = key
				return key.signer.Public(), nil
			}
		}
		return nil, errNoKey
	}
	parser := jwt.NewParser(jwt.WithoutClaimsValidation(), jwt.WithValidMethods([]string{"ES256", "RS256", "EdDSA"}))
	if _, err := parser.ParseWithClaims(token, &claims, keyOf); err != nil {
		return inspected{}, fmt.Errorf("verifying a token: %w", err)
	}
	lease, err := broker.ParseLeaseID(claims.ID)
	if err != nil {
		return inspected{}, err
	}
	found.hash, found.target, found.lease = hash, &target{claims.Issuer, claims.Audience}, lease
	k.verified.put(fast, found)
	return found, nil
}

var errNoKey = errors.New("no such key")

// isPublished reports whether verifiers still accept signatures of the key.
func (k *Keys) isPublished(known *signingKey, now time.Time) bool {
	for _, key := range k.published(now) {
		if key.kid == known.kid {
			return true
		}
	}
	return false
}

// maxVerified is the number of places for tokens. They take 72 bytes each.
const maxVerified = 65536

// verifiedTokens remembers tokens that were minted here or whose signature was verified.
// It holds no token: a fast hash finds the place of a token, and only its SHA-256
// proves that it is the same. The newest token of a place replaces the one before, so
// remembering allocates nothing. It is safe for concurrent use.
type verifiedTokens struct {
	mu     sync.Mutex
	places []place // maxVerified of them, or none before the first token
}

// A place is empty while it has no key.
type place struct {
	fast uint64
	inspected
}

var tokenSeed = maphash.MakeSeed()

func (v *verifiedTokens) get(fast uint64) (inspected, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.places == nil {
		return inspected{}, false
	}
	p := &v.places[fast%maxVerified]
	return p.inspected, p.key != nil && p.fast == fast
}

func (v *verifiedTokens) put(fast uint64, known inspected) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.places == nil {
		v.places = make([]place, maxVerified)
	}
	v.places[fast%maxVerified] = place{fast, known}
}
