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

// What names a request is shown, and the ends of its leases, which name those
// alone; nobody else's.
func TestRecordsOfARequest(t *testing.T) {
	named := naming("req_1")
	for _, test := range []struct {
		of             string
		request, lease string
		want           bool
	}{
		{"another's lease", "req_2", "lse_2", false},
		{"its own lease", "req_1", "lse_1", true},
		{"the end of another's lease", "", "lse_2", false},
		{"the end of its lease", "", "lse_1", true},
		{"nobody's", "", "", false},
	} {
		r := audit.Record{Kind: audit.LeaseIssued}
		if test.request != "" {
			r.Request = &audit.RequestFacts{ID: test.request}
		}
		if test.lease != "" {
			r.Lease = &audit.LeaseFacts{ID: test.lease}
		}
		entry, err := r.Entry()
		if err != nil {
			t.Fatal(err)
		}
		if got := named(audit.Item{Leaf: entry.Leaf()}, r); got != test.want {
			t.Errorf("%s: shown %t, want %t", test.of, got, test.want)
		}
	}
}
