package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/attest/dpop"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
	"accessbroker.internal/server/inbound"
)

// A call is one HTTP request.
type call struct {
	s     *Server
	route route
	w     *writer
	out   writer // the memory of w
	r     *http.Request
	id    string // in the log
	trace audit.Trace
	now   time.Time  // when it arrived
	from  netip.Addr // of the client, also behind trusted proxies; zero: unknown
	query form
	body  []byte // valid until forgetBody
	form  form
	held  *hold // of the budget for bodies; nil if the caller is known

	who            broker.Identity // zero on open routes
	session        *broker.Session // of a person; nil for other callers
	token          session.Token
	proof          dpop.Proof // of possession; zero: the call has none
	byProxy        bool       // a trusted proxy sent the call, on a connection of its own
	fromErr        error      // the proxy's header does not name the client
	proofIsSubject bool       // the other proofs of the caller, if any, are valid; the subject_token is judged
	unproved       bool       // authentication failed
	deferral       *deferral  // of a deferred response; nil: the response is another one
	about          string     // the id of the request or lease concerned, for the log
	leaving        []func()   // leave the admissions that the call has entered
	bodyMemory     *[firstRead]byte
}

// caller returns the caller as of the call's arrival, with the key that the call proves.
func (c *call) caller() broker.Caller {
	caller := broker.Self(c.who, c.now)
	caller.Key, caller.Once, caller.OnceUntil = c.proof.Key, c.proof.Once, c.proof.Until
	return caller
}

// A reply is a response before encoding.
type reply struct {
	status    int
	code      api.Code // of an error
	body      any      // []byte is sent unchanged, anything else as JSON; nil: no body
	mediaType string   // "application/json" if empty
	header    http.Header
	err       error // the cause, for the log
	sent      bool  // the handler has written the response itself
}

func ok(body any) (reply, error) { return reply{status: http.StatusOK, body: body}, nil }

// serve returns the handler of a route, with everything that routes share.
func (s *Server) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := s.begin(w, r, rt)
		var answer reply
		defer func() {
			panicked := recover()
			c.end(answer, panicked)
			if panicked == nil && rt.audience == OAuth && !rt.foreign {
				c.forget()
			}
		}()
		defer c.forgetBody()
		answer = c.answer()
		c.boundUnread()
		c.write(c.w, answer)
	})
}

// calls hold unused memory of calls.
var calls = sync.Pool{New: func() any { return new(call) }}

// forget lets a later call use the memory of this one, which no one may use any more.
func (c *call) forget() {
	clear(c.leaving)
	*c = call{leaving: c.leaving[:0]}
	calls.Put(c)
}

// dispatch selects the route by method. HEAD is served as GET; net/http drops the
// body. Other methods get 405 with Allow (RFC 9110, section 15.5.6).
func (s *Server) dispatch(path string, byMethod map[string]route) http.Handler {
	handlers := map[string]http.Handler{}
	for method, rt := range byMethod {
		handlers[method] = s.serve(rt)
		if method == http.MethodGet {
			handlers[http.MethodHead] = handlers[method]
		}
	}
	allow := strings.Join(slices.Sorted(maps.Keys(handlers)), ", ")
	refused := route{path: path, open: true, audience: anyOf(byMethod).audience, run: func(*Server, *call) (reply, error) { return reply{}, errMethod }}
	if one := anyOf(byMethod); one.shared {
		handlers[http.MethodOptions] = s.serve(route{path: path, open: true, shared: true, audience: one.audience, run: preflight})
		allow += ", OPTIONS"
	}
	wrong := s.serve(refused)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h, ok := handlers[r.Method]; ok {
			h.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Allow", allow)
		wrong.ServeHTTP(w, r)
	})
}

// preflight answers a browser that asks before a script's request (Fetch, section 4.8).
// The script may set any header except Authorization, and gets no cookies sent.
func preflight(*Server, *call) (reply, error) {
	return reply{status: http.StatusNoContent, header: http.Header{
		"Access-Control-Allow-Methods": {"GET, HEAD"},
		"Access-Control-Allow-Headers": {"*"},
		"Access-Control-Max-Age":       {"7200"}, // the longest time that all browsers accept
		"Allow":                        {"GET, HEAD, OPTIONS"},
	}}, nil
}

