package egress_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
)

// offer returns an offer with rules for hosts and paths.
func offer(name string, edit func(*api.Egress), hosts ...string) api.Offer {
	e := rulesFor("unused.test")
	e.Allow[0].Hosts, e.Allow[0].Paths, e.Allow[0].Addresses = hosts, []string{"/v1/**", "/repos/*/issues", "/exact"}, nil
	if edit != nil {
		edit(e)
	}
	return api.Offer{Entitlement: name, Egress: e}
}

func compile(t testing.TB, offers ...api.Offer) *egress.Policy {
	t.Helper()
	p, err := egress.Compile(offers)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func codeOf(err error) string {
	var r *egress.Refusal
	if !errors.As(err, &r) {
		return ""
	}
	return r.Code
}

func TestMatchSendsTheCanonicalURL(t *testing.T) {
	p := compile(t, offer("a", nil, "api.acme.test", "*.eu.acme.test", "api.acme.test:8443", "http://plain.acme.test:8080", "[2001:4860::1]", "192.0.2.7"))
	for raw, want := range map[string]string{
		"https://api.acme.test/v1/x":                   "https://api.acme.test/v1/x",
		"HTTPS://API.Acme.TEST:443/v1/x":               "https://api.acme.test/v1/x",
		"https://api.acme.test:8443/v1/x?a=1&b=%2e":    "https://api.acme.test:8443/v1/x?a=1&b=%2e",
		"https://one.eu.acme.test/exact":               "https://one.eu.acme.test/exact",
		"http://plain.acme.test:8080/exact":            "http://plain.acme.test:8080/exact",
		"https://[2001:4860:0:0::1]/exact":             "https://[2001:4860::1]/exact",
		"https://192.0.2.7/exact":                      "https://192.0.2.7/exact",
		"https://api.acme.test/%76%31/a%7eb%c3%a4":     "https://api.acme.test/v1/a~b%C3%A4",
		"https://api.acme.test/v1/a{b}|c":              "https://api.acme.test/v1/a%7Bb%7D%7Cc",
		"https://api.acme.test/v1/a:b@c,d=e+f":         "https://api.acme.test/v1/a:b@c,d=e+f",
		"https://api.acme.test/v1/...":                 "https://api.acme.test/v1/...",
		"https://api.acme.test/repos/acme%20co/issues": "https://api.acme.test/repos/acme%20co/issues",
		"https://api.acme.test/v1/":                    "https://api.acme.test/v1/",
	} {
		name, target, err := p.Match("GET", raw, nil)
		if err != nil || name != "a" || target.URL() != want {
			t.Errorf("%s: got %q, %q, %v; want %q", raw, name, target.URL(), err, want)
		}
	}
}

// Each of these could reach another host, or another path than the rule's, in some parser.
func TestMatchRefusesHostileURLs(t *testing.T) {
	p := compile(t, offer("a", nil, "api.acme.test", "*.eu.acme.test", "xn--bcher-kva.test"))
	for code, list := range map[string][]string{
		egress.CodeHost: {
			"https://evil.test/v1/x", "https://api.acme.test.evil.test/v1/x", "https://evil-api.acme.test/v1/x", "https://api.acme.test:8443/v1/x", "http://api.acme.test/v1/x", "http://api.acme.test:443/v1/x",
			"https://eu.acme.test/v1/x", "https://a.b.eu.acme.test/v1/x", "https://acme.test/v1/x", "https://localhost/v1/x", "https://127.0.0.1/v1/x", "https://[::1]/v1/x", "https://[::ffff:127.0.0.1]/v1/x",
			"https://169.254.169.254/latest", "https://api-acme.test/v1/x", "https://xn--80ak6aa92e.test/v1/x",
		},
		egress.CodeInvalidURL: {
			"https://api.acme.test@evil.test/v1/x", "https://user:pw@api.acme.test/v1/x", "https://evil.test#@api.acme.test/v1/x", "https://evil.test\\@api.acme.test/v1/x", "https://api.acme.test\\@evil.test/v1/x", "https://api.acme.test%40evil.test/v1/x",
			"https://api.acme.test%2eevil.test/v1/x", "https://api%2eacme%2etest/v1/x", "https://api.acme.test./v1/x", "https://api..acme.test/v1/x", "https://.acme.test/v1/x", "https://-api.acme.test/v1/x",
			"https://api。acme。test/v1/x", "https://ａpi.acme.test/v1/x", "https://аpi.acme.test/v1/x", "https://bücher.test/v1/x", "https://api.acme.test\u200b/v1/x", "https://api.acme.test\u00ad/v1/x",
			"https://2130706433/v1/x", "https://017700000001/v1/x", "https://0x7f000001/v1/x", "https://127.1/v1/x", "https://0177.0.0.1/v1/x", "https://0x7f.0.0.1/v1/x", "https://127.0.0.1./v1/x", "https://api.acme.0x7f/v1/x",
			"https://[::1%25eth0]/v1/x", "https://[fe80::1%eth0]/v1/x", "https://[::1/v1/x", "https://::1/v1/x", "https://[127.0.0.1]/v1/x", "https://[::1]x/v1/x", "https://[api.acme.test]/v1/x",
			"https://api.acme.test:/v1/x", "https://api.acme.test:0443/v1/x", "https://api.acme.test:99999/v1/x", "https://api.acme.test:+443/v1/x", "https://api.acme.test:443:443/v1/x", "https://api.acme.test:443@evil.test/v1/x",
			"https:///v1/x", "https:/api.acme.test/v1/x", "https:api.acme.test/v1/x", "//api.acme.test/v1/x", "/v1/x", "api.acme.test/v1/x", "", "ftp://api.acme.test/v1/x", "file:///etc/passwd", "javascript://api.acme.test/v1/x", "gopher://api.acme.test/v1/x", "https ://api.acme.test/v1/x",
			" https://api.acme.test/v1/x", "https://api.acme.test/v1/x\r\nHost: evil.test", "https://api.acme.test/v1/x\x00", "https://api.acme.test/v1/\tx", "https://api.acme.test/v1/x y", "https://api.acme.test/v1/x#frag",
			"https://api.acme.test/v1/../admin", "https://api.acme.test/v1/./x", "https://api.acme.test/v1/..", "https://api.acme.test/v1/%2e%2e/admin", "https://api.acme.test/v1/.%2E/admin", "https://api.acme.test/v1/..;/admin", "https://api.acme.test/v1/..;x=y/admin", "https://api.acme.test/v1/;/admin", "https://api.acme.test/v1/%2e%2e%3b/admin",
			"https://api.acme.test//v1/x", "https://api.acme.test/v1//x", "https://api.acme.test/v1/x%2f..%2f..%2fadmin", "https://api.acme.test/v1/x%5c..%5cadmin", "https://api.acme.test/v1/..%2fadmin", "https://api.acme.test/v1/..%5cadmin", "https://api.acme.test/v1\\..\\admin",
			"https://api.acme.test/v1/%00", "https://api.acme.test/v1/%0d%0aX", "https://api.acme.test/v1/%7f", "https://api.acme.test/v1/%c0%ae%c0%ae/admin", "https://api.acme.test/v1/%c0%af", "https://api.acme.test/v1/%e0%80%af", "https://api.acme.test/v1/%ff", "https://api.acme.test/v1/%zz", "https://api.acme.test/v1/%2", "https://api.acme.test/v1/%u002e",
			"https://api.acme.test/v1/%ef%bc%8e%ef%bc%8e/admin", "https://api.acme.test/v1/%ef%bc%8fadmin", "https://api.acme.test/v1/%e2%80%a5/admin", "https://api.acme.test/v1/%ef%bc%85x",
			"https://api.acme.test/" + strings.Repeat("a/", 300), "https://api.acme.test/" + strings.Repeat("a", 17<<10),
		},
		egress.CodePath: {
			"https://api.acme.test/", "https://api.acme.test", "https://api.acme.test?x=/v1/", "https://api.acme.test/v1", "https://api.acme.test/V1/x", "https://api.acme.test/v2/x", "https://api.acme.test/repos/a/b/issues",
			"https://api.acme.test/repos/issues", "https://api.acme.test/exact/", "https://api.acme.test/exact/x", "https://api.acme.test/exact;x",
			"https://api.acme.test/v1/a%2fb", "https://api.acme.test/v1/a%5cb", "https://api.acme.test/v1/a;b", "https://api.acme.test/v1/%252e%252e/admin", "https://api.acme.test/v1/a%25b", "https://api.acme.test/repos/a%2fb/issues",
		},
		egress.CodeQuery: {
			"https://api.acme.test/v1/x?access_token=y", "https://api.acme.test/v1/x?a=1&Access-Token=y", "https://api.acme.test/v1/x?a=1;access_token=y", "https://api.acme.test/v1/x?%61ccess_token=y", "https://api.acme.test/v1/x?access_token[]=y", "https://api.acme.test/v1/x?access.token", "https://api.acme.test/v1/x?+access_token=y",
			"https://api.acme.test/v1/x?api_key=y", "https://api.acme.test/v1/x?X-Amz-Signature=y", "https://api.acme.test/v1/x?private_token=y", "https://api.acme.test/v1/x?sig=y", "https://api.acme.test/v1/x?_method=DELETE", "https://api.acme.test/v1/x?_METHOD=DELETE", "https://api.acme.test/v1/x?X-HTTP-Method-Override=DELETE", "https://api.acme.test/v1/x?a=1&%zz=1",
		},
	} {
		for _, raw := range list {
			if name, target, err := p.Match("GET", raw, nil); codeOf(err) != code {
				t.Errorf("%q: got %q, %q, %v; want %s", raw, name, target.URL(), err, code)
			}
		}
	}
}

func TestMatchRefusesMethodsAndHeaders(t *testing.T) {
	p := compile(t, offer("a", nil, "api.acme.test"))
	for _, method := range []string{"", "get", "DELETE", "CONNECT", "TRACE", "GET ", "GET\r\nX: y", "G\x00T", "PRI", strings.Repeat("G", 1000)} {
		if _, _, err := p.Match(method, "https://api.acme.test/v1/x", nil); codeOf(err) != egress.CodeMethod {
			t.Errorf("%q: got %v, want %s", method, err, egress.CodeMethod)
		}
	}
	for name, h := range map[string]http.Header{
		"CRLF in a value": {"X-A": {"b\r\nAuthorization: Bearer x"}}, "LF in a value": {"X-A": {"b\nX: y"}}, "NUL in a value": {"X-A": {"b\x00"}},
		"CRLF in a name": {"X-A\r\nB": {"c"}}, "a space in a name": {"X A": {"b"}}, "a colon in a name": {"X-A:": {"b"}}, "an empty name": {"": {"b"}}, "a name that is not ASCII": {"X-ä": {"b"}},
		"a header bomb": {"X-A": {strings.Repeat("x", 70<<10)}},
	} {
		if _, _, err := p.Match("GET", "https://api.acme.test/v1/x", h); codeOf(err) != egress.CodeHeader {
			t.Errorf("%s: got %v, want %s", name, err, egress.CodeHeader)
		}
	}
}

// A refused method is answered with the methods of all rules that match the path.
func TestMatchNamesMethods(t *testing.T) {
	rule := func(method, path string) func(*api.Egress) {
		return func(e *api.Egress) { e.Allow[0].Methods, e.Allow[0].Paths = []string{method}, []string{path} }
	}
	p := compile(t, offer("read", rule("GET", "/t/**"), "api.acme.test"), offer("write", rule("PUT", "/t/*"), "api.acme.test"), offer("close", rule("POST", "/t/*/close"), "api.acme.test"))
	for path, want := range map[string]string{
		"/t/1":       "No rule allows DELETE for this host and path: use one of GET, PUT",
		"/t/1/close": "No rule allows DELETE for this host and path: use one of GET, POST",
		"/t/1/2/3":   "No rule allows DELETE for this host and path: use GET",
		"/other":     "No rule allows DELETE for this host: use one of GET, POST, PUT",
	} {
		if _, _, err := p.Match("DELETE", "https://api.acme.test"+path, nil); codeOf(err) != egress.CodeMethod || err.Error() != want {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
	}
}

// An encoded slash, a semicolon or an encoded percent sign passes where the rule writes it.
func TestRulesCanAllowEncodedSlashes(t *testing.T) {
	p := compile(t, offer("a", func(e *api.Egress) {
		e.Allow[0].Paths = []string{"/projects/acme%2F*/issues", "/@acme%2f*", "/matrix;v=*", "/a%25b"}
	}, "api.acme.test"))
	for path, want := range map[string]string{
		"/projects/acme%2fbroker/issues": "/projects/acme%2Fbroker/issues", "/@acme%2Fcli": "/@acme%2Fcli", "/matrix;v=1": "/matrix;v=1", "/a%25b": "/a%25b",
		"/projects/acme%2Fa%2Fb/issues": "", "/projects/other%2Fx/issues": "", "/projects/acme/broker/issues": "", "/matrix;v=1;w=2": "", "/@acme/cli": "",
	} {
		_, target, err := p.Match("GET", "https://api.acme.test"+path, nil)
		if target.Path != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v; want %q", path, target.Path, err, want)
		}
	}
}

func TestRulesCanNameTheQuery(t *testing.T) {
	p := compile(t, offer("a", func(e *api.Egress) { e.Allow[0].Query = []string{"page", "api_key"} }, "api.acme.test"))
	for query, allowed := range map[string]bool{"page=2": true, "page=2&api_key=x": true, "other=1": false, "page=1&other=2": false, "page=1;x=2": false, "PAGE=1": false} {
		if _, _, err := p.Match("GET", "https://api.acme.test/v1/x?"+query, nil); (err == nil) != allowed {
			t.Errorf("%s: got %v, want allowed: %t", query, err, allowed)
		}
	}
}

// If several entitlements allow a call, one without approval is preferred, then the first
// by name.
func TestMatchPrefersEntitlementsWithoutApproval(t *testing.T) {
	guarded := offer("a-guarded", nil, "api.acme.test")
	guarded.Decision = &api.Decision{Permit: true, Obligations: &api.Obligations{Approvals: []api.Need{{Group: "dba", Count: 1}}}}
	b, c := offer("b-free", nil, "api.acme.test"), offer("c-free", nil, "api.acme.test")
	for _, one := range []struct {
		offers []api.Offer
		want   string
	}{
		{[]api.Offer{guarded, c, b}, "b-free"}, {[]api.Offer{c, guarded}, "c-free"}, {[]api.Offer{guarded}, "a-guarded"},
	} {
		if name, _, err := compile(t, one.offers...).Match("GET", "https://api.acme.test/v1/x", nil); err != nil || name != one.want {
			t.Errorf("got %q, %v; want %q", name, err, one.want)
		}
	}
}

func TestRefusalsStateTheNextStep(t *testing.T) {
	p := compile(t, offer("a", nil, "api.acme.test"))
	for raw, want := range map[string]string{"https://evil.test/": "call one of api.acme.test", "https://api.acme.test/x": "use a path that the rules"} {
		if _, _, err := p.Match("GET", raw, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", raw, err, want)
		}
	}
	if _, _, err := new(egress.Policy).Match("GET", "https://api.acme.test/", nil); err == nil || !strings.Contains(err.Error(), "none of your entitlements has rules") {
		t.Errorf("without rules: got %v", err)
	}
}
