package attest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"accessbroker.internal/broker"
)

// A ProviderConfig is an OpenID provider that people log in with.
type ProviderConfig struct {
	Name         string                 // the "login" of "login/ana"
	Issuer       string                 // its URL, exactly as its tokens name it
	ClientID     string                 // who we are to it
	Secret       func() (string, error) // the client's; read for each use, so that it can be rotated
	RedirectURL  string                 // where it sends browsers back to
	Scopes       []string               // beside openid; nil: profile and email
	GroupsClaim  string                 // what of its claims names groups; empty: none does
	ManagerClaim string                 // what names the manager, by sub; empty: none does
	Roots        *x509.CertPool         // nil: the system's
}

// Bounds of what a provider is listened to.
const (
	providerTimeout = 10 * time.Second
	maxProvider     = 1 << 20 // bytes of an answer
	maxIDToken      = 16 << 10
	rediscover      = time.Hour       // how long its metadata is believed
	giveUp          = 2 * time.Second // for how long a provider that is down is not asked again
	askKeys         = time.Second     // how often it is asked for its keys at most
	iatLeeway       = time.Minute     // that its clock may be ahead
)

// A provider is one OpenID provider. It is asked for its metadata when it is
// first needed, so that the broker starts without it. Safe for concurrent use.
type provider struct {
	cfg       ProviderConfig
	transport *bounded
	client    *http.Client // by the transport

	mu     sync.Mutex // guards the rest
	found  *discovered
	at     time.Time
	failed error
}

// A discovered provider has said what it can do (OpenID Connect Discovery 1.0).
type discovered struct {
	*oidc.Provider
	issuerInResponse bool // RFC 9207, section 3
}

func newProvider(cfg ProviderConfig) (*provider, error) {
	issuer, err := url.Parse(cfg.Issuer)
	if err != nil || issuer.Host == "" || issuer.Scheme != "https" && !loopback(issuer) {
		return nil, fmt.Errorf("provider %s: its issuer %q is no https URL", cfg.Name, cfg.Issuer)
	}
	if cfg.Scopes == nil {
		cfg.Scopes = []string{"profile", "email"}
	}
	transport := &bounded{next: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: providerTimeout, IdleConnTimeout: time.Minute, MaxConnsPerHost: 16, ForceAttemptHTTP2: true,
		Proxy: http.ProxyFromEnvironment,
	}}
	return &provider{cfg: cfg, transport: transport, client: &http.Client{
		Transport: transport, Timeout: providerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the provider redirects, which its endpoints never do")
		},
	}}, nil
}

// loopback says whether a URL leads no further than this computer.
func loopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "http" && (ip != nil && ip.IsLoopback() || u.Hostname() == "localhost")
}

// bounded cuts answers at maxProvider bytes, and asks for keys seldom: anybody
// can send a token by a key that nobody knows, and each has them asked for.
type bounded struct {
	next http.RoundTripper

	mu    sync.Mutex // guards the rest
	keys  string     // where they are
	asked time.Time
}

func (b *bounded) keysAt(url string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys, b.asked = url, time.Time{}
}

func (b *bounded) mayAsk(url string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if url != b.keys {
		return nil
	}
	if time.Since(b.asked) < askKeys {
		return errors.New("it was asked for its keys a moment ago")
	}
	b.asked = time.Now()
	return nil
}

func (b *bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := b.mayAsk(req.URL.String()); err != nil {
		return nil, err
	}
	resp, err := b.next.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxProvider), resp.Body}
	}
	return resp, err
}

// discover gives what the provider says of itself. One that does not answer is
// not asked again for a moment, or each login would wait for it.
func (p *provider) discover(ctx context.Context, now time.Time) (*discovered, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch since := now.Sub(p.at); {
	case p.found != nil && since < rediscover:
		return p.found, nil
	case p.failed != nil && since < giveUp:
		return nil, p.failed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), providerTimeout)
	defer cancel()
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.cfg.Issuer)
	p.at = now
	if err != nil {
		p.failed = p.down("asking it what it can do", err)
		if p.found != nil {
			return p.found, nil // what it said before
		}
		return nil, p.failed
	}
	var more struct {
		IssuerInResponse bool     `json:"authorization_response_iss_parameter_supported"`
		Methods          []string `json:"code_challenge_methods_supported"`
		Keys             string   `json:"jwks_uri"`
	}
	if err := found.Claims(&more); err != nil {
		p.failed = p.down("reading what it can do", err)
		return nil, p.failed
	}
	if more.Methods != nil && !slices.Contains(more.Methods, "S256") {
		p.failed = fmt.Errorf("%w: provider %s does not offer PKCE with S256", broker.ErrUnavailable, p.cfg.Name)
		return nil, p.failed
	}
	p.transport.keysAt(more.Keys) // asked for anew, at once
	p.found, p.failed = &discovered{found, more.IssuerInResponse}, nil
	return p.found, nil
}

// down is the provider's fault, and nobody's who calls.
func (p *provider) down(doing string, err error) error {
	return fmt.Errorf("%w: provider %s: %s: %w", broker.ErrUnavailable, p.cfg.Name, doing, withoutSecrets(err))
}

// withoutSecrets keeps of an OAuth error only its code: the rest is whatever
// the provider wrote, which may repeat what it was sent.
func withoutSecrets(err error) error {
	var answer *oauth2.RetrieveError
	if !errors.As(err, &answer) {
		return err
	}
	code := strings.Map(func(r rune) rune {
		if r < 0x21 || r > 0x7e {
			return -1
		}
		return r
	}, answer.ErrorCode)
	return fmt.Errorf("it answered %q", code[:min(len(code), 64)])
}

// oauth is the client that we are to the provider.
func (p *provider) oauth(d *discovered) (*oauth2.Config, error) {
	secret, err := p.cfg.Secret()
	if err != nil {
		return nil, fmt.Errorf("%w: provider %s: reading the client's secret: %w", broker.ErrUnavailable, p.cfg.Name, err)
	}
	return &oauth2.Config{
		ClientID: p.cfg.ClientID, ClientSecret: secret, Endpoint: d.Endpoint(), RedirectURL: p.cfg.RedirectURL,
		Scopes: append([]string{oidc.ScopeOpenID}, p.cfg.Scopes...),
	}, nil
}

// verifier checks tokens of the provider's at now: signed by a key that it
// publishes, with an algorithm that it announces and that has a public key, by
// it and for us, and not expired.
func (p *provider) verifier(d *discovered, now time.Time) *oidc.IDTokenVerifier {
	return d.Verifier(&oidc.Config{ClientID: p.cfg.ClientID, Now: func() time.Time { return now }})
}

// context makes calls of the libraries go by our client.
func (p *provider) context(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, providerTimeout)
	return oidc.ClientContext(ctx, p.client), cancel
}
