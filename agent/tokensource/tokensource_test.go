package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"accessbroker.internal/agent/tokensource"
)

const (
	token        = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL3Rva2VuIn0.c2lnbmF0dXJl"
	requestToken = "request-token-of-the-job"
)

func TestFileIsReadForEveryCall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	source := tokensource.File(path)
	if _, err := source(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	for _, text := range []string{token, token + "2\n"} { // kubelet replaces the file by a rename
		next := path + ".new"
		if err := errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Rename(next, path)); err != nil {
			t.Fatal(err)
		}
		if got, err := source(t.Context()); err != nil || got != strings.TrimSpace(text) {
			t.Errorf("got %q, %v; want %q", got, err, text)
		}
	}
}

func TestUnusableTokens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	for name, text := range map[string]string{
		"empty": "", "white space": " \n", "two lines": token + "\nX-Header: 1", "long": strings.Repeat("x", 16<<10+1), "control": token + "\x00",
		"quoted": `"` + token + `"`, "not ASCII": token + "é",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		sources := map[string]tokensource.Source{
			"file":     tokensource.File(path),
			"variable": tokensource.Variable(func(string) string { return text }, "BROKER_ID_TOKEN"),
		}
		for kind, source := range sources {
			got, err := source(t.Context())
			if err == nil || got != "" || strings.Contains(err.Error(), "eyJ") {
				t.Errorf("%s, %s: got %q, %v", name, kind, got, err)
			}
		}
	}
}

func TestVariable(t *testing.T) {
	env := map[string]string{"BROKER_ID_TOKEN": token}
	getenv := func(name string) string { return env[name] }
	if got, err := tokensource.Variable(getenv, "BROKER_ID_TOKEN")(t.Context()); err != nil || got != token {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := tokensource.Variable(getenv, "OTHER")(t.Context()); err == nil || !strings.Contains(err.Error(), "OTHER has no token") {
		t.Errorf("unset: got %v", err)
	}
}

// gitHub returns a source whose token service answers with h.
func gitHub(t *testing.T, h http.HandlerFunc) tokensource.GitHub {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return tokensource.GitHub{URL: s.URL + "/token/1?api-version=2.0", RequestToken: requestToken, Audience: "https://broker.acme.test:8443/", HTTP: s.Client()}
}

// wantError checks that an error has the text and no token.
func wantError(t *testing.T, g tokensource.GitHub, want string) {
	t.Helper()
	got, err := g.Token(t.Context())
	if err == nil || got != "" || !strings.Contains(err.Error(), want) {
		t.Errorf("got %q, %v; want an error with %q", got, err, want)
	}
	for _, secret := range []string{requestToken, "eyJ"} {
		if err != nil && strings.Contains(err.Error(), secret) || strings.Contains(fmt.Sprintf("%v %+v %#v %s", g, g, g, g), secret) {
			t.Errorf("%v: the error or the source shows a token", err)
		}
	}
}

func TestGitHubToken(t *testing.T) {
	var got *http.Request
	g := gitHub(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		_, _ = fmt.Fprintf(w, `{"count":1234,"value":%q}`, token)
	})
	if value, err := g.Token(t.Context()); err != nil || value != token {
		t.Fatalf("got %q, %v", value, err)
	}
	query := got.URL.Query()
	if got.Method != http.MethodGet || query.Get("audience") != g.Audience || query.Get("api-version") != "2.0" || got.Header.Get("Authorization") != "Bearer "+requestToken {
		t.Errorf("got %s %s with %q", got.Method, got.URL, got.Header)
	}
}

func TestGitHubRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"forbidden": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, token, http.StatusForbidden) }, "it answers HTTP 403"},
		"no JSON":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, token) }, "its answer is not JSON"},
		"no token":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, `{}`) }, "its token can't be used: it is empty"},
		"header":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, `{"value":"eyJ\r\nX: 1"}`) }, "characters that no token has"},
		"long answer": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, `{"value":"`+strings.Repeat("e", 65<<10)+`"}`)
		}, "longer than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) { wantError(t, gitHub(t, c.answer), c.want) })
	}
}

// A redirect does not get the request token, even within one host.
func TestGitHubFollowsNoRedirect(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for _, to := range []string{other.URL, "/elsewhere"} {
		for _, status := range []int{http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
			g := gitHub(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					elsewhere.Add(1)
				}
				w.Header().Set("Location", to)
				w.WriteHeader(status)
			})
			wantError(t, g, "it redirects")
		}
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

func TestGitHubTriesAgain(t *testing.T) {
	var calls atomic.Int32
	g := gitHub(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(w, `{"value":%q}`, token)
	})
	if got, err := g.Token(t.Context()); err != nil || got != token || calls.Load() != 2 {
		t.Errorf("got %q, %v after %d calls", got, err, calls.Load())
	}
}

func TestGitHubOfOtherURLs(t *testing.T) {
	for _, address := range []string{"http://token.actions.test/x", "https://user@token.actions.test/x", "https://", "//token", "ftp://token", "https://token/#x", "\x00"} {
		wantError(t, tokensource.GitHub{URL: address, RequestToken: requestToken, Audience: "a"}, "is not the https URL of a token service")
	}
	wantError(t, tokensource.GitHub{RequestToken: requestToken, Audience: "a"}, "id-token: write")
	wantError(t, tokensource.GitHub{URL: "https://token.test/", Audience: "a"}, "id-token: write")
	wantError(t, tokensource.GitHub{URL: "https://token.test/", RequestToken: requestToken}, "needs an audience")
}

func TestGitHubEndsWithItsContext(t *testing.T) {
	hang := make(chan struct{})
	g := gitHub(t, func(http.ResponseWriter, *http.Request) { <-hang })
	defer close(hang)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Token(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
