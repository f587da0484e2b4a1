package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest/check"
)

// A world is a broker whose callers are workloads of a SPIRE.
type world struct {
	owner   testing.TB // the world ends with it
	spire   *spire
	dir     string
	bin     string
	listen  string
	url     string
	broker  *process
	brokers []*process // every process that was started, for the check of their logs
	audit   []string   // further arguments of "broker audit verify"

	issuers, entitlements string // further lines of the operator's file
}

// ticketsAudience is the audience of the tickets issuer's tokens.
const ticketsAudience = "https://tickets.acme.test"

const operatorFile = `
server:
  external_url: %[1]s
  listeners:
    - {listen: "%[2]s", tls: {svid: true}, client_certs: optional}
  admin_socket: %[3]s/admin.sock
  seal_keys: [{file: seal.key}]
  status_lists: {ttl: 1s}
  drain: {delay: 0s}
  admission: {per_second: 10000, pending: 100}
attest:
  trust_domain: %[4]s
  trust_domains: [%[5]s]
  workload_api: %[6]s
  workloads:
    - {under: "spiffe://acme.test/agent", kind: agent, team: support, accountable: [login/ana]}
store: sqlite:broker.db
policies: policies
issuers:
  tickets: {token: {audience: "https://tickets.acme.test", resource_servers: ["spiffe://acme.test/tickets"]}}
  bound: {token: {audience: "https://bound.acme.test"}}
  queue: {token: {audience: "https://queue.acme.test"}}
%[7]s
entitlements:
  tickets-api: {issuer: tickets, scopes: [tickets:read, tickets:comment], max_ttl: 15m}
  listed-api: {issuer: tickets, scopes: [listed:read], max_ttl: 15m, status_list: true}
  queue-api: {issuer: queue, scopes: [queue:read], parameters: {queue: {pattern: "[a-z]+", required: true}}}
  bound-api: {issuer: bound, scopes: [bound:read], max_ttl: 24h, binding: mtls}
%[8]s
`

const agentsPolicy = `
@id("agents")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource);
`

// startBroker registers the broker at SPIRE and starts it. entry has further
// flags of its registration entry.
func startBroker(t testing.TB, s *spire, entry ...string) *world {
	t.Helper()
	w := newBroker(t, s, entry...)
	w.configure(t, []string{s.domain}, agentsPolicy)
	w.start(t)
	return w
}

// newBroker registers a broker. The caller configures and starts it.
func newBroker(t testing.TB, s *spire, entry ...string) *world {
	t.Helper()
	return newBrokerOf(t, s, brokerBinary(t), entry...)
}

// newBrokerOf is newBroker with another build of the broker.
func newBrokerOf(t testing.TB, s *spire, bin string, entry ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "broker-") // short: sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{owner: t, spire: s, dir: dir, bin: copyBinary(t, bin, "broker")}
	t.Cleanup(w.verify) // registered before the processes, so it runs after their end
	s.register(t, "/broker", w.bin, entry...)
	w.listen = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	w.url = "https://" + w.listen
	w.write(t, "seal.key", base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)))
	if err := os.Mkdir(filepath.Join(dir, "policies"), 0o700); err != nil {
		t.Fatal(err)
	}
	return w
}

// configure writes the operator's file and the policies. A running broker reads
// them when it is restarted.
func (w *world) configure(t testing.TB, domains []string, policies string) {
	t.Helper()
	w.write(t, "policies/all.cedar", policies)
	w.write(t, "broker.yaml", fmt.Sprintf(operatorFile, w.url, w.listen, w.dir, w.spire.domain, strings.Join(domains, ", "), w.spire.socket(), w.issuers, w.entitlements))
}

func (w *world) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start starts the broker and returns when it is ready. The agent may not know
// the broker's registration yet; a broker that gave up waiting for its identity
// is started again.
func (w *world) start(t testing.TB) {
	t.Helper()
	eventually(t, "the start of the broker", 2*time.Minute, func() (err error) {
		if w.broker == nil || w.broker.ended() {
			if w.broker, err = start(w.owner, "broker", w.bin, "serve", "--config", filepath.Join(w.dir, "broker.yaml")); err != nil {
				return err
			}
			w.brokers = append(w.brokers, w.broker)
		}
		return w.ready()
	})
}

// ready returns nil if the broker reports that it is ready. It calls without an
// identity, like the probe of an orchestrator.
func (w *world) ready() error {
	probe := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer probe.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := (&api.Client{BaseURL: w.url, HTTP: &http.Client{Transport: probe}}).Ready(ctx)
	if err == nil && !r.Ready {
		err = fmt.Errorf("not ready: %v", r.NotReady)
	}
	return err
}

// verify checks the state of the broker at the end of the test: the log verifies
// offline, the leases have their records, SIGTERM ended the broker without a
// failure, and no output contains a token.
func (w *world) verify() {
	if len(w.brokers) == 0 {
		w.owner.Errorf("no broker was started")
	}
	out, err := w.verifyCommand().CombinedOutput()
	if err != nil {
		w.owner.Errorf("the log does not verify: %v\n%s", err, out)
	}
	check.Database(w.owner, "sqlite:"+filepath.Join(w.dir, "broker.db"), check.Options{EarlyPasskeys: w.audit != nil})
	if w.broker != nil && w.broker.cmd.ProcessState.ExitCode() != 0 {
		w.owner.Errorf("on SIGTERM, the broker ended with %s", w.broker.cmd.ProcessState)
	}
	for _, p := range w.brokers {
		check.Tokens(w.owner, p.out.String())
	}
}

