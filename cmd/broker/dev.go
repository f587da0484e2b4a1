package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"accessbroker.internal/internal/devworld"
)

func (a *app) devCommand() *cobra.Command {
	var dir string
	var at devworld.Addresses
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a trust domain, a login and a broker on this machine, for development",
		Long: `dev runs a SPIFFE Workload API, an OpenID login, and a broker with a sample
catalogue and sample policies, in one process, on loopback only. Any SPIFFE
program can get an SVID from its sockets. It is not for production: anyone who
can connect to a socket gets its identity.

Without --dir, its folder is temporary. With --dir, the folder stays: edit the
policies in it and run "broker reload", after the "export BROKER_ADMIN_SOCKET=…"
that it prints.`,
		Example: `  broker dev
  broker dev --dir ./world --listen 127.0.0.1:8443`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			a.tune()
			return a.runDev(c.Context(), dir, at)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "the folder for its files (default: a temporary one)")
	c.Flags().StringVar(&at.Broker, "listen", "127.0.0.1:8443", "the broker's address; loopback only")
	c.Flags().StringVar(&at.Pages, "pages", "127.0.0.1:8480", "the address of its pages")
	c.Flags().StringVar(&at.Login, "login", "127.0.0.1:8481", "the address of the login")
	return c
}

func (a *app) runDev(ctx context.Context, dir string, at devworld.Addresses) (err error) {
	for flag, address := range map[string]string{"listen": at.Broker, "pages": at.Pages, "login": at.Login} {
		if !devworld.IsLoopback(address) {
			return usage("--%s takes a loopback address, such as 127.0.0.1:8443: broker dev is for this machine only", flag)
		}
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "broker-dev-"); err != nil {
			return fmt.Errorf("creating a folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	w, err := devworld.New(dir, at)
	if err != nil {
		return err
	}
	log, _ := newLogger(a.err, "text", slog.LevelWarn) // of this level, no line waits
	return w.Run(ctx, log, func(ctx context.Context) error {
		a.welcome(w)
		<-ctx.Done()
		fmt.Fprintln(a.out, "\nbroker dev has stopped.")
		return nil
	})
}

// programDir returns the folder of this program, if it was started by a path instead
// of its name. A shell then needs the folder in its PATH.
func programDir(arg0 string) string {
	if !strings.ContainsRune(arg0, filepath.Separator) {
		return ""
	}
	path, err := filepath.Abs(arg0)
	if err != nil {
		return ""
	}
	return filepath.Dir(path)
}

// welcome prints the world's addresses and identities, and commands to try.
func (a *app) welcome(w *devworld.World) {
	say := func(format string, args ...any) { fmt.Fprintf(a.out, format+"\n", args...) }
	say("A broker for development, on loopback only. Not for production.\n")
	say("  pages      %s/ui/   log in as Ana, Ben or Dan: no password", w.PagesURL())
	say("  broker     %s", w.URL())
	say("  folder     %s", w.Dir)
	say("  policies   %s\n", w.Path("policies"))
	say("In the browser, play both sides. As Ben, request tickets-api with tickets:close")
	say("under Entitlements. Then log out, or open a private window, and log in as Ana:")
	say("Ben's request is in her inbox. Dan sees everything, has the kill switch, and")
	say("reads the log under Audit.\n")
	say("As an AI agent, in another terminal:\n")
	if dir := programDir(os.Args[0]); dir != "" {
		say("  export PATH=%s:$PATH", shellQuote(dir))
	}
	say("  export BROKER_URL=%s", w.URL())
	say("  export SPIFFE_ENDPOINT_SOCKET=unix://%s", w.Socket("agent"))
	say("  broker whoami")
	say("  broker entitlements")
	say("  broker request tickets-api --scope tickets:read --why \"looking around\"")
	say("  broker request tickets-api --scope tickets:close --why duplicate --wait 10m\n")
	say("The last request waits for a person. Ben may approve it. Ana may not, because")
	say("she owns the agent. Approve it in the pages, or in a third terminal, after the")
	say("same exports:\n")
	say("  export BROKER_ID=%s", devworld.BrokerID)
	say("  broker login")
	say("  broker approve req_…\n")
	say("As the operator, try the kill switch, and undo it:\n")
	say("  export BROKER_ADMIN_SOCKET=%s", w.AdminSocket())
	say("  broker kill --under spiffe://%s/agent --why \"trying it out\"", devworld.TrustDomain)
	say("  broker blocks lift --under spiffe://%s/agent --why \"it was a test\"", devworld.TrustDomain)
	say("  broker reload\n")
	say("As an auditor, verify the log with nothing but the file:\n")
	say("  broker audit verify %s\n", w.Database())
	say("Each socket in %s serves one identity:\n", filepath.Dir(w.Socket("agent")))
	for _, id := range devworld.Identities {
		say("  %-12s  %s, %s", filepath.Base(w.Socket(id.Name)), id.ID, id.Description)
	}
	say("\nStop it with Ctrl-C.")
}
