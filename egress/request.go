package egress

import (
	"context"
	"io"
	"net/http"
	"net/url"
)

// NewRequest returns a request for the URL as it is written. Unlike http.NewRequest, it
// refuses every URL that another parser could read as another target. The error is a
// *Refusal.
func NewRequest(ctx context.Context, method, rawURL string, body io.Reader) (*http.Request, error) {
	o, rawPath, query, refusal := splitURL(rawURL)
	if refusal != nil {
		return nil, refusal
	}
	if _, refusal := canonicalize(rawPath); refusal != nil {
		return nil, refusal
	}
	path, err := url.PathUnescape(rawPath)
	if err != nil {
		return nil, refuse(CodeInvalidURL, nextPath, "The path of the URL is not percent-encoded correctly")
	}
	if !isToken(method) {
		return nil, refuse(CodeMethod, "use a method of HTTP, such as GET", "%q is not a method", clip(method))
	}
	u := &url.URL{Scheme: o.scheme, Host: o.authority(), Path: path, RawPath: rawPath, RawQuery: query}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, refuse(CodeInvalidURL, nextURL, "The URL can't be called")
	}
	r.URL = u
	return r, nil
}

// EntitlementOf returns the entitlement whose credential was used for an answer of a
// Transport.
func EntitlementOf(resp *http.Response) string {
	if b, ok := resp.Body.(*answerBody); ok {
		return b.entitlement
	}
	return ""
}

// Scrubbed reports whether a secret was removed from an answer of a Transport, as far as
// its body has been read.
func Scrubbed(resp *http.Response) bool {
	b, ok := resp.Body.(*answerBody)
	return ok && b.scrubbed != nil && b.scrubbed()
}
