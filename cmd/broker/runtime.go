package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Most allocations of a request die young, so collecting them rarely saves time. What
// lives grows with the leases, and a percentage of it is the wrong measure: little
// garbage may collect in a small heap, and a great deal in a large one. So the percentage
// follows the heap.
const (
	garbage      = 32 << 20 // bytes that may be garbage before a collection
	minGCPercent = 100
	maxGCPercent = 400
	memoryLimit  = 256 << 20
	followEvery  = 2 * time.Second
)

// tune sets the parameters of Go's runtime that the operator left open.
func (a *app) tune(ctx context.Context) {
	if a.getenv("GOGC") == "" {
		debug.SetGCPercent(maxGCPercent)
		go followHeap(ctx)
	}
	if a.getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	// With one thread, every goroutine waits while SQLite waits for the disk. With 16
	// callers, that halved the throughput.
	if a.getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2)
	}
}

// followHeap keeps the garbage between collections about constant until ctx ends.
func followHeap(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}} // marked by the last collection
	last := maxGCPercent
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if metrics.Read(sample); sample[0].Value.Kind() != metrics.KindUint64 {
			return // this version of Go does not have it
		}
		// Setting it stops the program for a moment.
		if percent := gcPercent(sample[0].Value.Uint64()); percent*10 < last*9 || percent*10 > last*11 {
			debug.SetGCPercent(percent)
			last = percent
		}
	}
}

// gcPercent returns the percentage of what lives that may be garbage.
func gcPercent(live uint64) int {
	return int(min(max(garbage*100/max(live, 1), minGCPercent), maxGCPercent))
}
