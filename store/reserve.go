package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"accessbroker.internal/audit"
)

// A reserve is disk space that is held back for recording how leases end: when
// the disk is full, it is let go, and from then on nothing but endings is
// written until it can be made again. It is the writer's: not safe for
// concurrent use.
type reserve struct {
	path  string
	size  int64
	spent bool      // let go: the disk was full
	tried time.Time // when it was last tried to make it again
}

// retryReserve is how often it is tried whether there is space again.
const retryReserve = time.Second

// hold makes the reserve, unless it is there.
func (r *reserve) hold() error {
	if info, err := os.Stat(r.path); err == nil && info.Size() == r.size {
		return nil
	}
	if err := r.fill(); err != nil {
		_ = os.Remove(r.path) // a part of it would hold space and be no reserve
		return fmt.Errorf("reserving %d bytes of disk for revocations: %w", r.size, err)
	}
	return nil
}

// fill writes random bytes, because a file system may hold no space for zeros.
func (r *reserve) fill() error {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, r.size)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// release lets the space go.
func (r *reserve) release(now time.Time) {
	r.spent, r.tried = true, now
	_ = os.Remove(r.path)
}

// restore tries to make the reserve again, now and then.
func (r *reserve) restore(now time.Time) {
	if !r.spent || now.Sub(r.tried) < retryReserve {
		return
	}
	r.tried = now
	r.spent = r.hold() != nil
}

// ending says whether all that a member appends is about something that ends,
// for which the reserve is kept.
func ending(entries []*audit.Entry) bool {
	for _, e := range entries {
		switch e.Kind() {
		case audit.LeaseRevoking, audit.LeaseRevoked, audit.LeaseFailed, audit.LeaseAbandoned, audit.BlockPlaced, audit.RequestRevoked, audit.SessionClosed:
		default:
			return false
		}
	}
	return len(entries) > 0
}
