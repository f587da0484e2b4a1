package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
	"accessbroker.internal/egress/forward"
)

const proxyHelp = `proxy runs a command whose calls to APIs carry credentials that the command
never sees. The command reaches the network through a local proxy, which checks
each call against the rules of your entitlements, adds the credential, and
removes the credential from the answer. Calls that no rule allows are refused.

The proxy opens TLS with certificates of an authority that it makes at its
start. The command trusts it by variables such as SSL_CERT_FILE, GIT_SSL_CAINFO,
NODE_EXTRA_CA_CERTS, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE and AWS_CA_BUNDLE. Its
key exists in the memory of this process only, and its certificate is valid for
the hosts of the rules alone. The variables of proxies, such as HTTPS_PROXY,
have a random token, so that other processes can't use the proxy.

proxy removes this program's own variables, the sockets of SPIFFE, and the
credentials of common tools from the command's environment. Some tools refuse to
call without a credential: --placeholder GH_TOKEN sets such a variable to a
placeholder. For rules with AWS signatures, the variables of the AWS tools have
placeholders, and the proxy signs each call again.

A credential is requested at its first use, renewed while the command runs, and
returned at the end. Where policy demands approval, the call is refused at once
with the id of the request; once it is approved, the same call passes.

With --socket, proxy listens on a Unix socket instead. The socket belongs to one
caller: the system's peer credentials must name the user of --peer, and while
the process that connected first is alive, no other process may connect. Few
clients can use a Unix socket as their proxy. With --connect, proxy needs no
identity, and runs a command whose calls go through such a socket: start it as
the agent's user.

A command of the same user could also read what belongs to that user, such as
files with an identity. To keep an agent from them, give it a user of its own.

proxy passes signals on to the command and exits with its exit code, as
"broker exec" does.

`

// proxyFlags are the flags of "broker proxy".
type proxyFlags struct {
	calls        callFlags
	ask          askFlags
	placeholders []string
	socket       peerSocket
	connect      string
	metrics      string
	lifetime     time.Duration
	list, quiet  bool
}

func (a *app) proxyCommand() *cobra.Command {
	var f proxyFlags
	c := &cobra.Command{
		Use:   "proxy [flags] -- COMMAND [ARG ...]",
		Short: "Run a command whose calls carry credentials that it never sees",
		Long:  proxyHelp + exitHelp,
		Example: `  broker proxy --why "triage of INC-4711" -- ./agent
  broker proxy --entitlement github-read --placeholder GH_TOKEN -- gh issue list
  broker proxy -- git clone https://git.acme.test/orders.git
  broker proxy --list
  broker proxy --socket /run/triage/proxy.sock --peer triage
  broker proxy --connect /run/triage/proxy.sock -- ./agent`,
		Args: f.check,
		RunE: func(c *cobra.Command, args []string) error { return a.proxy(c.Context(), &f, args) },
	}
	f.calls.add(c, a)
	c.Flags().StringVar(&f.ask.why, "why", "", "the justification of the requests, shown to approvers and recorded in the log")
	c.Flags().StringVar(&f.ask.ticket, "ticket", "", "the ticket of the requests")
	c.Flags().StringSliceVar(&f.ask.scopes, "scope", nil, "with one --entitlement: a scope; repeatable (default: the entitlement's default scopes)")
	c.Flags().Var(&f.ask.parameters, "param", "with one --entitlement: a parameter of it, as name=value; repeatable")
	c.Flags().Var((*positiveFlag)(&f.ask.ttl), "ttl", "how long each credential is valid (default: the entitlement's)")
	c.Flags().Var((*positiveFlag)(&f.ask.duration), "duration", "how long credentials can be collected (default: the entitlement's)")
	c.Flags().StringSliceVar(&f.placeholders, "placeholder", nil, "set this variable of the command to a placeholder, for tools that need one to call; repeatable")
	c.Flags().StringVar(&f.socket.path, "socket", "", "listen on this Unix socket, without a command")
	f.socket.addPeer(c)
	c.Flags().StringVar(&f.connect, "connect", "", "use the proxy behind this Unix socket")
	c.Flags().StringVar(&f.metrics, "metrics", "", "serve metrics for Prometheus at this address, such as 127.0.0.1:9465")
	c.Flags().DurationVar(&f.lifetime, "ca-lifetime", 24*time.Hour, "how long the certificate of the proxy's authority is valid; it is renewed in its file at half of this time")
	c.Flags().BoolVar(&f.list, "list", false, "print the calls that the rules allow, and exit")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print errors only")
	a.client.addPerson(c)
	return c
}

