package main

import (
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
	"accessbroker.internal/internal/brokertest"
)

// A call that the operator wants recorded is in the log when the host receives it. While
// the broker can't record it, the call is not made.
func TestEdgeRecordsCallsFirst(t *testing.T) {
	w := brokertest.NewWorld(t)
	operator := w.Operator()
	recorded := func() []api.AuditEntry {
		page, err := operator.SearchAudit(t.Context(), api.AuditFilter{Kind: "lease.called"})
		if err != nil {
			t.Error(err)
			return nil
		}
		return page.Records
	}
	var received, before atomic.Int32 // calls; records when the host received the last one
	host := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		received.Add(1)
		before.Store(int32(len(recorded())))
		_, _ = io.WriteString(rw, r.Header.Get("Authorization"))
	}))
	defer host.Close()
	w.EditAll(w.Tickets, host.Listener.Addr().String())
	w.Edit("egress:                      # calls", "egress:\n      record: true               # calls")
	w.StartIdentities()
	_, stop := w.Start(io.Discard)
	running := true
	defer func() {
		if running {
			stop()
		}
	}()

	e := newEdge(w.Agent(), nil, func(name string) api.Ask {
		return api.Ask{Entitlement: name, Justification: "INC-4711"}
	}, nil)
	e.calls.Roots = x509.NewCertPool()
	e.calls.Roots.AddCert(host.Certificate())
	if err := e.source.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	get := func(path string) (string, error) {
		r, err := egress.NewRequest(t.Context(), http.MethodGet, host.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := e.RoundTrip(r)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	body, err := get("/tickets/17?fields=all")
	if err != nil || !strings.HasPrefix(body, "Bearer *") || strings.Contains(body, "eyJ") {
		t.Fatalf("got %q, %v", body, err)
	}
	if received.Load() != 1 || before.Load() != 1 {
		t.Errorf("the host received %d calls, and the log had %d records then; want 1 and 1", received.Load(), before.Load())
	}
	if list := recorded(); len(list) != 1 || !strings.Contains(string(list[0].Record), `"entitlement":"tickets-api"`) {
		t.Errorf("got records %+v", list)
	}

	stop()
	running = false
	var refusal *egress.Refusal
	if _, err := get("/tickets/18"); !errors.As(err, &refusal) || refusal.Code != egress.CodeUnrecorded {
		t.Errorf("without the broker: got %v, want the code %s", err, egress.CodeUnrecorded)
	}
	if received.Load() != 1 {
		t.Error("the host received a call that no record announces")
	}
	_, stop = w.Start(io.Discard)
	defer stop()
	brokertest.Eventually(t, "a call after the restart", func() bool { _, err := get("/tickets/19"); return err == nil })
	if got := len(recorded()); got != int(received.Load()) || got < 2 {
		t.Errorf("the host received %d calls, and the log has %d", received.Load(), got)
	}
	if err := e.keeper.Return(t.Context(), "the test ended"); err != nil {
		t.Error(err)
	}
}
