package server

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"accessbroker.internal/broker"
	"accessbroker.internal/server/inbound"
)

// Gauges are functions that Metrics calls on each scrape. They must not block. A nil
// function leaves its metric out.
type Gauges struct {
	LeasesActive     func() float64
	LeasesStuck      func() float64 // revoking for a long time
	ApprovalsPending func() float64 // requests that wait for approval
	ReviewsOverdue   func() float64 // reviews of break-glass uses
	AuditRecords     func() float64 // records in the log
	AuditUnpublished func() float64 // records without a checkpoint
	StoreFilesLost   func() float64 // 1 while the database files are not the ones that the broker opened
	SVIDExpires      func() float64 // seconds until the broker's own SVID expires
	Keys             func() []KeySource
	Memberships      func() []MembershipCount
	Signals          func() []SignalGauge
	Replica          func() *ReplicaGauge
	Ready            func() map[string]bool // by check, whether it fails
	Directory        func() []DirectoryGauge
}

// Metrics are the broker's Prometheus metrics. Labels come from bounded sets:
// entitlements, issuers, codes, methods and routes, never an identity, a scope or an
// ID. Metrics is safe for concurrent use.
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
	notices      *prometheus.CounterVec
	comparisons  *prometheus.CounterVec
	signals      *prometheus.CounterVec
	looks        *prometheus.CounterVec
	pruned       *prometheus.CounterVec

	egressCalls *prometheus.CounterVec
	egressBytes *prometheus.CounterVec

	attestFailures *prometheus.CounterVec
	commitTime     prometheus.Histogram
	commitSize     prometheus.Histogram
	policy         *prometheus.GaugeVec
	reloads        *prometheus.CounterVec

	calls    *prometheus.CounterVec
	callTime *prometheus.HistogramVec
	panics   prometheus.Counter
	refused  *prometheus.CounterVec
}

// Classic buckets, for servers that do not scrape native histograms.
var (
	fastBuckets = []float64{.00001, .00005, .0001, .0005, .001, .005, .025}
	callBuckets = []float64{.001, .005, .025, .1, .5, 2.5, 10}
	ttlBuckets  = []float64{60, 300, 900, 3600, 14400, 43200}
	lagBuckets  = []float64{.1, 1, 5, 30, 300, 3600}
	sizeBuckets = []float64{1, 2, 4, 8, 16, 32, 64, 128}
)

// A Build identifies the running program, for broker_build_info.
type Build struct{ Version, Commit, Date, Go string }

