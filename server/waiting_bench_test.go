package server

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// BenchmarkWaiting measures 1,000 callers that wait for a decision, in each way that keeps a
// connection open, each against a server process of its own. The target is that events cost
// what long polls cost. The time of waiting is longer than that between two heartbeats.
func BenchmarkWaiting(b *testing.B) {
	for _, way := range []struct {
		name string
		how  wayToWait
	}{{"long polls", byLongPoll}, {"events", byEvents}} {
		b.Run(way.name, func(b *testing.B) {
			benchmarkWaiting(b, way.how)
		})
	}
}

func benchmarkWaiting(b *testing.B, how wayToWait) {
	waiting := sized(1000, 50)
	c := newCrowd(b)
	before := c.memory("VmRSS")
	ctx, cancel := context.WithCancel(b.Context())
	var there, gone sync.WaitGroup
	failed := make(chan error, waiting)
	atOnce := make(chan struct{}, 20) // arrivals
	for i := range waiting {
		atOnce <- struct{}{}
		there.Add(1)
		gone.Go(func() {
			arrived := sync.OnceFunc(func() { <-atOnce; there.Done() })
			if err := c.waits(ctx, fmt.Sprintf("%s/%d", agent, i), how, arrived); err != nil && ctx.Err() == nil {
				failed <- err
			}
			arrived()
		})
	}
	there.Wait()
	time.Sleep(sized(3*time.Second, 0)) // until the first events are delivered
	cpu, idle := c.cpu(), sized(pingEvery+5*time.Second, 100*time.Millisecond)
	time.Sleep(idle)
	busy := c.cpu() - cpu
	if _, err := fmt.Fprintln(c.in, "give back"); err != nil {
		b.Fatal(err)
	}
	time.Sleep(sized(2*time.Second, 0))
	after := c.memory("VmRSS")
	b.Logf("resident memory: %d MB idle, %d MB with %d callers that wait; CPU in %s of waiting: %s", before, after, waiting, idle, busy)
	cancel()
	gone.Wait()
	select {
	case err := <-failed:
		b.Fatal(err)
	default:
	}
	for b.Loop() { // measured above
	}
	b.ReportMetric(float64(after-before)*1024/float64(waiting), "KB/caller")
	b.ReportMetric(float64(busy.Milliseconds())/idle.Seconds(), "cpu-ms/s")
}
