package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// A command whose credential can't be renewed runs on as long as that lives: a
// broker that can't serve is asked again, and one that refuses is not.
func TestRenewing(t *testing.T) {
	for _, test := range []struct {
		status int
		left   time.Duration
		goesOn bool
		again  bool
	}{
		{http.StatusServiceUnavailable, time.Minute, true, true},
		{http.StatusTooManyRequests, time.Minute, true, true},
		{http.StatusForbidden, time.Minute, true, false},
		{http.StatusConflict, time.Minute, true, false},
		{http.StatusServiceUnavailable, time.Second, false, true},
		{http.StatusForbidden, time.Second, false, false},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(test.status)
			_, _ = io.WriteString(w, `{"code":"x"}`)
		}))
		r := &execution{
			app: &app{terminal: terminal{err: io.Discard}}, client: &api.Client{BaseURL: server.URL, HTTP: server.Client()}, file: filepath.Join(t.TempDir(), "credential"),
			credential: &api.Credential{Lease: "lse_1", ExpiresAt: time.Now().Add(test.left)},
		}
		if goesOn := r.renew(t.Context()); goesOn != test.goesOn || r.renewable() != test.again {
			t.Errorf("%d with %s left: goes on %t, asks again %t", test.status, test.left, goesOn, r.renewable())
		}
		server.Close()
	}
}
