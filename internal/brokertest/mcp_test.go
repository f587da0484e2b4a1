package brokertest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
)

const boundAgent = "spiffe://acme.test/bound/agent"

// A message is a call of the MCP endpoint. The zero value of a header omits it.
type message struct {
	method, contentType, body string
	header                    http.Header
	host                      string
}

// toolCall returns a call of a tool under the revision 2026-07-28.
func toolCall(tool, arguments string) message {
	return rpc("tools/call", tool, `"name": "`+tool+`", "arguments": `+arguments+`, `)
}

func rpc(method, name, params string) message {
	m := message{
		method: http.MethodPost, contentType: "application/json",
		body: `{"jsonrpc": "2.0", "id": 1, "method": "` + method + `", "params": {` + params + `"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
			"io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"}, "io.modelcontextprotocol/clientCapabilities": {}}}}`,
		header: http.Header{"Accept": {"application/json, text/event-stream"}, "Mcp-Protocol-Version": {"2026-07-28"}, "Mcp-Method": {method}},
	}
	if name != "" {
		m.header.Set("Mcp-Name", name)
	}
	return m
}

// with returns the message with a header; without values, it is removed.
func (m message) with(name string, values ...string) message {
	m.header = m.header.Clone()
	if m.header.Del(name); len(values) > 0 {
		m.header[http.CanonicalHeaderKey(name)] = values
	}
	return m
}

// An mcpAnswer is the answer of the MCP endpoint.
type mcpAnswer struct {
	status int
	header http.Header
	text   string
	code   api.Code // of a refusal before the protocol
	rpc    int      // code of an error of JSON-RPC
	result map[string]any
}

func (b *Broker) post(c *http.Client, m message) (a mcpAnswer) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), m.method, b.URL+"/mcp", strings.NewReader(m.body))
	b.must(err)
	req.Header = m.header.Clone()
	req.Header.Set("Content-Type", m.contentType)
	if m.host != "" {
		req.Host = m.host
	}
	resp, err := c.Do(req)
	b.must(err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	b.must(err)
	a = mcpAnswer{status: resp.StatusCode, header: resp.Header, text: string(text)}
	if at := bytes.Index(text, []byte("data: {")); at >= 0 {
		text = bytes.TrimSpace(text[at+len("data: "):])
	}
	var body struct {
		Code   api.Code
		Result map[string]any
		Error  struct{ Code int }
	}
	if json.Unmarshal(text, &body) == nil {
		a.code, a.rpc, a.result = body.Code, body.Error.Code, body.Result
	}
	return a
}

// mcpToken returns a token for the MCP endpoint.
func (b *Broker) mcpToken(id string, scopes ...string) string {
	b.t.Helper()
	r, err := b.Anonymous().Exchange(b.t.Context(), api.TokenRequest{SubjectToken: b.JWT(id), Resource: b.URL + "/mcp", Scopes: scopes})
	b.must(err)
	b.Secret(string(r.AccessToken))
	return string(r.AccessToken)
}

var listAccess = toolCall("list_access", "{}")

// A caller with a certificate or a token for the endpoint lists what it may request.
func TestMCPCallers(t *testing.T) {
	t.Parallel()
	b := New(t)
	anonymous, certified := b.Anonymous().HTTP, b.Client(Agent).HTTP
	bearer := func(token string) message { return listAccess.with("Authorization", "Bearer "+token) }
	token := b.mcpToken(Agent, "access:list")
	for name, answer := range map[string]mcpAnswer{
		"certificate": b.post(certified, listAccess),
		"token":       b.post(anonymous, bearer(token)),
		"both":        b.post(certified, bearer(token)),
		"2025-11-25": b.post(certified, message{http.MethodPost, "application/json; charset=utf-8", `{"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": {"name": "list_access", "arguments": {}}}`,
			http.Header{"Accept": {"application/json, text/event-stream"}, "Mcp-Protocol-Version": {"2025-11-25"}}, ""}),
		"encoded name": b.post(certified, listAccess.with("Mcp-Name", "=?base64?"+base64.StdEncoding.EncodeToString([]byte("list_access"))+"?=")),
		"session":      b.post(certified, listAccess.with("Mcp-Session-Id", "of another caller").with("Last-Event-ID", "7")),
		"same origin":  b.post(certified, listAccess.with("Origin", b.URL)),
	} {
		if answer.status != http.StatusOK || !strings.Contains(answer.text, "tickets-api") || answer.header.Get("Mcp-Session-Id") != "" {
			t.Errorf("%s: got %d %v %s", name, answer.status, answer.header, answer.text)
		}
	}
	if answer := b.post(anonymous, bearer(b.mcpToken("spiffe://acme.test/agent/other", "access:list"))); !strings.Contains(answer.text, "tickets-api") {
		t.Errorf("another agent: got %+v", answer)
	}
}

