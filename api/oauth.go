package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
)

// Grant and token types (RFC 6749, 7523 and 8693).
const (
	GrantTokenExchange     = "urn:ietf:params:oauth:grant-type:token-exchange"
	GrantClientCredentials = "client_credentials"
	AssertionTypeJWT       = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	TokenTypeJWT           = "urn:ietf:params:oauth:token-type:jwt"
	TokenTypeAccessToken   = "urn:ietf:params:oauth:token-type:access_token"
)

// A TokenRequest is what POST /oauth2/token is asked for. With a SubjectToken
// it is a token exchange (RFC 8693); without, a client credentials grant (RFC
// 6749, section 4.4) in which the client is whom the connection's certificate
// or the client's Token proves.
type TokenRequest struct {
	SubjectToken  string // the caller's own JWT-SVID
	Audience      string // names the entitlement
	Resource      string // or its tokens' audience
	Scopes        []string
	TTL           Duration
	Duration      Duration
	Justification string
	Ticket        string
	RequestID     string // collect what people have approved meanwhile; nothing else is said then
}

func (r TokenRequest) form() url.Values {
	form := url.Values{"grant_type": {GrantClientCredentials}}
	if r.SubjectToken != "" {
		form.Set("grant_type", GrantTokenExchange)
		form.Set("subject_token", r.SubjectToken)
		form.Set("subject_token_type", TokenTypeJWT)
	}
	for name, value := range map[string]string{
		"audience":      r.Audience,
		"resource":      r.Resource,
		"scope":         strings.Join(r.Scopes, " "),
		"justification": r.Justification,
		"ticket":        r.Ticket,
		"request_id":    r.RequestID,
	} {
		if value != "" {
			form.Set(name, value)
		}
	}
	if r.TTL != 0 {
		form.Set("ttl", r.TTL.String())
	}
	if r.Duration != 0 {
		form.Set("duration", r.Duration.String())
	}
	return form
}

// A TokenResponse is the answer of POST /oauth2/token (RFC 8693, section
// 2.2.1). Print and log it without fear: the token shows as "[secret]".
type TokenResponse struct {
	AccessToken     Token  `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"` // seconds
	Scope           string `json:"scope,omitempty"`
	Lease           string `json:"lease"`      // extension: "lse_…", to be given back early
	RequestID       string `json:"request_id"` // extension: "req_…"
}

// A Token is a bearer token. It marshals as it is, and prints and logs as
// "[secret]".
type Token string

// Format prints "[secret]", whatever the verb.
func (Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// LogValue logs "[secret]".
func (Token) LogValue() slog.Value { return slog.StringValue("[secret]") }

// An Introspection is the answer of POST /oauth2/introspect (RFC 7662,
// section 2.2). All but Active is empty if it is false.
type Introspection struct {
	Active      bool          `json:"active"`
	Scope       string        `json:"scope,omitempty"`
	ClientID    string        `json:"client_id,omitempty"` // SPIFFE ID of the holder
	Subject     string        `json:"sub,omitempty"`
	TokenType   string        `json:"token_type,omitempty"`
	Expires     int64         `json:"exp,omitempty"` // Unix seconds
	IssuedAt    int64         `json:"iat,omitempty"`
	Audience    string        `json:"aud,omitempty"`
	Issuer      string        `json:"iss,omitempty"`
	ID          string        `json:"jti,omitempty"` // the lease
	Entitlement string        `json:"entitlement,omitempty"`
	Request     string        `json:"request,omitempty"`
	Confirm     *Confirmation `json:"cnf,omitempty"`

	// AuthorizationDetails are the parameters that were granted (RFC 9396,
	// section 9.2), as the token itself holds them.
	AuthorizationDetails []AuthorizationDetail `json:"authorization_details,omitempty"`
}

// An AuthorizationDetail holds the parameters of one entitlement.
type AuthorizationDetail struct {
	Type       string            `json:"type"` // the entitlement
	Parameters map[string]string `json:"parameters"`
}

// A Confirmation says what a token is bound to (RFC 8705, section 3.1).
type Confirmation struct {
	X509SHA256 string `json:"x5t#S256"` // base64url of the certificate's SHA-256
}

// Metadata is what the broker says of itself (RFC 8414, section 2).
type Metadata struct {
	Issuer                 string   `json:"issuer"`
	TokenEndpoint          string   `json:"token_endpoint"`
	IntrospectionEndpoint  string   `json:"introspection_endpoint"`
	RevocationEndpoint     string   `json:"revocation_endpoint"`
	JWKSURI                string   `json:"jwks_uri"`
	GrantTypes             []string `json:"grant_types_supported"`
	ResponseTypes          []string `json:"response_types_supported"`
	TokenAuthMethods       []string `json:"token_endpoint_auth_methods_supported"`
	IntrospectionAuth      []string `json:"introspection_endpoint_auth_methods_supported"`
	RevocationAuth         []string `json:"revocation_endpoint_auth_methods_supported"`
	SubjectTypes           []string `json:"subject_types_supported"`
	IDTokenSigningAlgs     []string `json:"id_token_signing_alg_values_supported"`
	Claims                 []string `json:"claims_supported"` // of the assertions that clouds verify by this document
	CertificateBoundTokens bool     `json:"tls_client_certificate_bound_access_tokens"`
	ServiceDocumentation   string   `json:"service_documentation,omitempty"`
	SVIDAudiences          []string `json:"jwt_svid_audiences,omitempty"` // extension: what the aud of a caller's JWT-SVID may be
	Pages                  string   `json:"pages,omitempty"`              // extension: URL of the pages, where people log in
}

// Exchange asks for an access token. While people have yet to approve, the
// error is Pending with the RequestID to come back with. It is never retried.
func (c *Client) Exchange(ctx context.Context, req TokenRequest) (*TokenResponse, error) {
	anonymous := req.SubjectToken != "" // it is the proof; a second one would be refused
	return fetch[TokenResponse](ctx, c, call{method: http.MethodPost, path: "/oauth2/token", form: req.form(), anonymous: anonymous})
}

// Introspect says what a token is. It is for the token's holder and for the
// resource servers of its issuer; everybody else learns that it is inactive.
func (c *Client) Introspect(ctx context.Context, token Token) (*Introspection, error) {
	return fetch[Introspection](ctx, c, call{method: http.MethodPost, path: "/oauth2/introspect", form: url.Values{"token": {string(token)}}})
}

// RevokeToken gives a token back (RFC 7009). Tokens that are not the caller's
// are no error.
func (c *Client) RevokeToken(ctx context.Context, token Token) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/oauth2/revoke", form: url.Values{"token": {string(token)}}}, nil)
}

// JWKS gives the public keys of the broker's tokens (RFC 7517, section 5).
func (c *Client) JWKS(ctx context.Context) (json.RawMessage, error) {
	var out json.RawMessage
	err := c.do(ctx, call{method: http.MethodGet, path: "/oauth2/jwks", anonymous: true}, &out)
	return out, err
}

// Discovery gives the broker's metadata.
func (c *Client) Discovery(ctx context.Context) (*Metadata, error) {
	return fetch[Metadata](ctx, c, call{method: http.MethodGet, path: "/.well-known/openid-configuration", anonymous: true})
}
