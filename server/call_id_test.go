package server

import (
	"strings"
	"testing"
	"time"
)

func TestCallID(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(0x0123456789ab)
	a, b := newCallID(now), newCallID(now)
	if a == b || len(a) != 36 || !strings.HasPrefix(a, "01234567-89ab-7") || !strings.ContainsRune("89ab", rune(a[19])) {
		t.Errorf("got %s and %s, want two UUIDs of version 7", a, b)
	}
}

// The answer has the client's X-Request-Id if that has a common form, otherwise the
// broker's own.
func TestClientCallIDIsInAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for _, path := range []string{"/v1/whoami", "/oauth2/token", "/nope", "/healthz"} {
		for _, id := range []string{"theirs-1", "4bf92f3577b34da6a3ce929d0e0e4736", "Root=1-67891233-abcdef012345678912345678", "a.b_c~d:e/f+g@h", strings.Repeat("x", maxCallID)} {
			if got := w.raw("GET", path, "X-Request-Id", id).Header.Get("X-Request-Id"); got != id {
				t.Errorf("%s: got %q, want %q", path, got, id)
			}
		}
		for _, ids := range [][]string{nil, {""}, {"two words"}, {"a\tb"}, {`"quoted"`}, {"<b>"}, {"a,b"}, {"größer"}, {"a;b"}, {strings.Repeat("x", maxCallID+1)}, {"one", "two"}, {"same", "same"}} {
			var header []string
			for _, id := range ids {
				header = append(header, "X-Request-Id", id)
			}
			got := w.raw("GET", path, header...).Header.Values("X-Request-Id")
			if len(got) != 1 || len(got[0]) != 36 {
				t.Errorf("%s: sent %q, got %q, want an ID of the broker's own", path, ids, got)
			}
		}
	}
	if !strings.Contains(w.log.String(), "client_call_id=theirs-1") || strings.Contains(w.log.String(), "two words") {
		t.Errorf("the log has not exactly the valid IDs:\n%s", w.log)
	}
}

// A valid traceparent is in the log event and in the records of the call; an invalid one
// has no effect.
func TestTraceReachesLogAndRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const traceID, spanID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	const valid = "00-" + traceID + "-" + spanID + "-01"
	collect := func(header ...string) string {
		t.Helper()
		resp := w.do("POST", "/v1/credentials", "application/json", `{"entitlement":"tickets","scopes":["tickets:read"]}`, append([]string{"Authorization", "Bearer " + agent}, header...)...)
		if resp.StatusCode != 200 && resp.StatusCode != 201 {
			t.Fatalf("got %s %s", resp.Status, w.body(resp))
		}
		record, err := w.store.Record(t.Context(), w.store.Head().Size-1)
		if err != nil {
			t.Fatal(err)
		}
		return string(record.Leaf)
	}
	if leaf := collect("Traceparent", valid); !strings.Contains(leaf, `"traceparent":"`+valid+`"`) {
		t.Errorf("the record has no trace: %s", leaf)
	}
	for _, header := range [][]string{
		nil,
		{"Traceparent", strings.ToUpper(valid)},
		{"Traceparent", valid + "-more"},
		{"Traceparent", "00-" + strings.Repeat("0", 32) + "-" + spanID + "-01"},
		{"Traceparent", valid, "Traceparent", valid},
		{"Tracestate", "a=b"},
	} {
		if leaf := collect(header...); strings.Contains(leaf, "traceparent") {
			t.Errorf("%q: the record has a trace: %s", header, leaf)
		}
	}
	// A later transaction of the same trace is the end of a lease.
	_, answer, failed := w.post(credentials + "audience=tickets&scope=tickets:read")
	resp := w.do("POST", "/oauth2/revoke", "application/x-www-form-urlencoded", "token="+string(answer.AccessToken), "Authorization", "Bearer "+agent, "Traceparent", valid)
	record, err := w.store.Record(t.Context(), w.store.Head().Size-1)
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(record.Leaf), `"traceparent":"`+valid+`"`) {
		t.Errorf("revocation: got %s %s, %v (%+v)", resp.Status, record.Leaf, err, failed)
	}
	traced := 0
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, "trace_id="+traceID+" span_id="+spanID) {
			traced++
		} else if strings.Contains(line, "trace_id") {
			t.Errorf("an invalid trace is in the log: %s", line)
		}
	}
	if traced != 2 {
		t.Errorf("got %d traced log events, want 2:\n%s", traced, w.log)
	}
}
