package attest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/attest/localca"
)

type jwk map[string]any

// oddKeys are keys that the broker leaves out of a bundle, by reason.
func oddKeys(t testing.TB, own jwk) map[jwks.Reason][]jwk {
	t.Helper()
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	with := func(name string, value any) jwk {
		k := jwk{"kid": "odd"}
		for n, v := range own {
			if n != "kid" {
				k[n] = v
			}
		}
		if k[name] = value; value == nil {
			delete(k, name)
		}
		return k
	}
	return map[jwks.Reason][]jwk{
		jwks.OtherUse:    {with("use", "wit-svid"), with("use", nil), with("use", "JWT-SVID"), with("use", "sig"), with("key_ops", []string{"encrypt"}), with("alg", "ES384")},
		jwks.UnknownType: {{"kty": "AKP", "alg": "ML-DSA-65", "use": "jwt-svid", "kid": "pq", "pub": "AAAA"}, with("crv", "secp256k1"), with("kty", "ec"), {"kty": "OKP", "crv": "X25519", "use": "jwt-svid", "kid": "x", "x": base64.RawURLEncoding.EncodeToString(ed)}, {"kty": "OKP", "crv": "Ed25519", "use": "jwt-svid", "kid": "ed", "x": base64.RawURLEncoding.EncodeToString(ed)}},
		jwks.Malformed:   {with("x", "AAAA"), with("kid", 1), nil},
		jwks.NoKeyID:     {with("kid", nil)},
		jwks.PrivateKey:  {with("d", own["x"])},
		jwks.WeakKey:     {with("x", own["y"]), {"kty": "RSA", "use": "jwt-svid", "kid": "r", "e": "AQAB", "n": strings.Repeat("w", 171)}},
		jwks.Certificate: {with("use", "x509-svid"), {"kty": "EC", "crv": own["crv"], "x": own["x"], "y": own["y"], "use": "x509-svid", "x5c": []string{"AAAA"}}},
	}
}

// keysOf returns the keys of a bundle and the first JWT authority.
func keysOf(t testing.TB, content []byte) (keys []jwk, authority jwk) {
	t.Helper()
	var document struct{ Keys []jwk }
	check(t, json.Unmarshal(content, &document))
	i := slices.IndexFunc(document.Keys, func(k jwk) bool { return k["use"] == "jwt-svid" })
	return document.Keys, document.Keys[i]
}

func asBundle(t testing.TB, keys ...jwk) []byte {
	t.Helper()
	return must(json.Marshal(map[string]any{"keys": keys, "spiffe_sequence": "1", "spiffe_refresh_hint": 300, "vendor": jwk{"a": 1}}))
}

