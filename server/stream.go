package server

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// GET /v1/requests/{id} as a stream of server-sent events (WHATWG HTML, section 9.2), for
// clients that accept text/event-stream. It costs what a long poll costs: a goroutine that
// waits for the request's next change. It counts as one of the caller's calls at once.

const eventStream = "text/event-stream"

// acceptsEvents reports whether the client asks for events: it names the media type, and
// prefers no other one to it (RFC 9110, section 12.5.1).
func acceptsEvents(accept []string) bool {
	events, others := -1.0, 0.0
	for element := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		mediaType, parameters, _ := strings.Cut(element, ";")
		q := 1.0
		for parameter := range strings.SplitSeq(parameters, ";") {
			if value, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(parameter)), "q="); ok {
				q, _ = strconv.ParseFloat(value, 64) // a malformed weight is zero
			}
		}
		switch strings.ToLower(strings.TrimSpace(mediaType)) {
		case eventStream:
			events = q
		case "application/json", "application/*":
			others = max(others, q)
		}
	}
	return events > 0 && events >= others
}

// streamRequest streams a request: its present state at once, unless the client has it, and
// each change. An event's id is the request's version. The stream ends after the event of a
// request that no longer waits, when the caller's proof expires, and when the server drains.
func (s *Server) streamRequest(c *call, id broker.RequestID) (reply, error) {
	after, err := lastEventID(c.r.Header.Get("Last-Event-ID"))
	if err != nil {
		return reply{}, err
	}
	r, err := s.cfg.Broker.Request(c.r.Context(), c.caller(), id)
	switch {
	case err != nil:
		return reply{}, err
	case r.Version <= after && r.State(c.now) != broker.RequestPending:
		return reply{status: http.StatusNoContent}, nil // stops a client from connecting again
	}
	ctx, cancel := c.waiting()
	defer cancel()
	ctx, stop := context.WithDeadline(ctx, c.proofEnds())
	defer stop()
	h := c.w.Header()
	h.Set("Content-Type", eventStream)
	h.Set("X-Accel-Buffering", "no") // nginx
	c.extend(2 * s.heartbeat)
	c.w.WriteHeader(http.StatusOK)
	w := streamWriter{c: c, id: id, after: after}
	err = w.send("retry: 5000\n\n")
	for err == nil && ctx.Err() == nil && !w.over {
		err = w.next(ctx)
	}
	return reply{sent: true}, nil // the client may have gone away
}

// lastEventID returns the version that the client has; -1 if it has none.
func lastEventID(text string) (int, error) {
	if text == "" {
		return -1, nil
	}
	version, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, refuse(broker.ErrInvalidRequest, "Last-Event-ID must be the id of an event of this stream")
	}
	return int(version), nil
}

// proofEnds returns when the caller must prove its identity again: to continue a stream, it
// connects again.
func (c *call) proofEnds() time.Time {
	ends := c.who.Proof.Expires
	if c.session != nil {
		ends = earliest(c.session.Expires, c.now.Add(api.MaxWait)) // a session may be closed at any time
	}
	return ends
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// A streamWriter writes the events of one request.
type streamWriter struct {
	c     *call
	id    broker.RequestID
	after int  // the version that the client has
	over  bool // the request no longer waits
}

// next waits for a change, or for the time of a ping, and writes it.
func (w *streamWriter) next(ctx context.Context) error {
	c := w.c
	wait, stop := context.WithTimeout(ctx, c.s.heartbeat)
	defer stop()
	caller := c.caller()
	caller.At = time.Now()
	r, err := c.s.cfg.Broker.Await(c.r.Context(), caller, w.id, w.after, wait.Done())
	if err != nil {
		return err
	}
	now := time.Now()
	w.over = r.State(now) != broker.RequestPending
	if r.Version <= w.after && !w.over {
		if ctx.Err() != nil {
			return nil
		}
		return w.send(": ping\n\n")
	}
	return w.event(r, now)
}

// event writes the request.
func (w *streamWriter) event(r *broker.Request, now time.Time) error {
	out, err := w.c.s.requestBody(w.c, r, now)
	if err != nil {
		return err
	}
	buf := buffers.Get().(*bytes.Buffer)
	defer giveBack(buf)
	_, _ = fmt.Fprintf(buf, "id: %d\ndata: ", r.Version)
	if _, err := (reply{body: out}).encode(buf); err != nil {
		return err
	}
	buf.WriteString("\n") // the JSON ends with one
	w.after = r.Version
	return w.send(buf.String())
}

// send writes text, and lets the connection last until the next ping.
func (w *streamWriter) send(text string) error {
	w.c.extend(2 * w.c.s.heartbeat)
	if _, err := w.c.w.Write([]byte(text)); err != nil {
		return err
	}
	return http.NewResponseController(w.c.w).Flush()
}

// requestBody returns a request as its reader sees it.
func (s *Server) requestBody(c *call, r *broker.Request, now time.Time) (api.Request, error) {
	out := c.toRequest(r, now)
	if c.who.Kind == broker.KindPerson && c.who.ID != r.Requester.ID {
		facts, err := s.facts(c.r.Context(), broker.Self(c.who, now), r)
		if err != nil {
			return out, err
		}
		out.Facts = &facts
	}
	return out, nil
}
