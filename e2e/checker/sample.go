package checker

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/e2e/cluster"
)

// A Sample is what a replica uses at one time.
type Sample struct {
	At          time.Time
	Memory      float64 // resident, in bytes
	Goroutines  float64
	Descriptors float64 // open files
	Connections float64 // to the database, of all replicas; negative: not known
}

// A Sampler samples the first replica, whose process must not end in the meantime.
type Sampler struct {
	Every   time.Duration
	Samples []Sample
}

// Observe is a Config.Observe.
func (s *Sampler) Observe(ctx context.Context, w *Watched) error {
	tick := time.NewTicker(s.Every)
	defer tick.Stop()
	b := w.Replicas[0]
	pid := b.Process().Cmd.Process.Pid
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		one := Sample{At: time.Now(), Connections: -1}
		var err error
		if one.Memory, one.Descriptors, err = usage(pid); err != nil {
			return err
		}
		if one.Goroutines, err = gauge(ctx, b, "go_goroutines"); err != nil {
			continue // it is suspended
		}
		if w.Postgres != nil {
			query, cancel := context.WithTimeout(ctx, 5*time.Second)
			text, err := w.Postgres().Exec(query, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE datname = '"+cluster.Database+"'")
			cancel()
			if n, unreadable := strconv.ParseFloat(text, 64); err == nil && unreadable == nil {
				one.Connections = n
			}
		}
		s.Samples = append(s.Samples, one)
	}
}

// usage returns the resident memory and the open files of a process.
func usage(pid int) (memory, descriptors float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("reading the memory of a replica: %w", err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		return 0, 0, fmt.Errorf("reading the memory of a replica: %w", err)
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("reading the open files of a replica: %w", err)
	}
	return float64(resident * os.Getpagesize()), float64(len(open)), nil
}

// gauge returns a metric without labels.
func gauge(ctx context.Context, b *cluster.Broker, name string) (float64, error) {
	_, text, err := b.Probe(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(strings.NewReader(string(text))); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// A series is one quantity of the samples, and how much of it may come and go.
type series struct {
	name  string
	value func(Sample) float64
	slack float64 // growth that is not noticed even if it exceeds flatness
}

var allSeries = []series{
	{"memory in bytes", func(s Sample) float64 { return s.Memory }, 24 << 20},
	{"goroutines", func(s Sample) float64 { return s.Goroutines }, 40},
	{"open files", func(s Sample) float64 { return s.Descriptors }, 40},
	{"connections to the database", func(s Sample) float64 { return s.Connections }, 12},
}

// flatness is the growth of a quantity, from the end of the warm-up to the last sample, that
// is not noticed: a part of its mean.
const flatness = 0.25

// leastSamples is the number of samples from which on growth can be told from noise.
const leastSamples = 12

// Growing returns the quantities that grow. The first quarter of the samples is the warm-up.
// The growth is that of the line with the least squares, so that single peaks do not count.
func Growing(samples []Sample) (found []Finding, err error) {
	for _, s := range allSeries {
		var x, y []float64
		for _, one := range samples[len(samples)/4:] {
			if v := s.value(one); v >= 0 {
				x, y = append(x, one.At.Sub(samples[0].At).Seconds()), append(y, v)
			}
		}
		if len(x) < leastSamples && s.name != allSeries[3].name {
			return nil, fmt.Errorf("%d samples of %s are too few to judge growth: want %d", len(x), s.name, leastSamples)
		}
		if len(x) < leastSamples {
			continue // SQLite has no connections
		}
		slope, mean := leastSquares(x, y)
		if growth := slope * (x[len(x)-1] - x[0]); growth > max(flatness*mean, s.slack) {
			found = append(found, Finding{"what a replica uses stays flat", fmt.Sprintf("%s grow by %.0f in %.0f s, and their mean is %.0f", s.name, growth, x[len(x)-1]-x[0], mean)})
		}
	}
	return found, nil
}

// leastSquares returns the slope of the line with the least squares, and the mean of y.
func leastSquares(x, y []float64) (slope, mean float64) {
	n, sumX, sumY, sumXX, sumXY := float64(len(x)), 0.0, 0.0, 0.0, 0.0
	for i := range x {
		sumX, sumY, sumXX, sumXY = sumX+x[i], sumY+y[i], sumXX+x[i]*x[i], sumXY+x[i]*y[i]
	}
	if d := n*sumXX - sumX*sumX; d > 0 {
		slope = (n*sumXY - sumX*sumY) / d
	}
	return slope, sumY / n
}
