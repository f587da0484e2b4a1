// Package recovery ends what was issued after the backup from which the database was
// restored. The records of that time are lost. What the issuers still have is searched for, and
// each credential of this broker whose lease is unknown is ended. What can't be found is listed
// with the time at which it ends by itself.
//
// "broker audit new-epoch" begins a recovery. Its state is in rows, so that a broker that was
// killed continues it. Searching and revoking twice does no harm.
package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Rows reads what a recovery needs.
type Rows interface {
	Last(ctx context.Context) (*broker.Recovery, error) // nil: there was none
	Due(ctx context.Context, now time.Time, limit int) ([]*broker.Orphan, error)
	Orphans(ctx context.Context, after *broker.Orphan, limit int) ([]*broker.Orphan, error)
}

// Config configures a Manager.
type Config struct {
	Store   broker.Store
	Rows    Rows
	Issuers map[string]broker.Issuer
	Broker  *broker.Broker
	Log     *slog.Logger
}

// A Manager carries out recoveries. It is safe for concurrent use.
type Manager struct{ cfg Config }

// New returns a Manager.
func New(cfg Config) *Manager { return &Manager{cfg} }

const (
	passEvery = time.Second
	callTime  = 10 * time.Second // of one revocation
	findTime  = 5 * time.Minute  // of the search of one issuer
	batch     = 64

	// settle is how long a credential may exist before its lease is stored.
	settle = 2 * time.Minute
)

// Run works on the last recovery until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(passEvery)
	defer tick.Stop()
	for wait := 0; ; wait-- {
		if wait <= 0 {
			done, err := m.Pass(ctx, time.Now())
			if err != nil && ctx.Err() == nil {
				m.cfg.Log.ErrorContext(ctx, "recovering what was issued after the backup", "err", err)
			}
			if done && err == nil { // it was finished before the start, or now
				<-ctx.Done()
				return nil
			}
			if err != nil {
				wait = 5
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Pass does what can be done now. It reports whether nothing is left to do, now or later.
func (m *Manager) Pass(ctx context.Context, now time.Time) (done bool, err error) {
	r, err := m.cfg.Rows.Last(ctx)
	if err != nil || r == nil {
		return err == nil, err
	}
	if err := m.searchAll(ctx, r, now); err != nil {
		return false, err
	}
	if err := m.endDue(ctx, r.RecoveryKey, now); err != nil {
		return false, err
	}
	if r.Finished.IsZero() {
		if err := m.endTokens(ctx, r, now); err != nil {
			return false, err
		}
	}
	return m.finish(ctx, r.RecoveryKey, now)
}

// Settle is Pass now. It reports whether another pass would do nothing more for now: everything is
// ended that can be, or its issuer does not answer.
func (m *Manager) Settle(ctx context.Context) (bool, error) {
	now := time.Now()
	if done, err := m.Pass(ctx, now); done || err != nil {
		return done, err
	}
	r, err := m.cfg.Rows.Last(ctx)
	if err != nil || r == nil || !r.Finished.IsZero() {
		return true, err
	}
	due, err := m.cfg.Rows.Due(ctx, distant, batch)
	for _, o := range due {
		if o.Outcome == broker.OrphanPending && o.Attempts < patience {
			return false, err
		}
	}
	return len(due) > 0 || len(r.Trouble) > 0, err
}

// patience is the number of attempts to end a credential for which Settle waits.
const patience = 3

// distant is later than anything is due.
var distant = time.UnixMilli(1<<52 - 1)

// searchAll searches the issuers that were not searched completely. One that can't be searched
// delays no other.
func (m *Manager) searchAll(ctx context.Context, r *broker.Recovery, now time.Time) error {
	for _, name := range slices.Sorted(maps.Keys(m.cfg.Issuers)) {
		if slices.Contains(r.Searched, name) {
			continue
		}
		trouble := ""
		if err := m.search(ctx, r, name, now); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			trouble = err.Error()
			if r.Trouble[name] != trouble {
				m.cfg.Log.WarnContext(ctx, "an issuer can't be searched for lost credentials: the broker tries again", "issuer", name, "err", err)
			}
		}
		if err := m.searched(ctx, r, name, trouble); err != nil {
			return err
		}
	}
	return nil
}

// searched notes the result of a search.
func (m *Manager) searched(ctx context.Context, r *broker.Recovery, name, trouble string) error {
	if trouble != "" && r.Trouble[name] == trouble {
		return nil
	}
	return m.change(ctx, r.RecoveryKey, func(stored *broker.Recovery) *audit.Record {
		if stored.Trouble == nil {
			stored.Trouble = map[string]string{}
		}
		if stored.Trouble[name] = trouble; trouble == "" {
			delete(stored.Trouble, name)
			stored.Searched = append(stored.Searched, name)
		}
		*r = *stored
		return nil
	})
}

// change changes the row of a recovery, with the record that f returns.
func (m *Manager) change(ctx context.Context, key broker.RecoveryKey, f func(*broker.Recovery) *audit.Record) error {
	err := m.cfg.Store.Update(ctx, []broker.Key{key}, func(tx broker.Tx) error {
		stored, err := broker.Get[*broker.Recovery](tx, key)
		if err != nil {
			return err
		}
		record := f(stored)
		tx.Put(stored)
		return appendRecord(tx, record)
	})
	return broker.Unavailable(err)
}

func appendRecord(tx broker.Tx, record *audit.Record) error {
	if record == nil {
		return nil
	}
	entry, err := record.Entry()
	if err == nil {
		tx.Append(entry)
	}
	return err
}

// search stores what an issuer has of lost leases.
func (m *Manager) search(ctx context.Context, r *broker.Recovery, name string, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, findTime)
	defer cancel()
	loss := broker.Loss{Since: r.Since, Until: r.Opened, Issuer: name, Catalogue: m.cfg.Broker.Rules().Catalogue}
	finder, ok := m.cfg.Issuers[name].(broker.Finder)
	if !ok {
		o := unfindable(loss, m.cfg.Issuers[name])
		if o == nil {
			return nil
		}
		if err := m.distinguish(ctx, r, o); err != nil {
			return err
		}
		return m.store(ctx, r.RecoveryKey, o, now)
	}
	return finder.Find(ctx, loss, func(o broker.Orphan) error {
		o.Issuer = name
		if o.Lease == "" {
			if err := m.distinguish(ctx, r, &o); err != nil {
				return err
			}
		}
		lost, err := m.isLost(ctx, r, &o, now)
		if err != nil || !lost {
			return err
		}
		return m.store(ctx, r.RecoveryKey, &o, now)
	})
}

// unfindable describes the credentials of an issuer that can't list any; nil if there are none.
func unfindable(loss broker.Loss, issuer broker.Issuer) *broker.Orphan {
	longest := time.Duration(0)
	key := broker.OrphanKey{Issuer: loss.Issuer, Target: "all"}
	for _, e := range loss.Catalogue {
		switch {
		case e.Issuer != loss.Issuer:
		case e.Persists: // no expiry ends it
			return &broker.Orphan{OrphanKey: key, Text: "what it added in that time stays until someone removes it: compare it with broker memberships --differs"}
		default:
			longest = max(longest, e.MaxTTL)
		}
	}
	if longest == 0 {
		return nil
	}
	text := "what it issued in that time can't be listed"
	if _, own := issuer.(broker.Inspector); own {
		text = "its tokens of that time are refused by introspection, but not by services that verify them by themselves"
	}
	return &broker.Orphan{OrphanKey: key, Expires: loss.Until.Add(longest), Text: text}
}

// distinguish names a group of credentials apart from the same group of an earlier recovery,
// which had another time.
func (m *Manager) distinguish(ctx context.Context, r *broker.Recovery, o *broker.Orphan) error {
	var earlier *broker.Orphan
	err := m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		earlier, err = broker.Get[*broker.Orphan](tx, o.OrphanKey)
		return err
	})
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	if err != nil {
		return broker.Unavailable(err)
	}
	if earlier.Found.Before(r.Opened) {
		o.Target += fmt.Sprintf(", before log %d", r.RecoveryKey)
	}
	return nil
}

