package broker

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

// A debt is the end of a lease that is not written down: what its issuer said
// to it, or has still to be told. Ending goes on when nothing can be recorded,
// and what it did is kept here, in memory, until it can be. A process that dies
// forgets it, and the next one ends again what is due: ending what is gone is
// no error.
type debt struct {
	lease  *Lease
	how    string
	by     Identity
	reason string
	said   error     // what the issuer said last; errNow: it was not told yet
	at     time.Time // when it said so
	tries  int       // that failed
	next   time.Time // it is told not before
}

func newDebt(l *Lease, how string, by Identity, reason string) *debt {
	return &debt{lease: l, how: how, by: by, reason: reason, said: errNow}
}

// toTell says whether the issuer has still to be told.
func (d *debt) toTell() bool {
	return d.said != nil && !errors.Is(d.said, ErrNotRevocable) && !errors.Is(d.said, ErrQueued)
}

// heard takes what the issuer said.
func (d *debt) heard(err error, now time.Time) {
	if d.said, d.at = err, now; d.toTell() {
		d.next = now.Add(backoff(d.tries))
		d.tries++
	}
}

// debts are those of a broker. The zero value has none. It is safe for
// concurrent use.
type debts struct {
	mu   sync.Mutex
	list map[LeaseID]*debt
	shut time.Time // writing failed, and is not tried before
}

// maxDebts bounds what is kept in memory. What is more than that is told its
// issuer again when it is listed again.
const maxDebts = 50_000

// owe keeps a debt. It says false if there are too many.
func (s *debts) owe(d *debt) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list == nil {
		s.list = map[LeaseID]*debt{}
	}
	if s.list[d.lease.ID] == nil && len(s.list) >= maxDebts {
		return false
	}
	s.list[d.lease.ID] = d
	return true
}

// failed notes that writing failed at now. Only what was tried says so: if what
// was put off did, it would be put off for ever.
func (s *debts) failed(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = now.Add(writeEvery)
}

// writeEvery is how often writing is tried while it fails: within each look of
// the reaper, whose moments are not exact.
const writeEvery = reapEvery / 2

func (s *debts) paid(id LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.list, id)
	s.shut = time.Time{}
}

// writable says whether to try to write at now: after a write that failed, one
// try a moment is enough for all.
func (s *debts) writable(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !now.Before(s.shut)
}

// due gives at most so many debts of an issuer that something can be done about
// at now, oldest lease first.
func (s *debts) due(issuer string, most int, now time.Time) (list []*debt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.SortedFunc(maps.Keys(s.list), func(x, y LeaseID) int { return bytes.Compare(x[:], y[:]) }) {
		if d := s.list[id]; d.lease.Issuer == issuer && len(list) < most && !(d.toTell() && now.Before(d.next)) {
			list = append(list, d)
		}
	}
	return list
}

// has says whether the end of a lease is owed.
func (s *debts) has(id LeaseID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list[id] != nil
}

// pay ends a lease: its issuer is told first, unless it was already, and the
// log after, so that ending never depends on the log; and it goes on when the
// caller is gone. It writes when the gate lets it through. It tells what the
// issuer said beside whether that was recorded.
func (b *Broker) pay(ctx context.Context, d *debt, now time.Time, gate gate) (upstream, err error) {
	ctx = context.WithoutCancel(ctx)
	clock := startClock(now)
	if d.toTell() {
		asked := *d.lease
		if asked.EndHow == "" || d.how == EndRevoked {
			asked.EndHow = d.how
		}
		telling, cancel := context.WithTimeout(ctx, endDeadline)
		d.heard(b.revokeUpstream(telling, &asked), clock.now())
		cancel()
	}
	if gate != nil && !b.debts.writable(now) { // those who wait for an answer have it tried
		b.debts.owe(d)
		return d.said, errUnwritten
	}
	defer gate.pass()()
	if err := b.recordEnd(ctx, d.lease, ending{d.how, d.said}, d.by, d.reason, d.at); err != nil {
		b.debts.failed(clock.now())
		kept := b.debts.owe(d)
		b.cfg.Log.ErrorContext(ctx, "the end of a lease is not recorded yet", "lease", d.lease.ID.String(), "how", d.how, "kept", kept, "err", err)
		return d.said, err
	}
	b.debts.paid(d.lease.ID)
	return d.said, nil
}

// errUnwritten says that writing was not tried, because it failed a moment ago.
var errUnwritten = errors.New("nothing can be recorded at present")
