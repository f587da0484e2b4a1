package server

import "github.com/prometheus/client_golang/prometheus"

// A DirectoryGauge describes what a source of SCIM provisions. Its name comes from the
// operator's file.
type DirectoryGauge struct {
	Source                           string
	Active, Inactive, Groups, Member float64
	Silence                          float64 // seconds since its client's last call; negative: none since the start
}

var (
	directoryUsers   = prometheus.NewDesc("broker_directory_users", "Users that the source provisions.", []string{"source", "state"}, nil)
	directoryGroups  = prometheus.NewDesc("broker_directory_groups", "Groups that the source provisions.", []string{"source"}, nil)
	directoryMembers = prometheus.NewDesc("broker_directory_members", "Members of all groups of the source.", []string{"source"}, nil)
	directorySilence = prometheus.NewDesc("broker_directory_silence_seconds", "Time since the last call of the source's client; absent: none since the start.", []string{"source"}, nil)
)

// A directoryCollector implements prometheus.Collector.
type directoryCollector struct{ read func() []DirectoryGauge }

func (directoryCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- directoryUsers
	ch <- directoryGroups
	ch <- directoryMembers
	ch <- directorySilence
}

func (c directoryCollector) Collect(ch chan<- prometheus.Metric) {
	for _, d := range c.read() {
		ch <- prometheus.MustNewConstMetric(directoryUsers, prometheus.GaugeValue, d.Active, d.Source, "active")
		ch <- prometheus.MustNewConstMetric(directoryUsers, prometheus.GaugeValue, d.Inactive, d.Source, "inactive")
		ch <- prometheus.MustNewConstMetric(directoryGroups, prometheus.GaugeValue, d.Groups, d.Source)
		ch <- prometheus.MustNewConstMetric(directoryMembers, prometheus.GaugeValue, d.Member, d.Source)
		if d.Silence >= 0 {
			ch <- prometheus.MustNewConstMetric(directorySilence, prometheus.GaugeValue, d.Silence, d.Source)
		}
	}
}
