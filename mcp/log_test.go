package mcp_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"accessbroker.internal/mcp"
)

// What a client sends is no fault of the program: the log has no warning about it, and no
// entry for each call.
func TestClientsCannotFillTheLog(t *testing.T) {
	t.Parallel()
	log := new(lockedLog)
	s := mcp.New(mcp.Config{Logger: slog.New(slog.NewTextHandler(log, nil))})
	gate := &mcp.Gate{Next: s.Handler(func(*http.Request) mcp.Broker { return struct{ mcp.Broker }{} }), Scopes: func(*http.Request) ([]string, bool) { return nil, false }}
	answered := 0
	for _, version := range []string{"2026-07-28", "2025-11-25"} {
		for _, method := range []string{"tools/list", "initialize", "notifications/initialized", "ping", "logging/setLevel", "resources/subscribe", "access/approve"} {
			meta := ""
			if version == "2026-07-28" {
				meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`
			}
			id := `"id":1,`
			if strings.HasPrefix(method, "notifications/") {
				id = ""
			}
			r := httptest.NewRequest(http.MethodPost, "/mcp", strings.NewReader(`{"jsonrpc":"2.0",`+id+`"method":"`+method+`","params":{`+meta+`}}`))
			r.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}, "Mcp-Protocol-Version": {version}, "Mcp-Method": {method}}
			w := httptest.NewRecorder()
			if gate.ServeHTTP(w, r); w.Code > 0 {
				answered++
			}
		}
	}
	if text := log.String(); text != "" || answered != 14 {
		t.Errorf("%d answers; got the log\n%s", answered, text)
	}
}
