package egress

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"accessbroker.internal/api"
)

func TestReporterReportsEachLease(t *testing.T) {
	var mu sync.Mutex
	got := map[string]api.CallCounts{}
	broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var report api.CallReport
		if err := json.NewDecoder(r.Body).Decode(&report); err != nil || report.Counts == nil {
			t.Errorf("got %+v, %v", report, err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		got[r.URL.Path] = *report.Counts
		_, _ = w.Write([]byte(`{"recorded": false}`))
	}))
	defer broker.Close()
	r := &Reporter{Calls: api.Calls{Client: &api.Client{BaseURL: broker.URL}}}
	r.Count(Outcome{Lease: "lse_a", Outcome: OutcomeMade, Sent: 1, Received: 2})
	r.Count(Outcome{Lease: "lse_a", Outcome: OutcomeMade, Received: 3})
	r.Count(Outcome{Lease: "lse_b", Outcome: OutcomeRefused})
	r.Count(Outcome{Lease: "lse_b", Outcome: OutcomeFailed})
	r.Count(Outcome{Outcome: OutcomeRefused})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	r.Close(ended)
	want := map[string]api.CallCounts{
		"/v1/leases/lse_a/calls": {Made: 2, Sent: 1, Received: 5},
		"/v1/leases/lse_b/calls": {Refused: 1, Failed: 1},
	}
	if len(got) != 2 || got["/v1/leases/lse_a/calls"] != want["/v1/leases/lse_a/calls"] || got["/v1/leases/lse_b/calls"] != want["/v1/leases/lse_b/calls"] {
		t.Errorf("got %+v, want %+v", got, want)
	}
	clear(got)
	if r.Close(ended); len(got) > 0 {
		t.Errorf("reported twice: %+v", got)
	}
}
