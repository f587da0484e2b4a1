package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"accessbroker.internal/api"
)

var ask = api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}

// TestSPIRE runs the flows of one trust domain, one after another.
func TestSPIRE(t *testing.T) {
	s := startSPIRE(t, "acme.test")
	s.register("/agent/triage", self(t))
	w := startBroker(t, s, []string{"acme.test"}, "")
	src := source(t, s)
	t.Run("mTLS", func(t *testing.T) { testMTLS(t, w, src) })
	t.Run("JWT-SVID", func(t *testing.T) { testJWTSVID(t, w, src) })
	t.Run("OAuth client library", func(t *testing.T) { testOAuthLibrary(t, w, src) })
	t.Run("bound token", func(t *testing.T) { testBound(t, w, src) })
	t.Run("command line", func(t *testing.T) { testCommandLine(t, w) })
	t.Run("not entitled", func(t *testing.T) { testNotEntitled(t, w) })
	t.Run("agent down and back", func(t *testing.T) { testAgentDown(t, w, src) })
	t.Run("broker killed", func(t *testing.T) { testKilled(t, w, src) })
}

func testMTLS(t *testing.T, w *world, src *workloadapi.X509Source) {
	client := w.overMTLS(src)
	who, err := client.WhoAmI(t.Context())
	if err != nil || who.ID != "spiffe://acme.test/agent/triage" || who.Kind != "agent" || who.Proof.Method != "x509-svid" {
		t.Fatalf("whoami: %+v, %v", who, err)
	}
	token, err := client.Exchange(t.Context(), api.TokenRequest{Audience: "tickets-api", Scopes: []string{"tickets:read"}})
	if err != nil {
		t.Fatal(err)
	}
	c := claims(t, client, string(token.AccessToken))
	if c["sub"] != who.ID || c["aud"] != audience || c["scope"] != "tickets:read" || c["iss"] != w.url || c["jti"] != token.Lease {
		t.Errorf("the token says %v", c)
	}
}

func testJWTSVID(t *testing.T, w *world, src *workloadapi.X509Source) {
	client := w.anonymous(src)
	svid := jwtSVID(t, w.spire, w.url)
	token, err := client.Exchange(t.Context(), api.TokenRequest{SubjectToken: svid, Audience: "tickets-api", Scopes: []string{"tickets:read", "tickets:comment"}})
	if err != nil {
		t.Fatal(err)
	}
	if c := claims(t, client, string(token.AccessToken)); c["scope"] != "tickets:comment tickets:read" {
		t.Errorf("the token says %v", c)
	}
	for name, bad := range map[string]string{
		"for another audience": jwtSVID(t, w.spire, "https://elsewhere.test"),
		"with its end cut off": svid[:len(svid)-8],
	} {
		if _, err := client.Exchange(t.Context(), api.TokenRequest{SubjectToken: bad, Audience: "tickets-api", Scopes: []string{"tickets:read"}}); err == nil || strings.Contains(err.Error(), bad) {
			t.Errorf("a JWT-SVID %s: %v", name, err)
		}
	}
	both := w.overMTLS(src)
	both.Token = func(context.Context) (string, error) { return svid, nil }
	if _, err := both.WhoAmI(t.Context()); !errors.Is(err, api.TwoIdentities) {
		t.Errorf("two proofs in one call: %v", err)
	}
}

// testOAuthLibrary gets a token by a library that we did not write, over mTLS.
func testOAuthLibrary(t *testing.T, w *world, src *workloadapi.X509Source) {
	config := clientcredentials.Config{
		ClientID: "spiffe://acme.test/agent/triage", TokenURL: w.url + "/oauth2/token",
		Scopes: []string{"tickets:read"}, EndpointParams: url.Values{"audience": {"tickets-api"}}, AuthStyle: oauth2.AuthStyleInParams,
	}
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, w.overMTLS(src).HTTP)
	token, err := config.Token(ctx)
	if err != nil || token.TokenType != "Bearer" || !token.Valid() {
		t.Fatalf("%+v, %v", token, err)
	}
}

