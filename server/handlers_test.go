package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"accessbroker.internal/broker"
)

// echoCaller answers with the caller's ID and the length of the body.
func echoCaller(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		WriteError(w, r, fmt.Errorf("reading the body: %w", err))
		return
	}
	caller, err := CallerOf(r)
	if err != nil {
		WriteError(w, r, err)
		return
	}
	_, _ = fmt.Fprintf(w, "%s %s sent %d bytes", r.URL, caller.Actor.ID, len(body))
}

// newHandlersWorld serves handlers below the path /base, on the API's listener.
func newHandlersWorld(t *testing.T) *world {
	return newWorld(t, func(cfg *Config) {
		cfg.ExternalURL += "/base"
		cfg.Handlers = []Handler{
			{Pattern: "/x/guarded", Audience: API, Handler: http.HandlerFunc(echoCaller)},
			{Pattern: "/x/open", Audience: API, Open: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") == "" {
					w.WriteHeader(http.StatusTeapot)
					return
				}
				echoCaller(w, r)
			})},
			{Pattern: "/x/late", Audience: API, Open: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := CallerOf(r); err != nil {
					WriteError(w, r, err)
					return
				}
				echoCaller(w, r)
			})},
			{Pattern: "/x/silent", Audience: API, Open: true, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})},
			{Pattern: "/x/fails", Audience: API, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				WriteError(w, r, errors.New("disk on fire"))
			})},
			{Pattern: "/x/panics", Audience: API, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("with s3cret") })},
			{Pattern: "/x/panics-late", Audience: API, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "half of it")
				w.(http.Flusher).Flush()
				panic("with s3cret")
			})},
			{Pattern: "/x/page", Audience: UI, Open: true, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})},
		}
	})
}

// send sends a request to a handler. The body is sent without Content-Length if
// chunked is set.
func (w *world) send(path, body string, chunked bool, header ...string) (*http.Response, string, error) {
	w.t.Helper()
	reader := io.Reader(strings.NewReader(body))
	if chunked {
		reader = struct{ io.Reader }{reader}
	}
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.url+path, reader)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

func TestHandlers(t *testing.T) {
	t.Parallel()
	w := newHandlersWorld(t)
	me := []string{"Authorization", "Bearer " + agent}
	long := strings.Repeat("x", maxBody+1)
	tests := []struct {
		name, path, body string
		chunked          bool
		header           []string
		status           int
		want, event      string
	}{
		{"authenticated", "/x/guarded?a=b", "four", false, me, 200, "/x/guarded?a=b " + agent + " sent 4 bytes", "level=INFO msg=request"},
		{"below the external path", "/base/x/guarded", "", false, me, 200, "/x/guarded " + agent, "identity=" + agent},
		{"unauthenticated", "/x/guarded", "", false, nil, 401, `"code":"unauthenticated"`, "level=WARN msg=request"},
		{"largest body", "/x/guarded", long[1:], true, me, 200, "sent 65536 bytes", "code=ok"},
		{"body too large", "/x/guarded", long, false, me, 413, `"code":"too_large"`, "code=too_large"},
		{"chunked body too large", "/x/guarded", long, true, me, 413, `"code":"too_large"`, "code=too_large"},
		{"cross-origin", "/x/open", "", false, []string{"Sec-Fetch-Site", "cross-site"}, 403, `"code":"cross_origin"`, "code=cross_origin"},
		{"open", "/x/open", "", false, nil, 418, "", "level=WARN msg=request"},
		{"open with a caller", "/x/open", "", false, me, 200, agent, "identity=" + agent},
		{"open with a caller before the body", "/x/late", "four", false, me, 200, agent + " sent 4 bytes", "identity=" + agent},
		{"open with a bad token", "/x/open", "", false, []string{"Authorization", "Bearer bad"}, 401, `"code":"unauthenticated"`, "code=unauthenticated"},
		{"no response written", "/x/silent", "", false, nil, 200, "", "status=200"},
		{"unknown error", "/x/fails", "", false, me, 500, `"code":"internal"`, "level=ERROR msg=request"},
		{"panic", "/x/panics", "", false, me, 500, `"code":"internal"`, "msg=panic"},
		{"other audience", "/x/page", "", false, me, 404, `"code":"not_found"`, "route=(none)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := len(w.log.String())
			resp, body, err := w.send(test.path, test.body, test.chunked, test.header...)
			if err != nil || resp.StatusCode != test.status || !strings.Contains(body, test.want) || strings.Contains(body, "s3cret") || strings.Contains(body, "disk") {
				t.Errorf("got %s %s, %v; want %d %s", resp.Status, body, err, test.status, test.want)
			}
			if resp.Header.Get("X-Request-Id") == "" || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("got the header %v", resp.Header)
			}
			logged := w.log.String()[before:]
			if !strings.Contains(logged, test.event) || strings.Count(logged, "msg=request") != 1 {
				t.Errorf("got the events %s, want one with %s", logged, test.event)
			}
		})
	}
	for code, want := range map[string]float64{"ok": 3, "too_large": 2, "unauthenticated": 1} {
		if got := testutil.ToFloat64(w.cfg.Metrics.calls.WithLabelValues("/x/guarded", "POST", code)); got != want {
			t.Errorf("got %v requests with the code %s, want %v", got, code, want)
		}
	}
	if got := testutil.ToFloat64(w.cfg.Metrics.calls.WithLabelValues("/x/open", "POST", "418")); got != 1 {
		t.Errorf("got %v requests with the code 418, want 1", got)
	}
}

