package server

import (
	"fmt"
	"net/http"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// The inbox, and the event stream that announces changes to pages.

// A requestView is a request as a page shows it.
type requestView struct {
	api.Request
	Revocation string // the effect of revoking a credential; for lists, which have no facts
	Mine       bool   // the viewer filed it
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

type inboxPage struct {
	Waiting, Reviews []requestView
	Total            int
	More             bool
}

// inbox shows the requests and reviews that wait for the viewer.
func (s *Server) inbox(c *call) (reply, error) {
	if err := c.asReader(); err != nil {
		return reply{}, err
	}
	in, err := s.cfg.Broker.Inbox(c.r.Context(), c.caller(), pageDefault)
	if err != nil {
		return reply{}, err
	}
	return c.page("inbox", "Inbox", "inbox", inboxPage{s.viewAll(c, in.Waiting), s.viewAll(c, in.Reviews), in.Total, in.More})
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