func anyOf(byMethod map[string]route) route {
	for _, rt := range byMethod {
		return rt
	}
	return route{}
}

func (s *Server) begin(w http.ResponseWriter, r *http.Request, rt route) *call {
	c := calls.Get().(*call)
	*c = call{s: s, route: rt, out: writer{ResponseWriter: w, draining: s.draining}, r: r, now: time.Now(), leaving: c.leaving}
	c.w = &c.out
	c.id = newCallID(c.now)
	var peer netip.Addr
	if addr, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		peer = addr.Addr().Unmap().WithZone("")
	}
	c.byProxy = s.cfg.Proxies.Header != "" && s.cfg.Proxies.Trusts(peer) || inbound.EndsTLS(r.Context())
	c.from, c.fromErr = s.cfg.Proxies.Client(peer, r.Header)
	if c.trace = traceOf(r.Header); !c.trace.IsZero() {
		c.r = r.WithContext(broker.WithTrace(r.Context(), c.trace))
	}
	h := w.Header()
	h.Set("X-Request-Id", cmp.Or(clientCallID(r.Header), c.id))
	maps.Copy(h, alwaysSent)
	if rt.shared {
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Expose-Headers", "ETag, X-Request-Id")
	}
	if rt.audience == UI {
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
	}
	if r.TLS != nil {
		h["Strict-Transport-Security"] = onlyTLS
	}
	return c
}

// Headers of every answer. Answers share the values, which no one may change in place.
var (
	alwaysSent = http.Header{
		"X-Content-Type-Options":  {"nosniff"},
		"Cache-Control":           {"no-store"},
		"Content-Security-Policy": {"default-src 'none'; frame-ancestors 'none'"},
	}
	onlyTLS  = []string{"max-age=31536000"}
	jsonBody = []string{"application/json"}
)

func (c *call) answer() reply {
	answer, err := c.run()
	if err == nil {
		return answer
	}
	return c.fail(blameClient(c.r.Context(), err))
}

func (c *call) fail(err error) (answer reply) {
	if c.route.dpop && errors.Is(err, broker.ErrBindingRequired) {
		c.offerNonce()
	}
	switch {
	case c.route.audience == OAuth:
		answer = c.oauthError(err)
	case c.route.audience == UI && !c.route.script:
		answer = c.failedPage(err)
	default:
		answer = c.problem(err)
	}
	if answer.status != http.StatusSeeOther { // a redirect to the login is not an error
		answer.err = err
	}
	return answer
}

// run processes a call. A proof in the header is judged before the body is read. The
// form of an OAuth endpoint may contain the proof, so it is read before authentication if
// the header has none.
func (c *call) run() (reply, error) {
	defer c.leave()
	if err := c.checkHost(); err != nil {
		return reply{}, err
	}
	if c.fromErr != nil {
		return reply{}, refuse(broker.ErrInvalidRequest, "the "+c.s.cfg.Proxies.Header+" header of the reverse proxy is not valid")
	}
	if c.route.foreign {
		return c.route.run(c.s, c)
	}
	if err := c.readQuery(); err != nil {
		return reply{}, err
	}
	if c.route.audience == UI {
		if err := c.s.crossing.Check(c.r); err != nil {
			return reply{}, errCrossOrigin
		}
	}
	if !c.route.open && (c.route.proofs == nil || c.provesInHeader()) {
		if err := c.enter(formProofs{}); err != nil {
			return reply{}, err
		}
	}
	if c.route.proofs != nil || c.route.form {
		if err := c.enterForm(); err != nil {
			return reply{}, err
		}
	}
	if c.route.dpop {
		if err := c.prove(); err != nil {
			return reply{}, err
		}
	}
	return c.route.run(c.s, c)
}

