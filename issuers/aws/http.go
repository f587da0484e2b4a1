package aws

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"accessbroker.internal/broker"
)

// An httpClient sends requests, follows no redirect and limits answers. STS
// answers with a few KB.
type httpClient struct{ http *http.Client }

const (
	maxAnswer  = 64 << 10 // bytes
	maxHeaders = 32 << 10

	// idleTimeout is short because STS closes idle connections, and a request on
	// a connection that is being closed may be lost.
	idleTimeout = 5 * time.Second

	// clientTimeout bounds a whole call. Calls for the broker's own credentials need
	// it: the SDK makes one for all callers that wait, without their deadlines, so
	// an endpoint that never answers would stop the issuer for good.
	clientTimeout = broker.IssueDeadline
)

func newHTTPClient(c *http.Client, roots *x509.CertPool) httpClient {
	if c == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.Proxy, transport.MaxResponseHeaderBytes, transport.IdleConnTimeout = nil, maxHeaders, idleTimeout
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
		c = &http.Client{Transport: transport}
	}
	direct := *c
	direct.Timeout = cmp.Or(direct.Timeout, clientTimeout)
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return httpClient{&direct}
}

// Do implements the HTTPClient of the SDK. It sends a copy of the request's body,
// because the SDK closes the body as soon as the answer starts; a transport that is
// still reading it treats that as a failed write, and drops the connection with the
// rest of the answer. A body that can be read again also lets the transport use
// another connection if STS closed the first one before anything was written.
func (c httpClient) Do(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	clone, err := http.NewRequestWithContext(r.Context(), r.Method, r.URL.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	clone.Header, clone.Host = r.Header, r.Host
	resp, err := c.http.Do(clone)
	if err != nil {
		return nil, err
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	return resp, nil
}

// A signer signs requests (AWS Signature Version 4). The SDK's own signer caches the
// derived key by access key ID, so it keeps using a secret that was replaced.
type signer struct{}

// SignHTTP implements the HTTPSignerV4 of the SDK.
func (signer) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, payload, service, region string, now time.Time, options ...func(*v4.SignerOptions)) error {
	return v4.NewSigner().SignHTTP(ctx, c, r, payload, service, region, now, options...)
}
