package store

import (
	"context"
	"os"
	"testing"
	"time"

	"accessbroker.internal/internal/storetest"
)

// fillLog makes one Update at a time until Run is woken. It returns the length of
// the write-ahead log.
func fillLog(t *testing.T, s *Store) int64 {
	t.Helper()
	const frame = 24 + 4096 // a page with its header
	for n := 0; len(s.checkpoint) == 0; n++ {
		i := newIssuance(t, n)
		if err := i.store(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if sizeOf(t, s.w.engine.(*sqliteEngine).path+"-wal") > (checkpointAfter+100)*frame {
			t.Fatalf("Run was not woken after %d pages", checkpointAfter)
		}
	}
	return sizeOf(t, s.w.engine.(*sqliteEngine).path+"-wal")
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestRunCopiesTheWriteAheadLog(t *testing.T) {
	storetest.OnlySQLite(t, "the write-ahead log of SQLite")
	s := newStore(t)
	fillLog(t, s)
	before := sizeOf(t, s.w.engine.(*sqliteEngine).path)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	for !s.copied.Load() {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if after := sizeOf(t, s.w.engine.(*sqliteEngine).path); after <= before {
		t.Errorf("the database has %d bytes, and had %d before", after, before)
	}
	works(t, s)
}

// The next group copies the rest, and SQLite writes its log from the start again.
func TestTheWriteAheadLogIsReused(t *testing.T) {
	storetest.OnlySQLite(t, "the write-ahead log of SQLite")
	s := newStore(t)
	before := fillLog(t, s)
	s.copied.Store(true)
	works(t, s)
	if after := sizeOf(t, s.w.engine.(*sqliteEngine).path+"-wal"); after > before {
		t.Errorf("the write-ahead log has %d bytes, and had %d before", after, before)
	}
}
