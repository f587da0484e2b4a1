package server

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"accessbroker.internal/broker"
)

// Gauges are read when Prometheus asks. They must answer at once; those that
// are nil are left out.
type Gauges struct {
	LeasesActive     func() float64
	LeasesStuck      func() float64 // revoking for long
	ApprovalsPending func() float64 // requests that wait for people
	ReviewsOverdue   func() float64 // of the broken glass
	AuditRecords     func() float64 // records in the log
	AuditUnpublished func() float64 // records that no checkpoint covers yet
	SVIDExpires      func() float64 // seconds until the broker's own SVID expires
}

// Metrics are the broker's numbers. Their labels come from small sets: names
// of the catalogue, issuers, codes, methods, routes; never an identity, a
// scope or an id. Per-identity usage comes from the database. Metrics are safe
// for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	requests     *prometheus.CounterVec
	decisions    *prometheus.HistogramVec
	approvalWait prometheus.Histogram
	issued       *prometheus.CounterVec
	leaseTTL     *prometheus.HistogramVec
	issueTime    *prometheus.HistogramVec
	revocations  *prometheus.CounterVec
	revokeLag    *prometheus.HistogramVec
	upstream     *prometheus.CounterVec
	told         *prometheus.CounterVec

	attestFailures *prometheus.CounterVec
	commitTime     prometheus.Histogram
	commitSize     prometheus.Histogram
	policy         *prometheus.GaugeVec
	reloads        *prometheus.CounterVec

	calls    *prometheus.CounterVec
	callTime *prometheus.HistogramVec
	panics   prometheus.Counter
}

// Classic buckets, for those who don't scrape native histograms.
var (
	fastBuckets = []float64{.00001, .00005, .0001, .0005, .001, .005, .025}
	callBuckets = []float64{.001, .005, .025, .1, .5, 2.5, 10}
	ttlBuckets  = []float64{60, 300, 900, 3600, 14400, 43200}
	lagBuckets  = []float64{.1, 1, 5, 30, 300, 3600}
	sizeBuckets = []float64{1, 2, 4, 8, 16, 32, 64, 128}
)

// A Build identifies the running program, for broker_build_info.
type Build struct{ Version, Commit, Date, Go string }

// NewMetrics makes the collectors, in a registry of their own.
func NewMetrics(b Build, g Gauges) *Metrics {
	m := &Metrics{
		registry:     prometheus.NewRegistry(),
		requests:     counters("requests_total", "Requests that were answered, by outcome.", "entitlement", "code"),
		decisions:    histograms("decision_seconds", "Time that policy took to decide.", fastBuckets, "code"),
		approvalWait: histogram("approval_wait_seconds", "Time from a request to its last approval.", ttlBuckets),
		issued:       counters("leases_issued_total", "Credentials that were issued.", "entitlement", "issuer"),
		leaseTTL:     histograms("lease_ttl_seconds", "Lifetime of issued credentials.", ttlBuckets, "issuer"),
		issueTime:    histograms("issue_seconds", "Time that an issuer took to make a credential.", callBuckets, "issuer"),
		revocations:  counters("revocations_total", "Attempts to end a lease, by outcome.", "issuer", "code"),
		revokeLag:    histograms("revocation_lag_seconds", "Time from when a lease should have ended to when it did.", lagBuckets, "issuer"),
		upstream:     counters("upstream_errors_total", "Calls to an issuer that did not succeed.", "issuer", "code"),

		told: counters("notices_total", "Attempts to tell a channel, by outcome.", "kind", "code"),

		attestFailures: counters("attestation_failures_total", "Proofs that did not hold.", "method", "cause"),
		commitTime:     histogram("commit_seconds", "Time of a durable database transaction.", callBuckets),
		commitSize:     histogram("commit_batch_size", "State changes that shared a database transaction.", sizeBuckets),
		policy:         gauges("policy_revision_info", "The revision of the rules in force; always 1.", "revision"),
		reloads:        counters("config_reloads_total", "Attempts to load new rules, by outcome.", "outcome"),

		calls:    counters("http_requests_total", "HTTP requests that were answered, by code.", "route", "method", "code"),
		callTime: histograms("http_request_seconds", "Time of HTTP requests, long polls included.", callBuckets, "route"),
		panics:   prometheus.NewCounter(prometheus.CounterOpts{Name: "broker_panics_total", Help: "Handlers that panicked. Each is a bug."}),
	}
	m.registry.MustRegister(
		m.requests, m.decisions, m.approvalWait, m.issued, m.leaseTTL, m.issueTime, m.revocations, m.revokeLag, m.upstream, m.told,
		m.attestFailures, m.commitTime, m.commitSize, m.policy, m.reloads, m.calls, m.callTime, m.panics,
		buildInfo(b), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.read(g)
	return m
}

func (m *Metrics) read(g Gauges) {
	for _, gauge := range []struct {
		name, help string
		value      func() float64
	}{
		{"leases_active", "Leases that are active now.", g.LeasesActive},
		{"leases_stuck", "Leases whose revocation has been tried for long.", g.LeasesStuck},
		{"approvals_pending", "Requests that wait for people.", g.ApprovalsPending},
		{"reviews_overdue", "Uses of the broken glass whose review is overdue.", g.ReviewsOverdue},
		{"audit_unpublished", "Records that no checkpoint covers yet.", g.AuditUnpublished},
		{"svid_expires_seconds", "Time until the broker's own SVID expires.", g.SVIDExpires},
	} {
		if gauge.value != nil {
			m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "broker_" + gauge.name, Help: gauge.help}, gauge.value))
		}
	}
	if g.AuditRecords != nil {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "broker_audit_records_total", Help: "Records in the audit log."}, g.AuditRecords))
	}
}

