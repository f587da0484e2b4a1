package broker

import (
	"context"
	"crypto/sha256"
	"time"

	"accessbroker.internal/audit"
)

// AgainFor is how long a call's idempotency key is remembered.
const AgainFor = 24 * time.Hour

// NewAgain identifies a call by its Idempotency-Key header, scoped to caller,
// method and path and bound to the hash of the body. An empty header gives the
// zero Again.
func NewAgain(caller, method, path, header string, body []byte) Again {
	if header == "" {
		return Again{}
	}
	h := sha256.New()
	for _, part := range []string{"accessbroker/idempotency/v1", caller, method, path, header} {
		// No part holds a zero byte, so that no two lists run together.
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return Again{Key: IdempotencyKey(h.Sum(nil)), Body: audit.Digest(sha256.Sum256(body))}
}

func (a Again) isZero() bool { return a.Key == IdempotencyKey{} }

func (a Again) reads() []Key {
	if a.isZero() {
		return nil
	}
	return []Key{a.Key}
}

// prior gives what the call led to before; nil if it is new.
func (b *Broker) prior(ctx context.Context, a Again) (*Idempotency, error) {
	if a.isZero() {
		return nil, nil
	}
	var row *Idempotency
	err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		row, err = Get[*Idempotency](tx, a.Key)
		return ignoreNotFound(err)
	})
	if err != nil {
		return nil, Unavailable(err)
	}
	if row != nil && row.Body != a.Body {
		return nil, refuse(ErrIdempotencyMismatch, "this Idempotency-Key was used with another body: use a new one")
	}
	return row, nil
}

// remember writes down what the call leads to. If another call with the same
// key was first, it is errOvertaken, unless that led to the lease that is being
// replaced.
func (a Again) remember(tx Tx, r RequestID, l LeaseID, now time.Time) error {
	_, err := a.replace(tx, LeaseID{}, r, l, now)
	return err
}

// replace gives how often the call was repeated.
func (a Again) replace(tx Tx, old LeaseID, r RequestID, l LeaseID, now time.Time) (repeats int, err error) {
	if a.isZero() {
		return 0, nil
	}
	row, err := Get[*Idempotency](tx, a.Key)
	switch {
	case isNotFound(err):
		row = &Idempotency{IdempotencyKey: a.Key, Body: a.Body, Created: now}
	case err != nil:
		return 0, err
	case row.Body != a.Body:
		return 0, refuse(ErrIdempotencyMismatch, "this Idempotency-Key was used with another body: use a new one")
	case row.Lease != old:
		return 0, errOvertaken
	case old.IsZero() && row.Request != r:
		return 0, errOvertaken
	case !old.IsZero():
		row.Repeats++
	}
	row.Request, row.Lease = r, l
	tx.Put(row)
	return row.Repeats, nil
}
