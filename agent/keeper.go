package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"accessbroker.internal/api"
)

// A KeeperConfig configures a Keeper.
type KeeperConfig struct {
	Client *api.Client

	// Ask returns the request to file for an entitlement. If it is nil, requests
	// name the entitlement alone.
	Ask func(entitlement string) api.Ask

	// Report receives the events of credentials. It may be nil. It must not call the
	// Keeper.
	Report func(KeptEvent)
}

// Kinds of KeptEvent.
const (
	KeptObtained = "obtained"
	KeptRenewed  = "renewed"
	KeptPending  = "pending"  // a request waits for approval
	KeptFailed   = "failed"   // Err is the reason; a credential that is still valid stays in use
	KeptDropped  = "dropped"  // the lease ended before its time
	KeptReturned = "returned" // unused for long
)

// A KeptEvent is what happened to the credential of an entitlement. It has no secret.
type KeptEvent struct {
	Kind        string
	Entitlement string
	Lease       string
	Request     string
	Expires     time.Time
	Err         error
}

// A Keeper keeps the credentials of a process fresh. It obtains each one at its first
// use, renews it while it is in use, drops it when its lease has ended, and returns all
// of them at the end. Renewals happen at random times, so that credentials obtained
// together are not renewed together.
//
// While the broker is unavailable, a credential works until it expires. A Keeper never
// waits for approval: it files the request and returns a *PendingError, and a later
// call collects the credential.
//
// A Keeper is safe for concurrent use.
type Keeper struct {
	cfg     KeeperConfig
	changed chan struct{} // wakes Run
	renewal chan struct{} // bounds concurrent renewals

	mu     sync.Mutex
	kept   map[string]*kept      // by entitlement
	held   map[string]heldSecret // by lease: credentials that may still work
	closed bool
	work   sync.WaitGroup // flights and renewals
}

// A heldSecret is a credential until it expires, even if a newer one replaced it.
type heldSecret struct {
	credential *api.Credential
	gone       time.Time // when it can no longer work
}

// kept is the state of one entitlement, guarded by Keeper.mu.
type kept struct {
	entitlement string
	credential  *api.Credential // nil: none
	due         time.Time       // of the renewal; zero: it will not be renewed
	used        time.Time
	failures    int
	reason      string       // of the next request; empty: that of KeeperConfig.Ask
	request     *api.Request // waits for approval, or is approved; nil: file a new one
	flight      *flight      // obtains or renews; nil: none
	checked     time.Time    // when a rejected call last led to a look at the lease
	err         error        // the last failure to obtain
	until       time.Time    // err is the answer until then
}

// A flight is one attempt to obtain or renew a credential, for all who wait for it.
type flight struct {
	done       chan struct{}
	credential *api.Credential
	err        error
	unstated   bool // no call had stated a reason for this request
}

const (
	maxKept       = 1000 // entitlements
	obtainTimeout = 30 * time.Second
	atOnce        = 4                      // renewals
	pendingPause  = 200 * time.Millisecond // between two looks at a request that waits
	checkPause    = time.Second            // between two looks at the lease of rejected calls
	refusalPause  = 30 * time.Second
	denialPause   = 10 * time.Minute // after a person's denial
	maxRetryPause = time.Minute
	idleAfter     = time.Hour // without use, a credential is returned instead of renewed
	pollEvery     = 20 * time.Second
	keeperReturn  = 15 * time.Second // to return all
)

// ErrReturned means that the Keeper has returned its credentials and obtains no others.
var ErrReturned = errors.New("the credentials have been returned")

// errIdle means that a flight returned an unused credential.
var errIdle = errors.New("the credential was unused")

// NewKeeper returns a Keeper. Its Run renews the credentials.
func NewKeeper(cfg KeeperConfig) *Keeper {
	return &Keeper{cfg: cfg, changed: make(chan struct{}, 1), renewal: make(chan struct{}, atOnce), kept: map[string]*kept{}, held: map[string]heldSecret{}}
}