// NewMetrics returns Metrics with a registry of its own.
func NewMetrics(b Build, g Gauges) *Metrics {
	m := &Metrics{
		registry:     prometheus.NewRegistry(),
		requests:     counters("requests_total", "Access requests, by outcome.", "entitlement", "code"),
		decisions:    histograms("decision_seconds", "Time to evaluate the policy.", fastBuckets, "code"),
		approvalWait: histogram("approval_wait_seconds", "Time from a request to its last approval.", ttlBuckets),
		issued:       counters("leases_issued_total", "Issued credentials.", "entitlement", "issuer"),
		leaseTTL:     histograms("lease_ttl_seconds", "Lifetime of issued credentials.", ttlBuckets, "issuer"),
		issueTime:    histograms("issue_seconds", "Time an issuer took to issue a credential.", callBuckets, "issuer"),
		revocations:  counters("revocations_total", "Attempts to revoke a lease, by outcome.", "issuer", "code"),
		revokeLag:    histograms("revocation_lag_seconds", "Time from when a lease was due to end until it was revoked.", lagBuckets, "issuer"),
		upstream:     counters("upstream_errors_total", "Failed calls to an issuer.", "issuer", "code"),
		notices:      counters("notices_total", "Attempts to deliver a notice, by outcome.", "kind", "code"),
		comparisons:  counters("membership_comparisons_total", "Comparisons of an issuer's memberships with its system, by outcome.", "issuer", "outcome"),
		looks:        counters("ticket_looks_total", "Calls to a ticket system, by outcome.", "tracker", "outcome"),
		pruned:       counters("pruned_total", "Requests and leases that retention deleted, and records whose texts it erased.", "what"),

		signals: counters("signals_total", "Security events of transmitters, by outcome.", "transmitter", "event", "outcome"),

		egressCalls: counters("egress_calls_total", "Calls with credentials, as their holders report them, by outcome.", "entitlement", "outcome"),
		egressBytes: counters("egress_bytes_total", "Bytes of the bodies of these calls, by direction.", "entitlement", "direction"),

		attestFailures: counters("attestation_failures_total", "Proofs of identity that were rejected.", "method", "cause"),
		commitTime:     histogram("commit_seconds", "Time of a durable database transaction.", callBuckets),
		commitSize:     histogram("commit_batch_size", "State changes that shared a database transaction.", sizeBuckets),
		policy:         gauges("policy_revision_info", "The revision of the rules in force; always 1.", "revision"),
		reloads:        counters("config_reloads_total", "Attempts to load rules, by outcome.", "outcome"),

		calls:    counters("http_requests_total", "HTTP requests, by code.", "route", "method", "code"),
		callTime: histograms("http_request_seconds", "Time to serve an HTTP request, including long polls.", callBuckets, "route"),
		refused:  counters("connections_refused_total", "Connections that were closed without an answer, by cause.", "cause"),
		panics:   prometheus.NewCounter(prometheus.CounterOpts{Name: "broker_panics_total", Help: "Panics in HTTP handlers. Each is a bug."}),
	}
	m.registry.MustRegister(
		m.requests, m.decisions, m.approvalWait, m.issued, m.leaseTTL, m.issueTime, m.revocations, m.revokeLag, m.upstream, m.notices, m.comparisons, m.signals, m.looks, m.pruned, m.egressCalls, m.egressBytes,
		m.attestFailures, m.commitTime, m.commitSize, m.policy, m.reloads, m.calls, m.callTime, m.panics, m.refused,
		buildInfo(b), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	for _, cause := range inbound.Causes {
		m.refused.WithLabelValues(cause)
	}
	m.read(g)
	m.Expect(Known{})
	return m
}

func (m *Metrics) read(g Gauges) {
	for _, gauge := range []struct {
		name, help string
		value      func() float64
	}{
		{"leases_active", "Active leases.", g.LeasesActive},
		{"leases_stuck", "Leases whose revocation keeps failing.", g.LeasesStuck},
		{"approvals_pending", "Requests that wait for approval.", g.ApprovalsPending},
		{"reviews_overdue", "Break-glass uses whose review is overdue.", g.ReviewsOverdue},
		{"audit_unpublished", "Audit records that no checkpoint covers yet.", g.AuditUnpublished},
		{"store_files_lost", "1 while the database files are not the ones that the broker opened.", g.StoreFilesLost},
		{"svid_expires_seconds", "Time until the broker's own SVID expires.", g.SVIDExpires},
	} {
		if gauge.value != nil {
			m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "broker_" + gauge.name, Help: gauge.help}, gauge.value))
		}
	}
	if g.Signals != nil {
		m.registry.MustRegister(signalCollector{g.Signals})
	}
	if g.Replica != nil {
		m.registry.MustRegister(replicaCollector{g.Replica})
	}
	if g.Ready != nil {
		m.registry.MustRegister(readyCollector{g.Ready})
	}
	if g.Keys != nil {
		m.registry.MustRegister(keyCollector{g.Keys})
	}
	if g.Directory != nil {
		m.registry.MustRegister(directoryCollector{g.Directory})
	}
	if g.Memberships != nil {
		m.registry.MustRegister(membershipCollector{g.Memberships})
	}
	if g.AuditRecords != nil {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "broker_audit_records_total", Help: "Records in the audit log."}, g.AuditRecords))
	}
}

// Known are label values that the operator's file and other packages determine.
type Known struct {
	Entitlements   map[string]string // to their issuers
	Issuers        []string
	Channels       []string    // kinds of notification channels
	NoticeCodes    []string    // outcomes of a delivery
	AttestFailures [][2]string // method and cause
	Compared       []string    // issuers whose memberships are compared
	Egress         []string    // entitlements with rules for calls
}

