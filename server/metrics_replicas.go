package server

import "github.com/prometheus/client_golang/prometheus"

// A ReplicaGauge describes this replica, and counts all that share its database.
type ReplicaGauge struct {
	Revision    string         // of the rules by which it decides
	Config      string         // digest of its configuration
	ClockOffset float64        // seconds by which its clock is ahead of the database's
	Replicas    map[string]int // by state: ready, not_ready or gone; nil: no other broker shares the database
}

var (
	replicaInfo   = prometheus.NewDesc("broker_replica_info", "The revision of the policies and the digest of the configuration of this replica.", []string{"revision", "config"}, nil)
	replicaClock  = prometheus.NewDesc("broker_store_clock_offset_seconds", "By how much the clock of this replica is ahead of the database's.", nil, nil)
	replicaStates = prometheus.NewDesc("broker_replicas", "Replicas that share the database, by state, as this one sees them.", []string{"state"}, nil)
	notReady      = prometheus.NewDesc("broker_not_ready", "1 for each failed check of /readyz.", []string{"check"}, nil)
)

// A replicaCollector implements prometheus.Collector. read returns nil while the broker starts.
type replicaCollector struct{ read func() *ReplicaGauge }

func (replicaCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- replicaInfo
	ch <- replicaClock
	ch <- replicaStates
}

func (c replicaCollector) Collect(ch chan<- prometheus.Metric) {
	r := c.read()
	if r == nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(replicaInfo, prometheus.GaugeValue, 1, r.Revision, r.Config)
	ch <- prometheus.MustNewConstMetric(replicaClock, prometheus.GaugeValue, r.ClockOffset)
	for state, n := range r.Replicas {
		ch <- prometheus.MustNewConstMetric(replicaStates, prometheus.GaugeValue, float64(n), state)
	}
}

// A readyCollector implements prometheus.Collector. read returns the checks of /readyz, and
// whether each failed.
type readyCollector struct{ read func() map[string]bool }

func (readyCollector) Describe(ch chan<- *prometheus.Desc) { ch <- notReady }

func (c readyCollector) Collect(ch chan<- prometheus.Metric) {
	for check, failed := range c.read() {
		value := 0.0
		if failed {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(notReady, prometheus.GaugeValue, value, check)
	}
}
