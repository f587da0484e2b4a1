package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// The timeline of a request, from the log itself, and the page of one record
// with its proof.

type auditPage struct {
	Requests []requestView
	Next     string
	Failed   string
}

// auditPage lists the requests that the viewer may see, or goes to one.
func (s *Server) auditPage(c *call) (reply, error) {
	query := c.r.URL.Query()
	var p auditPage
	if text := query.Get("request"); text != "" {
		id, err := broker.ParseRequestID(text)
		if err == nil {
			return c.redirect(s.to("/ui/requests/" + id.String() + "/log"))
		}
		p.Failed = "That is not the id of a request: it begins with req_."
	}
	before, err := pageCursor(c)
	if err != nil {
		return reply{}, err
	}
	list, next, err := s.cfg.Broker.Requests(c.r.Context(), c.who, broker.RequestQuery{Requester: broker.Everyone, Now: c.now, Before: before, Limit: pageDefault}, c.now)
	if err != nil {
		return reply{}, err
	}
	p.Requests, p.Next = s.viewAll(c, list), next.String()
	return c.page("audit", "Audit", "audit", p)
}

type timelinePage struct {
	requestView
	Entries []timelineEntry
	Partial bool // there may be records that were not looked at
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

// timelinePage shows what the log says of a request.
func (s *Server) timelinePage(c *call) (reply, error) {
	r, err := s.requestOf(c)
	if err != nil {
		return reply{}, err
	}
	leases, err := s.cfg.Broker.LeasesOf(c.r.Context(), r, c.now)
	if err != nil {
		return reply{}, err
	}
	p := timelinePage{requestView: s.view(c, r)}
	published := s.publishedSize(c.r.Context())
	found, partial, err := s.find(c.r.Context(), r, leases)
	if err != nil {
		return reply{}, err
	}
	p.Partial = partial
	for _, f := range found {
		p.Entries = append(p.Entries, f.entry(published))
	}
	return c.page("timeline", "What the log says", "audit", p)
}

// publishedSize is how many records the newest checkpoint covers (C2SP
// tlog-checkpoint: its second line); 0: there is none yet.
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

// A span is a stretch of time in which records are looked for.
type span struct{ from, to time.Time }

// Records are of the time when they became durable: soon after what they are
// about began, or after an upstream was asked. Refusals that are repeated are
// counted for a minute first.
const (
	recordSoon  = 5 * time.Second
	recordSlow  = broker.IssueDeadline + recordSoon
	recordCount = 2 * time.Minute
)

// lifeOf is the span in which all records of a request were written. within are
// its moments, which go on where leases outlive the grant.
func lifeOf(r *broker.Request, within []span) span {
	to := r.Created.Add(r.Waits())
	for _, t := range []time.Time{r.CollectUntil, within[len(within)-1].to} {
		if t.After(to) {
			to = t
		}
	}
	return span{within[0].from, to.Add(recordCount)}
}

// moments are the spans in which most records of a request were written, in
// order and apart. Nothing says when collecting was refused.
func moments(r *broker.Request, leases []*broker.Lease) (spans []span) {
	add := func(t time.Time, within time.Duration) {
		if !t.IsZero() {
			spans = append(spans, span{t.Add(-time.Second), t.Add(within)})
		}
	}
	add(r.Created, recordSoon)
	for _, a := range slices.Concat(r.Approvals, r.Verdicts) {
		add(a.At, recordSoon)
	}
	if r.Status == broker.RequestWithdrawn {
		add(r.Created, r.Waits())
	}
	add(r.CollectUntil, recordSoon)
	for _, l := range leases {
		add(l.Opened, recordSlow)
		add(l.EndAsked, recordSlow)
		add(l.Ended, recordSoon)
	}
	slices.SortFunc(spans, func(a, b span) int { return a.from.Compare(b.from) })
	merged := spans[:0]
	for _, s := range spans {
		if n := len(merged); n > 0 && !s.from.After(merged[n-1].to) {
			if s.to.After(merged[n-1].to) {
				merged[n-1].to = s.to
			}
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

type foundRecord struct {
	index  int64
	record audit.Record
}

// maxFind is how many records one timeline looks at.
const maxFind = 5000

// find looks for the records of a request and of its leases. Nothing in the log
// leads from a request to them; their times do. What the log is too busy to be
// looked through for is found at its moments, and partial.
func (s *Server) find(ctx context.Context, r *broker.Request, leases []*broker.Lease) (found []foundRecord, partial bool, err error) {
	spans, size := moments(r, leases), s.cfg.Log.Size()
	life := lifeOf(r, spans)
	first, end, err := s.stretch(ctx, size, life)
	if err != nil {
		return nil, false, err
	}
	if partial = end-first > maxFind; !partial {
		spans = []span{life}
	}
	its := map[string]bool{} // leases: their ends name no request
	for _, l := range leases {
		its[l.ID.String()] = true
	}
	left := maxFind
	for _, sp := range spans {
		first, end, err := s.stretch(ctx, size, sp)
		if err != nil {
			return nil, false, err
		}
		for i := first; i < end && left > 0; i++ {
			left--
			_, record, err := s.record(ctx, i)
			if err != nil {
				return nil, false, err
			}
			asks := record.Request != nil && record.Request.ID == r.ID.String()
			if asks && record.Lease != nil {
				its[record.Lease.ID] = true
			}
			if asks || record.Lease != nil && its[record.Lease.ID] {
				found = append(found, foundRecord{i, record})
			}
		}
	}
	return found, partial, nil
}

// stretch gives the records of a span: from first, up to end and without it.
func (s *Server) stretch(ctx context.Context, size int64, sp span) (first, end int64, err error) {
	if first, err = s.firstAt(ctx, size, sp.from); err != nil {
		return 0, 0, err
	}
	end, err = s.firstAt(ctx, size, sp.to)
	return first, end, err
}

// firstAt is the index of the first record that is not older than t. Times of
// records never go back.
func (s *Server) firstAt(ctx context.Context, size int64, t time.Time) (int64, error) {
	var failed error
	i := sort.Search(int(size), func(i int) bool {
		_, record, err := s.record(ctx, int64(i))
		if err != nil {
			failed = err
		}
		return !record.Time.Before(t)
	})
	return int64(i), failed
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

// verdict is what a review says. Logs from before reviews could be signed say it
// as approvals do.
func verdict(decision string) string {
	return word(decision == api.Justified || decision == api.Approve, api.Justified, api.Unjustified)
}

type recordPage struct {
	api.AuditRecord
	Text string // the leaf, indented for reading
	Back string // the request that it is of
}

// recordPage shows one record and its proof.
func (s *Server) recordPage(c *call) (reply, error) {
	out, record, err := s.readRecord(c)
	if err != nil {
		return reply{}, err
	}
	p := recordPage{AuditRecord: out}
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

// requestIn gives the id of the request that a record is about, by its lease if
// the record names that alone; empty: none.
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
	l, err := s.cfg.Broker.Lease(c.r.Context(), c.who, id, c.now)
	if errors.Is(err, broker.ErrNotFound) {
		return "", nil // an auditor reads all records, and need not see what they are about
	}
	if err != nil {
		return "", err
	}
	return l.Request.String(), nil
}
