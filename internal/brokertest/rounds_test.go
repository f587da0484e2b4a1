package brokertest

import (
	"slices"
	"testing"
	"time"
)

const benchRounds = 5

// compareRounds compares two kinds of calls in alternating rounds, and reports the rate of
// the second by that of the first, by the clock and by the CPU time of the process. The
// latter does not depend on what else the machine does. second prepares each of its rounds.
func compareRounds(b *testing.B, name string, first func(), second func() (round func())) {
	b.Helper()
	var rates, costs []float64
	for range benchRounds {
		round := second()
		took, used := timed(first)
		tookThen, usedThen := timed(round)
		rates = append(rates, took.Seconds()/tookThen.Seconds())
		costs = append(costs, used.Seconds()/usedThen.Seconds())
	}
	rate, cost := median(rates), median(costs)
	b.ReportMetric(rate, name)
	b.ReportMetric(cost, "cpu")
	b.Logf("%s: %.2f of the rate, and %.2f by CPU time (target 0.70 or more); rounds %.2f, %.2f", name, rate, cost, rates, costs)
}

// timed returns how long a function takes, and the CPU time that the process uses.
func timed(f func()) (took, used time.Duration) {
	start, before := time.Now(), cpuTime()
	f()
	return time.Since(start), cpuTime() - before
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}
