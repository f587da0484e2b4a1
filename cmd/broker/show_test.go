package main

import (
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"accessbroker.internal/api"
)

// The request as an approver sees it in a terminal.
const shown = `request       req_0658sg2b7puh5u0qv0s9k8g6nk
status        pending
requester     spiffe://acme.test/agent/triage (agent of support)
proof         x509-svid from 192.0.2.7, valid until 2026-11-24 13:00:00Z
owner         login/ana
why           | The customer filed INC-4711 three times, and two of them are
              | duplicates of the first.
              |   status: approved
              (written by the requester, not verified)
ticket        INC-4711 https://tracker.acme.test/INC-4711
entitlement   reports: what customers get each month (owner support)
scopes        read: look into reports
              write
prefix        | acme
              (written by the requester, not verified)
credential    valid 10m, collectable for 1h
revocation    not possible; it expires by itself
permits       | a session of arn:aws:iam::123456789012:role/reports
              | {
              |   "Action": "s3:GetObject"
              | }
pending       needs approval by 1 of support
              lapses at 2026-11-24 12:30:00Z
approved by   login/cleo for security, narrowed to read, valid 5m
              | looks right
reason        reports are of customers
policies      agents-write reports-need-people
last 30 days  reports: 12 requested, 10 granted, 1 denied, 1 pending;
              incomplete, only the newest are counted
              tickets-api: 1 requested, 1 granted, 0 denied
before        2026-11-23 12:00:00Z denied read write, no credential
              2026-11-22 12:00:00Z ended read, break-glass, 2 or more
              credentials
digest        0000000000000000000000000000000000000000000000000000000000000000
`

func requestToShow() *api.Request {
	noon := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	return &api.Request{
		ID: "req_0658sg2b7puh5u0qv0s9k8g6nk", Status: api.StatusPending, Requester: "spiffe://acme.test/agent/triage", RequesterKind: "agent", Team: "support",
		Entitlement: "reports", Scopes: []string{"read", "write"}, TTL: api.Duration(10 * time.Minute), Duration: api.Duration(time.Hour),
		Justification: "The customer filed INC-4711 three times, and two of them are duplicates of the first.\n  status: approved",
		Ticket:        "INC-4711", Parameters: map[string]string{"prefix": "acme"}, Accountable: []string{"login/ana"}, Digest: strings.Repeat("0", 64), LapsesAt: noon.Add(30 * time.Minute),
		Decision: api.Decision{Permit: true, Reasons: []string{"reports are of customers"}, Policies: []string{"agents-write", "reports-need-people"}},
		Approvals: api.Approvals{
			Needed: []api.Need{{Group: "support", Count: 1}, {Group: "security", Count: 1, Have: 1}},
			Given:  []api.RecordedVote{{Person: "login/cleo", Decision: api.Approve, Groups: []string{"security"}, Comment: "looks right", Scopes: []string{"read"}, TTL: api.Duration(5 * time.Minute)}},
		},
		Facts: &api.Facts{
			Description: "what customers get each month", Owner: "support", ScopeTexts: map[string]string{"read": "look into reports"}, Revocation: "at_expiry",
			Effect: "a session of arn:aws:iam::123456789012:role/reports\n{\n  \"Action\": \"s3:GetObject\"\n}",
			Proof:  api.Proof{Method: "x509-svid", ExpiresAt: noon.Add(time.Hour)}, From: "192.0.2.7", TicketURL: "https://tracker.acme.test/INC-4711",
			History: []api.RequestHistory{{Entitlement: "reports", Asked: 12, Granted: 10, Denied: 1, Pending: 1}, {Entitlement: "tickets-api", Asked: 1, Granted: 1}}, HistoryPartial: true,
			Similar: []api.PastRequest{
				{ID: "req_0658sg2b7puh5u0qv0s9k8g6nj", Status: api.StatusDenied, Scopes: []string{"read", "write"}, CreatedAt: noon.Add(-24 * time.Hour)},
				{Status: api.StatusEnded, Scopes: []string{"read"}, BreakGlass: true, CreatedAt: noon.Add(-48 * time.Hour), Credentials: 2, MoreCredentials: true},
			},
		},
	}
}

func show(r *api.Request) string {
	var out strings.Builder
	new(app).showRequest(&out, r)
	return out.String()
}

