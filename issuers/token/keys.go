package token

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A KeyStore stores signing keys.
type KeyStore interface {
	broker.Store
	SigningKeys(ctx context.Context, purpose string) ([]*broker.SigningKey, error)
}

// KeysConfig configures how signing keys are stored and rotated.
type KeysConfig struct {
	Store        KeyStore
	Sealer       *broker.Sealer
	Purpose      string        // the use of the keys: "token"
	Algorithm    string        // of new keys: ES256, RS256 or EdDSA (RFC 7518, RFC 8037)
	RotateEvery  time.Duration // how long a key signs
	PublishAhead time.Duration // how long a key is in the JWKS before it signs
	LongestTTL   time.Duration // of the tokens that the keys sign
	Duties       broker.Duties // one process rotates; nil: no other one shares Store
	Log          *slog.Logger
}

// Keys are the broker's signing keys of one purpose. A key is published before it
// signs, signs for RotateEvery, and stays published until the last token that it
// signed has expired; then its private part is erased. Keys is safe for
// concurrent use. Signing takes no lock.
type Keys struct {
	cfg  KeysConfig
	ring atomic.Pointer[[]*signingKey] // in the order in which they sign, without retired ones

	loading sync.Mutex // held while the ring is read

	verified verifiedTokens
}

type signingKey struct {
	row    broker.SigningKey
	kid    string
	method jwt.SigningMethod
	signer crypto.Signer
	header string // of access tokens, encoded
	jwk    string
}

// OpenKeys loads the keys, and creates the first one if there is none. It fails
// if CheckRotation does.
func OpenKeys(ctx context.Context, cfg KeysConfig, now time.Time) (*Keys, error) {
	if methodOf(cfg.Algorithm) == nil {
		return nil, fmt.Errorf("signing algorithm %q: choose ES256, RS256 or EdDSA", cfg.Algorithm)
	}
	if err := CheckRotation(cfg.RotateEvery, cfg.PublishAhead, cfg.LongestTTL); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Duties == nil {
		cfg.Duties = broker.Alone
	}
	k := &Keys{cfg: cfg}
	if err := k.Step(ctx, now); err != nil {
		return nil, err
	}
	return k, nil
}

// Follow reads the keys again: another process changed them.
func (k *Keys) Follow(ctx context.Context) error { return k.load(ctx) }

// load reads the keys that are not retired.
func (k *Keys) load(ctx context.Context) error {
	k.loading.Lock() // the latest reading stays
	defer k.loading.Unlock()
	stored, err := k.cfg.Store.SigningKeys(ctx, k.cfg.Purpose)
	if err != nil {
		return fmt.Errorf("reading signing keys: %w", err)
	}
	var ring []*signingKey
	for _, row := range stored {
		if row.Sealed == nil {
			continue
		}
		key, err := k.unseal(row)
		if err != nil {
			return err
		}
		ring = append(ring, key)
	}
	slices.SortFunc(ring, func(a, b *signingKey) int { return a.row.Signs.Compare(b.row.Signs) })
	k.ring.Store(&ring)
	return nil
}

func (k *Keys) unseal(row *broker.SigningKey) (*signingKey, error) {
	secret, err := k.cfg.Sealer.Open(row.ID.Purpose, row.ID.ID, row.Sealed)
	if err != nil {
		return nil, fmt.Errorf("unsealing signing key %q: %w", row.ID.ID, err)
	}
	private, err := x509.ParsePKCS8PrivateKey(secret)
	clear(secret)
	signer, ok := private.(crypto.Signer)
	method := methodOf(row.Algorithm)
	if err != nil || !ok || method == nil {
		return nil, fmt.Errorf("unsealing signing key %q: not a key for %s", row.ID.ID, row.Algorithm)
	}
	key := &signingKey{row: *row, method: method, signer: signer}
	if key.kid, key.jwk, err = jwk(signer.Public(), row.Algorithm); err != nil {
		return nil, fmt.Errorf("unsealing signing key %q: %w", row.ID.ID, err)
	}
	header := audit.NewObject().String("alg", row.Algorithm).String("kid", key.kid).String("typ", accessToken).Bytes()
	key.header = base64.RawURLEncoding.EncodeToString(header)
	return key, nil
}