// A key of an unknown kind does not stop rotation: the withdrawn key is out, and the
// new one is in.
func TestRotationNextToOddKeys(t *testing.T) {
	t.Parallel()
	tried := 0
	_, own := keysOf(t, must(newCA(t, "acme.test").Bundle()))
	for reason, list := range oddKeys(t, own) {
		for _, odd := range list {
			tried++
			w := newWorld(t)
			before := w.token(triage, time.Minute)
			if _, err := w.verifier.JWT(before, time.Now()); err != nil {
				t.Fatal(err)
			}
			check(t, w.ca.RotateJWT())
			w.ca.RetireJWT()
			keys, _ := keysOf(t, must(w.ca.Bundle()))
			check(t, os.WriteFile(w.bundle, asBundle(t, append([]jwk{odd}, keys...)...), 0o600))
			w.source.poll()
			if _, err := w.verifier.JWT(before, time.Now()); causeOf(t, err) != CauseUnknownKey {
				t.Errorf("%s: %v: a token of the withdrawn key: got %v", reason, odd, err)
			}
			if _, err := w.verifier.JWT(w.token(triage, time.Minute), time.Now()); err != nil {
				t.Errorf("%s: %v: a token of the new key: got %v", reason, odd, err)
			}
			if _, err := w.verifier.X509(certs(w.svid(triage, time.Hour)), time.Now()); err != nil {
				t.Errorf("%s: %v: an X.509-SVID: got %v", reason, odd, err)
			}
			k := w.source.KeySources(time.Now())
			if len(k) != 1 || k[0].LeftOut[reason] != 1 || len(k[0].LeftOut) != 1 || k[0].Keys["jwt"] != 1 || k[0].Keys["x509"] != 1 {
				t.Errorf("%s: %v: got %+v", reason, odd, k)
			}
			check(t, w.source.Degraded())
		}
	}
	if tried < 20 {
		t.Errorf("tried %d keys", tried)
	}
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// SPIFFE Trust Domain and Bundle, section 4.1.3: a bundle without usable keys revokes
// all of them.
func TestBundleWithoutUsableKeysTrustsNothing(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{
		"no keys":           []byte(`{"keys":[]}`),
		"only unknown keys": asBundle(t, jwk{"kty": "AKP", "use": "jwt-svid", "kid": "pq"}, jwk{"kty": "new"}),
	} {
		w := newWorld(t)
		token, cert := w.token(triage, time.Minute), w.svid(triage, time.Hour)
		check(t, os.WriteFile(w.bundle, content, 0o600))
		w.source.poll()
		if _, err := w.verifier.JWT(token, time.Now()); causeOf(t, err) != CauseNoBundle {
			t.Errorf("%s: JWT: got %v", name, err)
		}
		if _, err := w.verifier.X509(certs(cert), time.Now()); causeOf(t, err) != CauseNoBundle {
			t.Errorf("%s: X.509: got %v", name, err)
		}
		if err := w.source.Ready(); err == nil || !strings.Contains(err.Error(), "no usable key in the trust bundle of acme.test") {
			t.Errorf("%s: Ready: got %v", name, err)
		}
		s := open(t, Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": w.bundle}})
		if s.Ready() == nil {
			t.Errorf("%s: a new source is ready", name)
		}
	}
}

// A bundle that can't be read stays in force for an hour, or for five times its refresh
// hint, and at most for a day.
func TestUnreadableBundleExpires(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		hint string
		set  time.Duration
		want time.Duration
	}{
		"no hint":          {"null", 0, time.Hour},
		"a short hint":     {"300", 0, time.Hour},
		"a long hint":      {"3600", 0, 5 * time.Hour},
		"a hint of a week": {"604800", 0, 24 * time.Hour},
		"a malformed hint": {`"soon"`, 0, time.Hour},
		"a negative hint":  {"-5", 0, time.Hour},
		"configured":       {"604800", 10 * time.Minute, 10 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) { unreadable(t, filepath.Join(dir, "acme.json"), test.hint, test.set, test.want) })
		})
	}
}

func unreadable(t *testing.T, file, hint string, set, want time.Duration) {
	w := &world{t: t, ca: newCA(t, "acme.test"), bundle: file}
	keys, _ := keysOf(t, must(w.ca.Bundle()))
	check(t, os.WriteFile(file, must(json.Marshal(map[string]any{"keys": keys, "spiffe_refresh_hint": json.RawMessage(hint)})), 0o600))
	w.source = open(t, Config{TrustDomain: "acme.test", Bundles: map[string]string{"acme.test": file}, BundleMaxAge: set, PollInterval: want / 60})
	w.verifier = w.verify(w.source)
	run(t, w.source)
	verifies := func() bool {
		_, err := w.verifier.X509(certs(must(w.ca.X509SVID(triage, time.Hour))), time.Now())
		return err == nil
	}
	age := func() time.Duration { return w.source.KeySources(time.Now())[0].Age }

	time.Sleep(2*want + want/120) // between two polls; readable, so never too old
	if !verifies() || w.source.Degraded() != nil || age() != 0 {
		t.Fatalf("readable: degraded %v, age %s", w.source.Degraded(), age())
	}
	check(t, os.WriteFile(file, []byte("{"), 0o600))
	time.Sleep(want - want/60)
	if err := w.source.Degraded(); !verifies() || w.source.Ready() != nil || err == nil || !strings.Contains(err.Error(), "stays trusted for another") || age() < want-want/20 {
		t.Errorf("shortly before %s: ready %v, degraded %v, age %s", want, w.source.Ready(), err, age())
	}
	time.Sleep(want / 20)
	if err := w.source.Ready(); verifies() || err == nil || !strings.Contains(err.Error(), "no longer trusted") {
		t.Errorf("after %s: ready %v", want, err)
	}
	w.publish()
	time.Sleep(want / 60)
	if err := w.source.Degraded(); !verifies() || err != nil {
		t.Errorf("readable again: degraded %v", err)
	}
}

