package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crypto/tls"

	"golang.org/x/net/websocket"
)

// An upstream is an HTTPS server that the clients of the proxy call: an API, git
// repositories, a registry of npm, a WebSocket. It serves no call without a credential.
type upstream struct {
	port   int
	caFile string
	server *httptest.Server

	mu      sync.Mutex
	secrets []string // that calls had
	without []string // calls without a credential
	calls   []string // protocol, method and path
}

// upstreamName is the upstream's name in the clients' mount namespace. Many clients call
// localhost without a proxy, whatever their settings.
const upstreamName = "api.acme.test"

func startUpstream(t *testing.T) *upstream {
	t.Helper()
	dir := t.TempDir()
	u := &upstream{caFile: filepath.Join(dir, "ca.pem")}
	loopbackTLS(t, u.caFile, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), upstreamName)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/api/", u.api)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/npm/", func(w http.ResponseWriter, r *http.Request) {
		registry(w, r, fmt.Sprintf("https://%s:%d", upstreamName, u.port))
	})
	mux.Handle("/git/", gitServer(t, filepath.Join(dir, "git")))
	mux.Handle("/ws", websocket.Server{Handler: func(c *websocket.Conn) {
		// A hostile server: it repeats the credential, split over two frames.
		secret := strings.TrimPrefix(c.Request().Header.Get("Authorization"), "Bearer ")
		var text string
		for websocket.Message.Receive(c, &text) == nil {
			_ = websocket.Message.Send(c, strings.ToUpper(text)+" "+secret)
		}
	}})
	u.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u.admit(w, r) {
			mux.ServeHTTP(w, r)
		}
	}))
	u.server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	u.server.EnableHTTP2 = true
	u.server.StartTLS()
	t.Cleanup(u.server.Close)
	if _, err := fmt.Sscanf(u.server.URL, "https://127.0.0.1:%d", &u.port); err != nil {
		t.Fatal(err)
	}
	return u
}

// admit refuses calls without a credential, and notes the credentials of the others.
func (u *upstream) admit(w http.ResponseWriter, r *http.Request) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	call := fmt.Sprint(r.Proto, " ", r.Method, " ", r.URL.Path)
	u.calls = append(u.calls, call)
	secret := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, password, ok := r.BasicAuth(); ok {
		secret = password
	}
	if strings.Count(secret, ".") != 2 || !strings.HasPrefix(secret, "ey") { // the broker's tokens
		u.without = append(u.without, call+" "+secret)
		w.Header().Set("WWW-Authenticate", `Basic realm="upstream"`)
		http.Error(w, "no credential", http.StatusUnauthorized)
		return false
	}
	if !slices.Contains(u.secrets, secret) {
		u.secrets = append(u.secrets, secret)
	}
	return true
}

// check fails the test if a call came without a credential, or if an output has one.
func (u *upstream) check(t *testing.T, output string) {
	t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, call := range u.without {
		t.Errorf("the upstream got a call without the credential: %s", call)
	}
	if len(u.secrets) == 0 {
		t.Error("the upstream got no credential")
	}
	for _, secret := range u.secrets {
		for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret))} {
			if strings.Contains(output, form) {
				t.Errorf("the output has the credential: %s", output)
			}
		}
	}
}

// api answers with what it received, the credential included.
func (u *upstream) api(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/api/here":
		http.Redirect(w, r, "/api/there", http.StatusFound)
		return
	case "/api/away":
		http.Redirect(w, r, fmt.Sprintf("https://127.0.0.1:%d/api/stolen", u.port), http.StatusFound)
		return
	}
	n, _ := io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Echo", r.Header.Get("Authorization"))
	_ = json.NewEncoder(w).Encode(map[string]any{"proto": r.Proto, "method": r.Method, "uri": r.RequestURI, "bytes": n, "authorization": r.Header.Get("Authorization"), "basic": base64.StdEncoding.EncodeToString([]byte(r.Header.Get("Authorization")))})
}

// events streams, and waits for the client between two events.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range 3 {
		fmt.Fprintf(w, "data: %d %s\n\n", i, r.Header.Get("Authorization"))
		_ = http.NewResponseController(w).Flush()
		time.Sleep(10 * time.Millisecond)
	}
}

// gitServer serves repositories with git's own server.
func gitServer(t *testing.T, dir string) http.Handler {
	t.Helper()
	for _, args := range [][]string{{"init", "-q", "--bare", "-b", "main", filepath.Join(dir, "orders.git")}, {"-C", filepath.Join(dir, "orders.git"), "config", "http.receivepack", "true"}} {
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	return &cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"), Root: "/git", Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"}}
}

// registry is a registry of npm with one package.
func registry(w http.ResponseWriter, r *http.Request, base string) {
	tarball := packed(map[string]string{"package.json": `{"name":"hello","version":"1.0.0"}`, "index.js": "module.exports = 'hello from the registry'\n"})
	switch r.URL.Path {
	case "/npm/hello":
		sum := sha512.Sum512(tarball)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"name": "hello", "dist-tags": map[string]string{"latest": "1.0.0"}, "versions": map[string]any{"1.0.0": map[string]any{
			"name": "hello", "version": "1.0.0", "dist": map[string]string{"tarball": base + "/npm/hello/-/hello-1.0.0.tgz", "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:])},
		}}})
	case "/npm/hello/-/hello-1.0.0.tgz":
		_, _ = w.Write(tarball)
	default:
		http.NotFound(w, r)
	}
}

// packed returns files as an archive of npm.
func packed(files map[string]string) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	archive := tar.NewWriter(z)
	for _, name := range []string{"package.json", "index.js"} {
		_ = archive.WriteHeader(&tar.Header{Name: "package/" + name, Mode: 0o644, Size: int64(len(files[name]))})
		_, _ = io.WriteString(archive, files[name])
	}
	_ = archive.Close()
	_ = z.Close()
	return out.Bytes()
}
