package server

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"accessbroker.internal/broker"
)

// turnLimits are the bounds of turns.
type turnLimits struct {
	atOnce      int        // turns that run at the same time
	network     rate.Limit // failures of one network per second, after a burst
	burst       int
	total       rate.Limit // failures of all networks per second, after a burst
	totalBurst  int
	perConn     int           // calls of one connection that wait
	perNetwork  int           // calls of one network that wait
	most        int           // calls that wait
	longestWait time.Duration // for a turn
}

// verifyLimits bounds the verification of proofs, which costs up to about a millisecond.
func verifyLimits() turnLimits {
	return turnLimits{
		atOnce: 2 * runtime.GOMAXPROCS(0), network: 200, burst: 100, total: 500, totalBurst: 500,
		perConn: maxStreams, perNetwork: 256, most: 1024, longestWait: 5 * time.Second,
	}
}

// loginLimits bounds logins, for which the broker calls a provider or the store.
func loginLimits() turnLimits {
	return turnLimits{
		atOnce: 64, network: 10, burst: 20, total: 100, totalBurst: 500,
		perConn: 4, perNetwork: 64, most: 256, longestWait: 5 * time.Second,
	}
}

// beginLimits bounds calls without a caller that write a row or call a provider. Each is
// charged, whether it fails or not.
func beginLimits() turnLimits {
	return turnLimits{
		atOnce: 64, network: 5, burst: 5, total: 100, totalBurst: 100,
		perConn: 4, perNetwork: 64, most: 256, longestWait: 5 * time.Second,
	}
}

// pollLimits bounds terminals that wait for their login. Each call is charged.
func pollLimits() turnLimits {
	return turnLimits{
		atOnce: 64, network: 50, burst: 50, total: 500, totalBurst: 500,
		perConn: 4, perNetwork: 256, most: 1024, longestWait: 5 * time.Second,
	}
}

// turns shares work that anyone can cause, such as verifying a proof, among its senders.
// Work that succeeds costs its sender nothing. Work that fails is charged to the network
// of its sender. A network with too many failures is not refused, because others share
// its address. Its calls wait for their turns, which then come at a bounded rate:
//
//   - Networks take turns, and within a network connections do. So a call waits for at
//     most one call of every other connection, however many calls those send. The
//     networks of a wider one take fewer turns; see share.
//   - Connections whose last call failed come after the others, except for every fourth
//     turn of their network.
//   - If too many calls wait, those of the network with the highest load give way, and
//     within a network those of connections that fail.
//
// What waits and what runs is bounded. turns is safe for concurrent use.
type turns struct {
	limits turnLimits
	clock  func() time.Time

	mu       sync.Mutex
	running  int                               // guarded by mu
	waiting  int                               // guarded by mu
	total    *rate.Limiter                     // guarded by mu
	failures *lru[netip.Prefix, *rate.Limiter] // guarded by mu; of networks with failures
	failing  *lru[sender, *bool]               // guarded by mu; whether the last call failed
	queues   map[netip.Prefix]*turnQueue       // guarded by mu; of networks with waiting calls
	order    []*turnQueue                      // guarded by mu; by arrival
	shares   shares                            // guarded by mu; of waiting calls
	now      float64                           // guarded by mu; the finish of the last turn, see next
	wakes    time.Time                         // guarded by mu; when wake fires
	wake     *time.Timer                       // guarded by mu; nil: none is needed
}

// A sender is a connection.
type sender struct {
	network netip.Prefix
	conn    string // the peer's address and port
}

// A turnQueue has the waiting calls of one network.
type turnQueue struct {
	share  share
	calls  []*waitingCall // in the order of their arrival
	round  int            // that is being served
	rounds map[string]int // the next round of each connection
	served int
}

type waitingCall struct {
	conn    string
	round   int  // a connection has one call in each round
	failing bool // when it arrived
	ready   chan bool
}

func newTurns(l turnLimits) *turns {
	return &turns{
		limits: l, clock: time.Now, total: rate.NewLimiter(l.total, l.totalBurst),
		failures: newLRU[netip.Prefix, *rate.Limiter](maxRemembered), failing: newLRU[sender, *bool](maxRemembered),
		queues: map[netip.Prefix]*turnQueue{}, shares: shares{},
	}
}

