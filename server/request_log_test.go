package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Probes come every few seconds, so only a failing one is news. A duration has its
// unit.
func TestLogOfCalls(t *testing.T) {
	var failing error
	var logged bytes.Buffer
	w := newQuietWorld(t, func(cfg *Config) {
		cfg.Checks = []Check{{Name: "disk", Check: func(context.Context) error { return failing }}}
		cfg.Logger = slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	handler := w.Handler(API)
	for _, test := range []struct {
		path    string
		failing error
		want    string
	}{
		{"/healthz", nil, "DEBUG"},
		{"/readyz", nil, "DEBUG"},
		{"/readyz", errors.New("full"), "WARN"},
		{"/openapi.json", nil, "INFO"},
		{"/none", nil, "WARN"},
	} {
		failing = test.failing
		w.readiness.at = w.readiness.at.AddDate(-1, 0, 0) // forgets the last result
		logged.Reset()
		r := httptest.NewRequest(http.MethodGet, w.cfg.ExternalURL+test.path, nil)
		handler.ServeHTTP(httptest.NewRecorder(), r)
		var line struct {
			Level string   `json:"level"`
			Code  string   `json:"code"`
			Took  *float64 `json:"took_ms"`
		}
		if err := json.Unmarshal(logged.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v in %q", test.path, err, logged.String())
		}
		if line.Level != test.want || line.Took == nil || (line.Code == "ok") != (test.want == "DEBUG" || test.want == "INFO") {
			t.Errorf("%s, %v: got %s, want level %s, its code and took_ms", test.path, test.failing, logged.String(), test.want)
		}
	}
}
