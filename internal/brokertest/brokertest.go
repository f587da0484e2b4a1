// Package brokertest gives tests a whole running broker: a trust domain, real
// TLS, the real store, policy and signer, and real clients. Nothing is mocked.
//
// When the test ends, it checks what must hold after any test: the log
// verifies, every lease that is or was active has its record, and no line of
// the broker's own log holds anything that was issued or presented.
package brokertest

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/attest"
	"accessbroker.internal/attest/localca"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/policy"
	"accessbroker.internal/server"
	"accessbroker.internal/store"
)

// Names in the world of a Broker.
const (
	TrustDomain = "acme.test"
	Agent       = "spiffe://acme.test/agent/triage"   // may read and comment, and close with approval
	Stranger    = "spiffe://acme.test/stranger"       // may do nothing
	Tickets     = "spiffe://acme.test/tickets"        // the resource server
	Auditor     = "spiffe://acme.test/auditor"        // may audit and view
	Supplier    = "spiffe://supplier.test/sync"       // of a federated domain; may read
	Unlisted    = "spiffe://unlisted.test/agent/evil" // its bundle is delivered, its domain is not listed
	Audience    = "https://tickets.acme.test"         // of the tokens
)

const policies = `
@id("agents")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource)
unless { context.scopes.contains("tickets:close") };

@id("close")
@approval("1 of support")
@justification("required")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
when { context.scopes.contains("tickets:close") };

@id("supplier")
permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:read"].containsAll(context.scopes) };

@id("auditor")
permit (principal in Path::"spiffe://acme.test/auditor", action == Action::"audit", resource);

@id("auditor-views")
permit (principal in Path::"spiffe://acme.test/auditor", action == Action::"view", resource);
`

// A Broker is a broker that runs for one test.
type Broker struct {
	URL      string
	CA       *localca.CA // of acme.test
	Supplier *localca.CA
	Unlisted *localca.CA
	Store    *store.Store
	Domain   *broker.Broker
	Keys     *token.Keys

	t       testing.TB
	dir     string
	signer  *audit.Signer
	public  string
	log     lines
	secrets lines // whatever must not show in the log
}

// lines is a writer that many may write to.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

// New starts a broker, which ends with the test. People log in with the
// providers; without any, it has no pages.
func New(t testing.TB, providers ...attest.ProviderConfig) *Broker {
	t.Helper()
	b := &Broker{t: t, dir: t.TempDir()}
	b.CA, b.Supplier, b.Unlisted = b.ca(TrustDomain), b.ca("supplier.test"), b.ca("unlisted.test")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	b.must(err)
	b.URL = "https://" + l.Addr().String()
	b.openStore()
	b.openDomain()
	b.serve(l, providers)
	return b
}

func (b *Broker) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *Broker) ca(domain string) *localca.CA {
	b.t.Helper()
	ca, err := localca.New(domain)
	b.must(err)
	return ca
}

func (b *Broker) openStore() {
	ctx := b.t.Context()
	var err error
	b.Store, err = store.Open(ctx, store.Config{URL: "sqlite:" + filepath.Join(b.dir, "broker.db"), Reserve: 1 << 16})
	b.must(err)
	b.t.Cleanup(func() {
		b.check()
		if err := b.Store.Close(); err != nil {
			b.t.Error(err)
		}
	})
	origin := audit.NewOrigin("broker.acme.test")
	secret, public, err := audit.NewLogKey(origin)
	b.must(err)
	b.signer, err = audit.NewSigner(secret)
	b.must(err)
	b.public = public
	first, err := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}}.Entry()
	b.must(err)
	key := &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "log", ID: origin}, Algorithm: "Ed25519", Sealed: b.sealer().Seal("log", origin, []byte(secret))}
	b.must(b.Store.OpenLog(ctx, origin, public, key, first))
}

func (b *Broker) sealer() *broker.Sealer {
	s, err := broker.NewSealer(bytes.Repeat([]byte{1}, broker.SealKeySize))
	b.must(err)
	return s
}

