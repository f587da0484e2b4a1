package store

import (
	"context"
	"time"
)

// SQLite commits to its write-ahead log, and from time to time copies what is
// in it into the database. A commit that has to do that takes ten times as
// long, and everybody waits. So Run does it beside the commits; what is left
// for a commit, once the log is long, is the little that came since, and to
// begin the log anew.
const (
	checkpointAfter = 2 << 20 // bytes written, after which Run copies
	checkpointPages = 4000    // of the log, after which a commit copies what is left
)

// tryAgain is how often it is tried whether the database can be written again:
// a broker that is not ready is asked for nothing that would find out.
const tryAgain = time.Second

// Run keeps commits short until ctx ends, and finds out when a database that
// could not be written can be again. Without it, the store does the same work,
// less evenly.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(tryAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if s.unwritable.Load() {
				_, _ = s.delete(ctx, "UPDATE head SET time = time") // it fails as those before it did, or the store is well
			}
			continue
		case <-s.checkpoint:
		}
		// What it can't do now, because somebody reads an old state, or because
		// the disk is full, the next one does, or a commit finds out.
		_, _ = s.readers.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)")
	}
}

// written tells Run when there is something to do.
func (s *Store) written(bytes int) {
	if s.w.uncopied += bytes; s.w.uncopied < checkpointAfter {
		return
	}
	s.w.uncopied = 0
	select {
	case s.checkpoint <- struct{}{}:
	default: // it is at it
	}
}
