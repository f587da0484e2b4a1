package attest

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"accessbroker.internal/broker"
)

// A cachedProof is a verified proof.
type cachedProof struct {
	who        broker.Identity
	generation uint64 // of the trust that verified it
	notBefore  time.Time
}

// A cache holds what was verified by the SHA-256 hash of the proof, up to a limit of the
// number of entries. It is safe for concurrent use.
//
// Each shard evicts with the clock algorithm: a hit sets a bit of the entry, and
// the hand clears bits until it finds an entry without one. The hit rate is close
// to that of LRU, and a hit moves nothing. Callers can't aim at one shard, because
// the hash selects it.
type cache[V any] struct{ shards [cacheShards]shard[V] }

const cacheShards = 16

type shard[V any] struct {
	mu    sync.Mutex
	index map[[sha256.Size]byte]int // into slots
	slots []slot[V]
	hand  int
	limit int
}

type slot[V any] struct {
	key   [sha256.Size]byte
	used  bool
	value V
}

func newCache[V any](limit int) *cache[V] {
	c := &cache[V]{}
	for i := range c.shards {
		c.shards[i].limit = max(1, limit/cacheShards)
		c.shards[i].index = map[[sha256.Size]byte]int{}
	}
	return c
}

func (c *cache[V]) shard(key [sha256.Size]byte) *shard[V] { return &c.shards[key[0]%cacheShards] }

func (c *cache[V]) get(key [sha256.Size]byte) (value V, ok bool) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[key]
	if !ok {
		return value, false
	}
	s.slots[i].used = true
	return s.slots[i].value, true
}

func (c *cache[V]) put(key [sha256.Size]byte, value V) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[key]
	if !ok {
		i = s.free()
		s.index[key] = i
	}
	s.slots[i] = slot[V]{key: key, used: true, value: value}
}

// free returns a free slot and evicts an entry if there is none.
func (s *shard[V]) free() int {
	if len(s.slots) < s.limit {
		s.slots = append(s.slots, slot[V]{})
		return len(s.slots) - 1
	}
	for s.slots[s.hand].used {
		s.slots[s.hand].used = false
		s.hand = (s.hand + 1) % len(s.slots)
	}
	i := s.hand
	s.hand = (i + 1) % len(s.slots)
	delete(s.index, s.slots[i].key)
	return i
}

// A proofCache caches verified proofs of workloads; see maxCachedProof for their size.
type proofCache struct{ *cache[cachedProof] }

func newProofCache(limit int) *proofCache { return &proofCache{newCache[cachedProof](limit)} }

// get returns the proof for key if it was verified under the generation.
func (c *proofCache) get(key [sha256.Size]byte, generation uint64) (cachedProof, bool) {
	r, ok := c.cache.get(key)
	if !ok || r.generation != generation {
		return cachedProof{}, false
	}
	return r, true
}

// maxCachedProof bounds the bytes of a cached proof's identity. A trust domain can make
// up identities of 2 KiB with 1,000 segments, each of which is a path of 16 bytes. With
// this bound, 8,192 proofs take at most 20 MB.
const maxCachedProof = 2 << 10

func (r *cachedProof) size() int { return len(r.who.ID) + 16*len(r.who.Paths) }

func (c *proofCache) put(key [sha256.Size]byte, r cachedProof) {
	if r.size() > maxCachedProof {
		return // it is verified again for each call
	}
	c.cache.put(key, r)
}

type connKey struct{}

// A connCache caches the verified certificate of one connection. A TLS 1.3 client
// can't change its certificate after the handshake (the server never asks for
// post-handshake authentication), so one verification is enough for a generation
// of trust.
type connCache struct{ cert atomic.Pointer[cachedCert] }

// A cachedCert is a verified leaf. It is immutable.
type cachedCert struct {
	leaf *x509.Certificate
	cachedProof
}

// ConnContext adds a certificate cache to the context of a connection. Set it as
// the ConnContext of the http.Server; without it, every request verifies the
// chain.
func (v *Verifier) ConnContext(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &connCache{})
}

// verifyConn is X509 with the connection's cache. It verifies the chain once per
// generation of trust and checks the times on every request, because a connection
// may outlive its certificate.
func (v *Verifier) verifyConn(ctx context.Context, chain []*x509.Certificate, now time.Time) (broker.Identity, error) {
	c, _ := ctx.Value(connKey{}).(*connCache)
	if c == nil {
		return v.X509(chain, now)
	}
	trusted := v.source.trust.Load()
	if h := c.cert.Load(); h != nil && h.generation == trusted.generation && h.leaf == chain[0] {
		if err := checkValidity(h.notBefore, h.who.Proof.Expires, now); err != nil {
			return broker.Identity{}, v.countFailure(err)
		}
		return h.who, nil
	}
	r, err := verifyX509(trusted, chain, now)
	if err != nil {
		return broker.Identity{}, v.countFailure(err)
	}
	c.cert.Store(&cachedCert{chain[0], r})
	return r.who, nil
}