// A refusal names what is missing, and never reaches a tool.
func TestMCPRefusals(t *testing.T) {
	t.Parallel()
	b := New(t)
	anonymous, certified := b.Anonymous().HTTP, b.Client(Agent).HTTP
	tickets, err := b.Token(Agent, "tickets:read")
	b.must(err)
	revoked := b.mcpToken(Agent, "access:list")
	b.must(b.Bearer(Agent).RevokeToken(t.Context(), api.Token(revoked)))
	owner := b.Client(boundAgent)
	bound, err := owner.Exchange(t.Context(), api.TokenRequest{Audience: "mcp-bound", Scopes: []string{"bound:list"}})
	b.must(err)
	narrowed, err := owner.Exchange(t.Context(), api.TokenRequest{
		Audience: "mcp-bound", Scopes: []string{"bound:list"}, AuthorizationDetails: []api.AuthorizationDetail{{Type: "mcp_tool", Tool: "list_access"}},
	})
	b.must(err)
	mine := b.mcpToken(Agent, "access:list")
	for _, c := range []struct {
		name        string
		client      *http.Client
		token       []string // the Authorization headers
		status      int
		code        api.Code
		description string
	}{
		{"no proof", anonymous, nil, 401, api.Unauthenticated, ""},
		{"token for another resource", anonymous, []string{"Bearer " + string(tickets.AccessToken)}, 401, api.Unauthenticated, "no access token for " + b.URL + "/mcp"},
		{"JWT-SVID", anonymous, []string{"Bearer " + b.JWT(Agent)}, 401, api.Unauthenticated, b.URL + "/oauth2/token with resource=" + b.URL + "/mcp"},
		{"JWT-SVID beside a certificate", certified, []string{"Bearer " + b.JWT(Agent)}, 401, api.Unauthenticated, "JWT-SVID"},
		{"revoked", anonymous, []string{"Bearer " + revoked}, 401, api.Unauthenticated, "not active"},
		{"bound, without the certificate", anonymous, []string{"Bearer " + string(bound.AccessToken)}, 401, api.Unauthenticated, "bound to a client certificate"},
		{"bound, after the rotation of the certificate, for another scope", b.Client(boundAgent).HTTP, []string{"Bearer " + string(bound.AccessToken)}, 403, api.InsufficientScope, "access:list"},
		{"bound, with another caller's certificate", certified, []string{"Bearer " + string(bound.AccessToken)}, 401, api.Unauthenticated, "bound to a client certificate"},
		{"bound, with its certificate, for another scope", owner.HTTP, []string{"Bearer " + string(bound.AccessToken)}, 403, api.InsufficientScope, "access:list"},
		{"narrowed by details", owner.HTTP, []string{"Bearer " + string(narrowed.AccessToken)}, 401, api.Unauthenticated, "authorization_details"},
		{"another caller's token", b.Client("spiffe://acme.test/agent/other").HTTP, []string{"Bearer " + mine}, 400, api.TwoIdentities, ""},
		{"two tokens", anonymous, []string{"Bearer " + mine, "Bearer " + mine}, 401, api.Unauthenticated, "several Authorization headers"},
		{"two tokens in one header", anonymous, []string{"Bearer " + mine + ", Bearer " + mine}, 401, api.Unauthenticated, "must be: Bearer"},
		{"another scheme", anonymous, []string{"Basic " + mine}, 401, api.Unauthenticated, "must be: Bearer"},
		{"tampered", anonymous, []string{"Bearer " + mine[:len(mine)-8] + "AAAAAAAA"}, 401, api.Unauthenticated, "no access token"},
		{"no token", anonymous, []string{"Bearer "}, 401, api.Unauthenticated, "must be: Bearer"},
	} {
		got := b.post(c.client, listAccess.with("Authorization", c.token...))
		challenge := got.header.Get("WWW-Authenticate")
		if got.status != c.status || got.code != c.code || c.description != "" && !strings.Contains(got.text, c.description) {
			t.Errorf("%s: got %d %s, want %d %s %q", c.name, got.status, got.text, c.status, c.code, c.description)
		}
		if c.status != 401 {
			continue
		}
		want := `scope="access:list", resource_metadata="` + b.URL + `/.well-known/oauth-protected-resource/mcp"`
		if !strings.HasPrefix(challenge, "Bearer ") || !strings.Contains(challenge, want) || strings.Contains(challenge, `error="invalid_token"`) != (c.token != nil) {
			t.Errorf("%s: got the challenge %q", c.name, challenge)
		}
	}
}

