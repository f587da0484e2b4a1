package server

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"accessbroker.internal/api"
)

//go:embed openapi.json
var openAPIDocument []byte

// public returns the header of a response that any cache may keep for seconds.
func public(seconds int) http.Header {
	return http.Header{"Cache-Control": {fmt.Sprintf("public, max-age=%d", seconds)}}
}

// documentedServer is the server that openapi.json names: the address of "broker dev".
const documentedServer = `"https://127.0.0.1:8443"`

// openAPIOf returns the document with a broker's own URL as its server, so that clients
// which are generated from it call that broker.
func openAPIOf(external *url.URL) ([]byte, error) {
	server, err := json.Marshal(external.String())
	if err != nil {
		return nil, fmt.Errorf("naming the server of the OpenAPI document: %w", err)
	}
	return bytes.Replace(openAPIDocument, []byte(documentedServer), server, 1), nil
}

func (s *Server) openAPI(c *call) (reply, error) {
	return c.document("openapi.json", s.openAPIText, "application/json", public(300))
}

// jwks returns the token keys. Caches may keep them for five minutes, because a key is
// published for longer than that before its first use.
func (s *Server) jwks(c *call) (reply, error) {
	set, err := s.cfg.Keys(c.r.Context())
	if err != nil {
		return reply{}, fmt.Errorf("reading the token keys: %w", err)
	}
	return c.document("jwks", set, "application/jwk-set+json", public(300))
}

// metadata returns the metadata of RFC 8414, with the fields that OpenID Connect
// Discovery requires: clouds use it to find the keys of workload tokens. There is no
// authorization endpoint, because no one logs in to get a token. The required
// response_types_supported must not be empty (section 3.2). Its value tells clouds that
// the tokens which they verify have the form of ID tokens, as in the documents of other
// issuers of workload tokens. Clients of MCP refuse servers that do not list the challenge
// methods of PKCE, also for grants without an authorization code.
func (s *Server) metadata(c *call) (reply, error) {
	text, err := reply{body: s.metadataBody()}.encode(new(bytes.Buffer))
	if err != nil {
		return reply{}, fmt.Errorf("encoding the metadata: %w", err)
	}
	return c.document("metadata", text, "application/json", public(300))
}

func (s *Server) metadataBody() api.Metadata {
	pages := ""
	if s.cfg.People != nil {
		pages = s.pageURL("/ui/")
	}
	grants, profiles := []string{api.GrantTokenExchange, api.GrantClientCredentials}, []string(nil)
	if s.cfg.SubjectToken != nil {
		grants, profiles = append(grants, api.GrantJWTBearer), []string{api.ProfileIDJAG}
	}
	grants = append(grants, api.GrantDeferred, api.GrantBackchannel)
	lists := ""
	if s.cfg.StatusLists != nil && s.cfg.Broker.Rules().Catalogue.ListsStatuses() {
		lists = s.url("/oauth2/status")
	}
	methods := []string{"spiffe_jwt", "spiffe_x509", "tls_client_auth"}
	if s.cfg.Clients.WithoutSVIDs {
		methods = []string{"none"} // the subject_token proves who calls
	}
	return api.Metadata{
		Issuer:                 s.external.String(),
		TokenEndpoint:          s.url("/oauth2/token"),
		IntrospectionEndpoint:  s.url("/oauth2/introspect"),
		RevocationEndpoint:     s.url("/oauth2/revoke"),
		JWKSURI:                s.url("/oauth2/jwks"),
		GrantTypes:             grants,
		GrantProfiles:          profiles,
		ResponseTypes:          []string{"id_token"},
		ChallengeMethods:       []string{"S256"},
		TokenAuthMethods:       methods,
		IntrospectionAuth:      append(methods, "Bearer"), // the type of an access token (RFC 8414, section 2): a JWT-SVID
		RevocationAuth:         methods,
		SubjectTypes:           []string{"public"},
		IDTokenSigningAlgs:     s.cfg.Algorithms(),
		Claims:                 []string{"aud", "exp", "iat", "iss", "jti", "sub"},
		CertificateBoundTokens: true,
		DPoPAlgs:               s.proofAlgorithms(),
		DetailTypes:            s.detailTypes(),
		ProtectedResources:     s.protectedResources(),
		ServiceDocumentation:   s.url("/openapi.json"),
		SVIDAudiences:          s.cfg.SVIDAudiences,
		Pages:                  pages,
		DeferredResponse:       true,
		RevocationTypes:        []string{api.TokenTypeAccessToken, api.TokenTypeDeferralCode},
		BackchannelEndpoint:    s.url(backchannelPath),
		BackchannelModes:       []string{"poll"},
		StatusLists:            lists,
	}
}
