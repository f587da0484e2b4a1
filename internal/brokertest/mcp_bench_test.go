package brokertest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A benchCaller is a workload with a connection of its own and a pending request.
type benchCaller struct {
	conn    net.Conn
	read    *bufio.Reader
	request string
	poll    message // of the task
	host    string
}

// benchCallers returns n callers, each of another workload.
func (b *Broker) benchCallers(t testing.TB, n int) (list []*benchCaller) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(b.CA.X509Authority())
	for i := range n {
		svid, err := b.CA.X509SVID(fmt.Sprintf("%s/%d", Agent, i), time.Hour)
		b.must(err)
		host := strings.TrimPrefix(b.URL, "https://")
		conn, err := tls.Dial("tcp", host, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{svid}})
		b.must(err)
		t.Cleanup(func() { _ = conn.Close() })
		c := &benchCaller{conn: conn, read: bufio.NewReader(conn), host: host}
		text, err := c.do(message{method: http.MethodPost, contentType: "application/json", body: `{"entitlement": "tickets-api", "scopes": ["tickets:close"], "justification": "duplicates"}`}, "/v1/requests")
		b.must(err)
		c.request = requestID.FindString(text)
		c.poll = taskGet(c.request)
		list = append(list, c)
	}
	return list
}

var requestID = regexp.MustCompile(`req_[0-9a-v]{26}`)

// do sends one call and reads its answer.
func (c *benchCaller) do(m message, path string) (string, error) {
	if path == "" {
		path = "/mcp"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", m.method, path, c.host, len(m.body))
	if m.contentType != "" {
		fmt.Fprintf(&b, "Content-Type: %s\r\n", m.contentType)
	}
	for name, values := range m.header {
		fmt.Fprintf(&b, "%s: %s\r\n", name, values[0])
	}
	b.WriteString("\r\n" + m.body)
	if _, err := io.WriteString(c.conn, b.String()); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(c.read, nil)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return string(text), err
}

// A benchCall is one kind of call, and what its answer has.
type benchCall struct {
	name string
	of   func(*benchCaller) (message, string)
	want string
}

func v1Call(path func(*benchCaller) string) func(*benchCaller) (message, string) {
	return func(c *benchCaller) (message, string) { return message{method: http.MethodGet}, path(c) }
}

func mcpCall(m func(*benchCaller) message) func(*benchCaller) (message, string) {
	return func(c *benchCaller) (message, string) { return m(c), "" }
}

var benchCalls = map[string][2]benchCall{
	"list": {
		{"v1", v1Call(func(*benchCaller) string { return "/v1/entitlements" }), "tickets-api"},
		{"mcp", mcpCall(func(*benchCaller) message { return listAccess }), "tickets-api"},
	},
	"status": {
		{"v1", v1Call(func(c *benchCaller) string { return "/v1/requests/" + c.request }), `"pending"`},
		{"mcp", mcpCall(func(c *benchCaller) message { return toolCall("access_status", `{"handle": "`+c.request+`"}`) }), `"pending"`},
	},
}

func taskGet(id string) message {
	m := rpc("tasks/get", id, `"taskId": "`+id+`", `)
	m.body = strings.Replace(m.body, `clientCapabilities": {}`, `clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}}`, 1)
	return m
}

// BenchmarkMCP compares calls of the MCP endpoint with the same calls of /v1, in turns of
// a fixed number, in one process: ratio is the rate of the former by that of the latter.
//
//	go test ./internal/brokertest -run '^$' -bench MCP -benchtime 20000x
func BenchmarkMCP(b *testing.B) {
	for name, pair := range benchCalls {
		b.Run(name, func(b *testing.B) {
			k := newBroker(b, slog.New(slog.NewJSONHandler(io.Discard, nil)))
			callers := k.benchCallers(b, 16)
			var spent [2]time.Duration
			done := 0
			const turn = 16 * 50
			b.ResetTimer()
			for done == 0 || done < b.N {
				for i, call := range pair {
					start := time.Now()
					repeat(b, callers, call, turn)
					spent[i] += time.Since(start)
				}
				done += turn
			}
			b.StopTimer()
			b.ReportMetric(float64(done)/spent[0].Seconds(), "v1/s")
			b.ReportMetric(float64(done)/spent[1].Seconds(), "mcp/s")
			b.ReportMetric(spent[0].Seconds()/spent[1].Seconds(), "ratio")
		})
	}
}

// repeat makes n calls, which the callers share.
func repeat(b *testing.B, callers []*benchCaller, call benchCall, n int) {
	b.Helper()
	var all sync.WaitGroup
	for _, c := range callers {
		all.Go(func() {
			m, path := call.of(c)
			for range n / len(callers) {
				if text, err := c.do(m, path); err != nil || !strings.Contains(text, call.want) {
					b.Errorf("%s: got %.300q, %v", call.name, text, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// BenchmarkWaiting compares callers that wait for people with long polls of /v1, and with
// tasks, as their clients do: CPU time of the process in a fixed time, and memory. It begins
// when all tasks are old enough for their polls to wait, and takes whole cycles of both.
func BenchmarkWaiting(b *testing.B) {
	waiters, begin, period := 1000, 3*time.Second, time.Minute
	if testing.Short() {
		waiters, begin, period = 20, 0, 200*time.Millisecond
	}
	for name, wait := range map[string]func(context.Context, *benchCaller) error{
		"long polls": func(_ context.Context, c *benchCaller) error {
			_, err := c.do(message{method: http.MethodGet}, "/v1/requests/"+c.request+"?wait=30s&after=1")
			return err
		},
		"tasks": func(ctx context.Context, c *benchCaller) error {
			text, err := c.do(c.poll, "")
			if err != nil {
				return err
			}
			_, rest, _ := strings.Cut(text, `"pollIntervalMs":`)
			ms, err := strconv.Atoi(strings.TrimSpace(rest[:max(0, strings.IndexAny(rest, ",}"))]))
			if err != nil || !strings.Contains(text, `"working"`) {
				return fmt.Errorf("got %.300s", text)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(ms) * time.Millisecond):
			}
			return nil
		},
	} {
		b.Run(name, func(b *testing.B) {
			k := newBroker(b, slog.New(slog.NewJSONHandler(io.Discard, nil)))
			callers := k.benchCallers(b, waiters)
			time.Sleep(begin)
			ctx, stop := context.WithTimeout(b.Context(), period)
			defer stop()
			var all sync.WaitGroup
			var calls sync.Map
			before := cpuTime()
			for _, c := range callers {
				all.Go(func() {
					n := 0
					for ctx.Err() == nil {
						if err := wait(ctx, c); err != nil && ctx.Err() == nil {
							b.Error(err)
							break
						}
						n++
					}
					calls.Store(c, n)
				})
			}
			<-ctx.Done()
			used := cpuTime() - before
			var memory runtime.MemStats
			runtime.ReadMemStats(&memory)
			for _, c := range callers {
				_ = c.conn.SetDeadline(time.Now()) // ends the last calls
			}
			all.Wait()
			total := 0
			calls.Range(func(_, n any) bool { total += n.(int); return true })
			b.ReportMetric(100*used.Seconds()/period.Seconds(), "%cpu")
			b.ReportMetric(float64(memory.HeapInuse+memory.StackInuse)/float64(waiters), "B/waiter")
			b.ReportMetric(float64(total)/period.Seconds(), "calls/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpuTime returns the CPU time that this process has used.
func cpuTime() time.Duration {
	var use syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &use) != nil {
		return 0
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
