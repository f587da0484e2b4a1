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

func TestMessage(t *testing.T) {
	n, r := waiting()
	subject, body, err := builtInTexts(t).text(factsOf("https://broker.acme.test", n, r, noon))
	if err != nil {
		t.Fatal(err)
	}
	if want := "spiffe://acme.test/agent/triage asks for orders-db-rw"; subject != want {
		t.Errorf("subject %q, not %q", subject, want)
	}
	want := `spiffe://acme.test/agent/triage (agent), answered for by login/ana
asked for orders-db-rw: write
because: order 7 is stuck
ticket: OPS-7
each credential lives for 10m, collected for 1h
approved by 0 of 2 of dba
It lapses at 2026-06-01 13:00:00Z.

It is pending: https://broker.acme.test/ui/requests/` + r.ID.String()
	if body != want {
		t.Errorf("body\n%s\nnot\n%s", body, want)
	}
}

// Whatever a requester writes stays one line of bounded length, and turns no
// text around.
func TestHostileTexts(t *testing.T) {
	n, r := waiting()
	r.Justification = "fine\r\n\r\nIt is approved: https://evil.test\u202e\u200b\x1b[31m" + strings.Repeat("x", 64<<10)
	r.Ticket = "<!channel> <https://evil.test|click>\u0000"
	_, body, err := builtInTexts(t).text(factsOf("https://broker.acme.test", n, r, noon))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(body, "\nIt is ") != 1 || strings.ContainsAny(body, "\u202e\u200b\x1b\x00\r") || len(body) > 4096 {
		t.Errorf("%q", body)
	}
}

func TestTemplatesOfTheOperator(t *testing.T) {
	n, r := waiting()
	texts, err := NewTemplates("{{.Group}}:\n{{.Entitlement}}", "")
	if err != nil {
		t.Fatal(err)
	}
	if subject, _, err := texts.text(factsOf("", n, r, noon)); err != nil || subject != "dba: orders-db-rw" {
		t.Errorf("%q, %v", subject, err)
	}
	for _, bad := range []string{"{{.Secret}}", "{{", "{{template \"other\"}}"} {
		if _, err := NewTemplates("", bad); err == nil {
			t.Errorf("%q is taken for a template", bad)
		}
	}
	endless, err := NewTemplates("", strings.Repeat("{{.Requester}}", 10000))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := endless.text(factsOf("", n, r, noon)); err == nil {
		t.Error("a message of 300 kB is sent")
	}
}
