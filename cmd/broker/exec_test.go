package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// A command whose credential can't be renewed runs on as long as that lives: a
// broker that can't serve is asked again; one that refuses, or whose issuer does, is
// not.
func TestRenewing(t *testing.T) {
	for _, test := range []struct {
		status int
		code   api.Code
		left   time.Duration
		goesOn bool
		again  bool
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
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(test.status)
			_, _ = fmt.Fprintf(w, `{"code":%q}`, test.code)
		}))
		r := &execution{
			app: &app{terminal: terminal{err: io.Discard}}, client: &api.Client{BaseURL: server.URL, HTTP: server.Client()}, file: filepath.Join(t.TempDir(), "credential"),
			credential: &api.Credential{Lease: "lse_1", ExpiresAt: time.Now().Add(test.left)},
		}
		if goesOn := r.renew(t.Context()); goesOn != test.goesOn || r.renewable() != test.again {
			t.Errorf("%d %s with %s left: goes on %t, asks again %t", test.status, test.code, test.left, goesOn, r.renewable())
		}
		server.Close()
	}
}
