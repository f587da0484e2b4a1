package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// stringsIn returns the string literals of a file's top-level var and const
// declarations whose names begin with prefix.
func stringsIn(t *testing.T, file, prefix string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, decl := range parsed.Decls {
		general, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range general.Specs {
			value, ok := spec.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(value.Names[0].Name, prefix) {
				continue
			}
			ast.Inspect(value, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					text, _ := strconv.Unquote(lit.Value)
					found = append(found, text)
				}
				return true
			})
		}
	}
	return found
}

// domainCodes returns the text of every sentinel in the files of package broker.
// Only a value of the unexported type sentinel has a code, and a value of it is
// made by a conversion or a typed declaration.
func domainCodes(t *testing.T) (codes []string) {
	t.Helper()
	files, err := filepath.Glob("../broker/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(err, "no files of package broker")
	}
	literal := func(e ast.Expr) {
		lit, ok := e.(*ast.BasicLit)
		if !ok {
			t.Fatalf("a sentinel is not made of a string literal: %#v", e)
		}
		text, err := strconv.Unquote(lit.Value)
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, text)
	}
	isSentinel := func(e ast.Expr) bool {
		name, ok := e.(*ast.Ident)
		return ok && name.Name == "sentinel"
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if isSentinel(n.Fun) {
					literal(n.Args[0])
				}
			case *ast.ValueSpec:
				if n.Type != nil && isSentinel(n.Type) {
					for _, value := range n.Values {
						literal(value)
					}
				}
			}
			return true
		})
	}
	return codes
}

func TestErrorTableIsComplete(t *testing.T) {
	t.Parallel()
	codes := domainCodes(t)
	if len(codes) < 40 {
		t.Fatalf("found only %d sentinels in the domain", len(codes))
	}
	for i, code := range codes {
		if slices.Contains(codes[:i], code) {
			t.Errorf("two sentinels have the code %q", code)
		}
		if !slices.ContainsFunc(errorTable, func(m errorRow) bool { return m.err.Error() == code }) {
			t.Errorf("the sentinel %q has no row in errors.go", code)
		}
	}
	for _, m := range errorTable {
		if broker.Code(m.err) != "internal" && !slices.Contains(codes, m.err.Error()) {
			t.Errorf("the row %q has no sentinel", m.err)
		}
	}
}

// An error that wraps two sentinels has the code and the row of the outer one.
func TestOuterSentinelCounts(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("%w: %w", broker.ErrUnavailable, broker.ErrNotFound)
	if m := errorRowOf(err); broker.Code(err) != string(api.Unavailable) || m.code() != api.Unavailable || m.status != 503 {
		t.Errorf("got %s %s %d", broker.Code(err), m.code(), m.status)
	}
}

func TestClientKnowsEveryCode(t *testing.T) {
	t.Parallel()
	codes := stringsIn(t, "../api/errors.go", "")
	var sent []string
	for _, m := range append(slices.Clone(errorTable), unknown) {
		if m.err == errClientGone {
			continue // never sent
		}
		sent = append(sent, m.err.Error())
		if !slices.Contains(codes, m.err.Error()) {
			t.Errorf("package api has no code %q", m.err)
		}
	}
	for _, code := range codes {
		if !slices.Contains(sent, code) {
			t.Errorf("no error is sent with the code %q of package api", code)
		}
	}
}

