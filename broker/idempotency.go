package broker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"accessbroker.internal/audit"
)

// IdempotencyLasts is how long a call can be repeated with its Idempotency-Key.
const IdempotencyLasts = 24 * time.Hour

// An IdempotencyKey identifies a call that may be repeated. The zero key is
// that of a call without an Idempotency-Key header, which is never a repeat.
type IdempotencyKey struct {
	ID   IdempotencyID
	Body audit.Digest // SHA-256 of the call's body, which a repeat must have too
}

// NewIdempotencyKey returns the key of a call by its Idempotency-Key header.
// The header is scoped to the caller, the method and the path. Without a header
// the key is zero.
func NewIdempotencyKey(caller, method, path, header string, body []byte) IdempotencyKey {
	if header == "" {
		return IdempotencyKey{}
	}
	h := sha256.New()
	for _, part := range []string{caller, method, path, header} {
		// Each part follows its length, so that different parts have different ids.
		_ = binary.Write(h, binary.BigEndian, uint32(len(part))) // never fails
		h.Write([]byte(part))
	}
	return IdempotencyKey{ID: IdempotencyID(h.Sum(nil)), Body: sha256.Sum256(body)}
}

func (k IdempotencyKey) isZero() bool { return k.ID == IdempotencyID{} }

// reads returns the row that record and replace read.
func (k IdempotencyKey) reads() []Key {
	if k.isZero() {
		return nil
	}
	return []Key{k.ID}
}

// prior returns the result of an earlier call with the key, or nil.
func (b *Broker) prior(ctx context.Context, k IdempotencyKey) (*Idempotency, error) {
	if k.isZero() {
		return nil, nil
	}
	var row *Idempotency
	err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		row, err = Get[*Idempotency](tx, k.ID)
		return ignoreNotFound(err)
	})
	if err != nil {
		return nil, Unavailable(err)
	}
	if row != nil && row.Body != k.Body {
		return nil, errOtherBody
	}
	return row, nil
}

var errOtherBody = refuse(ErrIdempotencyMismatch, "this Idempotency-Key was used with another body: use a new one")

// record stores the request that the call leads to. It returns errOvertaken if
// another call with the same key was first.
func (k IdempotencyKey) record(tx Tx, r RequestID, now time.Time) error {
	_, err := k.replace(tx, LeaseID{}, r, LeaseID{}, now)
	return err
}

// replace stores the request and the lease that the call leads to, in place of
// the lease that the key led to before. It returns how often the call was
// repeated, and errOvertaken if the key now leads to another lease.
func (k IdempotencyKey) replace(tx Tx, old LeaseID, r RequestID, l LeaseID, now time.Time) (repeats int, err error) {
	if k.isZero() {
		return 0, nil
	}
	row, err := Get[*Idempotency](tx, k.ID)
	switch {
	case isNotFound(err):
		row = &Idempotency{IdempotencyID: k.ID, Body: k.Body, Created: now}
	case err != nil:
		return 0, err
	case row.Body != k.Body:
		return 0, errOtherBody
	case row.Lease != old, old.IsZero() && row.Request != r:
		return 0, errOvertaken
	case !old.IsZero():
		row.Repeats++
	}
	row.Request, row.Lease = r, l
	tx.Put(row)
	return row.Repeats, nil
}
