package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/sync/errgroup"
)

// devPeople are whom the login of "broker dev" lets anybody be.
var devPeople = []struct{ ID, Name, What string }{
	{"ana", "Ana", "of the support team; answers for the agents, and may not approve what they ask for"},
	{"ben", "Ben", "of the support team; may approve what agents and Ana ask for"},
	{"dan", "Dan", "of the security team; may use the kill switch and read the log"},
}

// A devLogin is an OpenID provider (OpenID Connect Core 1.0, code flow with
// PKCE) that asks nobody for a password: whoever sits there says who they are.
// It is on loopback only, and for playing only.
type devLogin struct {
	issuer   string
	redirect string
	secret   string
	key      *ecdsa.PrivateKey

	mu    sync.Mutex
	codes map[string]devCode
}

// A devCode is what an authorization code stands for.
type devCode struct {
	person, nonce, challenge string
	expires                  time.Time
}

// serveLogin starts the provider.
func (w *devWorld) serveLogin(ctx context.Context, group *errgroup.Group) error {
	l, err := net.Listen("tcp", w.loginAddress)
	if err != nil {
		return fmt.Errorf("listening on %s, for the login: %w", w.loginAddress, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the login's key: %w", err)
	}
	p := &devLogin{issuer: "http://" + w.loginAddress, redirect: w.pagesURL() + "/ui/login/callback", secret: devClientSecret, key: key, codes: map[string]devCode{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.discovery)
	mux.HandleFunc("GET /keys", p.keys)
	mux.HandleFunc("GET /authorize", p.authorize)
	mux.HandleFunc("POST /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.token)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 14}
	group.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving the login: %w", err)
		}
		return nil
	})
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return nil
}

// devClientSecret proves nothing: who can reach the provider can be anybody.
const devClientSecret = "not-a-secret"

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // whoever is gone can't be told
}

func (p *devLogin) discovery(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer": p.issuer, "authorization_endpoint": p.issuer + "/authorize", "token_endpoint": p.issuer + "/token", "jwks_uri": p.issuer + "/keys",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
		"code_challenge_methods_supported": []string{"S256"}, "authorization_response_iss_parameter_supported": true,
	})
}

func (p *devLogin) keys(w http.ResponseWriter, _ *http.Request) {
	point, err := p.key.PublicKey.Bytes()
	if err != nil {
		http.Error(w, "no key", http.StatusInternalServerError)
		return
	}
	encode := base64.RawURLEncoding.EncodeToString
	writeJSON(w, http.StatusOK, map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "dev", "x": encode(point[1:33]), "y": encode(point[33:]),
	}}})
}

var devLoginPage = template.Must(template.New("").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>Who are you?</title>
<body style="font:16px/1.5 system-ui;max-width:30rem;margin:3rem auto;padding:0 1rem"><h1>Who are you?</h1><p>This login is for trying out: nobody is asked for a password.</p>
<form method="post">{{range .}}<p><button name="person" value="{{.ID}}" style="font:inherit;padding:.5rem 1rem">{{.Name}}</button> {{.What}}</p>{{end}}</form></body></html>`))

// authorize asks who it is, and sends the browser back with a code.
func (p *devLogin) authorize(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if query.Get("redirect_uri") != p.redirect || query.Get("client_id") != "broker" || query.Get("code_challenge_method") != "S256" {
		http.Error(w, "this login is for the broker only", http.StatusBadRequest)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
	person := r.PostFormValue("person")
	known := false
	for _, d := range devPeople {
		known = known || d.ID == person
	}
	if !known {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = devLoginPage.Execute(w, devPeople) // whoever is gone can't be told
		return
	}
	code := rand.Text()
	p.mu.Lock()
	if len(p.codes) > 1000 {
		clear(p.codes)
	}
	p.codes[code] = devCode{person, query.Get("nonce"), query.Get("code_challenge"), time.Now().Add(time.Minute)}
	p.mu.Unlock()
	back := url.Values{"code": {code}, "state": {query.Get("state")}, "iss": {p.issuer}}
	http.Redirect(w, r, p.redirect+"?"+back.Encode(), http.StatusSeeOther)
}

// token trades a code for an ID token.
func (p *devLogin) token(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<14)
	_, secret, basic := r.BasicAuth()
	if !basic {
		secret = r.PostFormValue("client_secret")
	}
	p.mu.Lock()
	code, ok := p.codes[r.PostFormValue("code")]
	delete(p.codes, r.PostFormValue("code"))
	p.mu.Unlock()
	verifier := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	challenge := base64.RawURLEncoding.EncodeToString(verifier[:])
	now := time.Now()
	if !ok || now.After(code.expires) || subtle.ConstantTimeCompare([]byte(secret), []byte(p.secret)) != 1 || challenge != code.challenge {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant"})
		return
	}
	name := code.person
	for _, d := range devPeople {
		if d.ID == code.person {
			name = d.Name
		}
	}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": p.issuer, "sub": code.person, "aud": "broker", "nonce": code.nonce, "name": name,
		"iat": now.Unix(), "auth_time": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	})
	token.Header["kid"] = "dev"
	signed, err := token.SignedString(p.key)
	if err != nil {
		http.Error(w, "signing failed", http.StatusInternalServerError)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"access_token": rand.Text(), "token_type": "Bearer", "expires_in": 300, "id_token": signed})
}
