package main

import (
	"bufio"
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

// selectorFlags select the leases that the kill switch hits.
type selectorFlags struct{ api.Selector }

func (f *selectorFlags) add(c *cobra.Command, request bool) {
	c.Flags().StringVar(&f.Holder, "holder", "", "one identity: a SPIFFE ID, or a person such as login/ana")
	c.Flags().StringVar(&f.Under, "under", "", "a SPIFFE ID and every path below it")
	c.Flags().StringVar(&f.TrustDomain, "trust-domain", "", "all identities of a trust domain")
	c.Flags().StringVar(&f.Entitlement, "entitlement", "", "all holders of an entitlement")
	c.Flags().StringVar(&f.Issuer, "issuer", "", "all credentials of an issuer")
	if request {
		c.Flags().StringVar(&f.Request, "request", "", "one request: end its grant and its leases")
	}
}

// check requires exactly one selector.
func (f *selectorFlags) check() error {
	set := 0
	for _, s := range []string{f.Holder, f.Under, f.TrustDomain, f.Entitlement, f.Issuer, f.Request} {
		if s != "" {
			set++
		}
	}
	if set != 1 {
		return usage("select exactly one of --holder, --under, --trust-domain, --entitlement, --issuer or --request")
	}
	for _, id := range []string{f.Holder, f.Under} {
		if domain, path, err := broker.ParseSPIFFEID(strings.TrimSuffix(id, "/")); err == nil && path == "" {
			return usage("%s is a whole trust domain: use --trust-domain %s", id, domain)
		}
	}
	return nil
}

// adminClient returns a client that calls the API over the admin socket as an
// operator. A call takes at most wait.
func adminClient(socket string, wait time.Duration) *api.Client {
	return &api.Client{BaseURL: "http://localhost", HTTP: &http.Client{Timeout: wait, Transport: adminTransport(socket)}}
}

const (
	adminWait = time.Minute

	// killWait exceeds the broker's own deadline: the broker completes the kill
	// switch even if the client disconnects, and answers at the end.
	killWait = broker.KillDeadline + 10*time.Second
)

func (a *app) adminSocketFlag(c *cobra.Command, socket *string) {
	c.PersistentFlags().StringVar(socket, "admin-socket", "", "the broker's admin socket (or BROKER_ADMIN_SOCKET; default "+usualAdminSocket+")")
}

func (a *app) killCommand() *cobra.Command {
	var f selectorFlags
	var socket, why string
	var preview, yes, unmatched bool
	c := &cobra.Command{
		Use:   "kill",
		Short: "Use the kill switch: block, then revoke all matching credentials",
		Long: `kill blocks the selected identities, entitlement or issuer, so that nothing more
is issued, and then revokes all matching credentials. The block stays until you
run "broker blocks lift".

kill first shows what it will revoke, which credentials can't be revoked and how
long those will work, and asks for confirmation. If the preview changes before
you confirm, kill shows the new one and asks again. With --yes it skips preview
and confirmation.

A name that matches nothing may be a typing error: kill warns, and asks a second
time. With --yes it needs --unmatched to block such a name.

kill uses the admin socket on the broker's machine, which works even when nobody
can log in. With --as-person, people whom policy permits to block can use kill
from any machine.

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
				return errNoReason
			}
			return a.withAdmin(c.Context(), socket, killWait, func(ctx context.Context, client *api.Client) error {
				k := killSwitch{app: a, client: client, access: "--admin-socket " + a.adminSocket(socket), selector: f.Selector, why: why, unmatched: unmatched}
				if a.client.person {
					k.access = "--as-person"
				}
				switch {
				case preview:
					return k.showPreview(ctx)
				case yes:
					return k.kill(ctx, "")
				}
				return k.confirm(ctx)
			})
		},
	}
	f.add(c, true)
	completes(c, "entitlement", a.completeEntitlement)
	a.adminSocketFlag(c, &socket)
	a.client.addOperator(c)
	addWhy(c, &why)
	c.Flags().BoolVar(&preview, "preview", false, "show what kill would revoke, without doing it")
	c.Flags().BoolVar(&yes, "yes", false, "skip preview and confirmation")
	addUnmatched(c, &unmatched)
	return c
}

func addUnmatched(c *cobra.Command, unmatched *bool) {
	c.Flags().BoolVar(unmatched, "unmatched", false, "block the name even if nothing matches it")
}

// unmatchedHint names the flag in a refusal of a name that matches nothing.
func unmatchedHint(err error) error {
	var refused *api.Error
	if errors.Is(err, api.NothingMatches) && errors.As(err, &refused) {
		refused.Detail += " (--unmatched)"
	}
	return err
}

var errNoReason = usage("the log needs a reason: --why TEXT")

// A killSwitch is one use of the kill switch.
type killSwitch struct {
	*app
	client    *api.Client
	access    string // the flag by which related commands reach the broker
	selector  api.Selector
	why       string
	unmatched bool // the person has confirmed a name that matches nothing
}

func (k *killSwitch) preview(ctx context.Context) (*api.KillPreview, error) {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	return k.client.Kill(ctx, api.Kill{Selector: k.selector, Preview: true})
}

func (k *killSwitch) showPreview(ctx context.Context) error {
	hits, err := k.preview(ctx)
	if err != nil {
		return err
	}
	return k.printTable(hits, func(w io.Writer) { k.write(w, killPreview, hits) })
}

// confirm shows a preview and asks for confirmation. It repeats both until the
// person has confirmed a preview that is still current.
func (k *killSwitch) confirm(ctx context.Context) error {
	answers := bufio.NewReader(io.LimitReader(k.in, 4096))
	for {
		hits, err := k.preview(ctx)
		if err != nil {
			return err
		}
		shown := newTable(k.err)
		k.write(shown, killConfirm, hits)
		_ = shown.Flush() // to a terminal
		if err := k.ask(ctx, answers, "Type yes to continue: "); err != nil {
			return err
		}
		if hits.Unmatched && !k.unmatched {
			if err := k.ask(ctx, answers, "Nothing matches. Type yes again to block the name nevertheless: "); err != nil {
				return err
			}
			k.unmatched = true
		}
		if err = k.kill(ctx, hits.Digest); !errors.Is(err, api.PreviewStale) {
			return err
		}
		fmt.Fprintln(k.err, "Nothing was done yet: the preview has changed. (--yes skips the preview.)")
	}
}

// ask returns an error unless a person types yes.
func (k *killSwitch) ask(ctx context.Context, answers *bufio.Reader, question string) error {
	fmt.Fprint(k.err, question)
	line, err := k.answer(ctx, answers)
	switch {
	case line == "" && err == io.EOF && !interactive(k.in):
		return usage("standard input is not a terminal: use --preview to see the effect, then --yes")
	case errors.Is(err, errNotConfirmed):
		return err
	case line != "yes":
		return fmt.Errorf("%w: type yes, or use --yes", errNotConfirmed)
	}
	return nil
}

// kill blocks and revokes the leases that the preview with this digest showed or,
// without a digest, the leases that match now.
func (k *killSwitch) kill(ctx context.Context, digest string) error {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	hits, err := k.client.Kill(ctx, api.Kill{Selector: k.selector, Reason: k.why, PreviewDigest: digest, Force: digest == "", Unmatched: k.unmatched})
	var refused *api.Error
	switch {
	case err == nil:
		return k.print(hits, func(w io.Writer) { k.write(w, killDone, hits) })
	case errors.As(err, &refused) || errors.Is(err, errUnreachable):
		return unmatchedHint(err)
	}
	if errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	return fmt.Errorf(`%w
The broker may have started. If so, it finishes without this command. Check the
blocks and the remaining leases. It is safe to repeat the command.
  broker blocks %[2]s
  broker leases --holder '*' --live %[2]s`, err, k.access)
}

// A killText is what the first sentence says about the credentials.
type killText struct {
	block     string
	one, many string // of revocable credentials
	hits      bool   // list them
}

var (
	killPreview = killText{"", "would be revoked", "would be revoked", true}
	killConfirm = killText{"A block will be placed. ", "will be revoked", "will be revoked", true}
	killDone    = killText{"Blocked. ", "is being revoked", "are being revoked", false}
)

func (k *killSwitch) write(w io.Writer, text killText, hits *api.KillPreview) {
	if k.selector.Request != "" { // a request can't be blocked
		text.block = ""
	}
	if text.hits && hits.Unmatched {
		kind, name := selected(k.selector)
		what := ": no live credential, no request, no name in the rules."
		if hits.Below {
			what = " itself. To select what is below it, use --under."
		}
		fmt.Fprintf(w, "NOTHING MATCHES %s %s%s\n", kind, name, what)
		if hits.Near != "" && !hits.Below {
			fmt.Fprintf(w, "Did you mean %s?\n", hits.Near)
		}
	}
	writeKillCounts(w, text, hits)
	if _, _, err := broker.ParsePerson(k.selector.Holder); err == nil {
		fmt.Fprintln(w, "  all sessions of this person end; logins are refused until the block is lifted")
		if len(hits.Accounts) > 0 {
			fmt.Fprintf(w, "  with all accounts of this person: %s\n", strings.Join(hits.Accounts, ", "))
		}
	}
	if text.hits {
		writeHits(w, hits)
	}
}

// selected returns the kind and the name of a selector, as flags spell them.
func selected(s api.Selector) (kind, name string) {
	for _, f := range [][2]string{
		{"holder", s.Holder}, {"under", s.Under}, {"trust-domain", s.TrustDomain},
		{"entitlement", s.Entitlement}, {"issuer", s.Issuer}, {"request", s.Request},
	} {
		if f[1] != "" {
			return f[0], f[1]
		}
	}
	return "", ""
}

func writeKillCounts(w io.Writer, text killText, k *api.KillPreview) {
	fmt.Fprintf(w, "%s%s\n", text.block, killSentence(text, k))
	if n := k.Expiring(); n > 0 {
		fmt.Fprintf(w, "  %d cannot be revoked and %s, the last until %s\n", n, plural(n, "works until it expires", "work until they expire"), clock(k.WorkUntil))
	}
	if k.Lasting > 0 {
		fmt.Fprintf(w, "  %d cannot be revoked and %s working after %s; change the %s\n", k.Lasting, plural(k.Lasting, "keeps", "keep"),
			plural(k.Lasting, "it expires", "they expire"), plural(k.Lasting, "account that it belongs to", "accounts that they belong to"))
	}
	if k.Ended > 0 {
		fmt.Fprintf(w, "  %s that ended before\n", plural(k.Ended, "1 belongs to a lease", fmt.Sprintf("%d belong to leases", k.Ended)))
	}
	for _, issuer := range slices.Sorted(maps.Keys(k.ByIssuer)) {
		fmt.Fprintf(w, "  %d from issuer %s\n", k.ByIssuer[issuer], issuer)
	}
	if k.Beyond > 0 {
		fmt.Fprintf(w, "  %s also end, because the issuer ends them together\n", counted(k.Beyond, "other"))
	}
	if k.More {
		fmt.Fprintln(w, "  there are more: repeat the command")
	}
}

// killSentence states how many credentials are revoked, without those that cannot be.
func killSentence(text killText, k *api.KillPreview) string {
	n := k.Revocable()
	switch {
	case k.Leases == 0:
		return "No live credentials match."
	case n == 0:
		return "No credential can be revoked."
	}
	return fmt.Sprintf("%s %s.", counted(n, "credential"), plural(n, text.one, text.many))
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

const maxShownHits = 20

func writeHits(w io.Writer, k *api.KillPreview) {
	if len(k.Hits) == 0 {
		return
	}
	if t, ok := w.(*table); ok {
		_ = t.Flush() // to a terminal; the hits are a table of their own
	}
	fmt.Fprintln(w, "LEASE\tHOLDER\tENTITLEMENT\tENDS\tAT")
	shown := k.Hits[:min(len(k.Hits), maxShownHits)]
	for _, h := range shown {
		how, at := hitEnds(h)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", h.Lease, h.Holder, h.Entitlement, how, at)
	}
	if rest := k.Leases - len(shown); rest > 0 {
		fmt.Fprintf(w, "and %d more\n", rest)
	}
}

// hitEnds states how the credential of a lease ends, and when if the kill switch does
// not end it.
func hitEnds(h api.KillHit) (how, at string) {
	switch {
	case h.Revocation == "immediate":
		return "at once", ""
	case h.Revocation == "pending":
		return "is revoked", ""
	case h.Revocation == "at_expiry":
		return "on expiry", clock(h.ExpiresAt)
	case h.Revocation == "at_rotation" && h.WorksUntil.IsZero():
		return "on rotation", ""
	case h.Revocation == "at_rotation":
		return "on rotation", clock(h.WorksUntil)
	}
	return "never", ""
}

func (a *app) blocksCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "blocks",
		Short: "List, add and lift blocks of the kill switch",
		Example: `  broker blocks
  broker blocks add --holder spiffe://acme.test/agent/triage --why "INC-4711"
  broker blocks lift --holder spiffe://acme.test/agent/triage --why "it was a false alarm"`,
		Args: exactly(0, "no arguments, or add or lift"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withAdmin(c.Context(), socket, adminWait, func(ctx context.Context, client *api.Client) error {
				blocks, err := client.Blocks(ctx)
				if err != nil {
					return err
				}
				return a.printTable(api.Blocks{Blocks: blocks}, func(w io.Writer) { writeBlocks(w, blocks) })
			})
		},
	}
	a.adminSocketFlag(c, &socket)
	a.client.addOperator(c)
	c.AddCommand(
		a.blockChange(&socket, "add", "Block what is selected, without revoking anything", "is blocked", (*api.Client).Block),
		a.blockChange(&socket, "lift", "Lift a block", "is no longer blocked", (*api.Client).Lift))
	return c
}

func (a *app) blockChange(socket *string, name, short, state string, change func(*api.Client, context.Context, api.BlockChange) error) *cobra.Command {
	var f selectorFlags
	var why string
	var unmatched bool
	c := &cobra.Command{
		Use: name, Short: short,
		Example: "  broker blocks " + name + ` --holder spiffe://acme.test/agent/triage --why "INC-4711"`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if strings.TrimSpace(why) == "" {
				return errNoReason
			}
			return a.withAdmin(c.Context(), *socket, adminWait, func(ctx context.Context, client *api.Client) error {
				block := api.BlockChange{Selector: f.Selector, Reason: why, Unmatched: unmatched}
				if err := change(client, ctx, block); err != nil {
					return unmatchedHint(err)
				}
				return a.print(block, func(w io.Writer) {
					_, name := selected(f.Selector)
					fmt.Fprintf(w, "%s %s\n", name, state)
				})
			})
		},
	}
	f.add(c, false)
	completes(c, "entitlement", a.completeEntitlement)
	a.client.addOperator(c)
	addWhy(c, &why)
	if name == "add" {
		addUnmatched(c, &unmatched)
	}
	return c
}

func writeBlocks(w io.Writer, blocks []api.Block) {
	if len(blocks) == 0 {
		fmt.Fprintln(w, "no blocks")
		return
	}
	fmt.Fprintln(w, "KIND\tNAME\tSINCE\tBY\tREASON")
	for _, b := range blocks {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", b.Kind, b.Name, clock(b.Since), b.By, printable(b.Reason))
	}
}
