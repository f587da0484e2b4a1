package checker

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestGrowing(t *testing.T) {
	start := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	flat := func(int) Sample { return Sample{Memory: 100 << 20, Goroutines: 100, Descriptors: 80, Connections: 20} }
	for name, test := range map[string]struct {
		at   func(i int) Sample
		want string // in the only finding; empty: none
	}{
		"flat":     {flat, ""},
		"sawtooth": {func(i int) Sample { s := flat(i); s.Memory += float64(i%10) * (5 << 20); return s }, ""},
		"noisy": {func(i int) Sample {
			s := flat(i)
			s.Goroutines += rand.New(rand.NewPCG(uint64(i), 1)).Float64() * 50
			return s
		}, ""},
		"warm-up": {func(i int) Sample {
			s := flat(i)
			s.Memory -= max(0, float64(100-i)) * (1 << 19)
			return s
		}, ""},
		"peak": {func(i int) Sample {
			s := flat(i)
			if i > 200 && i < 205 {
				s.Descriptors = 5000
			}
			return s
		}, ""},
		"no database":   {func(i int) Sample { s := flat(i); s.Connections = -1; return s }, ""},
		"leaked memory": {func(i int) Sample { s := flat(i); s.Memory += float64(i) * (1 << 18); return s }, "memory"},
		"goroutines":    {func(i int) Sample { s := flat(i); s.Goroutines += float64(i) / 4; return s }, "goroutines"},
		"files":         {func(i int) Sample { s := flat(i); s.Descriptors += float64(i) / 4; return s }, "open files"},
		"connections":   {func(i int) Sample { s := flat(i); s.Connections += float64(i) / 10; return s }, "connections"},
	} {
		t.Run(name, func(t *testing.T) {
			var samples []Sample
			for i := range 400 {
				s := test.at(i)
				s.At = start.Add(time.Duration(i) * 9 * time.Second)
				samples = append(samples, s)
			}
			got, err := Growing(samples)
			if err != nil || len(got) > 1 || (len(got) == 1) != (test.want != "") || len(got) == 1 && !strings.Contains(got[0].What, test.want) {
				t.Errorf("got %v, %v, want %q", got, err, test.want)
			}
		})
	}
	if got, err := Growing(make([]Sample, 10)); err == nil {
		t.Errorf("10 samples: got %v, want an error", got)
	}
}
