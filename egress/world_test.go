package egress_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
)

// token is the credential of the tests.
const token = "s3cr3t-t0ken-that-no-answer-contains"

// A world is a host on loopback, and a Transport that may call it.
type world struct {
	t         testing.TB
	host      *httptest.Server
	transport *egress.Transport
	offer     api.Offer

	mu       sync.Mutex
	outcomes []egress.Outcome
	records  []egress.Call
	recorded func(lease string, c egress.Call) error // nil: recorded
}

// newWorld starts a host with TLS. Its rules allow GET and POST below /v1/, and edit
// changes them.
func newWorld(t testing.TB, h http.Handler, edit func(*api.Egress)) *world {
	t.Helper()
	w := &world{t: t, host: httptest.NewUnstartedServer(h)}
	w.host.EnableHTTP2 = true
	w.host.StartTLS()
	t.Cleanup(w.host.Close)
	rules := rulesFor(strings.TrimPrefix(w.host.URL, "https://"))
	if edit != nil {
		edit(rules)
	}
	w.offer = api.Offer{Entitlement: "widgets", Egress: rules}
	w.transport = newTransport(t, w, w.offer)
	return w
}

// newBenchWorld starts a host that answers with 4 KiB.
func newBenchWorld(b *testing.B) *world {
	b.Helper()
	answer := bytes.Repeat([]byte("x"), 4<<10)
	return newWorld(b, http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { _, _ = out.Write(answer) }), nil)
}

func rulesFor(host string) *api.Egress {
	return &api.Egress{
		Inject: api.Injection{As: api.InjectBearer},
		Allow: []api.EgressRule{{
			Hosts: []string{host}, Methods: []string{"GET", "POST"}, Paths: []string{"/v1/**"}, Addresses: []string{"127.0.0.0/8"},
		}},
		MaxRequest: 1 << 20, MaxAnswer: 1 << 20, Timeout: api.Duration(30 * time.Second), IdleTimeout: api.Duration(10 * time.Second),
	}
}

func newTransport(t testing.TB, w *world, offers ...api.Offer) *egress.Transport {
	t.Helper()
	policy, err := egress.Compile(offers)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(w.host.Certificate())
	out := &egress.Transport{Policy: func() *egress.Policy { return policy }, Credentials: credentials{"token": token}, Meter: w, Roots: roots}
	t.Cleanup(out.CloseIdleConnections)
	return out
}

// credentials supply the same secret for each entitlement.
type credentials api.Secret

func (c credentials) Credential(_ context.Context, entitlement string) (*api.Credential, error) {
	return &api.Credential{Lease: "lse_" + entitlement, Entitlement: entitlement, Type: "bearer", Secret: api.Secret(c), ExpiresAt: time.Now().Add(time.Hour)}, nil
}

func (credentials) Held() []*api.Credential { return nil }

func (credentials) Rejected(context.Context, *api.Credential) bool { return false }

// Announce implements egress.Meter.
func (w *world) Announce(_ context.Context, lease string, c egress.Call) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, c)
	if w.recorded != nil {
		return w.recorded(lease, c)
	}
	return nil
}

// Count implements egress.Meter.
func (w *world) Count(o egress.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcomes = append(w.outcomes, o)
}

// call makes a call and returns the answer with its body.
func (w *world) call(method, url, body string, header http.Header) (*http.Response, string, error) {
	w.t.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, url, content)
	if err != nil {
		return nil, "", err
	}
	for name, values := range header {
		r.Header[name] = values
	}
	resp, err := w.transport.RoundTrip(r)
	if err != nil {
		return nil, "", err
	}
	text, err := io.ReadAll(resp.Body)
	if err := resp.Body.Close(); err != nil {
		w.t.Error(err)
	}
	return resp, string(text), err
}