// Observe counts what the domain tells of (broker.Config.Observe).
func (m *Metrics) Observe(e broker.Event) {
	entitlement, issuer, code := label(e.Entitlement), label(e.Issuer), label(e.Code)
	switch e.Kind {
	case broker.EventRequest:
		m.requests.WithLabelValues(entitlement, code).Inc()
	case broker.EventDecision:
		m.decisions.WithLabelValues(code).Observe(e.Took.Seconds())
	case broker.EventIssued:
		m.issued.WithLabelValues(entitlement, issuer).Inc()
		m.leaseTTL.WithLabelValues(issuer).Observe(e.TTL.Seconds())
		m.issueTime.WithLabelValues(issuer).Observe(e.Took.Seconds())
	case broker.EventApproved:
		m.approvalWait.Observe(e.Took.Seconds())
	case broker.EventRevocation:
		m.revocations.WithLabelValues(issuer, code).Inc()
		if e.Code == string(broker.RevokedImmediate) {
			m.revokeLag.WithLabelValues(issuer).Observe(max(e.Lag, 0).Seconds())
		}
	case broker.EventNotified:
		m.told.WithLabelValues(issuer, code).Inc()
	case broker.EventUpstream:
		m.upstream.WithLabelValues(issuer, code).Inc()
	}
}

// AttestFailed counts a proof that did not hold.
func (m *Metrics) AttestFailed(method, cause string) {
	m.attestFailures.WithLabelValues(label(method), label(cause)).Inc()
}

// Committed counts a database transaction of so many state changes.
func (m *Metrics) Committed(members int, took time.Duration) {
	m.commitSize.Observe(float64(members))
	m.commitTime.Observe(took.Seconds())
}

// Reloaded counts an attempt to load rules, and says which are in force.
func (m *Metrics) Reloaded(revision string, err error) {
	if err != nil {
		m.reloads.WithLabelValues("failed").Inc()
		return
	}
	m.reloads.WithLabelValues("ok").Inc()
	m.policy.Reset()
	m.policy.WithLabelValues(label(revision)).Set(1)
}

// answered counts an HTTP request.
func (m *Metrics) answered(route, method, code string, took time.Duration) {
	m.calls.WithLabelValues(route, knownMethod(method), code).Inc()
	m.callTime.WithLabelValues(route).Observe(took.Seconds())
}

// Handler serves the numbers. It is for a listener of its own, which only
// Prometheus reaches.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		Registry: m.registry, MaxRequestsInFlight: 4, Timeout: 10 * time.Second, EnableOpenMetrics: true,
	})
}

// label lets names through and nothing else: should an id or a text of a
// caller's ever come here, it must not become a time series.
func label(s string) string {
	if s == "" {
		return "none"
	}
	bad := func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '-' || r == '.')
	}
	if len(s) > broker.MaxName || strings.ContainsFunc(s, bad) {
		return "other"
	}
	return s
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "broker_" + name, Help: help}, labels)
}

func gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "broker_" + name, Help: help}, labels)
}

// histogramOpts ask for a native histogram, with classic buckets beside it.
func histogramOpts(name, help string, buckets []float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Name: "broker_" + name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	}
}

func histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(histogramOpts(name, help, buckets), labels)
}

func histogram(name, help string, buckets []float64) prometheus.Histogram {
	return prometheus.NewHistogram(histogramOpts(name, help, buckets))
}

// buildInfo is a constant metric whose labels identify the build.
func buildInfo(b Build) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "broker_build_info", Help: "The build; always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Commit, "date": b.Date, "go_version": b.Go},
	}, func() float64 { return 1 })
}
