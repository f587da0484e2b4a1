package forward_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/egress/forward"
)

func TestCallsThroughTheProxy(t *testing.T) {
	eachProtocol(t, func(t *testing.T, h2 bool) {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			rw.Header().Set("X-Seen", r.Method+" "+r.Host+" "+r.RequestURI+" "+r.Header.Get("Authorization"))
			rw.Header().Set("Alt-Svc", `h3=":443"`)
			rw.WriteHeader(http.StatusCreated)
			_, _ = rw.Write(bytes.ToUpper(body))
		})
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+host+"/a%2Fb?c=d&e", strings.NewReader("hello"))
		req.Header.Set("Authorization", "Bearer of-the-child")
		resp, err := w.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if body := mustRead(t, resp); body != "HELLO" || resp.StatusCode != http.StatusCreated || (resp.ProtoMajor == 2) != h2 {
			t.Errorf("got %s %s %q", resp.Proto, resp.Status, body)
		}
		if got, want := resp.Header.Get("X-Seen"), "PUT "+host+" /a%2Fb?c=d&e Bearer "+secret; got != want {
			t.Errorf("the upstream saw %q, want %q", got, want)
		}
		if got := resp.Header.Get("Alt-Svc"); got != "" {
			t.Errorf("the client learns of a way around the proxy: %s", got)
		}
		for _, r := range w.seen {
			for name := range r.Header {
				if strings.HasPrefix(name, "Proxy-") {
					t.Errorf("the upstream got the header %s", name)
				}
			}
		}
		if len(w.events) != 1 || w.events[0].Status != http.StatusCreated || w.events[0].Path != "/a%2Fb" {
			t.Errorf("events: %+v", w.events)
		}
	})
}

func TestStreamsAreLive(t *testing.T) {
	eachProtocol(t, func(t *testing.T, h2 bool) {
		next := make(chan string)
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "text/event-stream")
			rw.WriteHeader(http.StatusOK)
			control := http.NewResponseController(rw)
			_ = control.Flush()
			for text := range next {
				fmt.Fprintf(rw, "data: %s\n\n", text)
				_ = control.Flush()
			}
		})
		resp, err := w.client(h2).Get("https://" + host + "/events") // returns before the first event
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(resp.Body)
		for i := range 5 {
			want := fmt.Sprint("event ", i)
			next <- want
			if !lines.Scan() || lines.Text() != "data: "+want || !lines.Scan() {
				t.Fatalf("got %q, %v, want %q", lines.Text(), lines.Err(), want)
			}
		}
		close(next)
		if lines.Scan() || lines.Err() != nil {
			t.Errorf("after the end: %q, %v", lines.Text(), lines.Err())
		}
	})
}

// A client that goes away ends the call of the proxy.
func TestClientGoesAway(t *testing.T) {
	eachProtocol(t, func(t *testing.T, h2 bool) {
		gone := make(chan struct{})
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(rw).Flush()
			<-r.Context().Done()
			close(gone)
		})
		resp, err := w.client(h2).Get("https://" + host + "/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		select {
		case <-gone:
		case <-time.After(30 * time.Second):
			t.Error("the call goes on")
		}
	})
}

func TestTrailers(t *testing.T) {
	eachProtocol(t, func(t *testing.T, h2 bool) {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(rw, "body")
			_ = http.NewResponseController(rw).Flush()
			rw.Header().Set("X-Sum", "42")
			rw.Header().Set(http.TrailerPrefix+"X-Late", "43")
		})
		resp, body := mustGet(t, w.client(h2), "https://"+host+"/")
		if body != "body" || resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "43" {
			t.Errorf("got %q with trailers %v", body, resp.Trailer)
		}
	})
}

// An answer that ends early must not look complete.
func TestTruncatedAnswer(t *testing.T) {
	eachProtocol(t, func(t *testing.T, h2 bool) {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(rw, "half")
			_ = http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		})
		resp, err := w.client(h2).Get("https://" + host + "/")
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("got %q without an error", body)
		}
		_ = resp.Body.Close()
	})
}

// A large upload passes through as a stream: the upstream reads the first part before the
// client sends the last one.
func TestUploadStreams(t *testing.T) {
	eachProtocol(t, func(t *testing.T, h2 bool) {
		started := make(chan struct{})
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadFull(r.Body, make([]byte, 1)); err != nil {
				t.Error(err)
			}
			close(started)
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(rw, n+1, err)
		})
		body, writer := io.Pipe()
		go func() {
			_, _ = writer.Write(make([]byte, 1<<20))
			<-started
			_, _ = writer.Write(make([]byte, 32<<20))
			_ = writer.Close()
		}()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+host+"/", body)
		resp, err := w.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := mustRead(t, resp), fmt.Sprint(33<<20, nil); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// With "Expect: 100-continue", the client sends the body only if the call is allowed.
