package server

import (
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// driveResource reads the metadata of the MCP endpoint.
func (w *world) driveResource(t *testing.T) {
	resp, err := (&http.Client{Transport: w.spec}).Get(w.url + "/.well-known/oauth-protected-resource/mcp")
	if err != nil {
		t.Fatal(err)
	}
	var got api.ProtectedResource
	err = json.NewDecoder(resp.Body).Decode(&got)
	if err != nil || got.Resource != "https://broker.acme.test/mcp" {
		t.Errorf("metadata: got %+v, %v", got, err)
	}
}

// The external URL's path follows the well-known path in the metadata's URL (RFC 9728,
// section 3.1), and is part of the resource identifier.
func TestResourceBelowAPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.ExternalURL = "https://broker.acme.test/base" })
	for _, path := range []string{"/.well-known/oauth-protected-resource/base/mcp", "/.well-known/oauth-protected-resource/mcp", "/base/.well-known/oauth-protected-resource/mcp"} {
		resp, err := http.Get(w.url + path)
		if err != nil {
			t.Fatal(err)
		}
		var got api.ProtectedResource
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: got %d, %v", path, resp.StatusCode, err)
		}
		want := api.ProtectedResource{
			Resource: "https://broker.acme.test/base/mcp", AuthorizationServers: []string{"https://broker.acme.test/base", "https://login.acme.test"},
			Scopes: []string{"access:list", "access:request"}, BearerMethods: []string{"header"}, Name: "Access Broker",
			Documentation: "https://broker.acme.test/base/openapi.json", CertificateBoundTokens: true, DPoPAlgorithms: []string{"ES256"},
			ForWorkloads: []string{"https://broker.acme.test/base"}, ForPeople: []string{"https://login.acme.test"},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", path, got, want)
		}
	}
	resp, err := http.Post(w.url+"/base/mcp", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`Bearer realm="access broker", scope="access:list", resource_metadata="https://broker.acme.test/.well-known/oauth-protected-resource/base/mcp"`,
		`DPoP realm="access broker", algs="ES256", scope="access:list", resource_metadata="https://broker.acme.test/.well-known/oauth-protected-resource/base/mcp"`,
	}
	if got := resp.Header.Values("WWW-Authenticate"); resp.StatusCode != http.StatusUnauthorized || !reflect.DeepEqual(got, want) {
		t.Errorf("got %d %q, want %q", resp.StatusCode, got, want)
	}
}

// A server without the endpoint has no metadata of it.
func TestNoResource(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.Handlers = nil })
	resp, err := http.Get(w.url + "/.well-known/oauth-protected-resource/mcp")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusNotFound || !strings.Contains(string(body), "does not serve MCP") {
		t.Errorf("got %d %s", resp.StatusCode, body)
	}
}
