package e2e

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"accessbroker.internal/api"
)

// TestRotation makes calls while the SVIDs of both sides rotate. None fails, and
// the client does not retry.
func TestRotation(t *testing.T) {
	t.Parallel() // it mostly waits
	s := startSPIRE(t, "acme.test")
	s.register(t, "/agent/triage", ownBinary(t), "-x509SVIDTTL", "40")
	w := startBroker(t, s, "-x509SVIDTTL", "40")
	src := source(t, s)
	c := w.mtlsClient(t, src)
	ctx, cancel := context.WithCancel(t.Context())
	var calls int
	var failed []error
	done := make(chan struct{})
	go func() {
		defer close(done)
		pace := time.NewTicker(5 * time.Millisecond) // leaves the processors to other tests
		defer pace.Stop()
		for ctx.Err() == nil {
			if _, err := c.Exchange(ctx, reading); err != nil && ctx.Err() == nil {
				failed = append(failed, err)
			}
			calls++
			<-pace.C
		}
	}()
	mine, theirs := map[string]bool{}, map[string]bool{}
	eventually(t, "two rotations on both sides", 5*time.Minute, func() error {
		mine[leaf(t, src).Certificates[0].SerialNumber.String()] = true
		theirs[w.serial(t)] = true
		if len(mine) < 3 || len(theirs) < 3 {
			return fmt.Errorf("%d and %d certificates were seen", len(mine), len(theirs))
		}
		return nil
	})
	cancel()
	<-done
	if len(failed) > 0 {
		t.Errorf("%d of %d calls failed during the rotations, the first with: %v", len(failed), calls, failed[0])
	}
	if calls < 100 {
		t.Errorf("only %d calls were made during the rotations", calls)
	}
	t.Logf("%d calls during two rotations on both sides", calls)
}

