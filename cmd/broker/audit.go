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

	"github.com/spf13/cobra"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/store"
)

func (a *app) auditCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "audit",
		Short: "Verify and read the audit log offline, or search it in a running broker",
		Args:  exactly(0, "a command: verify, show, search, approvers, export, new-epoch or recovery"),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.auditVerifyCommand(), a.auditShowCommand(), a.auditSearchCommand(), a.auditApproversCommand(), a.auditExportCommand(), a.newEpochCommand(), a.recoveryCommand())
	return c
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var key, approvers string
	var checkpoints []string
	c := &cobra.Command{
		Use:   "verify STORE-URL|FILE",
		Short: "Verify every record, hash and signature of a log",
		Long: `verify reads a whole log from a database or an export. It needs neither the
broker nor a secret. It checks that

  - each record is canonical and in its place
  - the records hash to the tree, and the tree to every signed checkpoint
  - times never go back
  - texts match their commitments
  - no lease is issued twice or after its end
  - each lease is within the grant of a request
  - each request has the approvals that policy required
  - approvals and reviews that had to be signed are signed by valid passkeys

Pass the log's public key, from another source than the log, with --key. Without
it, verify trusts the key in the log. Pass the passkeys that you know, as listed
by an earlier "broker audit approvers", with --approvers. Without it, verify
trusts the log about whose passkeys they are and that each was a day old.

` + storeHelp,
		Example: `  broker audit verify sqlite:/var/lib/broker/broker.db --key 'broker.acme.test/log/1a2b3c4d+…'
  broker audit verify 'postgres://auditor@db.acme.test/broker?password_file=auditor.pw'
  broker audit verify export.jsonl --checkpoint kept-from-last-month.txt --approvers approvers.txt`,
		Args: exactly(1, "one database or file"),
		RunE: func(c *cobra.Command, args []string) error {
			opts, err := verifyOptions(key, approvers, checkpoints)
			if err != nil {
				return err
			}
			return a.withLog(c.Context(), args[0], func(src audit.Source) error {
				report, err := verify.Verify(c.Context(), src, opts)
				if report == nil {
					return err
				}
				if printed := a.print(report, func(w io.Writer) { writeReport(w, report) }); printed != nil {
					return printed
				}
				var found *verify.Problem
				if errors.As(err, &found) { // printed in the report
					return exitError(exitFailed)
				}
				return err
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "the log's public key, from another source than the log")
	c.Flags().StringVar(&approvers, "approvers", "", "a file with known passkeys, from another source than the log")
	c.Flags().StringSliceVar(&checkpoints, "checkpoint", nil, "a file with a checkpoint that you have kept; repeatable")
	return c
}

// verifyOptions reads the auditor's own inputs. It checks them before the log is
// read, so that their errors are not mistaken for errors of the log.
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
		return opts, usage("--approvers: no approver in %s", approvers)
	}
	return opts, nil
}

func writeReport(w io.Writer, r *verify.Report) {
	c := card{w}
	c.line("log", r.Origin)
	trust := "from --key"
	if !r.KeyTrusted {
		trust = "from the log itself; use --key to check it"
	}
	c.line("key", fmt.Sprintf("%s (%s)", r.Key, trust))
	c.line("records", strconv.FormatInt(r.Records, 10))
	if r.Records > 0 {
		c.line("period", clock(r.First)+" to "+clock(r.Last))
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		c.line("  "+printable(string(kind)), strconv.FormatInt(r.Kinds[kind], 10))
	}
	c.line("root", r.Root.String())
	c.line("checkpoints", fmt.Sprintf("%d, all signed and of this log", r.Checkpoints))
	c.line("signed", signedRecords(r))
	if r.Signatures > 0 || r.KeysPinned {
		owners := "of the people in --approvers"
		if !r.KeysPinned {
			owners = "of people named by the log itself; use --approvers to check them"
		}
		c.line("signatures", fmt.Sprintf("%d by passkeys (%s)", r.Signatures, owners))
	}
	if r.Unchecked > 0 {
		c.line("not checked", fmt.Sprintf("%d records, because their requests are older than the log or too many are open at once", r.Unchecked))
	}
	if r.Verified {
		c.line("verified", "all checks passed")
		return
	}
	fmt.Fprintln(w, "NOT VERIFIED")
	for _, p := range r.Problems {
		fmt.Fprintf(w, "  %s\n", printable(p.Error()))
	}
	if r.More > 0 {
		fmt.Fprintf(w, "  and %d more problems\n", r.More)
	}
}

