package server

import (
	"context"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/activity"
	"accessbroker.internal/broker/evidence"
)

// A History reads what the audit log says about many records. It is safe for concurrent
// use.
type History interface {
	// Activity returns the counts of the hours from the hour of from until now.
	Activity(ctx context.Context, from, now time.Time) (activity.Report, error)

	// Tally and Record are those of evidence.Source.
	evidence.Source

	// Search returns a page of the current log's records that a query selects.
	Search(ctx context.Context, q broker.RecordQuery) (broker.RecordPage, error)
}

// mayAudit reports whether policy permits the caller to read the whole audit log.
func (c *call) mayAudit() bool {
	return c.s.cfg.Broker.May(c.r.Context(), c.caller(), broker.ActionAudit)
}

// maySeeOverview reports whether policy permits the caller to see how much the broker is
// used. The overview names only people, and those only to auditors.
func (c *call) maySeeOverview() bool {
	return c.mayAudit() || c.s.cfg.Broker.May(c.r.Context(), c.caller(), broker.ActionUsage)
}
