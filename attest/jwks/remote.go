package jwks

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of the keys of a Remote.
const (
	FetchInterval = time.Second      // shortest time between two fetches
	Fresh         = 10 * time.Minute // after which they are fetched again, so that a withdrawn key goes
	MaxAge        = time.Hour        // after which they are no longer trusted if fetching fails
)

// A Remote holds the public keys that another system publishes. It is safe for concurrent
// use.
//
// The key sets of libraries do not fit: for some, one broken key spoils all, and others
// keep a withdrawn key until they see an unknown kid.
type Remote struct {
	fetch   func(context.Context) (*Set, error)
	observe func(set *Set, err error)
	last    atomic.Pointer[fetched]

	mu    sync.Mutex // guards tried and changes of last; held during a fetch
	tried time.Time  // end of the last fetch
}

// fetched is the outcome of the last fetch. It is immutable.
type fetched struct {
	keys    []Key // of the last successful fetch, like leftOut
	leftOut []LeftOut
	read    time.Time // last successful fetch
	failed  error     // of the last fetch
}

// A FetchError means that the keys could not be fetched and no usable ones are known. The
// publisher is at fault, not the sender of the token.
type FetchError struct{ Err error }

func (e *FetchError) Error() string { return "reading the keys: " + e.Err.Error() }
func (e *FetchError) Unwrap() error { return e.Err }

var errKeysOld = errors.New("the keys are too old")

// NewRemote returns a Remote that fetches keys with fetch on first use. observe is called
// after a failed fetch, and after one that leaves out other keys than the one before.
func NewRemote(fetch func(context.Context) (*Set, error), observe func(*Set, error)) *Remote {
	r := &Remote{fetch: fetch, observe: observe}
	r.last.Store(&fetched{})
	return r
}

// Reset drops the keys.
func (r *Remote) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tried = time.Time{}
	r.last.Store(&fetched{})
}

// A Generation identifies the keys of one fetch. The zero value identifies none.
type Generation struct{ keys *fetched }

// Generation returns the generation of the keys that Verify uses first; ok is false if it
// would fetch others. What these keys verified counts as verified until then.
func (r *Remote) Generation() (g Generation, ok bool) {
	f := r.last.Load()
	return Generation{f}, time.Since(f.read) < Fresh
}

// Verify returns an error unless a current key verifies the token. If none does, it
// fetches the keys again (OpenID Connect Core 1.0, section 10.1.1).
func (r *Remote) Verify(ctx context.Context, signed *Signed) error {
	if r.last.Load().verify(signed, time.Now()) == nil {
		return nil
	}
	return r.verifyFresh(ctx, signed)
}

// verify verifies a token with keys that need no refresh.
func (f *fetched) verify(signed *Signed, now time.Time) error {
	if now.Sub(f.read) >= Fresh {
		return errKeysOld
	}
	return signed.Verify(f.keys)
}

// verifyFresh verifies a token with the keys that it fetches. If that fails, the last
// keys are used until they are too old.
func (r *Remote) verifyFresh(ctx context.Context, signed *Signed) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.last.Load().verify(signed, now) == nil { // fetched by another call
		return nil
	}
	fetchErr := r.refresh(ctx, now)
	f := r.last.Load()
	if now.Sub(f.read) >= MaxAge {
		return &FetchError{fetchErr}
	}
	err := signed.Verify(f.keys)
	if err != nil && fetchErr != nil { // another key may have been published meanwhile
		return &FetchError{fetchErr}
	}
	return err
}

// Refresh fetches the keys, at most once per FetchInterval, and returns the error of the last
// fetch. A program that calls it more often than Fresh verifies with VerifyKnown.
func (r *Remote) Refresh(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refresh(ctx, time.Now())
}

// VerifyKnown is Verify without a fetch: a key that was published since is unknown.
func (r *Remote) VerifyKnown(signed *Signed, now time.Time) error {
	f := r.last.Load()
	if now.Sub(f.read) >= MaxAge {
		return errKeysOld
	}
	return signed.Verify(f.keys)
}

// refresh fetches the keys, at most once per FetchInterval: anyone can send tokens with an
// unknown kid. Keys of that age are fresh. The caller holds mu.
func (r *Remote) refresh(ctx context.Context, now time.Time) error {
	f := *r.last.Load()
	if now.Sub(r.tried) < FetchInterval {
		return f.failed
	}
	set, err := r.fetch(ctx)
	r.tried = time.Now() // those who waited for a slow fetch use its outcome
	if f.failed = err; err != nil {
		r.observe(nil, err)
		r.last.Store(&f)
		return err
	}
	if !slices.Equal(f.leftOut, set.LeftOut) {
		r.observe(set, nil)
	}
	r.last.Store(&fetched{keys: set.Keys, leftOut: set.LeftOut, read: now})
	return nil
}

// A Status describes the keys of a Remote.
type Status struct {
	Keys    int
	LeftOut []LeftOut
	Age     time.Duration // since the keys could be read last; zero while they can be
}

// Status returns the status of the keys. ok is false if none were fetched yet.
func (r *Remote) Status(now time.Time) (status Status, ok bool) {
	f := r.last.Load()
	status = Status{Keys: len(f.keys), LeftOut: f.leftOut}
	if f.failed != nil {
		status.Age = now.Sub(f.read)
	}
	return status, !f.read.IsZero()
}
