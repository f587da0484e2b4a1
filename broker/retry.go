package broker

import (
	"math/rand/v2"
	"time"
)

// Backoff returns the pause after a number of failures in a row: it doubles
// from 1 s to 5 min, with 25 % jitter so that work that became due together
// does not return together. It has no last attempt: revocation never gives up.
func Backoff(failures int) time.Duration {
	d := min(time.Second<<min(failures, 9), 5*time.Minute)
	return d - d/4 + rand.N(d/2)
}
