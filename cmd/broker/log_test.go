package main

import (
	"bytes"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A slowWriter counts writes.
type slowWriter struct {
	mu     sync.Mutex
	text   bytes.Buffer
	writes int
}

func (w *slowWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes++
	return w.text.Write(p)
}

func (w *slowWriter) lines() (lines, writes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Count(w.text.String(), "\n"), w.writes
}

// String returns what was written.
func (w *slowWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// What a host sends after its answer reaches no log: it can be the credential of the call.
func TestLogHasNothingOfHosts(t *testing.T) {
	const secret = "s3cret-of-the-call"
	host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprintf(conn, "HTTP/1.1 304 Not Modified\r\nContent-Length: 18\r\n\r\n%s", r.Header.Get("Authorization"))
	}))
	defer host.Close()
	var text slowWriter
	before := log.Writer()
	log.SetOutput(unquoted{&text})
	defer log.SetOutput(before)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, host.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", secret)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(text.String(), "Unsolicited response"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("net/http logged %q, want a line about the host", text.String())
		}
	}
	if strings.Contains(text.String(), secret) {
		t.Errorf("the log has the credential: %s", text.String())
	}
}

func TestLogBufferCollectsRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slowWriter{}
		log, flush := newLogger(w, "json", slog.LevelInfo)
		expect := func(when string, lines, writes int) {
			t.Helper()
			if l, n := w.lines(); l != lines || n != writes {
				t.Errorf("%s: got %d lines in %d writes, want %d in %d", when, l, n, lines, writes)
			}
		}
		log.Info("request")
		expect("the first after a pause", 1, 1)
		for range 10 {
			log.Info("request")
		}
		expect("soon after it", 1, 1)
		time.Sleep(logDelay + time.Millisecond)
		expect("after the delay", 11, 2)
		log.Info("request")
		log.Warn("request")
		expect("a warning", 13, 3)
		log.Info("request")
		log.With("part", "trust").WithGroup("g").Info("trust bundles changed")
		expect("a change", 15, 4)
		log.Info("request")
		flush()
		expect("the end", 16, 5)
		for range 2 * logSize / 20 {
			log.Info("request")
		}
		if lines, writes := w.lines(); lines < logSize/100 || writes < 6 {
			t.Errorf("a full buffer: got %d lines in %d writes", lines, writes)
		}
		flush()
		time.Sleep(2 * logDelay) // ends the timer
	})
}

// crashVar makes TestLogSurvivesPanic log and panic.
const crashVar = "BROKER_TEST_CRASH"

// A panic of a goroutine that ends the process does not lose a line.
func TestLogSurvivesPanic(t *testing.T) {
	if os.Getenv(crashVar) != "" {
		log, flush := newLogger(os.Stderr, "json", slog.LevelInfo)
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer flush()
			for i := range 100 {
				log.Info("request", "n", i)
			}
			panic("a bug")
		}()
		<-done
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLogSurvivesPanic$")
	cmd.Env = append(os.Environ(), crashVar+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("a bug")) {
		t.Fatalf("got %v, want a panic:\n%s", err, out)
	}
	for i := range 100 {
		if !bytes.Contains(out, fmt.Appendf(nil, `"n":%d}`, i)) {
			t.Errorf("line %d is lost", i)
		}
	}
}
