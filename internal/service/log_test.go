package service_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest"
)

// The log tells an operator what runs, and when and why that changes.
func TestLogOfStartReloadAndShutdown(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.StartIdentities()
	var log bytes.Buffer
	listeners, stop := w.Start(&log)
	reload := func(want int) {
		t.Helper()
		resp, err := w.Operator().HTTP.Post("http://localhost/admin/reload", "application/json", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != want {
			t.Errorf("got status %d, want %d", resp.StatusCode, want)
		}
	}
	reload(http.StatusOK)
	w.Edit("max_ttl: ", "max_ttl: x")
	reload(http.StatusUnprocessableEntity)
	w.Edit("max_ttl: x", "max_ttl: ") // the checks at the end of the test read the file
	stop()
	text := log.String()
	line := func(msg string) string {
		t.Helper()
		for l := range strings.Lines(text) {
			if strings.Contains(l, `msg=`+msg) || strings.Contains(l, `msg="`+msg) {
				return l
			}
		}
		t.Fatalf("no line %q in:\n%s", msg, text)
		return ""
	}
	for _, want := range []string{"version=", "commit=", "file=" + w.ConfigFile(), "revision=", "store=sqlite:" + w.Path("broker.db"), listeners[0].Addr().String(), w.AdminSocket()} {
		if !strings.Contains(line("started"), want) {
			t.Errorf("the line of the start lacks %q: %s", want, line("started"))
		}
	}
	for _, want := range []string{"by=admin-socket/", "revision="} {
		if !strings.Contains(line("reloaded"), want) {
			t.Errorf("the line of a reload lacks %q: %s", want, line("reloaded"))
		}
	}
	for _, want := range []string{"level=ERROR", "by=admin-socket/", "broker.yaml:"} {
		if !strings.Contains(line("reload refused"), want) {
			t.Errorf("the line of a refused reload lacks %q: %s", want, line("reload refused"))
		}
	}
	line("shutting down")
	line("stopped")
}

func TestWaitingRequestsAreBoundedByTheFile(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.Edit("  seal_keys:", "  admission: {waiting_requests: 1}\n  seal_keys:")
	w.StartIdentities()
	w.Start(io.Discard)
	ask := api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:close"}, Justification: "duplicates"}
	agent := w.Agent()
	if _, err := agent.Ask(t.Context(), ask); err != nil {
		t.Fatal(err)
	}
	ask.Justification = "others"
	if _, err := agent.Ask(t.Context(), ask); !errors.Is(err, api.TooManyPending) {
		t.Errorf("got error %v, want %v", err, api.TooManyPending)
	}
}

// Too low a limit of open files shows at the start, not when the connections fail.
func TestStartWarnsOfTooFewOpenFiles(t *testing.T) {
	for connections, want := range map[string]bool{"16": false, "2147483000": true} {
		w := brokertest.NewWorld(t)
		w.Edit("server:\n", "server:\n  limits: {connections: "+connections+"}\n")
		w.StartIdentities()
		var log bytes.Buffer
		_, stop := w.Start(&log)
		stop()
		text := log.String()
		if got := strings.Contains(text, "the limit of open files is too low"); got != want || want && !strings.Contains(text, "needed=2147483256") {
			t.Errorf("%s connections: got a warning: %t, want %t, in the log\n%s", connections, got, want, text)
		}
	}
}
