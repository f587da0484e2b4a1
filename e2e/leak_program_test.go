package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// leakEnv makes the test binary the program of a leak hunt. It has a leakPlan.
const leakEnv = "LEAK_PROGRAM"

// A leakPlan is what the program does.
type leakPlan struct {
	Host         string
	Entitlements int
	Seed, Calls  int
	Dir          string // for its files
}

func (p leakPlan) text() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // it has numbers and texts
	}
	return string(b)
}

// leakMain is the main function of the program. It makes its calls as programs do, writes
// all that it receives to a file, and waits until it was searched.
func leakMain(text string) int {
	var p leakPlan
	err := json.Unmarshal([]byte(text), &p)
	if err == nil {
		err = p.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		if _, err := os.Stat(filepath.Join(p.Dir, "end")); err == nil {
			return 0
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p leakPlan) run() error {
	proxy, err := url.Parse(os.Getenv("HTTPS_PROXY"))
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(os.Getenv("SSL_CERT_FILE"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	f, err := os.Create(filepath.Join(p.Dir, "answers"))
	if err != nil {
		return err
	}
	c := &leakProgram{leakPlan: p, proxy: proxy, out: bufio.NewWriter(f), config: &tls.Config{RootCAs: roots}}
	transport := &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: c.config, ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConnsPerHost: 10}
	c.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	err = errors.Join(c.calls(), c.out.Flush(), f.Close())
	return errors.Join(err, os.WriteFile(filepath.Join(p.Dir, "pid"), []byte(strconv.Itoa(os.Getpid())), 0o600), os.WriteFile(filepath.Join(p.Dir, "done"), nil, 0o600))
}

// A leakProgram makes calls.
type leakProgram struct {
	leakPlan
	proxy  *url.URL
	config *tls.Config
	client *http.Client

	mu  sync.Mutex
	out *bufio.Writer
}

// calls makes all calls, several at a time.
func (c *leakProgram) calls() error {
	var all sync.WaitGroup
	next, errs := make(chan int), make(chan error, 1)
	for range 6 {
		all.Go(func() {
			for i := range next {
				if err := c.call(i); err != nil {
					select {
					case errs <- fmt.Errorf("call %d: %w", i, err):
					default:
					}
				}
			}
		})
	}
	for i := range c.Calls {
		next <- i
	}
	close(next)
	all.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// call makes one call and notes the answer.
func (c *leakProgram) call(i int) error {
	path := fmt.Sprintf("/e/%d/x?seed=%d", i%c.Entitlements, c.Seed+i)
	if i%40 == 7 {
		return c.socket(path + "&do=socket")
	}
	r, err := http.NewRequest(http.MethodGet, "https://"+c.Host+path, nil)
	if err != nil {
		return err
	}
	if i%3 > 0 {
		r.Header.Set("Accept-Encoding", "gzip, deflate")
	}
	resp, err := c.client.Do(r)
	if err != nil {
		return err
	}
	var answer bytes.Buffer
	fmt.Fprintln(&answer, resp.Proto, resp.Status)
	_ = resp.Header.Write(&answer) // to memory
	_, err = answer.ReadFrom(resp.Body)
	_ = resp.Trailer.Write(&answer)
	return errors.Join(err, resp.Body.Close(), c.note(answer.Bytes()))
}

// socket opens a WebSocket as a simple client does, and notes all bytes of the host.
func (c *leakProgram) socket(path string) error {
	conn, err := net.Dial("tcp", c.proxy.Host)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	password, _ := c.proxy.User.Password()
	auth := base64.StdEncoding.EncodeToString([]byte(c.proxy.User.Username() + ":" + password))
	fmt.Fprintf(conn, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: Basic %[2]s\r\n\r\n", c.Host, auth)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the tunnel: %v, %w", resp, err)
	}
	config := c.config.Clone()
	config.ServerName, _, _ = net.SplitHostPort(c.Host)
	config.NextProtos = []string{"http/1.1"}
	inner := tls.Client(conn, config)
	fmt.Fprintf(inner, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path, c.Host)
	all, err := io.ReadAll(inner)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(all, []byte("HTTP/1.1 101 ")) {
		return fmt.Errorf("the WebSocket: %.300q", all)
	}
	return c.note(all)
}

func (c *leakProgram) note(answer []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.out.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...))
	return err
}

// readAnswer reads what note wrote.
func readAnswer(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(r, answer)
	return answer, err
}

// startTLS starts a server on loopback whose certificate is of an authority in a file.
func startTLS(t *testing.T, h http.Handler) (s *httptest.Server, caFile string) {
	t.Helper()
	dir := t.TempDir()
	caFile = filepath.Join(dir, "ca.pem")
	loopbackTLS(t, caFile, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s = httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, caFile
}
