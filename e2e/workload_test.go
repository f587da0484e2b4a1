package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// workloadEnv is the environment variable that turns the test binary into a
// workload: it fetches its SVIDs, prints them as JSON and exits. The variable
// holds the audience of the JWT-SVID. Copies of the binary are different
// workloads.
const workloadEnv = "E2E_WORKLOAD_AUDIENCE"

// svids are the SVIDs of a workload. Both were verified against the bundles of the
// same response.
type svids struct {
	X509ID string
	JWTID  string
	Token  string // the JWT-SVID
}

// workloadMain is the main function of a workload. It returns the exit code.
func workloadMain(audience string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	got, err := fetchSVIDs(ctx, audience)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(got)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func fetchSVIDs(ctx context.Context, audience string) (*svids, error) {
	x509, err := workloadapi.FetchX509Context(ctx)
	if err != nil {
		return nil, fmt.Errorf("getting an X.509-SVID: %w", err)
	}
	x509ID, _, err := x509svid.Verify(x509.DefaultSVID().Certificates, x509.Bundles)
	if err != nil {
		return nil, fmt.Errorf("verifying the X.509-SVID: %w", err)
	}
	token, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return nil, fmt.Errorf("getting a JWT-SVID: %w", err)
	}
	bundles, err := workloadapi.FetchJWTBundles(ctx)
	if err != nil {
		return nil, fmt.Errorf("getting the JWT bundles: %w", err)
	}
	verified, err := jwtsvid.ParseAndValidate(token.Marshal(), bundles, []string{audience})
	if err != nil {
		return nil, fmt.Errorf("verifying the JWT-SVID: %w", err)
	}
	return &svids{X509ID: x509ID.String(), JWTID: verified.ID.String(), Token: token.Marshal()}, nil
}

// runWorkload runs a workload once.
func (s *spire) runWorkload(binary, audience string) (*svids, error) {
	cmd := exec.Command(binary)
	cmd.Env = slices.Concat(os.Environ(), s.environment(), []string{workloadEnv + "=" + audience})
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		return nil, fmt.Errorf("running a workload: %w: %s", err, exit.Stderr)
	}
	got := new(svids)
	if err == nil {
		err = json.Unmarshal(out, got)
	}
	return got, err
}

// workload registers a workload with that path and returns its SVIDs once the agent
// knows it.
func (s *spire) workload(t testing.TB, path, audience string) (got *svids) {
	t.Helper()
	bin := copyBinary(t, ownBinary(t), "workload")
	s.register(t, path, bin)
	eventually(t, "the identity of "+path, time.Minute, func() (err error) {
		got, err = s.runWorkload(bin, audience)
		return err
	})
	return got
}

// source returns the X.509-SVIDs of the test binary, as soon as the agent has
// them.
func source(t testing.TB, s *spire) *workloadapi.X509Source {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	src, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(s.socket())))
	if err != nil {
		t.Fatalf("getting an X.509-SVID: %v", err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

// leaf returns the current SVID of a source.
func leaf(t testing.TB, src *workloadapi.X509Source) *x509svid.SVID {
	t.Helper()
	svid, err := src.GetX509SVID()
	if err != nil {
		t.Fatalf("getting an X.509-SVID: %v", err)
	}
	return svid
}

// jwtSVID fetches a JWT-SVID of the test binary for an audience.
func jwtSVID(t testing.TB, s *spire, audience string) *jwtsvid.SVID {
	t.Helper()
	svid, err := workloadapi.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: audience}, workloadapi.WithAddr(s.socket()))
	if err != nil {
		t.Fatalf("getting a JWT-SVID: %v", err)
	}
	return svid
}

var brokerID = spiffeid.RequireFromString("spiffe://acme.test/broker")

// TestHarness checks the assumptions of all other tests, without a broker:
// workloads of one user have different identities, an unregistered one has none,
// and both servers come back after a restart.
func TestHarness(t *testing.T) {
	t.Parallel() // it mostly waits
	const audience = "https://anybody.test"
	s := startSPIRE(t, "acme.test")
	for _, path := range []string{"/one", "/two"} {
		if got := s.workload(t, path, audience); got.X509ID != s.id(path) || got.JWTID != s.id(path) {
			t.Errorf("the workload of %s is %s by X.509 and %s by JWT", path, got.X509ID, got.JWTID)
		}
	}
	if _, err := s.runWorkload(copyBinary(t, ownBinary(t), "nobody"), audience); err == nil || !strings.Contains(err.Error(), "no identity issued") {
		t.Errorf("a workload that is not registered: %v", err)
	}
	s.agent.stop()
	s.server.stop()
	s.startServer(t)
	s.startAgent(t)
	if got := s.workload(t, "/three", audience); got.X509ID != s.id("/three") {
		t.Errorf("after a restart, the workload of /three is %s", got.X509ID)
	}
}
