package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker/evidence"
)

// Every figure of a report is the number of records that it names, and its samples are
// records of the log.
func TestEvidenceIsInTheLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.withoutScanLimit()
	ctx, me := t.Context(), w.as(agent)
	must[*api.Credential](t)(me.Collect(ctx, must[*api.Request](t)(me.Ask(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}})).ID))
	if err := w.as(operator).Block(ctx, api.BlockChange{Selector: api.Selector{Holder: other}, Reason: "a leaked key", Unmatched: true}); err != nil {
		t.Fatal(err)
	}
	w.publish(t)
	q := api.EvidenceQuery{Framework: "owasp-nhi-2025", Since: "1h"}
	for _, who := range []string{agent, other} {
		if _, err := w.as(who).Evidence(ctx, q); !errors.Is(err, api.Denied) && !errors.Is(err, api.Blocked) {
			t.Errorf("%s: %v", who, err)
		}
	}
	r := must[*api.EvidenceReport](t)(w.as(auditor).Evidence(ctx, q))
	checked := 0
	for _, c := range r.Controls {
		for _, f := range c.Figures {
			if f.Name != "blocks" && f.Name != "issued" {
				continue
			}
			if checked++; f.Value != 1 || len(f.Samples) != 1 {
				t.Errorf("%s %s: %+v", c.ID, f.Name, f)
				continue
			}
			record := must[*api.AuditRecord](t)(w.as(auditor).AuditRecord(ctx, f.Samples[0]))
			kind := regexp.MustCompile(`"kind":"(lease.issued|block.placed)"`).FindSubmatch(record.Leaf)
			if kind == nil || f.Count[0].Kind[0] != string(kind[1]) {
				t.Errorf("%s: record %d is %s", f.Name, f.Samples[0], record.Leaf)
			}
		}
	}
	if checked < 3 {
		t.Errorf("checked %d figures", checked)
	}
	// The same size and period have the same bytes, whatever happens later.
	q = api.EvidenceQuery{Framework: r.Framework, From: r.From, To: r.To, Size: r.Log.Size}
	before := must[[]byte](t)(w.as(auditor).EvidenceMarkdown(ctx, q))
	if !bytes.Contains(before, []byte(r.Reproduce)) || !bytes.Contains(before, []byte(r.Log.Root)) {
		t.Errorf("got %s", before)
	}
	must[*api.Credential](t)(me.Collect(ctx, must[*api.Request](t)(me.Ask(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}})).ID))
	w.publish(t)
	if after := must[[]byte](t)(w.as(auditor).EvidenceMarkdown(ctx, q)); !bytes.Equal(before, after) {
		t.Errorf("the report changed:\n%s\n%s", before, after)
	}
	w.checkEvidenceQueries(t)
}

// publish saves a signed checkpoint over the whole log.
func (w *world) publish(t *testing.T) {
	t.Helper()
	size := w.store.Head().Size
	signed := must[[]byte](t)(w.cfg.Log.Checkpoint(t.Context()))
	if err := w.store.SaveCheckpoint(t.Context(), size, signed); err != nil || size != w.store.Head().Size {
		t.Fatalf("saving a checkpoint of %d records: %v", size, err)
	}
}

