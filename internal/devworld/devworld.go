// Package devworld runs a trust domain with a SPIFFE Workload API, an OpenID login
// without passwords, a ticket API and a broker in one process, on loopback. "broker dev", "broker
// demo" and tests use it. It is not for production: anyone who can connect to its
// sockets gets their identities.
package devworld

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/attest/localca"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
)

//go:embed files
var files embed.FS

const (
	// TrustDomain is the trust domain of every world.
	TrustDomain = "acme.test"

	// BrokerID is the broker's SPIFFE ID.
	BrokerID = "spiffe://" + TrustDomain + "/broker"

	bundleFile = "bundle.pem"
)

// An Identity has a Workload API socket of its own.
type Identity struct{ Name, ID, Description string }

// Identities are the SPIFFE IDs of a world, except for the broker's.
var Identities = []Identity{
	{"agent", "spiffe://" + TrustDomain + "/agent/triage", "an AI agent of the support team"},
	{"service", "spiffe://" + TrustDomain + "/service/report", "a service"},
	{"tickets", "spiffe://" + TrustDomain + "/tickets", "the ticket API's own server"},
	{"supplier", "spiffe://" + TrustDomain + "/vendors/acme-data/loader", "a supplier"},
}

// Addresses are the loopback addresses of a world: the broker for callers, its pages
// for browsers, the login, and the ticket API.
type Addresses struct{ Broker, Pages, Login, Tickets string }

// FreeAddresses returns addresses on ports that are free at the moment.
func FreeAddresses() (a Addresses, err error) {
	for _, address := range []*string{&a.Broker, &a.Pages, &a.Login, &a.Tickets} {
		l, err := listenAnywhere()
		if err != nil {
			return a, fmt.Errorf("finding a free port: %w", err)
		}
		*address = l.Addr().String()
		defer func() { _ = l.Close() }() // after the loop, so that no two are the same
	}
	return a, nil
}