// A token for the endpoint is worth nothing elsewhere.
func TestMCPTokenElsewhere(t *testing.T) {
	t.Parallel()
	b := New(t)
	token := b.mcpToken(Agent, "access:list")
	alien := b.client(nil)
	alien.Token = func(context.Context) (string, error) { return token, nil }
	if _, err := alien.WhoAmI(t.Context()); api.CodeOf(err) != api.Unauthenticated {
		t.Errorf("/v1: got %v", err)
	}
	if _, err := alien.Exchange(t.Context(), api.TokenRequest{Audience: "tickets-api", Scopes: []string{"tickets:read"}}); api.CodeOf(err) != api.Unauthenticated {
		t.Errorf("token endpoint: got %v", err)
	}
	if _, err := b.Anonymous().Exchange(t.Context(), api.TokenRequest{SubjectToken: token, Audience: "tickets-api", Scopes: []string{"tickets:read"}}); err == nil {
		t.Error("token exchange: the token was accepted as a subject_token")
	}
	in, err := b.Client(Tickets).Introspect(t.Context(), api.Token(token))
	if err != nil || in.Active {
		t.Errorf("introspection by another resource server: got %+v, %v", in, err)
	}
	if in, err = b.Bearer(Agent).Introspect(t.Context(), api.Token(token)); err != nil || !in.Active {
		t.Errorf("introspection by its holder: got %+v, %v", in, err)
	}
}

// The challenge of a call whose token lacks scopes names all that the call needs.
func TestMCPScopes(t *testing.T) {
	t.Parallel()
	b := New(t)
	ask := `{"entitlement": "tickets-api", "scopes": ["tickets:read"], "justification": "triage"}`
	calls := map[string]message{
		"list_access": listAccess, "access_status": toolCall("access_status", "{}"),
		"request_access": toolCall("request_access", ask), "release_access": toolCall("release_access", `{"handle": "lse_x"}`),
		"call_api": toolCall("call_api", "{}"), // unknown
		"discover": rpc("server/discover", "", ""), "tools/list": rpc("tools/list", "", ""),
	}
	needs := map[string]string{
		"list_access": "access:list", "access_status": "access:list",
		"request_access": "access:list access:request", "release_access": "access:list access:release",
		"call_api": "access:list access:release access:request",
	}
	for _, scopes := range [][]string{{"access:list"}, {"access:request"}, {"access:release"}, {"access:list", "access:request"}} {
		token := b.mcpToken(Agent, scopes...)
		for name, call := range calls {
			got := b.post(b.Anonymous().HTTP, call.with("Authorization", "Bearer "+token))
			need := strings.Fields(needs[name])
			if !slices.ContainsFunc(need, func(scope string) bool { return !slices.Contains(scopes, scope) }) {
				if got.status != http.StatusOK {
					t.Errorf("%v, %s: got %d %s", scopes, name, got.status, got.text)
				}
				continue
			}
			want := `error="insufficient_scope", error_description="this call needs a token with the scopes ` + needs[name] + `", scope="` + needs[name] + `", resource_metadata="` + b.URL
			if challenge := got.header.Get("WWW-Authenticate"); got.status != http.StatusForbidden || got.code != api.InsufficientScope || !strings.Contains(challenge, want) {
				t.Errorf("%v, %s: got %d %s with the challenge %q, want %q", scopes, name, got.status, got.text, challenge, want)
			}
		}
	}
}

