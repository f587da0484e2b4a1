package attest

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"
)

func sum(i int) [sha256.Size]byte { return sha256.Sum256(fmt.Append(nil, i)) }

func (m *proofCache) size() (n int) {
	for i := range m.shards {
		n += len(m.shards[i].index)
	}
	return n
}

func TestMemoryIsBounded(t *testing.T) {
	m := newProofCache(cacheShards * 4)
	for i := range 10_000 {
		m.put(sum(i), cachedProof{generation: 1})
		if _, ok := m.get(sum(i), 1); !ok {
			t.Fatalf("%d is forgotten at once", i)
		}
	}
	if n := m.size(); n != cacheShards*4 {
		t.Errorf("%d are remembered", n)
	}
	for i := range m.shards {
		if s := &m.shards[i]; len(s.slots) != 4 {
			t.Errorf("shard %d has %d slots", i, len(s.slots))
		}
	}
}

// What was remembered under other keys is as good as forgotten, and takes no
// second place when it is remembered again.
func TestMemoryOfAnotherGeneration(t *testing.T) {
	m := newProofCache(64)
	m.put(sum(1), cachedProof{generation: 1})
	if _, ok := m.get(sum(1), 2); ok {
		t.Error("remembered under another generation")
	}
	m.put(sum(1), cachedProof{generation: 2})
	_, old := m.get(sum(1), 1)
	_, fresh := m.get(sum(1), 2)
	if old || !fresh || m.size() != 1 {
		t.Errorf("old %t, fresh %t, %d in all", old, fresh, m.size())
	}
}

func TestMemoryByMany(t *testing.T) {
	m := newProofCache(256)
	var all sync.WaitGroup
	for g := range 64 {
		all.Go(func() {
			for i := range 500 {
				key := sum(i * (g%7 + 1))
				if r, ok := m.get(key, 1); ok && r.generation != 1 {
					t.Error("another generation")
				}
				m.put(key, cachedProof{generation: 1})
			}
		})
	}
	all.Wait()
	if n := m.size(); n > 256 {
		t.Errorf("%d are remembered", n)
	}
}
