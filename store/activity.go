package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/activity"
)

// Two tables are projections of the log: hours has the counts of each hour (package
// activity), and events finds records by their kind. The file follow.go explains how they
// follow the log.

// maxNoted bounds the records in memory that are not issuances.
const maxNoted = 8192

// newCounting returns the projection of hours and events.
func newCounting() *projection {
	return &projection{
		table: "counted", doing: "counting the log's records: the overview and searches are behind", every: time.Second,
		write: make(chan struct{}, 1), empty: func() addition { return &hourTally{hours: activity.Hours{}} },
	}
}

// An hourTally is what a range of records adds to hours and events.
type hourTally struct {
	hours activity.Hours
	rest  []noted // records that are not issuances
}

// A noted record is one of a tally.
type noted struct {
	id   int64
	kind audit.Kind
	leaf []byte
}

// indexed reports whether events has the records of a kind. It leaves out only the bulk
// of the log.
func indexed(kind audit.Kind) bool { return kind != audit.LeaseIssued }

func (t *hourTally) note(id int64, e *audit.Entry, at time.Time) {
	files, glass := e.Files()
	if !t.hours.AddIssuance(e.Kind(), at, files, glass) {
		t.rest = append(t.rest, noted{id, e.Kind(), bytes.Clone(e.Leaf())})
	}
}

func (t *hourTally) read(id int64, leaf []byte) error {
	outline, err := audit.Glance(leaf)
	if err != nil {
		return err
	}
	files, glass := outline.Files()
	if !t.hours.AddIssuance(outline.Kind, outline.Time, files, glass) {
		t.rest = append(t.rest, noted{id, outline.Kind, bytes.Clone(leaf)})
	}
	return nil
}

func (t *hourTally) size() (now, most int) { return len(t.rest), maxNoted }

// complete counts the records that have to be decoded.
func (t *hourTally) complete(v *viewTx) error {
	records := make([]*audit.Record, len(t.rest))
	for i, n := range t.rest {
		r, err := audit.Decode(n.leaf)
		if err != nil {
			return fmt.Errorf("record %d: %w", broker.RecordID(n.id).Index(), err)
		}
		records[i] = &r
	}
	return v.countDecoded(t.hours, records)
}

func (t *hourTally) write(ctx context.Context, w *writer) error {
	for hour, counts := range t.hours {
		if err := w.addHour(ctx, hour, counts); err != nil {
			return fmt.Errorf("writing the counts of an hour: %w", err)
		}
	}
	for _, r := range t.rest {
		if !indexed(r.kind) {
			continue
		}
		if err := w.exec(ctx, "INSERT INTO events (kind, record) VALUES (?, ?)", string(r.kind), r.id); err != nil {
			return fmt.Errorf("writing the index of records: %w", err)
		}
	}
	return nil
}

// countDecoded counts records, with the times of their leases' ends.
func (v *viewTx) countDecoded(hours activity.Hours, records []*audit.Record) error {
	var ids []broker.LeaseID
	for _, r := range records {
		if id, ok := activity.ConfirmedLease(r); ok {
			ids = append(ids, id)
		}
	}
	ended, err := v.leasesOf(ids)
	if err != nil {
		return err
	}
	for _, r := range records {
		var asked time.Time
		if id, ok := activity.ConfirmedLease(r); ok && ended[id] != nil {
			asked = ended[id].EndAsked
		}
		hours.Add(r, asked)
	}
	return nil
}

// leasesOf reads the rows of leases, a batch at a time.
func (v *viewTx) leasesOf(ids []broker.LeaseID) (map[broker.LeaseID]*broker.Lease, error) {
	found := make(map[broker.LeaseID]*broker.Lease, len(ids))
	for len(ids) > 0 {
		n := min(len(ids), candidateBatch)
		batch, err := v.leases(ids[:n])
		if err != nil {
			return nil, err
		}
		for id, l := range batch {
			found[id] = l
		}
		ids = ids[n:]
	}
	return found, nil
}

func (w *writer) addHour(ctx context.Context, hour int64, counts *activity.Counts) error {
	query, err := w.prepared(ctx, "SELECT body FROM hours WHERE hour = ?")
	if err != nil {
		return err
	}
	var sum activity.Counts
	var body []byte
	switch err := query.QueryRowContext(ctx, hour).Scan(&body); {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(body, &sum); err != nil {
			return err
		}
	}
	sum.Merge(counts)
	if body, err = json.Marshal(&sum); err != nil {
		return err
	}
	return w.exec(ctx, "INSERT INTO hours (hour, body) VALUES (?, ?) ON CONFLICT (hour) DO UPDATE SET body = excluded.body", hour, body)
}

// Activity returns the counts of the hours from the hour of from until now.
func (s *Store) Activity(ctx context.Context, from, now time.Time) (r activity.Report, err error) {
	if err := s.catchUpNow(ctx, s.counting); err != nil {
		return r, err
	}
	err = s.View(ctx, func(tx broker.Tx) (err error) {
		v := tx.(*viewTx)
		if r.Hours, err = v.hours(activity.HourOf(from)); err != nil {
			return err
		}
		if r.Uncounted, err = v.recordsBehind(s.counting); err != nil {
			return err
		}
		r.Lapsed, r.Waiting, err = v.lapsed(from, now)
		return err
	})
	return r, err
}

func (v *viewTx) hours(from int64) (activity.Hours, error) {
	hours := activity.Hours{}
	err := each(v.ctx, v.tx, "SELECT hour, body FROM hours WHERE hour >= ?", []any{from}, func(rows *sql.Rows) error {
		var hour int64
		var body sql.RawBytes
		if err := rows.Scan(&hour, &body); err != nil {
			return err
		}
		hours[hour] = &activity.Counts{}
		return json.Unmarshal(body, hours[hour])
	})
	if err != nil {
		return nil, unavailable("reading the counts", err)
	}
	return hours, nil
}

// lapsed counts the requests that lapsed from from to now, by hour, and those that are
// pending now. A lapsed request stays in the index of pending ones.
func (v *viewTx) lapsed(from, now time.Time) (byHour map[int64]int, waiting int64, err error) {
	byHour = map[int64]int{}
	const query = "SELECT lapses / 3600000, count(*) FROM requests INDEXED BY requests_pending WHERE lapses >= ? AND lapses <= ? GROUP BY 1"
	first := from.Truncate(time.Hour).UnixMilli()
	err = each(v.ctx, v.tx, query, []any{first, now.UnixMilli()}, func(rows *sql.Rows) error {
		var hour int64
		var n int
		err := rows.Scan(&hour, &n)
		byHour[hour] = n
		return err
	})
	if err == nil {
		err = v.tx.QueryRowContext(v.ctx, "SELECT count(*) FROM requests INDEXED BY requests_pending WHERE lapses > ?", now.UnixMilli()).Scan(&waiting)
	}
	if err != nil {
		return nil, 0, unavailable("counting pending requests", err)
	}
	return byHour, waiting, nil
}
