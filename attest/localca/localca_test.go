package localca_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"accessbroker.internal/attest/localca"
)

const agent = "spiffe://acme.test/agent/triage"

func newCA(t *testing.T, domain string) *localca.CA {
	t.Helper()
	ca, err := localca.New(domain)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// serve serves the Workload API until the test ends and returns its address.
func serve(t *testing.T, ca *localca.CA, ids ...string) string {
	t.Helper()
	// Not t.TempDir, because the path of a socket is limited (108 bytes on Linux).
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ca.Serve(ctx, l, ids...) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		_ = os.RemoveAll(dir)
	})
	return "unix://" + path
}

func client(t *testing.T, address string) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(t.Context(), workloadapi.WithAddr(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestWorkloadAPI(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	supplier := newCA(t, "supplier.test")
	theirs, err := supplier.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Federate("supplier.test", theirs); err != nil {
		t.Fatal(err)
	}
	c := client(t, serve(t, ca, agent, "spiffe://acme.test/batch"))

	all, err := c.FetchX509Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(all.SVIDs) != 2 || all.DefaultSVID().ID.String() != agent {
		t.Fatalf("got %d SVIDs, the first is %s", len(all.SVIDs), all.DefaultSVID().ID)
	}
	if _, _, err := x509svid.Verify(all.DefaultSVID().Certificates, all.Bundles); err != nil {
		t.Errorf("the SVID does not verify with the bundle: %v", err)
	}
	if _, err := all.Bundles.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("supplier.test")); err != nil {
		t.Errorf("federated X.509 bundle: %v", err)
	}
	x509Bundles, err := c.FetchX509Bundles(t.Context())
	if err != nil || x509Bundles.Len() != 2 {
		t.Errorf("FetchX509Bundles: got %v, %v", x509Bundles, err)
	}
	jwtBundles, err := c.FetchJWTBundles(t.Context())
	if err != nil || jwtBundles.Len() != 2 {
		t.Fatalf("FetchJWTBundles: got %v, %v", jwtBundles, err)
	}

	svid, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "broker", Subject: spiffeid.RequireFromString("spiffe://acme.test/batch")})
	if err != nil {
		t.Fatal(err)
	}
	verified, err := jwtsvid.ParseAndValidate(svid.Marshal(), jwtBundles, []string{"broker"})
	if err != nil || verified.ID.String() != "spiffe://acme.test/batch" {
		t.Errorf("JWT-SVID: got %v, %v", verified, err)
	}
	if got, err := c.ValidateJWTSVID(t.Context(), svid.Marshal(), "broker"); err != nil || got.ID != verified.ID {
		t.Errorf("ValidateJWTSVID: got %v, %v", got, err)
	}
	if _, err := c.ValidateJWTSVID(t.Context(), svid.Marshal(), "others"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ValidateJWTSVID with another audience: got %v", err)
	}
}

func TestWorkloadAPIRejectsRequest(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	nobody := client(t, serve(t, ca))
	if _, err := nobody.FetchX509SVID(t.Context()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("X.509-SVID without identity: got %v", err)
	}
	if _, err := nobody.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "broker"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("JWT-SVID without identity: got %v", err)
	}

	address := serve(t, ca, agent)
	known := client(t, address)
	other := jwtsvid.Params{Audience: "broker", Subject: spiffeid.RequireFromString("spiffe://acme.test/other")}
	if _, err := known.FetchJWTSVID(t.Context(), other); status.Code(err) != codes.PermissionDenied {
		t.Errorf("JWT-SVID of another identity: got %v", err)
	}
	if _, err := known.FetchJWTSVID(t.Context(), jwtsvid.Params{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("JWT-SVID without audience: got %v", err)
	}

	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bare := workload.NewSpiffeWorkloadAPIClient(conn)
	if _, err := bare.FetchJWTSVID(t.Context(), &workload.JWTSVIDRequest{Audience: []string{"broker"}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without the security header: got %v", err)
	}
	stream, err := bare.FetchX509SVID(t.Context(), &workload.X509SVIDRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("stream without the security header: got %v", err)
	}

	if err := ca.Serve(t.Context(), nil, "spiffe://other.test/x"); err == nil {
		t.Error("Serve accepts an identity of another trust domain")
	}
}

func TestRotationIsPushed(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	source, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(serve(t, ca, agent))))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	old, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	for _, rotate := range []func() error{ca.RotateX509, func() error { ca.RetireX509(); return nil }} {
		if err := rotate(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := source.WaitUntilUpdated(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	fresh, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(fresh.Certificates, source); err != nil {
		t.Errorf("the new SVID does not verify: %v", err)
	}
	if _, _, err := x509svid.Verify(old.Certificates, source); err == nil {
		t.Error("the old SVID verifies after its authority was retired")
	}
}

func TestOpenRestoresTrustDomain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "world")
	first, err := localca.Open(dir, "acme.test")
	if err != nil {
		t.Fatal(err)
	}
	token, err := first.JWTSVID(agent, time.Minute, "broker")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "trust-domain.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got file %v, %v; want mode 0600", info, err)
	}
	second, err := localca.Open(dir, "acme.test")
	if err != nil {
		t.Fatal(err)
	}
	content, err := second.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("acme.test"), content)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(token, bundle, []string{"broker"}); err != nil {
		t.Errorf("token of the first instance: %v", err)
	}

	if _, err := localca.Open(dir, "other.test"); err == nil {
		t.Error("Open accepts another trust domain")
	}
	if err := os.WriteFile(filepath.Join(dir, "trust-domain.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := localca.Open(dir, "acme.test"); err == nil {
		t.Error("Open accepts a malformed file")
	}
}

