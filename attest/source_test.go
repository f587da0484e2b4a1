package attest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"accessbroker.internal/attest/localca"
	"accessbroker.internal/broker"
)

const brokerID = "spiffe://acme.test/broker"

// serveAgent serves a Workload API until stop is called, or the test ends.
func serveAgent(t testing.TB, ca *localca.CA, socket string, ids ...string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ca.Serve(ctx, l, ids...) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

// run calls Run until the test ends.
func run(t testing.TB, s *Source) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		if cancel(); <-done != nil {
			t.Error("Run returned an error")
		}
	})
}

// eventually waits until holds returns true.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not happen within 20 s", what)
		}
	}
}

// agentWorld is a world whose source follows a Workload API.
func agentWorld(t testing.TB, listed ...string) (w *world, socket string, stop func()) {
	t.Helper()
	w = &world{t: t, ca: newCA(t, "acme.test")}
	socket = filepath.Join(t.TempDir(), "agent.sock")
	stop = serveAgent(t, w.ca, socket, brokerID)
	w.source = open(t, Config{TrustDomain: "acme.test", TrustDomains: listed, WorkloadAPI: "unix://" + socket})
	w.verifier = w.verify(w.source)
	return w, socket, stop
}

func TestSourceFollowsWorkloadAPI(t *testing.T) {
	t.Parallel()
	w, _, _ := agentWorld(t)
	run(t, w.source)
	check(t, w.source.Ready())
	check(t, w.source.Degraded())
	if left := w.source.SVIDTimeLeft(); w.source.SVIDID() != brokerID || left <= 0 || left > localca.SVIDTTL {
		t.Errorf("got SVID %s, %s left", w.source.SVIDID(), left)
	}
	token := w.token(triage, time.Minute)
	proves := func() bool { _, err := w.verifier.JWT(token, time.Now()); return err == nil }
	if !proves() {
		t.Error("the token does not verify")
	}
	own := must(w.source.GetCertificate(nil)).Leaf
	check(t, w.ca.RotateX509())
	check(t, w.ca.RotateJWT())
	w.ca.RetireJWT()
	eventually(t, "the new JWT keys alone", func() bool { return !proves() })
	eventually(t, "a new SVID", func() bool { return !must(w.source.GetCertificate(nil)).Leaf.Equal(own) })
	if n := w.failures(); n[0] != "jwt-svid unknown_key" {
		t.Errorf("got failures %v", n)
	}
}

// While the agent is unreachable, its last update stays in force.
func TestUnreachableAgentIsDegraded(t *testing.T) {
	t.Parallel()
	w, socket, stop := agentWorld(t)
	run(t, w.source)
	token := w.token(triage, time.Minute)
	stop()
	eventually(t, "degraded", func() bool { return w.source.Degraded() != nil })
	if err := w.source.Ready(); err != nil {
		t.Errorf("without the agent: got not ready: %v", err)
	}
	if _, err := w.verifier.JWT(token, time.Now()); err != nil {
		t.Errorf("without the agent: got %v", err)
	}
	check(t, w.ca.RotateJWT())
	w.ca.RetireJWT()
	serveAgent(t, w.ca, socket, brokerID)
	eventually(t, "not degraded", func() bool { return w.source.Degraded() == nil })
	eventually(t, "the new keys", func() bool {
		_, err := w.verifier.JWT(token, time.Now())
		return causeOf(t, err) == CauseUnknownKey
	})
}

