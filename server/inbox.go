package server

import (
	"fmt"
	"net/http"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// The inbox, and how pages hear of changes.

// A requestView is a request as a page shows it.
type requestView struct {
	api.Request
	Revocation string // what ending a credential of it early would mean: in lists, which have no facts
	Mine       bool   // the viewer filed it
}

func (s *Server) view(c *call, r *broker.Request) requestView {
	v := requestView{Request: c.toRequest(r, c.now), Mine: r.Requester.ID == c.who.ID}
	if rules := s.cfg.Broker.Rules(); rules != nil && rules.Catalogue[r.Entitlement] != nil {
		v.Revocation = string(rules.Catalogue[r.Entitlement].Revocation)
	}
	return v
}

func (s *Server) viewAll(c *call, list []*broker.Request) (views []requestView) {
	for _, r := range list {
		views = append(views, s.view(c, r))
	}
	return views
}

type inboxPage struct {
	Waiting, Reviews []requestView
	Total            int
	More             bool
}

// inbox shows what waits for the viewer.
func (s *Server) inbox(c *call) (reply, error) {
	if err := c.asReader(); err != nil {
		return reply{}, err
	}
	in, err := s.cfg.Broker.Inbox(c.r.Context(), c.who, pageDefault, c.now)
	if err != nil {
		return reply{}, err
	}
	return c.page("inbox", "Inbox", "inbox", inboxPage{s.viewAll(c, in.Waiting), s.viewAll(c, in.Reviews), in.Total, in.More})
}

// Bounds of the pages that stay open to hear of changes.
const (
	viewersAtOnce = 10               // of one person
	pingEvery     = 25 * time.Second // so that proxies keep the connection
	tellEvery     = time.Second      // changes are told at most so often
)

// events tells a page that something changed, as it happens (WHATWG HTML,
// section 9.2). What, the page asks for itself. It counts as no use of the
// session, and ends when an unused session would.
func (s *Server) events(c *call) (reply, error) {
	if err := c.identify(); err != nil {
		return reply{status: http.StatusNoContent}, nil // tells the browser not to come back
	}
	leave, err := s.viewers.enter(c.who.ID)
	if err != nil {
		return reply{}, err
	}
	defer leave()
	ctx, cancel := c.waiting()
	defer cancel()
	changed, stop := s.cfg.Broker.Watch()
	defer stop()
	over := time.NewTimer(min(c.session.Expires.Sub(c.now), c.session.Seen.Add(s.cfg.Broker.Idle()).Sub(c.now)))
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
		_ = http.NewResponseController(c.w).Flush() // if the viewer is gone, the next write says so
		select {
		case <-changed:
			text = "event: changed\ndata:\n\n"
			pause(ctx.Done(), tellEvery)
		case <-ping.C:
			text = ": still here\n\n"
		case <-over.C:
			return reply{sent: true}, nil
		case <-ctx.Done():
			return reply{sent: true}, nil
		}
	}
}

// pause waits for d, or until something is done.
func pause(done <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-done:
	}
}