// check rejects what does not go together.
func (f *proxyFlags) check(c *cobra.Command, args []string) error {
	dash := c.ArgsLenAtDash()
	command := dash == 0 && len(args) > 0
	switch {
	case f.socket.path != "" && f.connect != "":
		return usage("--socket and --connect exclude each other")
	case f.list && (len(args) > 0 || f.socket.path != "" || f.connect != ""):
		return usage("--list takes no command and no socket")
	case f.socket.path != "" && len(args) > 0:
		return usage("--socket takes no command: start it with --connect, as the user of --peer")
	case f.socket.path == "" && !f.list && !command:
		return usage("proxy takes -- and a command; see %s --help", c.CommandPath())
	case f.socket.path == "" && f.socket.peer != "":
		return usage("--peer goes with --socket")
	case len(f.ask.scopes)+len(f.ask.parameters) > 0 && len(f.calls.only) != 1:
		return usage("--scope and --param go with one --entitlement")
	case f.lifetime < 10*time.Minute || f.lifetime > forward.MaxAuthorityLifetime:
		return usage("--ca-lifetime must be between 10m and %s", api.Duration(forward.MaxAuthorityLifetime))
	}
	for _, name := range f.placeholders {
		if name == "" || strings.ContainsAny(name, "= \x00") {
			return usage("--placeholder takes the name of a variable, such as GH_TOKEN")
		}
	}
	return nil
}

// proxyGCPercent bounds the garbage of a proxy to a fifth of what is in use.
const proxyGCPercent = 20

func (a *app) proxy(ctx context.Context, f *proxyFlags, command []string) error {
	program := ""
	if len(command) > 0 {
		var err error
		if program, err = lookUp(command[0]); err != nil {
			fmt.Fprintf(a.err, "broker: %v\n", err)
			return exitError(exitCodeOfStart(err))
		}
	}
	if f.connect != "" {
		return a.connectProxy(ctx, f, program, command)
	}
	if a.getenv("GOGC") == "" { // a proxy runs next to every agent: memory counts more than time
		debug.SetGCPercent(proxyGCPercent)
	}
	// Once the command runs, a signal is the command's, as for exec.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	detach := context.AfterFunc(ctx, cancel)
	return a.withClient(work, func(work context.Context, client *api.Client) error {
		if f.list {
			return a.listCalls(work, client, f.calls.only)
		}
		p, err := a.newProxy(work, client, f)
		if err != nil {
			return err
		}
		if f.socket.path != "" {
			return p.serveSocket(work)
		}
		return p.runCommand(work, program, command, detach)
	})
}

// A proxy is one run of "broker proxy" with an identity.
type proxy struct {
	*app
	*edge
	flags     *proxyFlags
	authority *forward.Authority
	token     string // of the proxy's URL; empty: the socket admits only the caller
	server    *forward.Server
	log       *slog.Logger
	shown     *proxyReport
	metrics   *forward.Metrics
}

// newProxy reads the rules and prepares the proxy. It requests no credential.
func (a *app) newProxy(ctx context.Context, client *api.Client, f *proxyFlags) (*proxy, error) {
	ask, err := f.ask.ask("")
	if err != nil {
		return nil, err
	}
	p := &proxy{app: a, flags: f, shown: newProxyReport(a, f.quiet), metrics: forward.NewMetrics()}
	roots, err := f.calls.roots(a)
	if err != nil {
		return nil, err
	}
	p.edge = newEdge(client, f.calls.only, func(string) api.Ask { return ask }, p.kept)
	p.edge.calls.Roots = roots
	if err := p.source.Load(ctx); err != nil {
		return nil, err
	}
	rules := p.source.Policy()
	for _, name := range f.calls.only {
		if !slices.Contains(rules.Entitlements(), name) {
			return nil, fmt.Errorf("no entitlement %s with rules for calls; see \"broker proxy --list\"", printable(name))
		}
	}
	if len(rules.Hosts()) == 0 {
		return nil, errors.New("none of your entitlements has rules for calls (egress): ask the operator of the broker for them")
	}
	if p.authority, err = forward.NewAuthority(rules.Hosts(), f.lifetime); err != nil {
		return nil, err
	}
	if f.socket.path == "" {
		p.token = rand.Text()
	}
	p.log, _ = newLogger(a.err, "text", slog.LevelWarn)
	p.server = forward.New(forward.Config{Authority: p.authority, Caller: p.edge, Token: p.token, Report: p.called, Logger: p.log})
	return p, nil
}

