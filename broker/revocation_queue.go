package broker

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"time"
)

// A pendingRevocation is the end of a lease that is not recorded yet.
//
// Revocation must continue while the log cannot be written, so its progress is kept
// in memory until it can be recorded. A process that dies forgets it; the next one
// repeats all due revocations, which is harmless: revoking a revoked credential is
// no error.
type pendingRevocation struct {
	lease    *Lease
	by       Identity
	reason   string
	result   endAttempt // of the last call
	at       time.Time  // when the issuer answered
	failures int        // calls that failed
	notUntil time.Time  // earliest time of the next call
}

func newPendingRevocation(l *Lease, how string, by Identity, reason string) *pendingRevocation {
	return &pendingRevocation{lease: l, by: by, reason: reason, result: endAttempt{how: how}}
}

func (p *pendingRevocation) needsCall() bool { return p.result.outcome.needsCall() }

// record stores the issuer's answer.
func (p *pendingRevocation) record(err error, now time.Time) {
	by := p.result.by
	p.result, p.at = attempt(p.result.how, err), now
	p.result.by = by
	if p.needsCall() {
		p.notUntil = now.Add(Backoff(p.failures))
		p.failures++
	}
}

// issuerDown reports whether the last call did not reach the issuer.
func (p *pendingRevocation) issuerDown() bool { return p.result.code == ErrIssuerUnavailable.Error() }

// A revocationQueue holds pending revocations in memory. The zero value is
// empty. It is safe for concurrent use.
type revocationQueue struct {
	mu         sync.Mutex
	pending    map[LeaseID]*pendingRevocation
	writeAfter time.Time // the store is not written before, because a write failed
}

// maxPendingRevocations bounds the queue's memory. A lease that does not fit is
// listed as due again, and its issuer called again.
const maxPendingRevocations = 50_000

// writeEvery is how often a write is tried while the store fails: at every pass
// of the reaper, whose ticks are not exact.
const writeEvery = reapEvery / 2

// enqueue adds or replaces a pending revocation. It returns false if the queue
// is full.
func (q *revocationQueue) enqueue(p *pendingRevocation) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pending == nil {
		q.pending = map[LeaseID]*pendingRevocation{}
	}
	if q.pending[p.lease.ID] == nil && len(q.pending) >= maxPendingRevocations {
		return false
	}
	q.pending[p.lease.ID] = p
	return true
}

// writeFailed notes that a write failed at now. Call it only after a real
// attempt; a postponed write must not extend the back-off.
func (q *revocationQueue) writeFailed(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.writeAfter = now.Add(writeEvery)
}

// recorded removes a revocation that was written.
func (q *revocationQueue) recorded(id LeaseID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.pending, id)
	q.writeAfter = time.Time{}
}

// writable reports whether a write should be tried at now. After a failure, one
// try per interval is enough for all pending revocations.
func (q *revocationQueue) writable(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !now.Before(q.writeAfter)
}

// due returns up to limit pending revocations of an issuer that can be advanced
// at now, oldest lease first.
func (q *revocationQueue) due(issuer string, limit int, now time.Time) (due []*pendingRevocation) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range slices.SortedFunc(maps.Keys(q.pending), func(x, y LeaseID) int { return bytes.Compare(x[:], y[:]) }) {
		if p := q.pending[id]; p.lease.Issuer == issuer && len(due) < limit && !(p.needsCall() && now.Before(p.notUntil)) {
			due = append(due, p)
		}
	}
	return due
}

// contains reports whether the end of a lease is pending.
func (q *revocationQueue) contains(id LeaseID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.pending[id] != nil
}
