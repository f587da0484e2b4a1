package server

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// An eventReader reads the events of a request.
type eventReader struct {
	t     testing.TB
	resp  *http.Response
	lines *bufio.Scanner
	pings int
}

// stream opens the events of a request as a caller.
func (w *world) stream(t testing.TB, caller, request string, header ...string) *eventReader {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/v1/requests/"+request, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+caller)
	req.Header.Set("Accept", "text/event-stream")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return &eventReader{t: t, resp: resp, lines: bufio.NewScanner(resp.Body)}
}

// next returns the next event; false if the stream has ended.
func (e *eventReader) next() (r api.Request, ok bool) {
	e.t.Helper()
	id := ""
	for e.lines.Scan() {
		name, value, _ := strings.Cut(e.lines.Text(), ": ")
		switch name {
		case "":
			e.pings += strings.Count(value, "ping")
		case "id":
			id = value
		case "data":
			if err := json.Unmarshal([]byte(value), &r); err != nil || strconv.Itoa(r.Version) != id {
				e.t.Fatalf("got id %s and data %s, %v", id, value, err)
			}
			return r, true
		}
	}
	return r, false
}

// A stream has the present state, and each change. It ends with the decision.
func TestRequestEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	filed := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}}))
	events := w.stream(t, agent, filed.ID)
	if got := events.resp.Header.Get("Content-Type"); events.resp.StatusCode != 200 || got != "text/event-stream" || events.resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("got %s with Content-Type %q", events.resp.Status, got)
	}
	first, ok := events.next()
	if !ok || first.ID != filed.ID || first.Status != api.StatusPending || first.Version != filed.Version {
		t.Fatalf("got %+v, want the request as it was filed", first)
	}
	later := w.stream(t, agent, filed.ID, "Last-Event-ID", strconv.Itoa(first.Version))
	w.vote(t, filed.ID, api.Approve)
	for name, e := range map[string]*eventReader{"from the start": events, "resumed": later} {
		last, statuses := first, ""
		for r, ok := e.next(); ok; r, ok = e.next() {
			if r.Version <= last.Version {
				t.Errorf("%s: got version %d after %d", name, r.Version, last.Version)
			}
			last, statuses = r, statuses+r.Status+" "
		}
		if last.Status != api.StatusApproved || last.Grant == nil || statuses == "" {
			t.Errorf("%s: got %s, want the approval last", name, statuses)
		}
		first.Version = min(first.Version, last.Version)
	}
	// A client that has the last version is not to connect again.
	final := must[*api.Request](t)(w.as(agent).Request(t.Context(), filed.ID))
	if e := w.stream(t, agent, filed.ID, "Last-Event-ID", strconv.Itoa(final.Version)); e.resp.StatusCode != http.StatusNoContent {
		t.Errorf("got %s for the last version, want 204", e.resp.Status)
	}
	if e := w.stream(t, agent, filed.ID, "Last-Event-ID", strconv.Itoa(final.Version-1)); e.resp.StatusCode != 200 {
		t.Errorf("got %s for an earlier version, want 200", e.resp.Status)
	} else if r, ok := e.next(); !ok || r.Version != final.Version {
		t.Errorf("got %+v, want the last version", r)
	}
}

// A withdrawal and the end of the time to approve end a stream, too.
func TestRequestEventsEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	for want, end := range map[string]func(id string){
		api.StatusWithdrawn: func(id string) { must[*api.Request](t)(w.as(agent).Withdraw(t.Context(), id)) },
		api.StatusLapsed: func(id string) {
			w.changeRequest(t, id, func(r *broker.Request) { r.Lapses = time.Now().Add(100 * time.Millisecond) })
		},
	} {
		filed := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, Ticket: "T-" + want}))
		var events *eventReader
		if want == api.StatusLapsed {
			end(filed.ID)
			events = w.stream(t, agent, filed.ID)
			events.next()
		} else {
			events = w.stream(t, agent, filed.ID)
			events.next()
			end(filed.ID)
		}
		last, count := api.Request{}, 0
		for r, ok := events.next(); ok; r, ok = events.next() {
			last, count = r, count+1
		}
		if last.Status != want || count != 1 {
			t.Errorf("got %d events, the last with status %q, want one with %s", count, last.Status, want)
		}
	}
}

// Comments keep the connection open while nothing happens.
func TestRequestEventsHaveHeartbeats(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.heartbeat = 10 * time.Millisecond
	filed := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}}))
	events := w.stream(t, agent, filed.ID)
	events.next()
	for seen := 0; seen < 3; {
		if !events.lines.Scan() {
			t.Fatal("the stream ended")
		}
		seen += strings.Count(events.lines.Text(), ": ping")
	}
}

// A stream ends when the caller's proof expires, and when the server drains.
func TestRequestEventsEndWithTheProof(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) {
		plain := c.Authenticate
		c.Authenticate = func(r *http.Request, tokens ...string) (broker.Identity, error) {
			who, err := plain(r, tokens...)
			if r.Header.Get("X-Short") != "" {
				who.Proof.Expires = time.Now().Add(time.Second)
			}
			return who, err
		}
	})
	filed := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}}))
	for name, e := range map[string]*eventReader{"proof": w.stream(t, agent, filed.ID, "X-Short", "yes"), "drain": w.stream(t, agent, filed.ID)} {
		if _, ok := e.next(); !ok {
			t.Fatalf("%s: got no event", name)
		}
		if name == "drain" {
			w.drain()
		}
		if r, ok := e.next(); ok || !errors.Is(errors.Join(e.lines.Err(), io.EOF), io.EOF) {
			t.Errorf("%s: got %+v, want the end of the stream", name, r)
		}
	}
}

// Streams are bounded for each caller, and show nothing to others.
func TestRequestEventsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.CallsAtOnce = 3 })
	filed := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}}))
	for i, want := range []int{200, 200, 200, 429, 429} {
		e := w.stream(t, agent, filed.ID)
		if e.resp.StatusCode != want {
			t.Errorf("stream %d: got %s, want %d", i, e.resp.Status, want)
		}
	}
	if e := w.stream(t, partner, filed.ID); e.resp.StatusCode != 404 {
		t.Errorf("got %s for another caller, want 404", e.resp.Status)
	}
	if e := w.stream(t, partner, filed.ID, "Last-Event-ID", "x"); e.resp.StatusCode != 400 {
		t.Errorf("got %s for a malformed Last-Event-ID, want 400", e.resp.Status)
	}
}

func TestAcceptsEvents(t *testing.T) {
	for accept, want := range map[string]bool{
		"":                                    false,
		"*/*":                                 false,
		"application/json":                    false,
		"text/event-stream":                   true,
		"Text/Event-Stream;q=0.5, text/html":  true,
		"text/event-stream;q=0":               false,
		"text/event-stream;q=x":               false,
		"application/json, text/event-stream": true,
		"application/json;q=0.9, text/event-stream;q=0.8": false,
		"text/event-stream-2":                             false,
		"*/*, text/event-stream":                          true,
	} {
		if got := acceptsEvents([]string{accept}); got != want {
			t.Errorf("%q: got %t, want %t", accept, got, want)
		}
	}
}
