package main

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
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"accessbroker.internal/attest/localca"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
)

//go:embed dev
var devFiles embed.FS

// devDomain is the trust domain of "broker dev".
const devDomain = "acme.test"

// devIdentities are those that sockets of "broker dev" give out, by the name
// of the socket.
var devIdentities = []struct{ name, path, what string }{
	{"agent", "/agent/triage", "an AI agent of the support team"},
	{"service", "/service/report", "a service"},
	{"tickets", "/tickets", "the ticket API's own server"},
}

// A devWorld is a whole world in one process: a trust domain with its Workload
// API, a broker, and a sample catalogue and policies, in one folder.
type devWorld struct {
	devAddresses
	dir      string
	ca       *localca.CA
	settings *config.Config
	service  *service.Service
}

// devAddresses are where a world listens: the broker for callers, its pages for
// browsers, and the login that these are sent to. Loopback only.
type devAddresses struct{ listen, pages, loginAddress string }

// pagesURL is where browsers reach the pages. Without TLS: browsers know no
// authority of ours, let nobody use passkeys where they had to warn of a
// certificate, and take loopback for as good (W3C Secure Contexts, section 3.1).
// By its name, where that leads there: passkeys are for hosts with one (WebAuthn
// Level 3, section 5.1.3).
func (d devAddresses) pagesURL() string {
	host, port, err := net.SplitHostPort(d.pages)
	if err == nil && (host == "127.0.0.1" || host == "::1") {
		return "http://" + net.JoinHostPort("localhost", port)
	}
	return "http://" + d.pages
}

func (a *app) devCommand() *cobra.Command {
	var dir string
	var at devAddresses
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole world on this machine, to look at and play with",
		Long: `dev runs a trust domain with a real SPIFFE Workload API, a broker, a sample
catalogue and sample policies, in one process, on loopback only. Any SPIFFE
program gets an SVID from its sockets. Nothing of it is for production: who can
reach the sockets is whom the sockets are for.

Without --dir it lives in a temporary folder and is gone afterwards. With --dir it
keeps its folder; edit the policies there and run "broker reload", after the
"export BROKER_ADMIN_SOCKET=…" that it prints.`,
		Example: `  broker dev
  broker dev --dir ./world --listen 127.0.0.1:8443`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			a.tune()
			return a.runDev(c.Context(), dir, at)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "the folder to live in (default: a temporary one)")
	c.Flags().StringVar(&at.listen, "listen", "127.0.0.1:8443", "the broker's address; loopback only")
	c.Flags().StringVar(&at.pages, "pages", "127.0.0.1:8480", "the address of its pages")
	c.Flags().StringVar(&at.loginAddress, "login", "127.0.0.1:8481", "the address of the login that the pages lead to")
	return c
}

func (a *app) runDev(ctx context.Context, dir string, at devAddresses) (err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", "broker-dev-"); err != nil {
			return fmt.Errorf("making a folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	return withDevWorld(ctx, dir, at, a, slog.LevelWarn, func(ctx context.Context, w *devWorld) error {
		w.welcome(a)
		<-ctx.Done()
		fmt.Fprintln(a.out, "\nbroker dev ends.")
		return nil
	})
}

