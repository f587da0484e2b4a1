package server

import (
	"cmp"
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// What providers say of people's groups gets old, and is asked for again.

// Bounds of asking for those who only read: they wait so long, and ask so often.
const (
	readersWait = 3 * time.Second
	readersAsk  = time.Minute
)

// An asking is one question to a provider, for all calls of a session that want
// it answered.
type asking struct {
	begun time.Time
	over  chan struct{} // closed when it is answered, or was refused
	err   error         // that the answer could not be kept; read once it is over
}

func (a *asking) isOver() bool {
	select {
	case <-a.over:
		return true
	default:
		return false
	}
}

// askings are the latest asking of each session that asked last: a provider's
// tokens may be good once, so a session asks once at a time. It is safe for
// concurrent use.
type askings struct {
	patience time.Duration // of calls that only read

	mu       sync.Mutex
	sessions *lru[broker.SessionKey, *latest] // guarded by mu
}

// latest can be replaced where it stands, which what is in an lru can't.
type latest struct{ *asking }

func newAskings() *askings {
	return &askings{patience: readersWait, sessions: newLRU[broker.SessionKey, *latest](maxRemembered)}
}

// join gives the session's asking that is under way, or was begun less than every
// ago; or else begins one, which ask carries out.
func (a *askings) join(key broker.SessionKey, every time.Duration, ask func() error) *asking {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	last, ok := a.sessions.get(key)
	switch {
	case !ok:
		last = &latest{}
		a.sessions.put(key, last)
	case !last.isOver() || now.Sub(last.begun) < every:
		return last.asking
	}
	one := &asking{begun: now, over: make(chan struct{})}
	last.asking = one
	go func() {
		defer close(one.over)
		one.err = ask()
	}()
	return one
}

// asApprover calls f for the person who calls. If what the provider said of
// them is too old to vote by, it is asked again first; if it does not say, it is
// up to f whether that matters.
func (c *call) asApprover(f func(broker.Caller) (*broker.Request, error)) (*broker.Request, error) {
	ctx := c.r.Context()
	_, asked := c.s.cfg.Broker.ClaimsAge(c.caller())
	if asked {
		if _, err := c.askAgain(ctx, 0); err != nil {
			return nil, err
		}
	}
	r, err := f(c.caller())
	if asked || !errors.Is(err, broker.ErrLoginStale) {
		return r, err
	}
	if fresh, again := c.askAgain(ctx, 0); again != nil || !fresh {
		return nil, cmp.Or(again, err)
	}
	return f(c.caller())
}

// asReader has a call that only reads go on by what the provider says now of the
// person who calls, if what it said is too old to vote by: whoever has just become
// an approver finds what waits for them. If it does not say, or not soon, what it
// said stands: reading decides nothing. What a page asks by itself is no reason to
// ask.
func (c *call) asReader() error {
	if _, stale := c.s.cfg.Broker.ClaimsAge(c.caller()); !stale || c.background() {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), c.s.askings.patience)
	defer cancel()
	_, err := c.askAgain(ctx, readersAsk)
	if errors.Is(err, broker.ErrUnavailable) || errors.Is(err, errPanicked) {
		return nil // nothing can be written now, and nothing has to be
	}
	return err
}

// askAgain has the provider say again who is in which group, unless it was asked
// less than every ago, and says whether it did before ctx ended. The call goes on
// by that. An error says that the session has ended, or that the answer could not
// be kept.
func (c *call) askAgain(ctx context.Context, every time.Duration) (fresh bool, err error) {
	if c.session == nil || c.s.cfg.People == nil || len(c.session.Sealed) == 0 {
		return false, nil // a terminal has no tokens: a provider's are good in one place only
	}
	// It goes on if this call ends: others may wait for it, and what it is told is
	// not told twice.
	detached, again := context.WithoutCancel(c.r.Context()), refreshing{c.s, c.id, c.token, c.who}
	one := c.s.askings.join(c.session.SessionKey, every, func() error { return again.do(detached) })
	select {
	case <-one.over:
		err = one.err
	case <-ctx.Done():
	}
	c.now = time.Now() // it may have taken long
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

// A refreshing asks a provider again for a call, and may outlive it.
type refreshing struct {
	s      *Server
	callID string
	token  session.Token
	who    broker.Identity // as the call knows it
}

// do asks, and puts what is said into the session. That nothing is said is
// logged, and no error.
func (r refreshing) do(ctx context.Context) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil { // no call is there to do so
			r.s.cfg.Metrics.panics.Inc()
			r.s.cfg.Logger.ErrorContext(ctx, "panic", "call_id", r.callID, "panic", panicText(panicked), "stack", string(debug.Stack()))
			err = errPanicked
		}
	}()
	sessions, now := r.s.cfg.Sessions, time.Now()
	s, err := sessions.Peek(ctx, r.token, now)
	if err != nil || s.Who.Person.Claimed.After(r.who.Person.Claimed) {
		return err // if another call has just asked, this one asks nothing
	}
	tokens, err := r.token.ProviderTokens(s)
	if err != nil || len(tokens) == 0 {
		return nil
	}
	who, tokens, err := r.s.cfg.People.Refresh(ctx, s.Who, tokens, now)
	if err != nil {
		r.s.cfg.Logger.WarnContext(ctx, "a provider did not say again who is in which group", "call_id", r.callID, "err", err)
		return nil
	}
	_, err = sessions.Refresh(ctx, broker.Self(who, time.Now()), r.token, tokens)
	return err
}