// Messages that a proxy in front may read otherwise are refused, and so is what the
// protocol does not have.
func TestMCPMessages(t *testing.T) {
	t.Parallel()
	b := New(t)
	c := b.Client(Agent).HTTP
	text := func(body string) message { m := listAccess; m.body = body; return m }
	verb := func(method string) message { m := listAccess; m.method, m.body = method, ""; return m }
	media := func(kind string) message { m := listAccess; m.contentType = kind; return m }
	host := func(name string) message { m := listAccess; m.host = name; return m }
	for _, one := range []struct {
		name   string
		m      message
		status int
		rpc    int
		code   api.Code
	}{
		{"origin of another site", listAccess.with("Origin", "https://evil.test"), 403, 0, api.CrossOrigin},
		{"origin of another site, GET", verb(http.MethodGet).with("Origin", "https://evil.test"), 403, 0, api.CrossOrigin},
		{"null origin", listAccess.with("Origin", "null"), 403, 0, api.CrossOrigin},
		{"another host", host("evil.test"), 421, 0, api.Misdirected},
		{"GET", verb(http.MethodGet), 405, 0, ""},
		{"DELETE", verb(http.MethodDelete), 405, 0, ""},
		{"form", media("application/x-www-form-urlencoded"), 415, 0, ""},
		{"no media type", media(""), 415, 0, ""},
		{"compressed", listAccess.with("Content-Encoding", "gzip"), 415, 0, ""},
		{"10 MB", text(listAccess.body + strings.Repeat(" ", 10<<20)), 413, 0, api.TooLarge},
		{"deep", text(`{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": ` + strings.Repeat(`{"a":`, 5000) + `1` + strings.Repeat("}", 5001)), 400, -32700, ""},
		{"batch", text("[" + listAccess.body + "]"), 400, -32600, ""},
		{"empty batch", text("[]"), 400, -32600, ""},
		{"two methods", text(strings.Replace(listAccess.body, `"id": 1`, `"id": 1, "method": "tools/list"`, 1)), 400, -32700, ""},
		{"two names", text(strings.Replace(listAccess.body, `"name": "list_access"`, `"name": "release_access", "name": "list_access"`, 1)), 400, -32700, ""},
		{"no JSON", text("{"), 400, -32700, ""},
		{"response", text(`{"jsonrpc": "2.0", "id": 1, "result": {}}`), 400, -32600, ""},
		{"null id", text(strings.Replace(listAccess.body, `"id": 1`, `"id": null`, 1)), 400, -32600, ""},
		{"another method", listAccess.with("Mcp-Method", "tools/list"), 400, -32020, ""},
		{"another name", listAccess.with("Mcp-Name", "release_access"), 400, -32020, ""},
		{"no method", listAccess.with("Mcp-Method"), 400, -32020, ""},
		{"no name", listAccess.with("Mcp-Name"), 400, -32020, ""},
		{"two names in the header", listAccess.with("Mcp-Name", "list_access", "release_access"), 400, -32020, ""},
		{"malformed name", listAccess.with("Mcp-Name", "=?base64?%%%?="), 400, -32020, ""},
		{"another case", listAccess.with("Mcp-Method", "Tools/Call"), 400, -32020, ""},
		{"no version", listAccess.with("Mcp-Protocol-Version"), 400, -32020, ""},
		{"another version", listAccess.with("Mcp-Protocol-Version", "2025-11-25"), 400, -32020, ""},
		{"unknown method", rpc("access/approve", "", ""), 404, -32601, ""},
	} {
		got := b.post(c, one.m)
		if got.status != one.status || got.rpc != one.rpc || got.code != one.code {
			t.Errorf("%s: got %d, %d, %q: %s; want %d, %d, %q", one.name, got.status, got.rpc, got.code, got.text, one.status, one.rpc, one.code)
		}
	}
}

