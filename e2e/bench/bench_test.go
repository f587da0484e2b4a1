// Package bench measures what a token costs, from the outside: it compares the real
// binary, over TLS, with a server that does the minimum for a durable answer.
//
//	make bench
package bench

import (
	"bufio"
	"bytes"
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
	"sync"
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
	for name, run := range map[string]func([]string) error{"BENCH_FLOOR": floorMain, "BENCH_RELAY": relayMain} {
		if os.Getenv(name) != "" {
			fmt.Fprintln(os.Stderr, run(os.Args[1:]))
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// BenchmarkIssuance alternates the floor and the broker and reports ratios.
// Machines are noisy, but both measurements of one round see the same noise.
func BenchmarkIssuance(b *testing.B) {
	k := newKit(b)
	floor, broker := k.startFloor(), k.startBroker("broker")
	k.load(floor, clients, warmUp)
	k.load(broker, clients, warmUp)
	var pairs [][2]result
	b.ResetTimer()
	for range rounds {
		pairs = append(pairs, [2]result{k.load(floor, clients, roundTime), k.load(broker, clients, roundTime)})
	}
	b.StopTimer()
	report(b, pairs, k.memory(broker))
	single := [2]result{k.load(floor, 1, warmUp), k.load(broker, 1, warmUp)}
	b.Logf("one client: floor %.0f tokens/s, p50 %s; broker %.0f tokens/s, p50 %s", single[0].rate(), single[0].at(0.5), single[1].rate(), single[1].at(0.5))
	k.count(b, broker)
}

// million is the number of active leases in BenchmarkMillionLeases.
const million = 1_000_000

// BenchmarkMillionLeases issues a million leases, restarts the broker with them, and
// alternates it with a broker whose database is empty.
func BenchmarkMillionLeases(b *testing.B) {
	k := newKit(b)
	full := k.startBroker("full")
	for full.answered < million {
		k.load(full, clients, 5*time.Second)
	}
	b.Logf("%d leases are active, resident memory is %d MB", full.answered, k.memory(full)>>20)
	k.stop(full)
	start := time.Now()
	again := k.startBroker("full")
	b.Logf("started with them in %s (target 3 s or less)", time.Since(start).Round(time.Millisecond))
	empty := k.startBroker("empty")
	k.load(again, clients, warmUp)
	k.load(empty, clients, warmUp)
	var ratios []float64
	for range rounds {
		e, f := k.load(empty, clients, roundTime), k.load(again, clients, roundTime)
		ratios = append(ratios, f.rate()/e.rate())
		b.Logf("empty %.0f tokens/s, p99 %s; full %.0f tokens/s, p99 %s", e.rate(), e.at(0.99), f.rate(), f.at(0.99))
	}
	b.Logf("median of the ratios full/empty: %.2f (target 0.80 or more); resident memory %d MB (target 300 or less)", median(ratios), k.memory(again)>>20)
	b.ReportMetric(median(ratios), "full/empty")
	b.ReportMetric(float64(k.memory(again)>>20), "MB")
}

func report(b *testing.B, pairs [][2]result, rss int) {
	b.Logf("%-6s %28s %28s %8s %8s %8s", "round", "floor: tokens/s CPU/1000 p99", "broker: tokens/s CPU/1000 p99", "rate", "CPU", "p99")
	var rate, cpu, p99 []float64
	for i, p := range pairs {
		f, br := p[0], p[1]
		rate, cpu = append(rate, br.rate()/f.rate()), append(cpu, br.perThousand()/f.perThousand())
		p99 = append(p99, float64(br.at(0.99))/float64(f.at(0.99)))
		b.Logf("%-6d %12.0f %7.3f %8s %12.0f %7.3f %8s %8.2f %8.2f %8.2f", i+1, f.rate(), f.perThousand(), f.at(0.99).Round(100*time.Microsecond),
			br.rate(), br.perThousand(), br.at(0.99).Round(100*time.Microsecond), rate[i], cpu[i], p99[i])
	}
	b.Logf("medians of the ratios broker/floor: rate %.2f (target 0.90 or more), CPU %.2f (1.20 or less), p99 %.2f (1.30 or less)", median(rate), median(cpu), median(p99))
	b.Logf("resident memory of the broker: %d MB (target 100 or less)", rss>>20)
	b.ReportMetric(median(rate), "rate/floor")
	b.ReportMetric(median(cpu), "cpu/floor")
	b.ReportMetric(median(p99), "p99/floor")
	b.ReportMetric(float64(rss>>20), "MB")
}

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
	answered int // over all rounds
}

// A kit is the environment of both servers.
type kit struct {
	b      *testing.B
	dir    string
	key    *ecdsa.PrivateKey // of the trust domain
	pool   *x509.CertPool
	tokens []string
	issuer string
	broker string // the binary

	issuers, entitlements, policies string // further lines of the files
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
	exp := time.Now().Add(55 * time.Minute).Unix()
	for i := range identities {
		claims := fmt.Sprintf(`{"sub":"spiffe://acme.test/agent/a%d","aud":[%q],"exp":%d,"iat":%d}`, i, k.issuer, exp, time.Now().Unix())
		token, err := signES256(key, `{"alg":"ES256","kid":"k1","typ":"JWT"}`, claims)
		if err != nil {
			b.Fatal(err)
		}
		k.tokens = append(k.tokens, token)
	}
	return k
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
  admission: {per_second: 1000, pending: 100}
  log: {level: %[3]s}
attest:
  trust_domain: acme.test
  bundles: {acme.test: bundle.json}
  workloads:
    - {under: "spiffe://acme.test/agent", kind: agent, team: support, accountable: [login/ana]}
store: sqlite:broker.db
policies: policies
issuers:
  tickets: {token: {audience: "https://tickets.acme.test"}}
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
	k.write(name+"/bundle.json", fmt.Appendf(nil, `{"keys":[{"kty":"EC","use":"jwt-svid","kid":"k1","crv":"P-256","x":%q,"y":%q}]}`,
		base64.RawURLEncoding.EncodeToString(public[1:33]), base64.RawURLEncoding.EncodeToString(public[33:])))
	k.write(name+"/seal.key", []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))))
	k.write(name+"/policies/all.cedar", []byte(policy+k.policies))
	address := freeAddress(k.b)
	config := k.write(name+"/broker.yaml", fmt.Appendf(nil, operatorFile, k.issuer, address, "info", k.issuers, k.entitlements))
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
	log, err := os.Create(filepath.Join(k.dir, filepath.Base(cmd.Path)+".out"))
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
		form := url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {token},
			"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "audience": {"tickets-api"}, "scope": {"tickets:read"},
		}.Encode()
		t.requests = append(t.requests, fmt.Appendf(nil, "POST /oauth2/token HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", address, len(form), form))
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: k.pool}}}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := client.Get("https://" + address + probe)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return t
			}
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			k.b.Fatalf("%s did not start: %v\n%s", cmd.Path, err, text)
		}
	}
}

