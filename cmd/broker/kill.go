package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// selectorFlags say what the kill switch hits.
type selectorFlags struct{ api.Selector }

func (f *selectorFlags) add(c *cobra.Command, request bool) {
	c.Flags().StringVar(&f.Holder, "holder", "", "one identity: a SPIFFE ID, or a person as login/ana")
	c.Flags().StringVar(&f.Under, "under", "", "a SPIFFE ID and every path below it")
	c.Flags().StringVar(&f.TrustDomain, "trust-domain", "", "everybody of a trust domain")
	c.Flags().StringVar(&f.Entitlement, "entitlement", "", "everybody who has an entitlement")
	c.Flags().StringVar(&f.Issuer, "issuer", "", "everything that one issuer makes")
	if request {
		c.Flags().StringVar(&f.Request, "request", "", "one request: its grant ends, and its leases do")
	}
}

// check wants exactly one of them.
func (f *selectorFlags) check() error {
	given := 0
	for _, s := range []string{f.Holder, f.Under, f.TrustDomain, f.Entitlement, f.Issuer, f.Request} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return usage("say what to hit, and one thing only: --holder, --under, --trust-domain, --entitlement, --issuer or --request")
	}
	return nil
}

// adminClient speaks the API over the admin socket, as an operator. An answer
// may take up to wait.
func adminClient(socket string, wait time.Duration) *api.Client {
	return &api.Client{BaseURL: "http://localhost", HTTP: &http.Client{Timeout: wait, Transport: adminTransport(socket)}}
}

const (
	adminWait = time.Minute

	// killWait is how long the kill switch may take: the broker goes on to its end,
	// whether anybody waits or not, and then answers.
	killWait = broker.KillDeadline + 10*time.Second
)

func (a *app) adminSocketFlag(c *cobra.Command, socket *string) {
	c.PersistentFlags().StringVar(socket, "admin-socket", "", "the broker's admin socket (or BROKER_ADMIN_SOCKET; default "+usualAdminSocket+")")
}

func (a *app) killCommand() *cobra.Command {
	var f selectorFlags
	var socket, why string
	var preview, yes bool
	c := &cobra.Command{
		Use:   "kill",
		Short: "Pull the kill switch: block, and end every credential that it hits",
		Long: `kill blocks whom you name, so that nothing more is issued to them, and then ends
every credential that they hold. The block stays until "broker blocks lift".

It shows first what it will hit, and how long those will go on working that only
time ends, and asks; if that changes meanwhile, it shows that and asks again. With
--yes it neither looks nor asks: it ends what there is. It works on the broker's own
machine, by the admin socket, also when nobody can log in; and from anywhere for
people whom policy lets block, with --as-person.

` + exitHelp,
		Example: `  broker kill --under spiffe://acme.test/agent --why "INC-4711" --preview
  broker kill --under spiffe://acme.test/agent --why "INC-4711"
  broker kill --issuer vault --why "the database is leaking" --yes`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if !preview && strings.TrimSpace(why) == "" {
				return usage("say why, for the log: --why TEXT")
			}
			return a.asOperator(c.Context(), socket, killWait, func(ctx context.Context, client *api.Client) error {
				k := killing{app: a, client: client, by: "--admin-socket " + a.adminSocket(socket), selector: f.Selector, why: why}
				if a.client.person {
					k.by = "--as-person"
				}
				switch {
				case preview:
					return k.preview(ctx)
				case yes:
					return k.pull(ctx, "")
				}
				return k.ask(ctx)
			})
		},
	}
	f.add(c, true)
	completes(c, "entitlement", a.completeEntitlement)
	a.adminSocketFlag(c, &socket)
	a.client.addOperator(c)
	c.Flags().StringVar(&why, "why", "", "the reason, kept in the log")
	c.Flags().BoolVar(&preview, "preview", false, "show what it would hit, and do nothing")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask, and end whatever there is by then")
	return c
}

// A killing is one use of the kill switch.
type killing struct {
	*app
	client   *api.Client
	by       string // how it is done, on a command line
	selector api.Selector
	why      string
}

func (k *killing) look(ctx context.Context) (*api.KillPreview, error) {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	return k.client.Kill(ctx, api.Kill{Selector: k.selector, Preview: true})
}

func (k *killing) preview(ctx context.Context) error {
	seen, err := k.look(ctx)
	if err != nil {
		return err
	}
	return k.print(seen, func(w io.Writer) { k.write(w, "it would end", seen) })
}

// ask shows what will be hit, and asks, until what was shown is what is hit.
func (k *killing) ask(ctx context.Context) error {
	answers := bufio.NewReader(io.LimitReader(k.in, 4096))
	for {
		seen, err := k.look(ctx)
		if err != nil {
			return err
		}
		k.write(k.err, k.words("it will block, and end", "it will end"), seen)
		fmt.Fprint(k.err, "type yes to go on: ")
		line, err := k.answer(ctx, answers)
		switch {
		case line == "" && err == io.EOF && !interactive(k.in):
			return usage("there is nobody to ask: give --preview to look, and --yes to do it")
		case errors.Is(err, errNotConfirmed):
			return err
		case line != "yes":
			return fmt.Errorf("%w: type yes, or give --yes", errNotConfirmed)
		}
		if err = k.pull(ctx, seen.Digest); !errors.Is(err, api.PreviewStale) {
			return err
		}
		fmt.Fprintln(k.err, "nothing was done yet: what it would hit has changed meanwhile (with --yes it would not look)")
	}
}

