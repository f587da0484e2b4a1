package activity

import (
	"time"
)

// Bounds are the upper bounds of the buckets of Durations, on a scale that is roughly
// logarithmic and that people read easily. One more bucket has everything above.
var Bounds = [...]time.Duration{
	100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 24 * time.Hour,
}

// Durations is a histogram. The zero value is empty.
type Durations struct {
	Buckets [len(Bounds) + 1]int `json:"buckets"`
	Sum     time.Duration        `json:"sum"`
	Longest time.Duration        `json:"longest"`
}

// IsZero reports whether the histogram is empty.
func (d Durations) IsZero() bool { return d.Count() == 0 }

// Count returns the number of durations.
func (d *Durations) Count() (n int) {
	for _, bucket := range d.Buckets {
		n += bucket
	}
	return n
}

// Add counts a duration. A negative one, of a clock that was set back, counts as zero.
func (d *Durations) Add(t time.Duration) {
	t = max(t, 0)
	i := 0
	for i < len(Bounds) && t > Bounds[i] {
		i++
	}
	d.Buckets[i]++
	d.Sum += t
	d.Longest = max(d.Longest, t)
}

// Merge adds the durations of another histogram.
func (d *Durations) Merge(o *Durations) {
	for i, n := range o.Buckets {
		d.Buckets[i] += n
	}
	d.Sum += o.Sum
	d.Longest = max(d.Longest, o.Longest)
}

// Mean returns the mean, and zero for an empty histogram.
func (d *Durations) Mean() time.Duration {
	if n := d.Count(); n > 0 {
		return d.Sum / time.Duration(n)
	}
	return 0
}

// Within returns the least bound that at least the given share of the durations does
// not exceed, or the longest duration if that is less; zero for an empty histogram.
func (d *Durations) Within(share float64) time.Duration {
	n, seen := d.Count(), 0
	for i, bucket := range d.Buckets {
		if seen += bucket; n > 0 && float64(seen) >= share*float64(n) {
			if i == len(Bounds) {
				break
			}
			return min(Bounds[i], d.Longest)
		}
	}
	return d.Longest
}
