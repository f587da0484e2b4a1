package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"accessbroker.internal/api"
)

// Run renews credentials, and drops those whose leases have ended, until ctx ends. It
// does not return the credentials: Return does.
func (k *Keeper) Run(ctx context.Context) error {
	poll := time.NewTimer(nextPoll())
	defer poll.Stop()
	due := time.NewTimer(pollEvery)
	defer due.Stop()
	for {
		due.Reset(k.renewDue())
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		case <-due.C:
		case <-poll.C:
			k.dropEnded(ctx)
			poll.Reset(nextPoll())
		}
	}
}

func nextPoll() time.Duration { return pollEvery*3/4 + rand.N(pollEvery/2) }

// renewDue starts the renewals that are due, and returns the time until the next one.
func (k *Keeper) renewDue() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, next := time.Now(), pollEvery
	for _, e := range k.kept {
		if e.due.IsZero() || e.flight != nil || k.closed {
			continue
		}
		if left := e.due.Sub(now); left > 0 {
			next = min(next, left)
			continue
		}
		e.due = time.Time{}
		if now.Sub(e.used) > idleAfter {
			k.begin(e, k.returnIdle)
			continue
		}
		k.begin(e, k.renew)
	}
	return next
}

// renew replaces a credential before it expires. After a failure, the old one works
// until it expires.
func (k *Keeper) renew(ctx context.Context, e *kept) (*api.Credential, error) {
	k.renewal <- struct{}{}
	defer func() { <-k.renewal }()
	k.mu.Lock()
	old := e.credential
	k.mu.Unlock()
	if old == nil { // dropped meanwhile
		return k.obtain(ctx, e)
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	c, err := k.cfg.Client.Renew(ctx, old.Lease)
	if err != nil {
		return k.notRenewed(ctx, e, old, err)
	}
	k.mu.Lock()
	e.flight = nil
	if k.closed {
		k.mu.Unlock()
		return nil, errors.Join(ErrReturned, Return(ctx, k.cfg.Client, c, "the process ended"))
	}
	k.hold(e, c)
	k.mu.Unlock()
	k.report(KeptEvent{Kind: KeptRenewed, Entitlement: e.entitlement, Lease: c.Lease, Request: c.Request, Expires: c.ExpiresAt})
	return c, nil
}

// notRenewed plans the next attempt after a failure. A refusal is final; the lease may
// have ended, and then the credential is dropped.
func (k *Keeper) notRenewed(ctx context.Context, e *kept, old *api.Credential, err error) (*api.Credential, error) {
	ended := false
	if !api.Transient(err) {
		l, failed := k.cfg.Client.Lease(ctx, old.Lease)
		ended = failed == nil && l.Status != api.LeaseActive
	}
	k.mu.Lock()
	e.flight = nil
	if api.Transient(err) {
		if at := time.Now().Add(k.backoff(e)); at.Before(old.ExpiresAt) {
			e.due = at
			k.wake()
		}
	}
	k.mu.Unlock()
	if ended {
		k.drop(e.entitlement, old.Lease)
	}
	k.report(KeptEvent{Kind: KeptFailed, Entitlement: e.entitlement, Lease: old.Lease, Expires: old.ExpiresAt, Err: err})
	if usable(old, time.Now()) && !ended {
		return old, nil
	}
	return nil, err
}

// returnIdle returns a credential that was not used for long.
func (k *Keeper) returnIdle(ctx context.Context, e *kept) (*api.Credential, error) {
	k.mu.Lock()
	old := e.credential
	e.credential = nil
	k.mu.Unlock()
	if old != nil {
		k.report(KeptEvent{Kind: KeptReturned, Entitlement: e.entitlement, Lease: old.Lease, Err: Return(ctx, k.cfg.Client, old, "unused")})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	e.flight = nil
	return nil, errIdle
}

// maxPolled bounds the pages of a poll.
const maxPolled = 10

// dropEnded drops the credentials whose leases are no longer active. It lists the
// caller's leases, which is one call for many credentials.
func (k *Keeper) dropEnded(ctx context.Context) {
	leases := k.inUse()
	if len(leases) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pollEvery)
	defer cancel()
	filter := api.LeaseFilter{Live: true, Limit: 200}
	for range maxPolled {
		page, err := k.cfg.Client.Leases(ctx, filter)
		if err != nil {
			return // unknown: the credentials stay in use
		}
		for _, l := range page.Leases {
			if l.Status == api.LeaseActive || l.Status == api.LeaseIssuing {
				delete(leases, l.ID)
			}
		}
		if filter.Cursor = page.Next; filter.Cursor == "" {
			for lease, entitlement := range leases {
				k.drop(entitlement, lease)
			}
			return
		}
	}
}

// inUse returns the entitlements of the credentials in use, by lease.
func (k *Keeper) inUse() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	leases := map[string]string{}
	for _, e := range k.kept {
		if usable(e.credential, time.Now()) && e.flight == nil {
			leases[e.credential.Lease] = e.entitlement
		}
	}
	return leases
}

// Return returns all credentials, also those that are on their way, in bounded time.
// It does so even if ctx has ended. The Keeper obtains no others afterwards.
func (k *Keeper) Return(ctx context.Context, reason string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keeperReturn)
	defer cancel()
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	arrived := make(chan struct{})
	go func() { k.work.Wait(); close(arrived) }() // each flight has a deadline
	select {
	case <-arrived: // a late credential has been returned by its flight
	case <-time.After(keeperReturn / 3):
	}
	var errs []error
	var mu sync.Mutex
	var group sync.WaitGroup
	bound := make(chan struct{}, 2*atOnce)
	for _, c := range k.take() {
		bound <- struct{}{}
		group.Go(func() {
			defer func() { <-bound }()
			if _, err := k.cfg.Client.Revoke(ctx, c.Lease, reason); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, &UnreturnedError{Credential: c, Err: err})
			}
		})
	}
	group.Wait()
	select {
	case <-arrived: // also those that took longer
	case <-ctx.Done():
	}
	return errors.Join(errs...)
}

// take takes the credentials out of use.
func (k *Keeper) take() []*api.Credential {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []*api.Credential
	for _, e := range k.kept {
		if e.credential != nil && e.credential.ExpiresAt.After(time.Now()) {
			list = append(list, e.credential)
		}
		e.credential = nil
	}
	return list
}

// An UnreturnedError means that a lease could not be returned. Its credential works
// until it expires.
type UnreturnedError struct {
	Credential *api.Credential
	Err        error
}

func (e *UnreturnedError) Error() string {
	return "returning lease " + e.Credential.Lease + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *UnreturnedError) Unwrap() error { return e.Err }
