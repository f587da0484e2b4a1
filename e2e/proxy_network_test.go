package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

const farName = "far.acme.test"

// TestProxyPinsAddresses calls hosts in network namespaces of their own, whose name server
// answers differently from one question to the next. Both hosts have a certificate for the
// name, so that only the checked address keeps a call from the wrong one.
func TestProxyPinsAddresses(t *testing.T) {
	t.Parallel() // it mostly waits
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	dir := t.TempDir()
	ca, cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	loopbackTLS(t, ca, cert, key, farName)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	named, other := startFarHost(t, pair), startFarHost(t, pair)
	p := startProxied(t, fmt.Sprintf(`
  far:
    issuer: tickets
    scopes: [far:use]
    default_scopes: [far:use]
    egress: {inject: {as: bearer}, allow: [{hosts: ["%s:%d"], methods: [GET], paths: [/**], addresses: ["%s/32"]}]}
`, farName, farPort, named.address))
	for _, file := range []string{p.up.caFile, ca} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := appendTo(filepath.Join(p.home, "roots.pem"), text); err != nil {
			t.Fatal(err)
		}
	}
	p.up.caFile = filepath.Join(p.home, "roots.pem")
	names := startNames(t)
	resolver := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolver, fmt.Appendf(nil, "nameserver %s\noptions timeout:20 attempts:1\n", names.address), 0o600); err != nil {
		t.Fatal(err)
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	for _, test := range []struct {
		name    string
		answers [][]netip.Addr // to one question after the other; the last one repeats
		passes  bool
	}{
		{"one address", [][]netip.Addr{{named.address}}, true},
		{"another address after the check", [][]netip.Addr{{named.address}, {other.address}}, true},
		{"loopback after the check", [][]netip.Addr{{named.address}, {loopback}}, true},
		{"another address", [][]netip.Addr{{other.address}}, false},
		{"both addresses", [][]netip.Addr{{named.address, other.address}}, false},
		{"loopback", [][]netip.Addr{{loopback}}, false},
		{"the metadata service", [][]netip.Addr{{netip.MustParseAddr("169.254.169.254")}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			names.answers.Store(&test.answers)
			names.asked.Store(0)
			before := named.accepted.Load()
			args := []string{"sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolver,
				"broker", "proxy", "-q", "--upstream-ca", p.up.caFile, "--entitlement", "far", "--why", "a test", "--",
				"curl", "-sS", "--fail-with-body", fmt.Sprintf("https://%s:%d/", farName, farPort)}
			out, errs, err := outputOf(p.inside(args...))
			if reached := named.accepted.Load() > before; reached != test.passes || (err == nil) != test.passes {
				t.Errorf("the call reached the host: %v, want %v; got %v, %s%s", reached, test.passes, err, out, errs)
			}
			if test.passes {
				wantAll(t, out, "Bearer ****")
			} else {
				wantAll(t, out, "an address that is not public")
			}
			if names.asked.Load() == 0 {
				t.Error("the name server got no question")
			}
		})
	}
	if n := other.accepted.Load(); n != 0 {
		t.Errorf("the host whose address no rule names got %d connections", n)
	}
}

func appendTo(file string, text []byte) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// farPort is the port of all far hosts: each has a network of its own.
const farPort = 8443

// A farHost is an HTTPS server in a network namespace, which repeats its credential.
type farHost struct {
	address  netip.Addr
	accepted atomic.Int32
}

func startFarHost(t *testing.T, pair tls.Certificate) *farHost {
	t.Helper()
	id := strings.ToLower(rand.Text()[:8])
	var octets [2]byte
	_, _ = rand.Read(octets[:])
	near := netip.AddrFrom4([4]byte{10, 200 + octets[0]%50, octets[1], 1})
	h := &farHost{address: near.Next()}
	program := installed(t, "ip")
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("netns", "add", "far"+id)
	t.Cleanup(func() { _ = exec.Command(program, "netns", "del", "far"+id).Run() }) // with its end of the link, and so the other one
	ip("link", "add", "near"+id, "type", "veth", "peer", "name", "far"+id, "netns", "far"+id)
	ip("addr", "add", near.String()+"/30", "dev", "near"+id)
	ip("link", "set", "near"+id, "up")
	ip("-n", "far"+id, "addr", "add", h.address.String()+"/30", "dev", "far"+id)
	ip("-n", "far"+id, "link", "set", "far"+id, "up")
	listener := listenIn(t, "/run/netns/far"+id, netip.AddrPortFrom(h.address, farPort))
	server := &http.Server{
		TLSConfig:   &tls.Config{Certificates: []tls.Certificate{pair}},
		ReadTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, r.Header.Get("Authorization"))
		}),
	}
	go func() { _ = server.ServeTLS(counted{listener, &h.accepted}, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
	return h
}

// A counted is a listener that counts connections.
type counted struct {
	net.Listener
	accepted *atomic.Int32
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.accepted.Add(1)
	}
	return conn, err
}

// listenIn listens in a network namespace. A socket belongs to the namespace of the thread
// that makes it.
func listenIn(t *testing.T, namespace string, at netip.AddrPort) net.Listener {
	t.Helper()
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	far, err := os.Open(namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	type made struct {
		net.Listener
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // until this goroutine, and with it the thread, ends
		if err := unix.Setns(int(far.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- made{err: err}
			return
		}
		l, err := net.Listen("tcp", at.String())
		done <- made{l, err}
	}()
	m := <-done
	if m.err != nil {
		t.Fatalf("listening at %s in %s: %v", at, namespace, m.err)
	}
	return m.Listener
}

// names is a name server. It answers questions about IPv4 addresses of any name.
type names struct {
	address netip.Addr
	answers atomic.Pointer[[][]netip.Addr]
	asked   atomic.Int32
}

func startNames(t *testing.T) *names {
	t.Helper()
	var octets [2]byte
	_, _ = rand.Read(octets[:])
	n := &names{address: netip.AddrFrom4([4]byte{127, 53, octets[0], octets[1] | 1})}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.address, 53)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		question := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFromUDPAddrPort(question)
			if err != nil {
				return
			}
			if answer, err := n.answer(question[:size]); err == nil {
				_, _ = conn.WriteToUDPAddrPort(answer, from)
			}
		}
	}()
	return n
}

func (n *names) answer(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil || len(m.Questions) != 1 {
		return nil, errors.New("not a question")
	}
	q := m.Questions[0]
	answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: true, RecursionAvailable: true}, Questions: m.Questions}
	if q.Type == dnsmessage.TypeA {
		list := *n.answers.Load()
		at := min(int(n.asked.Add(1)), len(list)) - 1
		for _, a := range list[at] {
			answer.Answers = append(answer.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: a.As4()},
			})
		}
	}
	return answer.Pack()
}
