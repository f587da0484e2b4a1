package main

import (
	"bytes"
	"context"
	_ "embed" // for the files of the world's folder
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"

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

dev prints the page to open and the first commands. Its folder has the rest:

  env           settings of a terminal: . DIR/env
  commands.txt  more to try, as an agent, a person, an operator and an auditor
  bundle.pem    the authorities that verify the broker's certificate
  broker.yaml   the operator's file, and policies/ next to it

Without --dir, the folder is temporary. With --dir, it stays: edit the policies
in it and run "broker reload".`,
		Example: `  broker dev
  broker dev --dir ./world --listen 127.0.0.1:8443`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			a.tune(c.Context())
			return a.runDev(c.Context(), dir, at)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "the folder for its files (default: a temporary one)")
	c.Flags().StringVar(&at.Broker, "listen", "127.0.0.1:8443", "the broker's address; loopback only")
	c.Flags().StringVar(&at.Pages, "pages", "127.0.0.1:8480", "the address of its pages")
	c.Flags().StringVar(&at.Login, "login", "127.0.0.1:8481", "the address of the login")
	c.Flags().StringVar(&at.Tickets, "tickets", "127.0.0.1:8482", "the address of a ticket API, which accepts the broker's tokens")
	return c
}

func (a *app) runDev(ctx context.Context, dir string, at devworld.Addresses) (err error) {
	for flag, address := range map[string]string{"listen": at.Broker, "pages": at.Pages, "login": at.Login, "tickets": at.Tickets} {
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
	if err := writeDevFiles(w, programDir(os.Args[0])); err != nil {
		return err
	}
	log, _ := newLogger(a.err, "text", slog.LevelWarn) // of this level, no line waits
	err = w.Run(ctx, log, func(ctx context.Context) error {
		a.welcome(w)
		<-ctx.Done()
		fmt.Fprintln(a.out, "\nbroker dev has stopped.")
		return nil
	})
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: end the other program, which may be another broker dev, or use other addresses: --listen, --pages, --login, --tickets", err)
	}
	return err
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

// devFiles are the templates of files in the world's folder that each start writes anew,
// because they name the addresses.
var (
	//go:embed dev_env.sh
	devEnv string
	//go:embed dev_commands.txt
	devCommands string
	devFiles    = map[string]*template.Template{
		devEnvFile:      template.Must(template.New("").Parse(devEnv)),
		devCommandsFile: template.Must(template.New("").Parse(devCommands)),
	}
)

const (
	devEnvFile      = "env"
	devCommandsFile = "commands.txt"
)

// A devSocket is the Workload API socket of one identity.
type devSocket struct{ Socket, ID, Description string }

// writeDevFiles writes the settings of a terminal, and the commands to try. program is the
// folder of this program, if a shell does not find it.
func writeDevFiles(w *devworld.World, program string) error {
	var sockets []devSocket
	for _, id := range devworld.Identities {
		sockets = append(sockets, devSocket{filepath.Base(w.Socket(id.Name)), id.ID, id.Description})
	}
	if program != "" {
		program = shellWord(program)
	}
	values := map[string]any{
		"Pages": w.PagesURL(), "URL": w.URL(), "Tickets": w.TicketsURL(), "Pipelines": w.PipelinesURL(), "Dir": w.Dir, "BrokerID": devworld.BrokerID, "Program": program,
		"Login": shellWord("http://" + w.Login), "Env": shellWord(w.Path(devEnvFile)), "Config": shellWord(w.ConfigFile()), "Bundle": shellWord(w.Bundle()),
		"AdminSocket": shellWord(w.AdminSocket()), "Database": shellWord(w.Database()), "Agents": "spiffe://" + devworld.TrustDomain + "/agent",
		"Socket": shellWord(w.Socket("agent")), "Sockets": filepath.Dir(w.Socket("agent")), "Identities": sockets,
	}
	for name, text := range devFiles {
		var out bytes.Buffer
		if err := text.Execute(&out, values); err != nil {
			return err
		}
		if err := w.Replace(name, out.Bytes()); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

// shellWord quotes text for POSIX shells if that is necessary.
func shellWord(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-:"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return shellQuote(s)
}

// welcome prints the page to open, the commands to try, and where the rest is.
func (a *app) welcome(w *devworld.World) {
	p := a.palette()
	say := func(label, command, rest string) {
		fmt.Fprintf(a.out, "  %s%s%s\n", p.Strong(fmt.Sprintf("%-7s", label)), p.Command(command), rest)
	}
	fmt.Fprintf(a.out, "%s with a trust domain and a login, on this machine only.\n\n", p.Strong("A broker for development"))
	say("open", w.PagesURL()+"/ui/", "   log in as Ben; no password")
	say("try", ". "+shellWord(w.Path(devEnvFile)), "   in another terminal, then")
	say("", `broker request tickets-api --scope tickets:read --why "a look around"`, "")
	say("", "broker request tickets-api --scope tickets:close --why test --wait 10m", "")
	say("", "", "The last one waits until Ben approves it in his inbox.")
	say("more", w.Path(devCommandsFile), "")
	say("stop", "Ctrl-C", "")
}
