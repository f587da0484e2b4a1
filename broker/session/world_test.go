package session_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/store"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// A world is a session manager on a real store. Its cleanup verifies the log.
type world struct {
	sessions *session.Manager
	store    *store.Store
}

func newWorld(t *testing.T, wrap ...func(broker.Store) broker.Store) *world {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: tables.URL(t, filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	check.OpenLog(t, s, noon)
	var wrapped broker.Store = s
	for _, f := range wrap {
		wrapped = f(wrapped)
	}
	m, err := session.New(session.Config{Store: wrapped})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{m, s}
	t.Cleanup(func() { w.verify(t) })
	return w
}

func (w *world) verify(t *testing.T) {
	t.Helper()
	report, err := verify.Verify(context.Background(), w.store.Source(), verify.Options{})
	if report == nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("the log does not verify: %v", &p)
	}
}

// block places a block on a person.
func (w *world) block(person string, now time.Time) error {
	key := broker.BlockKey{Kind: "holder", Name: person}
	return w.store.Update(context.Background(), []broker.Key{key}, func(tx broker.Tx) error {
		tx.Put(&broker.Block{Selector: key, Reason: "the person left", By: "root", Since: now})
		return nil
	})
}

// A countingStore counts updates.
type countingStore struct {
	broker.Store
	updates atomic.Int64
}

func (s *countingStore) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	s.updates.Add(1)
	return s.Store.Update(ctx, reads, f)
}
