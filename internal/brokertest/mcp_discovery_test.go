package brokertest

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/auth/extauth"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"
)

// withResource adds the resource to calls of the token endpoint, which the protocol requires
// of clients (RFC 8707), and the SDK's handler omits.
type withResource struct {
	http.RoundTripper
	resource string
}

func (t withResource) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPost {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		text := string(body) + "&resource=" + url.QueryEscape(t.resource)
		r = r.Clone(r.Context())
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
	}
	return t.RoundTripper.RoundTrip(r)
}

// A client that knows only the endpoint follows the challenge to the metadata, the metadata
// to the broker, and gets a token there with its X.509-SVID. A call that needs more leads it
// to a token with all scopes.
func TestMCPDiscovery(t *testing.T) {
	t.Parallel()
	b := New(t)
	svid, err := b.CA.X509SVID(Agent, time.Hour)
	b.must(err)
	oauth := b.ClientWith(tls.Certificate(svid)).HTTP
	handler, err := extauth.NewClientCredentialsHandler(&extauth.ClientCredentialsHandlerConfig{
		// The SDK requires a secret. The broker identifies the client by its certificate, and ignores it.
		Credentials: &oauthex.ClientCredentials{ClientID: Agent, ClientSecretAuth: &oauthex.ClientSecretAuth{ClientSecret: "unused"}},
		HTTPClient:  &http.Client{Transport: withResource{oauth.Transport, b.URL + "/mcp"}},
	})
	b.must(err)
	client := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil)
	session, err := client.Connect(t.Context(), &sdk.StreamableClientTransport{Endpoint: b.URL + "/mcp", HTTPClient: b.Anonymous().HTTP, OAuthHandler: handler}, nil)
	b.must(err)
	defer func() { _ = session.Close() }()
	for tool, arguments := range map[string]any{
		"list_access":    map[string]any{},
		"request_access": map[string]any{"entitlement": "tickets-api", "scopes": []string{"tickets:read"}, "justification": "triage"},
	} {
		result, err := session.CallTool(t.Context(), &sdk.CallToolParams{Name: tool, Arguments: arguments})
		if err != nil || result.IsError {
			t.Errorf("%s: got %+v, %v", tool, result, err)
		}
	}
}