func (c *call) admit(a *admission) error {
	leave, err := a.enter(c.who.ID)
	if err == nil {
		c.leaving = append(c.leaving, leave)
	}
	return err
}

func (c *call) leave() {
	for _, leave := range c.leaving {
		leave()
	}
}

// readQuery is strict on /v1. OAuth endpoints ignore the query, because their
// parameters are in the body (RFC 6749, section 3.2).
func (c *call) readQuery() (err error) {
	if c.route.audience == API {
		c.query, err = parseQuery(c.r.URL.RawQuery, c.route.query)
	}
	return err
}

func (c *call) readForm() error {
	if err := c.readBody("application/x-www-form-urlencoded"); err != nil {
		return err
	}
	f, err := parseForm(c.body)
	c.form = f
	return err
}

// extend extends the connection's deadlines for a call that waits on purpose. The
// read deadline matters too: when it passes, net/http cancels the call.
func (c *call) extend(d time.Duration) {
	until := time.Now().Add(d + writeTimeout)
	rc := http.NewResponseController(c.w)
	_ = rc.SetReadDeadline(until) // HTTP/2 has no deadline to extend
	_ = rc.SetWriteDeadline(until)
}

// waitDraining is how long a call waits that arrives during a drain. It keeps clients
// that poll without a pause from polling in a loop.
const waitDraining = time.Second

// waiting returns the call's context, which also ends on shutdown.
func (c *call) waiting() (context.Context, context.CancelFunc) {
	if c.s.draining.Err() != nil {
		return context.WithTimeout(c.r.Context(), waitDraining)
	}
	ctx, cancel := context.WithCancel(c.r.Context())
	stop := context.AfterFunc(c.s.draining, cancel)
	return ctx, func() { stop(); cancel() }
}

func (c *call) write(w http.ResponseWriter, answer reply) {
	if answer.sent {
		return
	}
	buf := buffers.Get().(*bytes.Buffer)
	defer giveBack(buf)
	body, err := answer.encode(buf)
	if err != nil {
		answer = c.fail(fmt.Errorf("encoding the answer: %w", err))
		buf.Reset()
		body, _ = answer.encode(buf)
	}
	h := w.Header()
	maps.Copy(h, answer.header)
	if body != nil && answer.mediaType == "" {
		h["Content-Type"] = jsonBody
	} else if body != nil {
		h.Set("Content-Type", answer.mediaType)
	}
	w.WriteHeader(answer.status)
	_, _ = w.Write(body) // the client may have gone away
}

// buffers holds empty buffers for answers.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// maxPooled is the size of the largest buffer that is kept for reuse.
const maxPooled = 16 << 10

// giveBack clears a buffer, which may hold a secret, and keeps it for reuse.
func giveBack(b *bytes.Buffer) {
	clear(b.Bytes())
	if b.Cap() <= maxPooled {
		b.Reset()
		buffers.Put(b)
	}
}

// encode returns the body, which may be in buf.
func (r reply) encode(buf *bytes.Buffer) ([]byte, error) {
	switch body := r.body.(type) {
	case nil:
		return nil, nil
	case []byte:
		return body, nil
	}
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false) // safe: the media type and nosniff keep browsers from treating it as HTML
	err := enc.Encode(r.body)
	return buf.Bytes(), err
}

// A writer records the status that was sent. An answer that begins during a drain closes
// its connection, also if its call began before.
type writer struct {
	http.ResponseWriter
	draining context.Context
	status   int
}

func (w *writer) WriteHeader(status int) {
	w.begin(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) begin(status int) {
	if w.status != 0 {
		return
	}
	w.status = status
	if w.draining.Err() != nil {
		w.Header().Set("Connection", "close")
	}
}

func (w *writer) Write(p []byte) (int, error) {
	w.begin(http.StatusOK)
	return w.ResponseWriter.Write(p)
}

// Flush supports handlers that need an http.Flusher.
func (w *writer) Flush() {
	w.begin(http.StatusOK)
	_ = http.NewResponseController(w.ResponseWriter).Flush() // the next write fails if the client has gone away
}

// Unwrap supports http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
