package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// A call is one HTTP request on its way through the server.
type call struct {
	s     *Server
	route route
	w     *writer
	r     *http.Request
	id    string    // the X-Request-Id
	now   time.Time // when it came
	from  netip.Addr
	query form
	body  []byte
	form  form

	who            broker.Identity // zero on open routes
	session        *broker.Session // of a person
	token          session.Token
	proofIsSubject bool   // the identity was to be proved by the subject_token
	unproved       bool   // the proof did not hold
	about          string // request or lease that it led to, for the log
}

// caller returns who calls, for the domain, as of when the call came.
func (c *call) caller() broker.Caller { return broker.Self(c.who, c.now) }

// A reply is an answer to be encoded.
type reply struct {
	status    int
	code      api.Code // of an error
	body      any      // marshalled as JSON, but for []byte, which is sent as it is; nil: no body
	mediaType string   // "application/json" if empty
	header    http.Header
	err       error // what led to it, for the log
	sent      bool  // it was written as it came to be
}

func ok(body any) (reply, error) { return reply{status: http.StatusOK, body: body}, nil }

// serve makes the handler of a route: the whole of a request that is not the
// route's own business.
func (s *Server) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := s.begin(w, r, rt)
		var answer reply
		defer func() { c.end(answer, recover()) }()
		answer = c.answer()
		c.write(answer)
	})
}

// dispatch picks the route by method. HEAD is GET without a body (net/http
// drops it); everything else that is not there is 405 with Allow (RFC 9110,
// section 15.5.6).
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

func anyOf(byMethod map[string]route) route {
	for _, rt := range byMethod {
		return rt
	}
	return route{}
}

func (s *Server) begin(w http.ResponseWriter, r *http.Request, rt route) *call {
	c := &call{s: s, route: rt, w: &writer{ResponseWriter: w}, r: r, now: time.Now()}
	c.id = newCallID(c.now)
	if addr, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		c.from = addr.Addr().Unmap()
	}
	h := w.Header()
	h.Set("X-Request-Id", c.id)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	if rt.audience == UI {
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
	}
	if r.TLS != nil {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	return c
}

func (c *call) answer() reply {
	answer, err := c.run()
	if err == nil {
		return answer
	}
	return c.fail(blameClient(c.r.Context(), err))
}

func (c *call) fail(err error) (answer reply) {
	switch {
	case c.route.audience == OAuth:
		answer = c.oauthError(err)
	case c.route.audience == UI && !c.route.script:
		answer = c.failedPage(err)
	default:
		answer = c.problem(err)
	}
	if answer.status != http.StatusSeeOther { // being sent to log in is no fault
		answer.err = err
	}
	return answer
}

// run is the order of things. Forms are read before the caller is known, for
// the proof may be in them; JSON bodies are not.
func (c *call) run() (reply, error) {
	if err := c.readQuery(); err != nil {
		return reply{}, err
	}
	if c.route.audience == UI {
		if err := crossOrigin.Check(c.r); err != nil {
			return reply{}, errCrossOrigin
		}
	}
	if c.route.proof != nil || c.route.form {
		if err := c.readForm(); err != nil {
			return reply{}, err
		}
		c.now = time.Now() // it may have come slowly
	}
	if c.route.open {
		return c.route.run(c.s, c)
	}
	if err := c.identify(); err != nil {
		return reply{}, err
	}
	leave, err := c.s.admission.enter(c.who.ID)
	if err != nil {
		return reply{}, err
	}
	defer leave()
	if c.route.scans && c.who.Kind != broker.KindOperator {
		if leave, err = c.s.scans.enter(c.who.ID); err != nil {
			return reply{}, err
		}
		defer leave()
	}
	return c.route.run(c.s, c)
}

// crossOrigin refuses what other sites make a browser send.
var crossOrigin = http.NewCrossOriginProtection()

// readQuery is strict on /v1. OAuth's endpoints ignore the query: parameters
// stand in the body there (RFC 6749, section 3.2).
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

