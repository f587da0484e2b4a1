package server

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"accessbroker.internal/broker"
	"accessbroker.internal/server/inbound"
)

// An lru is a cache of the most recently used entries. It is not safe for
// concurrent use.
type lru[K comparable, V any] struct {
	most  int
	order *list.List // of *lruEntry[K, V], most recently used first
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

// put adds a key that is not in the cache.
func (l *lru[K, V]) put(key K, value V) {
	if l.order.Len() >= l.most {
		last := l.order.Back()
		delete(l.at, last.Value.(*lruEntry[K, V]).key)
		l.order.Remove(last)
	}
	l.at[key] = l.order.PushFront(&lruEntry[K, V]{key, value})
}

// maxRemembered bounds what is remembered of identities or addresses: usually 3 MB. An
// identity has at most 2 KiB, so that a trust domain that makes up 16,384 of them takes
// at most 40 MB of each admission that counts workloads.
const maxRemembered = 16384

// An admission limits the calls of one identity, per second and concurrently,
// before they reach the store. It is safe for concurrent use.
//
// An identity that drops out of the cache starts with a full bucket. To exploit
// that, a caller would need thousands of attested identities.
type admission struct {
	perSecond float64
	atOnce    int
	clock     func() time.Time

	mu      sync.Mutex
	callers *lru[string, *callerState] // guarded by mu
}

type callerState struct {
	bucket *rate.Limiter
	inside int // running calls
}

func newAdmission(perSecond float64, atOnce int) *admission {
	return &admission{perSecond: perSecond, atOnce: atOnce, clock: time.Now, callers: newLRU[string, *callerState](maxRemembered)}
}

// enter admits a call or refuses it. The caller must call leave afterwards. The
// clock is read under the lock, so that time never goes back: a bucket refills
// when it sees an earlier time.
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
		return nil, &broker.Refusal{Err: broker.ErrSlowDown, Detail: "too many concurrent calls of this identity", Retry: time.Second}
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

// limits are the admissions of a server.
type limits struct {
	identity *admission // calls of one identity
	resource *admission // introspections of one resource server
	scan     *admission // calls of one identity that read many rows: each costs as much as hundreds of others
	codes    *admission // user codes that one person tries, because they are short
	provider *admission // back-channel logouts from one address: a provider may log out everyone at once, and a lost logout leaves a session open
	stream   *admission // event streams of one person
}

func newLimits(cfg *Config) limits {
	return limits{
		identity: newAdmission(cfg.CallsPerSecond, cfg.CallsAtOnce),
		resource: newAdmission(cfg.IntrospectionsPerSecond, cfg.IntrospectionsAtOnce),
		scan:     newAdmission(scansPerSecond, 2),
		codes:    newAdmission(codesPerSecond, 5),
		provider: newAdmission(1000, 100),
		stream:   newAdmission(streamsPerSecond, streamsAtOnce),
	}
}

const (
	scansPerSecond   = 5
	codesPerSecond   = 5
	streamsPerSecond = 5
	streamsAtOnce    = 10
)

// Limits of failed authentications from one address.
const (
	failuresBurst     = 100
	failuresPerSecond = 10
)

// failures limits how often one address can send invalid session tokens. Valid ones are
// never refused for it. It is safe for concurrent use.
type failures struct {
	clock func() time.Time

	mu        sync.Mutex
	addresses *lru[netip.Prefix, *rate.Limiter] // guarded by mu
}

func newFailures() *failures {
	return &failures{clock: time.Now, addresses: newLRU[netip.Prefix, *rate.Limiter](maxRemembered)}
}

// check refuses an address with too many failures.
func (f *failures) check(addr netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock()
	bucket, ok := f.addresses.get(inbound.Network(addr))
	if !ok || bucket.TokensAt(now) >= 1 {
		return nil
	}
	return &broker.Refusal{Err: broker.ErrSlowDown, Detail: "too many failed authentications from this address", Retry: wait(bucket, now)}
}

// count records a failure.
func (f *failures) count(addr netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock()
	bucket, ok := f.addresses.get(inbound.Network(addr))
	if !ok {
		bucket = rate.NewLimiter(failuresPerSecond, failuresBurst)
		f.addresses.put(inbound.Network(addr), bucket)
	}
	bucket.AllowN(now, 1)
}

// wait returns the time until the bucket has a token.
func wait(bucket *rate.Limiter, now time.Time) time.Duration {
	missing := 1 - bucket.TokensAt(now)
	return max(time.Duration(missing/float64(bucket.Limit())*float64(time.Second)), time.Millisecond)
}
