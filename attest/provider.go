package attest

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
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

// A ProviderConfig configures an OpenID provider.
type ProviderConfig struct {
	Name         string                 // the "login" of "login/ana"
	Issuer       string                 // its URL, exactly as in the iss of its tokens
	ClientID     string                 // of the broker at the provider
	Secret       func() (string, error) // of the client; called for each use, so that it can be rotated
	RedirectURL  string                 // of the login callback
	Scopes       []string               // in addition to openid; nil: profile and email
	GroupsClaim  string                 // name of the claim with groups; empty: none
	ManagerClaim string                 // name of the claim with the manager's sub; empty: none
	EndsClaim    string                 // name of the claim with the end of the person's access; empty: none
	SponsorClaim string                 // name of the claim with the sub of the person's sponsor; empty: none
	Delegation   DelegationConfig       // which of its tokens let callers act for its people
	Roots        *x509.CertPool         // nil: the system's
	Log          *slog.Logger           // nil: discarded
}

// Limits for providers.
const (
	providerTimeout = 10 * time.Second
	maxResponse     = 1 << 20         // bytes
	maxIDToken      = 16 << 10        // bytes
	metadataTTL     = time.Hour       // of the discovery document
	retryAfter      = 2 * time.Second // after discovery failed
	iatLeeway       = time.Minute     // how far the provider's clock may be ahead
)

// A provider is one OpenID provider. It fetches the provider's metadata on first
// use, so that the broker starts while the provider is down. It is safe for
// concurrent use.
type provider struct {
	cfg     ProviderConfig
	client  *http.Client
	keys    *keySet
	log     *slog.Logger
	dropped sync.Map // names of malformed claims that were logged

	mu       sync.Mutex  // guards the rest
	metadata *discovered // nil: not fetched yet
	tried    time.Time   // end of the last discovery
	failed   error       // of the last discovery
}

// discovered is a provider's metadata (OpenID Connect Discovery 1.0).
type discovered struct {
	*oidc.Provider
	issuerInResponse bool     // RFC 9207, section 3
	algorithms       []string // of ID tokens
}

func newProvider(cfg ProviderConfig) (*provider, error) {
	issuer, err := url.Parse(cfg.Issuer)
	if err != nil || issuer.Host == "" || issuer.Scheme != "https" && !loopback(issuer) {
		return nil, fmt.Errorf("provider %s: the issuer %q is not an https URL: write one such as https://login.acme.test", cfg.Name, cfg.Issuer)
	}
	if cfg.Scopes == nil {
		cfg.Scopes = []string{"profile", "email"}
	}
	transport := limitedTransport{&http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: providerTimeout, IdleConnTimeout: time.Minute, MaxConnsPerHost: 16, ForceAttemptHTTP2: true,
		Proxy: http.ProxyFromEnvironment,
	}}
	p := &provider{cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)), client: &http.Client{
		Transport: transport, Timeout: providerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the provider responded with a redirect, which its endpoints must not do")
		},
	}}
	p.keys = newKeySet(p)
	return p, nil
}

// loopback reports whether u is an http URL of this machine.
func loopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "http" && (ip != nil && ip.IsLoopback() || u.Hostname() == "localhost")
}

// A limitedTransport truncates responses at maxResponse bytes.
type limitedTransport struct{ next http.RoundTripper }

func (t limitedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxResponse), resp.Body}
	}
	return resp, err
}

// discover returns the provider's metadata, which it fetches again after
// metadataTTL. If that fails, the previous metadata stays in use. Without any, the
// error is returned for retryAfter, so that logins do not all wait for a provider
// that is down.
func (p *provider) discover(ctx context.Context, now time.Time) (*discovered, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch since := now.Sub(p.tried); {
	case p.metadata != nil && since < metadataTTL:
		return p.metadata, nil
	case p.failed != nil && since < retryAfter:
		return nil, p.failed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), providerTimeout)
	defer cancel()
	start := time.Now()
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.cfg.Issuer)
	p.tried = now.Add(time.Since(start)) // those who waited for a slow provider use the outcome
	if err != nil {
		p.failed = p.unavailable("discovery", err)
		if p.metadata != nil {
			return p.metadata, nil
		}
		return nil, p.failed
	}
	d, keys, err := readMetadata(found)
	if err != nil {
		p.failed = p.unavailable("reading its metadata", err)
		return nil, p.failed
	}
	p.keys.setURL(keys)
	p.metadata, p.failed = d, nil
	return p.metadata, nil
}

