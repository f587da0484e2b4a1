package api

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// An EvidenceReport states what the log proves about the controls of a framework in a
// period: the answer of GET /v1/evidence.
type EvidenceReport struct {
	Framework string            `json:"framework"`
	Title     string            `json:"title"`
	Revision  string            `json:"revision"`
	Source    string            `json:"source"` // the address of the framework's text
	From      time.Time         `json:"from"`
	To        time.Time         `json:"to"`
	Log       EvidenceLog       `json:"log"`
	Reproduce string            `json:"reproduce"` // the command that makes the same report
	Controls  []EvidenceControl `json:"controls"`
}

// An EvidenceLog states which records a report is about.
type EvidenceLog struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`  // records of the log that the report knows; a signed checkpoint covers them
	Root   string `json:"root"`  // hex: the root hash of the tree over them
	First  int64  `json:"first"` // index of the first record of the period
	Count  int64  `json:"count"` // records of the period
}

// An EvidenceControl is the evidence for a control of a framework.
type EvidenceControl struct {
	ID         string           `json:"id"`
	Title      string           `json:"title"`
	State      string           `json:"state"` // evidence, no_evidence, out_of_scope
	Shows      []string         `json:"shows,omitempty"`
	Figures    []EvidenceFigure `json:"figures,omitempty"`
	Exceptions []EvidenceFigure `json:"exceptions,omitempty"` // to explain
	Records    []EvidenceRecord `json:"records,omitempty"`    // samples of the figures
	OutOfScope []string         `json:"out_of_scope,omitempty"`
}

// An EvidenceFigure is a number that is read from the log.
type EvidenceFigure struct {
	Name    string             `json:"name"`
	Text    string             `json:"text"`
	Value   int64              `json:"value"`
	Unit    string             `json:"unit"`    // events, or ms of a longest lifetime
	Records int64              `json:"records"` // that were counted; a record can stand for several events
	Count   []EvidenceSelector `json:"count"`   // which records were counted: those that one of them fits
	Samples []int64            `json:"samples,omitempty"`
}

// An EvidenceSelector fits records by their traits. A record fits if each list that is not
// empty has its value.
type EvidenceSelector struct {
	Kind       []string `json:"kind"`
	Caller     []string `json:"caller,omitempty"`
	Method     []string `json:"method,omitempty"`
	Outcome    []string `json:"outcome,omitempty"`
	Cause      []string `json:"cause,omitempty"`
	About      []string `json:"about,omitempty"`
	Source     []string `json:"source,omitempty"`
	Type       []string `json:"type,omitempty"`
	Revocation []string `json:"revocation,omitempty"`
	Lifetime   []string `json:"lifetime,omitempty"`
	With       []string `json:"with,omitempty"`
	Without    []string `json:"without,omitempty"`
}

// An EvidenceRecord is a record of the log that a figure counts. AuditRecord returns it
// with its proof.
type EvidenceRecord struct {
	Index    int64     `json:"index"`
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"`
	Who      string    `json:"who"`
	About    string    `json:"about,omitempty"`
	Outcome  string    `json:"outcome,omitempty"`
	LeafHash string    `json:"leaf_hash"` // hex
}

// An EvidenceQuery selects a report.
type EvidenceQuery struct {
	Framework string    // owasp-nhi-2025, owasp-asi-2026, nist-csf-2.0 or nist-csf-1.1
	Since     string    // length of the period, such as 90d or 12h; empty: 90d, unless From is set
	From, To  time.Time // From instead of Since; zero To: now
	Size      int64     // only the first records of the log; zero: as many as the newest checkpoint covers
}

func (q EvidenceQuery) call(format string) call {
	size := ""
	if q.Size > 0 {
		size = strconv.FormatInt(q.Size, 10)
	}
	query := values("framework", q.Framework, "since", q.Since, "from", stamp(q.From), "to", stamp(q.To), "size", size, "format", format)
	return call{method: http.MethodGet, path: "/v1/evidence", query: query, retry: true}
}

// Evidence returns the evidence for a framework. It needs the action audit.
func (c *Client) Evidence(ctx context.Context, q EvidenceQuery) (*EvidenceReport, error) {
	return fetch[EvidenceReport](ctx, c, q.call("json"))
}

// EvidenceMarkdown is Evidence as a text in Markdown.
func (c *Client) EvidenceMarkdown(ctx context.Context, q EvidenceQuery) ([]byte, error) {
	var out raw
	err := c.do(ctx, q.call("markdown"), &out)
	return out, err
}
