package server

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// The end of a call: its metrics and its log event.

// end logs and counts the call. A panic becomes a 500 without detail, or closes the
// connection if part of the response has been sent: the client must not take that
// part for the whole.
func (c *call) end(answer reply, panicked any) {
	if panicked != nil {
		c.s.cfg.Metrics.panics.Inc()
		c.s.cfg.Logger.Error("panic", "call_id", c.id, "route", c.route.path, "panic", panicText(panicked), "stack", string(debug.Stack()))
		answer = c.fail(errPanicked)
		if c.w.status == 0 {
			c.write(c.w, answer)
		} else {
			defer panic(http.ErrAbortHandler)
		}
	}
	took := time.Since(c.now)
	code := answer.code
	if code == "" {
		code = "ok"
	}
	c.s.cfg.Metrics.answered(c.route.path, c.r.Method, string(code), took)
	var attrs [12]slog.Attr // on the stack
	c.s.cfg.Logger.LogAttrs(c.r.Context(), c.level(answer), "request", c.appendAttrs(attrs[:0], answer, code, took)...)
}

// level returns the log level: errors of the broker, warnings for faults of the
// client.
func (c *call) level(answer reply) slog.Level {
	switch m := errorRowOf(answer.err); {
	case answer.err == nil && c.route.foreign && c.w.status >= http.StatusInternalServerError:
		return slog.LevelError
	case answer.err == nil && c.route.foreign && c.w.status >= http.StatusBadRequest:
		return slog.LevelWarn
	case c.route.health && c.w.status < http.StatusBadRequest:
		return slog.LevelDebug // every few seconds
	case c.route.health:
		return slog.LevelWarn
	case answer.err == nil || m.err == broker.ErrPending || m.err == broker.ErrUseDPoPNonce: // normal for a caller that polls, or that begins
		return slog.LevelInfo
	case m.fault == serverFault:
		return slog.LevelError
	}
	return slog.LevelWarn
}

// panicText returns the text of a runtime error. Other panic values may contain
// secrets, so only their type is logged.
func panicText(panicked any) string {
	if err, ok := panicked.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", panicked)
}

// appendAttrs appends the attributes of the log event. They never contain a token, a
// body or the value of a query parameter.
func (c *call) appendAttrs(attrs []slog.Attr, answer reply, code api.Code, took time.Duration) []slog.Attr {
	attrs = append(attrs,
		slog.String("call_id", c.id), slog.String("method", knownMethod(c.r.Method)), slog.String("route", c.route.path),
		slog.Int("status", c.w.status), slog.String("code", string(code)), slog.Float64("took_ms", float64(took.Microseconds())/1000),
	)
	if c.from.IsValid() { // the admin socket has no address
		attrs = append(attrs, slog.String("from", c.from.String()))
	}
	if c.who.ID != "" {
		attrs = append(attrs, slog.String("identity", c.who.ID), slog.String("proved_by", string(c.who.Proof.Method)))
	}
	if c.about != "" {
		attrs = append(attrs, slog.String("about", c.about))
	}
	if theirID := clientCallID(c.r.Header); theirID != "" {
		attrs = append(attrs, slog.String("client_call_id", theirID))
	}
	if !c.trace.IsZero() { // names of the OpenTelemetry log data model
		attrs = append(attrs, slog.String("trace_id", hex.EncodeToString(c.trace.TraceID[:])), slog.String("span_id", hex.EncodeToString(c.trace.SpanID[:])))
	}
	// For other client faults the code suffices, and the text may repeat parts of
	// the body.
	if answer.err != nil && (c.unproved || errorRowOf(answer.err).fault == serverFault) {
		attrs = append(attrs, slog.String("error", answer.err.Error()))
	}
	return attrs
}

// printable reports whether s consists of visible ASCII characters and spaces.
func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) < 0
}

// knownMethod bounds the values of methods in logs and labels.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}