func TestSVIDsAreOfOwnDomain(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	for _, id := range []string{"", "acme.test/x", "spiffe://acme.test", "spiffe://other.test/x", "spiffe://acme.test/x/"} {
		if _, err := ca.X509SVID(id, time.Minute); err == nil {
			t.Errorf("X.509-SVID for %q: got no error", id)
		}
		if _, err := ca.JWTSVID(id, time.Minute, "broker"); err == nil {
			t.Errorf("JWT-SVID for %q: got no error", id)
		}
	}
	svid, err := ca.X509SVID(agent, time.Minute, "localhost", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.X509Authority())
	for _, host := range []string{"127.0.0.1", "localhost"} {
		if _, err := svid.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("host %s: %v", host, err)
		}
	}
}

func TestFederationEnds(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	bundle, err := newCA(t, "supplier.test").Bundle()
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, serve(t, ca))
	for _, step := range []struct {
		bundle []byte
		want   int
	}{{nil, 1}, {bundle, 2}, {nil, 1}} {
		if err := ca.Federate("supplier.test", step.bundle); err != nil {
			t.Fatal(err)
		}
		if set, err := c.FetchX509Bundles(t.Context()); err != nil || set.Len() != step.want {
			t.Errorf("got %d bundles, %v; want %d", set.Len(), err, step.want)
		}
	}
	if err := ca.Federate("supplier.test", []byte("{")); err == nil {
		t.Error("a malformed bundle: got no error")
	}
}

func TestRetireJWT(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	old, err := ca.JWTSVID(agent, time.Minute, "broker")
	if err != nil {
		t.Fatal(err)
	}
	verify := func(token string) error {
		content, err := ca.Bundle()
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("acme.test"), content)
		if err != nil {
			t.Fatal(err)
		}
		_, err = jwtsvid.ParseAndValidate(token, bundle, []string{"broker"})
		return err
	}
	if err := ca.RotateJWT(); err != nil {
		t.Fatal(err)
	}
	if err := verify(old); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
	fresh, err := ca.JWTSVID(agent, time.Minute, "broker")
	if err != nil {
		t.Fatal(err)
	}
	ca.RetireJWT()
	if verify(old) == nil || verify(fresh) != nil {
		t.Errorf("after the retirement: old token %v, new token %v", verify(old), verify(fresh))
	}
}

// Open rotates an X.509 authority in its last 30 days.
func TestOpenRotatesExpiringAuthority(t *testing.T) {
	t.Parallel()
	for left, want := range map[time.Duration]int{29 * 24 * time.Hour: 2, 31 * 24 * time.Hour: 1} {
		dir := t.TempDir()
		if _, err := localca.Open(dir, "acme.test"); err != nil {
			t.Fatal(err)
		}
		replaceAuthority(t, filepath.Join(dir, "trust-domain.json"), left)
		for range 2 { // the second Open finds the new authority
			ca, err := localca.Open(dir, "acme.test")
			if err != nil {
				t.Fatal(err)
			}
			content, err := ca.Bundle()
			if err != nil {
				t.Fatal(err)
			}
			bundle, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("acme.test"), content)
			if err != nil || len(bundle.X509Authorities()) != want {
				t.Errorf("%s left: got %d authorities, %v; want %d", left, len(bundle.X509Authorities()), err, want)
			}
		}
	}
}

// replaceAuthority replaces the X.509 authority in a file by one that expires soon.
func replaceAuthority(t *testing.T, file string, left time.Duration) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var saved map[string]any
	if err := json.Unmarshal(content, &saved); err != nil {
		t.Fatal(err)
	}
	ca := newCA(t, "acme.test")
	template := localca.LeafTemplate("spiffe://acme.test", time.Now().Add(-time.Hour), time.Now().Add(left))
	template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	cert, err := ca.SignX509(template)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	saved["x509"] = []map[string][]byte{{"certificate": cert.Certificate[0], "key": key}}
	if content, err = json.Marshal(saved); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRejectsFileWithoutAuthority(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"x509", "jwt"} {
		dir := t.TempDir()
		if _, err := localca.Open(dir, "acme.test"); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "trust-domain.json")
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var saved map[string]any
		if err := json.Unmarshal(content, &saved); err != nil {
			t.Fatal(err)
		}
		delete(saved, part)
		if content, err = json.Marshal(saved); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := localca.Open(dir, "acme.test"); err == nil {
			t.Errorf("without %s: got no error", part)
		}
	}
}

func TestServeFailsOnClosedListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := newCA(t, "acme.test").Serve(t.Context(), l, agent); err == nil {
		t.Error("got no error")
	}
}

func TestSerialNumbersDiffer(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	a, err1 := ca.X509SVID(agent, time.Minute)
	b, err2 := ca.X509SVID(agent, time.Minute)
	if err1 != nil || err2 != nil || a.Leaf.SerialNumber.Cmp(b.Leaf.SerialNumber) == 0 {
		t.Errorf("got serial numbers %x and %x, %v, %v", a.Leaf.SerialNumber, b.Leaf.SerialNumber, err1, err2)
	}
}