// load keeps n connections busy for the duration d.
func (k *kit) load(t *target, n int, d time.Duration) result {
	k.b.Helper()
	before, start := cpuTime(k.b, t.cmd.Process.Pid), time.Now()
	stop := start.Add(d)
	latencies := make([][]time.Duration, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { latencies[i] = k.client(t, i, n, stop) })
	}
	all.Wait()
	r := result{took: time.Since(start), cpu: cpuTime(k.b, t.cmd.Process.Pid) - before}
	for _, list := range latencies {
		r.latencies = append(r.latencies, list...)
	}
	slices.Sort(r.latencies)
	r.tokens = len(r.latencies)
	t.answered += r.tokens
	if r.tokens == 0 {
		k.b.Fatal("no token was answered")
	}
	return r
}

// client sends every n-th request in turn over one connection. It does not use
// net/http because the load shares the machine with the server that it measures.
func (k *kit) client(t *target, i, n int, stop time.Time) (latencies []time.Duration) {
	conn, err := tls.Dial("tcp", t.address, &tls.Config{RootCAs: k.pool, MinVersion: tls.VersionTLS13})
	if err != nil {
		k.b.Error(err)
		return nil
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReaderSize(conn, 8<<10)
	for at := i; ; at += n {
		start := time.Now()
		if start.After(stop) {
			return latencies
		}
		if _, err := conn.Write(t.requests[at%identities]); err != nil {
			k.b.Error(err)
			return latencies
		}
		answer, err := readAnswer(in)
		if err == nil && len(answer) < 300 {
			err = fmt.Errorf("an answer of %d bytes holds no token", len(answer))
		}
		if err != nil {
			k.b.Error(err)
			return latencies
		}
		latencies = append(latencies, time.Since(start))
	}
}

// readAnswer returns the body of a successful response.
func readAnswer(in *bufio.Reader) ([]byte, error) {
	status, err := in.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 20")) {
		rest := make([]byte, 600)
		n, _ := in.Read(rest)
		return nil, fmt.Errorf("%s%s", status, rest[:n])
	}
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		if len(line) <= 2 {
			break
		}
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return nil, err
			}
		}
	}
	body := make([]byte, length)
	_, err = io.ReadFull(in, body)
	return body, err
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
