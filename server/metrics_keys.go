package server

import "github.com/prometheus/client_golang/prometheus"

// A KeySource describes the keys with which proofs of identity are verified. Its names
// come from the operator's file.
type KeySource struct {
	Kind    string         // "bundle", "provider" or "workload_issuer"
	Name    string         // trust domain or provider
	Keys    map[string]int // keys in use, by what they verify: x509, jwt or sig
	LeftOut map[string]int // keys not in use, by reason
	Age     float64        // seconds since the source could be read last; zero while it can be
}

var (
	keysInUse = prometheus.NewDesc("broker_trusted_keys", "Keys with which proofs of identity are verified.", []string{"kind", "source", "use"}, nil)
	keysOut   = prometheus.NewDesc("broker_left_out_keys", "Published keys that the broker does not use, by reason.", []string{"kind", "source", "reason"}, nil)
	keysAge   = prometheus.NewDesc("broker_keys_age_seconds", "Time since the keys could be read last; 0 while they can be read.", []string{"kind", "source"}, nil)
)

// A keyCollector implements prometheus.Collector.
type keyCollector struct{ read func() []KeySource }

func (keyCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- keysInUse
	ch <- keysOut
	ch <- keysAge
}

func (c keyCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, s := range c.read() {
		gauge(keysAge, s.Age, s.Kind, s.Name)
		for use, n := range s.Keys {
			gauge(keysInUse, float64(n), s.Kind, s.Name, use)
		}
		for reason, n := range s.LeftOut {
			gauge(keysOut, float64(n), s.Kind, s.Name, reason)
		}
	}
}
