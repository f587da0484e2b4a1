package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/api"
)

// A fakeBroker answers a client's calls in this process. An error is a connection
// that fails.
type fakeBroker func(r *http.Request) (status int, body any, err error)

func (b fakeBroker) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	status, body, err := b(r)
	if err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

func (b fakeBroker) client() *api.Client {
	return &api.Client{BaseURL: "http://127.0.0.1", HTTP: &http.Client{Transport: b}}
}

// A wait survives an outage of the broker. If the outage lasts longer than the wait,
// the error says how to continue.
func TestBrokerIsAwayDuringTheWait(t *testing.T) {
	waiting := &api.Request{
		ID: "req_1", Status: api.StatusPending,
		Approvals: api.Approvals{Needed: []api.Need{{Group: "support", Count: 1}}},
	}
	decided := &api.Request{ID: "req_1", Status: api.StatusApproved}
	for _, test := range []struct {
		name string
		away time.Duration
		want int
	}{{"5 minutes", 5 * time.Minute, exitOK}, {"an hour", time.Hour, exitUnreachable}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				back, calls := time.Now().Add(test.away), 0
				client := fakeBroker(func(r *http.Request) (int, any, error) {
					calls++
					switch {
					case time.Now().Before(back):
						return 0, nil, errors.New("connection refused")
					case r.Method == http.MethodPost:
						return http.StatusCreated, api.Credential{Lease: "lse_1"}, nil
					}
					return http.StatusOK, decided, nil
				}).client()
				var screen strings.Builder
				a := &app{terminal: terminal{err: &screen}}
				credential, err := a.collect(t.Context(), client, waiting, 10*time.Minute)
				if screen.Len() > 0 {
					t.Errorf("without a terminal, it printed %q", screen.String())
				}
				if test.want == exitOK {
					if err != nil || credential.Lease != "lse_1" {
						t.Errorf("got %v, %v", credential, err)
					}
					return
				}
				if exitCode(err) != test.want || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), `"broker collect req_1"`) {
					t.Errorf("got %v", err)
				}
				if calls > 200 {
					t.Errorf("%d calls in 10 minutes", calls)
				}
			})
		})
	}
}

// A signal ends the wait but not the request.
func TestSignalWhileWaiting(t *testing.T) {
	ctx, signal := context.WithCancel(t.Context())
	client := fakeBroker(func(*http.Request) (int, any, error) {
		signal()
		return 0, nil, ctx.Err()
	}).client()
	a := &app{terminal: terminal{err: new(strings.Builder)}}
	_, err := a.collect(ctx, client, &api.Request{ID: "req_1", Status: api.StatusPending}, time.Minute)
	if exitCode(err) != exitPending || !strings.Contains(err.Error(), `the wait was interrupted, and the request is still pending; to continue, run "broker collect req_1"`) {
		t.Errorf("got %v", err)
	}
}
