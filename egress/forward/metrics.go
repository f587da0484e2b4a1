package forward

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics counts what a proxy does.
type Metrics struct {
	registry    *prometheus.Registry
	calls       *prometheus.CounterVec
	credentials *prometheus.CounterVec
}

// NewMetrics returns counters for one proxy.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "broker_proxy_calls_total", Help: "Calls of the proxy's clients, by outcome: made, or the code of the refusal.",
		}, []string{"outcome"}),
		credentials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "broker_proxy_credentials_total", Help: "Events of the proxy's credentials, by kind: obtained, renewed, pending, failed, dropped, returned.",
		}, []string{"kind"}),
	}
	m.registry.MustRegister(m.calls, m.credentials)
	return m
}

// Called counts a call or a refused tunnel.
func (m *Metrics) Called(e Event) {
	outcome := "made"
	if e.Refusal != nil {
		outcome = e.Refusal.Code
	}
	m.calls.WithLabelValues(outcome).Inc()
}

// Kept counts an event of a credential.
func (m *Metrics) Kept(kind string) { m.credentials.WithLabelValues(kind).Inc() }

// Handler returns the handler of /metrics.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}
