package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"accessbroker.internal/broker"
)

// A replica learns of the commits of others by a notification of the server, if a connection
// leads to the server itself: a pooler passes none on. Otherwise, and in case one is lost, it
// looks at the head now and then.

// notifications is the channel of PostgreSQL on which commits are announced.
const notifications = "access_broker"

const (
	// feedEvery is how often a replica that gets no notifications looks for the commits of
	// others, and feedListening how often one that does.
	feedEvery     = 100 * time.Millisecond
	feedListening = time.Second

	// relisten is the pause before another connection is opened for notifications.
	relisten = 5 * time.Second
)

// announces reports whether other replicas should learn of the group at once: something that
// they wait for may have changed. They do not wait for tokens that were issued at once.
func (g *group) announces() bool {
	for _, r := range g.order {
		switch r.key.(type) {
		case broker.RequestID:
			if r.lease == nil {
				return true
			}
		case broker.LeaseID:
			if !r.carried {
				return true
			}
		case broker.CounterKey, broker.SpentKey, broker.IdempotencyID, broker.AskKey:
		default:
			return true
		}
	}
	return false
}

// runShared follows the commits of other replicas until ctx ends, so that what waits in this
// process learns of them.
func (s *Store) runShared(ctx context.Context) error {
	heard := make(chan struct{}, 1)
	listening := make(chan bool, 1)
	go func() {
		defer close(listening)
		s.listenForever(ctx, heard, listening)
	}()
	every, failing := feedEvery, false
	var probed time.Time
	tick := time.NewTicker(every)
	defer tick.Stop()
	clean := time.NewTicker(feedLasts / 4)
	defer clean.Stop()
	for {
		err := s.fresh(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			s.cfg.Log.ErrorContext(ctx, "following the commits of other brokers", "err", err)
		}
		if failing = err != nil; failing {
			s.troubled(err)
		}
		select {
		case <-ctx.Done():
			for range listening { //revive:disable-line:empty-block the goroutine ends
			}
			return nil
		case now := <-listening:
			if every = feedEvery; now {
				every = feedListening
			}
			tick.Reset(every)
		case <-heard:
		case <-tick.C:
			if !failing && s.unwritable.Load() != nil && time.Since(probed) > probeEvery {
				probed = time.Now()
				_ = s.probe(ctx) // its success is noted
			}
		case <-clean.C:
			_, _ = s.delete(ctx, deleteFeed, feedBatch) // it is tried again
		}
	}
}

// listenForever receives notifications until ctx ends.
func (s *Store) listenForever(ctx context.Context, heard chan<- struct{}, listening chan<- bool) {
	for {
		pooled, _ := s.listen(ctx, heard, listening) // a connection is opened again
		pause := relisten
		if pooled {
			pause = time.Minute
		}
		select {
		case <-ctx.Done():
			return
		case listening <- false:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// listen receives notifications until the connection is lost. pooled reports that it does not
// lead to the server itself.
func (s *Store) listen(ctx context.Context, heard chan<- struct{}, listening chan<- bool) (pooled bool, err error) {
	db, err := s.openPool()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if pooled, err = isPooled(conn); pooled || err != nil {
		return pooled, err
	}
	if _, err := conn.ExecContext(ctx, "LISTEN "+notifications); err != nil {
		return false, err
	}
	select {
	case <-ctx.Done():
		return false, nil
	case listening <- true:
	}
	return false, conn.Raw(func(c any) error {
		listener := c.(*postgresConn).conn
		// The server does not answer a request to cancel while no statement runs.
		defer context.AfterFunc(ctx, func() { _ = listener.PgConn().Conn().SetDeadline(time.Now()) })()
		for {
			if _, err := listener.WaitForNotification(ctx); err != nil {
				return err
			}
			select {
			case heard <- struct{}{}:
			default: // an earlier one was not looked at yet
			}
		}
	})
}

func isPooled(conn *sql.Conn) (pooled bool, err error) {
	err = conn.Raw(func(c any) error {
		pooled = !c.(*postgresConn).Direct()
		return nil
	})
	return pooled, err
}
