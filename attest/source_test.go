package attest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

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

// run runs a source until the test ends.
func run(t testing.TB, s *Source) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		if cancel(); <-done != nil {
			t.Error("Run gave an error")
		}
	})
}

// eventually waits for what other goroutines are about to bring about.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after 20 s", what)
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

func TestWorkloadAPI(t *testing.T) {
	w, _, _ := agentWorld(t)
	run(t, w.source)
	check(t, w.source.Ready())
	check(t, w.source.Degraded())
	if left := w.source.SVIDTimeLeft(); w.source.SVIDID() != brokerID || left <= 0 || left > localca.SVIDTTL {
		t.Errorf("own SVID %s, for %s", w.source.SVIDID(), left)
	}
	token := w.token(triage, time.Minute)
	proves := func() bool { _, err := w.verifier.JWT(token, time.Now()); return err == nil }
	if !proves() {
		t.Error("refused")
	}
	own := must(w.source.GetCertificate(nil)).Leaf
	check(t, w.ca.RotateX509())
	check(t, w.ca.RotateJWT())
	w.ca.RetireJWT()
	eventually(t, "the new JWT keys alone", func() bool { return !proves() })
	eventually(t, "a new SVID", func() bool { return !must(w.source.GetCertificate(nil)).Leaf.Equal(own) })
	if n := w.failures(); n[0] != "jwt-svid unknown_key" {
		t.Errorf("counted %v", n)
	}
}

// While the agent is away, what it last said stays in force.
func TestAgentAway(t *testing.T) {
	w, socket, stop := agentWorld(t)
	run(t, w.source)
	token := w.token(triage, time.Minute)
	stop()
	eventually(t, "the agent's absence", func() bool { return w.source.Degraded() != nil })
	if err := w.source.Ready(); err != nil {
		t.Errorf("not ready without the agent: %v", err)
	}
	if _, err := w.verifier.JWT(token, time.Now()); err != nil {
		t.Errorf("refused without the agent: %v", err)
	}
	check(t, w.ca.RotateJWT())
	w.ca.RetireJWT()
	serveAgent(t, w.ca, socket, brokerID)
	eventually(t, "the agent's return", func() bool { return w.source.Degraded() == nil })
	eventually(t, "its new keys", func() bool {
		_, err := w.verifier.JWT(token, time.Now())
		return causeOf(t, err) == CauseUnknownKey
	})
}

// A bundle that is delivered is not enough: the operator has to list the
// domain. And a listed domain without a bundle says so.
func TestFederation(t *testing.T) {
	other := newCA(t, "supplier.test")
	const id = "spiffe://supplier.test/batch"
	token := must(other.JWTSVID(id, time.Minute, audienceURL))
	cert := must(other.X509SVID(id, time.Hour))

	listing, _, _ := agentWorld(t, "acme.test", "supplier.test")
	run(t, listing.source)
	_, err := listing.verifier.JWT(token, time.Now())
	if causeOf(t, err) != CauseNoBundle || listing.source.Degraded() == nil || listing.source.Ready() != nil {
		t.Errorf("without the bundle: %v, degraded %v", err, listing.source.Degraded())
	}
	check(t, listing.ca.Federate("supplier.test", must(other.Bundle())))
	var who broker.Identity
	eventually(t, "the bundle", func() bool { who, err = listing.verifier.JWT(token, time.Now()); return err == nil })
	if who.ID != id || who.TrustDomain != "supplier.test" || listing.source.Degraded() != nil {
		t.Errorf("proved %+v, degraded %v", who, listing.source.Degraded())
	}

	strict := listing.ca
	socket := filepath.Join(t.TempDir(), "agent.sock")
	serveAgent(t, strict, socket, brokerID)
	s := open(t, Config{TrustDomain: "acme.test", WorkloadAPI: "unix://" + socket})
	v := listing.verify(s)
	if _, err := v.JWT(token, time.Now()); causeOf(t, err) != CauseTrustDomain {
		t.Errorf("a delivered domain that is not listed: %v", err)
	}
	if _, err := v.X509(certs(cert), time.Now()); causeOf(t, err) != CauseTrustDomain {
		t.Errorf("a delivered domain that is not listed: %v", err)
	}
}

func TestOpenWaitsForTheAgent(t *testing.T) {
	ca := newCA(t, "acme.test")
	socket := filepath.Join(t.TempDir(), "agent.sock")
	cfg := Config{TrustDomain: "acme.test", WorkloadAPI: "unix://" + socket, StartTimeout: 20 * time.Millisecond}
	if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "the agent does not respond") {
		t.Errorf("without an agent: %v", err)
	}
	cfg.StartTimeout = 20 * time.Second
	opened := make(chan error, 1)
	go func() { _, err := Open(t.Context(), cfg); opened <- err }()
	time.Sleep(20 * time.Millisecond) // time to find nobody; without it the test shows less, and passes
	serveAgent(t, ca, socket, brokerID)
	check(t, <-opened)
}

