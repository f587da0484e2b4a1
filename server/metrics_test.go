package server

import (
	"errors"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"accessbroker.internal/broker"
)

func fullMetrics() *Metrics {
	one := func() float64 { return 1 }
	keys := func() []KeySource {
		return []KeySource{{"bundle", "acme.test", map[string]int{"x509": 1, "jwt": 2}, map[string]int{"unknown_type": 3}, 60}}
	}
	memberships := func() []MembershipCount {
		return []MembershipCount{{"directory", 2, map[string]int64{"added_again": 1}}}
	}
	replica := func() *ReplicaGauge { return &ReplicaGauge{"r1", "c1", 0.25, map[string]int{"ready": 2}} }
	ready := func() map[string]bool { return map[string]bool{"store": true, "trust": false} }
	m := NewMetrics(Build{}, Gauges{one, one, one, one, one, one, one, one, keys, memberships, func() []SignalGauge { return []SignalGauge{{"okta", 2, 30}} }, replica, ready, func() []DirectoryGauge { return []DirectoryGauge{{"corp", 3, 1, 2, 4, 60}} }})
	for kind := broker.EventRequest; kind <= broker.EventNotified; kind++ {
		m.Observe(broker.Event{Kind: kind, Entitlement: "tickets", Issuer: "token", Code: "ok", Took: time.Millisecond, TTL: time.Minute, Lag: time.Second})
	}
	m.Observe(broker.Event{Kind: broker.EventRevocation, Issuer: "vault", Code: string(broker.RevokedImmediate), Lag: 3 * time.Second})
	m.AttestFailed("jwt-svid", "expired")
	m.Looked("jira", "ok")
	m.Pruned("requests", 2)
	m.Signalled("okta", "account_disabled", "applied")
	m.Committed(4, time.Millisecond)
	m.Reloaded("abc", nil)
	m.Compared("directory", nil, time.Now())
	m.called("tickets", broker.CallTotals{Made: 1})
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

// Dashboards and alerts rely on the names, so docs/operator.md lists every metric.
func TestEveryMetricIsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/operator.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `broker_.*").FindAllString(string(text), -1) {
		cell, _, _ := strings.Cut(row[1:], "|")
		for _, name := range regexp.MustCompile(`broker_[a-z_]+`).FindAllString(cell, -1) {
			documented[name] = true
		}
	}
	w := httptest.NewRecorder()
	fullMetrics().Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	exposed := map[string]bool{}
	for _, line := range regexp.MustCompile(`# TYPE (broker_[a-z_]+) `).FindAllStringSubmatch(w.Body.String(), -1) {
		exposed[line[1]] = true
		if !documented[line[1]] {
			t.Errorf("docs/operator.md lacks %s", line[1])
		}
	}
	for name := range documented {
		if !exposed[name] {
			t.Errorf("docs/operator.md lists %s, which the broker does not expose", name)
		}
	}
	if len(exposed) < 20 {
		t.Errorf("only %d metrics were compared", len(exposed))
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