// signedRecords describes the records that no checkpoint covers; "" if there are none.
func signedRecords(r *verify.Report) string {
	switch {
	case r.Signed == 0:
		return "nothing: anyone with write access to the database could have written the log"
	case r.Signed < r.Records:
		return fmt.Sprintf("the first %d records; anyone with write access to the database could have written the last %d", r.Signed, r.Records-r.Signed)
	}
	return ""
}

func (a *app) auditApproversCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "approvers STORE-URL|FILE",
		Short: "List the enrolled passkeys",
		Long: `approvers prints one line for each passkey that is enrolled and not removed:
person, relying party, credential and public key (a SubjectPublicKeyInfo in
base64url). Check the lines with the people, keep the file, and pass it to
"broker audit verify --approvers". verify then rejects signatures of any other
passkey.`,
		Example: `  broker audit approvers sqlite:/var/lib/broker/broker.db > approvers.txt`,
		Args:    exactly(1, "one database or file"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withLog(c.Context(), args[0], func(src audit.Source) error {
				list, err := verify.Approvers(c.Context(), src)
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) {
					for _, approver := range list {
						fmt.Fprintln(w, printable(approver.String()))
					}
				})
			})
		},
	}
}

func (a *app) auditShowCommand() *cobra.Command {
	var from, before, last int64
	var indexes []int64
	var kind, about string
	c := &cobra.Command{
		Use:   "show STORE-URL|FILE",
		Short: "List records of a log",
		Example: `  broker audit show sqlite:/var/lib/broker/broker.db --last 20
  broker audit show export.jsonl --index 17,4811 -o json
  broker audit show export.jsonl --about lse_0658sg2b7puh5u0qv0s9k8g6nk -o json`,
		Args: exactly(1, "one database or file"),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case from < 0:
				return usage("--from must be the index of a record, at least 0")
			case before < 0:
				return usage("--before must be the index after the last record; 0 means the end of the log")
			case last < 0:
				return usage("--last must be a number of records; 0 means all")
			case kind != "" && !slices.Contains(audit.Kinds(), audit.Kind(kind)):
				return usage("--kind: unknown kind %q; the kinds are:\n%s", kind, kindsInRows())
			}
			return a.withLog(c.Context(), args[0], func(src audit.Source) error {
				isAbout := recordsAbout(about)
				wanted := func(item audit.Item, r audit.Record) bool {
					return isAbout(item, r) && item.Index >= from && (before == 0 || item.Index < before) && (len(indexes) == 0 || slices.Contains(indexes, item.Index)) && (kind == "" || string(r.Kind) == kind)
				}
				return a.showRecords(c.Context(), src, wanted, last)
			})
		},
	}
	c.Flags().Int64Var(&from, "from", 0, "the index of the first record")
	c.Flags().Int64Var(&before, "before", 0, "list only records with a lower index than this; 0 means all")
	c.Flags().Int64SliceVar(&indexes, "index", nil, "list only the records with these indexes")
	c.Flags().Int64Var(&last, "last", 0, "list only this many of the newest matching records")
	c.Flags().StringVar(&kind, "kind", "", "list only records of this kind, such as lease.issued")
	c.Flags().StringVar(&about, "about", "", "list only records of this request and its leases, this lease or this identity")
	return c
}

// recordsAbout returns a filter for records about an id; "" matches all. It must see
// the records in their order: the end of a lease does not name the request, so the
// filter remembers the leases of the request.
func recordsAbout(id string) func(audit.Item, audit.Record) bool {
	leases := map[string]bool{}
	return func(item audit.Item, r audit.Record) bool {
		if r.Request != nil && r.Request.ID == id && r.Lease != nil {
			leases[r.Lease.ID] = true
		}
		return id == "" || strings.Contains(string(item.Leaf), strconv.Quote(id)) || r.Lease != nil && leases[r.Lease.ID]
	}
}

