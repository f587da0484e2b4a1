package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/evidence"
)

// Evidence for auditors: what the log proves about the controls of a framework.

// errEvidence means that the caller may not see evidence.
var errEvidence = refuse(broker.ErrDenied, "policy does not permit you to see evidence: it needs the action audit")

// evidenceReport returns the evidence for a framework to auditors.
func (s *Server) evidenceReport(c *call) (reply, error) {
	if !c.mayAudit() {
		return reply{}, errEvidence
	}
	r, err := s.buildEvidence(c, url.Values(c.query))
	if err != nil {
		return reply{}, err
	}
	return evidenceIn(r, c.query.get("format"))
}

// evidenceIn returns a report in a format.
func evidenceIn(r *evidence.Report, format string) (reply, error) {
	switch format {
	case "", "json":
		return ok(r)
	case "markdown":
		return reply{status: http.StatusOK, body: r.Markdown(), mediaType: "text/markdown; charset=utf-8"}, nil
	}
	return reply{}, refuse(broker.ErrInvalidRequest, "format must be json or markdown")
}

// buildEvidence makes the report that a query selects.
func (s *Server) buildEvidence(c *call, query url.Values) (*evidence.Report, error) {
	f, err := evidence.Named(query.Get("framework"))
	if errors.Is(err, evidence.ErrUnknown) {
		return nil, refuse(broker.ErrInvalidRequest, err.Error())
	}
	if err != nil {
		return nil, err
	}
	from, err := searchTime(query, "from")
	if err != nil {
		return nil, err
	}
	to, err := searchTime(query, "to")
	if err != nil {
		return nil, err
	}
	q, err := evidence.Period(query.Get("since"), from, to, c.now)
	if err != nil {
		return nil, refuse(broker.ErrInvalidRequest, err.Error())
	}
	if text := query.Get("size"); text != "" {
		if q.Size, err = strconv.ParseInt(text, 10, 64); err != nil || q.Size < 1 {
			return nil, refuse(broker.ErrInvalidRequest, "size must be a number of records of the log, at least 1")
		}
	}
	return evidence.Build(c.r.Context(), f, s.cfg.History, q)
}

// An evidencePage shows a report, or the form alone if it cannot be made.
type evidencePage struct {
	Form       url.Values
	Frameworks []*evidence.Framework
	Periods    []string
	Failed     string
	Report     *evidence.Report
	Downloads  url.Values       // the query of the report, without the format
	Sentences  map[int64]string // of the samples
}

// evidencePeriods are the lengths of periods that the page offers.
var evidencePeriods = []string{"7d", "30d", "90d", "365d"}

// evidencePage shows the evidence for a framework to auditors.
func (s *Server) evidencePage(c *call) (reply, error) {
	if !c.mayAudit() {
		return reply{}, errEvidence
	}
	list, err := evidence.Frameworks()
	if err != nil {
		return reply{}, err
	}
	p := evidencePage{Form: url.Values{}, Frameworks: list, Periods: evidencePeriods, Sentences: map[int64]string{}}
	for _, name := range []string{"framework", "since", "from", "to", "size"} {
		if text := strings.TrimSpace(c.r.URL.Query().Get(name)); text != "" {
			p.Form.Set(name, text)
		}
	}
	if !p.Form.Has("framework") {
		p.Form.Set("framework", "owasp-nhi-2025")
	}
	if !p.Form.Has("since") && !p.Form.Has("from") {
		p.Form.Set("since", evidence.DefaultSince)
	}
	if since := p.Form.Get("since"); since != "" && !slices.Contains(p.Periods, since) {
		p.Periods = append(slices.Clone(p.Periods), since)
	}
	if p.Report, err = s.buildEvidence(c, p.Form); err != nil {
		if p.Failed = c.problemOf(err).Detail; p.Failed == "" {
			return reply{}, err
		}
		return c.page("evidence", "Evidence", "audit", &p)
	}
	if query := c.r.URL.Query(); query.Has("format") {
		return evidenceIn(p.Report, query.Get("format"))
	}
	p.Downloads = url.Values{
		"framework": {p.Report.Framework}, "from": {p.Report.From.Format(timeLayouts[0])}, "to": {p.Report.To.Format(timeLayouts[0])}, "size": {strconv.FormatInt(p.Report.Log.Size, 10)},
	}
	if err := s.sayRecords(c, &p); err != nil {
		return reply{}, err
	}
	return c.page("evidence", "Evidence", "audit", &p)
}

// sayRecords sets the sentences of the samples.
func (s *Server) sayRecords(c *call, p *evidencePage) error {
	for _, control := range p.Report.Controls {
		for _, sample := range control.Records {
			if p.Sentences[sample.Index] != "" {
				continue
			}
			item, err := s.cfg.History.Record(c.r.Context(), sample.Index)
			if err != nil {
				return err
			}
			r, err := audit.Decode(item.Leaf)
			if err != nil {
				return fmt.Errorf("decoding record %d: %w", sample.Index, err)
			}
			p.Sentences[sample.Index] = sentence(&r)
		}
	}
	return nil
}

// Query returns the query of the report in a format.
func (p *evidencePage) Query(format string) string {
	query := url.Values{"format": {format}}
	for name, values := range p.Downloads {
		query[name] = values
	}
	return "?" + query.Encode()
}

// Chosen reports whether a framework is the one in the form.
func (p *evidencePage) Chosen(id string) bool { return p.Form.Get("framework") == id }