// readMetadata checks the metadata and returns the address of the keys.
func readMetadata(found *oidc.Provider) (d *discovered, keys string, err error) {
	var more struct {
		IssuerInResponse bool     `json:"authorization_response_iss_parameter_supported"`
		Methods          []string `json:"code_challenge_methods_supported"`
		Algorithms       []string `json:"id_token_signing_alg_values_supported"`
		Keys             string   `json:"jwks_uri"`
	}
	if err := found.Claims(&more); err != nil {
		return nil, "", err
	}
	if more.Methods != nil && !slices.Contains(more.Methods, "S256") {
		return nil, "", errors.New("the provider does not offer PKCE with S256")
	}
	// The code and the client's secret go to these addresses.
	for _, address := range []string{more.Keys, found.Endpoint().AuthURL, found.Endpoint().TokenURL, found.UserInfoEndpoint()} {
		u, err := url.Parse(address)
		if err != nil || address != "" && u.Scheme != "https" && !loopback(u) {
			return nil, "", errors.New("an endpoint of the provider is not an https URL")
		}
	}
	algorithms := slices.DeleteFunc(more.Algorithms, func(alg string) bool { return !slices.Contains(idTokenAlgorithms, alg) })
	return &discovered{found, more.IssuerInResponse, algorithms}, more.Keys, nil
}

// idTokenAlgorithms are the algorithms that jwks verifies. HMAC with the client's secret
// is not supported.
var idTokenAlgorithms = append([]string{"EdDSA"}, algorithms...)

// unavailable returns a broker.ErrUnavailable: the provider is at fault, not the
// caller.
func (p *provider) unavailable(doing string, err error) error {
	return fmt.Errorf("%w: provider %s: %s: %w", broker.ErrUnavailable, p.cfg.Name, doing, withoutSecrets(err))
}

// withoutSecrets returns only the code of an OAuth error. The rest is text of the
// provider, which may repeat the secrets that it was sent.
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
	return fmt.Errorf("the provider responded with %q", code[:min(len(code), 64)])
}

// oauth returns the OAuth client configuration of the broker at the provider.
func (p *provider) oauth(d *discovered) (*oauth2.Config, error) {
	secret, err := p.cfg.Secret()
	if err != nil {
		return nil, fmt.Errorf("%w: provider %s: reading the client secret: %w", broker.ErrUnavailable, p.cfg.Name, err)
	}
	return &oauth2.Config{
		ClientID: p.cfg.ClientID, ClientSecret: secret, Endpoint: d.Endpoint(), RedirectURL: p.cfg.RedirectURL,
		Scopes: append([]string{oidc.ScopeOpenID}, p.cfg.Scopes...),
	}, nil
}

// verifier returns a verifier of the provider's tokens at now. It checks the
// signature with the published keys and an announced asymmetric algorithm, iss,
// aud and exp.
func (p *provider) verifier(d *discovered, now time.Time) *oidc.IDTokenVerifier {
	return oidc.NewVerifier(p.cfg.Issuer, p.keys, &oidc.Config{
		ClientID: p.cfg.ClientID, SupportedSigningAlgs: d.algorithms, Now: func() time.Time { return now },
	})
}

// context returns a context in which the OIDC and OAuth libraries use the
// provider's HTTP client, with a timeout.
func (p *provider) context(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, providerTimeout)
	return oidc.ClientContext(ctx, p.client), cancel
}