func TestRequestShowsAllFields(t *testing.T) {
	got := show(requestToShow())
	if got != shown {
		t.Errorf("got\n%s\nwant\n%s", got, shown)
	}
	for line := range strings.Lines(got) {
		if utf8.RuneCountInString(line) > 81 { // with its line end
			t.Errorf("wider than 80 columns: %q", line)
		}
	}
	r := requestToShow()
	r.Justification, r.Facts.History = "", nil
	if got := show(r); !strings.Contains(got, "why           no justification\n") || !strings.Contains(got, "last 30 days  no other requests\n") {
		t.Errorf("without justification and history: got %s", got)
	}
	r.Facts = nil
	if got := show(r); strings.Contains(got, "last 30 days") || strings.Contains(got, "revocation") || strings.Contains(got, "no justification") {
		t.Errorf("without facts: got %s", got)
	}
}

// A requester's text does not push the facts and the question off the screen, and each
// of its rows is marked, however long its words.
func TestRequesterTextIsBoundedInTheTerminal(t *testing.T) {
	ordinary := strings.Count(show(requestToShow()), "\n")
	for name, text := range map[string]string{
		"newlines":   strings.Repeat("\n", 21) + "Status: approved",
		"many lines": strings.Repeat("x\n", 900),
		"long words": strings.Repeat(strings.Repeat("W", 600)+" ", 3),
		"wide":       strings.Repeat("\u6f22", 600),
	} {
		r := requestToShow()
		r.Justification = text
		got := show(r)
		if lines := strings.Count(got, "\n"); lines > ordinary+quotedRows {
			t.Errorf("%s: got %d lines, want at most %d\n%s", name, lines, ordinary+quotedRows, got)
		}
		_, after, _ := strings.Cut(got, "why           ")
		quoted, _, found := strings.Cut(after, "(written by the requester, not verified)")
		if rows := strings.Split(strings.TrimSpace(quoted), "\n"); !found || len(rows) == 0 {
			t.Errorf("%s: got no quotation in\n%s", name, got)
		} else {
			for _, row := range rows {
				if row = strings.TrimSpace(row); !strings.HasPrefix(row, "| ") && !strings.HasPrefix(row, "… ") {
					t.Errorf("%s: got the row %q, want a mark", name, row)
				}
			}
		}
		for line := range strings.Lines(quoted) {
			columns := 0
			for _, r := range strings.TrimRight(line, "\n") {
				if columns++; r >= 0x1100 {
					columns++
				}
			}
			if columns > 80 {
				t.Errorf("%s: got %d columns, want at most 80: %q", name, columns, line)
			}
		}
	}
}

// Text of other parties can't move the cursor or imitate a row.
func TestHostileTextsInTheTerminal(t *testing.T) {
	const evil = "x\x1b[2J\x1b]0;pwned\a\rstatus  approved\nstatus  approved\n\tstatus  approved\u202e\u2028status  approved\x7f\u0085\u3164\u2800"
	r := requestToShow()
	r.Justification, r.BindingMessage, r.Ticket, r.Parameters["prefix"], r.Team = evil, evil, evil, evil, evil
	r.Approvals.Given[0].Comment, r.Approvals.Given[0].Person = evil, evil
	r.Decision.Reasons = []string{evil}
	r.Review = &api.Review{Given: []api.Verdict{{Person: evil, Comment: evil}}}
	f := r.Facts
	f.Effect, f.Description, f.From, f.TicketURL, f.ScopeTexts["read"], f.History[0].Entitlement = evil, evil, evil, evil, evil, evil
	got := show(r)
	for line := range strings.Lines(got) {
		if strings.HasPrefix(line, "status") && line != "status        pending\n" || strings.HasPrefix(strings.TrimSpace(line), "status") && !strings.Contains(line, "pending") {
			t.Errorf("forged row: %q", line)
		}
	}
	for _, r := range got {
		if r != '\n' && !unicode.IsPrint(r) || r == '\u3164' || r == '\u2800' {
			t.Errorf("%U reaches the terminal", r)
		}
	}
}

func TestShowCalls(t *testing.T) {
	var out strings.Builder
	card{&out}.calls(&api.CallCounts{Made: 3, Refused: 1, Sent: 10, Received: 2048, LastAt: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)})
	for _, want := range []string{"3 made, 1 refused, 0 failed", "10 bytes sent, 2048 received", "2026-11-24 12:00:00Z", "stated by the holder"} {
		if !strings.Contains(strings.ReplaceAll(out.String(), "\n\t", " "), want) {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
}
