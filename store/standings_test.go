package store

import (
	"errors"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// Subjects that no source knows any more are deleted once no grant can rest on their last
// end, from the table and from memory; the others stay.
func TestSweepDeletesIdleStandings(t *testing.T) {
	s := open(t, t.TempDir()+"/broker.db")
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	idle := &broker.Standing{StandingKey: broker.StandingKey{Kind: broker.FactTicket, Name: "jira/INC-1"}, Version: 2, Emptied: now}
	known := &broker.Standing{StandingKey: broker.StandingKey{Kind: broker.FactTicket, Name: "jira/INC-2"}, Version: 1, Facts: []broker.Fact{{Source: "tickets:jira", State: broker.FactActive}}}
	put := func(rows ...broker.Row) {
		t.Helper()
		err := s.Update(t.Context(), nil, func(tx broker.Tx) error {
			for _, r := range rows {
				tx.Put(r)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	put(idle, known)
	has := func(key broker.StandingKey, want bool) {
		t.Helper()
		if _, err := s.Standing(t.Context(), key); errors.Is(err, broker.ErrNotFound) == want {
			t.Errorf("%s: got %v, want it there: %t", key, err, want)
		}
		err := s.View(t.Context(), func(tx broker.Tx) error {
			_, err := tx.Get(key)
			return err
		})
		if errors.Is(err, broker.ErrNotFound) == want {
			t.Errorf("%s in the table: got %v, want it there: %t", key, err, want)
		}
	}
	for _, at := range []time.Time{now, now.Add(broker.MaxDuration)} {
		if _, err := s.Sweep(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		has(idle.StandingKey, true)
	}
	later := now.Add(broker.MaxDuration + 24*time.Hour)
	if n, err := s.Sweep(t.Context(), later); err != nil || n != 1 {
		t.Errorf("swept %d, %v", n, err)
	}
	has(idle.StandingKey, false)
	has(known.StandingKey, true)
	put(idle)
	has(idle.StandingKey, true)
}
