package main

import (
	"strings"
	"testing"

	"accessbroker.internal/audit"
)

// A log that somebody made up moves no cursor and begins no line of its own.
func TestAHostileLogIsShownPlainly(t *testing.T) {
	const hostile = "x\x1b[1A\x1b[2Kverified\teverything holds\nlog\u202e"
	report := &audit.Report{
		Origin: hostile, Key: hostile, Records: 1, Kinds: map[audit.Kind]int64{hostile: 1},
		Problems: []audit.Problem{{Index: 0, Kind: hostile, What: hostile}},
	}
	var out strings.Builder
	writeReport(&out, report)
	record := recordLine(audit.Item{}, audit.Record{
		Kind: hostile, Caller: &audit.Party{ID: hostile}, Request: &audit.RequestFacts{Entitlement: hostile, Scopes: []string{hostile}},
		Lease: &audit.LeaseFacts{ID: hostile}, End: &audit.EndFacts{How: hostile},
	})
	for name, text := range map[string]string{"report": out.String(), "record": record} {
		if strings.ContainsAny(text, "\x1b\u202e") || strings.Contains(text, "\nlog\\u202e") || name == "record" && strings.Contains(text, "\n") {
			t.Errorf("%s: %q", name, text)
		}
	}
	if !strings.Contains(out.String(), "signed\tnothing") {
		t.Errorf("the report: %q", out.String())
	}
}
