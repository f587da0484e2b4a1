package devworld

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

// People can log in to a world, by their ID.
var People = []struct{ ID, Name, Description string }{
	{"ana", "Ana", "of the support team; owns the agents, and may not approve their requests"},
	{"ben", "Ben", "of the support team; may approve requests of agents and of Ana"},
	{"dan", "Dan", "of the security team; may use the kill switch and read the log"},
	{"kim", "Kim", "a contractor; may read tickets until the contract ends"},
}

// A login is an OpenID provider (OpenID Connect Core 1.0, code flow with PKCE) that
// asks for no password: the browser chooses a person.
type login struct {
	issuer   string
	redirect string
	broker   string // its issuer, the audience of ID-JAGs
	key      *ecdsa.PrivateKey

	mu    sync.Mutex
	codes map[string]authorization // by authorization code
}

type authorization struct {
	person, nonce, challenge string
	expires                  time.Time
}

// serveLogin serves the provider in the group until ctx ends, for a broker whose pages have
// the URL pages.
func (w *World) serveLogin(ctx context.Context, group *errgroup.Group, pages string) error {
	l, err := net.Listen("tcp", w.Login)
	if err != nil {
		return fmt.Errorf("listening on %s, for the login: %w", w.Login, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("creating the login's key: %w", err)
	}
	p := &login{issuer: "http://" + w.Login, redirect: pages + "/ui/login/callback", broker: w.URL(), key: key, codes: map[string]authorization{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.discovery)
	mux.HandleFunc("GET /keys", p.keys)
	mux.HandleFunc("GET /authorize", p.authorize)
	mux.HandleFunc("POST /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("POST /id-jag", p.idJAG)
	if err := w.servePipelines(mux); err != nil {
		return errors.Join(err, l.Close())
	}
	own := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Host != w.Login { // a page whose name resolves to loopback: it must not choose a person
			http.Error(rw, "misdirected request", http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(rw, r)
	})
	server := &http.Server{Handler: own, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 14}
	group.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving the login: %w", err)
		}
		return nil
	})
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return nil
}

// clientSecret protects nothing: anyone who can reach the provider can choose a person.
const clientSecret = "not-a-secret"

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error means that the caller has gone
}

func (p *login) discovery(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer": p.issuer, "authorization_endpoint": p.issuer + "/authorize", "token_endpoint": p.issuer + "/token", "jwks_uri": p.issuer + "/keys",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
		"code_challenge_methods_supported": []string{"S256"}, "authorization_response_iss_parameter_supported": true,
	})
}

func (p *login) keys(w http.ResponseWriter, _ *http.Request) {
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

var loginPage = template.Must(template.New("").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>Who are you?</title>
<body style="font:16px/1.5 system-ui;max-width:30rem;margin:3rem auto;padding:0 1rem"><h1>Who are you?</h1><p>This login is for development. It asks for no password.</p>
<form method="post">{{range .}}<p><button name="person" value="{{.ID}}" style="font:inherit;padding:.5rem 1rem">{{.Name}}</button> {{.Description}}</p>{{end}}</form></body></html>`))

// authorize lets the browser choose a person and sends it back with a code.
func (p *login) authorize(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if query.Get("redirect_uri") != p.redirect || query.Get("client_id") != "broker" || query.Get("code_challenge_method") != "S256" {
		http.Error(w, "this login is for the broker only", http.StatusBadRequest)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
	person := r.PostFormValue("person")
	if nameOf(person) == "" {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = loginPage.Execute(w, People) // an error means that the caller has gone
		return
	}
	code := rand.Text()
	p.mu.Lock()
	if len(p.codes) > 1000 {
		clear(p.codes)
	}
	p.codes[code] = authorization{person, query.Get("nonce"), query.Get("code_challenge"), time.Now().Add(time.Minute)}
	p.mu.Unlock()
	back := url.Values{"code": {code}, "state": {query.Get("state")}, "iss": {p.issuer}}
	http.Redirect(w, r, p.redirect+"?"+back.Encode(), http.StatusSeeOther)
}

// token exchanges a code for an ID token.
func (p *login) token(w http.ResponseWriter, r *http.Request) {
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
	if !ok || now.After(code.expires) || subtle.ConstantTimeCompare([]byte(secret), []byte(clientSecret)) != 1 || challenge != code.challenge {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant"})
		return
	}
	signed, err := p.sign("JWT", jwt.MapClaims{
		"sub": code.person, "aud": "broker", "nonce": code.nonce, "name": nameOf(code.person), "auth_time": now.Unix(),
	}, now)
	if err != nil {
		http.Error(w, "signing failed", http.StatusInternalServerError)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"access_token": rand.Text(), "token_type": "Bearer", "expires_in": 300, "id_token": signed})
}

// nameOf returns the name of a person; empty: there is no such person.
func nameOf(person string) string {
	for _, d := range People {
		if d.ID == person {
			return d.Name
		}
	}
	return ""
}

// sign returns a token of the provider.
func (p *login) sign(typ string, claims jwt.MapClaims, now time.Time) (string, error) {
	claims["iss"], claims["iat"], claims["exp"] = p.issuer, now.Unix(), now.Add(5*time.Minute).Unix()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["kid"], token.Header["typ"] = "dev", typ
	return token.SignedString(p.key)
}

// agentClient is the OAuth client that the agents of the world are at the provider.
const agentClient = "agents"

// idJAG returns an ID-JAG, with which an agent acts on behalf of the person that the form
// names. A real provider issues one to a client that the person has logged in to.
func (p *login) idJAG(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
	person := r.PostFormValue("person")
	if nameOf(person) == "" {
		http.Error(w, "person must be one of the login page", http.StatusBadRequest)
		return
	}
	signed, err := p.sign("oauth-id-jag+jwt", jwt.MapClaims{
		"sub": person, "aud": p.broker, "client_id": agentClient, "jti": rand.Text(), "name": nameOf(person),
	}, time.Now())
	writeToken(w, signed, err)
}

// writeToken writes a signed token, or an error if signing failed.
func writeToken(w http.ResponseWriter, signed string, err error) {
	if err != nil {
		http.Error(w, "signing failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = fmt.Fprintln(w, signed) // an error means that the caller has gone
}
