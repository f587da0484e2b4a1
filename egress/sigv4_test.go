package egress

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// awsCredential has the keys of the examples in AWS's documentation of Signature Version 4.
func awsCredential() *api.Credential {
	return &api.Credential{Type: "aws", Secret: api.Secret{"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}}
}

func s3Grant(service string) *grant {
	return &grant{egress: api.Egress{Inject: api.Injection{As: api.InjectSigV4, Service: service, Region: "us-east-1"}}}
}

func signed(t *testing.T, g *grant, c *api.Credential, method, rawURL, body string, callers http.Header) (*http.Request, *Refusal) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	r := &http.Request{Method: method, URL: u, Header: http.Header{}}
	if body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	if v := callers.Get("Range"); v != "" {
		r.Header.Set("Range", v)
	}
	return r, g.sign(r, callers, c, time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC))
}

// The vectors are the examples of "Signature Calculations for the Authorization Header" in
// the API reference of Amazon S3.
func TestSignaturesAreThoseOfAWS(t *testing.T) {
	for rawURL, want := range map[string]string{
		"https://examplebucket.s3.amazonaws.com/test.txt":             "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
		"https://examplebucket.s3.amazonaws.com/?lifecycle":           "SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
		"https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J": "SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
	} {
		callers := http.Header{}
		if strings.Contains(want, "range") {
			callers.Set("Range", "bytes=0-9")
		}
		r, refusal := signed(t, s3Grant("s3"), awsCredential(), "GET", rawURL, "", callers)
		if refusal != nil || r.Header.Get("Authorization") != "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "+want {
			t.Errorf("%s: got %q, %v; want %q", rawURL, r.Header.Get("Authorization"), refusal, want)
		}
	}
}

func TestPayloadHashes(t *testing.T) {
	const sha = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072" // of the body
	for name, c := range map[string]struct{ service, url, body, callers, want string }{
		"S3 over TLS":                  {"s3", "https://b.test/k", "Welcome to Amazon S3.", "", "UNSIGNED-PAYLOAD"},
		"S3 without TLS":               {"s3", "http://b.test/k", "Welcome to Amazon S3.", "", sha},
		"another service":              {"sts", "https://b.test/", "Welcome to Amazon S3.", "", sha},
		"no body":                      {"s3", "https://b.test/k", "", "UNSIGNED-PAYLOAD", emptyHash},
		"the caller's hash":            {"s3", "https://b.test/k", "Welcome to Amazon S3.", sha, sha},
		"a trailer with a checksum":    {"s3", "https://b.test/k", "x", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"},
		"such a trailer without TLS":   {"s3", "http://b.test/k", "x", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", ""},
		"chunks signed by the caller":  {"s3", "https://b.test/k", "x", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", ""},
		"unsigned for another service": {"sts", "https://b.test/", "Welcome to Amazon S3.", "UNSIGNED-PAYLOAD", sha},
	} {
		r, refusal := signed(t, s3Grant(c.service), awsCredential(), "PUT", c.url, c.body, http.Header{"X-Amz-Content-Sha256": {c.callers}})
		if (refusal == nil) != (c.want != "") {
			t.Errorf("%s: got %v", name, refusal)
			continue
		}
		if got := r.Header.Get("X-Amz-Content-Sha256"); refusal == nil && c.service == "s3" && got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		if refusal == nil && r.Body != nil {
			if sent, err := io.ReadAll(r.Body); err != nil || string(sent) != c.body {
				t.Errorf("%s: the body is %q, %v", name, sent, err)
			}
		}
	}
}

func TestSessionTokensAreSigned(t *testing.T) {
	c := awsCredential()
	c.Secret["session_token"] = "session"
	r, refusal := signed(t, s3Grant("s3"), c, "GET", "https://b.test/k", "", nil)
	if refusal != nil || r.Header.Get("X-Amz-Security-Token") != "session" || !strings.Contains(r.Header.Get("Authorization"), "x-amz-security-token") {
		t.Errorf("got %v, %v", r.Header, refusal)
	}
}

// The path of a signed call has exactly the form that AWS signs.
func TestPathsOfSignedCalls(t *testing.T) {
	e := &api.Egress{
		Inject: api.Injection{As: api.InjectSigV4, Service: "s3", Region: "us-east-1"}, Allow: []api.EgressRule{{Hosts: []string{"b.test"}, Methods: []string{"GET"}, Paths: []string{"/bucket/**"}}},
		MaxRequest: 1, MaxAnswer: 1, Timeout: api.Duration(time.Second), IdleTimeout: api.Duration(time.Second),
	}
	p, err := Compile([]api.Offer{{Entitlement: "a", Egress: e}})
	if err != nil {
		t.Fatal(err)
	}
	_, target, err := p.Match("GET", "https://b.test/bucket/a+b(c)=d@e:f,g'h!i*j~k/%e4", nil)
	if err == nil {
		t.Errorf("wrong UTF-8 was allowed: %s", target.Path)
	}
	if _, target, err = p.Match("GET", "https://b.test/bucket/a+b(c)=d@e:f,g'h!i*j~k", nil); err != nil || target.Path != "/bucket/a%2Bb%28c%29%3Dd%40e%3Af%2Cg%27h%21i%2Aj~k" {
		t.Errorf("got %q, %v", target.Path, err)
	}
	if u, refusal := urlOf(target); refusal != nil || u.EscapedPath() != target.Path {
		t.Errorf("net/http would send %v, %v", u, refusal)
	}
}
