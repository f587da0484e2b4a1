package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/agent"
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

func TestUnreachableBroker(t *testing.T) {
	for _, test := range []struct {
		name   string
		outage time.Duration
		ends   bool
	}{{"5 minutes", 5 * time.Minute, true}, {"an hour", time.Hour, false}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				back, calls, reports := time.Now().Add(test.outage), 0, 0
				client := fakeBroker(func(r *http.Request) (int, any, error) {
					calls++
					switch {
					case time.Now().Before(back):
						return 0, nil, errors.New("connection refused")
					case r.Method == http.MethodPost:
						return http.StatusCreated, api.Credential{Lease: "lse_1"}, nil
					}
					return http.StatusOK, &api.Request{ID: "req_1", Status: api.StatusApproved}, nil
				}).client()
				w := agent.Wait{For: 10 * time.Minute, Progress: func(p agent.Progress) {
					reports++
					decided := p.Request.Status == api.StatusApproved
					if (p.Err != nil) != (reports > 1 && !decided) || p.Request.ID != "req_1" {
						t.Errorf("report %d: %+v", reports, p)
					}
				}}
				credential, err := agent.Collect(t.Context(), client, &api.Request{ID: "req_1", Status: api.StatusPending}, w)
				if calls > 200 || reports < 2 {
					t.Errorf("%d calls and %d reports in 10 minutes", calls, reports)
				}
				if test.ends {
					if err != nil || credential.Lease != "lse_1" {
						t.Errorf("got %v, %v", credential, err)
					}
					return
				}
				var unreachable *agent.UnreachableError
				if !errors.As(err, &unreachable) || unreachable.RequestID != "req_1" || !api.Unreachable(err) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestUnreachableAtCollection(t *testing.T) {
	client := fakeBroker(func(*http.Request) (int, any, error) { return http.StatusNotFound, "not this API", nil }).client()
	_, err := agent.Collect(t.Context(), client, &api.Request{ID: "req_1", Status: api.StatusApproved}, agent.Wait{})
	var unreachable *agent.UnreachableError
	if !errors.As(err, &unreachable) || unreachable.RequestID != "req_1" {
		t.Errorf("got %v", err)
	}
}

func TestContextEndsTheWait(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client := fakeBroker(func(*http.Request) (int, any, error) {
		cancel()
		return 0, nil, ctx.Err()
	}).client()
	_, err := agent.Collect(ctx, client, &api.Request{ID: "req_1", Status: api.StatusPending}, agent.Wait{For: time.Minute})
	var pending *agent.PendingError
	if !errors.As(err, &pending) || !pending.Interrupted || pending.Request.ID != "req_1" {
		t.Errorf("got %v", err)
	}
}

// A consumer keeps its credential until it expires. A broker that is unavailable is
// called again; a refusal, of the broker or its issuer, is final.
func TestRenewalFails(t *testing.T) {
	for _, test := range []struct {
		status    int
		code      api.Code
		left      time.Duration
		usable    bool
		renewable bool
	}{
		{http.StatusServiceUnavailable, "x", time.Minute, true, true},
		{http.StatusTooManyRequests, "x", time.Minute, true, true},
		{http.StatusForbidden, "x", time.Minute, true, false},
		{http.StatusConflict, "x", time.Minute, true, false},
		{http.StatusBadGateway, "x", time.Minute, true, true},
		{http.StatusBadGateway, api.IssuerRefused, time.Minute, true, false},
		{http.StatusServiceUnavailable, "x", time.Second, false, true},
		{http.StatusForbidden, "x", time.Second, false, false},
	} {
		t.Run(fmt.Sprint(test.status, " ", test.code, " with ", test.left), func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/problem+json")
				w.Header().Set("Retry-After", "600")
				w.WriteHeader(test.status)
				_, _ = fmt.Fprintf(w, `{"code":%q}`, test.code)
			}))
			defer server.Close()
			held := agent.Held{
				Client:     &api.Client{BaseURL: server.URL, HTTP: server.Client()},
				Credential: &api.Credential{Lease: "lse_1", ExpiresAt: time.Now().Add(test.left)},
				Replace:    func(*api.Credential) error { t.Error("the consumer got a credential"); return nil },
			}
			usable, err := held.Renew(t.Context())
			if usable != test.usable || held.Renewable() != test.renewable {
				t.Errorf("got usable %t, renewable %t", usable, held.Renewable())
			}
			if !errors.Is(err, test.code) {
				t.Errorf("got %v, want %s", err, test.code)
			}
			if !test.renewable {
				if usable, err := held.Renew(t.Context()); usable || err != nil {
					t.Errorf("after a refusal: got usable %t, %v", usable, err)
				}
			}
		})
	}
}
