package server

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"accessbroker.internal/broker"
)

func fullMetrics() *Metrics {
	one := func() float64 { return 1 }
	m := NewMetrics(Build{}, Gauges{one, one, one, one, one, one, one, one})
	for kind := broker.EventRequest; kind <= broker.EventNotified; kind++ {
		m.Observe(broker.Event{Kind: kind, Entitlement: "tickets", Issuer: "token", Code: "ok", Took: time.Millisecond, TTL: time.Minute, Lag: time.Second})
	}
	m.Observe(broker.Event{Kind: broker.EventRevocation, Issuer: "vault", Code: string(broker.RevokedImmediate), Lag: 3 * time.Second})
	m.AttestFailed("jwt-svid", "expired")
	m.Committed(4, time.Millisecond)
	m.Reloaded("abc", nil)
	m.answered("/v1/requests", "GET", "ok", time.Millisecond)
	return m
}

func TestMetricsAreWellFormed(t *testing.T) {
	t.Parallel()
	problems, err := testutil.GatherAndLint(fullMetrics().registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Dashboards and alerts rely on these names.
func TestMetricNames(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	fullMetrics().Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, name := range strings.Fields(`requests_total decision_seconds approvals_pending approval_wait_seconds leases_issued_total
		leases_active lease_ttl_seconds issue_seconds revocations_total revocation_lag_seconds leases_stuck audit_records_total
		audit_unpublished attestation_failures_total commit_seconds commit_batch_size policy_revision_info config_reloads_total
		svid_expires_seconds upstream_errors_total reviews_overdue notices_total store_files_lost http_requests_total http_request_seconds panics_total build_info`) {
		if !strings.Contains(w.Body.String(), "# TYPE broker_"+name+" ") {
			t.Errorf("broker_%s is missing", name)
		}
	}
}

// The lag counts only confirmed revocations.
func TestLagCountsConfirmedRevocations(t *testing.T) {
	t.Parallel()
	m := NewMetrics(Build{}, Gauges{})
	for _, truth := range []broker.Revocation{broker.RevokedPending, broker.RevokedAtExpiry, broker.RevokedImmediate, broker.RevokedAtRotation, broker.RevokedNever} {
		m.Observe(broker.Event{Kind: broker.EventRevocation, Issuer: "vault", Code: string(truth), Lag: 40 * time.Second})
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range []string{`broker_revocation_lag_seconds_count{issuer="vault"} 1`, `broker_revocation_lag_seconds_sum{issuer="vault"} 40`} {
		if !strings.Contains(w.Body.String(), line+"\n") {
			t.Errorf("%s is missing:\n%s", line, w.Body.String())
		}
	}
}

func TestLabelsAreBounded(t *testing.T) {
	t.Parallel()
	m := NewMetrics(Build{}, Gauges{})
	for _, from := range []string{"spiffe://acme.test/agent", "tickets:read", "a b", "é", strings.Repeat("a", 200), "a\"b", "../x"} {
		m.Observe(broker.Event{Kind: broker.EventRequest, Entitlement: from, Code: from})
		m.AttestFailed(from, from)
	}
	m.answered("/v1/requests", "BREW", "ok", 0)
	if n := testutil.CollectAndCount(m.requests); n != 1 {
		t.Errorf("got %d time series from texts that are not names, want 1", n)
	}
	if got := testutil.ToFloat64(m.attestFailures.WithLabelValues("other", "other")); got != 7 {
		t.Errorf("got %v failures under other, want 7", got)
	}
	if got := testutil.ToFloat64(m.calls.WithLabelValues("/v1/requests", "other", "ok")); got != 1 {
		t.Errorf("got %v calls by an unknown method, want 1", got)
	}
}

func TestReloadedReplacesRevision(t *testing.T) {
	t.Parallel()
	m := NewMetrics(Build{}, Gauges{})
	m.Reloaded("a", nil)
	m.Reloaded("b", nil)
	m.Reloaded("", errors.New("no"))
	if n := testutil.CollectAndCount(m.policy); n != 1 {
		t.Errorf("got %d revisions, want 1", n)
	}
	if got := testutil.ToFloat64(m.reloads.WithLabelValues("failed")); got != 1 {
		t.Errorf("got %v failed reloads, want 1", got)
	}
}