// A federated workload can authenticate only if its domain is listed and its bundle
// was delivered.
func TestFederation(t *testing.T) {
	t.Parallel()
	other := newCA(t, "supplier.test")
	const id = "spiffe://supplier.test/batch"
	token := must(other.JWTSVID(id, time.Minute, audienceURL))
	cert := must(other.X509SVID(id, time.Hour))

	listing, _, _ := agentWorld(t, "acme.test", "supplier.test")
	run(t, listing.source)
	_, err := listing.verifier.JWT(token, time.Now())
	if causeOf(t, err) != CauseNoBundle || listing.source.Degraded() == nil || listing.source.Ready() != nil {
		t.Errorf("without the bundle: got %v, degraded %v", err, listing.source.Degraded())
	}
	check(t, listing.ca.Federate("supplier.test", must(other.Bundle())))
	var who broker.Identity
	eventually(t, "the bundle", func() bool { who, err = listing.verifier.JWT(token, time.Now()); return err == nil })
	if who.ID != id || who.TrustDomain != "supplier.test" || listing.source.Degraded() != nil {
		t.Errorf("got identity %+v, degraded %v", who, listing.source.Degraded())
	}

	strict := listing.ca
	socket := filepath.Join(t.TempDir(), "agent.sock")
	serveAgent(t, strict, socket, brokerID)
	s := open(t, Config{TrustDomain: "acme.test", WorkloadAPI: "unix://" + socket})
	v := listing.verify(s)
	if _, err := v.JWT(token, time.Now()); causeOf(t, err) != CauseTrustDomain {
		t.Errorf("an unlisted domain with a bundle: got %v", err)
	}
	if _, err := v.X509(certs(cert), time.Now()); causeOf(t, err) != CauseTrustDomain {
		t.Errorf("an unlisted domain with a bundle: got %v", err)
	}
}

func TestOpenWaitsForAgent(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	socket := filepath.Join(t.TempDir(), "agent.sock")
	cfg := Config{TrustDomain: "acme.test", WorkloadAPI: "unix://" + socket, StartTimeout: 20 * time.Millisecond}
	if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "the agent does not respond") {
		t.Errorf("without an agent: got %v", err)
	}
	cfg.StartTimeout = 20 * time.Second
	dead, err := net.Listen("unix", socket)
	check(t, err)
	opened := make(chan error, 1)
	go func() { _, err := Open(t.Context(), cfg); opened <- err }()
	conn, err := dead.Accept() // the first attempt
	check(t, err)
	check(t, conn.Close())
	check(t, dead.Close()) // removes the socket
	serveAgent(t, ca, socket, brokerID)
	check(t, <-opened)
}

// With StartWithoutAgent the source trusts no one and has no certificate until Run
// reaches the agent.
func TestOpenWithoutAgent(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	socket := filepath.Join(t.TempDir(), "agent.sock")
	cfg := Config{TrustDomain: "acme.test", WorkloadAPI: "unix://" + socket, StartWithoutAgent: true}
	s := open(t, cfg)
	v := NewVerifier(VerifierConfig{Source: s, Audiences: []string{audienceURL}})
	config, err := v.ServerTLS(ServerTLS{SVID: true, ClientCerts: "optional"})
	check(t, err)
	token := must(ca.JWTSVID(triage, time.Minute, audienceURL))
	if _, err := config.GetCertificate(nil); !errors.Is(err, ErrNoSVID) {
		t.Errorf("GetCertificate: got %v", err)
	}
	if _, err := v.JWT(token, time.Now()); causeOf(t, err) != CauseNoBundle {
		t.Errorf("JWT: got %v", err)
	}
	if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "the agent does not respond") || strings.Contains(err.Error(), "stays in force") {
		t.Errorf("Ready: got %v", err)
	}
	run(t, s)
	serveAgent(t, ca, socket, brokerID)
	eventually(t, "trust", func() bool { return s.Ready() == nil && s.Degraded() == nil })
	if _, err := config.GetCertificate(nil); err != nil {
		t.Errorf("GetCertificate: got %v", err)
	}
	eventually(t, "the token", func() bool { _, err := v.JWT(token, time.Now()); return err == nil })

	// Errors that retrying does not fix fail at once.
	cfg.TrustDomain = "other.test"
	if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "but trust_domain is other.test") {
		t.Errorf("SVID of another domain: got %v", err)
	}
	cfg.WorkloadAPI = "agent.sock"
	if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "write one such as unix:") {
		t.Errorf("malformed address: got %v", err)
	}
}

