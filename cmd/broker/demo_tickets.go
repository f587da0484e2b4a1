package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A ticketAPI is a small resource server that knows only the broker's published keys. It
// verifies access tokens (RFC 9068, section 4) and allows the calls of their scopes.
type ticketAPI struct {
	url      string
	issuer   string
	audience string
	keys     func(ctx context.Context) (json.RawMessage, error)
}

// startTickets starts the ticket API. It shows its own SVID to the broker when it fetches
// the keys.
func (d *demo) startTickets(ctx context.Context) (*ticketAPI, error) {
	client, done, err := d.connect(ctx, d.clientOf("tickets"))
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the ticket API: %w", err)
	}
	t := &ticketAPI{
		url: "http://" + l.Addr().String(), issuer: d.world.URL(),
		audience: "https://tickets.acme.test", keys: client.JWKS,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tickets/{id}", t.allow("tickets:read", http.StatusOK, "the till is stuck again"))
	mux.HandleFunc("POST /tickets/{id}/comments", t.allow("tickets:comment", http.StatusCreated, "comment added"))
	mux.HandleFunc("POST /tickets/{id}/close", t.allow("tickets:close", http.StatusOK, "closed"))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(l) }()
	context.AfterFunc(ctx, func() { _ = server.Close(); done() })
	return t, nil
}

// allow answers calls with a token that has the scope.
func (t *ticketAPI) allow(scope string, status int, answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			http.Error(w, "no token", http.StatusUnauthorized)
			return
		}
		scopes, err := t.verify(r.Context(), token)
		switch {
		case err != nil:
			http.Error(w, "invalid token", http.StatusUnauthorized)
		case !slices.Contains(scopes, scope):
			http.Error(w, "it lacks the scope "+scope, http.StatusForbidden)
		default:
			w.WriteHeader(status)
			_, _ = io.WriteString(w, answer)
		}
	}
}

// verify checks a token and returns its scopes.
func (t *ticketAPI) verify(ctx context.Context, text string) ([]string, error) {
	jwks, err := t.keys(ctx)
	if err != nil {
		return nil, err
	}
	var claims struct {
		jwt.RegisteredClaims
		Scope string `json:"scope"`
	}
	token, err := jwt.ParseWithClaims(text, &claims, func(token *jwt.Token) (any, error) { return keyIn(jwks, token.Header["kid"]) },
		jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(t.issuer), jwt.WithAudience(t.audience), jwt.WithExpirationRequired())
	if err != nil {
		return nil, err
	}
	if token.Header["typ"] != "at+jwt" {
		return nil, errors.New("not an access token")
	}
	return strings.Split(claims.Scope, " "), nil
}

// keyIn finds a P-256 key in a JWK Set (RFC 7517).
func keyIn(jwks []byte, kid any) (*ecdsa.PublicKey, error) {
	var set struct{ Keys []struct{ Kid, X, Y string } }
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, err
	}
	for _, k := range set.Keys {
		if k.Kid != kid {
			continue
		}
		x, err1 := base64.RawURLEncoding.DecodeString(k.X)
		y, err2 := base64.RawURLEncoding.DecodeString(k.Y)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
	}
	return nil, errors.New("no such key")
}

// call makes a call to the ticket API.
func (t *ticketAPI) call(ctx context.Context, method, path, token string) (status int, answer string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, t.url+path, nil)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("calling the ticket API: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<12))
	return resp.StatusCode, strings.TrimSpace(string(body)), err
}
