package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A KeyStore keeps signing keys.
type KeyStore interface {
	broker.Store
	SigningKeys(ctx context.Context, purpose string) ([]*broker.SigningKey, error)
}

// KeysConfig says how signing keys live.
type KeysConfig struct {
	Store        KeyStore
	Sealer       *broker.Sealer
	Purpose      string        // what the keys sign: "token"
	Algorithm    string        // ES256, RS256 or EdDSA (RFC 7518, RFC 8037)
	RotateEvery  time.Duration // how long a key signs
	PublishAhead time.Duration // how long a key is in the JWKS before it signs
	LongestTTL   time.Duration // of all that the keys sign
	Log          *slog.Logger
}

// Keys are the broker's signing keys of one purpose. A key is published before
// it signs, signs for RotateEvery, and stays published until the last token
// that it signed is dead; then its private part is destroyed. It is safe for
// concurrent use; signing takes no lock.
type Keys struct {
	cfg  KeysConfig
	ring atomic.Pointer[[]*signingKey] // by the time from which they sign
}

type signingKey struct {
	row    broker.SigningKey
	kid    string
	method jwt.SigningMethod
	signer crypto.Signer
	header string // of access tokens, encoded
	jwk    string
}

// OpenKeys loads the keys, and makes the first one if there is none. It
// refuses a rotation that is shorter than the life of what the keys sign: the
// JWKS would grow without bound, and a key be gone before its tokens.
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
	k := &Keys{cfg: cfg}
	if err := k.load(ctx); err != nil {
		return nil, err
	}
	if err := k.Step(ctx, now); err != nil {
		return nil, err
	}
	return k, nil
}

// CheckRotation says whether keys that sign tokens of up to longest may be
// rotated so often.
func CheckRotation(every, ahead, longest time.Duration) error {
	switch {
	case every < longest:
		return fmt.Errorf("signing keys rotate every %s, which is shorter than the longest ttl, %s: a key must outlive what it signs", broker.Short(every), broker.Short(longest))
	case ahead <= 0 || ahead >= every:
		return fmt.Errorf("signing keys are published %s ahead: it must be more than nothing and less than their rotation, %s", broker.Short(ahead), broker.Short(every))
	}
	return nil
}

// Run rotates and retires keys until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	tick := time.NewTicker(min(time.Minute, k.cfg.PublishAhead/4))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := k.Step(ctx, time.Now()); err != nil && ctx.Err() == nil {
				k.cfg.Log.ErrorContext(ctx, "rotating signing keys", "purpose", k.cfg.Purpose, "err", err)
			}
		}
	}
}

// Step does what the schedule wants done by now.
func (k *Keys) Step(ctx context.Context, now time.Time) error {
	if err := k.load(ctx); err != nil {
		return err
	}
	todo := plan(rows(*k.ring.Load()), k.cfg, now)
	if todo.make {
		if err := k.make(ctx, todo, now); err != nil {
			return err
		}
	}
	for _, row := range todo.retire {
		if err := k.retire(ctx, row); err != nil {
			return err
		}
	}
	if todo.make || len(todo.retire) > 0 {
		return k.load(ctx)
	}
	return nil
}

// A todo is what the schedule wants done.
type todo struct {
	make   bool
	signs  time.Time          // when the new key begins to sign
	before *broker.SigningKey // the one that signs until then; nil: none
	retire []*broker.SigningKey
}

