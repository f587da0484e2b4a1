package store

import (
	"database/sql"
	"errors"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// The writer remembers the revision in force. It must not trust its memory after a
// failed group, or after another process has written.
func TestRevisionInMemory(t *testing.T) {
	s, path, _ := openLogged(t)
	ctx := t.Context()
	reads := []broker.Key{broker.RevisionKey{}}
	put := func(d audit.Digest, fail error) error {
		return s.Update(ctx, nil, func(tx broker.Tx) error {
			tx.Put(&broker.Revision{Digest: d})
			return fail
		})
	}
	// expect reads the revision in a group that writes, so that the writer remembers it.
	expect := func(when string, want audit.Digest) {
		t.Helper()
		var got audit.Digest
		err := s.Update(ctx, reads, func(tx broker.Tx) error {
			r, err := broker.Get[*broker.Revision](tx, broker.RevisionKey{})
			if err != nil {
				return err
			}
			got = r.Digest
			tx.Put(&broker.Account{Person: "login/ana"})
			return nil
		})
		if err != nil || got != want {
			t.Errorf("%s: got revision %s, %v, want %s", when, got, err, want)
		}
	}
	first, second, third := audit.Digest{1}, audit.Digest{2}, audit.Digest{3}
	if err := put(first, nil); err != nil {
		t.Fatal(err)
	}
	expect("after it was put", first)
	if err := put(second, errFault); !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	expect("after a member failed", first)
	s.w.fault = func(step string, f func() error) error {
		if step == "rows" {
			return errFault
		}
		return f()
	}
	if err := put(second, nil); err == nil {
		t.Fatal("got no error from a group that failed")
	}
	s.w.fault = nil
	expect("after a group failed", first)

	body, err := encodeBody(&broker.Revision{Digest: third}, nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := sql.Open(driverName, path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	for _, query := range []string{"UPDATE revision SET body = ?", "UPDATE head SET nonce = ?"} {
		if result, err := other.ExecContext(ctx, query, body); err != nil {
			t.Fatal(err)
		} else if n, _ := result.RowsAffected(); n != 1 {
			t.Fatalf("%s changed %d rows, want 1", query, n)
		}
	}
	expect("after another process wrote", third)
}
