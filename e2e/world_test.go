package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"accessbroker.internal/api"
)

const audience = "https://tickets.acme.test"

// A world is a broker behind a SPIRE.
type world struct {
	t      *testing.T
	spire  *spire
	dir    string
	bin    string
	url    string
	broker *process
}

const operatorFile = `
server:
  external_url: %[1]s
  listeners:
    - {listen: "%[2]s", tls: {svid: true}, client_certs: optional}
  admin_socket: %[3]s/admin.sock
  seal_keys: [{file: seal.key}]
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
entitlements:
  tickets-api: {issuer: tickets, scopes: [tickets:read, tickets:comment], max_ttl: 15m}
  bound-api: {issuer: bound, scopes: [bound:read], max_ttl: 24h, binding: mtls}
`

const policies = `
@id("agents")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource);
`

const supplierPolicy = `
@id("supplier-reads")
@max_ttl("5m")
permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:read"].containsAll(context.scopes) };
`

// startBroker registers the broker at SPIRE and starts it. more are policies
// beside the usual one.
func startBroker(t *testing.T, s *spire, domains []string, more string, entry ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "broker-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, spire: s, dir: dir, bin: copyOf(t, brokerBinary(t), "broker")}
	s.register("/broker", w.bin, entry...)
	listen := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	w.url = "https://" + listen
	w.write("seal.key", base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)))
	if err := os.Mkdir(filepath.Join(dir, "policies"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.write("policies/all.cedar", policies+more)
	w.write("broker.yaml", fmt.Sprintf(operatorFile, w.url, listen, dir, s.domain, strings.Join(domains, ", "), s.socket()))
	w.start()
	t.Cleanup(w.verify)
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) start() {
	w.t.Helper()
	// The agent learns of new entries every few seconds: until then it has no
	// identity for the broker, which waits for one and then gives up.
	eventually(w.t, "the start of the broker", time.Minute, func() error {
		if w.broker == nil || w.broker.ended() {
			w.broker = start(w.t, "broker", nil, w.bin, "serve", "--config", filepath.Join(w.dir, "broker.yaml"))
		}
		return w.ready()
	})
}

func (w *world) ready() error {
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 5 * time.Second}
	resp, err := c.Get(w.url + "/readyz")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz: %d", resp.StatusCode)
	}
	return nil
}

// verify checks the log offline when the test is over.
func (w *world) verify() {
	out, err := exec.Command(w.bin, "audit", "verify", "sqlite:"+filepath.Join(w.dir, "broker.db")).CombinedOutput()
	if err != nil {
		w.t.Errorf("the log does not verify: %v\n%s", err, out)
	}
}

// cli runs the command line as the workload whose binary it is.
func (w *world) cli(bin string, env []string, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	cmd := exec.Command(bin, args...)
	cmd.Env = append(append(os.Environ(), "BROKER_URL="+w.url, "SPIFFE_ENDPOINT_SOCKET="+w.spire.socket()), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// source gives this test's own X.509-SVID, as soon as the agent has it.
func source(t *testing.T, s *spire) *workloadapi.X509Source {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	src, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(s.socket())))
	if err != nil {
		t.Fatalf("getting an X.509-SVID: %v", err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

// overMTLS gives a client that shows the X.509-SVID.
func (w *world) overMTLS(src *workloadapi.X509Source) *api.Client {
	config := tlsconfig.MTLSClientConfig(src, src, tlsconfig.AuthorizeID(spiffeid.RequireFromString("spiffe://acme.test/broker")))
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &api.Client{BaseURL: w.url, HTTP: &http.Client{Transport: transport, Timeout: 20 * time.Second}}
}

// anonymous gives a client without a certificate.
func (w *world) anonymous(src *workloadapi.X509Source) *api.Client {
	config := tlsconfig.TLSClientConfig(src, tlsconfig.AuthorizeID(spiffeid.RequireFromString("spiffe://acme.test/broker")))
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &api.Client{BaseURL: w.url, HTTP: &http.Client{Transport: transport, Timeout: 20 * time.Second}}
}

// jwtSVID gets a JWT-SVID of this test's for an audience.
func jwtSVID(t *testing.T, s *spire, aud string) string {
	t.Helper()
	svid, err := workloadapi.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: aud}, workloadapi.WithAddr(s.socket()))
	if err != nil {
		t.Fatalf("getting a JWT-SVID: %v", err)
	}
	return svid.Marshal()
}

// claims verifies a token as a resource server would, by the published keys.
func claims(t *testing.T, c *api.Client, token string) map[string]any {
	t.Helper()
	jwks, err := c.JWKS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		t.Fatal(err)
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	keys := set.Key(signed.Signatures[0].Header.KeyID)
	if len(keys) != 1 {
		t.Fatalf("the token's key is not in the JWKS: %s", jwks)
	}
	payload, err := signed.Verify(keys[0])
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(payload, &out); err != nil {
		t.Fatal(err)
	}
	return out
}