var errNoTurn = &broker.Refusal{Err: broker.ErrSlowDown, Detail: "too many calls arrive from this address: try again", Retry: time.Second}

// enter waits for a turn. The caller must call done at its end, which reports whether
// the work failed by the sender's fault.
func (t *turns) enter(ctx context.Context, from sender) (done func(failed bool), err error) {
	t.mu.Lock()
	done = func(failed bool) { t.leave(from, failed) }
	if t.queues[from.network] == nil && t.running < t.limits.atOnce && t.pause(from.network) == 0 {
		t.running++
		t.mu.Unlock()
		return done, nil
	}
	call := t.wait(from)
	if pause := t.pause(from.network); pause == 0 {
		t.dispatch()
	} else {
		t.wakeIn(pause)
	}
	t.mu.Unlock()
	if call == nil {
		return nil, errNoTurn
	}
	longest := time.NewTimer(t.limits.longestWait)
	defer longest.Stop()
	var mayRun bool
	select {
	case mayRun = <-call.ready:
	case <-longest.C:
		mayRun = t.giveUp(from.network, call)
	case <-ctx.Done():
		mayRun = t.giveUp(from.network, call)
	}
	switch {
	case !mayRun && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case !mayRun:
		return nil, errNoTurn
	}
	return done, nil
}

// leave ends a turn.
func (t *turns) leave(from sender, failed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	t.judge(from, failed)
	t.dispatch()
}

// failed charges work that failed without a turn.
func (t *turns) failed(from sender) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.judge(from, true)
}

// judge charges a failure to the network, and remembers how the connection's call ended.
func (t *turns) judge(from sender, failed bool) {
	last, known := t.failing.get(from)
	switch {
	case known:
		*last = failed
	case failed:
		t.failing.put(from, &failed)
	}
	if !failed {
		return
	}
	bucket, ok := t.failures.get(from.network)
	if !ok {
		bucket = rate.NewLimiter(t.limits.network, t.limits.burst)
		t.failures.put(from.network, bucket)
	}
	now := t.clock()
	bucket.ReserveN(now, 1) // several turns may run, so the bucket can be overdrawn
	t.total.ReserveN(now, 1)
}

// isFailing reports whether the last call of a connection failed.
func (t *turns) isFailing(from sender) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lastFailed(from)
}

func (t *turns) lastFailed(from sender) bool {
	last, known := t.failing.get(from)
	return known && *last
}

// pause returns how long a network has to wait before its next turn.
func (t *turns) pause(network netip.Prefix) time.Duration {
	now := t.clock()
	longest := pauseOf(t.total, now)
	if bucket, ok := t.failures.get(network); ok {
		longest = max(longest, pauseOf(bucket, now))
	}
	return longest
}

func pauseOf(bucket *rate.Limiter, now time.Time) time.Duration {
	if bucket.TokensAt(now) >= 1 {
		return 0
	}
	return wait(bucket, now)
}

// wait adds a call to the queue of its network. It returns nil if there is no room.
func (t *turns) wait(from sender) *waitingCall {
	q := t.queues[from.network]
	if q == nil {
		q = &turnQueue{share: t.shares.join(from.network), rounds: map[string]int{}}
	}
	call := &waitingCall{conn: from.conn, failing: t.lastFailed(from), ready: make(chan bool, 1)}
	same := 0
	for _, other := range q.calls {
		if other.conn == from.conn {
			same++
		}
	}
	if call.round = max(q.round, q.rounds[from.conn]); same >= t.limits.perConn || !t.makeRoom(q, call) {
		if len(q.calls) == 0 {
			t.shares.leave(q.share)
		}
		return nil
	}
	if len(q.calls) == 0 {
		t.queues[from.network] = q
		t.order = append(t.order, q)
		q.share.arrive(t.now)
	}
	q.calls = append(q.calls, call)
	q.share.use(1)
	q.rounds[from.conn] = call.round + 1
	if len(q.rounds) > 4*t.limits.perNetwork {
		q.forgetRounds()
	}
	t.waiting++
	return call
}

// forgetRounds keeps only the rounds of connections that wait. The others come like new
// ones, of which a sender can open any number.
func (q *turnQueue) forgetRounds() {
	clear(q.rounds)
	for _, call := range q.calls {
		q.rounds[call.conn] = max(q.rounds[call.conn], call.round+1)
	}
}