func (b *Broker) openDomain() {
	ctx, now := b.t.Context(), time.Now()
	var err error
	b.Keys, err = token.OpenKeys(ctx, token.KeysConfig{
		Store: b.Store, Sealer: b.sealer(), Purpose: "token", Algorithm: "ES256",
		RotateEvery: 24 * time.Hour, PublishAhead: time.Hour, LongestTTL: time.Hour,
	}, now)
	b.must(err)
	b.Domain, err = broker.New(broker.Config{
		Store: b.Store, Blocks: b.Store.Blocks, Log: b.logger(),
		Issuers: map[string]broker.Issuer{"tickets": token.New(b.URL, Audience, b.Keys)},
	})
	b.must(err)
	engine, err := policy.Load(policy.Inputs{
		FS: fstest.MapFS{
			"all.cedar":   {Data: []byte(policies)},
			"groups.yaml": {Data: []byte("support: {members: [login/ana, login/ben]}\n")},
		},
		Catalogue: catalogue(), HomeDomain: TrustDomain, TrustDomains: []string{TrustDomain, "supplier.test"},
		Labels: []broker.Mark{{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Team: "support", Accountable: []string{"login/ana"}}},
	})
	b.must(err)
	b.must(b.Domain.SetRules(ctx, broker.Caller{At: now}, engine.Rules()))
}

func catalogue() broker.Catalogue {
	entry := broker.Entitlement{
		Name: "tickets-api", Issuer: "tickets", Scopes: []string{"tickets:close", "tickets:comment", "tickets:read"},
		DefaultTTL: 10 * time.Minute, MaxTTL: 15 * time.Minute, CollectWithin: time.Hour, Owner: "support",
		Revocation: broker.RevokedAtExpiry, Binding: broker.BindingNone, Audience: Audience, Introspectors: []string{Tickets},
		Effect: audit.Digest{1},
	}
	bound := entry
	bound.Name, bound.Binding, bound.Scopes, bound.Effect = "bound-api", broker.BindingMTLS, []string{"bound:read"}, audit.Digest{2}
	return broker.Catalogue{entry.Name: &entry, bound.Name: &bound}
}

func (b *Broker) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// serve puts the server on the listener, with bundles from files.
func (b *Broker) serve(l net.Listener, providers []attest.ProviderConfig) {
	bundles := map[string]string{}
	for domain, ca := range map[string]*localca.CA{TrustDomain: b.CA, "supplier.test": b.Supplier} {
		bundles[domain] = b.bundleFile(domain, ca)
	}
	cert, key := b.certificate()
	trust, err := attest.Open(b.t.Context(), attest.Config{TrustDomain: TrustDomain, TrustDomains: []string{TrustDomain, "supplier.test"}, Bundles: bundles})
	b.must(err)
	verifier := attest.NewVerifier(attest.VerifierConfig{Source: trust, Audiences: []string{b.URL}})
	tls, err := verifier.ServerTLS(attest.ServerTLS{Cert: cert, Key: key, ClientCerts: "optional"})
	b.must(err)
	cfg := server.Config{
		Broker: b.Domain, Authenticate: verifier.Authenticate, Remembers: verifier.Cached, ConnContext: verifier.ConnContext, ExternalURL: b.URL, Log: b.Store,
		Keys:           func(context.Context) ([]byte, error) { return b.Keys.JWKS(time.Now()), nil },
		Algorithms:     func() []string { return b.Keys.Algorithms(time.Now()) },
		SVIDAudiences:  []string{b.URL},
		CallsPerSecond: 1e6, CallsAtOnce: 1000, Logger: b.logger(),
	}
	audiences := []server.Audience{server.API, server.OAuth, server.Log}
	if len(providers) > 0 {
		b.addPeople(&cfg, providers)
		audiences = append(audiences, server.UI)
	}
	s, err := server.New(cfg)
	b.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, s.Handler(audiences...), tls) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	})
}

