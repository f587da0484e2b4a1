package attest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const report = "spiffe://acme.test/service/report"

// served serves identities until the test ends and returns the address.
func served(t *testing.T, ids ...string) string {
	t.Helper()
	ca, other := newCA(t, "acme.test"), newCA(t, "supplier.test")
	check(t, ca.Federate("supplier.test", must(other.Bundle())))
	socket := filepath.Join(t.TempDir(), "agent.sock")
	serveAgent(t, ca, socket, ids...)
	return "unix://" + socket
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// longer returns the error of a fetch that waits until its context ends. It repeats a fetch
// with more time until the error is the wanted one: a busy machine may take long to answer.
func longer(t *testing.T, want string, fetch func(context.Context) error) (err error) {
	t.Helper()
	for d := 300 * time.Millisecond; d < time.Minute; d *= 4 {
		if err = fetch(within(t, d)); err == nil || strings.Contains(err.Error(), want) {
			return err
		}
	}
	return err
}

func TestFetchJWT(t *testing.T) {
	t.Parallel()
	address := served(t, triage, report)
	audiences := []string{audienceURL, "https://api.acme.test"}
	for id, want := range map[string][]string{"": {triage, report}, report: {report}} {
		all, err := FetchJWT(t.Context(), address, id, audiences)
		check(t, err)
		var got []string
		for _, s := range all {
			got = append(got, s.ID)
			if !slices.Equal(s.Audience, audiences) || !s.Expires.After(time.Now()) || strings.Count(s.Token, ".") != 2 {
				t.Errorf("%s: got %+v", s.ID, s)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", id, got, want)
		}
	}
	if _, err := FetchJWT(t.Context(), address, "report", audiences); err == nil || !strings.Contains(err.Error(), `the SPIFFE ID "report" is not a SPIFFE ID`) {
		t.Errorf("a malformed ID: got %v", err)
	}
}

func TestFetchX509(t *testing.T) {
	t.Parallel()
	all, err := FetchX509(t.Context(), served(t, triage, report))
	check(t, err)
	if len(all) != 2 || all[0].ID != triage || all[1].ID != report {
		t.Fatalf("got %d identities: %+v", len(all), all)
	}
	for _, s := range all {
		pair, err := tls.X509KeyPair(s.Certificate, s.Key)
		check(t, err)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(s.Bundle)
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s: %v", s.ID, err)
		}
		if domains := slices.Collect(maps.Keys(s.Federated)); !slices.Equal(domains, []string{"supplier.test"}) || !s.Expires.Equal(pair.Leaf.NotAfter) {
			t.Errorf("%s: got federated bundles of %q, expiry %s", s.ID, domains, s.Expires)
		}
		if block, rest := pem.Decode(s.Federated["supplier.test"]); block == nil || len(rest) > 0 {
			t.Errorf("%s: the federated bundle is not one certificate", s.ID)
		}
	}
}

// Fetching ends with its context, and names the cause.
func TestFetchFails(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("unix", filepath.Join(t.TempDir(), "silent.sock"))
	check(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	known := served(t, triage)
	for name, test := range map[string]struct{ address, id, want string }{
		"no identity":     {served(t), "", "the agent has no identity for this process"},
		"other identity":  {known, report, "fetching a JWT-SVID of " + report + " from"},
		"no agent":        {"unix://" + filepath.Join(t.TempDir(), "none.sock"), "", "the agent does not respond"},
		"silent agent":    {"unix://" + silent.Addr().String(), "", "the agent does not respond"},
		"wrong address":   {"agent.sock", "", "write one such as unix:///run/spire/agent.sock"},
		"address of http": {"https://acme.test", "", "write one such as unix:///run/spire/agent.sock"},
	} {
		err := longer(t, test.want, func(ctx context.Context) error {
			_, err := FetchJWT(ctx, test.address, test.id, []string{audienceURL})
			return err
		})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: JWT: got %v, want %q", name, err, test.want)
		}
		if test.id != "" {
			continue
		}
		err = longer(t, test.want, func(ctx context.Context) error {
			_, err := FetchX509(ctx, test.address)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: X.509: got %v, want %q", name, err, test.want)
		}
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if _, err := FetchX509(stopped, known); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: got %v", err)
	}
}

// The cause is that of the last attempt which got an answer.
func TestMoreTelling(t *testing.T) {
	t.Parallel()
	denied, late := status.Error(codes.PermissionDenied, "no identity issued"), status.Error(codes.DeadlineExceeded, "late")
	for _, test := range []struct{ err, before, want error }{{denied, nil, denied}, {late, denied, denied}, {late, nil, late}, {denied, late, denied}, {nil, denied, nil}} {
		if got := moreTelling(test.err, test.before); got != test.want {
			t.Errorf("%v after %v: got %v", test.err, test.before, got)
		}
	}
}

// A registration that reaches the agent during the wait is enough.
func TestFetchWaitsForTheAgent(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	got := make(chan error, 1)
	go func() {
		_, err := FetchX509(within(t, time.Minute), "unix://"+socket)
		got <- err
	}()
	ca := newCA(t, "acme.test")
	stop := serveAgent(t, ca, socket) // without a registration
	stop()
	serveAgent(t, ca, socket, triage)
	check(t, <-got)
}

// An agent whose answer is not usable is refused at once.
func TestFetchRefusesUnusableAnswers(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "acme.test")
	one, two := must(ca.X509SVID(triage, time.Hour)), must(ca.X509SVID(triage, time.Hour))
	key := must(x509.MarshalPKCS8PrivateKey(two.PrivateKey))
	own := must(x509.MarshalPKCS8PrivateKey(one.PrivateKey))
	good := &workload.X509SVID{SpiffeId: triage, X509Svid: one.Certificate[0], X509SvidKey: own, Bundle: ca.X509Authority().Raw}
	if _, err := readX509(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{good}}); err != nil {
		t.Fatal(err)
	}
	for name, response := range map[string]*workload.X509SVIDResponse{
		"none":             {},
		"key of another":   {Svids: []*workload.X509SVID{{SpiffeId: triage, X509Svid: one.Certificate[0], X509SvidKey: key, Bundle: good.Bundle}}},
		"no key":           {Svids: []*workload.X509SVID{{SpiffeId: triage, X509Svid: one.Certificate[0], Bundle: good.Bundle}}},
		"no certificate":   {Svids: []*workload.X509SVID{{SpiffeId: triage, X509Svid: []byte("junk"), X509SvidKey: own, Bundle: good.Bundle}}},
		"malformed bundle": {Svids: []*workload.X509SVID{{SpiffeId: triage, X509Svid: one.Certificate[0], X509SvidKey: own, Bundle: []byte("junk")}}},
		"federated":        {Svids: []*workload.X509SVID{good}, FederatedBundles: map[string][]byte{"spiffe://b.test": []byte("junk")}},
		"federated name":   {Svids: []*workload.X509SVID{good}, FederatedBundles: map[string][]byte{"B test": nil}},
	} {
		if all, err := FetchX509(within(t, 20*time.Second), answering(t, response)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: got %+v, %v", name, all, err)
		} else if strings.Contains(err.Error(), string(own)) {
			t.Errorf("%s: the error has the key", name)
		}
	}
}

// answering serves one answer and returns the address.
func answering(t *testing.T, response *workload.X509SVIDResponse) (address string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "a.sock"))
	check(t, err)
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, oneAnswer{response: response})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); check(t, <-done) })
	return "unix://" + l.Addr().String()
}

type oneAnswer struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	response *workload.X509SVIDResponse
}

func (a oneAnswer) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return stream.Send(a.response)
}
