package server

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"accessbroker.internal/broker"
)

// An lru keeps the entries that were used last. It is not safe for concurrent
// use.
type lru[K comparable, V any] struct {
	most  int
	order *list.List // of *lruEntry[K, V], the last used first
	at    map[K]*list.Element
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](most int) *lru[K, V] {
	return &lru[K, V]{most: most, order: list.New(), at: map[K]*list.Element{}}
}

func (l *lru[K, V]) get(key K) (value V, ok bool) {
	element, ok := l.at[key]
	if !ok {
		return value, false
	}
	l.order.MoveToFront(element)
	return element.Value.(*lruEntry[K, V]).value, true
}

// put adds a key that is not there yet.
func (l *lru[K, V]) put(key K, value V) {
	if l.order.Len() >= l.most {
		last := l.order.Back()
		delete(l.at, last.Value.(*lruEntry[K, V]).key)
		l.order.Remove(last)
	}
	l.at[key] = l.order.PushFront(&lruEntry[K, V]{key, value})
}

const maxRemembered = 16384 // identities, and addresses

// An admission bounds what one identity may ask of the broker, before the
// store is touched: calls a second, and calls at once. It is safe for
// concurrent use.
//
// Who is not among the identities that called last starts anew: what that
// gives away is bounded by how fast thousands of attested identities can call.
type admission struct {
	perSecond float64
	atOnce    int
	clock     func() time.Time

	mu      sync.Mutex
	callers *lru[string, *callerState] // guarded by mu
}

type callerState struct {
	bucket *rate.Limiter
	inside int // calls that are being answered
}

func newAdmission(perSecond float64, atOnce int) *admission {
	return &admission{perSecond: perSecond, atOnce: atOnce, clock: time.Now, callers: newLRU[string, *callerState](maxRemembered)}
}

// enter lets a call in, or refuses. Whoever is let in must leave. The time is
// looked at under the lock, so that it never goes back: a bucket that is told
// an earlier time fills again.
func (a *admission) enter(id string) (leave func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.clock()
	state, ok := a.callers.get(id)
	if !ok {
		state = &callerState{bucket: rate.NewLimiter(rate.Limit(a.perSecond), max(1, int(a.perSecond)))}
		a.callers.put(id, state)
	}
	if state.inside >= a.atOnce {
		return nil, &broker.Refusal{Err: broker.ErrSlowDown, Detail: "too many calls of this identity at once", Retry: time.Second}
	}
	if !state.bucket.AllowN(now, 1) {
		return nil, &broker.Refusal{Err: broker.ErrSlowDown, Detail: "too many calls of this identity", Retry: wait(state.bucket, now)}
	}
	state.inside++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		state.inside--
	}, nil
}

// Failed authentications that one address may have: a burst, then so many a
// second.
const (
	failuresBurst     = 100
	failuresPerSecond = 10
)

// failures bounds how much work one address can make by proofs that do not
// hold. It is coarse on purpose: addresses that never failed are not even
// looked up, and those behind one proxy share their fate. It is safe for
// concurrent use.
type failures struct {
	clock func() time.Time

	mu        sync.Mutex
	addresses *lru[netip.Prefix, *rate.Limiter] // guarded by mu
}

func newFailures() *failures {
	return &failures{clock: time.Now, addresses: newLRU[netip.Prefix, *rate.Limiter](maxRemembered)}
}

// check refuses an address that failed too often.
func (f *failures) check(addr netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock()
	bucket, ok := f.addresses.get(network(addr))
	if !ok || bucket.TokensAt(now) >= 1 {
		return nil
	}
	return &broker.Refusal{Err: broker.ErrSlowDown, Detail: "too many failed authentications from this address", Retry: wait(bucket, now)}
}

// count remembers a failure.
func (f *failures) count(addr netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock()
	bucket, ok := f.addresses.get(network(addr))
	if !ok {
		bucket = rate.NewLimiter(failuresPerSecond, failuresBurst)
		f.addresses.put(network(addr), bucket)
	}
	bucket.AllowN(now, 1)
}

// network is what one party controls: an IPv4 address, an IPv6 /64.
func network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // the zero Prefix for the zero Addr: all unknown addresses are one
	return prefix
}

// wait is how long until the bucket has a token.
func wait(bucket *rate.Limiter, now time.Time) time.Duration {
	missing := 1 - bucket.TokensAt(now)
	return max(time.Duration(missing/float64(bucket.Limit())*float64(time.Second)), time.Millisecond)
}
