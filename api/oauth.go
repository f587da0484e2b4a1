package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Grant and token types (RFC 6749, 7523 and 8693, and
// draft-ietf-oauth-identity-assertion-authz-grant).
const (
	GrantTokenExchange     = "urn:ietf:params:oauth:grant-type:token-exchange"
	GrantClientCredentials = "client_credentials"
	GrantJWTBearer         = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	AssertionTypeJWT       = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	TokenTypeJWT           = "urn:ietf:params:oauth:token-type:jwt"
	TokenTypeAccessToken   = "urn:ietf:params:oauth:token-type:access_token"
	TokenTypeIDJAG         = "urn:ietf:params:oauth:token-type:id-jag"
	ProfileIDJAG           = "urn:ietf:params:oauth:grant-profile:id-jag"
	GrantDeferred          = "urn:ietf:params:oauth:grant-type:deferred"
	GrantBackchannel       = "urn:openid:params:grant-type:ciba"
	TokenTypeDeferralCode  = "urn:ietf:params:oauth:token-type:deferral-code"
)

// ParametersDetail is the type of authorization details (RFC 9396) that hold the
// parameters of the requested entitlement.
const ParametersDetail = "urn:access-broker:parameters"

// A TokenRequest is the form of POST /oauth2/token. With a SubjectToken or OnBehalfOf it is a
// token exchange (RFC 8693). Without them it is a client credentials grant (RFC
// 6749, section 4.4), and the certificate of the connection or Client.Token proves
// the client.
type TokenRequest struct {
	SubjectToken   string // the caller's own JWT-SVID
	OnBehalfOf     string // the token of whom the caller acts for; see SubjectTokenType
	Audience       string // the entitlement
	Resource       string // alternative to Audience: the audience of the entitlement's tokens
	Scopes         []string
	TTL            Duration
	Duration       Duration
	Justification  string
	Ticket         string
	Parameters     map[string]string
	RequestID      string // collect an approved request; the other fields, except SubjectToken, are empty then
	BindingMessage string // one line by which approvers recognize the action
	Deferred       bool   // accept a deferred response: Error.DeferralCode

	AuthorizationDetails []AuthorizationDetail // RFC 9396: what the token is good for

	DeferralCode Token // poll with the code of a deferred response; the other fields are empty then
	AuthReqID    Token // poll with the code of a BackchannelResponse; the other fields are empty then
}

func (r TokenRequest) form() url.Values {
	form := url.Values{"grant_type": {GrantClientCredentials}}
	switch {
	case r.OnBehalfOf != "":
		form.Set("grant_type", GrantTokenExchange)
		form.Set("subject_token", r.OnBehalfOf)
		form.Set("subject_token_type", SubjectTokenType(r.OnBehalfOf))
		if r.SubjectToken != "" {
			form.Set("actor_token", r.SubjectToken)
			form.Set("actor_token_type", TokenTypeJWT)
		}
	case r.SubjectToken != "":
		form.Set("grant_type", GrantTokenExchange)
		form.Set("subject_token", r.SubjectToken)
		form.Set("subject_token_type", TokenTypeJWT)
	}
	if r.DeferralCode != "" {
		return url.Values{"grant_type": {GrantDeferred}, "deferral_code": {string(r.DeferralCode)}}
	}
	if r.AuthReqID != "" {
		return url.Values{"grant_type": {GrantBackchannel}, "auth_req_id": {string(r.AuthReqID)}}
	}
	if r.Deferred {
		form.Set("completion_mode", "deferred")
	}
	for name, value := range map[string]string{
		"audience":        r.Audience,
		"resource":        r.Resource,
		"scope":           strings.Join(r.Scopes, " "),
		"justification":   r.Justification,
		"ticket":          r.Ticket,
		"request_id":      r.RequestID,
		"binding_message": r.BindingMessage,
	} {
		if value != "" {
			form.Set(name, value)
		}
	}
	list := slices.Clone(r.AuthorizationDetails)
	if len(r.Parameters) > 0 {
		list = append(list, AuthorizationDetail{Type: ParametersDetail, Parameters: r.Parameters})
	}
	if len(list) > 0 {
		details, _ := json.Marshal(list) // strings and numbers always have an encoding
		form.Set("authorization_details", string(details))
	}
	if r.TTL != 0 {
		form.Set("ttl", r.TTL.String())
	}
	if r.Duration != 0 {
		form.Set("duration", r.Duration.String())
	}
	return form
}

// A TokenResponse is the answer of POST /oauth2/token (RFC 8693, section 2.2.1).
// It is safe to print and log: the token shows as "[secret]".
type TokenResponse struct {
	AccessToken     Token  `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"` // seconds
	Scope           string `json:"scope,omitempty"`
	Lease           string `json:"lease"`      // extension: "lse_…", for an early return
	RequestID       string `json:"request_id"` // extension: "req_…"

	// AuthorizationDetails are what was granted (RFC 9396, section 7). The parameters are
	// under the type that the client used, otherwise under the entitlement's name.
	AuthorizationDetails []AuthorizationDetail `json:"authorization_details,omitempty"`
}

// A BackchannelResponse is the answer of POST /oauth2/bc-authorize (CIBA Core 1.0, section
// 7.3).
type BackchannelResponse struct {
	AuthReqID Token  `json:"auth_req_id"`
	ExpiresIn int64  `json:"expires_in"` // seconds
	Interval  int    `json:"interval"`   // seconds between polls
	RequestID string `json:"request_id"` // extension: "req_…"
}

// A Token is a bearer token, or a code by which a client polls. It marshals to JSON unchanged, but prints and logs as
// "[secret]".
type Token string

// Format prints "[secret]", whatever the verb.
func (Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// LogValue logs "[secret]".
func (Token) LogValue() slog.Value { return slog.StringValue("[secret]") }

// An Introspection is the answer of POST /oauth2/introspect (RFC 7662, section
// 2.2). If Active is false, all other fields are empty.
type Introspection struct {
	Active      bool          `json:"active"`
	Scope       string        `json:"scope,omitempty"`
	ClientID    string        `json:"client_id,omitempty"` // SPIFFE ID of the holder
	Subject     string        `json:"sub,omitempty"`       // on whose behalf; without delegation, the holder
	Actor       *Actor        `json:"act,omitempty"`       // RFC 8693, section 4.1: the holder, if it acts for the subject
	TokenType   string        `json:"token_type,omitempty"`
	Expires     int64         `json:"exp,omitempty"` // Unix seconds
	IssuedAt    int64         `json:"iat,omitempty"`
	Audience    string        `json:"aud,omitempty"`
	Issuer      string        `json:"iss,omitempty"`
	ID          string        `json:"jti,omitempty"` // the lease
	Entitlement string        `json:"entitlement,omitempty"`
	Request     string        `json:"request,omitempty"`
	Confirm     *Confirmation `json:"cnf,omitempty"`

	// AuthorizationDetails are what was granted (RFC 9396, section 9.2), as in the token.
	AuthorizationDetails []AuthorizationDetail `json:"authorization_details,omitempty"`
}

// An Actor acts for the subject of a token (RFC 8693, section 4.1). Actor is the one that acted
// before it.
type Actor struct {
	Subject string `json:"sub"`
	Actor   *Actor `json:"act,omitempty"`
}

// A Confirmation is what a token is bound to: the key of DPoP proofs (RFC 9449, section 6),
// or a client certificate (RFC 8705, section 3.1). A token that is bound to a certificate is
// also valid with a later X.509-SVID of the same SPIFFE ID, if the resource server verifies
// it against the bundle of its trust domain.
type Confirmation struct {
	KeyThumbprint string `json:"jkt,omitempty"`       // base64url of the SHA-256 thumbprint of the key (RFC 7638)
	SPIFFEID      string `json:"spiffe_id,omitempty"` // with x5t#S256; an extension
	X509SHA256    string `json:"x5t#S256,omitempty"`  // base64url of the certificate's SHA-256
}

// String describes what the token is bound to, for a person.
func (c *Confirmation) String() string {
	switch {
	case c == nil:
		return ""
	case c.KeyThumbprint != "" && c.X509SHA256 != "":
		return "DPoP key " + c.KeyThumbprint + " and certificate of " + c.SPIFFEID
	case c.KeyThumbprint != "":
		return "DPoP key " + c.KeyThumbprint
	}
	return "certificate of " + c.SPIFFEID
}

// Metadata is the authorization server metadata (RFC 8414, section 2).
type Metadata struct {
	Issuer                 string   `json:"issuer"`
	TokenEndpoint          string   `json:"token_endpoint"`
	IntrospectionEndpoint  string   `json:"introspection_endpoint"`
	RevocationEndpoint     string   `json:"revocation_endpoint"`
	JWKSURI                string   `json:"jwks_uri"`
	GrantTypes             []string `json:"grant_types_supported"`
	GrantProfiles          []string `json:"authorization_grant_profiles_supported,omitempty"`
	ResponseTypes          []string `json:"response_types_supported"`
	ChallengeMethods       []string `json:"code_challenge_methods_supported"`
	TokenAuthMethods       []string `json:"token_endpoint_auth_methods_supported"`
	IntrospectionAuth      []string `json:"introspection_endpoint_auth_methods_supported"`
	RevocationAuth         []string `json:"revocation_endpoint_auth_methods_supported"`
	SubjectTypes           []string `json:"subject_types_supported"`
	IDTokenSigningAlgs     []string `json:"id_token_signing_alg_values_supported,omitempty"`
	Claims                 []string `json:"claims_supported"` // of the assertions that clouds verify with this document
	CertificateBoundTokens bool     `json:"tls_client_certificate_bound_access_tokens"`
	DPoPAlgs               []string `json:"dpop_signing_alg_values_supported,omitempty"`
	DetailTypes            []string `json:"authorization_details_types_supported"`
	ProtectedResources     []string `json:"protected_resources,omitempty"` // RFC 9728, section 4
	DeferredResponse       bool     `json:"deferred_token_response_supported,omitempty"`
	RevocationTypes        []string `json:"revocation_endpoint_token_type_values_supported,omitempty"`
	BackchannelEndpoint    string   `json:"backchannel_authentication_endpoint,omitempty"`
	BackchannelModes       []string `json:"backchannel_token_delivery_modes_supported,omitempty"`
	BackchannelUserCode    bool     `json:"backchannel_user_code_parameter_supported"`
	ServiceDocumentation   string   `json:"service_documentation,omitempty"`
	SVIDAudiences          []string `json:"jwt_svid_audiences,omitempty"` // extension: accepted audiences of a caller's JWT-SVID
	Pages                  string   `json:"pages,omitempty"`              // extension: URL of the pages where people log in
	StatusLists            string   `json:"status_list_aggregation_endpoint,omitempty"`
}

// ProtectedResource is the metadata of a resource that the broker serves itself (RFC
// 9728).
type ProtectedResource struct {
	Resource               string   `json:"resource"`
	AuthorizationServers   []string `json:"authorization_servers"`
	Scopes                 []string `json:"scopes_supported"`
	BearerMethods          []string `json:"bearer_methods_supported"`
	Name                   string   `json:"resource_name,omitempty"`
	Documentation          string   `json:"resource_documentation,omitempty"`
	CertificateBoundTokens bool     `json:"tls_client_certificate_bound_access_tokens"`
	DPoPAlgorithms         []string `json:"dpop_signing_alg_values_supported,omitempty"`
	ForWorkloads           []string `json:"authorization_servers_for_workloads"`        // extension: of AuthorizationServers, those for workloads
	ForPeople              []string `json:"authorization_servers_for_people,omitempty"` // extension: those for people
}

// Exchange requests an access token. While the request waits for approval, the
// error is Pending and has the RequestID for the next call. Exchange never retries,
// because /oauth2 has no idempotency key: a repetition issues another token.
func (c *Client) Exchange(ctx context.Context, req TokenRequest) (*TokenResponse, error) {
	anonymous := req.SubjectToken != "" // SubjectToken is the proof: another one is not needed
	return fetch[TokenResponse](ctx, c, call{method: http.MethodPost, path: "/oauth2/token", form: req.form(), anonymous: anonymous, bound: true})
}

// A BackchannelRequest is the form of POST /oauth2/bc-authorize (CIBA). Its token fields are
// those of a TokenRequest that asks for a token.
type BackchannelRequest struct {
	TokenRequest
	LoginHint string // the caller's own SPIFFE ID
	Expiry    int    // seconds that the request may wait; zero: as long as policy allows
}

// Backchannel are the calls of CIBA. The client polls with TokenRequest.AuthReqID.
type Backchannel struct{ Client *Client }

// Authorize files a request for a token.
func (b Backchannel) Authorize(ctx context.Context, req BackchannelRequest) (*BackchannelResponse, error) {
	form := req.form()
	form.Del("grant_type")
	form.Set("login_hint", req.LoginHint)
	if req.Expiry != 0 {
		form.Set("requested_expiry", strconv.Itoa(req.Expiry))
	}
	return fetch[BackchannelResponse](ctx, b.Client, call{method: http.MethodPost, path: "/oauth2/bc-authorize", form: form, bound: true})
}

// Introspect returns the state of a token to its holder and to the resource servers
// of its issuer. Other callers get an inactive Introspection.
func (c *Client) Introspect(ctx context.Context, token Token) (*Introspection, error) {
	return fetch[Introspection](ctx, c, call{method: http.MethodPost, path: "/oauth2/introspect", form: url.Values{"token": {string(token)}}})
}

// RevokeToken revokes a token of the caller (RFC 7009). It returns nil for any
// other token, too.
func (c *Client) RevokeToken(ctx context.Context, token Token) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/oauth2/revoke", form: url.Values{"token": {string(token)}}, bound: true}, nil)
}

// JWKS returns the public keys of the broker's tokens (RFC 7517, section 5).
func (c *Client) JWKS(ctx context.Context) (json.RawMessage, error) {
	var out json.RawMessage
	err := c.do(ctx, call{method: http.MethodGet, path: "/oauth2/jwks", anonymous: true}, &out)
	return out, err
}

// Discovery returns the broker's metadata.
func (c *Client) Discovery(ctx context.Context) (*Metadata, error) {
	return fetch[Metadata](ctx, c, call{method: http.MethodGet, path: "/.well-known/openid-configuration", anonymous: true})
}

// StatusLists is a status list aggregation (draft-ietf-oauth-status-list-20, section 9.3).
type StatusLists struct {
	Lists []string `json:"status_lists"` // the URIs of the lists
}

// StatusListClient reads the status lists of the broker's tokens. Package verify checks
// tokens with them.
type StatusListClient struct{ *Client }

// All returns the URIs of the lists whose tokens may be valid.
func (c StatusListClient) All(ctx context.Context) (*StatusLists, error) {
	return fetch[StatusLists](ctx, c.Client, call{method: http.MethodGet, path: "/oauth2/status", anonymous: true})
}

// List returns a status list token, which the caller must verify. Its name is the last
// segment of its URI.
func (c StatusListClient) List(ctx context.Context, name string) ([]byte, error) {
	var out raw
	err := c.do(ctx, call{method: http.MethodGet, path: "/oauth2/status/" + url.PathEscape(name), anonymous: true}, &out)
	return out, err
}
