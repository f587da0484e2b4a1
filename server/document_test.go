package server

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

var publicPaths = []string{"/.well-known/openid-configuration", "/.well-known/oauth-authorization-server", "/.well-known/oauth-protected-resource/mcp", "/oauth2/jwks", "/oauth2/status", "/oauth2/status/" + statusListName, "/openapi.json"}

// fetch gets a path without the transport's own decompression.
func (w *world) fetch(path string, header ...string) (*http.Response, []byte) {
	w.t.Helper()
	resp := w.raw("GET", path, header...)
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, body
}

func (w *world) raw(method, path string, header ...string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := (&http.Transport{DisableCompression: true, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// newPublicWorld starts a server that serves everything.
func newPublicWorld(t *testing.T, change func(*Config)) *world {
	w := newQuietWorld(t, change)
	server := httptest.NewServer(w.Handler(API, OAuth, Log, UI, MCP))
	t.Cleanup(server.Close)
	w.url = server.URL
	return w
}

// staticPaths returns the files that a page uses.
func (w *world) staticPaths() (paths []string) {
	w.t.Helper()
	_, page := w.fetch("/ui/login")
	for part := range strings.SplitSeq(string(page), `"`) {
		if strings.HasPrefix(part, "/ui/static/") {
			paths = append(paths, part)
		}
	}
	if len(paths) == 0 {
		w.t.Fatal("the page names no static files")
	}
	return paths
}

// Public documents have an entity tag for each of their forms and answer conditional
// requests with 304.
func TestDocumentsAreConditionalAndCompressed(t *testing.T) {
	t.Parallel()
	w := newPublicWorld(t, nil)
	zippedOnce := false
	for _, path := range append(w.staticPaths(), publicPaths...) {
		plain, body := w.fetch(path)
		tag := plain.Header.Get("ETag")
		if plain.StatusCode != 200 || len(tag) < 10 || tag[0] != '"' || plain.Header.Get("Content-Encoding") != "" || plain.Header.Get("Vary") != "Accept-Encoding" {
			t.Fatalf("%s: got %s %v", path, plain.Status, plain.Header)
		}
		zipped, packed := w.fetch(path, "Accept-Encoding", "br, gzip;q=0.5")
		if zipped.Header.Get("Content-Encoding") == "gzip" {
			zippedOnce = true
			z, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				t.Fatal(err)
			}
			if unpacked, err := io.ReadAll(z); err != nil || !bytes.Equal(unpacked, body) || len(packed) >= len(body) {
				t.Errorf("%s: %d compressed bytes are not the %d bytes of the document: %v", path, len(packed), len(body), err)
			}
			if zipped.Header.Get("ETag") == tag {
				t.Errorf("%s: both forms have the tag %s", path, tag)
			}
		} else if !bytes.Equal(packed, body) {
			t.Errorf("%s: the bodies differ", path)
		}
		if zipped.Header.Get("Content-Type") != plain.Header.Get("Content-Type") || zipped.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: got %v, want the media type of %v", path, zipped.Header, plain.Header)
		}
		for _, sent := range []string{tag, "W/" + tag, `"other", ` + tag, "*", zipped.Header.Get("ETag")} {
			resp, rest := w.fetch(path, "If-None-Match", sent)
			if resp.StatusCode != 304 || len(rest) > 0 || resp.Header.Get("ETag") == "" || resp.Header.Get("Cache-Control") != plain.Header.Get("Cache-Control") || resp.Header.Get("Vary") == "" {
				t.Errorf("%s, If-None-Match %s: got %s %v", path, sent, resp.Status, resp.Header)
			}
		}
		for _, sent := range []string{`"other"`, strings.Trim(tag, `"`), ""} {
			if resp, _ := w.fetch(path, "If-None-Match", sent); resp.StatusCode != 200 {
				t.Errorf("%s, If-None-Match %s: got %s, want 200", path, sent, resp.Status)
			}
		}
		if resp := w.raw("HEAD", path); resp.StatusCode != 200 || resp.Header.Get("ETag") != tag {
			t.Errorf("HEAD %s: got %s %v", path, resp.Status, resp.Header)
		}
	}
	if !zippedOnce {
		t.Error("no document is compressed")
	}
}

// An answer that may hold a secret is never compressed and has no entity tag.
func TestOtherAnswersAreNotCompressed(t *testing.T) {
	t.Parallel()
	w := newPublicWorld(t, nil)
	for _, path := range []string{"/v1/whoami", "/v1/entitlements", "/v1/requests", "/nope", "/", "/ui/login", "/healthz"} {
		resp, _ := w.fetch(path, "Accept-Encoding", "gzip", "Authorization", "Bearer "+agent)
		if resp.Header.Get("Content-Encoding") != "" || resp.Header.Get("ETag") != "" || resp.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: got %s %v", path, resp.Status, resp.Header)
		}
	}
}