func testBound(t *testing.T, w *world, src *workloadapi.X509Source) {
	client := w.overMTLS(src)
	token, err := client.Exchange(t.Context(), api.TokenRequest{Audience: "bound-api", Scopes: []string{"bound:read"}})
	if err != nil {
		t.Fatal(err)
	}
	svid, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	thumbprint := sha256.Sum256(svid.Certificates[0].Raw)
	c := claims(t, client, string(token.AccessToken))
	if want := map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(thumbprint[:])}; fmt.Sprint(c["cnf"]) != fmt.Sprint(want) {
		t.Errorf("cnf is %v, want %v", c["cnf"], want)
	}
	if exp := time.Unix(int64(c["exp"].(float64)), 0); exp.After(svid.Certificates[0].NotAfter) {
		t.Errorf("the token lives until %s, its certificate until %s", exp, svid.Certificates[0].NotAfter)
	}
	jwt := jwtSVID(t, w.spire, w.url)
	if _, err := w.anonymous(src).Exchange(t.Context(), api.TokenRequest{SubjectToken: jwt, Audience: "bound-api", Scopes: []string{"bound:read"}}); !errors.Is(err, api.BindingRequiresMTLS) {
		t.Errorf("a bound token without a certificate: %v", err)
	}
}

func testCommandLine(t *testing.T, w *world) {
	bin := copyOf(t, w.bin, "agent")
	w.spire.register("/agent/cli", bin)
	eventually(t, "the command line's identity", time.Minute, func() error {
		out, errs, code := w.cli(bin, nil, "whoami")
		if code != 0 || !strings.Contains(out, "spiffe://acme.test/agent/cli") {
			return fmt.Errorf("%d: %s%s", code, out, errs)
		}
		return nil
	})
	out, errs, code := w.cli(bin, nil, "exec", "tickets-api", "--scope", "tickets:read", "--", "sh", "-c", `test -n "$BROKER_ACCESS_TOKEN" && echo $BROKER_LEASE && exit 9`)
	if code != 9 || !regexp.MustCompile(`^lse_[0-9a-v]{26}\n$`).MatchString(out) {
		t.Fatalf("exec: %d: %s%s", code, out, errs)
	}
	list, _, _ := w.cli(bin, nil, "leases", "-o", "json")
	if !strings.Contains(list, strings.TrimSpace(out)) || !strings.Contains(list, `"status": "revoked"`) {
		t.Errorf("exec did not give its lease back: %s", list)
	}
}

func testNotEntitled(t *testing.T, w *world) {
	bin := copyOf(t, w.bin, "stranger")
	w.spire.register("/stranger", bin)
	eventually(t, "the stranger's refusal", time.Minute, func() error {
		_, errs, code := w.cli(bin, nil, "request", "tickets-api", "--scope", "tickets:read")
		if code != 3 || !strings.Contains(errs, "denied") {
			return fmt.Errorf("%d: %s", code, errs)
		}
		return nil
	})
	records, _, _ := w.cli(bin, nil, "audit", "show", filepath.Join(w.dir, "broker.db"), "--kind", "request.denied")
	if !strings.Contains(records, "spiffe://acme.test/stranger") {
		t.Errorf("the denial is not in the log: %s", records)
	}
}

// testAgentDown stops SPIRE's agent: the broker goes on with what it knows,
// and recovers by itself when the agent is back.
func testAgentDown(t *testing.T, w *world, src *workloadapi.X509Source) {
	client, svid := w.overMTLS(src), jwtSVID(t, w.spire, w.url)
	w.spire.agent.stop()
	if _, _, err := client.AskAndCollect(t.Context(), ask); err != nil {
		t.Errorf("mTLS without the agent: %v", err)
	}
	if _, err := w.anonymous(src).Exchange(t.Context(), api.TokenRequest{SubjectToken: svid, Audience: "tickets-api", Scopes: []string{"tickets:read"}}); err != nil {
		t.Errorf("a JWT-SVID without the agent: %v", err)
	}
	w.spire.startAgent()
	eventually(t, "the broker's being ready again", time.Minute, w.ready)
	eventually(t, "a new JWT-SVID's acceptance", time.Minute, func() error {
		_, err := w.anonymous(src).Exchange(t.Context(), api.TokenRequest{SubjectToken: jwtSVID(t, w.spire, w.url), Audience: "tickets-api", Scopes: []string{"tickets:read"}})
		return err
	})
}