// Credential returns a valid credential of an entitlement. The error is a *PendingError
// if a request waits for approval, and otherwise tells why the
// broker issued no credential.
func (k *Keeper) Credential(ctx context.Context, entitlement string) (*api.Credential, error) {
	k.mu.Lock()
	e, err := k.entry(entitlement)
	if err != nil {
		k.mu.Unlock()
		return nil, err
	}
	now := time.Now()
	if usable(e.credential, now) {
		e.used = now
		defer k.mu.Unlock()
		return e.credential, nil
	}
	reason := reasonOf(ctx)
	e.because(reason)
	if e.err != nil && now.Before(e.until) {
		defer k.mu.Unlock()
		return nil, e.err
	}
	if e.flight == nil {
		e.used = now
		k.begin(e, k.obtain)
	}
	f := e.flight
	k.mu.Unlock()
	select {
	case <-f.done:
		if errors.Is(f.err, errIdle) || f.err != nil && f.unstated && reason != "" {
			return k.Credential(ctx, entitlement)
		}
		return f.credential, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Holds reports whether a valid credential of an entitlement is at hand.
func (k *Keeper) Holds(entitlement string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.kept[entitlement]
	return e != nil && usable(e.credential, time.Now())
}

// usable reports whether a credential is valid for long enough to be used.
func usable(c *api.Credential, now time.Time) bool {
	return c != nil && c.ExpiresAt.Sub(now) > minLifetime
}

// entry returns the state of an entitlement. The lock is held.
func (k *Keeper) entry(entitlement string) (*kept, error) {
	if k.closed {
		return nil, ErrReturned
	}
	e := k.kept[entitlement]
	if e == nil {
		if len(k.kept) >= maxKept {
			return nil, fmt.Errorf("this process already has credentials of %d entitlements, the limit", maxKept)
		}
		e = &kept{entitlement: entitlement}
		k.kept[entitlement] = e
	}
	return e, nil
}

// begin starts a flight of an entry. The lock is held. A flight outlives the call that
// started it, because others may wait for it and its lease must not get lost.
func (k *Keeper) begin(e *kept, attempt func(context.Context, *kept) (*api.Credential, error)) {
	f := &flight{done: make(chan struct{})}
	e.flight = f
	k.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), obtainTimeout)
		defer cancel()
		defer close(f.done)
		f.credential, f.err = attempt(ctx, e)
	})
}

// obtain obtains a credential, of the request that is already filed if there is one.
func (k *Keeper) obtain(ctx context.Context, e *kept) (*api.Credential, error) {
	k.mu.Lock()
	request, reason := e.request, e.reason
	e.flight.unstated = reason == "" && request == nil
	k.mu.Unlock()
	var c *api.Credential
	var err error
	if request != nil {
		if request, err = k.cfg.Client.Request(ctx, request.ID); err == nil {
			c, err = Collect(ctx, k.cfg.Client, request, Wait{})
		}
	} else {
		ask := api.Ask{}
		if k.cfg.Ask != nil {
			ask = k.cfg.Ask(e.entitlement)
		}
		ask.Entitlement = e.entitlement
		if reason != "" {
			ask.Justification = reason
		}
		c, err = Obtain(ctx, k.cfg.Client, ask, Wait{})
	}
	return k.settle(e, c, err)
}

// settle stores the result of an attempt to obtain.
func (k *Keeper) settle(e *kept, c *api.Credential, err error) (*api.Credential, error) {
	if err != nil {
		return nil, k.failed(e, err)
	}
	k.mu.Lock()
	e.flight, e.request, e.err, e.failures = nil, nil, nil, 0
	if k.closed {
		k.mu.Unlock()
		return nil, errors.Join(ErrReturned, Return(context.Background(), k.cfg.Client, c, "the process ended"))
	}
	k.hold(e, c)
	k.mu.Unlock()
	k.report(KeptEvent{Kind: KeptObtained, Entitlement: e.entitlement, Lease: c.Lease, Request: c.Request, Expires: c.ExpiresAt})
	return c, nil
}

// hold puts a credential into use and plans its renewal. The lock is held.
func (k *Keeper) hold(e *kept, c *api.Credential) {
	now := time.Now()
	e.credential, e.failures = c, 0
	left := c.ExpiresAt.Sub(now)
	e.due = now.Add(left/2 + rand.N(max(left*3/10, 1))) // at 50 to 80 per cent
	gone := c.ExpiresAt
	if c.WorksUntil.After(gone) {
		gone = c.WorksUntil
	}
	for lease, h := range k.held {
		if !now.Before(h.gone) {
			delete(k.held, lease)
		}
	}
	k.held[c.Lease] = heldSecret{c, gone}
	k.wake()
}