// withDevWorld runs a world until f returns or ctx ends.
func withDevWorld(ctx context.Context, dir string, at devAddresses, a *app, level slog.Level, f func(context.Context, *devWorld) error) (err error) {
	w, err := newDevWorld(dir, at)
	if err != nil {
		return err
	}
	// The Workload API outlives the broker, as an agent would.
	identities, endIdentities := context.WithCancel(context.WithoutCancel(ctx))
	agents, identities := errgroup.WithContext(identities)
	defer func() { endIdentities(); err = errors.Join(err, agents.Wait()) }()
	if err := w.serveIdentities(identities, agents); err != nil {
		return err
	}
	if err := w.serveLogin(identities, agents); err != nil {
		return err
	}
	if w.settings, err = config.Load(filepath.Join(w.dir, "broker.yaml"), nil); err != nil {
		return err
	}
	if w.settings.UIURL, err = url.Parse(w.pagesURL()); err != nil {
		return err
	}
	ready := make(chan struct{})
	w.service, err = service.New(ctx, service.Options{
		Config: w.settings, Log: newLogger(a.err, w.settings.LogFormat, level),
		Listeners: []config.Listener{{Address: w.pages, Plain: true, Serve: []string{"ui"}}},
		Ready:     func([]net.Listener) { close(ready) },
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.service.Run(ctx) })
	group.Go(func() error {
		select {
		case <-ready:
			defer cancel()
			return f(ctx, w)
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

// newDevWorld makes the folder and what is in it. What is there already stays.
func newDevWorld(dir string, at devAddresses) (_ *devWorld, err error) {
	for flag, address := range map[string]string{"listen": at.listen, "pages": at.pages, "login": at.loginAddress} {
		host, _, err := net.SplitHostPort(address)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return nil, usage("--%s takes a loopback address, such as 127.0.0.1:8443: broker dev is not for others to reach", flag)
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("finding the folder: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "identities"), 0o700); err != nil {
		return nil, fmt.Errorf("making the folder: %w", err)
	}
	w := &devWorld{devAddresses: at, dir: dir}
	if w.ca, err = localca.Open(filepath.Join(dir, "ca"), devDomain); err != nil {
		return nil, err
	}
	return w, w.writeFiles()
}

// socket gives the path of a Workload API socket.
func (w *devWorld) socket(name string) string {
	return filepath.Join(w.dir, "identities", name+".sock")
}

func (w *devWorld) writeFiles() error {
	err := fs.WalkDir(devFiles, "dev", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "dev" {
			return err
		}
		target := filepath.Join(w.dir, path[len("dev/"):])
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		content, err := devFiles.ReadFile(path)
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
		return fmt.Errorf("writing the sample: %w", err)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	if err := writeNew(filepath.Join(w.dir, "seal.key"), []byte(base64.StdEncoding.EncodeToString(key)+"\n")); err != nil {
		return fmt.Errorf("writing the seal key: %w", err)
	}
	if err := writeNew(filepath.Join(w.dir, "login.secret"), []byte(devClientSecret+"\n")); err != nil {
		return fmt.Errorf("writing the login's secret: %w", err)
	}
	return nil
}

// fill puts this world's addresses into the operator's file.
func (w *devWorld) fill(content []byte) ([]byte, error) {
	t, err := template.New("broker.yaml").Parse(string(content))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]string{"Address": w.listen, "Metrics": "127.0.0.1:0", "Login": "http://" + w.loginAddress, "BrokerSocket": w.socket("broker")})
	return out.Bytes(), err
}

// writeNew writes a file that is not there yet.
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

// serveIdentities opens a Workload API socket for each identity, and one for
// the broker.
func (w *devWorld) serveIdentities(ctx context.Context, group *errgroup.Group) error {
	serve := func(name, path string) error {
		socket := w.socket(name)
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing an old socket: %w", err)
		}
		l, err := net.Listen("unix", socket)
		if err != nil {
			return fmt.Errorf("listening on %s: %w", socket, err)
		}
		group.Go(func() error { return w.ca.Serve(ctx, l, "spiffe://"+devDomain+path) })
		return nil
	}
	for _, id := range devIdentities {
		if err := serve(id.name, id.path); err != nil {
			return err
		}
	}
	return serve("broker", "/broker")
}

// foundIn gives the folder in which shells have to look for this program, if it
// was started by a path and not found by its name.
func foundIn(arg0 string) string {
	if !strings.ContainsRune(arg0, filepath.Separator) {
		return ""
	}
	path, err := filepath.Abs(arg0)
	if err != nil {
		return ""
	}
	return filepath.Dir(path)
}

// welcome says what there is and what to try.
func (w *devWorld) welcome(a *app) {
	say := func(format string, args ...any) { fmt.Fprintf(a.out, format+"\n", args...) }
	url := w.settings.ExternalURL.String()
	say("A broker for trying out, on loopback only. Not for production.\n")
	say("  pages      %s/ui/   log in as Ana, Ben or Dan: no password", w.pagesURL())
	say("  broker     %s", url)
	say("  folder     %s", w.dir)
	say("  policies   %s\n", w.settings.Policies)
	say("In the browser, be both sides. As Ben, ask for tickets-api with tickets:close")
	say("under Entitlements. Then log out, or open a private window, and be Ana: Ben's")
	say("request waits in her inbox. Dan sees everything, has the kill switch under Leases,")
	say("and reads the log under Audit.\n")
	say("As an AI agent, in another terminal:\n")
	if dir := foundIn(os.Args[0]); dir != "" {
		say("  export PATH=%s:$PATH", shellQuote(dir))
	}
	say("  export BROKER_URL=%s", url)
	say("  export SPIFFE_ENDPOINT_SOCKET=unix://%s", w.socket("agent"))
	say("  broker whoami")
	say("  broker entitlements")
	say("  broker request tickets-api --scope tickets:read --why \"looking around\"")
	say("  broker request tickets-api --scope tickets:close --why \"a duplicate\" --wait 10m\n")
	say("The last one waits for a person. Ben may approve it; Ana answers for the agent, so")
	say("she may not. In the pages; or, after the same exports, in a third terminal:\n")
	say("  export BROKER_ID=spiffe://%s/broker", devDomain)
	say("  broker login")
	say("  broker approve req_…\n")
	say("As the operator, by the admin socket: the kill switch, and back\n")
	say("  export BROKER_ADMIN_SOCKET=%s", w.settings.AdminSocket)
	say("  broker kill --under spiffe://%s/agent --why \"trying it out\"", devDomain)
	say("  broker blocks lift --under spiffe://%s/agent --why \"it was nothing\"", devDomain)
	say("  broker reload\n")
	say("What happened, verified with nothing but the file:\n")
	say("  broker audit verify sqlite:%s\n", filepath.Join(w.dir, "broker.db"))
	say("Each socket in %s gives out one identity:\n", filepath.Dir(w.socket("agent")))
	for _, id := range devIdentities {
		say("  %-12s  spiffe://%s%s, %s", filepath.Base(w.socket(id.name)), devDomain, id.path, id.what)
	}
	say("\nCtrl-C ends it.")
}
