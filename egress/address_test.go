package egress_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
)

// A lookup is a resolver that knows every host. Its answers change with each question.
type lookup struct {
	answers [][]string
	asked   atomic.Int32
}

func (l *lookup) LookupNetIP(context.Context, string, string) (list []netip.Addr, err error) {
	n := int(l.asked.Add(1)) - 1
	for _, a := range l.answers[min(n, len(l.answers)-1)] {
		list = append(list, netip.MustParseAddr(a))
	}
	if list == nil {
		err = &net.DNSError{Err: "no such host", IsNotFound: true}
	}
	return list, err
}

// dialed returns the addresses that a call connects to.
func dialed(t *testing.T, resolver egress.Resolver, host string, networks ...string) (addresses []string, err error) {
	t.Helper()
	policy := compile(t, offer("a", func(e *api.Egress) { e.Allow[0].Addresses = networks }, host))
	transport := &egress.Transport{
		Policy: func() *egress.Policy { return policy }, Credentials: credentials{"token": token}, Resolver: resolver,
		Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			addresses = append(addresses, address)
			return nil, errors.New("no connection in this test")
		},
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/v1/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(r)
	if err == nil {
		_ = resp.Body.Close()
	}
	return addresses, err
}

func TestAddressesThatAreNotPublicAreRefused(t *testing.T) {
	for _, address := range []string{
		"127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "169.254.170.2", "192.0.0.192", "100.100.100.200", "168.63.129.16", "198.18.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "febf::1", "fec0::1", "ff02::1", "::ffff:0:127.0.0.1",
	} {
		if got, err := dialed(t, &lookup{answers: [][]string{{address}}}, "api.acme.test"); codeOf(err) != egress.CodeAddress || len(got) > 0 {
			t.Errorf("%s: connected to %v, %v", address, got, err)
		}
	}
	for _, address := range []string{"1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"} {
		if got, err := dialed(t, &lookup{answers: [][]string{{address}}}, "api.acme.test"); len(got) != 1 || codeOf(err) != egress.CodeUnreachable {
			t.Errorf("%s: connected to %v, %v", address, got, err)
		}
	}
}

func TestNamedAddressesAreReached(t *testing.T) {
	for _, c := range []struct {
		address string
		named   []string
		reached bool
	}{
		{"127.0.0.1", []string{"127.0.0.0/8"}, true}, {"::ffff:127.0.0.1", []string{"127.0.0.0/8"}, true}, {"10.1.2.3", []string{"10.1.0.0/16"}, true}, {"10.2.2.3", []string{"10.1.0.0/16"}, false},
		{"fd00::1", []string{"fc00::/7"}, true}, {"fd00:ec2::254", []string{"fc00::/7"}, false}, {"169.254.169.254", []string{"169.254.0.0/16"}, false}, {"169.254.169.254", []string{"169.254.169.254"}, true},
		{"64:ff9b::7f00:1", []string{"127.0.0.0/8"}, false}, {"127.0.0.1", []string{"10.0.0.0/8"}, false}, {"::1", []string{"::1"}, true},
	} {
		got, err := dialed(t, &lookup{answers: [][]string{{c.address}}}, "api.acme.test", c.named...)
		if (len(got) == 1) != c.reached || c.reached == (codeOf(err) == egress.CodeAddress) {
			t.Errorf("%s with %v: connected to %v, %v; want reached: %t", c.address, c.named, got, err, c.reached)
		}
	}
}

// An answer with a public and a local address is refused as a whole, in any order.
func TestMixedAnswersAreRefused(t *testing.T) {
	for _, answer := range [][]string{{"1.1.1.1", "127.0.0.1"}, {"127.0.0.1", "1.1.1.1"}, {"1.1.1.1", "1.0.0.1", "::1"}, {"2606:4700::1111", "::ffff:10.0.0.1"}} {
		if got, err := dialed(t, &lookup{answers: [][]string{answer}}, "api.acme.test"); codeOf(err) != egress.CodeAddress || len(got) > 0 {
			t.Errorf("%v: connected to %v, %v", answer, got, err)
		}
	}
}

// DNS that changes between check and call has no effect: there is one question, and the
// connection goes to its answer.
func TestAddressIsPinned(t *testing.T) {
	l := &lookup{answers: [][]string{{"1.1.1.1"}, {"127.0.0.1"}}}
	got, err := dialed(t, l, "api.acme.test")
	if len(got) != 1 || got[0] != "1.1.1.1:443" || l.asked.Load() != 1 {
		t.Errorf("connected to %v after %d questions, %v", got, l.asked.Load(), err)
	}
	if got, err := dialed(t, l, "api.acme.test"); codeOf(err) != egress.CodeAddress || len(got) > 0 {
		t.Errorf("the next call: connected to %v, %v", got, err)
	}
}

func TestHostsWithoutAddress(t *testing.T) {
	if _, err := dialed(t, &lookup{answers: [][]string{nil}}, "api.acme.test"); codeOf(err) != egress.CodeUnreachable || !strings.Contains(err.Error(), "has no address") {
		t.Errorf("got %v", err)
	}
}

// A literal address in a rule must be named in addresses, too.
func TestLiteralAddresses(t *testing.T) {
	none := &lookup{answers: [][]string{nil}}
	if got, err := dialed(t, none, "127.0.0.1:8443"); codeOf(err) != egress.CodeAddress || len(got) > 0 {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := dialed(t, none, "[::1]:8443", "::1"); len(got) != 1 || got[0] != "[::1]:8443" || none.asked.Load() > 0 {
		t.Errorf("got %v, %v, %d questions", got, err, none.asked.Load())
	}
}

// Connections that one rule may use are not used under a rule without their address.
func TestConnectionsAreNotSharedBetweenRules(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil)
	strict := w.offer
	rules := *w.offer.Egress
	rules.Allow = []api.EgressRule{{Hosts: rules.Allow[0].Hosts, Methods: []string{"GET"}, Paths: []string{"/v2/**"}}}
	strict.Entitlement, strict.Egress = "strict", &rules
	w.transport = newTransport(t, w, w.offer, strict)
	if _, _, err := w.call("GET", w.host.URL+"/v1/x", "", nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.call("GET", w.host.URL+"/v2/x", "", nil); codeOf(err) != egress.CodeAddress {
		t.Errorf("got %v, want %s", err, egress.CodeAddress)
	}
}
