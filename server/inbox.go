package server

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/server/ui"
)

// The inbox, and the event stream that announces changes to pages.

// A requestView is a request as a page shows it.
type requestView struct {
	api.Request
	Revocation string // the effect of revoking a credential; for lists, which have no facts
	Mine       bool   // the viewer filed it
	CanEnd     bool   // it was filed on the viewer's behalf, and something of it has not ended
}

func (s *Server) view(c *call, r *broker.Request) requestView {
	v := requestView{Request: c.toRequest(r, c.now), Mine: r.Requester.ID == c.who.ID}
	if e := s.cfg.Broker.Rules().Catalogue[r.Entitlement]; e != nil {
		v.Revocation = string(e.Revocation)
	}
	return v
}

func (s *Server) viewAll(c *call, list []*broker.Request) (views []requestView) {
	for _, r := range list {
		views = append(views, s.view(c, r))
	}
	return views
}

// inboxRows is the number of rows of a page.
const inboxRows = 25

type inboxPage struct {
	*broker.Inbox
	Rows         []inboxRow
	Filter       inboxFilter
	Orders       []choice
	Risks        []choice
	Back         string // the inbox parameter of links to requests; empty: the inbox is not filtered
	Seen         int64
	Done, Failed string

	OtherEntitlement, OtherTeam string // the filter's, if nothing that waits has it
}

// From returns the number of the first row of the page.
func (p inboxPage) From() int { return p.First + 1 }

// To returns the number of the last row of the page.
func (p inboxPage) To() int { return p.First + len(p.Rows) }

// Newest returns the query of the page that shows new requests: this one if it has
// room for them.
func (p inboxPage) Newest() string {
	if p.Inbox.Rows < inboxRows {
		return "?" + p.Filter.Query()
	}
	f := p.Filter
	f.Order = "newest"
	return "?" + f.Query()
}

// An inboxRow is a request of the inbox, or several identical ones.
type inboxRow struct {
	requestView
	Count    int // of identical requests
	Review   bool
	Reasons  []string // what raises the risk
	Reason   string   // the requester's
	Differ   bool     // the identical requests have different reasons
	Deadline time.Time
}

// inbox shows a page of the requests and reviews that wait for the viewer.
func (s *Server) inbox(c *call) (reply, error) {
	if err := c.asReader(); err != nil {
		return reply{}, err
	}
	f, q, fault := readInboxFilter(c.r.URL.Query())
	q.Facets, q.Limit = true, inboxRows
	in, err := s.cfg.Broker.Inbox(c.r.Context(), c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	p := inboxPage{Inbox: in, Filter: f, Orders: inboxOrders, Risks: risks, Back: f.at(), Seen: in.Seen.UnixNano(), Done: decidedTogether(c.r.URL.Query().Get("done"))}
	for _, g := range in.Groups {
		p.Rows = append(p.Rows, s.inboxRow(c, g))
	}
	p.OtherEntitlement, p.OtherTeam = notAmong(in.Facets.Entitlements, f.Entitlement), notAmong(in.Facets.Teams, f.Team)
	status := http.StatusOK
	if fault != nil {
		p.Failed, status = c.problemOf(fault).Detail, http.StatusBadRequest
	}
	return c.pageOf(status, ui.Page{Name: "inbox", Title: "Inbox", Tab: "inbox", Data: p})
}

// notAmong returns a name that is not among the facets.
func notAmong(facets []broker.Facet, name string) string {
	if slices.ContainsFunc(facets, func(f broker.Facet) bool { return f.Name == name }) {
		return ""
	}
	return name
}

func (s *Server) inboxRow(c *call, g broker.InboxGroup) inboxRow {
	row := inboxRow{requestView: s.view(c, g.Requests[0]), Count: len(g.Requests), Review: g.Review, Reasons: g.Reasons, Deadline: g.Deadline().UTC()}
	row.Reason = row.Justification
	for _, r := range g.Requests[1:] {
		row.Differ = row.Differ || r.Justification != row.Justification
	}
	return row
}

// inboxChanges are what a page of the inbox announces, so that the page does not have to
// change by itself.
type inboxChanges struct {
	New   int      `json:"new"`
	Total int      `json:"total"`
	Gone  []string `json:"gone"`
}

// inboxChanged reports the changes since an inbox was shown.
func (s *Server) inboxChanged(c *call) (reply, error) {
	query := c.r.URL.Query()
	_, q, err := readInboxFilter(query)
	if err != nil {
		return reply{}, err
	}
	seen, err := strconv.ParseInt(query.Get("seen"), 10, 64)
	if err != nil {
		return reply{}, refuse(broker.ErrInvalidRequest, "seen must be the number of the page")
	}
	q.Seen, q.Counts = time.Unix(0, seen), true
	shown := strings.FieldsFunc(query.Get("shown"), func(r rune) bool { return r == ',' })
	for _, text := range shown[:min(len(shown), inboxRows)] {
		id, err := broker.ParseRequestID(text)
		if err != nil {
			return reply{}, err
		}
		q.Shown = append(q.Shown, id)
	}
	in, err := s.cfg.Broker.Inbox(c.r.Context(), c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	out := inboxChanges{New: in.New, Total: in.Total, Gone: []string{}}
	for _, id := range in.Gone {
		out.Gone = append(out.Gone, id.String())
	}
	return ok(out)
}

// waitingFor returns the number of decisions that wait for the viewer. A failure does not
// keep a page from being shown.
func (s *Server) waitingFor(c *call) int {
	in, err := s.cfg.Broker.Inbox(c.r.Context(), c.caller(), broker.InboxQuery{Counts: true})
	if err != nil {
		return 0
	}
	return in.Total
}

// Bounds of the event stream.
const (
	pingEvery  = 25 * time.Second // keeps proxies from closing the connection
	eventEvery = time.Second      // the shortest time between two events
)

// events streams server-sent events (WHATWG HTML, section 9.2). An event only
// says that something changed; the page then fetches itself. A stream does not
// count as a use of the session, and ends when an unused session would.
func (s *Server) events(c *call) (reply, error) {
	if err := c.identify(formProofs{}); err != nil {
		return reply{status: http.StatusNoContent}, nil // 204 stops the browser from reconnecting
	}
	leave, err := s.limits.stream.enter(c.who.ID)
	if err != nil {
		return reply{}, err
	}
	defer leave()
	ctx, cancel := c.waiting()
	defer cancel()
	changed, stop := s.cfg.Broker.Watch()
	defer stop()
	over := time.NewTimer(min(c.session.Expires.Sub(c.now), c.session.Seen.Add(s.cfg.Sessions.Idle()).Sub(c.now)))
	defer over.Stop()
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()

	h := c.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	c.w.WriteHeader(http.StatusOK)
	for text := "retry: 5000\n\n"; ; {
		c.extend(2 * pingEvery)
		if _, err := fmt.Fprint(c.w, text); err != nil {
			return reply{sent: true}, nil
		}
		_ = http.NewResponseController(c.w).Flush() // the next write fails if the viewer has gone away
		select {
		case <-changed:
			text = "event: changed\ndata:\n\n"
			pause(ctx.Done(), eventEvery)
		case <-ping.C:
			text = ": ping\n\n"
		case <-over.C:
			return reply{sent: true}, nil
		case <-ctx.Done():
			return reply{sent: true}, nil
		}
	}
}

// pause waits for d or until done is closed.
func pause(done <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-done:
	}
}