// isLost reports whether the store has no lease for a credential. The lease of one that is
// just being issued is stored in a moment.
func (m *Manager) isLost(ctx context.Context, r *broker.Recovery, o *broker.Orphan, now time.Time) (bool, error) {
	if o.Lease == "" {
		return true, nil
	}
	id, err := broker.ParseLeaseID(o.Lease)
	if err != nil {
		return false, nil // it is not of a broker
	}
	if made := id.Time(); made.After(r.Opened) && made.Sub(now).Abs() < settle {
		return false, nil
	}
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) error {
		_, err := tx.Get(id)
		return err
	})
	if errors.Is(err, broker.ErrNotFound) {
		return true, nil
	}
	return false, broker.Unavailable(err)
}

// store stores a credential that was found, unless an earlier search found it. One that can't
// be ended has its final outcome at once.
func (m *Manager) store(ctx context.Context, key broker.RecoveryKey, o *broker.Orphan, now time.Time) error {
	err := m.cfg.Store.Update(ctx, []broker.Key{key, o.OrphanKey}, func(tx broker.Tx) error {
		if _, err := tx.Get(o.OrphanKey); !errors.Is(err, broker.ErrNotFound) {
			return err
		}
		r, err := broker.Get[*broker.Recovery](tx, key)
		if err != nil {
			return err
		}
		stored := *o
		stored.Found, stored.Outcome, stored.Due = now, broker.OrphanPending, now
		r.Found++
		tx.Put(r)
		if len(o.Handle) > 0 {
			tx.Put(&stored)
			return nil
		}
		stored.Outcome, stored.Due = broker.OrphanUnknown, time.Time{}
		tx.Put(&stored)
		return appendRecord(tx, foundRecord(&stored))
	})
	if err != nil {
		return fmt.Errorf("noting a credential whose lease is lost: %w", broker.Unavailable(err))
	}
	return nil
}

// foundRecord is the record of a credential's final outcome.
func foundRecord(o *broker.Orphan) *audit.Record {
	record := &audit.Record{Kind: audit.RecoveryFound, Recovery: &audit.RecoveryFacts{Issuer: o.Issuer, Target: o.Target, Outcome: string(o.Outcome)}}
	if o.Lease != "" {
		record.Lease = &audit.LeaseFacts{ID: o.Lease, Issuer: o.Issuer, Expires: o.Expires}
	}
	if o.Outcome != broker.OrphanRevoked {
		record.End = &audit.EndFacts{How: "restored", ValidUntil: o.Expires}
	}
	return record
}
