package main

import (
	"runtime"
	"testing"
)

// With one processor, Go still gets two threads, unless the operator set GOMAXPROCS.
func TestTuneUsesTwoThreads(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	for _, c := range []struct {
		set  string
		want int
	}{{"1", 1}, {"", 2}} {
		env := map[string]string{"GOGC": "100", "GOMEMLIMIT": "off", "GOMAXPROCS": c.set}
		a := &app{terminal: terminal{getenv: func(name string) string { return env[name] }}}
		if a.tune(t.Context()); runtime.GOMAXPROCS(0) != c.want {
			t.Errorf("GOMAXPROCS=%q: got %d threads, want %d", c.set, runtime.GOMAXPROCS(0), c.want)
		}
	}
}

// The garbage that may collect is about the same whatever lives.
func TestGCPercentFollowsTheHeap(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{{0, maxGCPercent}, {8 << 20, 400}, {16 << 20, 200}, {32 << 20, 100}, {1 << 30, minGCPercent}} {
		if got := gcPercent(c.live); got != c.want {
			t.Errorf("%d MB: got %d, want %d", c.live>>20, got, c.want)
		}
	}
}