// A changed document has another tag.
func TestChangedDocumentHasAnotherTag(t *testing.T) {
	t.Parallel()
	algorithm := "ES256"
	w := newPublicWorld(t, func(cfg *Config) { cfg.Algorithms = func() []string { return []string{algorithm} } })
	first, _ := w.fetch(publicPaths[0])
	algorithm = "RS256"
	resp, body := w.fetch(publicPaths[0], "If-None-Match", first.Header.Get("ETag"))
	if resp.StatusCode != 200 || resp.Header.Get("ETag") == first.Header.Get("ETag") || !json.Valid(body) {
		t.Errorf("got %s %v", resp.Status, resp.Header)
	}
}

func TestAcceptEncoding(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]bool{
		"": false, "gzip": true, "GZIP": true, "x-gzip": true, "deflate, gzip": true, "gzip;q=1.0": true, "gzip; q=0.001": true, "*": true, "*;q=0.5": true,
		"br": false, "gzip;q=0": false, "gzip; q=0.000": false, "*;q=0": false, "gzip;q=0, *": false, "*, gzip;q=0": false, "gzip;q=x": false, "gzip;q=NaN": false, "identity": false,
	} {
		if got := acceptsGzip([]string{header}); got != want {
			t.Errorf("%q: got %t, want %t", header, got, want)
		}
	}
	if !acceptsGzip([]string{"br", "gzip"}) || acceptsGzip(nil) {
		t.Error("several lines are not one list")
	}
}

// Scripts of any web page may read public documents, and nothing else.
func TestCrossOriginReads(t *testing.T) {
	t.Parallel()
	w := newPublicWorld(t, nil)
	origin := []string{"Origin", "https://other.test", "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "if-none-match"}
	for _, path := range publicPaths {
		for _, header := range [][]string{nil, origin[:2]} {
			resp, _ := w.fetch(path, header...)
			if resp.Header.Get("Access-Control-Allow-Origin") != "*" || resp.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s: got %v", path, resp.Header)
			}
		}
		resp := w.raw("OPTIONS", path, origin...)
		h := resp.Header
		if resp.StatusCode != 204 || h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Methods") != "GET, HEAD" || h.Get("Access-Control-Allow-Headers") == "" || h.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("OPTIONS %s: got %s %v", path, resp.Status, h)
		}
		if resp := w.raw("POST", path); resp.StatusCode != 405 || !strings.Contains(resp.Header.Get("Allow"), "OPTIONS") {
			t.Errorf("POST %s: got %s %v", path, resp.Status, resp.Header)
		}
	}
	for _, rt := range w.routes() {
		path := strings.NewReplacer("{id}", "x", "{index}", "1", "{name}", "x", "{file}", "x", "{provider}", "x", "{list}", statusListName, "{$}", "").Replace(rt.path)
		if slices.Contains(publicPaths, path) {
			continue
		}
		for _, method := range []string{"OPTIONS", rt.method} {
			if path == "/ui/events" && method == "GET" {
				continue // a stream
			}
			resp := w.raw(method, path, origin...)
			if resp.Header.Get("Access-Control-Allow-Origin") != "" || method == "OPTIONS" && resp.StatusCode != 405 {
				t.Errorf("%s %s: got %s %v", method, path, resp.Status, resp.Header)
			}
		}
	}
}

// A path that is not in its normal form is unknown, not redirected: a redirected POST
// would carry its proof to a path that a proxy's rules did not judge.
func TestUncleanPathsAreUnknown(t *testing.T) {
	t.Parallel()
	for external, prefix := range map[string]string{"https://broker.acme.test": "", "https://acme.test/broker": "/broker"} {
		w := newPublicWorld(t, func(cfg *Config) { cfg.ExternalURL = external })
		for _, path := range []string{
			"//oauth2/token", "/oauth2//token", "/oauth2/./token", "/oauth2/../oauth2/token", "/./oauth2/token", "/oauth2/token/", "/oauth2/token/.", "/oauth2/token//",
			"/oauth2%2Ftoken", "/oauth2/%2e/token", "/%2Foauth2/token", "/oauth2/token%2F", "/OAUTH2/token", "///", "//", "/v1//requests", "/v1/requests/",
		} {
			resp := w.raw("POST", prefix+path)
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 404 || resp.Header.Get("Location") != "" || !strings.Contains(string(body), `"code":"not_found"`) {
				t.Errorf("%s: got %s %s, want 404", prefix+path, resp.Status, body)
			}
		}
		for _, path := range []string{"/ui//leases", "/ui/./leases", "/ui/nope"} { // as for every page, the login comes first
			if resp, _ := w.fetch(prefix + path); resp.StatusCode != 303 || !strings.Contains(resp.Header.Get("Location"), "/ui/login?next=") {
				t.Errorf("%s: got %s %v", prefix+path, resp.Status, resp.Header)
			}
		}
		for _, path := range []string{"/healthz", "/ui/login"} {
			if resp, _ := w.fetch(prefix + path); resp.StatusCode != 200 {
				t.Errorf("%s: got %s", prefix+path, resp.Status)
			}
		}
	}
}