// Expect starts the series of known label values at zero. A counter whose series
// starts at one hides its first event from rate and increase. Expect may be called
// again; it changes no series that exists.
func (m *Metrics) Expect(k Known) {
	for _, outcome := range []string{"ok", "failed"} {
		m.reloads.WithLabelValues(outcome)
	}
	for _, code := range []string{"permit", "deny", "error"} {
		m.decisions.WithLabelValues(code)
	}
	for _, f := range k.AttestFailures {
		m.attestFailures.WithLabelValues(label(f[0]), label(f[1]))
	}
	for _, channel := range k.Channels {
		for _, code := range k.NoticeCodes {
			m.notices.WithLabelValues(label(channel), label(code))
		}
	}
	for _, issuer := range k.Compared {
		m.comparisons.WithLabelValues(label(issuer), "ok")
		m.comparisons.WithLabelValues(label(issuer), "failed")
	}
	for _, issuer := range k.Issuers {
		m.expectIssuer(label(issuer))
	}
	for entitlement, issuer := range k.Entitlements {
		m.issued.WithLabelValues(label(entitlement), label(issuer))
		for _, code := range []string{"permit", "pending", "denied"} {
			m.requests.WithLabelValues(label(entitlement), code)
		}
		if slices.Contains(k.Egress, entitlement) {
			m.called(entitlement, broker.CallTotals{})
		}
	}
}

func (m *Metrics) expectIssuer(issuer string) {
	for _, histogram := range []*prometheus.HistogramVec{m.leaseTTL, m.issueTime, m.revokeLag} {
		histogram.WithLabelValues(issuer)
	}
	for _, code := range broker.UpstreamCodes() {
		m.upstream.WithLabelValues(issuer, code)
	}
	for _, effect := range []broker.Revocation{broker.RevokedImmediate, broker.RevokedPending, broker.RevokedAtExpiry, broker.RevokedAtRotation, broker.RevokedNever} {
		m.revocations.WithLabelValues(issuer, string(effect))
	}
}

// called counts calls with credentials of an entitlement.
func (m *Metrics) called(entitlement string, n broker.CallTotals) {
	entitlement = label(entitlement)
	for outcome, count := range map[string]int64{"made": n.Made, "refused": n.Refused, "failed": n.Failed} {
		m.egressCalls.WithLabelValues(entitlement, outcome).Add(float64(count))
	}
	for direction, count := range map[string]int64{"sent": n.Sent, "received": n.Received} {
		m.egressBytes.WithLabelValues(entitlement, direction).Add(float64(count))
	}
}

// Observe counts an event of the domain (broker.Config.Observe).
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
		m.notices.WithLabelValues(issuer, code).Inc()
	case broker.EventUpstream:
		m.upstream.WithLabelValues(issuer, code).Inc()
	}
}

// AttestFailed counts a rejected proof of identity.
func (m *Metrics) AttestFailed(method, cause string) {
	m.attestFailures.WithLabelValues(label(method), label(cause)).Inc()
}

// Looked counts a call to a ticket system.
func (m *Metrics) Looked(tracker, outcome string) { m.looks.WithLabelValues(tracker, outcome).Inc() }

// Committed records a database transaction that members state changes shared.
func (m *Metrics) Committed(members int, took time.Duration) {
	m.commitSize.Observe(float64(members))
	m.commitTime.Observe(took.Seconds())
}

// Reloaded counts an attempt to load rules. If err is nil, revision is in force.
func (m *Metrics) Reloaded(revision string, err error) {
	if err != nil {
		m.reloads.WithLabelValues("failed").Inc()
		return
	}
	m.reloads.WithLabelValues("ok").Inc()
	m.policy.Reset()
	m.policy.WithLabelValues(label(revision)).Set(1)
}

// RefusedConnection counts a connection that was closed without an answer. The cause is
// one of inbound.Causes.
func (m *Metrics) RefusedConnection(cause string) { m.refused.WithLabelValues(cause).Inc() }

// answered counts an HTTP request.
func (m *Metrics) answered(route, method, code string, took time.Duration) {
	m.calls.WithLabelValues(route, knownMethod(method), code).Inc()
	m.callTime.WithLabelValues(route).Observe(took.Seconds())
}

// Handler serves the metrics. Mount it on a separate listener that only Prometheus
// can reach.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		Registry: m.registry, MaxRequestsInFlight: 4, Timeout: 10 * time.Second, EnableOpenMetrics: true,
	})
}

// label returns s if it is a name, else "other", so that an ID or a caller's text
// can never become a time series.
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

// histogramOpts returns options for a native histogram that also has classic buckets.
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

// Pruned counts what retention deleted or erased.
func (m *Metrics) Pruned(what string, rows int64) {
	m.pruned.WithLabelValues(label(what)).Add(float64(rows))
}