// serial returns the serial number of the broker's certificate.
func (w *world) serial(t testing.TB) string {
	t.Helper()
	conn, err := tls.Dial("tcp", w.listen, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

const supplierPolicy = agentsPolicy + `
@id("supplier-reads")
@max_ttl("5m")
permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:read"].containsAll(context.scopes) };
`

// TestFederation accepts workloads of another trust domain if the operator lists
// the domain and a policy names it. Its bundle alone is not enough: without the
// domain in the list, the broker rejects the same caller with the same bundles.
func TestFederation(t *testing.T) {
	t.Parallel() // it mostly waits
	acme, supplier := startSPIRE(t, "acme.test"), startSPIRE(t, "supplier.test")
	acme.federate(t, supplier)
	supplier.federate(t, acme)
	supplier.register(t, "/sync", ownBinary(t), "-federatesWith", "spiffe://acme.test")
	w := startBroker(t, acme, "-federatesWith", "spiffe://supplier.test")
	src := source(t, supplier)

	w.broker.stop()
	w.configure(t, []string{"acme.test", "supplier.test"}, supplierPolicy)
	w.start(t)
	if _, err := w.mtlsClient(t, src).Exchange(t.Context(), reading); err != nil {
		t.Errorf("a supplier's workload: %v", err)
	}
	svid := jwtSVID(t, supplier, w.url).Marshal()
	if _, err := w.anonymousClient(t, src).Exchange(t.Context(), withSubject(svid)); err != nil {
		t.Errorf("a supplier's JWT-SVID: %v", err)
	}
	more := reading
	more.Scopes = []string{"tickets:read", "tickets:comment"}
	_, err := w.mtlsClient(t, src).Exchange(t.Context(), more)
	if err := wantOAuthError(err, "invalid_scope", api.Denied); err != nil {
		t.Errorf("a supplier's workload requests more than its policy allows: %v", err)
	}
	long := reading
	long.TTL = api.Duration(10 * time.Minute)
	_, err = w.mtlsClient(t, src).Exchange(t.Context(), long)
	if err := wantOAuthError(err, "invalid_request", api.InvalidTTL); err != nil {
		t.Errorf("a supplier's workload requests longer than its policy allows: %v", err)
	}

	w.broker.stop()
	w.configure(t, []string{"acme.test"}, agentsPolicy)
	w.start(t)
	_, err = w.mtlsClient(t, src).WhoAmI(t.Context())
	if err := wantRefusal(err, api.Unauthenticated, http.StatusUnauthorized); err != nil {
		t.Errorf("a certificate of a trust domain that is not listed: %v", err)
	}
	_, err = w.bearerClient(t, src, svid).WhoAmI(t.Context())
	if err := wantRefusal(err, api.Unauthenticated, http.StatusUnauthorized); err != nil {
		t.Errorf("a JWT-SVID of a trust domain that is not listed: %v", err)
	}
}

// TestBundleRotation rotates SPIRE's authorities. The broker accepts SVIDs of the
// new ones, and rejects those of an old one once it is revoked.
func TestBundleRotation(t *testing.T) {
	t.Parallel() // it mostly waits
	s := startSPIRE(t, "acme.test")
	s.register(t, "/agent/triage", ownBinary(t))
	w := startBroker(t, s)
	src := source(t, s)
	t.Run("SPIRE restarted", func(t *testing.T) { testSPIRERestart(t, w, src) })
	t.Run("JWT", func(t *testing.T) { testJWTAuthority(t, w, src) })
	t.Run("X.509", func(t *testing.T) { testX509Authority(t, w, src) })
}

func testJWTAuthority(t *testing.T, w *world, src *workloadapi.X509Source) {
	old := jwtSVID(t, w.spire, w.url).Marshal()
	whoami := func() error { _, err := w.bearerClient(t, src, old).WhoAmI(t.Context()); return err }
	if err := whoami(); err != nil {
		t.Fatal(err)
	}
	retired := w.spire.rotate(t, "jwt")
	w.spire.taint(t, "jwt", retired)
	acceptedByNew(t, w, src, old)
	if err := whoami(); err != nil {
		t.Errorf("a token of the old authority, before its revocation: %v", err)
	}
	w.spire.revoke(t, "jwt", retired)
	eventually(t, "the refusal of a token of the revoked authority", 2*time.Minute, func() error {
		return wantRefusal(whoami(), api.Unauthenticated, http.StatusUnauthorized)
	})
}

// acceptedByNew waits until SPIRE issues a JWT-SVID with another key than the old
// one's and the broker accepts it. An agent returns the same JWT-SVID until half
// of its lifetime is over, unless its key is tainted or the agent restarts.
func acceptedByNew(t testing.TB, w *world, src *workloadapi.X509Source, old string) {
	t.Helper()
	eventually(t, "the acceptance of a JWT-SVID of the new authority", 2*time.Minute, func() error {
		svid := jwtSVID(t, w.spire, w.url).Marshal()
		if header(t, svid) == header(t, old) {
			return errors.New("the agent still returns a token of the old authority")
		}
		_, err := w.anonymousClient(t, src).Exchange(t.Context(), withSubject(svid))
		return err
	})
}

// header returns the header of a token, which names its key.
func header(t testing.TB, token string) string {
	t.Helper()
	first, _, _ := strings.Cut(token, ".")
	text, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// testX509Authority rotates the X.509 authority. The revocation of the old one
// also ends connections that were opened before.
func testX509Authority(t *testing.T, w *world, src *workloadapi.X509Source) {
	old := leaf(t, src)
	before := &api.Client{BaseURL: w.url, HTTP: client(t, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{
		Certificate: [][]byte{old.Certificates[0].Raw}, PrivateKey: old.PrivateKey,
	}}}, false)}
	if _, err := before.WhoAmI(t.Context()); err != nil {
		t.Fatal(err)
	}
	retired := w.spire.rotate(t, "x509")
	w.spire.taint(t, "x509", retired)
	eventually(t, "an X.509-SVID of the new authority and its acceptance", 2*time.Minute, func() error {
		if leaf(t, src).Certificates[0].SerialNumber.Cmp(old.Certificates[0].SerialNumber) == 0 {
			return errors.New("the agent still returns the old one")
		}
		_, err := w.mtlsClient(t, src).WhoAmI(t.Context())
		return err
	})
	if _, err := before.WhoAmI(t.Context()); err != nil {
		t.Errorf("a connection of the old authority, before its revocation: %v", err)
	}
	w.spire.revoke(t, "x509", retired)
	eventually(t, "the end of the connection of the revoked authority", 2*time.Minute, func() error {
		_, err := before.WhoAmI(t.Context())
		return wantRefusal(err, api.Unauthenticated, http.StatusUnauthorized)
	})
	if _, err := w.mtlsClient(t, src).WhoAmI(t.Context()); err != nil {
		t.Errorf("with the new authority: %v", err)
	}
}

// testSPIRERestart restarts the server and the agent, as in an upgrade. The broker
// serves calls in the meantime.
func testSPIRERestart(t *testing.T, w *world, src *workloadapi.X509Source) {
	c, old := w.mtlsClient(t, src), jwtSVID(t, w.spire, w.url).Marshal()
	exchange := func(when string) {
		t.Helper()
		if _, err := c.Exchange(t.Context(), reading); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	w.spire.agent.stop()
	w.spire.server.stop()
	exchange("with neither server nor agent")
	w.spire.startServer(t)
	w.spire.startAgent(t)
	exchange("with both back")
	w.spire.rotate(t, "jwt")
	acceptedByNew(t, w, src, old)
}
