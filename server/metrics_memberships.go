package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A MembershipCount is how many memberships of an issuer leases rely on, and how many
// differ from the broker's records.
type MembershipCount struct {
	Issuer  string
	Held    int64
	Differs map[string]int64 // by difference
}

var (
	membershipsHeld   = prometheus.NewDesc("broker_memberships", "Memberships that leases rely on, or that differ from the broker's records.", []string{"issuer"}, nil)
	membershipsDiffer = prometheus.NewDesc("broker_membership_differences", "Memberships of which a system and the broker's records differ, by difference.", []string{"issuer", "difference"}, nil)
)

// A membershipCollector implements prometheus.Collector.
type membershipCollector struct{ read func() []MembershipCount }

func (membershipCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- membershipsHeld
	ch <- membershipsDiffer
}

func (c membershipCollector) Collect(ch chan<- prometheus.Metric) {
	for _, m := range c.read() {
		ch <- prometheus.MustNewConstMetric(membershipsHeld, prometheus.GaugeValue, float64(m.Held), m.Issuer)
		for difference, n := range m.Differs {
			ch <- prometheus.MustNewConstMetric(membershipsDiffer, prometheus.GaugeValue, float64(n), m.Issuer, difference)
		}
	}
}

// Compared counts a comparison of an issuer's memberships with its system.
func (m *Metrics) Compared(issuer string, err error, _ time.Time) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	m.comparisons.WithLabelValues(label(issuer), outcome).Inc()
}
