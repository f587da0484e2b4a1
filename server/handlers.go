package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/attest/dpop"
	"accessbroker.internal/broker"
)

// A Handler adds a resource of another package to a Server, such as an MCP or a
// SCIM endpoint. The server does for it what it does for its own endpoints:
//
//   - It authenticates and admits the caller before Handler runs, unless Open is
//     set. CallerOf returns the caller.
//   - It refuses state-changing requests that other sites cause a browser to send.
//   - It limits the body to 64 KiB, or to MaxBody. A longer Content-Length is refused with 413;
//     otherwise reading past the limit returns an *http.MaxBytesError, which
//     WriteError also answers with 413.
//   - The connection's timeouts apply: 20 s for reading the request and 40 s for
//     the whole exchange. A handler that takes longer extends them with
//     http.ResponseController. After the drain timeout of a shutdown the
//     connection is closed and the request's context ends.
//   - A panic is answered with 500 without detail. If part of the response has been
//     sent, the connection is closed. The log has the stack, and the value only if it
//     is a runtime error.
//   - It sets X-Request-Id and strict defaults of Cache-Control and
//     Content-Security-Policy, which Handler may replace.
//   - It counts the request under its Pattern and logs one event. The code is that
//     of WriteError, otherwise "ok", or the status if that is 400 or more.
//
// Handler reads the query and the body and checks their format. It handles every
// method. Its paths do not include the path of ExternalURL.
type Handler struct {
	Pattern  string   // of http.ServeMux, without method and host: "/mcp" or "/scim/"
	Audience Audience // listeners that serve this audience serve the handler
	Open     bool     // callers need no identity; Handler may call CallerOf
	Handler  http.Handler

	// Authenticate, if set, identifies the handler's callers in place of the server's
	// Authenticate, under the same contract. Sessions do not count then. Remembers is the
	// same as the server's.
	Authenticate func(*http.Request) (broker.Identity, error)
	Remembers    func(token string) bool

	// Resource, if set, describes the handler to OAuth clients.
	Resource *Resource

	MaxBody int64 // zero: 64 KiB

	// Callers of the handler have limits of their own, if these are set.
	CallsPerSecond float64
	CallsAtOnce    int

	admission *admission // by these limits; nil: the server's
}

// CallerOf returns the caller of a request that a Handler serves, as of now. It
// returns the sentinels of package broker, such as broker.ErrProofExpired if the
// proof expired while the body arrived.
//
// If the handler is Open, the first call authenticates and admits the caller, and
// later calls return the same result. CallerOf is safe for concurrent use, but must
// not be called after the handler has returned.
func CallerOf(r *http.Request) (broker.Caller, error) {
	h, ok := r.Context().Value(handledKey{}).(*handled)
	if !ok {
		return broker.Caller{}, errors.New("the request was not routed by a server.Handler")
	}
	if err := h.enter(); err != nil {
		return broker.Caller{}, err
	}
	now := time.Now()
	if !h.call.who.Proof.Valid(now) {
		return broker.Caller{}, broker.ErrProofExpired
	}
	return broker.Self(h.call.who, now), nil
}

// WriteError answers a request that a Handler serves as the server's own endpoints
// answer the same error. Errors without a code become a 500 without detail; the
// log event has their text.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	h, ok := r.Context().Value(handledKey{}).(*handled)
	if !ok {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		err = errTooLarge
	}
	h.answer = h.call.fail(blameClient(r.Context(), err))
	h.call.write(w, h.answer)
}

// Attach keeps what Handler.Authenticate learned about a request for the handler.
func Attach(r *http.Request, v any) {
	if h, ok := r.Context().Value(handledKey{}).(*handled); ok {
		h.attached = v
	}
}

// Attached returns what Handler.Authenticate attached to a request; nil if nothing.
func Attached(r *http.Request) any {
	h, ok := r.Context().Value(handledKey{}).(*handled)
	if !ok {
		return nil
	}
	return h.attached
}

// handled is a request that a Handler serves.
type handled struct {
	call   *call
	enter  func() error // authenticates and admits the caller, once
	answer reply        // of WriteError

	attached any // by Authenticate
}

type handledKey struct{}

func (h Handler) check() error {
	if h.Handler == nil || h.Audience == "" || !strings.HasPrefix(h.Pattern, "/") {
		return fmt.Errorf("the handler of %q needs a pattern that begins with a slash, an audience and a handler", h.Pattern)
	}
	return nil
}

func (h Handler) route() route {
	return route{audience: h.Audience, path: h.Pattern, foreign: true, handler: &h, run: h.run}
}

func (h Handler) run(_ *Server, c *call) (reply, error) {
	if err := c.checkOrigin(); err != nil {
		return reply{}, err
	}
	if h.Resource != nil && len(h.Resource.DPoP) > 0 && dpop.Sent(c.r) {
		c.offerNonce()
	}
	one := &handled{call: c, enter: sync.OnceValue(func() error { return c.enter(formProofs{}) })}
	c.r = c.r.WithContext(context.WithValue(c.r.Context(), handledKey{}, one))
	if !h.Open {
		if err := one.enter(); err != nil {
			return reply{}, err
		}
	}
	most := int64(maxBody)
	if h.MaxBody > 0 {
		most = h.MaxBody
	}
	if c.r.ContentLength > most && !c.hasOwnCallers() { // the handler answers in its own form
		return reply{}, errTooLarge
	}
	if err := c.holdBody(); err != nil {
		return reply{}, err
	}
	r := *c.r
	r.Body = http.MaxBytesReader(c.w.ResponseWriter, heldBody{r.Body, c}, most)
	h.Handler.ServeHTTP(c.w, &r)
	if c.w.status == 0 {
		c.w.WriteHeader(http.StatusOK) // as net/http would
	}
	one.answer.sent = true
	if one.answer.code == "" && c.w.status >= http.StatusBadRequest {
		one.answer.code = api.Code(strconv.Itoa(c.w.status))
	}
	return one.answer, nil
}