// checkEvidenceQueries makes calls with mistakes.
func (w *world) checkEvidenceQueries(t *testing.T) {
	t.Helper()
	for name, q := range map[string]api.EvidenceQuery{
		"unknown framework":   {Framework: "iso-27001"},
		"no framework":        {},
		"length without unit": {Framework: "nist-csf-2.0", Since: "90"},
		"negative length":     {Framework: "nist-csf-2.0", Since: "-1d"},
		"length overflows":    {Framework: "nist-csf-2.0", Since: "99999999999d"},
		"two starts":          {Framework: "nist-csf-2.0", Since: "1d", From: time.Unix(0, 0)},
		"end before start":    {Framework: "nist-csf-2.0", From: time.Unix(3600, 0), To: time.Unix(0, 0)},
		"size above the log":  {Framework: "nist-csf-2.0", Size: 1 << 40},
	} {
		lax := *w
		lax.spec = w.spec.answersOnly()
		if _, err := lax.as(auditor).Evidence(t.Context(), q); !errors.Is(err, api.InvalidRequest) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// The types of the client have every field of a report.
func TestEvidenceTypesAreComplete(t *testing.T) {
	figure := evidence.FigureReport{Name: "n", Text: "t", Value: 1, Unit: "events", Records: 1, Samples: []int64{1}, Count: []evidence.Selector{{
		Kind: []string{"k"}, Caller: []string{"c"}, Method: []string{"m"}, Outcome: []string{"o"}, Cause: []string{"c"}, About: []string{"a"}, Source: []string{"s"},
		Type: []string{"t"}, Revocation: []string{"r"}, Lifetime: []string{"l"}, With: []string{"w"}, Without: []string{"w"},
	}}}
	want := evidence.Report{
		Framework: "f", Title: "t", Revision: "r", Source: "s", From: time.Unix(1, 0).UTC(), To: time.Unix(2, 0).UTC(), Reproduce: "c",
		Log: evidence.Basis{Origin: "o", Size: 1, Root: audit.Digest{1}, First: 1, Count: 1},
		Controls: []evidence.ControlReport{{
			ID: "i", Title: "t", State: evidence.HasEvidence, Shows: []string{"s"}, Figures: []evidence.FigureReport{figure}, Exceptions: []evidence.FigureReport{figure},
			Records:    []evidence.SampleRecord{{Index: 1, Time: time.Unix(3, 0).UTC(), Kind: "k", Who: "w", About: "a", Outcome: "o", LeafHash: audit.Digest{2}}},
			OutOfScope: []string{"o"},
		}},
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var got api.EvidenceReport
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(got); err != nil || !bytes.Equal(again, text) {
		t.Errorf("got %s\nwant %s (%v)", again, text, err)
	}
}

// A hostileHistory has records with hostile names, as many as a page can show.
type hostileHistory struct {
	History
	leaf []byte
}

func (h hostileHistory) Tally(context.Context, evidence.Query) (evidence.Tally, evidence.Basis, error) {
	tally := evidence.Tally{}
	index := int64(0)
	for _, kind := range audit.Kinds() {
		for _, outcome := range []string{"", "denied", "deny", "approve", "revoked", "fact_ended", "blocked", "active", "ended"} {
			for _, about := range []string{"", "supplier", "person", "agent", "ticket"} {
				for range 3 {
					index++
					s := audit.Sample{Traits: audit.Traits{Kind: kind, Outcome: outcome, About: about, Caller: "agent", Method: "x509-svid", Reason: true, BreakGlass: true, Approvals: true}, Events: 1e9}
					tally.Add(1e9+index, audit.LeafHash([]byte(fmt.Sprint(index))), s)
				}
			}
		}
	}
	return tally, evidence.Basis{Origin: hostile, Size: 2e9, First: 1e9, Count: 1e9}, nil
}

func (h hostileHistory) Record(_ context.Context, index int64) (audit.Item, error) {
	return audit.Item{Index: index, Leaf: h.leaf}, nil
}

// However much there is to show, the page is small, escapes every text, and works for
// auditors alone.
func TestEvidencePage(t *testing.T) {
	t.Parallel()
	long := "spiffe://acme.test/" + strings.Repeat("a", 200)
	entry, err := audit.Record{Kind: audit.LeaseIssued, Caller: &audit.Party{ID: hostile + long, Kind: "agent"}, Lease: &audit.LeaseFacts{ID: "lse_" + hostile}}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	entry.SetTime(time.Now())
	w := newWorld(t, func(c *Config) { withPeople(c); c.History = hostileHistory{c.History, bytes.Clone(entry.Leaf())} })
	w.withoutScanLimit()
	cleo := newBrowser(t, w)
	cleo.logIn("login/cleo", "/ui/")
	if status, _, _ := cleo.visit(http.MethodGet, "/ui/evidence", ""); status != http.StatusForbidden {
		t.Errorf("a person who may not audit: %d", status)
	}
	ada := newBrowser(t, w)
	ada.logIn(auditingPerson, "/ui/")
	for _, f := range []string{"owasp-nhi-2025", "owasp-asi-2026", "nist-csf-2.0", "nist-csf-1.1"} {
		status, _, page := ada.visit(http.MethodGet, "/ui/evidence?framework="+f, "")
		if status != http.StatusOK || len(page) > 100_000 {
			t.Errorf("%s: got %d and %d bytes %s", f, status, len(page), w.log)
		}
		if strings.Contains(page, "<script>alert") || strings.Contains(page, "<b>") || regexp.MustCompile(`<[^>]* style=`).MatchString(page) {
			t.Errorf("%s: a text is not escaped, or a style attribute", f)
		}
		status, _, text := ada.visit(http.MethodGet, "/ui/evidence?format=markdown&framework="+f, "")
		if status != http.StatusOK || !strings.HasPrefix(text, "# Evidence: ") || strings.Contains(text, "| <") || regexp.MustCompile(`[^\\]<script`).MatchString(text) {
			t.Errorf("%s: got %d %s", f, status, text)
		}
	}
	for path, want := range map[string]string{
		"/ui/evidence?framework=x":                       "There is no such framework",
		"/ui/evidence?framework=nist-csf-2.0&since=-1d":  "The length of a period is",
		"/ui/evidence?framework=nist-csf-2.0":            `href="#PR.AA-06"`,
		"/ui/evidence?framework=owasp-asi-2026&since=7d": "No evidence: this control is out of scope.",
	} {
		if _, _, page := ada.visit(http.MethodGet, path, ""); !strings.Contains(strings.ToLower(page), strings.ToLower(want)) {
			t.Errorf("%s: the page lacks %q\n%s", path, want, page)
		}
	}
}
