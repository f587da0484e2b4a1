package store

import (
	"sync/atomic"
	"time"
)

// A clock compares the clock of this machine with that of the database. The zero value knows
// no difference. It is safe for concurrent use.
type clock struct{ offset atomic.Int64 }

// measured notes the time of the database, which it stated between sent and received. What the
// time on the way explains is no difference.
func (c *clock) measured(at, sent, received time.Time) {
	// Without the monotonic clock, which does not follow a clock that is set.
	least, most := sent.Round(0).Sub(at), received.Round(0).Sub(at)
	switch {
	case least > 0:
		c.offset.Store(int64(least))
	case most < 0:
		c.offset.Store(int64(most))
	default:
		c.offset.Store(0)
	}
}

// ClockOffset returns by how much the clock of this machine was ahead of the database's when
// they were compared last, beyond what the time on the way explains. It is zero for a database
// of this machine alone.
func (s *Store) ClockOffset() time.Duration { return time.Duration(s.clock.offset.Load()) }