// pull does it, to what the preview showed or, without one, to whatever there
// is.
func (k *killing) pull(ctx context.Context, seen string) error {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	hit, err := k.client.Kill(ctx, api.Kill{Selector: k.selector, Reason: k.why, PreviewDigest: seen, Force: seen == ""})
	var refused *api.Error
	switch {
	case err == nil:
		return k.print(hit, func(w io.Writer) { k.write(w, k.words("blocked, and ending", "ending"), hit) })
	case errors.As(err, &refused) || errors.Is(err, errUnreachable):
		return err
	}
	if errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	return fmt.Errorf(`%w
The broker may have begun, and then goes on by itself. Look at what is blocked and
what is left; repeating the command does no harm:
  broker blocks %[2]s
  broker leases --holder '*' --live %[2]s`, err, k.by)
}

// words are those of what blocks, or those of what only ends: a request can't be
// blocked.
func (k *killing) words(blocks, ends string) string {
	if k.selector.Request != "" {
		return ends
	}
	return blocks
}

func (k *killing) write(w io.Writer, what string, hit *api.KillPreview) {
	writeKill(w, what, hit)
	if holder := k.selector.Holder; holder != "" && !strings.HasPrefix(holder, "spiffe://") {
		fmt.Fprintln(w, "  and all sessions of this person, who is not let in until the block is lifted")
	}
}

func writeKill(w io.Writer, what string, k *api.KillPreview) {
	fmt.Fprintf(w, "%s %s\n", what, counted(k.Leases-k.Ended, "credential"))
	if k.Ended > 0 {
		fmt.Fprintf(w, "  %s ended before, and can be used all the same\n", counted(k.Ended, "other"))
	}
	for _, issuer := range slices.Sorted(maps.Keys(k.ByIssuer)) {
		fmt.Fprintf(w, "  %d of %s\n", k.ByIssuer[issuer], issuer)
	}
	if n := k.Irrevocable - k.Lasting; n > 0 {
		fmt.Fprintf(w, "  %d of them only time ends, the last at %s\n", n, clock(k.WorkUntil))
	}
	if k.Beyond > 0 {
		fmt.Fprintf(w, "  and %s with them, because their issuer ends them together\n", counted(k.Beyond, "other"))
	}
	if k.Lasting > 0 {
		fmt.Fprintf(w, "  %d of them will go on working: change what they give access to\n", k.Lasting)
	}
	if k.More {
		fmt.Fprintln(w, "  and there are more: repeat the command")
	}
}

func (a *app) blocksCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "blocks",
		Short: "List what the kill switch blocks; add and lift blocks",
		Example: `  broker blocks
  broker blocks add --holder spiffe://acme.test/agent/triage --why "INC-4711"
  broker blocks lift --holder spiffe://acme.test/agent/triage --why "it was a false alarm"`,
		Args: exactly(0, "no arguments, or add or lift"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.asOperator(c.Context(), socket, adminWait, func(ctx context.Context, client *api.Client) error {
				blocks, err := client.Blocks(ctx)
				if err != nil {
					return err
				}
				return a.print(api.Blocks{Blocks: blocks}, func(w io.Writer) { writeBlocks(w, blocks) })
			})
		},
	}
	a.adminSocketFlag(c, &socket)
	a.client.addOperator(c)
	c.AddCommand(
		a.blockChange(&socket, "add", "Refuse whatever is selected, from now on", "is blocked", (*api.Client).Block),
		a.blockChange(&socket, "lift", "Lift a block", "is not blocked", (*api.Client).Lift))
	return c
}

func (a *app) blockChange(socket *string, name, short, now string, change func(*api.Client, context.Context, api.BlockChange) error) *cobra.Command {
	var f selectorFlags
	var why string
	c := &cobra.Command{
		Use: name, Short: short,
		Example: "  broker blocks " + name + ` --holder spiffe://acme.test/agent/triage --why "INC-4711"`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if strings.TrimSpace(why) == "" {
				return usage("say why, for the log: --why TEXT")
			}
			return a.asOperator(c.Context(), *socket, adminWait, func(ctx context.Context, client *api.Client) error {
				done := api.BlockChange{Selector: f.Selector, Reason: why}
				if err := change(client, ctx, done); err != nil {
					return err
				}
				return a.print(done, func(w io.Writer) {
					fmt.Fprintf(w, "%s %s\n", cmp.Or(f.Holder, f.Under, f.TrustDomain, f.Entitlement, f.Issuer), now)
				})
			})
		},
	}
	f.add(c, false)
	completes(c, "entitlement", a.completeEntitlement)
	a.client.addOperator(c)
	c.Flags().StringVar(&why, "why", "", "the reason, kept in the log")
	return c
}

func writeBlocks(w io.Writer, blocks []api.Block) {
	if len(blocks) == 0 {
		fmt.Fprintln(w, "nothing is blocked")
		return
	}
	fmt.Fprintln(w, "WHAT\tNAME\tSINCE\tBY\tWHY")
	for _, b := range blocks {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", b.Kind, b.Name, clock(b.Since), b.By, b.Reason)
	}
}
