package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/store"
)

func (a *app) auditCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "audit",
		Short: "Verify and read the log, offline",
		Args:  exactly(0, "a command: verify, show, approvers, export or new-epoch"),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.auditVerifyCommand(), a.auditShowCommand(), a.auditApproversCommand(), a.auditExportCommand(), a.newEpochCommand())
	return c
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var key, approvers string
	var checkpoints []string
	c := &cobra.Command{
		Use:   "verify STORE-URL|FILE",
		Short: "Check every record, hash and signature of a log",
		Long: `verify reads a whole log, from a database or an export, and checks that every
record is canonical and in its place, that the records hash to the tree and the
tree to every signed checkpoint, that times never go back, that texts are what
was committed to, that no lease is issued twice or after its end, that each is
within the grant of a request, that the people whom policy wanted approved it,
and that approvals and reviews which it wanted signed are, by passkeys that
counted. It needs neither the broker nor a secret.

Give --key with the log's public key from elsewhere: without it, the key in the
log itself is believed. Give --approvers with the passkeys that you know, as
"broker audit approvers" wrote them when you looked: without it, the log is
believed whose they are, and that they waited for a day.`,
		Example: `  broker audit verify sqlite:/var/lib/broker/broker.db --key 'broker.acme.test/log/1a2b3c4d+…'
  broker audit verify export.jsonl --checkpoint kept-from-last-month.txt --approvers approvers.txt`,
		Args: exactly(1, "one database (sqlite:PATH) or file"),
		RunE: func(c *cobra.Command, args []string) error {
			opts, err := verifyOptions(key, approvers, checkpoints)
			if err != nil {
				return err
			}
			return withLog(c.Context(), args[0], func(src audit.Source) error {
				report, err := verify.Verify(c.Context(), src, opts)
				if report == nil {
					return err
				}
				if printed := a.print(report, func(w io.Writer) { writeReport(w, report) }); printed != nil {
					return printed
				}
				var found *verify.Problem
				if errors.As(err, &found) { // the report has it
					return exitError(exitFailed)
				}
				return err
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "the log's public key, from elsewhere than the log")
	c.Flags().StringVar(&approvers, "approvers", "", "a file with the passkeys that you know, from elsewhere than the log")
	c.Flags().StringSliceVar(&checkpoints, "checkpoint", nil, "a file with a checkpoint that you kept; may be given more than once")
	return c
}

// verifyOptions reads what the auditor brings along. What is wrong with that is
// said before the log is looked at, or it would seem to be the log's fault.
func verifyOptions(key, approvers string, checkpoints []string) (verify.Options, error) {
	opts := verify.Options{Key: key}
	if key != "" {
		if err := audit.CheckKey(key); err != nil {
			return opts, usage("--key: %v", err)
		}
	}
	for _, path := range checkpoints {
		note, err := os.ReadFile(path)
		if err != nil {
			return opts, usage("--checkpoint: %v", err)
		}
		if err := audit.CheckNote(note); err != nil {
			return opts, usage("--checkpoint: %s: %v", path, err)
		}
		opts.Checkpoints = append(opts.Checkpoints, string(note))
	}
	if approvers == "" {
		return opts, nil
	}
	text, err := os.ReadFile(approvers)
	if err != nil {
		return opts, usage("--approvers: %v", err)
	}
	if opts.Approvers, err = verify.ParseApprovers(string(text)); err != nil {
		return opts, usage("--approvers: %s: %v", approvers, err)
	}
	if len(opts.Approvers) == 0 {
		return opts, usage("--approvers: %s names no approver", approvers)
	}
	return opts, nil
}

func writeReport(w io.Writer, r *verify.Report) {
	fmt.Fprintf(w, "log\t%s\n", plainly(r.Origin))
	trust := "given by you"
	if !r.KeyTrusted {
		trust = "the log's own word for it: give --key to trust nobody"
	}
	fmt.Fprintf(w, "key\t%s (%s)\n", plainly(r.Key), trust)
	fmt.Fprintf(w, "records\t%d\n", r.Records)
	if r.Records > 0 {
		fmt.Fprintf(w, "from, to\t%s, %s\n", clock(r.First), clock(r.Last))
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		fmt.Fprintf(w, "  %s\t%d\n", plainly(string(kind)), r.Kinds[kind])
	}
	fmt.Fprintf(w, "root\t%s\n", r.Root)
	fmt.Fprintf(w, "checkpoints\t%d signed, all of this log\n", r.Checkpoints)
	switch {
	case r.Signed == 0:
		fmt.Fprintln(w, "signed\tnothing: whoever has the database could have written this")
	case r.Signed < r.Records:
		fmt.Fprintf(w, "signed\tthe first %d; the last %d are not yet, and whoever has the database could have written those\n", r.Signed, r.Records-r.Signed)
	}
	if r.Signatures > 0 || r.KeysPinned {
		whose := "of approvers given by you"
		if !r.KeysPinned {
			whose = "the log's own word for whose they are: give --approvers to trust nobody"
		}
		fmt.Fprintf(w, "signatures\t%d of passkeys (%s)\n", r.Signatures, whose)
	}
	if r.Unjudged > 0 {
		fmt.Fprintf(w, "not judged\t%d about requests older than the log, or of more than can be remembered at once\n", r.Unjudged)
	}
	if r.Verified {
		fmt.Fprintln(w, "verified\teverything holds")
		return
	}
	fmt.Fprintln(w, "NOT VERIFIED")
	for _, p := range r.Problems {
		fmt.Fprintf(w, "  %s\n", plainly(p.Error()))
	}
	if r.More > 0 {
		fmt.Fprintf(w, "  and %d more problems\n", r.More)
	}
}

func (a *app) auditApproversCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "approvers STORE-URL|FILE",
		Short: "Print the passkeys that people enrolled and did not remove",
		Long: `approvers prints, one a line, whose passkeys the log knows: person, relying
party, credential and public key (a SubjectPublicKeyInfo in base64url). Compare
them with the people, keep the file, and give it to "broker audit verify
--approvers": no key that is enrolled without you then signs anything.`,
		Example: `  broker audit approvers sqlite:/var/lib/broker/broker.db > approvers.txt`,
		Args:    exactly(1, "one database (sqlite:PATH) or file"),
		RunE: func(c *cobra.Command, args []string) error {
			return withLog(c.Context(), args[0], func(src audit.Source) error {
				list, err := verify.Approvers(c.Context(), src)
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) {
					for _, approver := range list {
						fmt.Fprintln(w, plainly(approver.String()))
					}
				})
			})
		},
	}
}

