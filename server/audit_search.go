package server

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Searches of the audit log, for auditors.

// searchParameters are the parameters of a search, on the page and in the API.
var searchParameters = []string{"kind", "who", "entitlement", "q", "from", "to"}

const maxSearchText = 2048 // a SPIFFE ID fits

// readSearch reads a search from the query of a call. Times without a zone are UTC.
func readSearch(query url.Values) (q broker.RecordQuery, err error) {
	for _, name := range searchParameters {
		if text := query.Get(name); len(text) > maxSearchText || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
			return q, refuse(broker.ErrInvalidRequest, name+" has at most 2048 characters and no control characters")
		}
	}
	q.Party, q.Entitlement, q.Text = strings.TrimSpace(query.Get("who")), strings.TrimSpace(query.Get("entitlement")), strings.TrimSpace(query.Get("q"))
	if q.Kinds, err = kindsOf(query.Get("kind")); err != nil {
		return q, err
	}
	if q.From, err = searchTime(query, "from"); err != nil {
		return q, err
	}
	q.To, err = searchTime(query, "to")
	return q, err
}

// kindsOf returns the kinds that a name selects: a kind, or all kinds of a subject, such as
// "block".
func kindsOf(name string) (kinds []audit.Kind, err error) {
	if name == "" {
		return nil, nil
	}
	for _, kind := range audit.Kinds() {
		if string(kind) == name || subjectOfKind(kind) == name {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) == 0 {
		return nil, refuse(broker.ErrInvalidRequest, fmt.Sprintf("there is no kind %q: name one such as block.placed, or a subject such as block", name))
	}
	return kinds, nil
}

func subjectOfKind(kind audit.Kind) string {
	subject, _, _ := strings.Cut(string(kind), ".")
	return subject
}

// timeLayouts are the accepted forms of a time: RFC 3339, and what browsers send.
var timeLayouts = []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly}

func searchTime(query url.Values, name string) (time.Time, error) {
	text := strings.TrimSpace(query.Get(name))
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, refuse(broker.ErrInvalidRequest, name+" must be a time such as 2026-11-29T14:00 (UTC) or 2026-11-29")
}

// searchCursor reads where a page of a search begins.
func searchCursor(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	before, err := strconv.ParseInt(text, 10, 64)
	if err != nil || before < 1 {
		return 0, refuse(broker.ErrInvalidRequest, "the cursor must be the one of the previous page")
	}
	return before, nil
}

// searchAudit returns a page of the log to auditors.
func (s *Server) searchAudit(c *call) (reply, error) {
	if !c.mayAudit() {
		return reply{}, refuse(broker.ErrDenied, "policy does not permit you to search the log: it needs the action audit")
	}
	q, err := readSearch(url.Values(c.query))
	if err != nil {
		return reply{}, err
	}
	if q.Before, err = searchCursor(c.query.get("cursor")); err != nil {
		return reply{}, err
	}
	if q.Limit, err = c.limit(); err != nil {
		return reply{}, err
	}
	page, err := s.cfg.History.Search(c.r.Context(), q)
	if err != nil {
		return reply{}, err
	}
	out := api.AuditPage{Records: make([]api.AuditEntry, len(page.Items))}
	if page.Next > 0 {
		out.Next, out.SearchedTo = strconv.FormatInt(page.Next, 10), page.SearchedAt.UTC()
	}
	for i, item := range page.Items {
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			return reply{}, fmt.Errorf("decoding record %d: %w", item.Index, err)
		}
		out.Records[i] = api.AuditEntry{Index: item.Index, Summary: sentence(&r), Record: item.Leaf}
	}
	return ok(out)
}

// A kindGroup is an entry of the choice of kinds.
type kindGroup struct {
	Name, Title string
	Kinds       []kindChoice
}

type kindChoice struct{ Name, Title string }