// The log names the left-out keys once, when they change.
func TestLeftOutKeysAreLoggedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var out bytes.Buffer
	w.source.cfg.Log = slog.New(slog.NewTextHandler(&out, nil))
	keys, _ := keysOf(t, must(w.ca.Bundle()))
	poll := func(keys ...jwk) {
		check(t, os.WriteFile(w.bundle, asBundle(t, keys...), 0o600))
		w.source.poll()
		w.source.poll()
	}
	odd := jwk{"kty": "AKP", "use": "jwt-svid", "kid": "pq"}
	poll(append(keys, odd)...)
	poll(append(slices.Clone(keys), odd, jwk{"kty": "EC", "use": "wit-svid"})...)
	poll(keys...)
	for message, want := range map[string]int{
		`msg="keys of the trust bundle are left out"`: 2, "key 3 (kid": 2, "its kty is": 2, "its use is": 1, "every key of the trust bundle is used again": 1,
	} {
		if got := strings.Count(out.String(), message); got != want {
			t.Errorf("%s: got %d, want %d:\n%s", message, got, want, out.String())
		}
	}
}

func TestPEMBundleLeavesOutBadBlocks(t *testing.T) {
	t.Parallel()
	td := spiffeid.RequireTrustDomainFromString("acme.test")
	ca := newCA(t, "acme.test")
	b := must(parseBundle(td, must(ca.Bundle())))
	good := pemOf("CERTIFICATE", b.x509.X509Authorities()[0].Raw)
	leaf := pemOf("CERTIFICATE", must(ca.X509SVID(triage, time.Hour)).Certificate[0])
	for name, odd := range map[string]string{
		"a leaf": leaf, "a key": pemOf("PRIVATE KEY", []byte{1}), "not DER": pemOf("CERTIFICATE", []byte{1}), "a truncated block": "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n",
	} {
		b, err := parseBundle(td, []byte(good+odd+good))
		if err != nil || len(b.x509.X509Authorities()) != 1 || len(b.leftOut) != 1 {
			t.Errorf("%s: got %+v, %v", name, b, err)
		}
		if b, err := parseBundle(td, []byte(odd)); err == nil {
			t.Errorf("%s alone: got %+v", name, b)
		}
	}
}

// An agent delivers what a test sets.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	mu      sync.Mutex
	x509    *workload.X509SVIDResponse
	jwt     *workload.JWTBundlesResponse
	changed chan struct{} // closed by set
}

func (a *agent) set(x509 *workload.X509SVIDResponse, jwt *workload.JWTBundlesResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.x509, a.jwt = x509, jwt; a.changed != nil {
		close(a.changed)
	}
	a.changed = make(chan struct{})
}

func (a *agent) now() (*workload.X509SVIDResponse, *workload.JWTBundlesResponse, chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.x509, a.jwt, a.changed
}

func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		x509, _, changed := a.now()
		if err := stream.Send(x509); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (a *agent) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	for {
		_, jwt, changed := a.now()
		if err := stream.Send(jwt); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// start serves the agent and returns its address.
func (a *agent) start(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	check(t, err)
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return "unix://" + socket
}

// An update is what an agent delivers of a CA.
func update(t *testing.T, ca *localca.CA) (*workload.X509SVIDResponse, *workload.JWTBundlesResponse) {
	t.Helper()
	keys, _ := keysOf(t, must(ca.Bundle()))
	b := must(parseBundle(spiffeid.RequireTrustDomainFromString("acme.test"), must(ca.Bundle())))
	var der []byte
	for _, c := range b.x509.X509Authorities() {
		der = append(der, c.Raw...)
	}
	id := "spiffe://" + ca.TrustDomain() + "/broker"
	svid := must(ca.X509SVID(id, time.Hour))
	key := must(x509.MarshalPKCS8PrivateKey(svid.PrivateKey))
	keys = slices.DeleteFunc(keys, func(k jwk) bool { return k["use"] != "jwt-svid" })
	for _, k := range keys {
		delete(k, "use") // as SPIRE does
	}
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: id, X509Svid: slices.Concat(svid.Certificate...), X509SvidKey: key, Bundle: der}}},
		&workload.JWTBundlesResponse{Bundles: map[string][]byte{"spiffe://acme.test": must(json.Marshal(map[string]any{"keys": keys}))}}
}