// testKilled kills the broker in the middle of a stream of calls: everything
// that was answered is in the log.
func testKilled(t *testing.T, w *world, src *workloadapi.X509Source) {
	client := w.overMTLS(src)
	answered := make(chan string, 100_000)
	for range 8 {
		go func() {
			for {
				credential, _, err := client.AskAndCollect(t.Context(), ask)
				if err != nil {
					answered <- ""
					return
				}
				answered <- credential.Lease
			}
		}()
	}
	var leases []string
	for range 200 {
		leases = append(leases, <-answered)
	}
	if err := w.broker.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for ended := 0; ended < 8; {
		if lease := <-answered; lease != "" {
			leases = append(leases, lease)
		} else {
			ended++
		}
	}
	w.start()
	for _, lease := range leases[len(leases)-100:] {
		if l, err := client.Lease(t.Context(), lease); err != nil || l.Status != api.LeaseActive {
			t.Fatalf("lease %s was answered and is %+v, %v", lease, l, err)
		}
	}
}

// TestRotation streams calls while the SVIDs of both sides are rotated: none
// fails.
func TestRotation(t *testing.T) {
	s := startSPIRE(t, "acme.test")
	s.register("/agent/triage", self(t), "-x509SVIDTTL", "40")
	w := startBroker(t, s, []string{"acme.test"}, "", "-x509SVIDTTL", "40")
	src := source(t, s)
	client := w.overMTLS(src)
	ctx, cancel := context.WithCancel(t.Context())
	var calls, failed atomic.Int64
	var first atomic.Pointer[error]
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if _, _, err := client.AskAndCollect(ctx, ask); err != nil && ctx.Err() == nil {
				failed.Add(1)
				first.CompareAndSwap(nil, &err)
			}
			calls.Add(1)
		}
	}()
	mine, theirs := serials(t, w, src)
	eventually(t, "two rotations on both sides", 3*time.Minute, func() error {
		m, b := serials(t, w, src)
		mine, theirs = merge(mine, m), merge(theirs, b)
		if len(mine) < 3 || len(theirs) < 3 {
			return fmt.Errorf("%d and %d certificates were seen", len(mine), len(theirs))
		}
		return nil
	})
	cancel()
	<-done
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d calls failed over the rotation, the first with: %v", n, calls.Load(), *first.Load())
	}
	t.Logf("%d calls over two rotations on both sides, none failed", calls.Load())
}

// serials gives the serial numbers of our certificate and of the broker's.
func serials(t *testing.T, w *world, src *workloadapi.X509Source) (mine, theirs map[string]bool) {
	t.Helper()
	svid, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return map[string]bool{svid.Certificates[0].SerialNumber.String(): true},
		map[string]bool{conn.ConnectionState().PeerCertificates[0].SerialNumber.String(): true}
}

func merge(a, b map[string]bool) map[string]bool {
	for k := range b {
		a[k] = true
	}
	return a
}

// TestFederation lets workloads of another trust domain in, if it is listed
// and a policy names it; a bundle that was delivered is not enough.
func TestFederation(t *testing.T) {
	acme, supplier := startSPIRE(t, "acme.test"), startSPIRE(t, "supplier.test")
	acme.federate(supplier)
	supplier.federate(acme)
	supplier.register("/sync", self(t), "-federatesWith", "spiffe://acme.test")
	listed := startBroker(t, acme, []string{"acme.test", "supplier.test"}, supplierPolicy, "-federatesWith", "spiffe://supplier.test")
	src := source(t, supplier)
	exchange := func(w *world, scope string) error {
		_, err := w.overMTLS(src).Exchange(t.Context(), api.TokenRequest{Audience: "tickets-api", Scopes: []string{scope}})
		return err
	}
	if err := exchange(listed, "tickets:read"); err != nil {
		t.Errorf("a supplier's workload: %v", err)
	}
	svid := jwtSVID(t, supplier, listed.url)
	if _, err := listed.anonymous(src).Exchange(t.Context(), api.TokenRequest{SubjectToken: svid, Audience: "tickets-api", Scopes: []string{"tickets:read"}}); err != nil {
		t.Errorf("a supplier's JWT-SVID: %v", err)
	}
	if err := exchange(listed, "tickets:comment"); !errors.Is(err, api.Denied) {
		t.Errorf("a supplier's workload asks for more than its policy names: %v", err)
	}
	unlisted := startBroker(t, acme, []string{"acme.test"}, "", "-federatesWith", "spiffe://supplier.test")
	if err := exchange(unlisted, "tickets:read"); err == nil {
		t.Error("a trust domain that is not listed may authenticate, because its bundle was delivered")
	}
	svid = jwtSVID(t, supplier, unlisted.url)
	if _, err := unlisted.anonymous(src).Exchange(t.Context(), api.TokenRequest{SubjectToken: svid, Audience: "tickets-api", Scopes: []string{"tickets:read"}}); err == nil {
		t.Error("a JWT-SVID of a trust domain that is not listed is accepted")
	}
}