// A source that need not wait trusts nobody and has no certificate until the
// agent answers, says so, and needs nobody's help then.
func TestOpenGoesOnWithoutTheAgent(t *testing.T) {
	ca := newCA(t, "acme.test")
	socket := filepath.Join(t.TempDir(), "agent.sock")
	cfg := Config{TrustDomain: "acme.test", WorkloadAPI: "unix://" + socket, StartWithoutAgent: true}
	s := open(t, cfg)
	v := NewVerifier(VerifierConfig{Source: s, Audiences: []string{audienceURL}})
	config, err := v.ServerTLS(ServerTLS{SVID: true, ClientCerts: "optional"})
	check(t, err)
	token := must(ca.JWTSVID(triage, time.Minute, audienceURL))
	if _, err := config.GetCertificate(nil); !errors.Is(err, ErrNoSVID) {
		t.Errorf("a certificate: %v", err)
	}
	if _, err := v.JWT(token, time.Now()); causeOf(t, err) != CauseNoBundle {
		t.Errorf("a token: %v", err)
	}
	if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "the agent does not respond") || strings.Contains(err.Error(), "stays in force") {
		t.Errorf("ready: %v", err)
	}
	run(t, s)
	serveAgent(t, ca, socket, brokerID)
	eventually(t, "trust", func() bool { return s.Ready() == nil && s.Degraded() == nil })
	if _, err := config.GetCertificate(nil); err != nil {
		t.Errorf("a certificate: %v", err)
	}
	eventually(t, "the token", func() bool { _, err := v.JWT(token, time.Now()); return err == nil })

	// What waiting does not mend is refused at once, as is an address that is none.
	cfg.TrustDomain = "other.test"
	if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "but trust_domain is other.test") {
		t.Errorf("another's identity: %v", err)
	}
	cfg.WorkloadAPI = "agent.sock"
	if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "write one such as unix:") {
		t.Errorf("no address: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	ca := newCA(t, "acme.test")
	dir := t.TempDir()
	agent := func(ids ...string) string {
		socket := filepath.Join(dir, string(rune('a'+len(ids)))+".sock")
		serveAgent(t, ca, socket, ids...)
		return "unix://" + socket
	}
	nobody, somebody := agent(), agent(brokerID)
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
		{"nothing", Config{TrustDomain: "acme.test"}, "set either a Workload API or bundle files"},
		{"both", Config{TrustDomain: "acme.test", WorkloadAPI: somebody, Bundles: map[string]string{"acme.test": broken}}, "set either a Workload API or bundle files"},
		{"no address", Config{TrustDomain: "acme.test", WorkloadAPI: "agent.sock"}, "write one such as unix:"},
		{"no trust domain", Config{Bundles: map[string]string{"acme.test": broken}}, "bundle files need trust_domain"},
		{"a URL for a trust domain", Config{TrustDomain: "https://acme.test", WorkloadAPI: somebody}, "not a trust domain"},
		{"no identity", Config{TrustDomain: "acme.test", WorkloadAPI: nobody}, "register the broker"},
		{"another's identity", Config{TrustDomain: "other.test", WorkloadAPI: somebody}, "but trust_domain is other.test"},
		{"no file", Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": filepath.Join(dir, "x")}}, "no such file"},
		{"broken file", Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": broken}}, "broken.json"},
		{"a leaf for a bundle", Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": leaf}}, "is not a CA certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.StartTimeout = 100 * time.Millisecond
			if _, err := Open(t.Context(), test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v does not say %q", err, test.want)
			}
		})
	}
}

// A bundle in PEM holds X.509 authorities alone.
func TestPEMBundle(t *testing.T) {
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
		t.Errorf("a token: %v", err)
	}
}

func certs(c tls.Certificate) []*x509.Certificate { return []*x509.Certificate{c.Leaf} }

// Run looks at the files by itself.
func TestRunPollsFiles(t *testing.T) {
	w := newWorld(t)
	w.source.cfg.PollInterval = time.Millisecond
	run(t, w.source)
	before := w.source.Generation()
	check(t, w.ca.RotateJWT())
	w.publish()
	eventually(t, "the new bundle", func() bool { return w.source.Generation() > before })
	if !slices.Equal(w.source.trust.Load().domains(), []string{"acme.test"}) {
		t.Error("other domains than listed")
	}
}