func TestHandlerPanicAfterWriteBreaksConnection(t *testing.T) {
	t.Parallel()
	w := newHandlersWorld(t)
	resp, body, err := w.send("/x/panics-late", "", false, "Authorization", "Bearer "+agent)
	if resp.StatusCode != http.StatusOK || body != "half of it" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %s %q, %v; want an incomplete body", resp.Status, body, err)
	}
	if got := testutil.ToFloat64(w.cfg.Metrics.panics); got != 1 || strings.Contains(w.log.String(), "s3cret") {
		t.Errorf("got %v panics and the log %s", got, w.log)
	}
}

func TestHandlerCallersAreAdmitted(t *testing.T) {
	t.Parallel()
	var results []error
	twice := func(_ http.ResponseWriter, r *http.Request) {
		for range 2 {
			_, err := CallerOf(r)
			results = append(results, err)
		}
	}
	w := newWorld(t, func(cfg *Config) {
		cfg.CallsPerSecond, cfg.CallsAtOnce = 2, 1
		cfg.Handlers = []Handler{
			{Pattern: "/x/guarded", Audience: API, Handler: http.HandlerFunc(echoCaller)},
			{Pattern: "/x/open", Audience: API, Open: true, Handler: http.HandlerFunc(twice)},
		}
	})
	w.holdClocks()
	me := []string{"Authorization", "Bearer " + agent}
	for _, path := range []string{"/x/guarded", "/x/open", "/x/open"} {
		if _, _, err := w.send(path, "", false, me...); err != nil {
			t.Fatal(err)
		}
	}
	// Each request counts once, however often its handler calls CallerOf, and
	// leaves its place when it ends.
	refused := func(err error) bool { return errors.Is(err, broker.ErrSlowDown) }
	if len(results) != 4 || errors.Join(results[:2]...) != nil || !refused(results[2]) || !refused(results[3]) {
		t.Errorf("got %v, want two callers, then two refusals", results)
	}
	if resp, body, _ := w.send("/x/guarded", "", false, me...); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("got %s %s, want 429", resp.Status, body)
	}
}

func TestHandlerConfigIsChecked(t *testing.T) {
	t.Parallel()
	w := newQuietWorld(t, nil)
	nothing := http.NotFoundHandler()
	for _, h := range []Handler{{Pattern: "/x", Audience: API}, {Pattern: "/x", Handler: nothing}, {Pattern: "POST /x", Audience: API, Handler: nothing}} {
		cfg := w.cfg
		cfg.Handlers = slices.Concat(cfg.Handlers, []Handler{h})
		if _, err := New(cfg); err == nil {
			t.Errorf("the handler %+v is accepted", h)
		}
	}
	if _, err := CallerOf(new(http.Request)); err == nil {
		t.Error("CallerOf returns a caller for a request that no handler serves")
	}
}

// deadlines counts the read deadlines of a request.
type deadlines struct {
	*httptest.ResponseRecorder
	set int
}

func (d *deadlines) SetReadDeadline(time.Time) error {
	d.set++
	return nil
}

// A Handler has the connection's own time to read the body: when a read deadline passes,
// net/http also cancels the request.
func TestHandlerKeepsReadDeadline(t *testing.T) {
	t.Parallel()
	answer, during := &deadlines{ResponseRecorder: httptest.NewRecorder()}, -1
	w := newQuietWorld(t, func(cfg *Config) {
		cfg.Handlers = []Handler{{Pattern: "/x/slow", Audience: API, Open: true, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { during = answer.set })}}
	})
	r := httptest.NewRequest(http.MethodPost, "https://broker.acme.test/x/slow", strings.NewReader("body"))
	w.Handler(API).ServeHTTP(answer, r)
	if answer.Code != http.StatusOK || during != 0 {
		t.Errorf("got %d %s, and %d read deadlines set before the handler ran, want none", answer.Code, answer.Body, during)
	}
}
