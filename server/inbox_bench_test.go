package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// sized returns the size of a fixture: with -short, one that only proves that the
// benchmark runs.
func sized[N int | time.Duration](full, short N) N {
	if testing.Short() {
		return short
	}
	return full
}

// fill puts n requests into the store.
func (w *world) fill(b testing.TB, n int, make func(i int) *broker.Request) {
	b.Helper()
	const batch = 2000
	for from := 0; from < n; from += batch {
		err := w.store.Update(b.Context(), nil, func(tx broker.Tx) error {
			for i := from; i < min(from+batch, n); i++ {
				tx.Put(make(i))
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func oneRequest(created time.Time, i int) *broker.Request {
	r := &broker.Request{
		ID: broker.NewRequestID(created), Version: 1, Entitlement: "guarded", Scopes: []string{"read"}, TTL: 10 * time.Minute, Duration: time.Hour,
		Requester:     broker.Identity{ID: fmt.Sprintf("%s/%d", agent, i%500), Kind: broker.KindAgent, TrustDomain: "acme.test", Team: "support", Accountable: []string{"login/ana"}},
		Justification: "The customer filed the same ticket three times; two of them are duplicates.", Created: created,
		Decision: broker.Decision{Permit: true, Policies: []string{"p"}, Reasons: []string{"closing needs a person"},
			Obligations: broker.Obligations{Approvals: []broker.ApprovalNeed{{Group: "dba", Count: 1}}}},
	}
	r.Digest = audit.Digest{byte(i), byte(i >> 8), byte(i >> 16), 1}
	return r
}

// crowdVar turns the test program into the server of BenchmarkCrowd, so that its memory
// can be measured separately.
const crowdVar = "BROKER_BENCH_CROWD"

// BenchmarkCrowdServer is that server. It measures nothing and ends when its standard
// input is closed.
func BenchmarkCrowdServer(b *testing.B) {
	if os.Getenv(crowdVar) == "" {
		b.Skip("serves BenchmarkCrowd")
	}
	w := newWorld(b, withPeople)
	server := httptest.NewTLSServer(w.Handler(UI, API))
	defer server.Close()
	fmt.Printf("%s\n%s", server.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	debug.SetGCPercent(150) // as the broker does; the broker also returns memory to the system every minute
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		debug.FreeOSMemory()
	}
}

// A crowd is a server in a separate process.
type crowd struct {
	b     *testing.B
	url   string
	roots *x509.CertPool
	cmd   *exec.Cmd
	in    io.Writer
}

func newCrowd(b *testing.B) *crowd {
	b.Helper()
	c := &crowd{b: b, cmd: exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkCrowdServer$"), roots: x509.NewCertPool()}
	c.cmd.Env = append(os.Environ(), crowdVar+"=1")
	in, err := c.cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	c.in = in
	b.Cleanup(func() { _ = in.Close(); _ = c.cmd.Wait() })
	lines := bufio.NewScanner(out)
	var text strings.Builder
	for lines.Scan() {
		if c.url == "" { // the testing package writes lines before it
			if _, url, found := strings.Cut(lines.Text(), "https://"); found {
				c.url = "https://" + url
			}
			continue
		}
		if text.WriteString(lines.Text() + "\n"); lines.Text() == "-----END CERTIFICATE-----" {
			break
		}
	}
	if !c.roots.AppendCertsFromPEM([]byte(text.String())) {
		b.Fatalf("the server wrote %q", text.String())
	}
	return c
}

// client returns a client with its own connection.
func (c *crowd) client() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.roots}, DialContext: (&net.Dialer{}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// memory returns a value of the server's /proc/PID/status, in MB.
func (c *crowd) memory(name string) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		c.b.Skip("resident memory is read from /proc")
	}
	_, after, _ := strings.Cut(string(text), name+":")
	kb, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		c.b.Fatal(err)
	}
	return kb >> 10
}

// A wayToWait is a call that waits for a decision on a request.
type wayToWait func(r api.Request) (method, path, body string, header http.Header)

func byLongPoll(r api.Request) (method, path, body string, header http.Header) {
	return http.MethodGet, "/v1/requests/" + r.ID + "?wait=60s&after=" + strconv.Itoa(r.Version), "", nil
}

func byEvents(r api.Request) (method, path, body string, header http.Header) {
	return http.MethodGet, "/v1/requests/" + r.ID, "", http.Header{"Accept": {eventStream}}
}

// waits files a request that needs approval and waits for a decision.
func (c *crowd) waits(ctx context.Context, who string, how wayToWait, filed func()) error {
	client := c.client()
	call := func(method, path, body string, header http.Header) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		maps.Copy(req.Header, header)
		req.Header.Set("Authorization", "Bearer "+who)
		req.Header.Set("Content-Type", "application/json")
		return client.Do(req)
	}
	resp, err := call(http.MethodPost, "/v1/requests", `{"entitlement":"guarded","scopes":["read"],"justification":"x"}`, nil)
	if err != nil {
		return err
	}
	var r api.Request
	err = json.NewDecoder(resp.Body).Decode(&r)
	_ = resp.Body.Close()
	if err != nil || r.ID == "" {
		return fmt.Errorf("filing a request: %s %w", resp.Status, err)
	}
	filed()
	resp, err = call(how(r))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// watches logs a person in and keeps the inbox's event stream open.
func (c *crowd) watches(ctx context.Context, person string, open func()) error {
	client := c.client()
	var cookies []*http.Cookie
	get := func(path string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+path, nil)
		if err != nil {
			return nil, err
		}
		for _, cookie := range cookies {
			req.AddCookie(cookie)
		}
		resp, err := client.Do(req)
		if err == nil && len(resp.Cookies()) > 0 {
			cookies = resp.Cookies()
		}
		return resp, err
	}
	for _, path := range []string{"/ui/login?provider=login", "/ui/login/callback?state=state-1&code=" + person, "/ui/"} {
		resp, err := get(path)
		for err == nil && resp.StatusCode == http.StatusTooManyRequests { // all share one address
			_ = resp.Body.Close()
			time.Sleep(100 * time.Millisecond)
			resp, err = get(path)
		}
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode >= 400 {
			return fmt.Errorf("%s: %s", path, resp.Status)
		}
		if path != "/ui/" {
			cookies = slices.DeleteFunc(cookies, func(k *http.Cookie) bool { return k.MaxAge < 0 })
		}
	}
	resp, err := get("/ui/events")
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("watching: %v %w", resp.Status, err)
	}
	open()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// BenchmarkCrowd measures 1,000 callers that wait in long polls and 200 people who
// watch the inbox. The targets are 100 MB, and no reads of the database while waiting.
func BenchmarkCrowd(b *testing.B) {
	waiting, watching := sized(1000, 50), sized(200, 10)
	c := newCrowd(b)
	before := c.memory("VmRSS")
	ctx, cancel := context.WithCancel(b.Context())
	var there, gone sync.WaitGroup
	failed := make(chan error, waiting+watching)
	atOnce := make(chan struct{}, 20) // arrivals
	join := func(f func(arrived func()) error) {
		atOnce <- struct{}{}
		there.Add(1)
		gone.Go(func() {
			arrived := sync.OnceFunc(func() { <-atOnce; there.Done() })
			if err := f(arrived); err != nil && ctx.Err() == nil {
				failed <- err
			}
			arrived()
		})
	}
	for i := range watching {
		join(func(arrived func()) error { return c.watches(ctx, fmt.Sprintf("login/p%d", i), arrived) })
	}
	for i := range waiting {
		join(func(arrived func()) error { return c.waits(ctx, fmt.Sprintf("%s/%d", agent, i), byLongPoll, arrived) })
	}
	there.Wait()
	time.Sleep(sized(3*time.Second, 0)) // until the events of the arrivals are delivered
	cpu, idle := c.cpu(), sized(5*time.Second, 100*time.Millisecond)
	time.Sleep(idle)
	busy := c.cpu() - cpu
	arrived := c.memory("VmRSS")
	if _, err := fmt.Fprintln(c.in, "give back"); err != nil {
		b.Fatal(err)
	}
	time.Sleep(sized(2*time.Second, 0))
	after := c.memory("VmRSS")
	b.Logf("resident memory: %d MB idle, %d MB when %d long polls and %d viewers have just arrived, %d MB a minute later: %d MB for them (target at most 100); CPU in %s of waiting: %s",
		before, arrived, waiting, watching, after, after-before, idle, busy)
	cancel()
	gone.Wait()
	select {
	case err := <-failed:
		b.Fatal(err)
	default:
	}
	for b.Loop() { // measured above
	}
	b.ReportMetric(float64(after-before), "MB")
	b.ReportMetric(busy.Seconds()/idle.Seconds(), "cpu")
}

// cpu returns the processor time that the server has used.
func (c *crowd) cpu() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		c.b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var ticks int
	for _, f := range fields[11:13] { // utime, stime; see proc(5)
		n, err := strconv.Atoi(f)
		if err != nil {
			c.b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}