func TestErrorTableIsPublished(t *testing.T) {
	t.Parallel()
	var doc struct {
		Errors []struct {
			Code   string `json:"code"`
			Status int    `json:"status"`
			OAuth  string `json:"oauth_error"`
			Title  string `json:"title"`
			Advice string `json:"what_to_do"`
		} `json:"x-errors"`
	}
	if err := json.Unmarshal(openAPIDocument, &doc); err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, e := range doc.Errors {
		got = append(got, fmt.Sprintf("%s %d %s %q %q", e.Code, e.Status, e.OAuth, e.Title, e.Advice))
	}
	for _, m := range append(slices.Clone(errorTable), unknown) {
		if m.err != errClientGone {
			want = append(want, fmt.Sprintf("%s %d %s %q %q", m.err, m.status, m.oauth, m.title, m.advice))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("x-errors of openapi.json is not the table of errors.go:\n got %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAdviceFitsOAuth(t *testing.T) {
	t.Parallel()
	for _, m := range errorTable {
		// Quotation marks become apostrophes; no other character may change.
		if asciiOnly(m.advice) != strings.ReplaceAll(m.advice, `"`, "'") {
			t.Errorf("%s: the advice %q has characters that RFC 6749 forbids", m.err, m.advice)
		}
	}
}

func TestOAuthErrors(t *testing.T) {
	t.Parallel()
	refusal := func(r broker.Refusal) error { return fmt.Errorf("asking: %w", &r) }
	tests := []struct {
		name    string
		err     error
		subject bool
		error   string
		status  int
	}{
		{"no proof", broker.ErrUnauthenticated, false, "invalid_client", 401},
		{"bad subject_token", broker.ErrUnauthenticated, true, "invalid_request", 400},
		{"expired subject_token", broker.ErrProofExpired, true, "invalid_request", 400},
		{"another's subject_token", broker.ErrForeignSubject, true, "invalid_request", 400},
		{"unknown or unpermitted", refusal(broker.Refusal{Err: broker.ErrDenied, DeniedBy: "policy"}), true, "invalid_target", 400},
		{"too many scopes", refusal(broker.Refusal{Err: broker.ErrDenied, DeniedBy: "policy", Allowed: &broker.Allowed{Scopes: []string{"a"}}}), true, "invalid_scope", 400},
		{"denied by a person", refusal(broker.Refusal{Err: broker.ErrDenied, DeniedBy: "person"}), true, "access_denied", 400},
		{"pending", broker.ErrPending, false, "authorization_pending", 400},
		{"lapsed", broker.ErrLapsed, false, "expired_token", 400},
		{"scope", broker.ErrInvalidScope, false, "invalid_scope", 400},
		{"target", broker.ErrInvalidTarget, false, "invalid_target", 400},
		{"grant", errGrantType, false, "unsupported_grant_type", 400},
		{"too many calls", broker.ErrSlowDown, false, "slow_down", 429},
		{"unavailable", broker.ErrUnavailable, false, "temporarily_unavailable", 503},
		{"unknown error", errors.New("disk on fire"), false, "server_error", 500},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := &call{id: "x", r: httptest.NewRequest("POST", "/oauth2/token", nil), proofIsSubject: test.subject}
			answer := c.oauthError(test.err)
			body := answer.body.(api.OAuthError)
			if body.Error != test.error || answer.status != test.status {
				t.Errorf("got %d %s, want %d %s", answer.status, body.Error, test.status, test.error)
			}
			want := ""
			if test.status == 401 {
				want = `Bearer realm="access broker", error="` + test.error + `", error_description="` + body.Description + `"`
			}
			if got := answer.header.Get("WWW-Authenticate"); got != want {
				t.Errorf("WWW-Authenticate: got %q, want %q", got, want)
			}
			if (body.Interval > 0) != (test.error == "authorization_pending") {
				t.Errorf("interval %d", body.Interval)
			}
		})
	}
}

// Client libraries that find a challenge do not read the body, so the challenge has the
// reason (RFC 6750, section 3.1).
func TestChallengeStatesReason(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const form, jsonBody = "application/x-www-form-urlencoded", "application/json"
	const credentials = "grant_type=client_credentials&audience=tickets&scope=tickets:read"
	const bad = credentials + "&client_assertion=bad&client_assertion_type=" + api.AssertionTypeJWT
	tests := []struct {
		name, path, mediaType, body, bearer string
		status                              int
		challenge                           string // its error; "none": no error; empty: no challenge
	}{
		{"token, no proof", "/oauth2/token", form, credentials, "", 401, "invalid_client"},
		{"token, bad bearer", "/oauth2/token", form, credentials, "bad", 401, "invalid_client"},
		{"token, bad assertion", "/oauth2/token", form, bad, "", 400, ""},
		{"token, bad assertion and bad bearer", "/oauth2/token", form, bad, "bad", 401, "invalid_client"},
		{"token, assertion without type", "/oauth2/token", form, credentials + "&client_assertion=" + agent, "", 400, ""},
		{"token, another client_id", "/oauth2/token", form, credentials + "&client_id=" + other, agent, 401, "invalid_client"},
		{"introspection, no proof", "/oauth2/introspect", form, "token=x", "", 401, "invalid_client"},
		{"introspection, bad bearer", "/oauth2/introspect", form, "token=x", "bad", 401, "invalid_client"},
		{"introspection, bad assertion", "/oauth2/introspect", form, "token=x&client_assertion=bad&client_assertion_type=" + assertionSPIFFE, "", 400, ""},
		{"revocation, bad bearer", "/oauth2/revoke", form, "token=x", "bad", 401, "invalid_client"},
		{"API, no proof", "/v1/requests", jsonBody, "{}", "", 401, "none"},
		{"API, bad bearer", "/v1/requests", jsonBody, "{}", "bad", 401, "invalid_token"},
		{"API, denied", "/v1/requests", jsonBody, `{"entitlement":"tickets","scopes":["tickets:close"]}`, agent, 403, "insufficient_scope"},
		{"API, session required", "/v1/requests/" + broker.NewRequestID(time.Now()).String() + "/approvals", jsonBody, `{"decision":"deny","digest":"` + strings.Repeat("0", 64) + `"}`, agent, 403, "insufficient_scope"},
		{"API, invalid", "/v1/requests", jsonBody, `{}`, agent, 400, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var header []string
			if test.bearer != "" {
				header = []string{"Authorization", "Bearer " + test.bearer}
			}
			resp := w.do("POST", test.path, test.mediaType, test.body, header...)
			text := w.body(resp)
			var body struct {
				Description string `json:"error_description"`
				Detail      string
				Reasons     []string
			}
			if err := json.Unmarshal(text, &body); err != nil || resp.StatusCode != test.status {
				t.Fatalf("got %s %s, want %d", resp.Status, text, test.status)
			}
			want := `Bearer realm="access broker"`
			switch test.challenge {
			case "":
				want = ""
			case "none":
			default:
				want += `, error="` + test.challenge + `", error_description="` + asciiOnly(withReasons(body.Description+body.Detail, body.Reasons)) + `"`
			}
			if got := resp.Header.Get("WWW-Authenticate"); got != want {
				t.Errorf("got the challenge %s, want %s", got, want)
			}
		})
	}
}

