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
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"accessbroker.internal/api"
)

// A world is a broker behind a SPIRE.
type world struct {
	owner   *testing.T // it ends with it
	spire   *spire
	dir     string
	bin     string
	listen  string
	url     string
	broker  *process
	brokers []*process // all that ever ran
	audit   []string   // what verifying its log takes besides

	issuers, entitlements string // beside the usual ones, as lines of the operator's file
}

// What the tickets issuer's tokens are for.
const ticketsAudience = "https://tickets.acme.test"

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
%[7]s
entitlements:
  tickets-api: {issuer: tickets, scopes: [tickets:read, tickets:comment], max_ttl: 15m}
  bound-api: {issuer: bound, scopes: [bound:read], max_ttl: 24h, binding: mtls}
%[8]s
`

const agentsPolicy = `
@id("agents")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource);
`

// startBroker registers the broker at SPIRE and starts it. entry is what else
// its registration says.
func startBroker(t *testing.T, s *spire, entry ...string) *world {
	t.Helper()
	w := newBroker(t, s, entry...)
	w.configure(t, []string{s.domain}, agentsPolicy)
	w.start(t)
	return w
}

// newBroker registers a broker, which has yet to be configured and started.
func newBroker(t *testing.T, s *spire, entry ...string) *world {
	t.Helper()
	return newBrokerOf(t, s, brokerBinary(t), entry...)
}

// newBrokerOf is newBroker, of a program of its own.
func newBrokerOf(t *testing.T, s *spire, bin string, entry ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "broker-") // short, as SPIRE's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{owner: t, spire: s, dir: dir, bin: another(t, bin, "broker")}
	t.Cleanup(w.verify) // before the processes, so that it runs after their end
	s.register(t, "/broker", w.bin, entry...)
	w.listen = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	w.url = "https://" + w.listen
	w.write(t, "seal.key", base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)))
	if err := os.Mkdir(filepath.Join(dir, "policies"), 0o700); err != nil {
		t.Fatal(err)
	}
	return w
}

// configure writes the operator's file and the policies. A broker that runs
// does not hear of it until it is restarted.
func (w *world) configure(t *testing.T, domains []string, policies string) {
	t.Helper()
	w.write(t, "policies/all.cedar", policies)
	w.write(t, "broker.yaml", fmt.Sprintf(operatorFile, w.url, w.listen, w.dir, w.spire.domain, strings.Join(domains, ", "), w.spire.socket(), w.issuers, w.entitlements))
}

func (w *world) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start starts the broker, and returns when it is ready. The agent may not
// have heard yet that the broker is registered: one that waited in vain for
// its identity and gave up is started again.
func (w *world) start(t *testing.T) {
	t.Helper()
	eventually(t, "the start of the broker", time.Minute, func() (err error) {
		if w.broker == nil || w.broker.ended() {
			if w.broker, err = start(w.owner, "broker", w.bin, "serve", "--config", filepath.Join(w.dir, "broker.yaml")); err != nil {
				return err
			}
			w.brokers = append(w.brokers, w.broker)
		}
		return w.ready()
	})
}

// ready says whether the broker says that it is. It needs no identity, as an
// orchestrator's probe has none.
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

// A token, or a JWT-SVID, in its compact form.
var compactJWT = regexp.MustCompile(`eyJ[\w-]{8,}\.eyJ[\w-]{8,}`)

// verify looks at what the broker left when the test is over: the log must
// verify offline, an orderly end is no failure, and no token was ever logged.
func (w *world) verify() {
	out, err := w.auditing().CombinedOutput()
	if err != nil {
		w.owner.Errorf("the log does not verify: %v\n%s", err, out)
	}
	if w.broker != nil && w.broker.cmd.ProcessState.ExitCode() != 0 {
		w.owner.Errorf("on SIGTERM, the broker ended with %s", w.broker.cmd.ProcessState)
	}
	for _, p := range w.brokers {
		if compactJWT.MatchString(p.out.String()) {
			w.owner.Errorf("the broker logged a token:\n%s", p.out)
		}
	}
}

// auditing is the command that verifies the log.
func (w *world) auditing(args ...string) *exec.Cmd {
	return exec.Command(w.bin, slices.Concat([]string{"audit", "verify", "sqlite:" + filepath.Join(w.dir, "broker.db")}, w.audit, args)...)
}

// cli runs a command of the binary, as the workload that it is registered as.
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

// records gives the lines of "broker audit show" on the broker's database.
func (w *world) records(t *testing.T, args ...string) string {
	t.Helper()
	all := append([]string{"audit", "show", "sqlite:" + filepath.Join(w.dir, "broker.db")}, args...)
	out, errs, code := w.cli(w.bin, all...)
	if code != 0 {
		t.Fatalf("broker %s: %d: %s", strings.Join(all, " "), code, errs)
	}
	return out
}

// client makes an HTTP client that trusts nobody but the broker.
func client(t *testing.T, config *tls.Config, http2 bool) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: http2}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// overMTLS gives a client that shows its X.509-SVID.
func (w *world) overMTLS(t *testing.T, src *workloadapi.X509Source) *api.Client {
	t.Helper()
	config := tlsconfig.MTLSClientConfig(src, src, tlsconfig.AuthorizeID(brokerID))
	return &api.Client{BaseURL: w.url, HTTP: client(t, config, true)}
}

// anonymous gives a client without a certificate; the source says whom it
// trusts.
func (w *world) anonymous(t *testing.T, src *workloadapi.X509Source) *api.Client {
	t.Helper()
	config := tlsconfig.TLSClientConfig(src, tlsconfig.AuthorizeID(brokerID))
	return &api.Client{BaseURL: w.url, HTTP: client(t, config, true)}
}

// withToken gives a client whose proof is a JWT-SVID.
func (w *world) withToken(t *testing.T, src *workloadapi.X509Source, token string) *api.Client {
	t.Helper()
	c := w.anonymous(t, src)
	c.Token = func(context.Context) (string, error) { return token, nil }
	return c
}

// claims verifies a token as a resource server would that knows nothing of
// the broker but its URL: by discovery and the published keys (RFC 8414, RFC
// 9068, section 4).
func (w *world) claims(t *testing.T, c *http.Client, token, audience string) map[string]any {
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
		t.Fatalf("the token's header is %+v; %d keys of that id are published", header, len(found))
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
		t.Fatalf("a resource server for %s that trusts %s refuses the token, which says %v", audience, metadata.Issuer, out)
	}
	return out
}

func getJSON(t *testing.T, c *http.Client, url string, into any) {
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

// refusedWith wants a call to have been answered with that code: a call that
// failed for another reason proves nothing.
func refusedWith(err error, code api.Code, status int) error {
	var answer *api.Error
	if !errors.As(err, &answer) || answer.Code != code || answer.Status != status {
		return fmt.Errorf("want a refusal with %d %s, got: %v", status, code, err)
	}
	return nil
}

// refusedByOAuth wants the same of a call on /oauth2, whose errors are those
// of RFC 6749, section 5.2.
func refusedByOAuth(err error, oauth string, code api.Code) error {
	var answer *api.Error
	if errors.As(err, &answer) && answer.OAuth != oauth {
		return fmt.Errorf("want the OAuth error %s, got %s: %w", oauth, answer.OAuth, err)
	}
	return refusedWith(err, code, http.StatusBadRequest)
}
