package mcp_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/mcp"
)

// A panic of a tool fails its call. The process, and the connection, serve the next one.
// The log has no panic value, which may be a secret.
func TestPanicEndsItsCallAlone(t *testing.T) {
	t.Parallel()
	log := new(lockedLog)
	cfg := mcp.Config{
		Logger: slog.New(slog.NewTextHandler(log, nil)),
		Extend: func(s *sdk.Server) {
			s.AddTool(&sdk.Tool{Name: "boom", InputSchema: object{"type": "object"}}, func(context.Context, *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
				panic("s3cr3t")
			})
		},
	}
	c := &raw{t: t, conn: serve(t, struct{ mcp.Broker }{}, cfg), caps: object{"extensions": object{tasks: object{}}}}
	for method, params := range map[string]object{
		"tools/call": callOf("boom", object{}),
		"tasks/get":  {"taskId": "req_00000000000000000000000000"}, // the broker of the caller is nil
	} {
		if err := c.refused(jsonrpc.CodeInternalError, method, params); err == nil || strings.Contains(err.Message, "s3cr3t") {
			t.Errorf("%s: got %v", method, err)
		}
	}
	if got := c.must("server/discover", object{}); got["supportedVersions"] == nil {
		t.Errorf("after the panics: got %v", got)
	}
	if text := log.String(); strings.Count(text, "msg=panic") != 2 || !strings.Contains(text, "nil pointer") || strings.Contains(text, "s3cr3t") {
		t.Errorf("got the log\n%s", text)
	}
}

// A lockedLog is a buffer for a logger.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