// serve serves a listener and does the work in the background while during runs.
func (p *proxy) serve(ctx context.Context, l net.Listener, during func(context.Context) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer p.shown.end(p.edge)
	defer p.endEdge(ctx, p.edge, "the command ended")
	defer func() { _ = p.server.Close() }()
	if p.flags.metrics != "" {
		end, err := p.serveMetrics(p.flags.metrics)
		if err != nil {
			return err
		}
		defer end()
	}
	background := make(chan error, 2)
	go func() { background <- p.run(ctx, p.shown.warn) }()
	go func() { background <- p.server.Serve(l) }()
	err := during(ctx)
	stop()
	_ = p.server.Close()
	return errors.Join(err, <-background, <-background)
}

// serveMetrics serves metrics at an address.
func (p *proxy) serveMetrics(address string) (end func(), err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening for metrics: %w", err)
	}
	server := &http.Server{Handler: p.metrics.Handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}
	go func() { _ = server.Serve(l) }() // ends with Close
	return func() { _ = server.Close() }, nil
}

// runCommand runs the command with the proxy on loopback.
func (p *proxy) runCommand(ctx context.Context, program string, command []string, detach func() bool) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	folder, err := newTrustFolder(p.authority.PEM())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer folder.remove()
	env := childEnvironment{address: l.Addr().String(), token: p.token, trust: folder, injected: p.injections(), placeholders: p.flags.placeholders, identity: p.identityVariable()}
	return p.serve(ctx, l, func(ctx context.Context) error {
		p.shown.start(p.source.Policy())
		go folder.renew(ctx, p.flags.lifetime, func() ([]byte, error) {
			err := p.authority.Reissue(p.flags.lifetime)
			return p.authority.PEM(), err
		})
		return p.relayed(program, command, env.of(os.Environ()), detach)
	})
}

// injections returns the forms in which the rules add credentials.
func (p *proxy) injections() (forms []string) {
	rules := p.source.Policy()
	for _, name := range rules.Entitlements() {
		if r, ok := rules.Rules(name); ok {
			forms = append(forms, r.Inject.As)
		}
	}
	return forms
}

// serveSocket serves the socket until ctx ends.
func (p *proxy) serveSocket(ctx context.Context) error {
	refusing := make(chan struct{}, 16)
	l, err := p.flags.socket.listen(p.log, func(c net.Conn, why error) {
		select {
		case refusing <- struct{}{}:
			go func() {
				defer func() { <-refusing }()
				refuseProxied(c, why)
			}()
		default:
			_ = c.Close()
		}
	})
	if err != nil {
		return err
	}
	return p.serve(ctx, l, func(ctx context.Context) error {
		p.shown.start(p.source.Policy())
		<-ctx.Done()
		return nil
	})
}

// refuseProxied tells a client why its connection ends. A connection that is closed before
// its data has been read looks broken to the client.
func refuseProxied(c net.Conn, why error) {
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := http.ReadRequest(bufio.NewReader(io.LimitReader(c, 64<<10))); err != nil {
		return
	}
	fmt.Fprintf(c, "HTTP/1.1 407 This socket belongs to another process\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%s.\n", printable(why.Error()))
}

// listCalls prints what the rules allow.
func (a *app) listCalls(ctx context.Context, client *api.Client, only []string) error {
	source := &egress.Source{Client: client, Only: only}
	if err := source.Load(ctx); err != nil {
		return err
	}
	type entry struct {
		Entitlement string `json:"entitlement"`
		api.Egress
	}
	list := []entry{}
	for _, name := range source.Policy().Entitlements() {
		rules, _ := source.Policy().Rules(name)
		list = append(list, entry{name, rules})
	}
	return a.printTable(list, func(w io.Writer) {
		fmt.Fprintln(w, "ENTITLEMENT\tHOSTS\tMETHODS\tPATHS")
		for _, e := range list {
			for _, r := range e.Allow {
				methods := strings.Join(r.Methods, " ")
				if r.WebSocket {
					methods += " (WebSocket)"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", printable(e.Entitlement), printable(strings.Join(r.Hosts, " ")), methods, printable(strings.Join(r.Paths, " ")))
			}
		}
	})
}
