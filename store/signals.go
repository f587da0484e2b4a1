package store

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"time"

	"accessbroker.internal/broker"
)

// signalTables are the tables of shared security signals: the events that were seen, the
// streams of the transmitters, and the events that wait for a person's decision. The latter
// have no number once they no longer wait, and are then deleted.
const signalTables = `
CREATE TABLE signals (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX signals_expires ON signals (expires);
CREATE TABLE streams (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE held_signals (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, transmitter TEXT, number INTEGER) WITHOUT ROWID;
CREATE INDEX held_signals_number ON held_signals (transmitter, number) WHERE number IS NOT NULL;
CREATE INDEX held_signals_done ON held_signals (id) WHERE number IS NULL;
`

func signalFields(r broker.Row, c *coder) {
	switch r := r.(type) {
	case *broker.Signal:
		c.fields(&r.Seen, &r.Expires)
	case *broker.Stream:
		c.fields(&r.Status, &r.StatusAt, &r.Expected, &r.Leases, &r.People, &r.Tripped, &r.Next, &r.Holding, &r.Decided, &r.Discarded)
	case *broker.HeldSignal:
		c.fields(&r.ID, &r.Kind, &r.Issued, &r.At, &r.Account, &r.Email, &r.SID, &r.Reason, &r.Held, &r.Done)
	}
}

// heldSignalColumns returns the columns by which a held event is found.
func heldSignalColumns(h *broker.HeldSignal) []any {
	if !h.Done.IsZero() {
		return []any{nil, nil}
	}
	return []any{h.Transmitter, h.Number}
}

func heldSignalID(k broker.HeldSignalKey) []byte {
	return joined(k.Transmitter, strconv.FormatInt(k.Number, 10))
}

func heldSignalKey(parts []string) (broker.Key, error) {
	number, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return nil, errBody
	}
	return broker.HeldSignalKey{Transmitter: parts[0], Number: number}, nil
}

// Signals reads what the flows of shared security signals need.
type Signals struct{ s *Store }

// NewSignals returns a reader of a store.
func NewSignals(s *Store) Signals { return Signals{s} }

// Held returns the waiting events of a transmitter in their order, after a number.
func (r Signals) Held(ctx context.Context, transmitter string, after int64, limit int) (list []*broker.HeldSignal, err error) {
	const query = "SELECT id, body FROM held_signals INDEXED BY held_signals_number WHERE transmitter = ? AND number > ? ORDER BY number LIMIT ?"
	err = each(ctx, r.s.readers, query, []any{transmitter, after, limit}, func(rows *sql.Rows) error {
		var id, body sql.RawBytes
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		key, err := heldSignals.key(id)
		if err != nil {
			return err
		}
		row, err := decodeRow(key, body)
		if err == nil {
			list = append(list, row.(*broker.HeldSignal))
		}
		return err
	})
	if err != nil {
		return nil, unavailable("reading the held events", err)
	}
	return list, nil
}

// sweepHeldSignals deletes the events that no longer wait.
func (s *Store) sweepHeldSignals(ctx context.Context) (total int64, err error) {
	for {
		n, err := s.delete(ctx, "DELETE FROM held_signals WHERE id IN (SELECT id FROM held_signals INDEXED BY held_signals_done WHERE number IS NULL LIMIT ?)", sweepBatch)
		if total += n; err != nil || n < sweepBatch {
			return total, err
		}
	}
}

// CountPeople returns the number of people who ever logged in.
func (r Signals) CountPeople(ctx context.Context) (n int64, err error) {
	if err := r.s.readers.QueryRowContext(ctx, "SELECT count(*) FROM people").Scan(&n); err != nil {
		return 0, unavailable("counting people", err)
	}
	return n, nil
}

// CountLive returns the number of leases whose credentials may work at now.
func (r Signals) CountLive(ctx context.Context, now time.Time) (n int64, err error) {
	active, err := r.s.CountActive(ctx, now)
	for _, a := range active {
		n += a.Leases
	}
	return n, err
}

// HasSession reports whether a session of a provider has this session id at now.
func (r Signals) HasSession(ctx context.Context, provider, sid string, now time.Time) (found bool, err error) {
	err = each(ctx, r.s.readers, "SELECT body FROM sessions WHERE expires > ?", []any{now.UnixMilli()}, func(rows *sql.Rows) error {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return err
		}
		var session broker.Session
		if err := decodeBody(body, &session); err != nil {
			return err
		}
		found = found || session.SID == sid && session.Who.Person != nil && session.Who.Person.Provider == provider
		return nil
	})
	if err != nil {
		return false, unavailable("reading the sessions", err)
	}
	return found, nil
}

// AccountsByEmail returns the people of a provider by their addresses.
func (r Signals) AccountsByEmail(ctx context.Context, provider string) (map[string][]string, error) {
	found := map[string][]string{}
	err := each(ctx, r.s.readers, "SELECT id, body FROM people", nil, func(rows *sql.Rows) error {
		var id, body sql.RawBytes
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		key, err := people.key(id)
		if err != nil {
			return err
		}
		a := broker.Account{Person: key.(broker.PersonKey)}
		if err := decodeBody(body, &a); err != nil {
			return fmt.Errorf("reading the account of %s: %w", a.Person, err)
		}
		if of, _, err := broker.ParsePerson(string(a.Person)); err == nil && of == provider && a.Email != "" {
			found[a.Email] = append(found[a.Email], string(a.Person))
		}
		return nil
	})
	if err != nil {
		return nil, unavailable("reading the accounts", err)
	}
	return found, nil
}
