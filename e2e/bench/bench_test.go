// Package bench measures what a token costs, from the outside: it compares the real
// binary, over TLS, with a server that does the minimum for a durable answer.
//
//	make bench
package bench

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	clients    = 64
	identities = 1024
	rounds     = 5
	roundTime  = 6 * time.Second
	warmUp     = 2 * time.Second
)

func TestMain(m *testing.M) {
	for name, run := range map[string]func([]string) error{"BENCH_FLOOR": floorMain, "BENCH_FLOOR_POSTGRES": postgresFloorMain, "BENCH_RELAY": relayMain} {
		if os.Getenv(name) != "" {
			fmt.Fprintln(os.Stderr, run(os.Args[1:]))
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// million is the number of active leases in BenchmarkMillionLeases.
const million = 1_000_000

// BenchmarkMillionLeases issues a million leases, restarts the broker with them, and
// alternates it with a broker whose database is empty.
func BenchmarkMillionLeases(b *testing.B) {
	k := newKit(b)
	full := k.startBroker("full")
	for full.answered < million {
		k.load(byToken(full), clients, 5*time.Second)
	}
	b.Logf("%d leases are active, resident memory is %d MB", full.answered, k.memory(full)>>20)
	k.stop(full)
	start := time.Now()
	again := k.startBroker("full")
	b.Logf("started with them in %s (target 1.5 s or less)", time.Since(start).Round(time.Millisecond))
	empty := k.startBroker("empty")
	k.load(byToken(again), clients, warmUp)
	k.load(byToken(empty), clients, warmUp)
	var ratios []float64
	for range rounds {
		e, f := k.load(byToken(empty), clients, roundTime), k.load(byToken(again), clients, roundTime)
		ratios = append(ratios, f.rate()/e.rate())
		b.Logf("empty %.0f tokens/s, p99 %s; full %.0f tokens/s, p99 %s", e.rate(), e.at(0.99), f.rate(), f.at(0.99))
	}
	b.Logf("median of the ratios full/empty: %.2f (target 0.80 or more); resident memory %d MB (target 300 or less)", median(ratios), k.memory(again)>>20)
	b.ReportMetric(median(ratios), "full/empty")
	b.ReportMetric(float64(k.memory(again)>>20), "MB")
}

// byToken is the mode with the kit's tokens.
func byToken(t *target) *mode { return &mode{name: "remembered", target: t, request: remembered(t)} }

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}

// A result is one round of load.
type result struct {
	tokens    int
	took      time.Duration
	cpu       time.Duration
	latencies []time.Duration // sorted
}

func (r result) rate() float64        { return float64(r.tokens) / r.took.Seconds() }
func (r result) perThousand() float64 { return r.cpu.Seconds() / float64(r.tokens) * 1000 }
func (r result) at(q float64) time.Duration {
	return r.latencies[min(int(q*float64(len(r.latencies))), len(r.latencies)-1)]
}

// A target is a server under load.
type target struct {
	address  string
	cmd      *exec.Cmd
	requests [][]byte
	answered int       // over all rounds
	replicas []*target // whose clients it has, in turn; nil: it is one server
	database int       // process ID of the database that works for it, too; 0: none
}

// A kit is the environment of both servers.
type kit struct {
	b         *testing.B
	dir       string
	key       *ecdsa.PrivateKey // of the trust domain
	authority *x509.Certificate // of the trust domain, with that key
	pool      *x509.CertPool
	tokens    []string
	issuer    string
	broker    string // the binary

	issuers, entitlements, policies, server, people string // further lines of the files
	store                                           string // URL; empty: a SQLite file
}

func newKit(b *testing.B) *kit {
	b.Helper()
	// The folder for temporary files may be in memory, where nothing is durable.
	dir, err := os.MkdirTemp(".", "run-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	if dir, err = filepath.Abs(dir); err != nil {
		b.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	k := &kit{b: b, dir: dir, key: key, pool: x509.NewCertPool()}
	k.certificate()
	k.issuer = "https://" + freeAddress(b)
	k.createAuthority()
	for i := range identities {
		k.tokens = append(k.tokens, k.token(i, ""))
	}
	return k
}

// token returns a JWT-SVID of an identity, with further claims.
func (k *kit) token(i int, claims string) string {
	k.b.Helper()
	now := time.Now()
	claims = fmt.Sprintf(`{"sub":"spiffe://acme.test/agent/a%d","aud":[%q],"exp":%d,"iat":%d%s}`, i, k.issuer, now.Add(55*time.Minute).Unix(), now.Unix(), claims)
	token, err := signES256(k.key, `{"alg":"ES256","kid":"k1","typ":"JWT"}`, claims)
	if err != nil {
		k.b.Fatal(err)
	}
	return token
}

// tokenRequest returns the request that exchanges a JWT-SVID for an access token.
func tokenRequest(address, token string) []byte {
	return exchange(address, url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {token},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "audience": {"tickets-api"}, "scope": {"tickets:read"},
	})
}

// exchange returns the request with a form for the token endpoint.
func exchange(address string, form url.Values) []byte {
	body := form.Encode()
	return fmt.Appendf(nil, "POST /oauth2/token HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", address, len(body), body)
}

func (k *kit) write(name string, text []byte) string {
	k.b.Helper()
	path := filepath.Join(k.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		k.b.Fatal(err)
	}
	return path
}

// certificate creates the servers' certificate.
func (k *kit) certificate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		k.b.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		k.b.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		k.b.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	k.pool.AppendCertsFromPEM(cert)
	k.write("cert.pem", cert)
	k.write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

func freeAddress(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func (k *kit) startFloor() *target {
	public, err := k.key.PublicKey.Bytes()
	if err != nil {
		k.b.Fatal(err)
	}
	path := k.write("callers.key", public)
	address := freeAddress(k.b)
	cmd := exec.Command(os.Args[0], address, filepath.Join(k.dir, "cert.pem"), filepath.Join(k.dir, "key.pem"), path, filepath.Join(k.dir, "floor.log"))
	cmd.Env = append(os.Environ(), "BENCH_FLOOR=1", "GOGC=400")
	return k.run(cmd, address, "/")
}

const operatorFile = `
server:
  external_url: %[1]s
  listen: "%[2]s"
  tls: {cert: ../cert.pem, key: ../key.pem}
  client_certs: optional
  seal_keys: [{file: seal.key}]
  admission: {per_second: 100000, pending: 100, resource_servers: {per_second: 1000000, pending: 1000}}
  log: {level: %[3]s}
%[6]sattest:
  trust_domain: acme.test
  bundles: {acme.test: bundle.json}
  workloads:
    - {under: "spiffe://acme.test/agent", kind: agent, team: support, accountable: [login/ana]}
%[7]sstore: %[8]s
policies: policies
issuers:
  tickets: {token: {audience: "https://tickets.acme.test", resource_servers: ["spiffe://acme.test/tickets"]}}
%[4]sentitlements:
  tickets-api: {issuer: tickets, scopes: [tickets:read, tickets:comment], max_ttl: 15m}
%[5]s`

const policy = `
@id("agents-read")
@max_ttl("10m")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:read", "tickets:comment"].containsAll(context.scopes) };

@id("no-interns")
forbid (principal is Agent, action == Action::"request", resource) when { principal has team && principal.team == "interns" };
`

// startOther starts another build of the broker, in a folder of its own.
func (k *kit) startOther(binary string) *target {
	k.b.Helper()
	own := k.broker
	defer func() { k.broker = own }()
	k.broker = binary
	return k.startBroker("other")
}

// startBroker starts the real binary in a folder of that name. Files that are
// already in the folder stay.
func (k *kit) startBroker(name string) *target {
	k.b.Helper()
	if k.broker == "" {
		k.broker = filepath.Join(k.dir, "broker.bin")
		build := exec.Command("go", "build", "-buildvcs=false", "-o", k.broker, "./cmd/broker")
		build.Dir = filepath.Join("..", "..") // the product is a module of its own
		if out, err := build.CombinedOutput(); err != nil {
			k.b.Fatalf("building the broker: %v\n%s", err, out)
		}
	}
	public, err := k.key.PublicKey.Bytes()
	if err != nil {
		k.b.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(k.dir, name, "policies"), 0o700); err != nil {
		k.b.Fatal(err)
	}
	x, y := base64.RawURLEncoding.EncodeToString(public[1:33]), base64.RawURLEncoding.EncodeToString(public[33:])
	k.write(name+"/bundle.json", fmt.Appendf(nil, `{"keys":[{"kty":"EC","use":"jwt-svid","kid":"k1","crv":"P-256","x":%q,"y":%q},{"kty":"EC","use":"x509-svid","crv":"P-256","x":%q,"y":%q,"x5c":[%q]}]}`,
		x, y, x, y, base64.StdEncoding.EncodeToString(k.authority.Raw)))
	k.write(name+"/seal.key", []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))))
	k.write(name+"/policies/all.cedar", []byte(policy+k.policies))
	address := freeAddress(k.b)
	config := k.write(name+"/broker.yaml", fmt.Appendf(nil, operatorFile, k.issuer, address, "info", k.issuers, k.entitlements, k.server, k.people, cmp.Or(k.store, "sqlite:broker.db")))
	return k.run(exec.Command(k.broker, "serve", "--config", config), address, "/readyz")
}

