package store

import (
	"context"
	"sync"
	"time"

	"modernc.org/sqlite"
)

// SQLite commits to its write-ahead log, and copies that log into the database from
// time to time. A commit that has to copy takes ten times as long, and all callers
// wait for it. So Run copies concurrently with the commits. The next group copies
// the few pages that were written in the meantime, before it begins; then nothing
// is left to copy, and SQLite writes the log from its start again.
//
// A commit writes some ten pages, however little it changes in them. Most of
// them are the same pages each time, and are copied once.
const (
	checkpointAfter = 4000 // pages written, after which Run copies
	checkpointPages = 8000 // pages in the log, after which a commit copies: Run is not running, or a reader keeps an old snapshot
)

const copyLog = "PRAGMA wal_checkpoint(PASSIVE)"

// retryWrite is the pause between attempts to write to a database that could not be
// written. A broker that is not ready gets no requests, so no request would
// discover that writing works again.
const retryWrite = time.Second

// Run keeps commits short until ctx ends, and notices when the files of the
// database are lost, and when a database that could not be written can be written
// again. Without it, the store does the same work, but some commits take longer.
//
// It also loads the live leases into memory, so that the first caller who needs them
// does not wait, and writes what the log's records add to other tables (follow.go).
func (s *Store) Run(ctx context.Context) error {
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() { _ = s.loadHoldings(ctx) }) // a caller that needs them tries again, and gets the error
	background.Go(func() { s.followForever(ctx, s.counting) })
	background.Go(func() { s.followForever(ctx, s.surveying) })
	background.Go(func() { s.followForever(ctx, s.tallying) })
	if s.claims != nil {
		background.Go(func() { s.claims.run(ctx) })
	}
	if s.Shared() {
		return s.runShared(ctx)
	}
	tick := time.NewTicker(retryWrite)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if s.checkFiles() == nil && s.unwritable.Load() != nil {
				_, _ = s.delete(ctx, "UPDATE head SET time = time") // its commit clears unwritable
			}
			continue
		case <-s.checkpoint:
		}
		// This fails while a reader keeps an old snapshot or the disk is full;
		// the next run copies the rest.
		_, _ = s.readers.ExecContext(ctx, copyLog)
		s.copied.Store(true)
	}
}

// written wakes Run when there are enough pages to copy.
func (s *Store) written() {
	if s.Shared() {
		return // the server copies
	}
	if s.w.uncopied += s.w.pages(); s.w.uncopied < checkpointAfter {
		return
	}
	s.w.uncopied = 0
	select {
	case s.checkpoint <- struct{}{}:
	default: // Run is copying
	}
}

// pages returns the number of pages written to the log since its last call.
func (w *writer) pages() (n int) {
	_ = w.conn.Raw(func(c any) (err error) { // if this fails, commits copy
		n, _, err = c.(sqlite.DBStatus).Status(sqlite.DBStatusCacheWrite, true)
		return err
	})
	return n
}
