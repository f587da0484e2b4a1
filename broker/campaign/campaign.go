// Package campaign runs access reviews. A campaign lists what the rules permit, and people
// decide on each item: keep, narrow or end. What no one reviewed before the deadline is
// disabled.
//
// Git stays the source of truth of the rules. A decision or a deadline only suspends a
// permission: package policy leaves a suspended permission out, and the revision covers the
// suspensions. Lifting one takes two people.
//
// Files: build.go starts a campaign and lists its items; assign.go chooses the reviewers;
// decide.go records decisions and bulk.go many of them; deadline.go closes campaigns; use.go tells how permissions were used;
// refresh.go assigns items anew; notify.go notifies people; restore.go lifts suspensions; view.go shows all of it.
package campaign

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Rows lists the rows of campaigns. Package store implements it.
type Rows interface {
	// Campaigns returns campaigns, newest first.
	Campaigns(ctx context.Context, q broker.CampaignQuery) ([]*broker.Campaign, error)

	// ReviewItems returns items in the order of their campaigns and numbers.
	ReviewItems(ctx context.Context, q broker.ReviewItemQuery) ([]*broker.ReviewItem, error)

	// ReviewersWaiting returns how many items of a campaign wait for each reviewer.
	ReviewersWaiting(ctx context.Context, id broker.CampaignID) (map[string]int, error)

	// Suspensions returns the suspensions in force.
	Suspensions(ctx context.Context) ([]*broker.SuspensionRow, error)
}

// Config configures a Manager. Fields without a note are required.
type Config struct {
	Store broker.Store
	Rows  Rows
	Log   *slog.Logger // nil: discarded
	Rules func() *broker.Rules

	// Ground returns what a decision of a person rests on. It refuses people whose access has
	// ended. broker.Facts has it.
	Ground func(ctx context.Context, caller *broker.Caller) (*broker.Ground, error)

	// Enforce puts the suspensions that Suspended returns in force. It returns when every
	// decision follows them.
	Enforce func(ctx context.Context, now time.Time) error

	// EndGrant ends a grant and its leases. Repeating it is no error.
	EndGrant func(ctx context.Context, caller broker.Caller, id broker.RequestID, reason string) error

	// May reports whether policy permits an action to the caller.
	May func(ctx context.Context, caller broker.Caller, action broker.Action) bool

	// ManagerOf returns a person's manager; empty: unknown. Ended reports whether a person
	// has left. Both may be nil.
	ManagerOf func(person string) string
	Ended     func(person string) bool

	// Uses tells how permissions were used; nil: unknown.
	Uses Uses
}

// A Manager runs campaigns. It is safe for concurrent use.
type Manager struct {
	cfg     Config
	behind  atomic.Bool   // a decision is recorded, and the rules do not follow it yet
	unended atomic.Bool   // decisions are recorded, and the grants that they end may not have ended yet
	turn    chan struct{} // holds a token; its holder builds, assigns or closes

	// Guarded by turn.
	scheduled map[string]time.Time            // the last date of each plan that a campaign was started for
	checked   map[broker.CampaignID]time.Time // see refresh
	able      map[broker.CampaignID]audit.Digest
}

// New returns a Manager. It starts no goroutine: call Run.
func New(cfg Config) (*Manager, error) {
	if cfg.Store == nil || cfg.Rows == nil || cfg.Rules == nil || cfg.Ground == nil || cfg.Enforce == nil || cfg.EndGrant == nil || cfg.May == nil {
		return nil, errors.New("a campaign manager needs a store, rows, rules, and the functions that enforce decisions")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ManagerOf == nil {
		cfg.ManagerOf = func(string) string { return "" }
	}
	if cfg.Ended == nil {
		cfg.Ended = func(string) bool { return false }
	}
	m := &Manager{cfg: cfg, turn: make(chan struct{}, 1), scheduled: map[string]time.Time{}, checked: map[broker.CampaignID]time.Time{}, able: map[broker.CampaignID]audit.Digest{}}
	m.unended.Store(true) // the process may have died in between
	m.turn <- struct{}{}
	return m, nil
}

// Resume makes the next Tick look for what another process may have left undone.
func (m *Manager) Resume() {
	m.behind.Store(true)
	m.unended.Store(true)
}

// take waits for the manager's turn.
func (m *Manager) take(ctx context.Context) error {
	select {
	case <-m.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *Manager) giveBack() { m.turn <- struct{}{} }

func refuse(err error, detail string) error { return &broker.Refusal{Err: err, Detail: detail} }

// errOvertaken means that another call changed the rows on which this call decided.
var errOvertaken = errors.New("overtaken by another call")

// maxTries bounds how often a call is made again after errOvertaken.
const maxTries = 100

// retry makes a call until no other call overtakes it.
func retry(call func() error) error {
	for range maxTries {
		if err := call(); !errors.Is(err, errOvertaken) {
			return err
		}
	}
	return refuse(broker.ErrSlowDown, "other calls made changes at the same time: try again")
}

// write appends records in the transaction f.
func (m *Manager) write(ctx context.Context, reads []broker.Key, records []audit.Record, f func(broker.Tx) error) error {
	entries := make([]*audit.Entry, len(records))
	for i := range records {
		records[i].Trace = broker.TraceOf(ctx)
		entry, err := records[i].Entry()
		if err != nil {
			return err
		}
		entries[i] = entry
	}
	err := m.cfg.Store.Update(ctx, reads, func(tx broker.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		for _, e := range entries {
			tx.Append(e)
		}
		return nil
	})
	if errors.Is(err, errOvertaken) {
		return err
	}
	return broker.Unavailable(err)
}

// get reads one row.
func get[R broker.Row](ctx context.Context, m *Manager, key broker.Key) (row R, err error) {
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		row, err = broker.Get[R](tx, key)
		return err
	})
	if errors.Is(err, broker.ErrNotFound) {
		return row, err
	}
	return row, broker.Unavailable(err)
}

// facts returns what a record states about a campaign.
func facts(c *broker.Campaign) *audit.CampaignFacts {
	return &audit.CampaignFacts{ID: c.ID.String(), Name: c.Name}
}

// itemFacts returns what a record states about an item.
func itemFacts(c *broker.Campaign, i *broker.ReviewItem) *audit.CampaignFacts {
	f := facts(c)
	f.Item, f.Permission, f.Digest, f.Reviewer, f.Signed = int64(i.Number), i.Permission.String(), i.Digest, i.Reviewer.String(), i.Signed
	return f
}