func (a *app) auditShowCommand() *cobra.Command {
	var from, last int64
	var kind, about string
	c := &cobra.Command{
		Use:   "show STORE-URL|FILE",
		Short: "Print records of a log",
		Example: `  broker audit show sqlite:/var/lib/broker/broker.db --last 20
  broker audit show export.jsonl --about lse_0658sg2b7puh5u0qv0s9k8g6nk -o json`,
		Args: exactly(1, "one database (sqlite:PATH) or file"),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case from < 0:
				return usage("--from takes the index of a record, from 0")
			case last < 0:
				return usage("--last takes how many, from 1; 0 is all")
			case kind != "" && !slices.Contains(audit.Kinds(), audit.Kind(kind)):
				return usage("--kind: no record is a %q; there are:\n%s", kind, kindsInRows())
			}
			return withLog(c.Context(), args[0], func(src audit.Source) error {
				named := naming(about)
				wanted := func(item audit.Item, r audit.Record) bool {
					return named(item, r) && item.Index >= from && (kind == "" || string(r.Kind) == kind)
				}
				return a.showRecords(c.Context(), src, wanted, last)
			})
		},
	}
	c.Flags().Int64Var(&from, "from", 0, "the index of the first record")
	c.Flags().Int64Var(&last, "last", 0, "only so many of the newest that fit")
	c.Flags().StringVar(&kind, "kind", "", "only records of a kind, such as lease.issued")
	c.Flags().StringVar(&about, "about", "", "only records that name this request (or a lease of it), lease or identity")
	return c
}

// naming says of records, told in their order, which name an id; "": all. Ends
// of leases don't name their request, and are about it all the same.
func naming(id string) func(audit.Item, audit.Record) bool {
	its := map[string]bool{} // the request's leases
	return func(item audit.Item, r audit.Record) bool {
		if r.Request != nil && r.Request.ID == id && r.Lease != nil {
			its[r.Lease.ID] = true
		}
		return id == "" || strings.Contains(string(item.Leaf), strconv.Quote(id)) || r.Lease != nil && its[r.Lease.ID]
	}
}

