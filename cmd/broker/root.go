package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/screen"
	"accessbroker.internal/internal/service"
)

// A terminal is the environment of a command.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
	protect  func(command string) error // protects the process's memory; nil in tests
}

// An app is one run of this program.
type app struct {
	terminal
	output string // -o
	client clientFlags
}

// Exit codes, documented by exitHelp. Scripts depend on them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitDenied      = 3
	exitPending     = 4
	exitUnreachable = 5
)

const exitHelp = `Exit codes:
  0  done
  1  failed, also for a faulty request, such as one without a justification
  2  wrong command line
  3  refused by the broker: denied, not permitted, identity not proven
  4  waiting for approval, or not approved in time
  5  the broker can't be reached, or another server answers at its URL`

// errUsage means that the command line is wrong.
var errUsage = errors.New("usage")

// errInterrupted means that a signal ended the command.
var errInterrupted = errors.New("interrupted")

// errNotConfirmed means that a person answered no.
var errNotConfirmed = errors.New("nothing was done")

// An exitError is an exit code without a message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func run(ctx context.Context, args []string, t terminal) int {
	a := &app{terminal: t}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var silent exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &silent):
		return int(silent)
	case outputClosed(err):
		return exitOutputClosed
	case errors.Is(err, context.Canceled):
		err = errInterrupted
	}
	a.printError(err)
	return exitCode(err)
}

// exitOutputClosed is the exit code of a process that SIGPIPE ended, as in
// "broker requests | head -1".
const exitOutputClosed = 128 + int(syscall.SIGPIPE)

// outputClosed reports whether the reader of standard output has gone. A broken
// connection to the broker is another error.
func outputClosed(err error) bool {
	var write *fs.PathError
	return errors.As(err, &write) && write.Path == os.Stdout.Name() && errors.Is(write.Err, syscall.EPIPE)
}

func exitCode(err error) int {
	var e *api.Error
	// Not net.Error: every errno is one, also that of a missing file.
	var network *net.OpError
	var call *url.Error
	switch {
	case errors.Is(err, errUsage) || strings.HasPrefix(err.Error(), "unknown command "): // cobra has no type for it
		return exitUsage
	case errors.Is(err, api.Pending) || errors.Is(err, api.Lapsed):
		return exitPending
	case api.Unreachable(err):
		return exitUnreachable
	case errors.As(err, &e) && (e.Status == 401 || e.Status == 403):
		return exitDenied
	case errors.As(err, &network) && network.Op != "listen" || errors.As(err, &call) || errors.Is(err, errUnreachable):
		return exitUnreachable
	}
	return exitFailed
}

// flagOf has the flags for what a request did not state.
var flagOf = map[api.Code]string{
	api.JustificationRequired: `--why, as in --why "triage of INC-4711"`,
	api.TicketRequired:        `--ticket, as in --ticket INC-4711`,
}

// printError prints an error and what the user can do about it.
func (a *app) printError(err error) {
	var resumable *resumableError
	if errors.As(err, &resumable) {
		a.printError(resumable.err)
		fmt.Fprintln(a.err, resumable.hint())
		return
	}
	var admin *noAdmin
	if errors.As(err, &admin) {
		err = admin
	}
	var e *api.Error
	if !errors.As(err, &e) {
		fmt.Fprintf(a.err, "broker: %s\n", strings.TrimPrefix(err.Error(), errUsage.Error()+": "))
		if errors.Is(err, syscall.ECONNREFUSED) && api.Unreachable(err) {
			fmt.Fprintln(a.err, "  check that the broker is running, and its URL: --server or BROKER_URL")
		}
		return
	}
	if e.Code == "" {
		fmt.Fprintf(a.err, "broker: HTTP %d %s: not a response of the broker's API; check the URL %s\n", e.Status, printable(e.Title), a.server())
		return
	}
	text := e.Detail
	if text == "" {
		text = e.Title
	}
	fmt.Fprintf(a.err, "broker: %s: %s\n", printable(string(e.Code)), printable(text))
	if u, err := url.Parse(a.server()); err == nil && u.Path != "" && e.Code == api.NotFound {
		fmt.Fprintf(a.err, "  the URL was %s; check its path\n", u)
	}
	if flag := flagOf[e.Code]; flag != "" {
		fmt.Fprintf(a.err, "  use %s\n", flag)
	}
	for _, reason := range e.Reasons {
		fmt.Fprintf(a.err, "  reason: %s\n", printable(reason))
	}
	if e.Allowed != nil && len(e.Allowed.Scopes) > 0 {
		fmt.Fprintf(a.err, "  allowed: %s\n", printable(strings.Join(e.Allowed.Scopes, " ")))
	}
	if e.Allowed != nil && e.Allowed.MaxTTL > 0 {
		fmt.Fprintf(a.err, "  allowed: a ttl of at most %s\n", e.Allowed.MaxTTL)
	}
	if e.RequestID != "" {
		fmt.Fprintf(a.err, "  request: %s\n", printable(e.RequestID))
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "broker",
		Short: "Short-lived credentials for workloads and agents",
		Long: `broker issues short-lived, scoped credentials to workloads and AI agents. They
prove their identity with SPIFFE and state a reason, and policy decides. A log
that anyone can verify records everything that is issued.

` + exitHelp,
		Version:       service.ReadBuild().Version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages |", ".FlagUsagesWrapped 80 |"))
	root.SetVersionTemplate("broker {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%v", err) })
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "output format: text or json; for credentials also env, file, pgpass or pgservice")
	// Check the format first: a credential that can't be printed is lost.
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if a.protect != nil {
			if err := a.protect(c.Name()); err != nil {
				fmt.Fprintf(a.err, "broker: protecting the process's memory: %v\n", err)
			}
		}
		if c.Name() != "serve" { // in which SIGHUP reloads and SIGQUIT shows the goroutines
			c.SetContext(untilHangup(c.Context()))
		}
		if formats := formatsOf(c); !slices.Contains(formats, a.output) {
			return usage("-o must be one of %s, not %q", strings.Join(formats, ", "), a.output)
		}
		return nil
	}
	completes(root, "output", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return formatsOf(c), cobra.ShellCompDirectiveNoFileComp
	})
	root.AddGroup(
		&cobra.Group{ID: "client", Title: "For agents, services and people:"},
		&cobra.Group{ID: "operator", Title: "For operators:"},
		&cobra.Group{ID: "auditor", Title: "For auditors:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("client", a.requestCommand(), a.collectCommand(), a.requestsCommand(), a.showCommand(), a.withdrawCommand(), a.execCommand(), a.proxyCommand(), a.ciCommand(), a.awsCommand(), a.mcpCommand(),
		a.leasesCommand(), a.membershipsCommand(), a.renewCommand(), a.returnCommand(), a.entitlementsCommand(), a.whoamiCommand(), a.svidCommand(), a.loginCommand(), a.logoutCommand(), a.approveCommand(), a.denyCommand(), a.reviewCommand(), a.assessCommand(), a.suppliersCommand())
	add("operator", a.serveCommand(), a.devCommand(), a.demoCommand(), a.demoAgentCommand(), a.checkCommand(), a.storeCommand(), a.backupCommand(), a.restoreCommand(), a.reloadCommand(), a.killCommand(), a.blocksCommand(), a.signalsCommand(), a.keysCommand(), a.replicasCommand(), a.scimCommand(), a.policyCommand())
	add("auditor", a.auditCommand(), a.factsCommand(), a.identitiesCommand(), a.evidenceCommand())
	root.AddCommand(a.versionCommand())
	return root
}

