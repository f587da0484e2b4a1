package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker/evidence"
)

func (a *app) evidenceCommand() *cobra.Command {
	var q api.EvidenceQuery
	var from, to, export string
	c := &cobra.Command{
		Use:   "evidence",
		Short: "Report what the log proves about the controls of a framework",
		Long: `evidence prints a report for a framework: for each control what proves that it
works, figures of the period, and records of the log behind each figure. It is
Markdown, or JSON with -o json. A control without any record has "no evidence".

The frameworks are
  owasp-nhi-2025   OWASP Non-Human Identities Top 10
  owasp-asi-2026   OWASP Top 10 for Agentic Applications
  nist-csf-2.0     NIST Cybersecurity Framework 2.0: PR.AA, GV.SC-07, GV.SC-10
  nist-csf-1.1     NIST Cybersecurity Framework 1.1: PR.AC

A report counts the records that a signed checkpoint of the log covers. It names
the size and the root hash, and the command that makes it again: the same period
and size always have the same report. With --export, the report comes from the
log itself, without a broker; both reports are the same, byte for byte. Verify
the log with "broker audit verify", and look at a record with
"broker audit show --index".

Without --export, it needs the action audit, or the admin socket.`,
		Example: `  broker evidence --framework owasp-nhi-2025 --since 90d --as-person > nhi.md
  broker evidence --framework nist-csf-2.0 --from 2026-01-01 --to 2027-01-01 -o json
  broker evidence --framework owasp-asi-2026 --export export.jsonl`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if q.Framework == "" {
				return usage("--framework is required; see %s --help", c.CommandPath())
			}
			if q.From, err = searchTime("from", from); err != nil {
				return err
			}
			if q.To, err = searchTime("to", to); err != nil {
				return err
			}
			if c.Flags().Changed("size") && q.Size < 1 {
				return usage("--size must be a number of records of the log, at least 1")
			}
			if export != "" {
				return a.evidenceOf(c.Context(), export, q)
			}
			return a.evidenceFromBroker(c.Context(), q)
		},
	}
	c.Flags().StringVar(&q.Framework, "framework", "", "the framework: owasp-nhi-2025, owasp-asi-2026, nist-csf-2.0 or nist-csf-1.1")
	c.Flags().StringVar(&q.Since, "since", "", "the length of the period: days such as 90d (the default), or hours such as 12h")
	c.Flags().StringVar(&from, "from", "", "the start of the period instead of its length: RFC 3339, or a date in UTC")
	c.Flags().StringVar(&to, "to", "", "the end of the period, just before this time: RFC 3339, or a date in UTC (default now)")
	c.Flags().Int64Var(&q.Size, "size", 0, "only the first records of the log (default: all that the newest checkpoint covers)")
	c.Flags().StringVar(&export, "export", "", "a database or an export of the log to report from, instead of a broker")
	completes(c, "framework", oneOf("owasp-nhi-2025", "owasp-asi-2026", "nist-csf-2.0", "nist-csf-1.1"))
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

// evidenceFromBroker prints the report of a running broker.
func (a *app) evidenceFromBroker(ctx context.Context, q api.EvidenceQuery) error {
	return a.withClientOrAdmin(ctx, func(ctx context.Context, client *api.Client) error {
		if a.output == "json" {
			r, err := client.Evidence(ctx, q)
			if err != nil {
				return err
			}
			return a.print(r, nil)
		}
		text, err := client.EvidenceMarkdown(ctx, q)
		if err != nil {
			return err
		}
		_, err = a.out.Write(text)
		return err
	})
}

// evidenceOf prints the report of a log, without a broker.
func (a *app) evidenceOf(ctx context.Context, log string, q api.EvidenceQuery) error {
	f, err := evidence.Named(q.Framework)
	if errors.Is(err, evidence.ErrUnknown) {
		return usage("--framework: %v", err)
	}
	if err != nil {
		return err
	}
	period, err := evidence.Period(q.Since, q.From, q.To, time.Now())
	if err != nil {
		return usage("%v", err)
	}
	period.Size = q.Size
	return a.withLog(ctx, log, func(src audit.Source) error {
		r, err := evidence.Build(ctx, f, evidence.NewScan(src), period)
		if err != nil {
			return fmt.Errorf("making the report: %w", err)
		}
		if a.output != "json" {
			_, err := a.out.Write(r.Markdown())
			return err
		}
		text, err := json.Marshal(r)
		if err != nil {
			return err
		}
		var same api.EvidenceReport // as a broker would return it
		if err := json.Unmarshal(text, &same); err != nil {
			return err
		}
		return a.print(same, func(io.Writer) {})
	})
}