// kindsInRows lists the kinds of records, those of a thing in a row.
func kindsInRows() string {
	var b strings.Builder
	of := ""
	for _, kind := range audit.Kinds() {
		thing, _, _ := strings.Cut(string(kind), ".")
		if thing != of {
			b.WriteString("\n ")
		}
		of = thing
		b.WriteString(" " + string(kind))
	}
	return strings.TrimPrefix(b.String(), "\n")
}

// rowsTogether is how many records are aligned with each other: a log may be too
// long to wait for its end.
const rowsTogether = 1000

// showRecords prints the records that are wanted; with last, only the newest.
func (a *app) showRecords(ctx context.Context, src audit.Source, wanted func(audit.Item, audit.Record) bool, last int64) error {
	table := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	w := io.Writer(table)
	if a.output == "json" {
		w = a.out
	}
	var kept []string
	shown := int64(0)
	for item, err := range src.Items(ctx) {
		if err != nil {
			return errors.Join(fmt.Errorf("reading the log: %w", err), table.Flush())
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			return errors.Join(fmt.Errorf("record %d: %w (broker audit verify tells more)", item.Index, err), table.Flush())
		}
		if !wanted(item, r) {
			continue
		}
		line := recordLine(item, r)
		if a.output == "json" {
			line = fmt.Sprintf(`{"index":%d,"record":%s}`, item.Index, item.Leaf)
		}
		shown++
		if last > 0 {
			if kept = append(kept, line); int64(len(kept)) > last {
				kept = kept[1:]
			}
			continue
		}
		fmt.Fprintln(w, line)
		if shown%rowsTogether == 0 {
			if err := table.Flush(); err != nil {
				return err
			}
		}
	}
	for _, line := range kept {
		fmt.Fprintln(w, line)
	}
	if shown == 0 {
		fmt.Fprintln(a.err, "no records")
	}
	return table.Flush()
}

// recordLine shows a record in one line of a table: its index, when, what, who,
// for what, which request or lease, and how it ended.
func recordLine(item audit.Item, r audit.Record) string {
	var who, what, which string
	var how []string
	if r.Caller != nil {
		who = r.Caller.ID
	}
	if r.Request != nil {
		what, which = r.Request.Entitlement, r.Request.ID
		if len(r.Request.Scopes) > 0 {
			what += " " + strings.Join(r.Request.Scopes, " ")
		}
	}
	if r.Lease != nil {
		which = r.Lease.ID
	}
	if r.Decision != nil && !r.Decision.Permit {
		how = append(how, r.Decision.Code)
	}
	if r.Count > 1 {
		how = append(how, fmt.Sprintf("×%d", r.Count))
	}
	if r.End != nil {
		how = append(how, r.End.How)
	}
	cells := []string{strconv.FormatInt(item.Index, 10), r.Time.UTC().Format("2006-01-02 15:04:05.000Z"), string(r.Kind), who, what, which, strings.Join(how, " ")}
	for i, cell := range cells {
		cells[i] = cmp.Or(plainly(cell), "-")
	}
	return strings.Join(cells, "\t")
}

func (a *app) auditExportCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "export STORE-URL",
		Short:   "Write a log as JSON Lines, for others to verify",
		Example: `  broker audit export sqlite:/var/lib/broker/broker.db > export.jsonl`,
		Args:    exactly(1, "one database (sqlite:PATH)"),
		RunE: func(c *cobra.Command, args []string) error {
			return withLog(c.Context(), args[0], func(src audit.Source) error {
				w := bufio.NewWriter(a.out)
				return errors.Join(verify.Export(c.Context(), w, src), w.Flush())
			})
		},
	}
	return c
}

// sqliteMagic begins every SQLite database.
const sqliteMagic = "SQLite format 3\x00"

// withLog opens a log read-only: a database, by URL or by file, or an export.
func withLog(ctx context.Context, name string, f func(audit.Source) error) error {
	path := strings.TrimPrefix(name, "sqlite:")
	opened, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	defer func() { _ = opened.Close() }()
	in := bufio.NewReader(opened)
	if magic, _ := in.Peek(len(sqliteMagic)); string(magic) == sqliteMagic {
		src, err := store.OpenSource(ctx, path)
		if err != nil {
			return err
		}
		defer func() { _ = src.Close() }()
		return f(src)
	}
	src, err := verify.OpenExport(in)
	if err != nil {
		return err
	}
	return f(src)
}
