package main

import (
	"runtime"
	"testing"
)

func TestOneProcessorHasTwoThreads(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	for _, c := range []struct {
		said string
		want int
	}{{"1", 1}, {"", 2}} {
		env := map[string]string{"GOGC": "100", "GOMEMLIMIT": "off", "GOMAXPROCS": c.said}
		a := &app{terminal: terminal{getenv: func(name string) string { return env[name] }}}
		if a.tune(); runtime.GOMAXPROCS(0) != c.want {
			t.Errorf("with GOMAXPROCS=%q: %d threads, want %d", c.said, runtime.GOMAXPROCS(0), c.want)
		}
	}
}