// listenAnywhere listens on a free port below those that the system chooses for connections,
// so that none of them takes the port before the broker listens on it.
func listenAnywhere() (l net.Listener, err error) {
	const from, to, tries = 10_000, 32_768, 100
	for range tries {
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", from+mathrand.IntN(to-from))); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// IsLoopback reports whether an address is a loopback IP address with a port.
func IsLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

// PagesURL returns the URL of the pages. It has no TLS: browsers do not trust the
// world's authority and would refuse passkeys, but they treat loopback as secure (W3C
// Secure Contexts, section 3.1). The host is localhost if possible, because passkeys need
// a host name (WebAuthn Level 3, section 5.1.3).
func (a Addresses) PagesURL() string {
	host, port, err := net.SplitHostPort(a.Pages)
	if err == nil && (host == "127.0.0.1" || host == "::1") {
		return "http://" + net.JoinHostPort("localhost", port)
	}
	return "http://" + a.Pages
}

// A World is a trust domain, a login, a ticket API and a broker with a sample catalogue and sample
// policies. All its files are in one folder.
type World struct {
	Addresses
	Dir string // absolute
	MCP service.MCPTools

	ca     *localca.CA
	config *config.Config
	broker *service.Service
}

// New creates the world's folder and files. Existing files are not changed, except for
// bundle.pem.
func New(dir string, at Addresses) (_ *World, err error) {
	for _, address := range []string{at.Broker, at.Pages, at.Login, at.Tickets} {
		if !IsLoopback(address) {
			return nil, fmt.Errorf("%s is not a loopback address, such as 127.0.0.1:8443", address)
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("finding the folder: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "identities"), 0o700); err != nil {
		return nil, fmt.Errorf("creating the folder: %w", err)
	}
	w := &World{Addresses: at, Dir: dir}
	if w.ca, err = localca.Open(filepath.Join(dir, "ca"), TrustDomain); err != nil {
		return nil, err
	}
	w.ca.SetHosts(BrokerID, w.hosts()...)
	if err := w.writeFiles(); err != nil {
		return nil, err
	}
	if err := w.Replace(bundleFile, w.ca.X509Bundle()); err != nil {
		return nil, fmt.Errorf("writing the trust bundle: %w", err)
	}
	return w, w.load()
}

// load reads the operator's file. A file of an earlier start must have the same addresses:
// with others, env and commands.txt would name a broker that does not exist.
func (w *World) load() (err error) {
	if w.config, err = config.Load(w.ConfigFile(), nil); err != nil {
		return err
	}
	listens := slices.ContainsFunc(w.config.Listeners, func(l config.Listener) bool { return l.Address == w.Broker })
	elsewhere := slices.ContainsFunc(w.config.Providers, func(p config.Provider) bool { // not a provider with TLS, which the operator chose
		return strings.HasPrefix(p.Issuer, "http://") && p.Issuer != "http://"+w.Login
	})
	if !listens || elsewhere || w.callsElsewhere() {
		return fmt.Errorf("%s has other addresses than the broker's %s, the login's %s and the ticket API's %s: start with its addresses, or remove it to have it written anew", w.ConfigFile(), w.Broker, w.Login, w.Tickets)
	}
	return nil
}

// callsElsewhere reports whether the calls of tickets-api go to a ticket API on another
// address of this machine.
func (w *World) callsElsewhere() bool {
	e := w.config.Catalogue["tickets-api"]
	return e != nil && e.Egress != nil && slices.ContainsFunc(e.Egress.Allow, func(r broker.EgressRule) bool {
		return len(r.Hosts) == 1 && IsLoopback(r.Hosts[0]) && r.Hosts[0] != w.Tickets
	})
}

// hosts returns the names by which clients on this machine reach the broker.
func (w *World) hosts() []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if host, _, err := net.SplitHostPort(w.Broker); err == nil && !slices.Contains(hosts, host) {
		hosts = append(hosts, host)
	}
	return hosts
}

// Path returns the path of a file in the world's folder.
func (w *World) Path(name string) string { return filepath.Join(w.Dir, name) }

// ConfigFile returns the path of the operator's file.
func (w *World) ConfigFile() string { return w.Path("broker.yaml") }

// AdminSocket returns the path of the broker's admin socket.
func (w *World) AdminSocket() string { return w.Path("admin.sock") }

// Database returns the URL of the broker's store.
func (w *World) Database() string { return "sqlite:" + w.Path("broker.db") }

// URL returns the broker's URL for callers.
func (w *World) URL() string { return "https://" + w.Broker }

// Bundle returns the path of the X.509 authorities in PEM, with which clients that do not
// know SPIFFE verify the broker's certificate.
func (w *World) Bundle() string { return w.Path(bundleFile) }

// Socket returns the path of the Workload API socket of an identity.
func (w *World) Socket(name string) string { return w.Path(filepath.Join("identities", name+".sock")) }

// Service returns the running broker. It is nil outside Run.
func (w *World) Service() *service.Service { return w.broker }

// Run runs everything until f returns or ctx ends. It calls f once the broker is
// ready.
func (w *World) Run(ctx context.Context, log *slog.Logger, f func(context.Context) error) (err error) {
	// Like a SPIFFE agent, the Workload API outlives the broker.
	outer, stop := context.WithCancel(context.WithoutCancel(ctx))
	others, outer := errgroup.WithContext(outer)
	defer func() { stop(); err = errors.Join(err, others.Wait()) }()
	if err := w.ServeSurroundings(outer, others, w.PagesURL()); err != nil {
		return err
	}
	ready := make(chan struct{})
	if err := w.open(ctx, log, func([]net.Listener) { close(ready) }); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.broker.Run(ctx) })
	group.Go(func() error {
		select {
		case <-ready:
			defer cancel()
			return f(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

func (w *World) open(ctx context.Context, log *slog.Logger, ready func([]net.Listener)) (err error) {
	if w.config.UIURL, err = url.Parse(w.PagesURL()); err != nil {
		return err
	}
	w.broker, err = service.New(ctx, service.Options{
		Config: w.config, Log: log, Ready: ready, MCP: w.MCP,
		Listeners: []config.Listener{{Address: w.Pages, Plain: true, Serve: []string{"ui"}}},
	})
	return err
}

// writeFiles writes the sample files and fresh secrets.
func (w *World) writeFiles() error {
	err := fs.WalkDir(files, "files", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "files" {
			return err
		}
		target := w.Path(path[len("files/"):])
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		content, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		if filepath.Base(path) == "broker.yaml" {
			if content, err = w.fill(content); err != nil {
				return err
			}
		}
		return writeNew(target, content)
	})
	if err != nil {
		return fmt.Errorf("writing the sample files: %w", err)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	if err := writeNew(w.Path("seal.key"), []byte(base64.StdEncoding.EncodeToString(key)+"\n")); err != nil {
		return fmt.Errorf("writing the seal key: %w", err)
	}
	if err := writeNew(w.Path("login.secret"), []byte(clientSecret+"\n")); err != nil {
		return fmt.Errorf("writing the login's secret: %w", err)
	}
	return nil
}

// fill puts the world's addresses into the operator's file.
func (w *World) fill(content []byte) ([]byte, error) {
	t, err := template.New("broker.yaml").Parse(string(content))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	_, port, err := net.SplitHostPort(w.Broker)
	if err != nil {
		return nil, err
	}
	err = t.Execute(&out, map[string]string{
		"Address": w.Broker, "Port": port, "Metrics": "127.0.0.1:0", "Login": "http://" + w.Login, "Tickets": w.Tickets, "BrokerSocket": w.Socket("broker"),
	})
	return out.Bytes(), err
}

// Replace writes a file in the world's folder. The rename is atomic: no reader sees a part
// of the file.
func (w *World) Replace(name string, content []byte) error {
	if err := os.WriteFile(w.Path(name+".new"), content, 0o600); err != nil {
		return err
	}
	return os.Rename(w.Path(name+".new"), w.Path(name))
}

// writeNew writes a file unless it exists.
func writeNew(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

// ServeSurroundings serves everything except for the broker in the group: the identities,
// the login and the ticket API. Browsers reach the broker's pages at the URL pages.
func (w *World) ServeSurroundings(ctx context.Context, group *errgroup.Group, pages string) error {
	if err := w.ServeIdentities(ctx, group); err != nil {
		return err
	}
	if err := w.serveLogin(ctx, group, pages); err != nil {
		return err
	}
	return w.serveTickets(ctx, group)
}

// ServeIdentities serves the Workload API in the group: a socket for each identity,
// and one for the broker.
func (w *World) ServeIdentities(ctx context.Context, group *errgroup.Group) error {
	for _, id := range append([]Identity{{Name: "broker", ID: BrokerID}}, Identities...) {
		socket := w.Socket(id.Name)
		l, err := service.ListenSocket(socket)
		if err != nil {
			return fmt.Errorf("serving %s: %w", id.ID, err)
		}
		group.Go(func() error { return w.ca.Serve(ctx, l, id.ID) })
	}
	return nil
}
