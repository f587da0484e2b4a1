package server

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
)

// callerAgent makes the calls.
const callerAgent = agent + "/caller"

// driveCalls announces and counts calls, and returns the lease.
func (w *world) driveCalls(t *testing.T) string {
	ctx, me := t.Context(), w.as(callerAgent)
	credential, _, err := me.AskAndCollect(ctx, api.Ask{Entitlement: "called", Scopes: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	calls := api.Calls{Client: me}
	if r, err := calls.Announce(ctx, credential.Lease, api.Call{Method: "GET", URL: "https://called.acme.test/v1/things/4711"}); err != nil || !r.Recorded || r.Receipt == nil {
		t.Errorf("announced: got %+v, %v", r, err)
	}
	if err := calls.Count(ctx, credential.Lease, api.CallCounts{Made: 2, Refused: 1, Failed: 1, Sent: 10, Received: 20}); err != nil {
		t.Error(err)
	}
	return credential.Lease
}

func TestCallsAreRecordedAndCounted(t *testing.T) {
	w := newWorld(t, nil)
	lease := w.driveCalls(t)
	me := w.as(callerAgent)
	if err := (api.Calls{Client: me}).Count(t.Context(), lease, api.CallCounts{Made: 1, Received: 5}); err != nil {
		t.Fatal(err)
	}
	l := must[*api.Lease](t)(me.Lease(t.Context(), lease))
	if n := l.Calls; n == nil || n.Made != 3 || n.Refused != 1 || n.Failed != 1 || n.Sent != 10 || n.Received != 25 || n.LastAt.IsZero() {
		t.Errorf("got %+v", n)
	}
	for outcome, want := range map[string]float64{"made": 3, "refused": 1, "failed": 1} {
		if got := testutil.ToFloat64(w.cfg.Metrics.egressCalls.WithLabelValues("called", outcome)); got != want {
			t.Errorf("metric of %s: got %v, want %v", outcome, got, want)
		}
	}
	page := must[*api.AuditPage](t)(w.as(auditor).SearchAudit(t.Context(), api.AuditFilter{Kind: string(audit.LeaseCalled)}))
	if len(page.Records) != 1 || !strings.Contains(page.Records[0].Summary, "is to make a call (GET) with a credential for called") {
		t.Fatalf("got the records %+v", page.Records)
	}
	if entry := must[*api.AuditRecord](t)(w.as(auditor).AuditRecord(t.Context(), page.Records[0].Index)); entry.Openings["target"].Text != "https://called.acme.test/v1/things/4711" {
		t.Errorf("got the openings %+v", entry.Openings)
	}
}

func TestCallsAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	lease := w.driveCalls(t)
	ctx, calls := t.Context(), api.Calls{Client: w.as(callerAgent)}
	good := api.Call{Method: "GET", URL: "https://called.acme.test/v1/things"}
	recorded := func() int {
		return len(must[*api.AuditPage](t)(w.as(auditor).SearchAudit(ctx, api.AuditFilter{Kind: string(audit.LeaseCalled)})).Records)
	}
	refused := func(name string, err error, want api.Code) {
		t.Helper()
		var problem *api.Error
		if !errors.As(err, &problem) || problem.Code != want {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
	for name, c := range map[string]api.Call{
		"another host": {Method: "GET", URL: "https://other.acme.test/v1/things"}, "another method": {Method: "POST", URL: good.URL}, "another path": {Method: "GET", URL: "https://called.acme.test/v2"},
		"dots": {Method: "GET", URL: "https://called.acme.test/v1/../v2"}, "a line break": {Method: "GET", URL: good.URL + "\r\nX: y"}, "no method": {URL: good.URL},
	} {
		_, err := calls.Announce(ctx, lease, c)
		refused(name, err, api.CallNotAllowed)
	}
	_, err := calls.Announce(ctx, lease, api.Call{Method: "GET", URL: good.URL + "?token=x"})
	refused("a query", err, api.InvalidRequest)
	_, err = (api.Calls{Client: w.as(agent)}).Announce(ctx, lease, good)
	refused("another caller", err, api.NotFound)
	refused("counts of another caller", (api.Calls{Client: w.as(agent)}).Count(ctx, lease, api.CallCounts{Made: 1}), api.NotFound)
	refused("a huge count", calls.Count(ctx, lease, api.CallCounts{Sent: 1 << 50}), api.InvalidRequest)
	credential, _, err := w.as(callerAgent).AskAndCollect(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = calls.Announce(ctx, credential.Lease, good)
	refused("an entitlement without rules", err, api.CallNotAllowed)
	must[*api.Lease](t)(w.as(callerAgent).Revoke(ctx, lease, "done"))
	_, err = calls.Announce(ctx, lease, good)
	refused("an ended lease", err, api.CallNotAllowed)
	if err := calls.Count(ctx, lease, api.CallCounts{Made: 1}); err != nil {
		t.Errorf("the last counts of an ended lease: %v", err)
	}
	if got := recorded(); got != 1 {
		t.Errorf("got %d records, want only that of the allowed call", got)
	}
}