// subjectTitles are the names of the groups of kinds, in the order of audit.Kinds.
var subjectTitles = map[string]string{
	"log": "Logs", "policy": "Policies", "key": "Keys", "request": "Requests", "approval": "Votes", "review": "Reviews", "session": "Logins and logouts",
	"passkey": "Passkeys", "collect": "Refused collections", "lease": "Credentials", "fact": "Facts that access rests on", "signal": "Security events held for a person", "directory": "Provisioned users and groups", "supplier": "Suppliers", "extension": "Extensions of contracts", "block": "Kill switch and blocks", "membership": "Memberships", "campaign": "Access reviews", "retention": "Retention", "recovery": "Recovery after a restore",
}

// kindChoices returns the kinds, grouped by their subject.
func kindChoices() (groups []kindGroup) {
	for _, kind := range audit.Kinds() {
		subject := subjectOfKind(kind)
		i := slices.IndexFunc(groups, func(g kindGroup) bool { return g.Name == subject })
		if i < 0 {
			i = len(groups)
			groups = append(groups, kindGroup{Name: subject, Title: subjectTitles[subject]})
		}
		groups[i].Kinds = append(groups[i].Kinds, kindChoice{string(kind), kindTitle(kind)})
	}
	return groups
}

// A searchPage is the audit page of auditors.
type searchPage struct {
	Form       url.Values
	Choices    []kindGroup
	Failed     string
	Records    []searchedRecord
	Older      string // the query of the next page; empty: the search is complete
	Newest     string // the query of the first page; empty: this is it
	Searched   int64  // the oldest record that was considered
	SearchedAt time.Time
	Filtered   bool
}

// A searchedRecord is a record in a list.
type searchedRecord struct {
	Index    int64
	At       time.Time
	Kind     string
	Sentence string
	Request  string // its ID, if the record names it
	Lease    string
}

// searchLog shows the log to an auditor.
func (s *Server) searchLog(c *call, failed string) (reply, error) {
	query := c.r.URL.Query()
	p := searchPage{Form: url.Values{}, Choices: kindChoices(), Failed: failed}
	for _, name := range searchParameters {
		if text := strings.TrimSpace(query.Get(name)); text != "" {
			p.Form.Set(name, text)
		}
	}
	p.Filtered = len(p.Form) > 0
	q, err := readSearch(query)
	if err == nil {
		q.Before, err = searchCursor(query.Get("before"))
	}
	if err != nil {
		if p.Failed = c.problemOf(err).Detail; p.Failed == "" {
			return reply{}, err
		}
		return c.page("search", "Audit", "audit", p)
	}
	for name, t := range map[string]time.Time{"from": q.From, "to": q.To} {
		if !t.IsZero() {
			p.Form.Set(name, t.Format("2006-01-02T15:04:05")) // as the form's control takes it
		}
	}
	q.Limit = pageDefault
	page, err := s.cfg.History.Search(c.r.Context(), q)
	if err != nil {
		return reply{}, err
	}
	for _, item := range page.Items {
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			return reply{}, fmt.Errorf("decoding record %d: %w", item.Index, err)
		}
		p.Records = append(p.Records, listed(item.Index, &r))
	}
	p.Searched, p.SearchedAt = page.SearchedTo, page.SearchedAt
	if page.Next > 0 {
		p.Older = p.query(page.Next)
	}
	if q.Before > 0 {
		p.Newest = "?" + p.Form.Encode()
	}
	return c.page("search", "Audit", "audit", p)
}

// query returns the query of the page before an index.
func (p *searchPage) query(before int64) string {
	next := url.Values{"before": {strconv.FormatInt(before, 10)}}
	for name, values := range p.Form {
		next[name] = values
	}
	return "?" + next.Encode()
}

func listed(index int64, r *audit.Record) searchedRecord {
	out := searchedRecord{Index: index, At: r.Time, Kind: kindTitle(r.Kind), Sentence: sentence(r)}
	if r.Request != nil {
		out.Request = r.Request.ID
	}
	if r.Lease != nil {
		out.Lease = r.Lease.ID
	}
	return out
}
