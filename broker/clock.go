package broker

import "time"

// A clock tells how late it is by now in a call that began at a given time.
type clock struct{ began, start time.Time }

func startClock(now time.Time) clock { return clock{now, time.Now()} }

func (c clock) now() time.Time { return c.began.Add(time.Since(c.start)) }