// The metadata leads a client that knows only the endpoint to a token.
func TestMCPMetadata(t *testing.T) {
	t.Parallel()
	b := New(t)
	resp, err := b.Anonymous().HTTP.Get(b.URL + "/.well-known/oauth-protected-resource/mcp")
	b.must(err)
	_, body := readAll(t, resp)
	var got api.ProtectedResource
	b.must(json.Unmarshal(body, &got))
	want := api.ProtectedResource{
		Resource: b.URL + "/mcp", AuthorizationServers: []string{b.URL}, Scopes: []string{"access:list", "access:release", "access:request"},
		BearerMethods: []string{"header"}, Name: "Access Broker", Documentation: b.URL + "/openapi.json", CertificateBoundTokens: true, ForWorkloads: []string{b.URL},
		DPoPAlgorithms: got.DPoPAlgorithms,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || resp.Header.Get("Access-Control-Allow-Origin") != "*" || !strings.HasPrefix(resp.Header.Get("Cache-Control"), "public") {
		t.Errorf("got %+v with %v, want %+v", got, resp.Header, want)
	}
	resp, err = b.Anonymous().HTTP.Get(b.URL + "/.well-known/oauth-authorization-server")
	b.must(err)
	_, body = readAll(t, resp)
	var server map[string]any
	b.must(json.Unmarshal(body, &server))
	if fmt.Sprint(server["protected_resources"]) != "["+b.URL+"/mcp]" || server["authorization_endpoint"] != nil {
		t.Errorf("got %s", body)
	}
}

// The SDK's client works with a request from the list to its end.
func TestMCPClient(t *testing.T) {
	t.Parallel()
	b := New(t)
	ctx := t.Context()
	client := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil)
	session, err := client.Connect(ctx, &sdk.StreamableClientTransport{Endpoint: b.URL + "/mcp", HTTPClient: b.Client(Agent).HTTP}, nil)
	b.must(err)
	defer func() { _ = session.Close() }()
	call := func(tool string, arguments map[string]any) map[string]any {
		t.Helper()
		result, err := session.CallTool(ctx, &sdk.CallToolParams{Name: tool, Arguments: arguments})
		b.must(err)
		content, _ := result.StructuredContent.(map[string]any)
		if result.IsError || content == nil {
			t.Fatalf("%s: got %+v", tool, result.Content[0])
		}
		return content
	}
	call("list_access", nil)
	filed := call("request_access", map[string]any{"entitlement": "tickets-api", "scopes": []string{"tickets:read"}, "justification": "triage"})
	handle, _ := filed["handle"].(string)
	if !strings.HasPrefix(handle, "req_") {
		t.Fatalf("got %v", filed)
	}
	status := call("access_status", map[string]any{"handle": handle})
	if status["handle"] != handle {
		t.Errorf("got %v", status)
	}
	stranger, err := client.Connect(ctx, &sdk.StreamableClientTransport{Endpoint: b.URL + "/mcp", HTTPClient: b.Client("spiffe://acme.test/agent/other").HTTP}, nil)
	b.must(err)
	defer func() { _ = stranger.Close() }()
	result, err := stranger.CallTool(ctx, &sdk.CallToolParams{Name: "access_status", Arguments: map[string]any{"handle": handle}})
	if err != nil || !result.IsError {
		t.Errorf("another caller's handle: got %+v, %v", result, err)
	}
}
