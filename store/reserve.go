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

// A reserve is a file that keeps disk space for recording how leases end. When
// the disk is full, the file is deleted, and only endings are written until it
// can be made again. It is not safe for concurrent use: it belongs to the
// writer.
type reserve struct {
	path  string
	size  int64
	spent bool      // the disk was full, and the file was deleted
	tried time.Time // when the file was last looked for
}

// retryReserve is the pause between attempts to make the reserve again.
const retryReserve = time.Second

// hold creates the file unless it exists.
func (r *reserve) hold() error {
	if info, err := os.Stat(r.path); err == nil && info.Size() == r.size {
		return nil
	}
	if err := r.fill(); err != nil {
		_ = os.Remove(r.path) // a part of the file would occupy space and be no reserve
		return fmt.Errorf("reserving %d bytes of disk for revocations: %w", r.size, err)
	}
	return nil
}

// fill writes random bytes, because a file system may allocate no space for zeros.
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

// exists reports whether the database has a reserve. PostgreSQL's server has the disk.
func (r *reserve) exists() bool { return r.path != "" }

// release deletes the file, so that its space can be used.
func (r *reserve) release(now time.Time) {
	r.spent, r.tried = true, now
	_ = os.Remove(r.path)
}

// restore creates the file again if it was deleted, by the store or by anyone else. It
// looks at most once per retryReserve.
func (r *reserve) restore(now time.Time) {
	if !r.exists() || now.Sub(r.tried) < retryReserve {
		return
	}
	r.tried = now
	r.spent = r.hold() != nil
}

// recordsEndings reports whether all entries of a member record the end of
// something, for which the reserve is kept.
func recordsEndings(entries []*audit.Entry) bool {
	for _, e := range entries {
		switch e.Kind() {
		case audit.LeaseRevoking, audit.LeaseRevoked, audit.LeaseFailed, audit.LeaseAbandoned, audit.MembershipReleased, audit.BlockPlaced, audit.RequestRevoked, audit.FactEnded, audit.SignalHeld, audit.SessionClosed:
		default:
			return false
		}
	}
	return len(entries) > 0
}
