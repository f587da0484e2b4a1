package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"accessbroker.internal/api"
)

// A front is a broker behind a reverse proxy, both configured as docs/proxies.md shows.
type front struct {
	*world
	section string
	port    int    // of the proxy
	backend string // the broker's listener behind the proxy
	pool    *tls.Config
}

// proxyExample returns the code block of a language in a section of docs/proxies.md.
func proxyExample(t testing.TB, section, language string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/proxies.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## "+section+"\n")
	rest, _, _ = strings.Cut(rest, "\n## ")
	_, rest, ok := strings.Cut(rest, "\n```"+language+"\n")
	block, _, end := strings.Cut(rest, "\n```\n")
	if !found || !ok || !end {
		t.Fatalf("docs/proxies.md has no %s in the section %q", language, section)
	}
	return block
}

// fill replaces every given text of an example. Each must be there.
func fill(t testing.TB, example string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(example, pairs[i]) {
			t.Fatalf("the example does not have %q:\n%s", pairs[i], example)
		}
	}
	return strings.NewReplacer(pairs...).Replace(example)
}

// newFront configures and starts the broker of a section. It has a second listener for
// direct callers.
func newFront(t testing.TB, s *spire, section, backend string) *front {
	t.Helper()
	f := &front{world: newBroker(t, s), section: section, port: freePort(t), backend: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	at := func(name string) string { return filepath.Join(f.dir, name) }
	f.pool = &tls.Config{RootCAs: loopbackTLS(t, at("broker-ca.pem"), at("broker.pem"), at("broker.key")), MinVersion: tls.VersionTLS13}
	both, err := os.ReadFile(at("broker.pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(at("broker.key"))
	if err != nil {
		t.Fatal(err)
	}
	f.write(t, "both.pem", string(both)+string(key))
	f.configure(t, []string{s.domain}, agentsPolicy)
	file, err := os.ReadFile(at("broker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	example := strings.Split(fill(t, proxyExample(t, section, "yaml"), backend, f.backend), "\n")
	if len(example) != 3 || example[0] != "listeners:" {
		t.Fatalf("the broker's part of the section %q is %q", section, example)
	}
	f.write(t, "broker.yaml", fill(t, string(file), "external_url: "+f.url, "external_url: "+f.external(), "  listeners:\n", "  "+example[2]+"\n  listeners:\n  "+example[1]+"\n"))
	f.start(t)
	return f
}

func (f *front) external() string { return fmt.Sprintf("https://localhost:%d", f.port) }

// callAs calls the broker from an address of loopback, and returns the address in the
// broker's log.
func (f *front) callAs(t testing.TB, from, url string, config *tls.Config, token string, header ...string) (who *api.Identity, logged string, err error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, ForceAttemptHTTP2: true}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, _ := net.SplitHostPort(address)
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		return d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
	c := &api.Client{BaseURL: url, HTTP: &http.Client{Timeout: 20 * time.Second, Transport: setHeader{transport, header}}}
	if token != "" {
		c.Token = func(context.Context) (string, error) { return token, nil }
	}
	before := len(f.broker.out.String())
	who, err = c.WhoAmI(t.Context())
	if e := (*api.Error)(nil); err != nil && !errors.As(err, &e) {
		return who, "", err // the call did not reach the broker
	}
	line := regexp.MustCompile(`"route":"/v1/whoami".*?"from":"([^"]*)"`)
	eventually(t, "the log of the call", time.Minute, func() error { // it follows the answer
		found := line.FindStringSubmatch(f.broker.out.String()[before:])
		if found == nil {
			return errors.New("there is none")
		}
		logged = found[1]
		return nil
	})
	return who, logged, err
}

// setHeader is a transport that adds headers.
type setHeader struct {
	http.RoundTripper
	pairs []string
}

func (s setHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for i := 0; i < len(s.pairs); i += 2 {
		r.Header.Add(s.pairs[i], s.pairs[i+1])
	}
	return s.RoundTripper.RoundTrip(r)
}

// startProxy runs a proxy and waits until it reaches the broker.
func (f *front) startProxy(t testing.TB, config *tls.Config, name string, args ...string) {
	t.Helper()
	p, err := start(t, name, installed(t, name), args...)
	if err != nil {
		t.Fatal(err)
	}
	probe := client(t, config, false)
	eventually(t, "the start of "+name, time.Minute, func() error {
		if p.ended() {
			t.Fatalf("%s did not start:\n%s", name, p.out)
		}
		resp, err := probe.Get(f.external() + "/healthz")
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("got %s", resp.Status)
		}
		return nil
	})
}

// The proxies of docs/proxies.md, as the page configures them: a caller is known by its
// own address, which it cannot choose.
func TestProxies(t *testing.T) {
	t.Parallel() // it mostly waits
	s := startSPIRE(t, "acme.test")
	s.register(t, "/agent/triage", ownBinary(t))
	src := source(t, s)
	const caller, claimed = "127.0.0.9", "192.0.2.66"
	claims := []string{"X-Forwarded-For", claimed, "Forwarded", "for=" + claimed, "X-Real-Ip", claimed, "X-Forwarded-Host", "evil.test", "X-Forwarded-Client-Cert", "URI=spiffe://acme.test/agent/triage"}

	// throughTermination calls through a proxy that ends TLS.
	throughTermination := func(t *testing.T, f *front) {
		svid := jwtSVID(t, s, f.external()).Marshal()
		eventually(t, "the broker's keys of JWT-SVIDs", time.Minute, func() error {
			if _, _, err := f.callAs(t, caller, f.external(), f.pool, svid); err != nil && strings.Contains(err.Error(), "no JWT authorities") {
				return err
			}
			return nil
		})
		for name, header := range map[string][]string{"plain": nil, "with claims": claims} {
			who, from, err := f.callAs(t, caller, f.external(), f.pool, svid, header...)
			if err != nil || who.ID != "spiffe://acme.test/agent/triage" || from != caller {
				t.Errorf("%s: got %+v, %v, from %q; want it from %s", name, who, err, from, caller)
			}
		}
		if _, from, err := f.callAs(t, caller, f.external(), f.pool, "", claims...); !errors.Is(err, api.Unauthenticated) || from != caller {
			t.Errorf("a certificate in a header: got %v from %q, want it refused", err, from)
		}
		direct := tlsconfig.TLSClientConfig(src, tlsconfig.AuthorizeID(brokerID))
		if _, from, err := f.callAs(t, caller, "https://"+f.listen, direct, svid, claims...); err != nil || from != caller {
			t.Errorf("a direct call with claims: got %v from %q, want it from %s", err, from, caller)
		}
	}
	t.Run("nginx, termination", func(t *testing.T) {
		f := newFront(t, s, "nginx, termination", "127.0.0.1:8443")
		at := func(name string) string { return filepath.Join(f.dir, name) }
		server := fill(t, proxyExample(t, f.section, "nginx"), "127.0.0.1:8443", f.backend, "listen 443", fmt.Sprintf("listen 127.0.0.1:%d", f.port), "broker.acme.test", "localhost",
			"/etc/nginx/web.pem", at("broker.pem"), "/etc/nginx/web.key", at("broker.key"), "/etc/nginx/broker-ca.pem", at("broker-ca.pem"))
		user := ""
		if os.Getuid() == 0 {
			user = "user root;\n"
		}
		temp := ""
		for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			temp += fmt.Sprintf("%s_temp_path %s;\n", name, at(name))
		}
		f.write(t, "nginx.conf", user+"daemon off;\npid "+at("nginx.pid")+";\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+temp+server+"\n}\n")
		f.startProxy(t, f.pool, "nginx", "-c", at("nginx.conf"), "-e", "stderr")
		throughTermination(t, f)
	})
	t.Run("HAProxy, termination", func(t *testing.T) {
		f := newFront(t, s, "HAProxy, termination", "127.0.0.1:8443")
		at := func(name string) string { return filepath.Join(f.dir, name) }
		f.write(t, "haproxy.cfg", fill(t, proxyExample(t, f.section, "haproxy"), "127.0.0.1:8443", f.backend, "bind :443", fmt.Sprintf("bind 127.0.0.1:%d", f.port),
			"/etc/haproxy/web.pem", at("both.pem"), "/etc/haproxy/broker-ca.pem", at("broker-ca.pem"), "broker.acme.test", "localhost")+"\n")
		f.startProxy(t, f.pool, "haproxy", "-db", "-f", at("haproxy.cfg"))
		throughTermination(t, f)
	})
	t.Run("HAProxy, passthrough", func(t *testing.T) {
		f := newFront(t, s, "HAProxy, passthrough", "127.0.0.1:8444")
		mtls := tlsconfig.MTLSClientConfig(src, src, tlsconfig.AuthorizeID(brokerID))
		f.write(t, "haproxy.cfg", fill(t, proxyExample(t, f.section, "haproxy"), "127.0.0.1:8444", f.backend, "bind :8443", fmt.Sprintf("bind 127.0.0.1:%d", f.port))+"\n")
		f.startProxy(t, mtls, "haproxy", "-db", "-f", filepath.Join(f.dir, "haproxy.cfg"))
		for name, header := range map[string][]string{"plain": nil, "with claims": claims} {
			who, from, err := f.callAs(t, caller, f.external(), mtls, "", header...)
			if err != nil || who.ID != "spiffe://acme.test/agent/triage" || who.Proof.Method != "x509-svid" || from != caller {
				t.Errorf("%s: got %+v, %v, from %q; want the certificate's identity from %s", name, who, err, from, caller)
			}
		}
		// Neither a direct call nor a header from another address gets in.
		if _, _, err := f.callAs(t, caller, "https://"+f.backend, mtls, ""); err == nil {
			t.Error("a call without the PROXY header was answered")
		}
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(caller)}}).Dial("tcp", f.backend)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = fmt.Fprintf(conn, "PROXY TCP4 %s 127.0.0.1 4711 443\r\n", claimed)
		if err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake(); err == nil {
			t.Error("a PROXY header from an address that is not listed was believed")
		}
	})
}