// plan compares the keys with the schedule. keys are in the order in which
// they sign, without those that are retired.
func plan(keys []*broker.SigningKey, cfg KeysConfig, now time.Time) (t todo) {
	for _, key := range keys {
		if !key.Retires.IsZero() && !now.Before(key.Retires) {
			t.retire = append(t.retire, key)
		}
	}
	if len(keys) == 0 {
		return todo{make: true, signs: now}
	}
	last := keys[len(keys)-1]
	next := last.Signs.Add(cfg.RotateEvery)
	if last.Algorithm != cfg.Algorithm || !now.Before(next.Add(-cfg.PublishAhead)) {
		// A broker that was down for long is late: the old key goes on
		// signing until verifiers had the time to see the new one.
		t.make, t.before, t.signs = true, last, later(next, now.Add(cfg.PublishAhead))
		if last.Algorithm != cfg.Algorithm {
			t.signs = now.Add(cfg.PublishAhead)
		}
	}
	return t
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// errMade says that another replica was first.
var errMade = errors.New("the key is there")

// make makes the next key. Its number is its name, so that two replicas can't
// make it twice.
func (k *Keys) make(ctx context.Context, t todo, now time.Time) error {
	number := 1
	if t.before != nil {
		if _, err := fmt.Sscanf(t.before.ID.ID, keyNumber, &number); err != nil {
			return fmt.Errorf("reading the number of signing key %q: %w", t.before.ID.ID, err)
		}
		number++
	}
	row := &broker.SigningKey{
		ID:        broker.SigningKeyID{Purpose: k.cfg.Purpose, ID: fmt.Sprintf(keyNumber, number)},
		Algorithm: k.cfg.Algorithm, Published: now, Signs: t.signs,
	}
	if err := k.generate(row); err != nil {
		return err
	}
	reads := []broker.Key{row.ID}
	if t.before != nil {
		reads = append(reads, t.before.ID)
	}
	err := k.write(ctx, audit.KeyCreated, row, reads, func(tx broker.Tx) error {
		if _, err := tx.Get(row.ID); !errors.Is(err, broker.ErrNotFound) {
			return errors.Join(errMade, err)
		}
		if t.before != nil {
			before, err := tx.Get(t.before.ID)
			if err != nil {
				return err
			}
			old := before.(*broker.SigningKey)
			// Nothing that it signs lives longer than a rotation.
			old.Retires = row.Signs.Add(k.cfg.RotateEvery)
			tx.Put(old)
		}
		tx.Put(row)
		return nil
	})
	if errors.Is(err, errMade) {
		return nil
	}
	return err
}

const keyNumber = "%06d"

func (k *Keys) retire(ctx context.Context, key *broker.SigningKey) error {
	return k.write(ctx, audit.KeyRetired, key, []broker.Key{key.ID}, func(tx broker.Tx) error {
		row, err := tx.Get(key.ID)
		if err != nil {
			return err
		}
		gone := row.(*broker.SigningKey)
		gone.Sealed = nil
		tx.Put(gone)
		return nil
	})
}

func (k *Keys) write(ctx context.Context, kind audit.Kind, key *broker.SigningKey, reads []broker.Key, f func(broker.Tx) error) error {
	facts := &audit.KeyFacts{ID: key.ID.ID, Purpose: key.ID.Purpose, Algorithm: key.Algorithm, Public: sha256.Sum256(key.Public)}
	entry, err := audit.Record{Kind: kind, Key: facts}.Entry()
	if err != nil {
		return fmt.Errorf("recording signing key %q: %w", key.ID.ID, err)
	}
	err = k.cfg.Store.Update(ctx, reads, func(tx broker.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		tx.Append(entry)
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing signing key %q: %w", key.ID.ID, err)
	}
	return nil
}

// generate makes the private key and seals it.
func (k *Keys) generate(row *broker.SigningKey) error {
	var private crypto.Signer
	var err error
	switch row.Algorithm {
	case "ES256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "RS256":
		private, err = rsa.GenerateKey(rand.Reader, 3072)
	case "EdDSA":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return fmt.Errorf("making a signing key: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return fmt.Errorf("encoding a signing key: %w", err)
	}
	row.Sealed = k.cfg.Sealer.Seal(row.ID.Purpose, row.ID.ID, secret)
	if row.Public, err = x509.MarshalPKIXPublicKey(private.Public()); err != nil {
		return fmt.Errorf("encoding a public key: %w", err)
	}
	return nil
}

// load reads the keys that are not retired.
func (k *Keys) load(ctx context.Context) error {
	stored, err := k.cfg.Store.SigningKeys(ctx, k.cfg.Purpose)
	if err != nil {
		return fmt.Errorf("reading signing keys: %w", err)
	}
	var ring []*signingKey
	for _, row := range stored {
		if row.Sealed == nil {
			continue
		}
		key, err := k.open(row)
		if err != nil {
			return err
		}
		ring = append(ring, key)
	}
	slices.SortFunc(ring, func(a, b *signingKey) int { return a.row.Signs.Compare(b.row.Signs) })
	k.ring.Store(&ring)
	return nil
}

func (k *Keys) open(row *broker.SigningKey) (*signingKey, error) {
	secret, err := k.cfg.Sealer.Open(row.ID.Purpose, row.ID.ID, row.Sealed)
	if err != nil {
		return nil, fmt.Errorf("opening signing key %q: %w", row.ID.ID, err)
	}
	private, err := x509.ParsePKCS8PrivateKey(secret)
	clear(secret)
	signer, ok := private.(crypto.Signer)
	method := methodOf(row.Algorithm)
	if err != nil || !ok || method == nil {
		return nil, fmt.Errorf("opening signing key %q: it is not a key for %s", row.ID.ID, row.Algorithm)
	}
	key := &signingKey{row: *row, method: method, signer: signer}
	if key.kid, key.jwk, err = jwk(signer.Public(), row.Algorithm); err != nil {
		return nil, fmt.Errorf("opening signing key %q: %w", row.ID.ID, err)
	}
	header := audit.NewObject().String("alg", key.row.Algorithm).String("kid", key.kid).String("typ", "at+jwt").Bytes()
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

func rows(ring []*signingKey) []*broker.SigningKey {
	list := make([]*broker.SigningKey, len(ring))
	for i, key := range ring {
		list[i] = &key.row
	}
	return list
}

// current gives the key that signs at now.
func (k *Keys) current(now time.Time) *signingKey {
	ring := *k.ring.Load()
	for i := len(ring) - 1; i >= 0; i-- {
		if !now.Before(ring[i].row.Signs) {
			return ring[i]
		}
	}
	return nil
}

// Algorithm returns the algorithm of new keys. Older keys may have another one.
func (k *Keys) Algorithm() string { return k.cfg.Algorithm }

// Sign returns claims as a JWT, signed by the key in use at now. It fails if
// that key's algorithm is not one of algorithms. The token's typ is JWT, so no
// API accepts it as an access token (RFC 8725, section 3.11).
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

// published gives the keys whose signatures count at now.
func (k *Keys) published(now time.Time) []*signingKey {
	var list []*signingKey
	for _, key := range *k.ring.Load() {
		if key.row.Retires.IsZero() || now.Before(key.row.Retires) {
			list = append(list, key)
		}
	}
	return list
}

// Reseal seals every key with the sealer's first key. It gives how many it
// sealed anew.
func (k *Keys) Reseal(ctx context.Context) (int, error) {
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

// Reseal seals one key with the sealer's first key; false if it was already.
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
