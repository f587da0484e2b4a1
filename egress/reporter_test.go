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

func TestReporterAnnouncesBeforeTheCall(t *testing.T) {
	answer, got := http.StatusOK, api.CallReport{}
	broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/leases/lse_a/calls" || json.NewDecoder(r.Body).Decode(&got) != nil {
			t.Errorf("got %s, %+v", r.URL, got)
		}
		w.WriteHeader(answer)
		_, _ = w.Write([]byte(`{"recorded": true}`))
	}))
	r := &Reporter{Calls: api.Calls{Client: &api.Client{BaseURL: broker.URL}}}
	call := Call{Method: "GET", Scheme: "https", Host: "api.acme.test:8443", Path: "/v1/a%20b"}
	if err := r.Announce(t.Context(), "lse_a", call); err != nil || got.Call == nil || *got.Call != (api.Call{Method: "GET", URL: "https://api.acme.test:8443/v1/a%20b"}) {
		t.Errorf("got %+v, %v", got.Call, err)
	}
	if answer = http.StatusForbidden; r.Announce(t.Context(), "lse_a", call) == nil {
		t.Error("a refused announcement is no error")
	}
	if broker.Close(); r.Announce(t.Context(), "lse_a", call) == nil {
		t.Error("an announcement without a broker is no error")
	}
}
