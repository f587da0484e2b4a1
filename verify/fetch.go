package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Bounds of the calls to the issuer.
const (
	fetchTimeout     = 5 * time.Second
	maxDocument      = 256 << 10 // of metadata and keys
	maxIntrospection = 64 << 10
	maxListToken     = 2 << 20
)

// A response is the answer of the issuer.
type response struct {
	body   []byte
	header http.Header
	status int
}

// get fetches a document. It follows no redirect: the issuer would otherwise decide which
// hosts the service calls.
func (v *Verifier) get(ctx context.Context, address string, header http.Header, most int64) (*response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, errors.New("the URL is not valid")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	return v.do(req, most)
}

// post sends a form.
func (v *Verifier) post(ctx context.Context, address string, form url.Values, bearer string) (*response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, errors.New("the URL is not valid")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	return v.do(req, maxIntrospection)
}

func (v *Verifier) do(req *http.Request, most int64) (*response, error) {
	resp, err := v.client.Do(req)
	if err != nil {
		var broken *url.Error
		if errors.As(err, &broken) {
			err = broken.Err // without the URL
		}
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	if resp.StatusCode == http.StatusNotModified {
		return &response{header: resp.Header, status: resp.StatusCode}, nil
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer has status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > most {
		return nil, fmt.Errorf("the answer has more than %d bytes", most)
	}
	return &response{body, resp.Header, resp.StatusCode}, nil
}

// hasType reports whether the answer has one of the media types.
func (r *response) hasType(types ...string) bool {
	got, _, err := mime.ParseMediaType(r.header.Get("Content-Type"))
	for _, want := range types {
		if err == nil && got == want {
			return true
		}
	}
	return false
}

// maxAge returns how long a cache may keep the answer (RFC 9111, section 5.2.2.1), within
// bounds.
func (r *response) maxAge(least, usual, most time.Duration) time.Duration {
	age := usual
	for _, line := range r.header.Values("Cache-Control") {
		for directive := range strings.SplitSeq(line, ",") {
			name, text, _ := strings.Cut(strings.ToLower(strings.TrimSpace(directive)), "=")
			seconds, err := strconv.ParseUint(strings.Trim(text, `"`), 10, 31)
			switch {
			case name == "no-store" || name == "no-cache":
				return least
			case name == "max-age" && err == nil:
				age = time.Duration(seconds) * time.Second
			}
		}
	}
	return min(max(age, least), most)
}
