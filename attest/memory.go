package attest

import (
	"crypto/sha256"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// remembered is a proof that held.
type remembered struct {
	who        broker.Identity
	generation uint64 // of the trust that it was verified under
	notBefore  time.Time
}

// A memory remembers proofs, up to a bound. It is safe for concurrent use.
//
// Entries are kept on a clock: each has a bit that a hit sets, and the hand
// takes the first entry without it. That is as good as LRU here, and a hit
// moves nothing. Keys are SHA-256 hashes, so nobody can aim at one shard.
type memory struct{ shards [memoryShards]shard }

const memoryShards = 16

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
	is   remembered
}

func newMemory(limit int) *memory {
	m := &memory{}
	for i := range m.shards {
		m.shards[i].limit = max(1, limit/memoryShards)
		m.shards[i].index = map[[sha256.Size]byte]int{}
	}
	return m
}

func (m *memory) shard(key [sha256.Size]byte) *shard { return &m.shards[key[0]%memoryShards] }

// recall gives what is remembered under the generation.
func (m *memory) recall(key [sha256.Size]byte, generation uint64) (remembered, bool) {
	s := m.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[key]
	if !ok || s.slots[i].is.generation != generation {
		return remembered{}, false
	}
	s.slots[i].used = true
	return s.slots[i].is, true
}

func (m *memory) remember(key [sha256.Size]byte, r remembered) {
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
