package main

import (
	"context"
	"iter"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
)

// Text in a forged log can't move the cursor or start a line.
func TestHostileLog(t *testing.T) {
	const hostile = "x\x1b[1A\x1b[2Kverified\tall checks passed\nlog\u202e"
	report := &verify.Report{
		Origin: hostile, Key: hostile, Records: 1, Kinds: map[audit.Kind]int64{hostile: 1},
		Problems: []verify.Problem{{Index: 0, Kind: hostile, What: hostile}},
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

// The row of a record names the person for whom the caller acts, or the caller alone.
func TestRecordLineNamesTheSubject(t *testing.T) {
	record := audit.Record{Kind: audit.LeaseIssued, Caller: &audit.Party{ID: "spiffe://acme.test/agent/triage"}, Lease: &audit.LeaseFacts{ID: "lse_1"}}
	if line := recordLine(audit.Item{}, record); !strings.Contains(line, "\tspiffe://acme.test/agent/triage\t") {
		t.Errorf("for itself: %q", line)
	}
	record.Subject = &audit.Party{ID: "login/ana\x1b"}
	if line := recordLine(audit.Item{}, record); !strings.Contains(line, "\tspiffe://acme.test/agent/triage for login/ana") || strings.Contains(line, "\x1b") {
		t.Errorf("for Ana: %q", line)
	}
}

// Records about a request include the ends of its leases, which name only the lease.
func TestRecordsOfARequest(t *testing.T) {
	isAbout := recordsAbout("req_1")
	for _, test := range []struct {
		of             string
		request, lease string
		want           bool
	}{
		{"another's lease", "req_2", "lse_2", false},
		{"its own lease", "req_1", "lse_1", true},
		{"the end of another's lease", "", "lse_2", false},
		{"the end of its lease", "", "lse_1", true},
		{"neither request nor lease", "", "", false},
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
		if got := isAbout(audit.Item{Leaf: entry.Leaf()}, r); got != test.want {
			t.Errorf("%s: got %t, want %t", test.of, got, test.want)
		}
	}
}

// written is a log of these records.
type written []audit.Record

func (written) Header(context.Context) (audit.Header, error) { return audit.Header{}, nil }

func (l written) Items(context.Context) iter.Seq2[audit.Item, error] {
	return func(yield func(audit.Item, error) bool) {
		for i, r := range l {
			entry, err := r.Entry()
			if err != nil {
				yield(audit.Item{}, err)
				return
			}
			entry.SetTime(time.Date(2026, 11, 24, 12, 0, i, 0, time.UTC))
			if !yield(audit.Item{Index: int64(i), Leaf: entry.Leaf()}, nil) {
				return
			}
		}
	}
}

func TestRecordsAreShownInColumns(t *testing.T) {
	caller := &audit.Party{ID: "spiffe://acme.test/agent/triage"}
	log := written{
		{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: "broker.acme.test/log/1a2b3c4d"}},
		{Kind: audit.RequestDenied, Caller: caller, Count: 3, Request: &audit.RequestFacts{Entitlement: "db"}, Decision: &audit.DecisionFacts{Code: "denied"}},
		{Kind: audit.RequestCreated, Caller: caller, Request: &audit.RequestFacts{ID: "req_1", Entitlement: "tickets", Scopes: []string{"close", "read"}}},
	}
	show := func(last int64) (string, string) {
		var out, errs strings.Builder
		a := &app{terminal: terminal{out: &out, err: &errs}}
		if err := a.showRecords(t.Context(), log, func(item audit.Item, _ audit.Record) bool { return item.Index < 3-last*3 || last == 1 }, last); err != nil {
			t.Fatal(err)
		}
		return out.String(), errs.String()
	}
	const want = `0  2026-11-24 12:00:00.000Z  log.opened       -                                -                   -      -
1  2026-11-24 12:00:01.000Z  request.denied   spiffe://acme.test/agent/triage  db                  -      denied ×3
2  2026-11-24 12:00:02.000Z  request.created  spiffe://acme.test/agent/triage  tickets close read  req_1  -
`
	if got, _ := show(0); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, _ := show(1); !strings.HasPrefix(got, "2 ") || strings.Count(got, "\n") != 1 {
		t.Errorf("the last record: got %q", got)
	}
	if got, errs := show(2); got != "" || errs != "no records\n" {
		t.Errorf("no records: got %q, %q", got, errs)
	}
}