// Odd keys in the Workload API's bundles, and bundles of other domains that can't be
// read, do not stop rotation either.
func TestWorkloadAPIRotationNextToOddKeys(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	other := newCA(t, "supplier.test")
	otherX509, otherJWT := update(t, other)
	a := &agent{}
	x, j := update(t, ca)
	x.FederatedBundles = map[string][]byte{"spiffe://supplier.test": otherX509.Svids[0].Bundle}
	j.Bundles["spiffe://supplier.test"] = otherJWT.Bundles["spiffe://acme.test"]
	a.set(x, j)
	s := open(t, Config{TrustDomain: "acme.test", TrustDomains: []string{"acme.test", "supplier.test"}, WorkloadAPI: a.start(t)})
	w := &world{t: t, ca: ca, source: s}
	w.verifier = w.verify(s)
	run(t, s)
	const batch = "spiffe://supplier.test/batch"
	old, oldCert, foreign := w.token(triage, time.Minute), w.svid(triage, time.Hour), must(other.JWTSVID(batch, time.Minute, audienceURL))
	for _, token := range []string{old, foreign} {
		if _, err := w.verifier.JWT(token, time.Now()); err != nil {
			t.Fatal(err)
		}
	}

	check(t, ca.RotateJWT())
	check(t, ca.RotateX509())
	ca.RetireJWT()
	ca.RetireX509()
	x, j = update(t, ca)
	leaf := must(ca.X509SVID(triage, time.Hour)).Certificate[0]
	x.Svids[0].Bundle = slices.Concat(leaf, []byte{0x30, 0x01, 0x00}, x.Svids[0].Bundle) // a leaf, and an empty SEQUENCE for a certificate
	x.FederatedBundles = map[string][]byte{"spiffe://supplier.test": {0x30}, "not a domain!": nil}
	var document struct{ Keys []any }
	check(t, json.Unmarshal(j.Bundles["spiffe://acme.test"], &document))
	document.Keys = append([]any{jwk{"kty": "AKP", "kid": "pq", "pub": "AAAA"}, nil, jwk{"kty": "EC"}}, document.Keys...)
	j.Bundles["spiffe://acme.test"] = must(json.Marshal(map[string]any{"keys": document.Keys}))
	j.Bundles["spiffe://supplier.test"] = []byte(`{"keys":[],"keys":[]}`)
	a.set(x, j)

	eventually(t, "the rotation", func() bool {
		_, err := w.verifier.JWT(old, time.Now())
		_, err2 := w.verifier.X509(certs(oldCert), time.Now())
		return causeOf(t, err) == CauseUnknownKey && causeOf(t, err2) == CauseUntrusted
	})
	if _, err := w.verifier.JWT(w.token(triage, time.Minute), time.Now()); err != nil {
		t.Errorf("a token of the new key: got %v", err)
	}
	if _, err := w.verifier.X509(certs(w.svid(triage, time.Hour)), time.Now()); err != nil {
		t.Errorf("an X.509-SVID of the new authority: got %v", err)
	}
	// The last bundle of the other domain stays in force.
	if _, err := w.verifier.JWT(foreign, time.Now()); err != nil {
		t.Errorf("the other domain: got %v", err)
	}
	err := s.Degraded()
	for _, want := range []string{partX509 + ", bundle of supplier.test: it was read", partJWT + ", bundle of supplier.test: it was read", "reading the bundle of supplier.test: the JWK Set", "malformed trust domain"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "bundle of acme.test") || s.Ready() != nil {
		t.Errorf("got %v, ready %v", err, s.Ready())
	}
	left := s.KeySources(time.Now())[0].LeftOut
	if left[jwks.Certificate] != 2 || left[jwks.UnknownType] != 2 || left[jwks.Malformed] != 1 {
		t.Errorf("left out %v", left)
	}
}

// The bundles count even if the SVID next to them is not usable.
func TestWorkloadAPIBundlesWithoutUsableSVID(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	a := &agent{}
	a.set(update(t, ca))
	s := open(t, Config{TrustDomain: "acme.test", WorkloadAPI: a.start(t)})
	w := &world{t: t, ca: ca, source: s}
	w.verifier = w.verify(s)
	run(t, s)
	old := w.svid(triage, time.Hour)
	check(t, ca.RotateX509())
	ca.RetireX509()
	x, j := update(t, ca)
	x.Svids[0].X509SvidKey = []byte{1}
	a.set(x, j)
	eventually(t, "the withdrawal", func() bool {
		_, err := w.verifier.X509(certs(old), time.Now())
		return causeOf(t, err) == CauseUntrusted
	})
	if s.SVIDID() != brokerID || s.Degraded() == nil {
		t.Errorf("got SVID %q, degraded %v", s.SVIDID(), s.Degraded())
	}
}

// A domain that the agent no longer delivers is no longer trusted.
func TestWorkloadAPIRemovesBundles(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	a := &agent{}
	a.set(update(t, ca))
	s := open(t, Config{TrustDomain: "acme.test", WorkloadAPI: a.start(t)})
	run(t, s)
	x, j := update(t, ca)
	j.Bundles = nil
	a.set(x, j)
	eventually(t, "the removal", func() bool { return s.KeySources(time.Now())[0].Keys["jwt"] == 0 })
	if s.KeySources(time.Now())[0].Keys["x509"] != 1 {
		t.Error("the X.509 authorities are gone too")
	}
}
