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
	"errors"
	"fmt"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// CheckRotation returns an error if keys cannot rotate that often. A key stays
// published for one rotation after it stops signing, so no token may be valid for
// longer than that.
func CheckRotation(every, ahead, longest time.Duration) error {
	switch {
	case every < longest:
		return fmt.Errorf("signing keys rotate every %s, which is shorter than the longest ttl, %s: a key must outlive what it signs", broker.FormatDuration(every), broker.FormatDuration(longest))
	case ahead <= 0 || ahead >= every:
		return fmt.Errorf("signing keys are published %s ahead: it must be more than zero and less than their rotation, %s", broker.FormatDuration(ahead), broker.FormatDuration(every))
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

// Step loads the keys, and creates and retires those that are due at now. One process at a
// time does so, except for the first key, without which none can start.
func (k *Keys) Step(ctx context.Context, now time.Time) error {
	if err := k.load(ctx); err != nil {
		return err
	}
	if len(*k.ring.Load()) == 0 {
		return k.rotate(ctx, now)
	}
	return broker.OnDuty(ctx, k.cfg.Duties, "keys/"+k.cfg.Purpose, func(ctx context.Context) error { return k.rotate(ctx, now) })
}

// rotate makes the steps that are due at now.
func (k *Keys) rotate(ctx context.Context, now time.Time) error {
	due := schedule(rows(*k.ring.Load()), k.cfg, now)
	if due.create {
		if err := k.create(ctx, due, now); err != nil {
			return err
		}
	}
	for _, row := range due.retire {
		if err := k.retire(ctx, row); err != nil {
			return err
		}
	}
	if due.create || len(due.retire) > 0 {
		return k.load(ctx)
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

// steps are the changes to the keys that are due.
type steps struct {
	create bool
	signs  time.Time          // when the new key starts to sign
	before *broker.SigningKey // the key that signs until then; nil: none
	retire []*broker.SigningKey
}

// schedule returns the steps that are due at now. keys are in the order in which they
// sign, without retired ones.
func schedule(keys []*broker.SigningKey, cfg KeysConfig, now time.Time) (due steps) {
	for _, key := range keys {
		if !key.Retires.IsZero() && !now.Before(key.Retires) {
			due.retire = append(due.retire, key)
		}
	}
	if len(keys) == 0 {
		return steps{create: true, signs: now}
	}
	last := keys[len(keys)-1]
	next, soonest := last.Signs.Add(cfg.RotateEvery), now.Add(cfg.PublishAhead)
	switch {
	case last.Algorithm != cfg.Algorithm && !now.Before(last.Signs): // not before: another process may have another algorithm during an update
		due.create, due.before, due.signs = true, last, soonest
	case !now.Before(next.Add(-cfg.PublishAhead)):
		// If the broker was down and the rotation is late, the old key signs
		// until verifiers have had time to fetch the new one.
		due.create, due.before, due.signs = true, last, later(next, soonest)
	}
	return due
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// keyNumber is the format of a key's ID.
const keyNumber = "%06d"

// errExists means that another replica created the key first.
var errExists = errors.New("the key exists")

// create creates the next key. Keys are numbered, so that two replicas can't both
// create the successor of a key.
func (k *Keys) create(ctx context.Context, due steps, now time.Time) error {
	number := 1
	if due.before != nil {
		if _, err := fmt.Sscanf(due.before.ID.ID, keyNumber, &number); err != nil {
			return fmt.Errorf("reading the number of signing key %q: %w", due.before.ID.ID, err)
		}
		number++
	}
	row := &broker.SigningKey{
		ID:        broker.SigningKeyID{Purpose: k.cfg.Purpose, ID: fmt.Sprintf(keyNumber, number)},
		Algorithm: k.cfg.Algorithm, Published: now, Signs: due.signs,
	}
	if err := k.generate(row); err != nil {
		return err
	}
	reads := []broker.Key{row.ID}
	if due.before != nil {
		reads = append(reads, due.before.ID)
	}
	err := k.update(ctx, audit.KeyCreated, row, reads, func(tx broker.Tx) error {
		if _, err := tx.Get(row.ID); !errors.Is(err, broker.ErrNotFound) {
			return errors.Join(errExists, err)
		}
		tx.Put(row)
		return k.limit(tx, due.before, row.Signs)
	})
	if errors.Is(err, errExists) {
		return nil
	}
	return err
}

// limit sets when the key retires that signs until next: by then everything that
// it signed has expired, as nothing is valid for longer than a rotation.
func (k *Keys) limit(tx broker.Tx, key *broker.SigningKey, next time.Time) error {
	if key == nil {
		return nil
	}
	stored, err := tx.Get(key.ID)
	if err != nil {
		return err
	}
	row := stored.(*broker.SigningKey)
	row.Retires = next.Add(k.cfg.RotateEvery)
	tx.Put(row)
	return nil
}

// retire erases the private part of a key.
func (k *Keys) retire(ctx context.Context, key *broker.SigningKey) error {
	err := k.update(ctx, audit.KeyRetired, key, []broker.Key{key.ID}, func(tx broker.Tx) error {
		stored, err := tx.Get(key.ID)
		if err != nil {
			return err
		}
		row := stored.(*broker.SigningKey)
		if row.Sealed == nil {
			return broker.ErrUnchanged // another process was faster
		}
		row.Sealed = nil
		tx.Put(row)
		return nil
	})
	if errors.Is(err, broker.ErrUnchanged) {
		return nil
	}
	return err
}

// update runs f and appends its record in one transaction.
func (k *Keys) update(ctx context.Context, kind audit.Kind, key *broker.SigningKey, reads []broker.Key, f func(broker.Tx) error) error {
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

// generate generates a key pair, and stores it in row with the private part
// sealed.
func (k *Keys) generate(row *broker.SigningKey) error {
	private, err := newPrivateKey(row.Algorithm)
	if err != nil {
		return fmt.Errorf("generating a signing key: %w", err)
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

func newPrivateKey(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case "ES256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "RS256":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "EdDSA":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	}
	return nil, fmt.Errorf("no algorithm %q", algorithm)
}
