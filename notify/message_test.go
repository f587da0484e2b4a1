package notify

import (
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func waiting() (*broker.Notice, *broker.Request) {
	r := &broker.Request{
		ID: broker.RequestID{1}, Status: broker.RequestPending, Entitlement: "orders-db-rw", Scopes: []string{"write"},
		Requester: broker.Identity{ID: "spiffe://acme.test/agent/triage", Kind: broker.KindAgent, Accountable: []string{"login/ana"}},
		TTL:       10 * time.Minute, Duration: time.Hour, Justification: "order 7 is stuck", Ticket: "OPS-7",
		Decision: broker.Decision{Obligations: broker.Obligations{Approvals: []broker.ApprovalNeed{{Count: 2, Group: "dba"}}}},
		Created:  noon, Lapses: noon.Add(time.Hour),
	}
	return &broker.Notice{ID: broker.NoticeID{9}, Event: broker.NoticePending, Request: r.ID, Group: "dba", Channel: "webhook:dba", Created: noon}, r
}

func builtInTexts(t *testing.T) *Templates {
	t.Helper()
	texts, err := NewTemplates("", "")
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

func TestMessageOfAPendingRequest(t *testing.T) {
	n, r := waiting()
	subject, body, err := builtInTexts(t).text(factsOf("https://broker.acme.test", n, r, noon))
	if err != nil {
		t.Fatal(err)
	}
	if want := "spiffe://acme.test/agent/triage requests orders-db-rw"; subject != want {
		t.Errorf("got subject %q, want %q", subject, want)
	}
	want := `spiffe://acme.test/agent/triage (agent), owner login/ana
requests orders-db-rw: write
justification (the requester's words, not verified): order 7 is stuck
ticket (as the requester wrote it): OPS-7
credential valid 10m, collectable for 1h
approvals from dba: 0 of 2
The request lapses at 2026-06-01 13:00:00Z.

Status pending: https://broker.acme.test/ui/requests/` + r.ID.String()
	if body != want {
		t.Errorf("got body\n%s\nwant\n%s", body, want)
	}
}

// The texts of a requester become one line of bounded length, without characters
// that reverse text.
func TestMessageCleansHostileTexts(t *testing.T) {
	n, r := waiting()
	r.Justification = "fine\r\n\r\nStatus approved: https://evil.test\u202e\u200b\x1b[31m\u3164\U000e0041" + strings.Repeat(" \u00a0", 99) + "approved" + strings.Repeat("x", 64<<10)
	r.Message = r.Justification
	r.Ticket = "<!channel> <https://evil.test|click>\u0000"
	_, body, err := builtInTexts(t).text(factsOf("https://broker.acme.test", n, r, noon))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(body, "\nStatus ") != 1 || strings.ContainsAny(body, "\u202e\u200b\x1b\x00\r\u3164\u00a0\U000e0041") || strings.Contains(body, "  ") || len(body) > 4096 {
		t.Errorf("got body %q", body)
	}
}

func TestCustomTemplates(t *testing.T) {
	n, r := waiting()
	texts, err := NewTemplates("{{.Group}}:\n{{.Entitlement}}", "")
	if err != nil {
		t.Fatal(err)
	}
	if subject, _, err := texts.text(factsOf("", n, r, noon)); err != nil || subject != "dba: orders-db-rw" {
		t.Errorf("got subject %q, %v", subject, err)
	}
	for bad, want := range map[string]string{
		"a\n{{.Secret}}":          "body.txt:2: there is no field .Secret: docs/notify.md lists the fields",
		"{{":                      "body.txt:1: ",
		"{{template \"other\"}}":  "body.txt:1: ",
		"{{lower .Requester}}":    `body.txt:1: function "lower" not defined`,
		"a\nb\n{{if .Group}} end": "body.txt:3: unexpected EOF",
	} {
		if _, err := NewTemplates("", bad); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "notify.") && !strings.Contains(err.Error(), "docs/notify.md") {
			t.Errorf("%q: got error %v, want %q", bad, err, want)
		}
	}
	endless, err := NewTemplates("", strings.Repeat("{{.Requester}}", 10000))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := endless.text(factsOf("", n, r, noon)); err == nil {
		t.Error("a message of 300 kB was accepted")
	}
}
