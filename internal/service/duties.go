package service

import (
	"context"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/store"
)

// A loop runs until its context ends.
type loop = func(context.Context) error

const (
	dutyTry  = time.Second      // between attempts to take over a loop
	dutyBeat = 10 * time.Second // between signs that a loop runs
)

// alone returns a loop that one replica runs at a time. begin, if not nil, is called before
// this replica begins, which may be in the middle of another's work.
func (s *Service) alone(name string, begin func(), run loop) loop {
	duties := store.DutiesOf(s.store)
	if duties == broker.Alone {
		return run
	}
	return func(ctx context.Context) error {
		for {
			if err := runOnDuty(ctx, duties, name, begin, run); err != nil || ctx.Err() != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(dutyTry):
			}
		}
	}
}

// runOnDuty runs a loop for as long as this replica has the duty.
func runOnDuty(ctx context.Context, duties broker.Duties, name string, begin func(), run loop) error {
	duty := duties.Hold(ctx, name)
	defer duty.End()
	if !duty.Has(name) {
		return nil
	}
	if begin != nil {
		begin()
	}
	ended := make(chan error, 1)
	go func() { ended <- run(duty.Context()) }()
	beat := time.NewTicker(dutyBeat)
	defer beat.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-beat.C:
			duty.Has(name)
		}
	}
}
