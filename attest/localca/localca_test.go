package localca_test

import (
	"context"
	"crypto/x509"
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

// serve serves the Workload API for the test's time, and gives its address.
func serve(t *testing.T, ca *localca.CA, ids ...string) string {
	t.Helper()
	// Not t.TempDir: the path of a socket is short (108 bytes on Linux).
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

func TestAnyGoSPIFFEProgramGetsItsSVIDs(t *testing.T) {
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
		t.Errorf("the SVID does not verify by the bundle that came with it: %v", err)
	}
	if _, err := all.Bundles.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("supplier.test")); err != nil {
		t.Errorf("the federated X.509 bundle: %v", err)
	}
	x509Bundles, err := c.FetchX509Bundles(t.Context())
	if err != nil || x509Bundles.Len() != 2 {
		t.Errorf("FetchX509Bundles gave %v, %v", x509Bundles, err)
	}
	jwtBundles, err := c.FetchJWTBundles(t.Context())
	if err != nil || jwtBundles.Len() != 2 {
		t.Fatalf("FetchJWTBundles gave %v, %v", jwtBundles, err)
	}

	svid, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "broker", Subject: spiffeid.RequireFromString("spiffe://acme.test/batch")})
	if err != nil {
		t.Fatal(err)
	}
	verified, err := jwtsvid.ParseAndValidate(svid.Marshal(), jwtBundles, []string{"broker"})
	if err != nil || verified.ID.String() != "spiffe://acme.test/batch" {
		t.Errorf("the JWT-SVID verifies as %v, %v", verified, err)
	}
	if got, err := c.ValidateJWTSVID(t.Context(), svid.Marshal(), "broker"); err != nil || got.ID != verified.ID {
		t.Errorf("ValidateJWTSVID gave %v, %v", got, err)
	}
	if _, err := c.ValidateJWTSVID(t.Context(), svid.Marshal(), "others"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ValidateJWTSVID for another audience gave %v", err)
	}
}

func TestWorkloadAPIRefuses(t *testing.T) {
	ca := newCA(t, "acme.test")
	nobody := client(t, serve(t, ca))
	if _, err := nobody.FetchX509SVID(t.Context()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an X.509-SVID for nobody: %v", err)
	}
	if _, err := nobody.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "broker"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a JWT-SVID for nobody: %v", err)
	}

	address := serve(t, ca, agent)
	known := client(t, address)
	other := jwtsvid.Params{Audience: "broker", Subject: spiffeid.RequireFromString("spiffe://acme.test/other")}
	if _, err := known.FetchJWTSVID(t.Context(), other); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another's JWT-SVID: %v", err)
	}
	if _, err := known.FetchJWTSVID(t.Context(), jwtsvid.Params{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a JWT-SVID without audience: %v", err)
	}

	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bare := workload.NewSpiffeWorkloadAPIClient(conn)
	if _, err := bare.FetchJWTSVID(t.Context(), &workload.JWTSVIDRequest{Audience: []string{"broker"}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without the security header: %v", err)
	}
	stream, err := bare.FetchX509SVID(t.Context(), &workload.X509SVIDRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a stream without the security header: %v", err)
	}

	if err := ca.Serve(t.Context(), nil, "spiffe://other.test/x"); err == nil {
		t.Error("it serves an identity of another trust domain")
	}
}

func TestRotationIsPushed(t *testing.T) {
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
		t.Errorf("the new SVID: %v", err)
	}
	if _, _, err := x509svid.Verify(old.Certificates, source); err == nil {
		t.Error("the old SVID verifies although its authority was retired")
	}
}

func TestATrustDomainIsFoundAgainInItsFolder(t *testing.T) {
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
		t.Errorf("the keys lie in %v, %v", info, err)
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
		t.Errorf("after opening again: %v", err)
	}

	if _, err := localca.Open(dir, "other.test"); err == nil {
		t.Error("another trust domain opened the folder")
	}
	if err := os.WriteFile(filepath.Join(dir, "trust-domain.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := localca.Open(dir, "acme.test"); err == nil {
		t.Error("a broken file opened")
	}
}

func TestItSignsForItsOwnOnly(t *testing.T) {
	ca := newCA(t, "acme.test")
	for _, id := range []string{"", "acme.test/x", "spiffe://acme.test", "spiffe://other.test/x", "spiffe://acme.test/x/"} {
		if _, err := ca.X509SVID(id, time.Minute); err == nil {
			t.Errorf("an X.509-SVID for %q", id)
		}
		if _, err := ca.JWTSVID(id, time.Minute, "broker"); err == nil {
			t.Errorf("a JWT-SVID for %q", id)
		}
	}
	svid, err := ca.X509SVID(agent, time.Minute, "localhost", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.X509Authority())
	if _, err := svid.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "127.0.0.1"}); err != nil {
		t.Errorf("a client that knows names only: %v", err)
	}
}