func TestOpenRejectsConfig(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	dir := t.TempDir()
	agent := func(ids ...string) string {
		socket := filepath.Join(dir, string(rune('a'+len(ids)))+".sock")
		serveAgent(t, ca, socket, ids...)
		return "unix://" + socket
	}
	noIdentity, registered := agent(), agent(brokerID)
	broken := filepath.Join(dir, "broken.json")
	check(t, os.WriteFile(broken, []byte("{"), 0o600))
	leaf := filepath.Join(dir, "leaf.pem")
	cert := must(ca.X509SVID(triage, time.Hour))
	check(t, os.WriteFile(leaf, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600))

	for _, test := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"neither source", Config{TrustDomain: "acme.test"}, "set either a Workload API or bundle files"},
		{"both sources", Config{TrustDomain: "acme.test", WorkloadAPI: registered, Bundles: map[string]string{"acme.test": broken}}, "set either a Workload API or bundle files"},
		{"no address", Config{TrustDomain: "acme.test", WorkloadAPI: "agent.sock"}, "write one such as unix:"},
		{"no trust domain", Config{Bundles: map[string]string{"acme.test": broken}}, "bundle files need trust_domain"},
		{"a SPIFFE ID for a trust domain", Config{TrustDomain: "spiffe://acme.test", WorkloadAPI: registered}, "not a trust domain"},
		{"a URL for a trust domain", Config{TrustDomain: "https://acme.test", WorkloadAPI: registered}, "not a trust domain"},
		{"no identity", Config{TrustDomain: "acme.test", WorkloadAPI: noIdentity}, "register it as a workload"},
		{"SVID of another domain", Config{TrustDomain: "other.test", WorkloadAPI: registered}, "but trust_domain is other.test"},
		{"no file", Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": filepath.Join(dir, "x")}}, "no such file"},
		{"broken file", Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": broken}}, "broken.json"},
		{"a leaf for a bundle", Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": leaf}}, "is not a CA certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.StartTimeout = 100 * time.Millisecond
			if _, err := Open(t.Context(), test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want %q", err, test.want)
			}
		})
	}
}