// untilHangup returns a context that also ends when the terminal closes or on Ctrl-\,
// so that a command returns its lease and removes its files. A second signal ends the
// process at once. SIGHUP stays ignored under nohup.
func untilHangup(ctx context.Context) context.Context {
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(s) {
			until, stop := signal.NotifyContext(ctx, s)
			context.AfterFunc(until, stop)
			ctx = until
		}
	}
	return ctx
}

// formatsOf returns the output formats of a command.
func formatsOf(c *cobra.Command) []string {
	switch c.Name() {
	case "request", "collect", "renew":
		return credentialFormats
	}
	return []string{"text", "json"}
}

// usage returns an error for a wrong command line.
func usage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUsage, fmt.Sprintf(format, args...))
}

// exactly requires n arguments. what describes them.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usage("%s takes %s; see %s --help", c.Name(), what, c.CommandPath())
		}
		return nil
	}
}

// addWhy adds the flag for the reason of a change.
func addWhy(c *cobra.Command, why *string) {
	c.Flags().StringVar(why, "why", "", "the reason, recorded in the log")
}

// takesID requires the id of one request or lease as the argument of a command.
func takesID(c *cobra.Command, kind string) {
	what := map[string]string{"request": "a request id, req_…", "lease": "a lease id, lse_…"}[kind]
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) != 1 || !isID(kind, args[0]) {
			return usage("%s takes %s; see %s --help", c.Name(), what, c.CommandPath())
		}
		return nil
	}
}

func isID(kind, text string) bool {
	_, err := broker.ParseLeaseID(text)
	if kind == "request" {
		_, err = broker.ParseRequestID(text)
	}
	return err == nil
}

// print prints a value as JSON with -o json, and otherwise with text, in columns.
func (a *app) print(value any, text func(w io.Writer)) error {
	if a.output == "json" {
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(value)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	text(w)
	return w.Flush()
}

// printTable is print for a list with a row of column names.
func (a *app) printTable(value any, text func(w io.Writer)) error {
	if a.output == "json" {
		return a.print(value, text)
	}
	t := newTable(a.out)
	text(t)
	return t.Flush()
}

// counted returns a number with its noun, in the plural unless n is 1.
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// answer reads a line from a person. If ctx ends first, the answer is no.
func (a *app) answer(ctx context.Context, in *bufio.Reader) (string, error) {
	type typed struct {
		line string
		err  error
	}
	answers := make(chan typed, 1)
	go func() { // leaks until there is a line, because a read can't be canceled
		line, err := in.ReadString('\n')
		answers <- typed{strings.TrimSpace(line), err}
	}()
	select {
	case a := <-answers:
		return a.line, a.err
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return "", errNotConfirmed
	}
}

// interactive reports whether w is a terminal.
func interactive(w any) bool {
	if _, ok := w.(*typist); ok { // the demo types for a person
		return true
	}
	return screen.IsTerminal(w)
}

// palette returns the colours for standard output.
func (a *app) palette() screen.Palette { return screen.PaletteFor(a.out, a.getenv) }
