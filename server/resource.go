package server

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// A Resource makes a Handler an OAuth protected resource: its metadata (RFC 9728) tells
// clients where to get access tokens, and its challenges name the metadata. The
// resource identifier, which is the audience of the tokens, is the URL of the Handler.
type Resource struct {
	Name      string   // shown to people
	Scopes    []string // that calls need
	First     []string // that the challenge of a call without a token names
	Providers []string // issuers of the OpenID providers that issue people's tokens
	DPoP      []string // signing algorithms of DPoP proofs; nil: DPoP is not supported
}

// metadataPath begins the path of a resource's metadata (RFC 9728, section 3).
const metadataPath = "/.well-known/oauth-protected-resource"

// mcpPath is the path of the MCP endpoint.
const mcpPath = "/mcp"

// metadataURL returns the URL of a resource's metadata: the resource identifier with the
// well-known path between its host and its path (RFC 9728, section 3.1).
func (s *Server) metadataURL(h *Handler) string {
	return broker.Origin(s.external) + metadataPath + s.external.Path + h.Pattern
}

// resourceMetadata returns the metadata of the MCP endpoint (RFC 9728).
func (s *Server) resourceMetadata(c *call) (reply, error) {
	at := slices.IndexFunc(s.cfg.Handlers, func(h Handler) bool { return h.Resource != nil && h.Pattern == mcpPath })
	if at < 0 {
		return reply{}, refuse(broker.ErrNotFound, "this broker does not serve MCP")
	}
	h := &s.cfg.Handlers[at]
	text, err := reply{body: api.ProtectedResource{
		Resource:               s.url(h.Pattern),
		AuthorizationServers:   append([]string{s.external.String()}, h.Resource.Providers...),
		Scopes:                 h.Resource.Scopes,
		BearerMethods:          []string{"header"},
		Name:                   h.Resource.Name,
		Documentation:          s.url("/openapi.json"),
		CertificateBoundTokens: true,
		DPoPAlgorithms:         h.Resource.DPoP,
		ForWorkloads:           []string{s.external.String()},
		ForPeople:              h.Resource.Providers,
	}}.encode(new(bytes.Buffer))
	if err != nil {
		return reply{}, fmt.Errorf("encoding the metadata: %w", err)
	}
	return c.document("resource metadata", text, "application/json", public(300))
}

// protectedResources returns the identifiers of the resources that the broker serves.
func (s *Server) protectedResources() (list []string) {
	for _, h := range s.cfg.Handlers {
		if h.Resource != nil {
			list = append(list, s.url(h.Pattern))
		}
	}
	return list
}

// errScope means that the caller's token lacks a scope.
var errScope = errors.New(string(api.InsufficientScope))

// A scopeError names all scopes that a call needs.
type scopeError struct {
	broker.Refusal
	needs []string
}

func (e *scopeError) Unwrap() error { return &e.Refusal }

// InsufficientScope returns the error of a call whose token lacks a scope. needs are all
// the scopes that the call needs, so that the client gets them with one more token.
func InsufficientScope(needs []string) error {
	return &scopeError{broker.Refusal{Err: errScope, Detail: "this call needs a token with the scopes " + strings.Join(needs, " ")}, needs}
}

// challenges sets the challenges of a protected resource (RFC 9728, section 5.1; RFC
// 6750, section 3; RFC 9449, section 7.1). A caller who is refused for another reason
// than their token gets none: a new token would not help.
func (c *call) challenges(header http.Header, row errorRow, err error, detail string) {
	h := c.route.handler
	if row.status == http.StatusUnauthorized {
		c.offerNonce()
	}
	var lacks *scopeError
	name, scope := "", h.Resource.First
	switch {
	case errors.As(err, &lacks):
		name, scope = "insufficient_scope", lacks.needs
	case row.status != http.StatusUnauthorized:
		return
	case isOfProof(row.err):
		name = row.oauth
	case c.hasCredentials():
		name = "invalid_token"
	}
	value := ""
	if name != "" {
		value += `, error="` + name + `", error_description="` + asciiOnly(detail) + `"`
	}
	if len(scope) > 0 {
		value += `, scope="` + strings.Join(scope, " ") + `"`
	}
	value += `, resource_metadata="` + c.s.metadataURL(h) + `"`
	header.Add("WWW-Authenticate", `Bearer realm="access broker"`+value)
	if len(h.Resource.DPoP) > 0 {
		header.Add("WWW-Authenticate", `DPoP realm="access broker", algs="`+strings.Join(h.Resource.DPoP, " ")+`"`+value)
	}
}

// checkOrigin refuses a call that the page of another site caused. MCP requires the check
// for every method (revision 2026-07-28, Streamable HTTP, section 1).
func (c *call) checkOrigin() error {
	r := *c.r
	if c.route.handler.Resource != nil {
		r.Method = http.MethodPost // net/http lets pages cause GET
	}
	if err := c.s.crossing.Check(&r); err != nil {
		return errCrossOrigin
	}
	return nil
}