func TestExpectContinue(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, n)
	})
	for path, want := range map[string]string{"/upload": "HTTP/1.1 100 Continue", "/refused": "HTTP/1.1 403 Forbidden"} {
		c := w.tls(host+":443", host)
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", path, host)
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); err != nil || strings.TrimSpace(line) != want {
			t.Fatalf("%s: got %q, %v, want %q", path, line, err, want)
		}
		if path == "/refused" {
			continue
		}
		_, _ = r.ReadString('\n')
		_, _ = io.WriteString(c, "hello")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body := mustRead(t, resp); body != "5" {
			t.Errorf("got %q", body)
		}
	}
}

func TestHeadAndRedirect(t *testing.T) {
	eachProtocol(t, func(t *testing.T, h2 bool) {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				rw.Header().Set("Content-Length", "1234")
				return
			}
			http.Redirect(rw, r, "https://evil.test/", http.StatusFound)
		})
		resp, err := w.client(h2).Head("https://" + host + "/")
		if err != nil {
			t.Fatal(err)
		}
		if body := mustRead(t, resp); resp.ContentLength != 1234 || body != "" {
			t.Errorf("HEAD: got %d and %q", resp.ContentLength, body)
		}
		// The proxy does not follow; a client that does is refused.
		following := w.client(h2)
		following.CheckRedirect = nil
		resp, err = following.Get("https://" + host + "/")
		if err == nil || !strings.Contains(err.Error(), "No rule of your entitlements allows calls to evil.test:443") {
			t.Errorf("got %v, %v", resp, err)
		}
		if w.reached() != 2 {
			t.Errorf("%d calls reached the upstream", w.reached())
		}
	})
}

func TestRefusalsExplain(t *testing.T) {
	eachProtocol(t, func(t *testing.T, h2 bool) {
		w := newWorld(t, func(http.ResponseWriter, *http.Request) { t.Error("a refused call was made") })
		resp, body := mustGet(t, w.client(h2), "https://"+host+"/refused")
		want := "broker proxy: No rule allows this path with GET.\nNext: use a path that the rules of the entitlement list.\n"
		if resp.StatusCode != http.StatusForbidden || body != want || resp.Header.Get("Proxy-Status") == "" {
			t.Errorf("got %s %q %v", resp.Status, body, resp.Header)
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/pending", nil)
		req.Header.Set("Accept", "application/vnd.github+json")
		resp, err := w.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var problem map[string]any
		if err := json.Unmarshal([]byte(mustRead(t, resp)), &problem); err != nil {
			t.Fatal(err)
		}
		if problem["code"] != "pending_approval" || problem["request_id"] != "req_1" || problem["next"] != "wait" || problem["message"] == "" {
			t.Errorf("got %v", problem)
		}
		if len(w.events) != 2 || w.events[0].Refusal == nil || w.events[0].Refusal.Code != "path_not_allowed" {
			t.Errorf("events: %+v", w.events)
		}
	})
}

// A panic in a call ends this call alone, and the client sees no success.
func TestPanicIsContained(t *testing.T) {
	eachProtocol(t, func(t *testing.T, h2 bool) {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "fine") })
		client := w.client(h2)
		if resp, err := client.Get("https://" + host + "/panic"); err == nil {
			t.Errorf("got %s", resp.Status)
		}
		if _, body := mustGet(t, client, "https://"+host+"/"); body != "fine" {
			t.Errorf("got %q after the panic", body)
		}
	})
}

// Calls without TLS are made where a rule has the scheme http, in both forms that clients
// use.
func TestPlainHTTP(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, r.Host+r.RequestURI) }, "http plain.acme.test:80", "https "+host+":443")
	w.caller.transport.DialTLSContext = w.caller.transport.DialContext
	plain := newPlain(t, w)
	w.caller.transport.DialContext = plain
	if _, body := mustGet(t, w.client(false), "http://plain.acme.test/x?y"); body != "plain.acme.test/x?y" {
		t.Errorf("absolute-form: got %q", body)
	}
	c := w.tunnel("plain.acme.test:80")
	fmt.Fprint(c, "GET /z HTTP/1.1\r\nHost: plain.acme.test\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body := mustRead(t, resp); body != "plain.acme.test/z" {
		t.Errorf("tunnel: got %q", body)
	}
}

func TestCertificateIsServed(t *testing.T) {
	w := newWorld(t, func(http.ResponseWriter, *http.Request) {})
	got := w.raw("GET " + forward.AuthorityPath + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + authorization + "\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, string(w.authority.PEM())) || strings.Contains(got, "PRIVATE") {
		t.Errorf("got %q", got)
	}
}
