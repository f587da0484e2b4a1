package store

import (
	"context"
	"time"

	"modernc.org/sqlite"
)

// SQLite commits to its write-ahead log, and from time to time copies what is
// in it into the database. A commit that has to do that takes ten times as
// long, and everybody waits. So Run does it beside the commits, and what came
// meanwhile, which is little, the next group copies before it begins: nothing is
// left then, and SQLite begins the log anew.
//
// It is pages that fill the log, some ten a commit, however little is in them.
// Most are the same ones again, which are copied once.
const (
	checkpointAfter = 4000 // pages written, after which Run copies
	checkpointPages = 8000 // of the log, after which a commit copies: Run does not, or somebody reads an old state
)

const copyLog = "PRAGMA wal_checkpoint(PASSIVE)"

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
		_, _ = s.readers.ExecContext(ctx, copyLog)
		s.copied.Store(true)
	}
}

// written tells Run when there is something to do.
func (s *Store) written() {
	if s.w.uncopied += s.w.pages(); s.w.uncopied < checkpointAfter {
		return
	}
	s.w.uncopied = 0
	select {
	case s.checkpoint <- struct{}{}:
	default: // it is at it
	}
}

// pages is how many pages went to the log since it was last asked.
func (w *writer) pages() (n int) {
	_ = w.conn.Raw(func(c any) (err error) { // without an answer, commits copy
		n, _, err = c.(sqlite.DBStatus).Status(sqlite.DBStatusCacheWrite, true)
		return err
	})
	return n
}