// addPeople lets people log in.
func (b *Broker) addPeople(cfg *server.Config, providers []attest.ProviderConfig) {
	for _, p := range providers {
		cfg.Providers = append(cfg.Providers, p.Name)
	}
	for i, p := range providers {
		providers[i].RedirectURL = b.URL + server.CallbackPath(cfg.Providers, p.Name)
	}
	people, err := attest.NewPeople(providers...)
	b.must(err)
	cfg.People, cfg.LogoutToken, cfg.Sealer = people, people.LogoutToken, b.sealer()
}

func (b *Broker) bundleFile(domain string, ca *localca.CA) string {
	text, err := ca.Bundle()
	b.must(err)
	path := filepath.Join(b.dir, domain+".json")
	b.must(os.WriteFile(path, text, 0o600))
	return path
}

// certificate makes the broker's own, as files.
func (b *Broker) certificate() (cert, key string) {
	svid, err := b.CA.X509SVID("spiffe://acme.test/broker", time.Hour, "127.0.0.1")
	b.must(err)
	certPEM, keyPEM := encodePair(b.t, svid)
	cert, key = filepath.Join(b.dir, "cert.pem"), filepath.Join(b.dir, "key.pem")
	b.must(os.WriteFile(cert, certPEM, 0o600))
	b.must(os.WriteFile(key, keyPEM, 0o600))
	return cert, key
}

// JWT gives a JWT-SVID of a workload for this broker.
func (b *Broker) JWT(id string) string {
	b.t.Helper()
	token, err := b.authority(id).JWTSVID(id, 5*time.Minute, b.URL)
	b.must(err)
	b.Secret(token)
	return token
}

func (b *Broker) authority(id string) *localca.CA {
	switch {
	case strings.HasPrefix(id, "spiffe://supplier.test/"):
		return b.Supplier
	case strings.HasPrefix(id, "spiffe://unlisted.test/"):
		return b.Unlisted
	}
	return b.CA
}

// Secret marks a text that must never show in the broker's log. Of tokens, it
// is the signature that counts: the rest may look like other tokens'.
func (b *Broker) Secret(text string) {
	if i := strings.LastIndexByte(text, '.'); i >= 0 && i+1 < len(text) {
		text = text[i+1:]
	}
	if len(text) >= 16 {
		_, _ = fmt.Fprintln(&b.secrets, text)
	}
}

// Client gives a client that shows the workload's X.509-SVID.
func (b *Broker) Client(id string) *api.Client {
	b.t.Helper()
	svid, err := b.authority(id).X509SVID(id, time.Hour)
	b.must(err)
	return b.client(&svid)
}

// Bearer gives a client that presents a JWT-SVID of the workload.
func (b *Broker) Bearer(id string) *api.Client {
	c := b.client(nil)
	c.Token = func(context.Context) (string, error) { return b.JWT(id), nil }
	return c
}

// Anonymous gives a client without any proof.
func (b *Broker) Anonymous() *api.Client { return b.client(nil) }

// Token gets a token for a workload, by token exchange.
func (b *Broker) Token(id string, scopes ...string) (*api.TokenResponse, error) {
	r, err := b.Anonymous().Exchange(b.t.Context(), api.TokenRequest{SubjectToken: b.JWT(id), Audience: "tickets-api", Scopes: scopes})
	if err == nil {
		b.Secret(string(r.AccessToken))
	}
	return r, err
}

// Form posts a form to /oauth2/token and gives status and body as they are.
func (b *Broker) Form(form url.Values) (int, []byte) {
	b.t.Helper()
	resp, err := b.Anonymous().HTTP.PostForm(b.URL+"/oauth2/token", form)
	b.must(err)
	return readAll(b.t, resp)
}

func readAll(t testing.TB, resp *http.Response) (int, []byte) {
	t.Helper()
	defer func() { _ = resp.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body.Bytes()
}

// Encode gives bytes as JWTs spell them.
func Encode(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