// stop shuts a server down.
func (k *kit) stop(t *target) {
	k.b.Helper()
	if err := t.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		k.b.Fatal(err)
	}
	_ = t.cmd.Wait()
}

// run starts a server, which ends with the benchmark, and waits for it.
func (k *kit) run(cmd *exec.Cmd, address, probe string) *target {
	k.b.Helper()
	log, err := os.Create(filepath.Join(k.dir, filepath.Base(cmd.Path)+address[strings.LastIndex(address, ":"):]+".out"))
	if err != nil {
		k.b.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		k.b.Fatal(err)
	}
	k.b.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	t := &target{address: address, cmd: cmd}
	for _, token := range k.tokens {
		t.requests = append(t.requests, tokenRequest(address, token))
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: k.pool}}}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := client.Get("https://" + address + probe)
		if err == nil {
			answer, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return t
			}
			err = fmt.Errorf("%s: %s", resp.Status, answer)
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			k.b.Fatalf("%s did not start: %v\n%s", cmd.Path, err, text)
		}
	}
}

// cpuTime returns the user and kernel time of a process (proc(5)).
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := bytes.Cut(text, []byte(") "))
	fields := bytes.Fields(rest)
	ticks := 0
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(string(f))
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory returns the resident memory of the target in bytes.
func (k *kit) memory(t *target) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", t.cmd.Process.Pid))
	if err != nil {
		k.b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				k.b.Fatal(err)
			}
			return kb << 10
		}
	}
	return 0
}

// count ends the broker and checks that every answered token has its record and
// that the log verifies.
func (k *kit) count(b *testing.B, t *target) {
	b.Helper()
	k.stop(t)
	out, err := exec.Command(k.broker, "audit", "verify", "sqlite:"+filepath.Join(k.dir, "broker", "broker.db")).CombinedOutput()
	if err != nil {
		b.Fatalf("the log does not verify: %v\n%s", err, out)
	}
	issued := 0
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "lease.issued" {
			issued, _ = strconv.Atoi(f[1])
		}
	}
	if issued != t.answered {
		b.Errorf("%d tokens were answered, %d are recorded", t.answered, issued)
	}
	b.Logf("%d tokens were answered, each is recorded, and the log verifies", t.answered)
}