// makeRoom reports whether a call may wait. If its network, or the broker, has too many
// waiting calls, one gives way: the last of the network with the highest load, or one of
// the call's own network that comes later.
func (t *turns) makeRoom(q *turnQueue, call *waitingCall) bool {
	full := len(q.calls) >= t.limits.perNetwork
	if !full && t.waiting < t.limits.most {
		return true
	}
	if !full {
		most := t.order[0]
		for _, other := range t.order[1:] {
			if other.share.heavier(most.share, 0) {
				most = other
			}
		}
		if most.share.heavier(q.share, 1) {
			t.dismiss(most, most.last())
			return true
		}
	}
	if len(q.calls) == 0 || !before(call, q.last()) {
		return false
	}
	t.dismiss(q, q.last())
	if len(q.calls) == 0 { // it was the only one
		q.share = t.shares.join(q.share.network)
	}
	return true
}

// dismiss refuses a waiting call.
func (t *turns) dismiss(q *turnQueue, call *waitingCall) {
	t.remove(q, call)
	call.ready <- false
}

// before reports whether a call comes before another of its network that has arrived
// earlier, other things being equal.
func before(call, earlier *waitingCall) bool {
	if call.failing != earlier.failing {
		return earlier.failing
	}
	return call.round < earlier.round
}

// next returns the call whose turn it is.
func (q *turnQueue) next() *waitingCall {
	failingFirst := q.served%4 == 3
	var next *waitingCall
	for _, call := range q.calls {
		switch {
		case next == nil, call.failing != next.failing && call.failing == failingFirst, call.failing == next.failing && call.round < next.round:
			next = call
		}
	}
	return next
}

// last returns the call that comes last.
func (q *turnQueue) last() *waitingCall {
	last := q.calls[0]
	for _, call := range q.calls[1:] {
		if !before(call, last) {
			last = call
		}
	}
	return last
}

func (t *turns) remove(q *turnQueue, call *waitingCall) bool {
	at := slices.Index(q.calls, call)
	if at < 0 {
		return false
	}
	q.calls = slices.Delete(q.calls, at, at+1)
	q.share.use(-1)
	t.waiting--
	if len(q.calls) == 0 {
		t.shares.leave(q.share)
		delete(t.queues, q.share.network)
		t.order = slices.DeleteFunc(t.order, func(other *turnQueue) bool { return other == q })
	}
	return true
}

// giveUp removes a call that no longer waits. It reports whether the call got its turn
// in the meantime.
func (t *turns) giveUp(network netip.Prefix, call *waitingCall) (mayRun bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q := t.queues[network]; q != nil && t.remove(q, call) {
		return false
	}
	return <-call.ready
}

// dispatch starts the calls whose turn it is.
func (t *turns) dispatch() {
	for t.running < t.limits.atOnce {
		q := t.next()
		if q == nil {
			return
		}
		call := q.next()
		t.now = max(t.now, q.share.finish()) // a network that had to pause may be late
		q.share.serve(t.now)
		q.served++
		q.round = max(q.round, call.round)
		t.remove(q, call)
		t.running++
		call.ready <- true
	}
}

// next returns the network whose turn it is, or nil if no call may run.
//
// Turns are shared by self-clocked fair queueing: each network has the time at which its
// next turn would finish if turns took as long as their weight requires, and the earliest
// one is next. A network that arrives comes after those that wait.
func (t *turns) next() (next *turnQueue) {
	if len(t.order) == 0 {
		return nil
	}
	if pause := pauseOf(t.total, t.clock()); pause > 0 {
		t.wakeIn(pause)
		return nil
	}
	for _, q := range t.order {
		if next != nil && !q.share.earlier(next.share) {
			continue
		}
		if pause := t.pause(q.share.network); pause > 0 {
			t.wakeIn(pause)
			continue
		}
		next = q
	}
	return next
}

// wakeIn dispatches after a pause, if calls wait.
func (t *turns) wakeIn(pause time.Duration) {
	at := time.Now().Add(pause)
	if len(t.order) == 0 || t.wake != nil && !at.Before(t.wakes) {
		return
	}
	if t.wake != nil {
		t.wake.Stop()
	}
	t.wakes = at
	t.wake = time.AfterFunc(pause, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.wake = nil
		t.dispatch()
	})
}