func methodOf(algorithm string) jwt.SigningMethod {
	switch algorithm {
	case "ES256":
		return jwt.SigningMethodES256
	case "RS256":
		return jwt.SigningMethodRS256
	case "EdDSA":
		return jwt.SigningMethodEdDSA
	}
	return nil
}

// current returns the key that signs at now; nil if none does yet.
func (k *Keys) current(now time.Time) *signingKey {
	ring := *k.ring.Load()
	for i := len(ring) - 1; i >= 0; i-- {
		if !now.Before(ring[i].row.Signs) {
			return ring[i]
		}
	}
	return nil
}

// published returns the keys whose signatures verifiers accept at now, including
// those that do not sign yet.
func (k *Keys) published(now time.Time) []*signingKey {
	var list []*signingKey
	for _, key := range *k.ring.Load() {
		if key.row.Retires.IsZero() || now.Before(key.row.Retires) {
			list = append(list, key)
		}
	}
	return list
}

// Algorithm returns the algorithm of new keys. Older keys may have another one.
func (k *Keys) Algorithm() string { return k.cfg.Algorithm }

// Sign returns claims as a JWT, signed by the key in use at now. It fails if that
// key's algorithm is not one of algorithms. The token's typ is JWT, so that no API
// accepts it as an access token (RFC 8725, section 3.11).
func (k *Keys) Sign(claims map[string]any, now time.Time, algorithms ...string) (string, error) {
	key := k.current(now)
	if key == nil || !slices.Contains(algorithms, key.row.Algorithm) {
		return "", fmt.Errorf("no signing key for %s is in use yet", strings.Join(algorithms, " or "))
	}
	t := jwt.NewWithClaims(key.method, jwt.MapClaims(claims))
	t.Header["kid"] = key.kid
	signed, err := t.SignedString(key.signer)
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	return signed, nil
}

// KeyInfo is the public part of a signing key.
type KeyInfo struct {
	ID, KID, Algorithm        string
	Published, Signs, Retires time.Time // Retires is zero until the key has a successor
}

// List returns the keys that are not retired, in the order in which they sign.
func (k *Keys) List() []KeyInfo {
	var list []KeyInfo
	for _, key := range *k.ring.Load() {
		list = append(list, KeyInfo{key.row.ID.ID, key.kid, key.row.Algorithm, key.row.Published, key.row.Signs, key.row.Retires})
	}
	return list
}

// Reseal seals every key with the sealer's first key, and returns how many were
// sealed with another one. It reads the keys before, because another process may have
// created one.
func (k *Keys) Reseal(ctx context.Context) (int, error) {
	if err := k.load(ctx); err != nil {
		return 0, err
	}
	n := 0
	for _, key := range *k.ring.Load() {
		done, err := Reseal(ctx, k.cfg.Store, k.cfg.Sealer, key.row.ID)
		if err != nil {
			return n, err
		}
		if done {
			n++
		}
	}
	return n, k.load(ctx)
}

// Reseal seals one key with the sealer's first key. It returns false if the key
// already was, or is retired.
func Reseal(ctx context.Context, store broker.Store, sealer *broker.Sealer, id broker.SigningKeyID) (done bool, err error) {
	err = store.Update(ctx, []broker.Key{id}, func(tx broker.Tx) error {
		done = false
		stored, err := tx.Get(id)
		if err != nil {
			return err
		}
		row := stored.(*broker.SigningKey)
		if row.Sealed == nil || sealer.Current(row.Sealed) {
			return nil
		}
		secret, err := sealer.Open(id.Purpose, id.ID, row.Sealed)
		if err != nil {
			return err
		}
		row.Sealed = sealer.Seal(id.Purpose, id.ID, secret)
		clear(secret)
		tx.Put(row)
		done = true
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("resealing key %q: %w", id.ID, err)
	}
	return done, nil
}
