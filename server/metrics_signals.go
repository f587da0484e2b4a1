package server

import "github.com/prometheus/client_golang/prometheus"

// A SignalGauge describes a transmitter of shared security signals. Its name comes from the
// operator's file.
type SignalGauge struct {
	Transmitter string
	Held        float64 // events that wait for a person
	Silence     float64 // seconds since its stream was last known to work; negative: not since the start
}

var (
	signalsHeld    = prometheus.NewDesc("broker_signals_held", "Security events that wait for a person's decision.", []string{"transmitter"}, nil)
	signalsSilence = prometheus.NewDesc("broker_signals_silence_seconds", "Time since the transmitter's stream was last known to work; absent: not since the start.", []string{"transmitter"}, nil)
)

// A signalCollector implements prometheus.Collector.
type signalCollector struct{ read func() []SignalGauge }

func (signalCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- signalsHeld
	ch <- signalsSilence
}

func (c signalCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.read() {
		ch <- prometheus.MustNewConstMetric(signalsHeld, prometheus.GaugeValue, s.Held, s.Transmitter)
		if s.Silence >= 0 {
			ch <- prometheus.MustNewConstMetric(signalsSilence, prometheus.GaugeValue, s.Silence, s.Transmitter)
		}
	}
}

// Signalled counts what became of a security event. kind is empty if it is not known.
func (m *Metrics) Signalled(transmitter, kind, outcome string) {
	m.signals.WithLabelValues(label(transmitter), label(kind), label(outcome)).Inc()
}

// ExpectSignal starts a series at zero.
func (m *Metrics) ExpectSignal(transmitter, kind, outcome string) {
	m.signals.WithLabelValues(label(transmitter), label(kind), label(outcome))
}