// A PEM bundle has only X.509 authorities.
func TestPEMBundle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	td := spiffeid.RequireTrustDomainFromString("acme.test")
	var content []byte
	for _, c := range must(w.source.GetX509BundleForTrustDomain(td)).X509Authorities() {
		content = append(content, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	check(t, os.WriteFile(file, content, 0o600))
	v := w.verify(open(t, Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": file}}))
	if _, err := v.X509(certs(w.svid(triage, time.Hour)), time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := v.JWT(w.token(triage, time.Minute), time.Now()); causeOf(t, err) != CauseNoBundle {
		t.Errorf("JWT: got %v", err)
	}
}

func certs(c tls.Certificate) []*x509.Certificate { return []*x509.Certificate{c.Leaf} }

func TestRunPollsFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.source.cfg.PollInterval = time.Millisecond
	run(t, w.source)
	before := w.source.Generation()
	check(t, w.ca.RotateJWT())
	w.publish()
	eventually(t, "the new bundle", func() bool { return w.source.Generation() > before })
	w.source.mu.Lock()
	defer w.source.mu.Unlock()
	if !slices.Equal(w.source.trust.Load().domains(), []string{"acme.test"}) || len(w.source.delivered) != 1 {
		t.Error("got other domains than the listed ones")
	}
}

// Without TrustDomain the SVID determines the own trust domain.
func TestOpenWithoutTrustDomain(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	socket := filepath.Join(t.TempDir(), "agent.sock")
	serveAgent(t, ca, socket, brokerID)
	s := open(t, Config{WorkloadAPI: "unix://" + socket})
	check(t, s.Ready())
	v := NewVerifier(VerifierConfig{Source: s, Audiences: []string{audienceURL}})
	if who, err := v.JWT(must(ca.JWTSVID(triage, time.Minute, audienceURL)), time.Now()); err != nil || who.ID != triage {
		t.Errorf("got %q, %v", who.ID, err)
	}
	if _, err := v.JWT(must(newCA(t, "other.test").JWTSVID("spiffe://other.test/x", time.Minute, audienceURL)), time.Now()); causeOf(t, err) != CauseTrustDomain {
		t.Errorf("another domain: got %v", err)
	}
}

func TestReadyNeedsBundleOfOwnDomain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(domain string) string {
		name := filepath.Join(dir, domain)
		check(t, os.WriteFile(name, must(newCA(t, domain).Bundle()), 0o600))
		return name
	}
	supplier, own := file("supplier.test"), file("acme.test")
	for _, test := range []struct {
		name            string
		cfg             Config
		ready, degraded string // part of the error; empty: none
	}{
		{"own bundle", Config{TrustDomains: []string{"acme.test"}, Bundles: map[string]string{"acme.test": own}}, "", ""},
		{"own bundle missing", Config{TrustDomains: []string{"acme.test", "supplier.test"}, Bundles: map[string]string{"supplier.test": supplier}},
			"no trust bundle of acme.test is in force", "no trust bundle of acme.test: "},
		{"own domain not listed", Config{TrustDomains: []string{"supplier.test"}, Bundles: map[string]string{"supplier.test": supplier}}, "", ""},
		{"several bundles missing", Config{TrustDomains: []string{"acme.test", "c.test", "b.test"}, Bundles: map[string]string{"acme.test": own}},
			"", "no trust bundle of b.test, c.test: "},
		{"no listed bundle", Config{TrustDomains: []string{"b.test"}, Bundles: map[string]string{"acme.test": own}}, "no trust bundle is in force", "no trust bundle of b.test"},
	} {
		test.cfg.TrustDomain = "acme.test"
		s := open(t, test.cfg)
		for what, got := range map[string]struct {
			err  error
			want string
		}{"Ready": {s.Ready(), test.ready}, "Degraded": {s.Degraded(), test.degraded}} {
			if (got.err == nil) != (got.want == "") || got.err != nil && !strings.Contains(got.err.Error(), got.want) {
				t.Errorf("%s: %s returned %v, want %q", test.name, what, got.err, got.want)
			}
		}
		if s.SVIDTimeLeft() != 0 || s.SVIDID() != "" {
			t.Errorf("%s: got SVID %q, %s left", test.name, s.SVIDID(), s.SVIDTimeLeft())
		}
	}
}

// The log has one line per change, not one per poll.
func TestSourceLogsChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var out bytes.Buffer
	w.source.cfg.Log = slog.New(slog.NewTextHandler(&out, nil))
	poll := func(content []byte) {
		t.Helper()
		check(t, os.WriteFile(w.bundle, content, 0o600))
		w.source.poll()
		w.source.poll()
	}
	good := must(w.ca.Bundle())
	poll([]byte("{"))
	poll(good)
	check(t, w.ca.RotateJWT())
	poll(must(w.ca.Bundle()))
	log := out.String()
	for message, want := range map[string]int{"level=WARN msg=\"attestation source\"": 1, "attestation source works again": 1, "trust bundles changed": 1} {
		if got := strings.Count(log, message); got != want {
			t.Errorf("%q: got %d lines, want %d:\n%s", message, got, want, log)
		}
	}
}

func TestWatchErrorsAreReported(t *testing.T) {
	t.Parallel()
	w, _, _ := agentWorld(t)
	fresh := must(newSource(Config{WorkloadAPI: "unix:///x"}))
	down := status.Error(codes.Unavailable, "down")
	for _, part := range []string{partX509, partJWT} {
		w.source.watchFailed(part, down)
		if err := w.source.Degraded(); err == nil || !strings.Contains(err.Error(), part+": the agent does not respond") || !strings.Contains(err.Error(), "its last update stays in force") {
			t.Errorf("%s after an update: got %v", part, err)
		}
		w.source.report(part, nil)
		fresh.watchFailed(part, down)
		if err := fresh.Degraded(); err == nil || !strings.Contains(err.Error(), part+": the agent does not respond") || strings.Contains(err.Error(), "stays in force") {
			t.Errorf("%s before an update: got %v", part, err)
		}
		fresh.report(part, nil)
	}
}

func TestRetryBackOff(t *testing.T) {
	t.Parallel()
	r := &retry{}
	var got []time.Duration
	for range 7 {
		got = append(got, r.next())
	}
	want := []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if r.reset(); r.next() != firstRetry {
		t.Error("reset does not reset the back-off")
	}
}

// With a Workload API, Run still polls the certificate files of servers.
func TestRunPollsCertificatesWithWorkloadAPI(t *testing.T) {
	t.Parallel()
	w, _, _ := agentWorld(t)
	w.source.cfg.PollInterval = time.Millisecond
	cert, key := w.files(brokerID)
	config := must(w.verifier.ServerTLS(ServerTLS{Cert: cert, Key: key, ClientCerts: "off"}))
	first := must(config.GetCertificate(nil))
	run(t, w.source)
	w.writeCert(cert, key, brokerID)
	eventually(t, "the new certificate", func() bool { return must(config.GetCertificate(nil)) != first })
}