// failed stores why a credential could not be obtained, and for how long that is the
// answer, so that a client that repeats its calls does not flood the broker.
func (k *Keeper) failed(e *kept, err error) error {
	event := KeptEvent{Kind: KeptFailed, Entitlement: e.entitlement}
	k.mu.Lock()
	unstated := e.flight.unstated
	e.flight = nil
	var pending *PendingError
	var lost *UnreachableError
	pause := refusalPause
	switch {
	case errors.As(err, &pending):
		if e.request == nil {
			event.Kind = KeptPending
		}
		e.request, pause = pending.Request, pendingPause
		event.Request = pending.Request.ID
	case errors.As(err, &lost):
		e.request, pause = &api.Request{ID: lost.RequestID}, k.backoff(e)
	case api.Transient(err):
		pause = k.backoff(e)
	default: // a decision about this request; another one may be decided otherwise
		if deniedByPerson(err) || e.request != nil && errors.Is(err, api.Denied) {
			pause = denialPause
		}
		e.request = nil
	}
	if pending == nil {
		err = fmt.Errorf("no credential of %s: %w", e.entitlement, err)
		event.Err = err
	}
	if !unstated || e.reason == "" || e.request != nil { // else a call has stated a reason since
		e.err, e.until = err, time.Now().Add(pause)
	}
	k.mu.Unlock()
	if pending == nil || event.Kind == KeptPending {
		k.report(event)
	}
	return err
}

func deniedByPerson(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && e.DeniedBy == "person"
}

// backoff returns a random pause that grows with each failure. The lock is held.
func (k *Keeper) backoff(e *kept) time.Duration {
	longest := min(minPause<<min(e.failures, 6), maxRetryPause)
	e.failures++
	return longest/2 + rand.N(longest/2)
}

// Follow makes the Keeper collect the next credential of an entitlement from a request
// that is already filed, such as one that the user of this process filed.
func (k *Keeper) Follow(entitlement, request string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, err := k.entry(entitlement)
	if err == nil {
		e.request, e.err = &api.Request{ID: request}, nil
	}
	return err
}

// Rejected reports whether a call that its target rejected, as by HTTP status 401 or
// 403, is worth one repetition: the Keeper already has another credential, or the lease
// of this one has ended, so that the next call obtains another.
func (k *Keeper) Rejected(ctx context.Context, c *api.Credential) bool {
	k.mu.Lock()
	e := k.kept[c.Entitlement]
	if e == nil || k.closed {
		k.mu.Unlock()
		return false
	}
	f := e.flight
	k.mu.Unlock()
	if f != nil {
		select {
		case <-f.done:
		case <-ctx.Done():
			return false
		}
	}
	if !k.current(c) {
		return true
	}
	if !k.mayCheck(e) {
		return false
	}
	l, err := k.cfg.Client.Lease(ctx, c.Lease)
	if err != nil || l.Status == api.LeaseActive {
		return false
	}
	k.drop(c.Entitlement, c.Lease)
	return true
}

// mayCheck bounds how often rejected calls, which a host may send without end, lead to a
// call of the broker.
func (k *Keeper) mayCheck(e *kept) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if now.Sub(e.checked) < checkPause {
		return false
	}
	e.checked = now
	return true
}

// current reports whether a credential is the one in use.
func (k *Keeper) current(c *api.Credential) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.kept[c.Entitlement]
	return e != nil && e.credential != nil && e.credential.Lease == c.Lease
}

// drop takes a credential out of use whose lease has ended.
func (k *Keeper) drop(entitlement, lease string) {
	k.mu.Lock()
	e := k.kept[entitlement]
	found := e != nil && e.credential != nil && e.credential.Lease == lease
	if found {
		e.credential, e.due = nil, time.Time{}
	}
	k.mu.Unlock()
	if found {
		k.report(KeptEvent{Kind: KeptDropped, Entitlement: entitlement, Lease: lease})
	}
}

// Held returns the credentials that this process has obtained and that may still work,
// including those that it has replaced. An answer of another system can contain any of
// them.
func (k *Keeper) Held() []*api.Credential {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	list := make([]*api.Credential, 0, len(k.held))
	for _, h := range k.held {
		if now.Before(h.gone) {
			list = append(list, h.credential)
		}
	}
	return list
}

// Pending returns the requests that wait for approval, as far as the Keeper knows.
func (k *Keeper) Pending() []*api.Request {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []*api.Request
	for _, e := range k.kept {
		if e.request != nil && e.request.Status == api.StatusPending {
			list = append(list, e.request)
		}
	}
	return list
}

func (k *Keeper) report(e KeptEvent) {
	if k.cfg.Report != nil {
		k.cfg.Report(e)
	}
}

func (k *Keeper) wake() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}