// verifyCommand returns the command that verifies the log.
func (w *world) verifyCommand(args ...string) *exec.Cmd {
	return exec.Command(w.bin, slices.Concat([]string{"audit", "verify", "sqlite:" + filepath.Join(w.dir, "broker.db")}, w.audit, args)...)
}

// cli runs a command of the binary bin, which is the workload that bin is
// registered as.
func (w *world) cli(bin string, args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(bin, args...)
	cmd.Env = slices.Concat(os.Environ(), w.spire.environment(), []string{"BROKER_URL=" + w.url})
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// records returns the output of "broker audit show" on the broker's database.
func (w *world) records(t testing.TB, args ...string) string {
	t.Helper()
	all := append([]string{"audit", "show", "sqlite:" + filepath.Join(w.dir, "broker.db")}, args...)
	out, errs, code := w.cli(w.bin, all...)
	if code != 0 {
		t.Fatalf("broker %s: %d: %s", strings.Join(all, " "), code, errs)
	}
	return out
}

// client returns an HTTP client with a TLS configuration.
func client(t testing.TB, config *tls.Config, http2 bool) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: http2}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// mtlsClient returns a client that authenticates with its X.509-SVID.
func (w *world) mtlsClient(t testing.TB, src *workloadapi.X509Source) *api.Client {
	t.Helper()
	config := tlsconfig.MTLSClientConfig(src, src, tlsconfig.AuthorizeID(brokerID))
	return &api.Client{BaseURL: w.url, HTTP: client(t, config, true)}
}

// anonymousClient returns a client without a certificate. It verifies the broker
// by the trust bundles of the source.
func (w *world) anonymousClient(t testing.TB, src *workloadapi.X509Source) *api.Client {
	t.Helper()
	config := tlsconfig.TLSClientConfig(src, tlsconfig.AuthorizeID(brokerID))
	return &api.Client{BaseURL: w.url, HTTP: client(t, config, true)}
}

// bearerClient returns a client that authenticates with a JWT-SVID.
func (w *world) bearerClient(t testing.TB, src *workloadapi.X509Source, token string) *api.Client {
	t.Helper()
	c := w.anonymousClient(t, src)
	c.Token = func(context.Context) (string, error) { return token, nil }
	return c
}

// claims returns the claims of a token. It verifies the token as a resource
// server would that knows only the broker's URL: by discovery and the published
// keys (RFC 8414; RFC 9068, section 4).
func (w *world) claims(t testing.TB, c *http.Client, token, audience string) map[string]any {
	t.Helper()
	var metadata struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	getJSON(t, c, w.url+"/.well-known/oauth-authorization-server", &metadata)
	var keys jose.JSONWebKeySet
	getJSON(t, c, metadata.Keys, &keys)
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatalf("reading the token: %v", err)
	}
	header := signed.Signatures[0].Protected
	found := keys.Key(header.KeyID)
	if len(found) != 1 || header.ExtraHeaders[jose.HeaderType] != "at+jwt" {
		t.Fatalf("the token's header is %+v; %d published keys have its key ID", header, len(found))
	}
	payload, err := signed.Verify(found[0])
	if err != nil {
		t.Fatalf("verifying the token: %v", err)
	}
	var out map[string]any
	if err := json.Unmarshal(payload, &out); err != nil {
		t.Fatalf("reading the token's claims: %v", err)
	}
	exp, _ := out["exp"].(float64)
	if out["iss"] != metadata.Issuer || metadata.Issuer != w.url || out["aud"] != audience || !time.Unix(int64(exp), 0).After(time.Now()) {
		t.Fatalf("a resource server for %s that trusts %s would reject the claims %v", audience, metadata.Issuer, out)
	}
	return out
}

func getJSON(t testing.TB, c *http.Client, url string, into any) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", url, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		t.Fatalf("reading %s: %v", url, err)
	}
}

// wantRefusal returns nil if err is a refusal with that code and status. A call
// that failed for another reason proves nothing.
func wantRefusal(err error, code api.Code, status int) error {
	var answer *api.Error
	if !errors.As(err, &answer) || answer.Code != code || answer.Status != status {
		return fmt.Errorf("got %v, want a refusal with %d %s", err, status, code)
	}
	return nil
}

// wantOAuthError is wantRefusal for calls on /oauth2, whose errors are those of
// RFC 6749, section 5.2.
func wantOAuthError(err error, oauth string, code api.Code) error {
	var answer *api.Error
	if errors.As(err, &answer) && answer.OAuth != oauth {
		return fmt.Errorf("got the OAuth error %s, want %s: %w", answer.OAuth, oauth, err)
	}
	return wantRefusal(err, code, http.StatusBadRequest)
}
