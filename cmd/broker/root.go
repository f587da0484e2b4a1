package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	svc "accessbroker.internal/internal/service"
)

// A terminal is what a command has of its surroundings.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
}

// An app is one run of the command.
type app struct {
	terminal
	output string // -o
	client clientFlags
}

// Exit codes. They are documented in the help and are contracts.
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
  1  failed; also what is asked wrongly, such as for too long, or without a reason
  2  the command line is wrong
  3  the broker refused: denied, not permitted, not proved
  4  people have yet to approve, or did not in time
  5  the broker can't be reached, or something else answers in its place`

// errUsage marks a wrong command line.
var errUsage = errors.New("usage")

// errInterrupted says that a signal ended what was done.
var errInterrupted = errors.New("interrupted")

// errNotConfirmed says that a person changed their mind.
var errNotConfirmed = errors.New("nothing was done")

// An exitError ends the command with a code of its own, silently.
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
	case errors.Is(err, context.Canceled):
		err = errInterrupted
	}
	a.complain(err)
	return exitCode(err)
}

func exitCode(err error) int {
	var e *api.Error
	// Not net.Error: every errno is one, also that of a file that is not there.
	var network *net.OpError
	var call *url.Error
	switch {
	case errors.Is(err, errUsage) || strings.HasPrefix(err.Error(), "unknown command "): // the library's own words
		return exitUsage
	case errors.Is(err, api.Pending) || errors.Is(err, api.Lapsed):
		return exitPending
	case errors.As(err, &e) && e.Code == "" || errors.Is(err, api.ErrNotBroker): // something else answers there
		return exitUnreachable
	case e != nil && (e.Status == 401 || e.Status == 403):
		return exitDenied
	case errors.As(err, &network) && network.Op != "listen" || errors.As(err, &call) || errors.Is(err, errUnreachable):
		return exitUnreachable
	}
	return exitFailed
}

// complain says what went wrong and, if the broker said so, what to do.
func (a *app) complain(err error) {
	var nobody *noAdmin
	if errors.As(err, &nobody) {
		err = nobody
	}
	var e *api.Error
	if !errors.As(err, &e) {
		fmt.Fprintf(a.err, "broker: %s\n", strings.TrimPrefix(err.Error(), errUsage.Error()+": "))
		return
	}
	if e.Code == "" {
		fmt.Fprintf(a.err, "broker: HTTP %d %s: that is not the broker's API; is %s its URL?\n", e.Status, plainly(e.Title), a.server())
		return
	}
	text := e.Detail
	if text == "" {
		text = e.Title
	}
	fmt.Fprintf(a.err, "broker: %s: %s\n", plainly(string(e.Code)), plainly(text))
	if u, err := url.Parse(a.server()); err == nil && u.Path != "" && e.Code == api.NotFound {
		fmt.Fprintf(a.err, "  asked at %s: is that its path?\n", u)
	}
	for _, reason := range e.Reasons {
		fmt.Fprintf(a.err, "  because %s\n", plainly(reason))
	}
	if e.Allowed != nil && len(e.Allowed.Scopes) > 0 {
		fmt.Fprintf(a.err, "  allowed: %s\n", plainly(strings.Join(e.Allowed.Scopes, " ")))
	}
	if e.Allowed != nil && e.Allowed.MaxTTL > 0 {
		fmt.Fprintf(a.err, "  allowed: a ttl of at most %s\n", e.Allowed.MaxTTL)
	}
	if e.RequestID != "" {
		fmt.Fprintf(a.err, "  request: %s\n", plainly(e.RequestID))
	}
	var stays *staysError
	if errors.As(err, &stays) {
		fmt.Fprintln(a.err, stays.advice())
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "broker",
		Short: "Short-lived credentials for workloads and agents that prove who they are",
		Long: `broker gives workloads and AI agents short-lived, scoped credentials. They prove
who they are with SPIFFE, say why they ask, and policy decides. Everything that
is issued stands in a log that anyone can verify.

` + exitHelp,
		Version:       svc.ReadBuild().Version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate("broker {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%v", err) })
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "how to print: text or json; what gives credentials also takes env, file and pgpass")
	// Before anything is done: a credential that can't be printed is lost.
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if formats := formatsOf(c); !slices.Contains(formats, a.output) {
			return usage("-o is %s, not %q", strings.Join(formats, ", "), a.output)
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
	add("client", a.requestCommand(), a.collectCommand(), a.requestsCommand(), a.withdrawCommand(), a.execCommand(), a.awsCommand(),
		a.leasesCommand(), a.renewCommand(), a.returnCommand(), a.entitlementsCommand(), a.whoamiCommand(), a.loginCommand(), a.logoutCommand(), a.approveCommand(), a.denyCommand(), a.reviewCommand())
	add("operator", a.serveCommand(), a.devCommand(), a.demoCommand(), a.checkCommand(), a.reloadCommand(), a.killCommand(), a.blocksCommand(), a.keysCommand(), a.policyCommand())
	add("auditor", a.auditCommand())
	root.AddCommand(a.versionCommand())
	return root
}

// formatsOf are those in which a command prints.
func formatsOf(c *cobra.Command) []string {
	switch c.Name() {
	case "request", "collect", "renew":
		return credentialFormats
	}
	return []string{"text", "json"}
}

// usage makes an error of a wrong command line.
func usage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUsage, fmt.Sprintf(format, args...))
}

// exactly demands n arguments, and says what they are.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usage("%s takes %s; see %s --help", c.Name(), what, c.CommandPath())
		}
		return nil
	}
}

// takesID has a command take the id of one request or lease, and offers no files.
func takesID(c *cobra.Command, kind string) {
	what := map[string]string{"request": "a request, req_…", "lease": "a lease, lse_…"}[kind]
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

// print shows a value as JSON if -o json was given, and by text otherwise.
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

// counted is a number of things.
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// answer reads the line that a person types. A signal in its stead is a no.
func (a *app) answer(ctx context.Context, in *bufio.Reader) (string, error) {
	type typed struct {
		line string
		err  error
	}
	answers := make(chan typed, 1)
	go func() { // until a line comes, or the process ends
		line, err := in.ReadString('\n')
		answers <- typed{strings.TrimSpace(line), err}
	}()
	select {
	case given := <-answers:
		return given.line, given.err
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return "", errNotConfirmed
	}
}

// interactive says whether a person watches.
func interactive(w any) bool {
	if _, ok := w.(*typist); ok { // the demo's
		return true
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // a device, and nobody
	return err != nil || !os.SameFile(info, null)
}
