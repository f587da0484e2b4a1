package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/server/ui"
)

// The pages of the audit log: a request's timeline, and one record with its proof.

type auditPage struct {
	Requests []requestView
	Next     string
	Failed   string
}

// auditPage shows the log to auditors, and the requests that they may view to others. It
// redirects to the timeline of a request.
func (s *Server) auditPage(c *call) (reply, error) {
	query := c.r.URL.Query()
	var p auditPage
	if text := query.Get("request"); text != "" {
		id, err := broker.ParseRequestID(text)
		if err == nil {
			return c.redirect(s.to("/ui/requests/" + id.String() + "/log"))
		}
		p.Failed = "This is not a request ID. Request IDs begin with req_."
	}
	if c.mayAudit() {
		return s.searchLog(c, p.Failed)
	}
	before, err := pageCursor(c)
	if err != nil {
		return reply{}, err
	}
	list, next, err := s.cfg.Broker.Requests(c.r.Context(), c.caller(), broker.RequestQuery{Requester: broker.Everyone, Now: c.now, Before: before, Limit: pageDefault})
	if err != nil {
		return reply{}, err
	}
	p.Requests, p.Next = s.viewAll(c, list), next.String()
	return c.page("audit", "Audit", "audit", p)
}

type timelinePage struct {
	requestView
	Axis    *ui.Axis
	Entries []timelineEntry
	Partial bool // the log may have more records of the request
}

type timelineEntry struct {
	Index  int64
	At     time.Time
	Kind   string
	Who    string
	Detail string
	Lease  string
	Proved bool // a published checkpoint covers it
}

// timelinePage shows the records of a request and of its leases.
func (s *Server) timelinePage(c *call) (reply, error) {
	r, err := s.requestOf(c)
	if err != nil {
		return reply{}, err
	}
	ids, whole, err := s.cfg.Broker.RecordsOf(c.r.Context(), c.caller(), r.ID)
	if err != nil {
		return reply{}, err
	}
	found, err := s.read(c.r.Context(), ids)
	if err != nil {
		return reply{}, err
	}
	leases, err := s.cfg.Broker.LeasesOf(c.r.Context(), c.caller(), r)
	if err != nil {
		return reply{}, err
	}
	p := timelinePage{requestView: s.view(c, r), Partial: !whole || len(found) < len(ids)}
	if p.Axis, err = s.axisOf(c.r.Context(), r, leases, c.now); err != nil {
		return reply{}, err
	}
	published := s.publishedSize(c.r.Context())
	for _, f := range found {
		p.Entries = append(p.Entries, f.entry(published))
	}
	return c.page("timeline", "Timeline", "audit", p)
}

// publishedSize returns the number of records that the newest checkpoint covers (the
// second line of a C2SP tlog-checkpoint); 0 if there is no checkpoint yet.
func (s *Server) publishedSize(ctx context.Context) int64 {
	note, err := s.cfg.Log.Checkpoint(ctx)
	if err != nil {
		return 0
	}
	lines := bytes.SplitN(note, []byte("\n"), 3)
	if len(lines) < 3 {
		return 0
	}
	size, _ := strconv.ParseInt(string(lines[1]), 10, 64)
	return size
}

type foundRecord struct {
	index  int64
	record audit.Record
}

// read returns the records of the current log among ids.
func (s *Server) read(ctx context.Context, ids []broker.RecordID) (found []foundRecord, err error) {
	items, err := s.cfg.Log.Records(ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		record, err := audit.Decode(item.Leaf)
		if err != nil {
			return nil, fmt.Errorf("decoding record %d: %w", item.Index, err)
		}
		found = append(found, foundRecord{item.Index, record})
	}
	return found, nil
}

func (s *Server) record(ctx context.Context, index int64) (audit.Item, audit.Record, error) {
	item, err := s.cfg.Log.Record(ctx, index)
	if err != nil {
		return item, audit.Record{}, err
	}
	record, err := audit.Decode(item.Leaf)
	if err != nil {
		return item, record, fmt.Errorf("decoding record %d: %w", index, err)
	}
	return item, record, nil
}

func (f foundRecord) entry(published int64) timelineEntry {
	e := timelineEntry{Index: f.index, At: f.record.Time, Kind: string(f.record.Kind), Who: "the broker", Proved: f.index < published}
	if f.record.Caller != nil {
		e.Who = f.record.Caller.ID
	}
	if f.record.Lease != nil {
		e.Lease = f.record.Lease.ID
	}
	switch a := f.record.Approval; {
	case a != nil && f.record.Kind == audit.ApprovalGiven:
		e.Detail = a.Decision
	case a != nil && (f.record.Kind == audit.ReviewGiven || f.record.Kind == audit.ReviewClosed):
		e.Detail = verdict(a.Decision)
	case f.record.End != nil:
		e.Detail = f.record.End.How
	case f.record.Decision != nil && f.record.Decision.Code != "":
		e.Detail = f.record.Decision.Code
	}
	return e
}

// verdict returns a review's verdict. Logs that predate signed reviews record it as
// approve or deny.
func verdict(decision string) string {
	return verdictName(decision == api.Justified || decision == api.Approve)
}

type recordPage struct {
	api.AuditRecord
	Sentence string
	Groups   []fieldGroup
	Salts    []salt
	Text     string // the leaf, indented for reading
	Back     string // ID of the record's request, if any
	Auditor  bool
	Previous string // index of the record before; empty: none, or the viewer is no auditor
	Next     string // index of the record after
}

// A salt opens the commitment to a text, together with the text.
type salt struct{ Name, Salt string }

// recordPage shows one record and its proof.
func (s *Server) recordPage(c *call) (reply, error) {
	out, record, err := s.readRecord(c)
	if err != nil {
		return reply{}, err
	}
	p := recordPage{AuditRecord: out, Sentence: sentence(&record), Auditor: c.mayAudit()}
	opened := map[string]audit.Opening{}
	for _, name := range slices.Sorted(maps.Keys(out.Openings)) {
		opened[name] = audit.Opening{Text: out.Openings[name].Text}
		p.Salts = append(p.Salts, salt{name, out.Openings[name].Salt})
	}
	p.Groups = fieldsOf(&record, opened, p.Auditor)
	if p.Auditor {
		if out.Index+1 < s.publishedSize(c.r.Context()) {
			p.Next = strconv.FormatInt(out.Index+1, 10)
		}
		if out.Index > 0 {
			p.Previous = strconv.FormatInt(out.Index-1, 10)
		}
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, out.Leaf, "", "  "); err != nil {
		return reply{}, fmt.Errorf("indenting record %d: %w", out.Index, err)
	}
	p.Text = indented.String()
	if p.Back, err = s.requestIn(c, &record); err != nil {
		return reply{}, err
	}
	return c.page("record", fmt.Sprintf("Record %d", out.Index), "audit", p)
}

// requestIn returns the ID of a record's request, through its lease if the record
// names only that; empty if it has none that the viewer may view.
func (s *Server) requestIn(c *call, r *audit.Record) (string, error) {
	switch {
	case r.Request != nil:
		return r.Request.ID, nil
	case r.Lease == nil:
		return "", nil
	}
	id, err := broker.ParseLeaseID(r.Lease.ID)
	if err != nil {
		return "", err
	}
	l, err := s.cfg.Broker.Lease(c.r.Context(), c.caller(), id)
	if errors.Is(err, broker.ErrNotFound) {
		return "", nil // an auditor may read records of leases that they may not view
	}
	if err != nil {
		return "", err
	}
	return l.Request.String(), nil
}
