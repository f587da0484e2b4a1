package audit

import (
	"strings"
	"testing"
)

const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// The examples and rules of W3C Trace Context, section 3.2.
func TestParseTrace(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{ // want: as version 00; empty: invalid
		traceparent: traceparent,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00":              "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff":              "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff",
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":              traceparent,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-follows": traceparent,

		"": "",
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what":                        "",
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-" + strings.Repeat("x", 300): "",
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":                             "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what":                        "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ":                            "",
		" 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0":                             "",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01":                             "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01":                             "",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01":                             "",
		"00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01":                             "",
		"00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01":                             "",
		"0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":                             "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7":                                "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0\n":                            "",
		traceparent + "," + traceparent:                                                       "",
	} {
		trace, ok := ParseTrace(text)
		if ok != (want != "") || ok && trace.String() != want || !ok && !trace.IsZero() {
			t.Errorf("%q: got %s, %t, want %q", text, trace, ok, want)
		}
	}
}

// A record without a trace keeps its bytes, and a record with one has it in one form.
func TestRecordHasTrace(t *testing.T) {
	t.Parallel()
	plain := Record{Time: someTime, Kind: LeaseIssued}
	traced := plain
	traced.Trace, _ = ParseTrace(traceparent)
	without, with := string(mustEntry(t, plain).Leaf()), string(mustEntry(t, traced).Leaf())
	if want := strings.Replace(without, `,"v":`, `,"traceparent":"`+traceparent+`","v":`, 1); with != want || strings.Contains(without, "trace") {
		t.Errorf("got %s, want %s", with, want)
	}
	if got, err := Decode([]byte(with)); err != nil || got.Trace != traced.Trace {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"cc" + traceparent[2:], strings.ToUpper(traceparent), traceparent + "-x", "", "x"} {
		if _, err := Decode([]byte(strings.Replace(with, traceparent, bad, 1))); err == nil {
			t.Errorf("the trace %q is accepted", bad)
		}
	}
}

// A trace that ParseTrace accepts has one form, which it accepts too.
func FuzzParseTrace(f *testing.F) {
	f.Add(traceparent)
	f.Add("cc" + traceparent[2:] + "-x")
	f.Fuzz(func(t *testing.T, text string) {
		trace, ok := ParseTrace(text)
		if !ok {
			return
		}
		again, ok := ParseTrace(trace.String())
		if !ok || again != trace || len(trace.String()) != traceLength || trace.String()[3:] != text[3:traceLength] {
			t.Errorf("%q: got %s and %s, %t", text, trace, again, ok)
		}
	})
}
