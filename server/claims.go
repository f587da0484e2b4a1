package server

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// People's claims become stale and are refreshed at their provider.

// Bounds of refreshes for calls that only read.
const (
	readerPatience = 3 * time.Second // how long the call waits
	readerInterval = time.Minute     // between two refreshes of a session
)

// A refresh is one refresh of a session's claims, shared by all calls that wait
// for it.
type refresh struct {
	begun time.Time
	over  chan struct{} // closed when the provider has answered or failed
	err   error         // of storing the answer; read only after over
}

func (r *refresh) isOver() bool {
	select {
	case <-r.over:
		return true
	default:
		return false
	}
}

// refreshes are the latest refreshes by session. A refresh token may work only
// once, so a session has at most one refresh at a time. It is safe for concurrent
// use.
type refreshes struct {
	patience time.Duration // of calls that only read

	mu       sync.Mutex
	sessions *lru[broker.SessionKey, *latest] // guarded by mu
}

// latest can be replaced in place, unlike an entry of an lru.
type latest struct{ *refresh }

func newRefreshes() *refreshes {
	return &refreshes{patience: readerPatience, sessions: newLRU[broker.SessionKey, *latest](maxRemembered)}
}

// join returns the session's refresh if one is running or began within the
// interval. Otherwise it starts run as a new one.
func (r *refreshes) join(key broker.SessionKey, interval time.Duration, run func() error) *refresh {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	last, ok := r.sessions.get(key)
	switch {
	case !ok:
		last = &latest{}
		r.sessions.put(key, last)
	case !last.isOver() || now.Sub(last.begun) < interval:
		return last.refresh
	}
	one := &refresh{begun: now, over: make(chan struct{})}
	last.refresh = one
	go func() {
		defer close(one.over)
		one.err = run()
	}()
	return one
}

// asApprover calls f for the caller. Stale claims are refreshed first. If the
// provider does not answer, f decides whether that matters.
func (c *call) asApprover(f func(broker.Caller) (*broker.Request, error)) (*broker.Request, error) {
	ctx := c.r.Context()
	_, stale := c.s.cfg.Broker.ClaimsAge(c.caller())
	if stale {
		if _, err := c.refreshClaims(ctx, 0); err != nil {
			return nil, err
		}
	}
	r, err := f(c.caller())
	if stale || !errors.Is(err, broker.ErrLoginStale) {
		return r, err
	}
	if fresh, failed := c.refreshClaims(ctx, 0); failed != nil || !fresh {
		return nil, cmp.Or(failed, err)
	}
	return f(c.caller())
}

// asReader refreshes stale claims for a call that only reads, so that a new
// approver finds what waits for them. If the provider does not answer soon, the old
// claims stand, because reading decides nothing. Background calls of a page do not
// refresh.
func (c *call) asReader() error {
	if _, stale := c.s.cfg.Broker.ClaimsAge(c.caller()); !stale || c.background() {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), c.s.refreshes.patience)
	defer cancel()
	_, err := c.refreshClaims(ctx, readerInterval)
	if errors.Is(err, broker.ErrUnavailable) || errors.Is(err, errPanicked) {
		return nil // the claims cannot be stored now, which does not matter for reading
	}
	return err
}

// refreshClaims refreshes the caller's claims unless that happened within the
// interval, and reports whether they are newer than before when ctx ends. The call
// continues with the new claims. An error means that the session has ended or that
// the claims could not be stored.
func (c *call) refreshClaims(ctx context.Context, interval time.Duration) (fresh bool, err error) {
	if c.session == nil || c.s.cfg.People == nil || len(c.session.Sealed) == 0 {
		return false, nil // only the browser's session holds the provider's tokens
	}
	// The refresh outlives this call: other calls may wait for it, and a rotated
	// refresh token must not be lost.
	detached, task := context.WithoutCancel(c.r.Context()), claimsRefresh{c.s, c.id, c.token, c.who, c.session.SessionKey}
	one := c.s.refreshes.join(c.session.SessionKey, interval, func() error { return task.run(detached) })
	select {
	case <-one.over:
		err = one.err
	case <-ctx.Done():
	}
	c.now = time.Now() // the refresh may have taken long
	if err != nil {
		return false, err
	}
	s, err := c.s.cfg.Sessions.Peek(c.r.Context(), c.token, c.now)
	if err != nil {
		return false, err
	}
	fresh = s.Who.Person.Claimed.After(c.who.Person.Claimed)
	c.who, c.session = s.Who, s
	return fresh, nil
}

// A claimsRefresh refreshes a session's claims for a call, and may outlive it.
type claimsRefresh struct {
	s      *Server
	callID string
	token  session.Token
	who    broker.Identity // with the claims that the call has

	session broker.SessionKey
}

// refreshLock bounds the wait for a refresh of the same session by another process.
const refreshLock = 10 * time.Second

// lock keeps other processes from using the session's refresh token, which may work once.
func (r claimsRefresh) lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, refreshLock)
	defer cancel()
	return r.s.cfg.Duties.Lock(ctx, "refresh/"+hex.EncodeToString(r.session[:]))
}

// run calls the provider and stores its answer in the session. A provider that
// does not answer is logged and is not an error.
func (r claimsRefresh) run(ctx context.Context) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil { // no call recovers in this goroutine
			r.s.cfg.Metrics.panics.Inc()
			r.s.cfg.Logger.ErrorContext(ctx, "panic", "call_id", r.callID, "panic", panicText(panicked), "stack", string(debug.Stack()))
			err = errPanicked
		}
	}()
	unlock, err := r.lock(ctx)
	if err != nil {
		r.s.cfg.Logger.WarnContext(ctx, "refreshing claims at the provider", "call_id", r.callID, "err", err)
		return nil
	}
	defer unlock()
	sessions, now := r.s.cfg.Sessions, time.Now()
	s, err := sessions.Peek(ctx, r.token, now)
	if err != nil || s.Who.Person.Claimed.After(r.who.Person.Claimed) {
		return err // another call has just refreshed the claims
	}
	tokens, err := r.token.ProviderTokens(s)
	if err != nil || len(tokens) == 0 {
		return nil
	}
	who, tokens, err := r.s.cfg.People.Refresh(ctx, s.Who, tokens, now)
	if err != nil {
		r.s.cfg.Logger.WarnContext(ctx, "refreshing claims at the provider", "call_id", r.callID, "err", err)
		return nil
	}
	_, err = sessions.Refresh(ctx, broker.Self(who, time.Now()), r.token, tokens)
	return err
}
