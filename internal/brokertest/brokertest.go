// Package brokertest runs a whole broker for a test: the wiring that ships, a real
// trust domain, real TLS and real clients. Nothing is mocked.
//
// When the test ends, package check verifies the invariants.
package brokertest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
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
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/attest/localca"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/internal/storetest"
	"accessbroker.internal/store"
)

// Names in the trust domains of a Broker.
const (
	TrustDomain = "acme.test"
	Agent       = "spiffe://acme.test/agent/triage"   // may read and comment, and close with approval
	Stranger    = "spiffe://acme.test/stranger"       // has no permissions
	Tickets     = "spiffe://acme.test/tickets"        // the resource server
	Auditor     = "spiffe://acme.test/auditor"        // may audit and view
	Supplier    = "spiffe://supplier.test/sync"       // of a federated domain; may read
	Unlisted    = "spiffe://unlisted.test/agent/evil" // of a domain that the broker does not list
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

@id("bound")
permit (principal in Path::"spiffe://acme.test/bound", action == Action::"request", resource == Entitlement::"mcp-bound");

@id("not-bound")
forbid (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"mcp-bound");

@id("supplier")
permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:read"].containsAll(context.scopes) };

@id("auditor")
permit (principal in Path::"spiffe://acme.test/auditor", action == Action::"audit", resource);

@id("auditor-views")
permit (principal in Path::"spiffe://acme.test/auditor", action == Action::"view", resource);
`

// operatorFile is a format for the broker's address, its endpoints, the providers and the
// admin socket.
const operatorFile = `
server:
  external_url: https://%[1]s
  listeners:
    - {listen: "%[1]s", tls: {cert: cert.pem, key: key.pem}, client_certs: optional, serve: [%[2]s]}
  seal_keys: [{file: seal.key}]
  admin_socket: %[4]s
  drain: {delay: 0s}
  admission: {per_second: 1000000, pending: 1000}
attest:
  trust_domain: acme.test
  trust_domains: [acme.test, supplier.test]
  bundles: {acme.test: acme.test.json, supplier.test: supplier.test.json}
  workloads:
    - {under: "spiffe://acme.test/agent", kind: agent, team: support, accountable: [login/ana]}
%[3]s
store: sqlite:broker.db
policies: policies
issuers:
  tickets: {token: {audience: "https://tickets.acme.test", resource_servers: ["spiffe://acme.test/tickets"]}}
  mcp: {token: {audience: "https://%[1]s/mcp"}}
entitlements:
  tickets-api: {issuer: tickets, scopes: [tickets:close, tickets:comment, tickets:read], default_ttl: 10m, max_ttl: 15m, owner: support}
  bound-api: {issuer: tickets, scopes: [bound:read], default_ttl: 10m, max_ttl: 15m, owner: support, binding: mtls}
  mcp: {issuer: mcp, scopes: [access:list, access:release, access:request], default_ttl: 10m, max_ttl: 15m, owner: support}
  mcp-bound: {issuer: mcp, scopes: [bound:list], default_ttl: 10m, max_ttl: 15m, owner: support, binding: mtls, authorization_details: {mcp_tool: {tools: {list_access: {}}}}}
  listed-api: {issuer: tickets, scopes: [listed:read], default_ttl: 10m, max_ttl: 15m, owner: support, status_list: true}
`

// A Broker runs for one test.
type Broker struct {
	URL      string
	CA       *localca.CA // of acme.test
	Supplier *localca.CA
	Unlisted *localca.CA
	Store    *store.Store

	t        testing.TB
	dir      string
	extra    files     // further than the usual ones
	external string    // the external URL, if it is not URL
	replicas []*Broker // that share the database, and the calls of clients

	service *service.Service
	socket  string // of operators
	address string
	stop    func() // ends the service
	log     lines
	secrets lines // that must not be in the log
}

// A Provider is an OpenID provider with which people log in.
type Provider struct {
	Name, Issuer, ClientID, Secret string
	Keys                           string            // further keys, ", key: value"
	Linked                         []string          // accounts of one person
	More                           string            // further sections of the operator's file
	Files                          map[string]string // further files next to it
}

// lines is a writer for concurrent use.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// New starts a broker that ends with the test. Without providers, it has no pages.
func New(t testing.TB, providers ...Provider) *Broker {
	t.Helper()
	return newBroker(t, nil, providers...)
}

// newBroker starts a broker with a logger; nil logs everything for the checks at the
// end.
func newBroker(t testing.TB, log *slog.Logger, providers ...Provider) *Broker {
	t.Helper()
	return startBroker(t, log, files{}, providers...)
}

// files are additions to the files of a broker.
type files struct {
	server, operator, attest, policies, groups string

	withoutSVIDs bool // no bundles, and no policies or marks that name SVIDs
}

// startBroker is newBroker with additions to its files.
func startBroker(t testing.TB, log *slog.Logger, extra files, providers ...Provider) *Broker {
	t.Helper()
	b := &Broker{t: t, dir: t.TempDir(), extra: extra}
	if log == nil {
		log = slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	b.CA, b.Supplier, b.Unlisted = b.authority(TrustDomain), b.authority("supplier.test"), b.authority("unlisted.test")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	b.must(err)
	b.address = l.Addr().String()
	b.URL = "https://" + b.address
	b.run(b.configure(l.Addr().String(), providers), l, log)
	if storetest.Postgres() && os.Getenv(replicasEnv) != "" {
		b.share(2)
	}
	return b
}

func (b *Broker) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *Broker) authority(domain string) *localca.CA {
	b.t.Helper()
	ca, err := localca.New(domain)
	b.must(err)
	return ca
}

func (b *Broker) write(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	b.must(os.MkdirAll(filepath.Dir(path), 0o700))
	b.must(os.WriteFile(path, []byte(text), 0o600))
}

// configure writes the broker's files and loads them.
func (b *Broker) configure(address string, providers []Provider) *config.Config {
	b.t.Helper()
	serve, people := "api, oauth, log", ""
	for _, p := range providers {
		b.write(p.Name+".secret", p.Secret)
		people += fmt.Sprintf("    %s: {issuer: %q, client_id: %q, client_secret_file: %s.secret%s}\n", p.Name, p.Issuer, p.ClientID, p.Name, p.Keys)
	}
	if people != "" {
		serve, people = serve+", ui, scim", "  people:\n"+people
	}
	people = b.extra.attest + people
	for _, p := range providers {
		people += p.More
		for name, text := range p.Files {
			b.write(name, text)
		}
		if p.Linked != nil {
			people += fmt.Sprintf("people: {aliases: [[%s]]}\n", strings.Join(p.Linked, ", "))
		}
	}
	b.write("seal.key", base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, broker.SealKeySize)))
	if b.extra.withoutSVIDs {
		b.write("policies/all.cedar", b.extra.policies)
	} else {
		b.write("policies/all.cedar", policies+b.extra.policies)
	}
	b.write("policies/groups.yaml", "support: {members: [login/ana, login/ben]}\n"+b.extra.groups)
	for domain, ca := range map[string]*localca.CA{TrustDomain: b.CA, "supplier.test": b.Supplier} {
		bundle, err := ca.Bundle()
		b.must(err)
		b.write(domain+".json", string(bundle))
	}
	svid, err := b.CA.X509SVID("spiffe://acme.test/broker", time.Hour, "127.0.0.1")
	b.must(err)
	cert, key := encodePair(b.t, svid)
	b.write("cert.pem", string(cert))
	b.write("key.pem", string(key))
	text := fmt.Sprintf(operatorFile, address, serve, people, b.adminSocket()) + b.extra.operator
	text = strings.Replace(text, "attest:\n", b.extra.server+"attest:\n", 1)
	if storetest.Postgres() {
		text = strings.Replace(text, "sqlite:broker.db", b.database(), 1)
		text = strings.Replace(text, "  seal_keys:", "  checkpoint_file: checkpoint\n  seal_keys:", 1)
	}
	if b.extra.withoutSVIDs {
		from, to := strings.Index(text, "  trust_domains:"), strings.Index(text, b.extra.attest)
		text = strings.Replace(text[:from]+text[to:], `, resource_servers: ["spiffe://acme.test/tickets"]`, "", 1)
	}
	b.write("broker.yaml", strings.ReplaceAll(text, "BROKER_URL", b.URL))
	c, err := config.Load(filepath.Join(b.dir, "broker.yaml"), nil)
	b.must(err)
	return c
}

// database returns the URL of the database of PostgreSQL that stands for the file of the
// broker.
func (b *Broker) database() string {
	return storetest.URL(b.t, filepath.Join(b.dir, "broker.db"), func(url string) error {
		s, err := store.Open(context.Background(), store.Config{URL: url})
		if err != nil {
			return err
		}
		return s.Close()
	})
}

// adminSocket returns the path of the admin socket, which must be short.
func (b *Broker) adminSocket() string {
	if b.socket == "" {
		dir, err := os.MkdirTemp("", "bs")
		b.must(err)
		b.t.Cleanup(func() { _ = os.RemoveAll(dir) })
		b.socket = filepath.Join(dir, "admin.sock")
	}
	return b.socket
}

// Operator returns a client that calls over the admin socket.
func (b *Broker) Operator() *api.Client { return operatorOver(b.t, b.socket) }

// run runs the service on an open listener. It returns when the service is ready.
func (b *Broker) run(c *config.Config, l net.Listener, log *slog.Logger) {
	b.t.Helper()
	ready := make(chan struct{})
	s, err := service.New(b.t.Context(), service.Options{
		Config: c, Log: log,
		Listen:      func(string, string) (net.Listener, error) { return l, nil },
		Ready:       func([]net.Listener) { close(ready) },
		DiskReserve: 1 << 16, NoSync: true,
	})
	b.must(err)
	b.Store, b.service = s.Store(), s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("the broker ended with %v", err)
		}
	})
	stop := b.stop
	b.t.Cleanup(func() {
		stop()
		check.Database(b.t, c.Store, check.Options{Key: s.LogKey()})
		check.Secrets(b.t, b.log.String(), strings.Split(b.secrets.String(), "\n"))
	})
	select {
	case <-ready:
	case err := <-done:
		done <- err
		b.t.Fatal("the broker did not start")
	}
}

// restart ends the service and starts another one on the same files and address.
func (b *Broker) restart() {
	b.t.Helper()
	b.stop()
	l, err := net.Listen("tcp", b.address)
	b.must(err)
	c, err := config.Load(filepath.Join(b.dir, "broker.yaml"), nil)
	b.must(err)
	b.run(c, l, slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
}

// JWT returns a JWT-SVID of a workload for this broker.
func (b *Broker) JWT(id string) string {
	b.t.Helper()
	token, err := b.authorityOf(id).JWTSVID(id, 5*time.Minute, cmp.Or(b.external, b.URL))
	b.must(err)
	b.Secret(token)
	return token
}

func (b *Broker) authorityOf(id string) *localca.CA {
	switch {
	case strings.HasPrefix(id, "spiffe://supplier.test/"):
		return b.Supplier
	case strings.HasPrefix(id, "spiffe://unlisted.test/"):
		return b.Unlisted
	}
	return b.CA
}

// Secret marks a text that must never be in the broker's log. Of a token, only the
// signature counts: the other parts may be the same in other tokens.
func (b *Broker) Secret(text string) {
	if i := strings.LastIndexByte(text, '.'); i >= 0 && i+1 < len(text) {
		text = text[i+1:]
	}
	if len(text) >= 16 {
		_, _ = fmt.Fprintln(&b.secrets, text)
	}
}

// Records returns all records of the log.
func (b *Broker) Records() []audit.Record {
	b.t.Helper()
	return check.Records(b.t, b.Store)
}

// Client returns a client that shows the workload's X.509-SVID.
func (b *Broker) Client(id string) *api.Client {
	b.t.Helper()
	svid, err := b.authorityOf(id).X509SVID(id, time.Hour)
	b.must(err)
	return b.client(&svid)
}

// ClientWith returns a client that shows a certificate, valid or not.
func (b *Broker) ClientWith(cert tls.Certificate) *api.Client { return b.client(&cert) }

// Bearer returns a client that presents a JWT-SVID of the workload.
func (b *Broker) Bearer(id string) *api.Client {
	c := b.client(nil)
	c.Token = func(context.Context) (string, error) { return b.JWT(id), nil }
	return c
}

// Anonymous returns a client without a proof.
func (b *Broker) Anonymous() *api.Client { return b.client(nil) }

func (b *Broker) client(svid *tls.Certificate) *api.Client {
	c := newClient(b.t, b.URL, b.CA, svid)
	if b.replicas != nil {
		b.balance(c.HTTP.Transport.(*http.Transport))
	}
	return c
}

// newClient returns a client that trusts the authority and shows svid, unless it is
// nil.
func newClient(t testing.TB, url string, ca *localca.CA, svid *tls.Certificate) *api.Client {
	pool := x509.NewCertPool()
	pool.AddCert(ca.X509Authority())
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	if svid != nil {
		config.Certificates = []tls.Certificate{*svid}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &api.Client{BaseURL: url, HTTP: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// Token exchanges a JWT-SVID of the workload for an access token.
func (b *Broker) Token(id string, scopes ...string) (*api.TokenResponse, error) {
	r, err := b.Anonymous().Exchange(b.t.Context(), api.TokenRequest{SubjectToken: b.JWT(id), Audience: "tickets-api", Scopes: scopes})
	if err == nil {
		b.Secret(string(r.AccessToken))
	}
	return r, err
}

// Form posts a form to /oauth2/token and returns status and body.
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

// Encode returns the base64url encoding that JWTs use.
func Encode(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func encodePair(t testing.TB, pair tls.Certificate) (cert, key []byte) {
	t.Helper()
	for _, der := range pair.Certificate {
		cert = append(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