// readBody reads the whole body. Its media type is checked if there is one.
func (c *call) readBody(mediaType string) error {
	body, err := io.ReadAll(http.MaxBytesReader(c.w.ResponseWriter, c.r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return errTooLarge
	case err != nil:
		return refuse(broker.ErrInvalidRequest, "the body ended early")
	}
	c.body = body
	if len(body) == 0 {
		return nil
	}
	got, parameters, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil || got != mediaType || (parameters["charset"] != "" && !strings.EqualFold(parameters["charset"], "utf-8")) {
		return refuse(errMediaType, "send "+mediaType)
	}
	return nil
}

// identify finds out who calls. Nobody else looks at proofs.
func (c *call) identify() error {
	if token, ok := c.sessionToken(); ok {
		return c.enterSession(token)
	}
	if c.route.audience == UI {
		return broker.ErrUnauthenticated
	}
	proof, err := c.proof()
	if err != nil {
		return err
	}
	if err := c.s.failures.check(c.from); err != nil && c.costly(proof) {
		return err
	}
	who, err := c.authenticate(proof)
	if err != nil {
		c.unproved = true
		return err
	}
	c.who = who
	return nil
}

// costly says whether the proof takes a signature check that its caller did not
// pay for: whoever shows a certificate has been through a handshake, which
// costs more than its chain, and a token that held before is remembered. So
// those who came before are not shut out by whoever shares their address.
func (c *call) costly(token string) bool {
	if c.r.TLS != nil && len(c.r.TLS.PeerCertificates) > 0 {
		return false
	}
	if token == "" {
		_, token, _ = strings.Cut(c.r.Header.Get("Authorization"), " ")
	}
	return token == "" || c.s.cfg.Remembers == nil || !c.s.cfg.Remembers(token)
}

// arrived is called when a body was read, which may have taken long: the time
// of the call is now, and the proof must still hold.
func (c *call) arrived() error {
	if c.now = time.Now(); !c.route.open && !c.who.Proof.Valid(c.now) {
		return broker.ErrProofExpired
	}
	return nil
}

// authenticate checks the proof. That it is in time, Authenticate has seen to;
// so do we, and so does the domain.
func (c *call) authenticate(proof string) (broker.Identity, error) {
	who, err := c.s.cfg.Authenticate(c.r, proof)
	switch {
	case err == nil && who.ID == "":
		err = broker.ErrUnauthenticated
	case err == nil && !who.Proof.Valid(c.now):
		err = broker.ErrProofExpired
	case err == nil:
		return who, nil
	}
	if meaningOf(err).level == theirs {
		c.s.failures.count(c.from)
	}
	return broker.Identity{}, fmt.Errorf("authenticating: %w", err)
}

// proof gives the proof in the form, if the route looks for one there.
func (c *call) proof() (string, error) {
	if c.route.proof == nil {
		return "", nil
	}
	token, isSubject, err := c.route.proof(c.form)
	c.proofIsSubject = isSubject
	return token, err
}

// extend gives the call more time than the connection's bounds: a call that
// waits on purpose must be neither cut off nor, by the deadline for reading,
// taken for gone.
func (c *call) extend(d time.Duration) {
	until := time.Now().Add(d + writeTimeout)
	rc := http.NewResponseController(c.w)
	_ = rc.SetReadDeadline(until) // where it can't be set (HTTP/2 has its own), there is none to extend
	_ = rc.SetWriteDeadline(until)
}

// waiting gives the call's context, which ends on shutdown as well.
func (c *call) waiting() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(c.r.Context())
	stop := context.AfterFunc(c.s.draining, cancel)
	return ctx, func() { stop(); cancel() }
}

func (c *call) write(answer reply) {
	if answer.sent {
		return
	}
	body, err := answer.encode()
	if err != nil {
		answer = c.fail(fmt.Errorf("encoding the answer: %w", err))
		body, _ = answer.encode()
	}
	h := c.w.Header()
	maps.Copy(h, answer.header)
	if body != nil {
		if answer.mediaType == "" {
			answer.mediaType = "application/json"
		}
		h.Set("Content-Type", answer.mediaType)
	}
	c.w.WriteHeader(answer.status)
	_, _ = c.w.Write(body) // whoever is gone can't be told
}

func (r reply) encode() ([]byte, error) {
	switch body := r.body.(type) {
	case nil:
		return nil, nil
	case []byte:
		return body, nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // never served as HTML: the media type says so, and nosniff
	err := enc.Encode(r.body)
	return b.Bytes(), err
}

// end logs and counts the call, once. A panic becomes a 500 without detail.
func (c *call) end(answer reply, panicked any) {
	if panicked != nil {
		c.s.cfg.Metrics.panics.Inc()
		c.s.cfg.Logger.Error("panic", "call_id", c.id, "route", c.route.path, "panic", panicText(panicked), "stack", string(debug.Stack()))
		answer = c.fail(errPanicked)
		if c.w.status == 0 {
			c.write(answer)
		}
	}
	took := time.Since(c.now)
	code := answer.code
	if code == "" {
		code = "ok"
	}
	c.s.cfg.Metrics.answered(c.route.path, c.r.Method, string(code), took)
	level := slog.LevelWarn
	switch m := meaningOf(answer.err); {
	case answer.err == nil || m.err == broker.ErrPending: // who polls is told to go on
		level = slog.LevelInfo
	case m.level == ours:
		level = slog.LevelError
	}
	c.s.cfg.Logger.LogAttrs(c.r.Context(), level, "request", c.attrs(answer, code, took)...)
}

// panicText says what the runtime says. What else a panic may carry could be
// anything, a secret included.
func panicText(panicked any) string {
	if err, ok := panicked.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", panicked)
}

// attrs never hold a token, a body or a query's value.
func (c *call) attrs(answer reply, code api.Code, took time.Duration) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("call_id", c.id), slog.String("method", knownMethod(c.r.Method)), slog.String("route", c.route.path),
		slog.Int("status", c.w.status), slog.String("code", string(code)), slog.Duration("took", took),
	}
	if c.from.IsValid() { // the admin socket has no address
		attrs = append(attrs, slog.String("from", c.from.String()))
	}
	if c.who.ID != "" {
		attrs = append(attrs, slog.String("identity", c.who.ID), slog.String("proved_by", string(c.who.Proof.Method)))
	}
	if c.about != "" {
		attrs = append(attrs, slog.String("about", c.about))
	}
	if theirID := c.r.Header.Get("X-Request-Id"); theirID != "" && len(theirID) <= 64 && printable(theirID) {
		attrs = append(attrs, slog.String("client_call_id", theirID))
	}
	// Of other faults of theirs the code says enough, and the words may repeat
	// what stood in the body.
	if answer.err != nil && (c.unproved || meaningOf(answer.err).level == ours) {
		attrs = append(attrs, slog.String("error", answer.err.Error()))
	}
	return attrs
}

// printable says whether s is made of visible ASCII and spaces.
func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) < 0
}

// knownMethod bounds what a method can be in logs and labels.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// A writer remembers what status was sent.
type writer struct {
	http.ResponseWriter
	status int
}

func (w *writer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// newCallID makes a UUIDv7 (RFC 9562, section 5.7).
func newCallID(now time.Time) string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixMilli())<<16|0x7000|uint64(binary.BigEndian.Uint16(id[6:])&0x0fff))
	id[8] = id[8]&0x3f | 0x80
	text := hex.EncodeToString(id[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}
