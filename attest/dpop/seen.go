package dpop

import (
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// maxSeen is how many proofs a generation remembers, with about 50 bytes each. One caller
// cannot fill it: at the default 50 calls a second, it makes 21,000 while a nonce lasts.
const maxSeen = 1 << 17

// nonceLasts is the longest time for which a nonce is accepted by one clock.
const nonceLasts = (nonceSteps + 2) * nonceStep

// seen remembers proofs for at least as long as their nonce is accepted: in the generation
// that was current when they came, and in the next one. A full generation ends early.
type seen struct {
	mu           sync.Mutex
	began        time.Time
	now, earlier map[broker.SpentKey]struct{}
}

// add remembers a proof. It reports whether the proof is new.
func (s *seen) add(once broker.SpentKey, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil || now.Sub(s.began) >= nonceLasts || len(s.now) >= maxSeen {
		s.earlier, s.now, s.began = s.now, map[broker.SpentKey]struct{}{}, now
	}
	if _, again := s.now[once]; again {
		return false
	}
	if _, again := s.earlier[once]; again {
		return false
	}
	s.now[once] = struct{}{}
	return true
}
