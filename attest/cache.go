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

// remembered is a proof that held.
type cachedProof struct {
	who        broker.Identity
	generation uint64 // of the trust that it was verified under
	notBefore  time.Time
}

// A memory remembers proofs, up to a bound. It is safe for concurrent use.
//
// Entries are kept on a clock: each has a bit that a hit sets, and the hand
// takes the first entry without it. That is as good as LRU here, and a hit
// moves nothing. Keys are SHA-256 hashes, so nobody can aim at one shard.
type proofCache struct{ shards [cacheShards]shard }

const cacheShards = 16

type shard struct {
	mu    sync.Mutex
	index map[[sha256.Size]byte]int // into slots
	slots []slot
	hand  int
	limit int
}

type slot struct {
	key  [sha256.Size]byte
	used bool
	is   cachedProof
}

func newProofCache(limit int) *proofCache {
	m := &proofCache{}
	for i := range m.shards {
		m.shards[i].limit = max(1, limit/cacheShards)
		m.shards[i].index = map[[sha256.Size]byte]int{}
	}
	return m
}

func (m *proofCache) shard(key [sha256.Size]byte) *shard { return &m.shards[key[0]%cacheShards] }

// recall gives what is remembered under the generation.
func (m *proofCache) get(key [sha256.Size]byte, generation uint64) (cachedProof, bool) {
	s := m.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[key]
	if !ok || s.slots[i].is.generation != generation {
		return cachedProof{}, false
	}
	s.slots[i].used = true
	return s.slots[i].is, true
}

func (m *proofCache) put(key [sha256.Size]byte, r cachedProof) {
	s := m.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[key]
	if !ok {
		i = s.free()
		s.index[key] = i
	}
	s.slots[i] = slot{key: key, used: true, is: r}
}

// free finds a place for one more entry.
func (s *shard) free() int {
	if len(s.slots) < s.limit {
		s.slots = append(s.slots, slot{})
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

type connKey struct{}

// A conn remembers what the certificate of one connection proved. A TLS 1.3
// client can't change its certificate after the handshake, so that one check
// is good for as long as the same keys are trusted.
type connCache struct{ cert atomic.Pointer[cachedCert] }

// cachedCert is the outcome for one leaf. It is not changed once made.
type cachedCert struct {
	leaf *x509.Certificate
	cachedProof
}

// ConnContext gives connections a place where what their certificate proved is
// remembered: set it as the ConnContext of an http.Server. Without it, every
// request costs the verification of its chain.
func (v *Verifier) ConnContext(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &connCache{})
}

// verifyConn is X509 with the connection's memory: the chain is verified once a
// generation of trust, and its times are looked at for every request, since
// neither TLS nor a connection that lives on does that.
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
