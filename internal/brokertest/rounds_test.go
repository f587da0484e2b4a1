package brokertest

import (
	"slices"
	"testing"
	"time"
)

const benchRounds = 5

// A baseline is what compareRounds compares with.
type baseline struct {
	name string
	once func()                // for all rounds
	each func() (round func()) // prepares each round; nil: once
}

// compareRounds compares calls with other kinds of calls in alternating rounds. It reports
// the rate of the former by that of each baseline, by the clock and by the CPU time of the
// process, which does not depend on what else the machine does. Rounds are prepared
// beforehand.
func compareRounds(b *testing.B, name string, prepare func() (round func()), baselines ...baseline) {
	b.Helper()
	rates, costs := make([][]float64, len(baselines)), make([][]float64, len(baselines))
	for range benchRounds {
		round := prepare()
		rounds := make([]func(), len(baselines))
		for i, base := range baselines {
			if rounds[i] = base.once; base.each != nil {
				rounds[i] = base.each()
			}
		}
		took, used := timed(round)
		for i := range baselines {
			itTook, itUsed := timed(rounds[i])
			rates[i] = append(rates[i], itTook.Seconds()/took.Seconds())
			costs[i] = append(costs[i], itUsed.Seconds()/used.Seconds())
		}
	}
	for i, base := range baselines {
		rate, cost := median(rates[i]), median(costs[i])
		b.ReportMetric(rate, name+"/"+base.name)
		b.ReportMetric(cost, base.name+"-cpu")
		b.Logf("%s/%s: %.2f of the rate, and %.2f by CPU time; rounds %.2f, %.2f", name, base.name, rate, cost, rates[i], costs[i])
	}
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
