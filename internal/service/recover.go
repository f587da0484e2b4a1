package service

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/recovery"
	"accessbroker.internal/store"
)

// openRecovery creates the manager that ends what was issued after the backup from which the
// database was restored.
func (s *Service) openRecovery(issuers map[string]broker.Issuer) {
	s.recovery = recovery.New(recovery.Config{
		Store: s.store, Rows: store.NewRecoveries(s.store), Issuers: issuers, Broker: s.broker, Log: s.log,
	})
}

// restored returns when the last log was opened that follows one that lost records; zero: none
// does.
func (s *Service) restored(ctx context.Context) (time.Time, error) {
	r, err := store.NewRecoveries(s.store).Last(ctx)
	if r == nil || err != nil {
		return time.Time{}, err
	}
	return r.Opened, nil
}

// recoverEvery is the pause between two passes of Recover.
const recoverEvery = 200 * time.Millisecond

// Recover works on the last recovery of a broker that does not run, until nothing can be done
// at the moment, or until ctx ends. The broker continues when it starts.
func Recover(ctx context.Context, o Options) (err error) {
	s, err := New(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	loops, stop := context.WithCancel(context.WithoutCancel(ctx))
	var background errgroup.Group
	defer func() {
		stop()
		err = errors.Join(err, background.Wait())
	}()
	for _, run := range append(s.loops, s.trust.Run) {
		background.Go(func() error { return run(loops) })
	}
	defer func() { err = errors.Join(err, s.publisher.publish(context.WithoutCancel(ctx))) }()
	for {
		settled, err := s.recovery.Settle(ctx)
		if err != nil || settled {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(recoverEvery):
		}
	}
}
