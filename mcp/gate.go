package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"slices"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// SDK is the server of the MCP SDK, to which Config.Extend adds tools, and SDKOptions are
// its options.
type (
	SDK        = sdk.Server
	SDKOptions = sdk.ServerOptions
)

// Scopes of access tokens for the MCP endpoint.
const (
	ScopeList    = "access:list"    // see what may be requested, and the caller's requests and leases
	ScopeRequest = "access:request" // file requests and withdraw them
	ScopeRelease = "access:release" // return credentials
)

// Scopes are all scopes.
var Scopes = []string{ScopeList, ScopeRelease, ScopeRequest}

// scopesOf are the scopes that a method or a tool needs. Filing a request shows what
// became of it. Methods that are not listed need none: they show nothing of a caller.
var scopesOf = map[string][]string{
	"tasks/get": {ScopeList}, "tasks/update": {ScopeList, ScopeRequest}, "tasks/cancel": {ScopeList, ScopeRequest},
}

var scopesOfTools = map[string][]string{
	"list_access": {ScopeList}, "access_status": {ScopeList}, "request_access": {ScopeList, ScopeRequest}, "release_access": {ScopeList, ScopeRelease},
}

// Needs returns the scopes that the message needs. An unknown tool needs all of them.
func (m *Message) Needs() []string {
	if m.Method != "tools/call" {
		return scopesOf[m.Method]
	}
	if needs, ok := scopesOfTools[m.Name]; ok {
		return needs
	}
	return Scopes
}

// A Gate judges each HTTP call before the protocol does: its form, the headers that
// repeat its body, and the scopes of its token. It implements http.Handler.
type Gate struct {
	Next http.Handler

	// Scopes returns the scopes of the caller's token; bounded is false for a caller
	// without one.
	Scopes func(*http.Request) (scopes []string, bounded bool)

	// Lacks answers a call that needs scopes which the token does not have, and Fail one
	// whose body cannot be read.
	Lacks func(w http.ResponseWriter, r *http.Request, needs []string)
	Fail  func(http.ResponseWriter, *http.Request, error)
}

func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		// There are no streams to open and no sessions to end (MCP 2026-07-28, Streamable
		// HTTP, "Earlier Streamable HTTP Revisions"). 2025-11-25 also allows 405.
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "method not allowed: send each message with POST", http.StatusMethodNotAllowed)
		return
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" || len(r.Header.Values("Content-Encoding")) > 0 {
		http.Error(w, "unsupported media type: send application/json, not compressed", http.StatusUnsupportedMediaType)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		g.Fail(w, r, err)
		return
	}
	m, refusal := readMessage(body)
	if refusal == nil {
		refusal = m.checkHeaders(r.Header)
	}
	if refusal != nil {
		refusal.write(w)
		return
	}
	if scopes, bounded := g.Scopes(r); bounded {
		for _, scope := range m.Needs() {
			if !slices.Contains(scopes, scope) {
				g.Lacks(w, r, m.Needs())
				return
			}
		}
	}
	g.Next.ServeHTTP(w, m.forward(r, body))
}

// forward returns the request with the body that was read. Later checks see the name
// decoded, and no session: none is ever made here.
func (m *Message) forward(r *http.Request, body []byte) *http.Request {
	next := r.Clone(context.WithValue(r.Context(), streamKey{}, m.streams || m.Method == "subscriptions/listen"))
	next.Body, next.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	if len(r.Header.Values(nameHeader)) > 0 {
		next.Header.Set(nameHeader, m.Name)
	}
	for _, name := range []string{"Authorization", "Dpop", "Mcp-Session-Id", "Last-Event-Id"} {
		next.Header.Del(name) // the token proved the caller, and goes no further
	}
	return next
}

// write answers with the error, without an id if the message has none that is valid.
func (e *messageError) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	type wireError struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	_ = json.NewEncoder(w).Encode(struct {
		Version string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id,omitempty"`
		Error   wireError       `json:"error"`
	}{"2.0", e.id, wireError{e.code, e.text}})
}