// TestBundleRotation rotates SPIRE's authorities: what the new ones sign is
// accepted, and once an old one is revoked, what it signed is not.
func TestBundleRotation(t *testing.T) {
	s := startSPIRE(t, "acme.test")
	s.register("/agent/triage", self(t))
	w := startBroker(t, s, []string{"acme.test"}, "")
	src := source(t, s)
	exchange := func(svid string) error {
		_, err := w.anonymous(src).Exchange(t.Context(), api.TokenRequest{SubjectToken: svid, Audience: "tickets-api", Scopes: []string{"tickets:read"}})
		return err
	}
	old := jwtSVID(t, s, w.url)
	if err := exchange(old); err != nil {
		t.Fatal(err)
	}
	retired := authority(t, s.must("localauthority", "jwt", "show"), "Active")
	s.must("localauthority", "jwt", "prepare")
	prepared := authority(t, s.must("localauthority", "jwt", "show"), "Prepared")
	s.must("localauthority", "jwt", "activate", "-authorityID", prepared)
	// The agent keeps JWT-SVIDs until half of their life is over; another
	// audience is another token.
	s.must("localauthority", "jwt", "taint", "-authorityID", retired)
	eventually(t, "a JWT-SVID by the new authority", time.Minute, func() error {
		fresh := jwtSVID(t, s, w.url)
		if keyID(t, fresh) == keyID(t, old) {
			return errors.New("the agent still gives out the old one")
		}
		return exchange(fresh)
	})
	s.must("localauthority", "jwt", "revoke", "-authorityID", retired)
	eventually(t, "the refusal of what the revoked authority signed", time.Minute, func() error {
		if err := exchange(old); err == nil {
			return errors.New("it is still accepted")
		}
		return nil
	})
	testX509Authority(t, w, src)
}

// testX509Authority does the same with X.509: a connection that was made
// before ends with its authority.
func testX509Authority(t *testing.T, w *world, src *workloadapi.X509Source) {
	s := w.spire
	svid, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	stale := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{
		Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey,
	}}}}
	t.Cleanup(stale.CloseIdleConnections)
	before := &api.Client{BaseURL: w.url, HTTP: &http.Client{Transport: stale, Timeout: 20 * time.Second}}
	if _, err := before.WhoAmI(t.Context()); err != nil {
		t.Fatal(err)
	}
	retired := authority(t, s.must("localauthority", "x509", "show"), "Active")
	s.must("localauthority", "x509", "prepare")
	prepared := authority(t, s.must("localauthority", "x509", "show"), "Prepared")
	s.must("localauthority", "x509", "activate", "-authorityID", prepared)
	s.must("localauthority", "x509", "taint", "-authorityID", retired)
	eventually(t, "an X.509-SVID by the new authority", time.Minute, func() error {
		fresh, err := src.GetX509SVID()
		if err == nil && fresh.Certificates[0].SerialNumber.Cmp(svid.Certificates[0].SerialNumber) == 0 {
			err = errors.New("the agent still gives out the old one")
		}
		if err != nil {
			return err
		}
		_, err = w.overMTLS(src).WhoAmI(t.Context())
		return err
	})
	s.must("localauthority", "x509", "revoke", "-authorityID", retired)
	eventually(t, "the end of the connection by the revoked authority", time.Minute, func() error {
		if _, err := before.WhoAmI(t.Context()); err == nil {
			return errors.New("it is still accepted")
		}
		return nil
	})
	if _, err := w.overMTLS(src).WhoAmI(t.Context()); err != nil {
		t.Errorf("by the new authority: %v", err)
	}
}

// authority finds the id of an authority in what spire-server prints.
func authority(t *testing.T, out, state string) string {
	t.Helper()
	m := regexp.MustCompile(state + ` [^\n]*authority:\n\s+Authority ID: (\S+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no %s authority in:\n%s", state, out)
	}
	return m[1]
}

func keyID(t *testing.T, token string) string {
	t.Helper()
	header, err := base64.RawURLEncoding.DecodeString(token[:strings.IndexByte(token, '.')])
	if err != nil {
		t.Fatal(err)
	}
	return string(header)
}
