package checker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"accessbroker.internal/e2e/cluster"
)

// clockSchema puts a function before the server's own clock in the search path of the
// database, so that the clock of the database can differ from that of the replicas. The
// machine has one clock.
const clockSchema = `
CREATE SCHEMA clocks;
CREATE TABLE clocks.ahead (by interval NOT NULL);
INSERT INTO clocks.ahead VALUES ('0');
CREATE FUNCTION clocks.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
	'SELECT pg_catalog.clock_timestamp() + by FROM clocks.ahead';
GRANT USAGE ON SCHEMA clocks TO PUBLIC;
GRANT SELECT ON clocks.ahead TO PUBLIC;
ALTER DATABASE ` + cluster.Database + ` SET search_path = public, clocks, pg_catalog;
`

// prepareClock makes setClock work. It precedes the first connection of a broker.
func (w *world) prepareClock(ctx context.Context) error {
	_, err := w.Postgres.Exec(ctx, cluster.Database, clockSchema)
	return err
}

// setClock sets by how much the database's clock is ahead of the replicas'.
func (w *world) setClock(ctx context.Context, ahead time.Duration) error {
	_, err := w.Postgres.Exec(context.WithoutCancel(ctx), cluster.Database, fmt.Sprintf("UPDATE clocks.ahead SET by = '%d seconds'", int(ahead.Seconds())))
	return err
}

// clocksOff is the name of the time in which every replica knows that its clock is off.
const clocksOff = "every replica knows that its clock is off"

// clocksDiffer moves the database's clock so far that no replica may issue. Each must notice.
func clocksDiffer(ctx context.Context, w *world, r *rand.Rand) (string, error) {
	ahead := time.Duration(5+r.IntN(3600)) * time.Second
	if r.IntN(2) == 0 {
		ahead = -ahead
	}
	if err := w.setClock(ctx, ahead); err != nil {
		return "database", err
	}
	err := cluster.Await(context.WithoutCancel(ctx), "replicas to notice the clock", w.recovery, func() error {
		for _, b := range w.Replicas {
			if ready(ctx, b) == nil {
				return fmt.Errorf("%s is ready, and the database's clock is %s ahead", b.Name, ahead)
			}
		}
		return nil
	})
	start := time.Now().UTC()
	pause(ctx, r, 2*time.Second)
	w.history.AddFault(Fault{Name: clocksOff, Target: "database", Start: start, End: time.Now().UTC()})
	return "database", errors.Join(err, w.setClock(ctx, 0))
}

// judgeClock checks that nothing is issued while every replica knows that its clock is off.
func judgeClock(e *Evidence, c *court) {
	for _, f := range e.Faults {
		if f.Name != clocksOff {
			continue
		}
		for i := range e.Operations {
			o := &e.Operations[i]
			if o.Outcome == OK && o.Answer.LeafHash != "" && o.Start.After(f.Start) && o.End.Before(f.End) {
				c.find("%s: lease %s was issued while the clocks differed", o.name(), o.Answer.Lease)
			}
		}
	}
}
