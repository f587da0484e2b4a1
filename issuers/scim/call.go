package scim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/internal/outbound"
	"accessbroker.internal/internal/retryafter"
)

// A fault is an error of a SCIM server. It omits the server's own text.
type fault struct {
	kind error
	text string
}

func (e *fault) Error() string { return e.text }
func (e *fault) Unwrap() error { return e.kind }

var (
	errUnreadable = &fault{broker.ErrIssuerUnavailable, "the SCIM server's answer can't be read"}
	errOther      = &fault{broker.ErrIssuerRefused, "the SCIM server answered with another resource than the requested one"}
)

const (
	mediaType = "application/scim+json" // RFC 7644, section 3.1
	maxAnswer = 8 << 20                 // bytes: a group with about 100,000 members
)

// An operation is part of a PATCH (RFC 7644, section 3.5.2).
type operation struct {
	Op    string      `json:"op"`
	Path  string      `json:"path"`
	Value []reference `json:"value,omitempty"`
}

// patch changes a resource with one operation.
func (s *server) patch(ctx context.Context, path string, op operation) error {
	body, err := json.Marshal(map[string]any{"schemas": []string{"urn:ietf:params:scim:api:messages:2.0:PatchOp"}, "Operations": []operation{op}})
	if err != nil {
		return err
	}
	_, err = s.call(ctx, http.MethodPatch, path, nil, body)
	return err
}

// get reads a resource into out.
func (s *server) get(ctx context.Context, path string, query url.Values, out any) error {
	body, err := s.call(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	if json.Unmarshal(body, out) != nil {
		return errUnreadable
	}
	return nil
}

// call sends a request once and returns the body of a success. Its errors are faults,
// refusals and ErrGone.
func (s *server) call(ctx context.Context, method, path string, query url.Values, body []byte) ([]byte, error) {
	target := s.cfg.URL + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", mediaType)
	if body != nil {
		r.Header.Set("Content-Type", mediaType)
	}
	if s.cfg.Token != nil {
		token, err := s.cfg.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", broker.ErrIssuerUnavailable, err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := s.cfg.HTTP.Do(r)
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, unreachable(ctx, err)
	case len(answer) > maxAnswer:
		return nil, &fault{broker.ErrIssuerUnavailable, fmt.Sprintf("the SCIM server's answer has more than %d bytes", maxAnswer)}
	}
	return answer, check(method, resp, answer)
}

func unreachable(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return &fault{broker.ErrIssuerUnavailable, "the SCIM server did not answer in time"}
	}
	return &fault{broker.ErrIssuerUnavailable, "the SCIM server can't be reached: " + outbound.Cause(err).Error()}
}

// check returns the error of an answer. The page of a proxy confirms nothing, so a success
// must have been a SCIM server's.
func check(method string, resp *http.Response, answer []byte) error {
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	scim := err == nil && (media == mediaType || media == "application/json")
	status := resp.StatusCode
	switch {
	case method == http.MethodPatch && status == http.StatusNoContent:
		return nil
	case status == http.StatusOK && scim:
		return nil
	case status == http.StatusNotFound && scim && isError(answer):
		return membership.ErrGone
	case status == http.StatusTooManyRequests || status >= 500 || status == http.StatusRequestTimeout:
		f := &fault{broker.ErrIssuerUnavailable, fmt.Sprintf("the SCIM server answered %d", status)}
		if retry := retryafter.Parse(resp.Header); retry > 0 {
			f.kind = &broker.Refusal{Err: f.kind, Detail: "the issuer accepts no requests at the moment: try again in " + broker.FormatDuration(retry), Retry: retry}
		}
		return f
	case status < 300:
		return errUnreadable
	}
	return &fault{broker.ErrIssuerRefused, fmt.Sprintf("the SCIM server answered %d%s", status, scimType(answer))}
}

// isError reports whether an answer is an error of a SCIM server (RFC 7644, section 3.12),
// and not the page of a proxy that does not find the server.
func isError(answer []byte) bool {
	var e struct {
		Schemas []string `json:"schemas"`
	}
	return json.Unmarshal(answer, &e) == nil && slices.Contains(e.Schemas, "urn:ietf:params:scim:api:messages:2.0:Error")
}

// scimTypes are the error types of RFC 7644, section 3.12.
var scimTypes = []string{"invalidFilter", "tooMany", "uniqueness", "mutability", "invalidSyntax", "invalidPath", "noTarget", "invalidValue", "invalidVers", "sensitive"}

// scimType returns the type of an error, if it is one of the standard.
func scimType(answer []byte) string {
	var e struct {
		Type string `json:"scimType"`
	}
	if json.Unmarshal(answer, &e) == nil && slices.Contains(scimTypes, e.Type) {
		return ", " + e.Type
	}
	return ""
}
