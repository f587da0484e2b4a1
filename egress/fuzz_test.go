package egress_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
)

// A pipeDialer connects each call to a host that records the request as it arrives.
type pipeDialer struct{ seen chan string }

func (d *pipeDialer) dial(context.Context, string, string) (net.Conn, error) {
	client, host := net.Pipe()
	go func() {
		defer func() { _ = host.Close() }()
		d.seen <- readRequest(host)
		_, _ = fmt.Fprint(host, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
	}()
	return client, nil
}

// anywhere resolves each name to a public address.
type anywhere struct{}

func (anywhere) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("1.1.1.1")}, nil
}

// What Match allows is exactly what a host receives: the method, the path, the query and
// the host, in one request.
func FuzzMatch(f *testing.F) {
	for _, raw := range []string{
		"http://api.acme.test/v1/x?a=b", "http://api.acme.test:80/v1/%2e", "http://API.acme.test/%76%31/a/%e4%bd%a0?q=%0d%0a", "http://a.eu.acme.test/v1/..;/x", "http://api.acme.test@evil.test/v1/x", "http://api.acme.test/v1/a{b}[c]|\"<>^`",
		"http://api.acme.test/v1/x?access_token=y", "http://api.acme.test/v1/%25%32%65", "http://api.acme.test/v1/x\r\nHost: evil.test", "http://[::1]/v1/x", "http://api.acme.test/v1/a+b&c=d;e", "http://api.acme.test/repos/a/issues?x=?/../", "http://api.acme.test/v1/x??", "http://api.acme.test/v1/*",
	} {
		f.Add("GET", raw)
		f.Add("POST", raw)
	}
	policy := compile(f, offer("a", nil, "http://api.acme.test", "http://*.eu.acme.test"))
	dialer := &pipeDialer{seen: make(chan string, 1)}
	transport := &egress.Transport{Policy: func() *egress.Policy { return policy }, Credentials: credentials{"token": token}, Resolver: anywhere{}, Dial: dialer.dial}
	f.Fuzz(func(t *testing.T, method, raw string) {
		_, target, err := policy.Match(method, raw, nil)
		if err != nil {
			return
		}
		checkTarget(t, target)
		u, err := url.Parse(target.URL())
		if err != nil {
			t.Fatalf("%q: net/url refuses the target %q: %v", raw, target.URL(), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		resp, err := transport.RoundTrip((&http.Request{Method: method, URL: u, Header: http.Header{}}).WithContext(ctx))
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		_ = resp.Body.Close()
		seen := <-dialer.seen
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(seen)))
		if err != nil {
			t.Fatalf("%q: the host received %q: %v", raw, seen, err)
		}
		uri := target.Path
		if target.Query != "" {
			uri += "?" + target.Query
		}
		if r.Method != method || r.RequestURI != uri || r.Host != target.Host || strings.Count(seen, "\r\n\r\n") != 1 {
			t.Errorf("%q: the host received %q, want %s %s", raw, seen, method, target.URL())
		}
	})
}

// checkTarget checks what every allowed target has in common.
func checkTarget(t *testing.T, target egress.Target) {
	t.Helper()
	if target.Host != "api.acme.test" && !strings.HasSuffix(target.Host, ".eu.acme.test") || strings.ContainsAny(target.Host, "@/\\:") {
		t.Errorf("the host is %q", target.Host)
	}
	decoded, err := url.PathUnescape(target.Path)
	if err != nil || !utf8.ValidString(decoded) || strings.ContainsFunc(target.Path, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }) {
		t.Errorf("the path is %q: %v", target.Path, err)
	}
	for _, text := range []string{target.Path, decoded} {
		for segment := range strings.SplitSeq(strings.TrimPrefix(text, "/"), "/") {
			if name, _, _ := strings.Cut(segment, ";"); name == ".." || name == "." {
				t.Errorf("the path %q has dots", text)
			}
		}
	}
	if strings.Contains(target.Path, "//") || strings.ContainsAny(target.Query, "\r\n\x00 #") {
		t.Errorf("the target is %q", target.URL())
	}
}

// A rule that loads never allows another host than those that it names.
func FuzzRules(f *testing.F) {
	for _, one := range [][2]string{{"api.acme.test", "/v1/**"}, {"*.acme.test:8443", "/a*b*c/%2F"}, {"http://[::1]:80", "/**"}, {"API.acme.test", "/"}, {"*.test", "/a/**/b"}, {"api.acme.test/", "//"}} {
		f.Add(one[0], one[1], "GET", "x-a")
	}
	f.Fuzz(func(t *testing.T, host, path, method, header string) {
		e := rulesFor(host)
		e.Allow[0].Paths, e.Allow[0].Methods, e.Allow[0].Headers = []string{path}, []string{method}, []string{header}
		p, err := egress.Compile([]api.Offer{{Entitlement: "a", Egress: e}})
		if err != nil {
			return
		}
		if got := p.Hosts(); len(got) != 1 || !strings.Contains(strings.ToLower(host), strings.TrimPrefix(strings.TrimSuffix(got[0], ":80"), "*.")) && !strings.Contains(host, "[") {
			t.Errorf("%q names the hosts %q", host, got)
		}
		for _, other := range []string{"evil.test", "127.0.0.1", "localhost"} {
			if !strings.Contains(strings.ToLower(host), other) && (p.MatchHost("https", other) || p.MatchHost("http", other)) {
				t.Errorf("%q allows %s", host, other)
			}
		}
	})
}