// kindsInRows lists the kinds of records, with one row for each prefix.
func kindsInRows() string {
	var b strings.Builder
	row := ""
	for _, kind := range audit.Kinds() {
		prefix, _, _ := strings.Cut(string(kind), ".")
		if prefix != row {
			b.WriteString("\n ")
		}
		row = prefix
		b.WriteString(" " + string(kind))
	}
	return strings.TrimPrefix(b.String(), "\n")
}

// rowsPerFlush is the number of records that share column widths. It bounds the
// memory and the time to the first row of a long log.
const rowsPerFlush = 1000

// showRecords prints the wanted records, or only the last of them if last is not 0.
func (a *app) showRecords(ctx context.Context, src audit.Source, wanted func(audit.Item, audit.Record) bool, last int64) error {
	table := newTable(a.out)
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
			return errors.Join(fmt.Errorf("record %d: %w; run \"broker audit verify\" for details", item.Index, err), table.Flush())
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
		if shown%rowsPerFlush == 0 {
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

// recordLine returns the row of a record: index, time, kind, caller and the person or
// workload for which the caller acts, entitlement with scopes, request, lease or subject of a fact, and outcome.
func recordLine(item audit.Item, r audit.Record) string {
	var caller, entitlement, id string
	var outcome []string
	if r.Caller != nil {
		caller = r.Caller.ID
	}
	if r.Subject != nil {
		caller += " for " + r.Subject.ID
	}
	if r.Request != nil {
		entitlement, id = r.Request.Entitlement, r.Request.ID
		if len(r.Request.Scopes) > 0 {
			entitlement += " " + strings.Join(r.Request.Scopes, " ")
		}
	}
	if r.Lease != nil {
		id = r.Lease.ID
	}
	if f := r.Fact; f != nil {
		caller, id = cmp.Or(caller, f.Source), f.Subject
		outcome = append(outcome, strings.TrimSpace(f.State+" "+f.Cause))
	}
	if r.Decision != nil && !r.Decision.Permit {
		outcome = append(outcome, r.Decision.Code)
	}
	if r.Count > 1 {
		outcome = append(outcome, fmt.Sprintf("×%d", r.Count))
	}
	if r.End != nil {
		outcome = append(outcome, strings.TrimSpace(r.End.How+" "+r.End.Cause))
	}
	cells := []string{strconv.FormatInt(item.Index, 10), r.Time.UTC().Format("2006-01-02 15:04:05.000Z"), string(r.Kind), caller, entitlement, id, strings.Join(outcome, " ")}
	for i, cell := range cells {
		cells[i] = cmp.Or(printable(cell), "-")
	}
	return strings.Join(cells, "\t")
}

func (a *app) auditExportCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "export STORE-URL",
		Short:   "Export a log as JSON Lines, for verification elsewhere",
		Example: `  broker audit export sqlite:/var/lib/broker/broker.db > export.jsonl`,
		Args:    exactly(1, "one database"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withLog(c.Context(), args[0], func(src audit.Source) error {
				w := bufio.NewWriter(a.out)
				return errors.Join(verify.Export(c.Context(), w, src), w.Flush())
			})
		},
	}
	return c
}

// withLog calls f with a log, opened read-only: a database or an export.
func (a *app) withLog(ctx context.Context, name string, f func(audit.Source) error) error {
	name, err := a.logURL(name)
	if err != nil {
		return err
	}
	if store.IsPostgres(name) {
		return withDatabase(ctx, name, f)
	}
	path := store.FilePath(name)
	opened, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	defer func() { _ = opened.Close() }()
	in := bufio.NewReader(opened)
	if start, _ := in.Peek(store.HeaderSize); store.IsDatabase(start) {
		return withDatabase(ctx, path, f)
	}
	src, err := verify.OpenExport(in)
	if err != nil {
		return err
	}
	return f(src)
}

func withDatabase(ctx context.Context, url string, f func(audit.Source) error) error {
	src, err := store.OpenSource(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	return f(src)
}
