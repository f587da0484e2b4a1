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

// A brokerOf answers a client's calls in this process; an error is a connection
// that fails.
type brokerOf func(r *http.Request) (status int, body any, err error)

func (b brokerOf) RoundTrip(r *http.Request) (*http.Response, error) {
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

func (b brokerOf) client() *api.Client {
	return &api.Client{BaseURL: "http://127.0.0.1", HTTP: &http.Client{Transport: b}}
}

// Whoever waits for people goes on when the broker is away for a while, and is
// told how to come back when it is away for good.
func TestWaitingForABrokerThatIsAway(t *testing.T) {
	waiting := &api.Request{
		ID: "req_1", Status: api.StatusPending,
		Approvals: api.Approvals{Needed: []api.Need{{Group: "support", Count: 1}}},
	}
	decided := &api.Request{ID: "req_1", Status: api.StatusApproved}
	for _, test := range []struct {
		name string
		away time.Duration
		want int
	}{{"for a while", 5 * time.Minute, exitOK}, {"for good", time.Hour, exitUnreachable}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				back, tried := time.Now().Add(test.away), 0
				client := brokerOf(func(r *http.Request) (int, any, error) {
					tried++
					switch {
					case time.Now().Before(back):
						return 0, nil, errors.New("connection refused")
					case r.Method == http.MethodPost:
						return http.StatusCreated, api.Credential{Lease: "lse_1"}, nil
					}
					return http.StatusOK, decided, nil
				}).client()
				var said strings.Builder
				a := &app{terminal: terminal{err: &said}}
				credential, err := a.collectWhenApproved(t.Context(), client, waiting, 10*time.Minute)
				if said.Len() > 0 {
					t.Errorf("off a terminal, it says %q", said.String())
				}
				if test.want == exitOK {
					if err != nil || credential.Lease != "lse_1" {
						t.Errorf("it ends with %v, %v", credential, err)
					}
					return
				}
				if exitCode(err) != test.want || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), `"broker collect req_1"`) {
					t.Errorf("it ends with %v", err)
				}
				if tried > 200 {
					t.Errorf("it was tried %d times in 10 minutes", tried)
				}
			})
		})
	}
}

// A signal ends the waiting, and not the request.
func TestSignalWhileWaiting(t *testing.T) {
	ctx, signal := context.WithCancel(t.Context())
	client := brokerOf(func(*http.Request) (int, any, error) {
		signal()
		return 0, nil, ctx.Err()
	}).client()
	a := &app{terminal: terminal{err: new(strings.Builder)}}
	_, err := a.collectWhenApproved(ctx, client, &api.Request{ID: "req_1", Status: api.StatusPending}, time.Minute)
	if exitCode(err) != exitPending || !strings.Contains(err.Error(), `stopped waiting; it still waits: "broker collect req_1"`) {
		t.Errorf("it ends with %v", err)
	}
}
