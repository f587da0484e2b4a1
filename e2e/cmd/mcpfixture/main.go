//go:build conformance

// Command mcpfixture runs a broker whose MCP endpoint also has the tools, resources and
// prompts that the conformance suite expects. They are those of the Go SDK's own
// conformance server, whose source is added when the test builds this command: transport,
// authorization and tasks are the broker's.
//
// The suite cannot authenticate, so a proxy adds an access token to its calls, and changes
// nothing else. The command prints the proxy's URL, and ends with its input.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/internal/service"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "mcp-conformance-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	at, err := devworld.FreeAddresses()
	if err != nil {
		return err
	}
	w, err := newWorld(dir, at)
	if err != nil {
		return err
	}
	tasks := new(jobs)
	w.MCP = service.MCPTools{
		Configure: func(o *mcp.ServerOptions) {
			o.CompletionHandler, o.SubscribeHandler, o.UnsubscribeHandler = completionHandler, subscribeHandler, unsubscribeHandler
		},
		Extend: func(s *mcp.Server) { registerTools(s); registerResources(s); registerPrompts(s); tasks.register(s) },
		Tasks:  tasks,
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return w.Run(context.Background(), logger, func(ctx context.Context) error {
		proxy, err := serveProxy(ctx, w)
		if err != nil {
			return err
		}
		defer func() { _ = proxy.Close() }()
		fmt.Printf("http://%s/mcp\n", proxy.Addr())
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	})
}

// newWorld returns a world whose broker admits as many calls as the suite makes.
func newWorld(dir string, at devworld.Addresses) (*devworld.World, error) {
	w, err := devworld.New(dir, at)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(w.ConfigFile())
	if err != nil {
		return nil, err
	}
	text = []byte(strings.Replace(string(text), "\n  admin_socket:", "\n  admission: {per_second: 100000, pending: 1000}\n  admin_socket:", 1))
	if err := os.WriteFile(w.ConfigFile(), text, 0o600); err != nil {
		return nil, err
	}
	return devworld.New(dir, at) // it keeps existing files
}

// serveProxy serves the broker on a port without TLS, for a caller with a token.
func serveProxy(ctx context.Context, w *devworld.World) (net.Listener, error) {
	bundle, err := os.ReadFile(w.Bundle())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	token, err := exchange(ctx, w, &http.Client{Transport: transport})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	own := []string{l.Addr().String(), strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1)}
	broker, err := url.Parse(w.URL())
	if err != nil {
		return nil, err
	}
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host = broker.Scheme, broker.Host
		r.Out.Host = r.In.Host
		for _, host := range own { // the names of the proxy are those of the broker; others stay
			if r.In.Host == host {
				r.Out.Host = broker.Host
			}
			if r.In.Header.Get("Origin") == "http://"+host {
				r.Out.Header.Set("Origin", w.URL())
			}
		}
		r.Out.Header.Set("Authorization", "Bearer "+token)
	}}
	go func() { _ = http.Serve(l, proxy) }()
	return l, nil
}

// exchange returns an access token for the MCP endpoint.
func exchange(ctx context.Context, w *devworld.World, client *http.Client) (string, error) {
	svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: w.URL()}, workloadapi.WithAddr("unix://"+w.Socket("agent")))
	if err != nil {
		return "", err
	}
	resp, err := client.PostForm(w.URL()+"/oauth2/token", url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {svid.Marshal()},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "resource": {w.URL() + "/mcp"}, "scope": {"access:list access:release access:request"},
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Token string `json:"access_token"`
		Error string `json:"error_description"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return "", err
	}
	if answer.Token == "" {
		return "", errors.New(answer.Error)
	}
	return answer.Token, nil
}
