package attest

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

func sum(i int) [sha256.Size]byte { return sha256.Sum256(fmt.Append(nil, i)) }

func (m *proofCache) size() (n int) {
	for i := range m.shards {
		n += len(m.shards[i].index)
	}
	return n
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	m := newProofCache(cacheShards * 4)
	for i := range 10_000 {
		m.put(sum(i), cachedProof{generation: 1})
		if _, ok := m.get(sum(i), 1); !ok {
			t.Fatalf("entry %d is missing right after put", i)
		}
	}
	if n := m.size(); n != cacheShards*4 {
		t.Errorf("got %d entries", n)
	}
	for i := range m.shards {
		if s := &m.shards[i]; len(s.slots) != 4 {
			t.Errorf("shard %d has %d slots", i, len(s.slots))
		}
	}
}

// An entry of another generation is a miss, and the next put replaces it.
func TestCacheSeparatesGenerations(t *testing.T) {
	t.Parallel()
	m := newProofCache(64)
	m.put(sum(1), cachedProof{generation: 1})
	if _, ok := m.get(sum(1), 2); ok {
		t.Error("got an entry of another generation")
	}
	m.put(sum(1), cachedProof{generation: 2})
	_, old := m.get(sum(1), 1)
	_, fresh := m.get(sum(1), 2)
	if old || !fresh || m.size() != 1 {
		t.Errorf("got old %t, fresh %t, %d entries; want only the fresh one", old, fresh, m.size())
	}
}

func TestCacheConcurrently(t *testing.T) {
	t.Parallel()
	m := newProofCache(256)
	var all sync.WaitGroup
	for g := range 64 {
		all.Go(func() {
			for i := range 500 {
				key := sum(i * (g%7 + 1))
				if r, ok := m.get(key, 1); ok && r.generation != 1 {
					t.Error("got an entry of another generation")
				}
				m.put(key, cachedProof{generation: 1})
			}
		})
	}
	all.Wait()
	if n := m.size(); n > 256 {
		t.Errorf("got %d entries", n)
	}
}

// The clock algorithm first evicts entries without a hit.
func TestCacheKeepsUsedEntries(t *testing.T) {
	t.Parallel()
	c := newProofCache(cacheShards * 4)
	key := func(name byte) [sha256.Size]byte { return [sha256.Size]byte{1: name} } // all in one shard
	put := func(names string) {
		for _, name := range names {
			c.put(key(byte(name)), cachedProof{generation: 1})
		}
	}
	put("abcde") // e clears all bits and evicts a
	if _, ok := c.get(key('b'), 1); !ok {
		t.Fatal("b is missing")
	}
	put("fg") // f skips b and evicts c; g evicts d
	var left string
	for _, name := range "abcdefg" {
		if _, ok := c.shards[0].index[key(byte(name))]; ok {
			left += string(name)
		}
	}
	if left != "befg" {
		t.Errorf("got entries %q, want befg", left)
	}
}

func TestVerifierCachesTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.token(triage, time.Minute)
	if w.verifier.Cached(token) {
		t.Error("a new token is cached")
	}
	_, err := w.verifier.JWT(token, time.Now())
	check(t, err)
	if !w.verifier.Cached(token) || w.verifier.Cached(token+"x") || w.verifier.Cached(strings.Repeat("x", MaxTokenSize+1)) {
		t.Error("not exactly the verified token is cached")
	}
	if size := NewVerifier(VerifierConfig{Source: w.source}).tokens.shards[0].limit * cacheShards; size != 8192 {
		t.Errorf("got default size %d, want 8192", size)
	}
	if size := NewVerifier(VerifierConfig{Source: w.source, CacheSize: 64}).tokens.shards[0].limit * cacheShards; size != 64 {
		t.Errorf("got size %d, want 64", size)
	}
}

// The cache of a connection is valid for one leaf only.
func TestConnectionCacheComparesLeaf(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := w.verifier.ConnContext(t.Context(), net.Conn(nil))
	for _, id := range []string{triage, "spiffe://acme.test/other"} {
		leaf := w.svid(id, time.Hour).Leaf
		for range 2 {
			who, err := w.verifier.verifyConn(ctx, []*x509.Certificate{leaf}, time.Now())
			if err != nil || who.ID != id {
				t.Errorf("got %q, %v; want %q", who.ID, err, id)
			}
		}
	}
}

// The cache holds no identities that take many times the usual memory.
func TestCacheLeavesOutLargeIdentities(t *testing.T) {
	c := newProofCache(cacheShards)
	for segments, want := range map[int]bool{1: true, 60: true, 200: false, 1000: false} {
		who := broker.Identity{ID: "spiffe://acme.test" + strings.Repeat("/a", segments)}
		who.Paths = broker.SPIFFEPaths(who.ID)
		key := sha256.Sum256([]byte(who.ID))
		c.put(key, cachedProof{who: who})
		if _, got := c.get(key, 0); got != want {
			t.Errorf("%d segments: got cached %t, want %t", segments, got, want)
		}
	}
}
