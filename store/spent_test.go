package store

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

func spentKey(n int) (key broker.SpentKey) {
	key[0], key[1], key[15], key[31] = byte(n), byte(n>>8), 1, 2
	return key
}

// spend uses a key once, or returns errAgain.
func spend(s *Store, key broker.SpentKey, expires time.Time) error {
	return s.Update(context.Background(), []broker.Key{key}, func(tx broker.Tx) error {
		_, err := tx.Get(key)
		switch {
		case err == nil:
			return errAgain
		case !errors.Is(err, broker.ErrNotFound):
			return err
		}
		tx.Put(&broker.Spent{SpentKey: key, Expires: expires})
		return nil
	})
}

var errAgain = errors.New("it was used")

// What was used stays used until it expires: in the same group, in the next one, after a
// restart, after another process wrote, and after a sweep.
func TestUsedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	until := testNow.Add(90 * time.Second)
	for n := range 40 {
		if err := spend(s, spentKey(n), until.Add(time.Duration(n%3)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, want int) {
		t.Helper()
		got := 0
		for n := range 40 {
			if err := spend(s, spentKey(n), until.Add(time.Duration(n%3)*time.Minute)); errors.Is(err, errAgain) {
				got++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if got != want {
			t.Errorf("%s: %d of 40 are refused, want %d", what, got, want)
		}
	}
	refused("the next group", 40)
	s.w.used = nil // as after another process wrote
	refused("read again", 40)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	refused("a restart", 40)
	if n, err := s.Sweep(t.Context(), until.Add(-time.Millisecond)); err != nil || n != 0 {
		t.Errorf("swept %d, %v before the expiry", n, err)
	}
	refused("a sweep", 40)
	if n, err := s.Sweep(t.Context(), until); err != nil || n != 14 {
		t.Errorf("swept %d, %v, want 14", n, err)
	}
	if len(s.w.used.ids) != 26 || len(s.w.used.last) != 2 {
		t.Errorf("memory has %d ids and %d seconds, want 26 and 2", len(s.w.used.ids), len(s.w.used.last))
	}
	refused("after the expiry", 26)
	refused("used again", 40)
}

// Of several calls in one group that use the same, one succeeds.
func TestUsedOnceInAGroup(t *testing.T) {
	s := newStore(t)
	key := spentKey(1)
	var members []*member
	for range 3 {
		members = append(members, &member{ctx: t.Context(), reads: []broker.Key{key}, f: func(tx broker.Tx) error {
			if _, err := tx.Get(key); err == nil {
				return errAgain
			}
			tx.Put(&broker.Spent{SpentKey: key, Expires: testNow})
			return nil
		}})
	}
	s.commit(members, s.begin())
	if members[0].err != nil || !errors.Is(members[1].err, errAgain) || !errors.Is(members[2].err, errAgain) {
		t.Errorf("got %v, %v, %v, want one success", members[0].err, members[1].err, members[2].err)
	}
}

// A transaction that fails uses nothing, and its numbers may be left out.
func TestFailedUpdateUsesNothing(t *testing.T) {
	s := newStore(t)
	lost := errors.New("lost")
	for _, step := range []string{"rows", "commit"} {
		s.w.fault = func(name string, f func() error) error {
			if name == step {
				return lost
			}
			return f()
		}
		if err := spend(s, spentKey(1), testNow); !errors.Is(err, lost) {
			t.Errorf("%s: got %v", step, err)
		}
	}
	s.w.fault = nil
	if err := spend(s, spentKey(1), testNow); err != nil {
		t.Error(err)
	}
	if err := spend(s, spentKey(1), testNow); !errors.Is(err, errAgain) {
		t.Errorf("got %v, want %v", err, errAgain)
	}
}

// A database of version 11 keeps what was used: a proof from before the upgrade is refused
// after it.
func TestUsedBeforeVersion12(t *testing.T) {
	storetest.OnlySQLite(t, "databases from before PostgreSQL")
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	setBack(t, s, 11)
	for n := range 3 {
		key := spentKey(n)
		if _, err := s.w.conn.ExecContext(t.Context(), "INSERT INTO spent (id, body, expires) VALUES (?, x'01', ?)", key[:], testNow.UnixMilli()+int64(n%2)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	for n := range 3 {
		if err := spend(s, spentKey(n), testNow); !errors.Is(err, errAgain) {
			t.Errorf("%d: got %v, want %v", n, err, errAgain)
		}
	}
	if err := spend(s, spentKey(3), testNow); err != nil {
		t.Error(err)
	}
	if n, err := s.Sweep(t.Context(), testNow); err != nil || n != 3 { // one expires a millisecond later
		t.Errorf("swept %d, %v, want 3", n, err)
	}
	if err := spend(s, spentKey(1), testNow); !errors.Is(err, errAgain) {
		t.Errorf("got %v, want %v", err, errAgain)
	}
	if err := s.View(t.Context(), func(tx broker.Tx) error { _, err := tx.Get(spentKey(1)); return err }); !errors.Is(err, errUsed) {
		t.Errorf("a View: got %v, want %v", err, errUsed)
	}
}