func TestDescriptionFitsHeader(t *testing.T) {
	t.Parallel()
	allowed := func(r rune) bool { return r == 0x20 || r == 0x21 || r >= 0x23 && r <= 0x5b || r >= 0x5d && r <= 0x7e }
	for text, want := range map[string]string{
		`say "no"\now`:              "say 'no'?now",
		"a\r\nSet-Cookie: a\tb\x00": "a? Set-Cookie: a b?",
		"größer \xff\x7f":           "gr??er ??",
		strings.Repeat("x", 5000):   strings.Repeat("x", maxDescription),
	} {
		if got := asciiOnly(text); got != want || strings.ContainsFunc(got, func(r rune) bool { return !allowed(r) }) {
			t.Errorf("%.40q: got %.40q, want %.40q", text, got, want)
		}
	}
}

func TestUnknownErrorsHaveNoDetail(t *testing.T) {
	t.Parallel()
	c := &call{s: &Server{external: &url.URL{}}, r: httptest.NewRequest("GET", "/", nil), id: "0199-x"}
	for _, answer := range []reply{c.problem(errors.New("password is hunter2")), c.oauthError(errors.New("password is hunter2"))} {
		text, err := answer.encode(new(bytes.Buffer))
		if err != nil || strings.Contains(string(text), "hunter2") || answer.status != 500 {
			t.Errorf("got %d %s, %v", answer.status, text, err)
		}
	}
}

func TestRetryAfterIsRoundedUp(t *testing.T) {
	t.Parallel()
	c := &call{s: &Server{external: &url.URL{}}}
	answer := c.problem(&broker.Refusal{Err: broker.ErrLimit, Retry: 1100 * time.Millisecond})
	if got := answer.header.Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After %q", got)
	}
}
