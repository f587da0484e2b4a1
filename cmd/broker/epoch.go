package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/store"
)

func (a *app) newEpochCommand() *cobra.Command {
	var file string
	var checkpoints []string
	var dryRun bool
	var wait time.Duration
	c := &cobra.Command{
		Use:   "new-epoch --config FILE",
		Short: "Open a new log if the old one cannot be continued, and end what is lost",
		Long: `new-epoch is for a broker that refuses to start because its database is behind
its checkpoint file: the database was restored from an old copy. It is also for
a broker whose checkpoint file is lost. Use it only if the newest database is
lost for good. The first record of the new log names the last known checkpoint.
The old log stays in the database, and auditors will see that it ended. Stop the
broker first, with all of its replicas.

The records that are lost may be of credentials that still work, and of ends. So
new-epoch ends all sessions of people and all tokens of the broker, searches the
issuers for credentials whose lease is unknown, and ends them. It lists what it
can't find or end, with the time until which that works, and what the restored
database may have wrong. The broker continues when it starts, if an issuer can't
be reached now. "broker audit recovery" shows how far that is.

--dry-run shows what would be done, and changes nothing.`,
		Example: `  broker audit new-epoch --config /etc/broker/broker.yaml --dry-run
  broker audit new-epoch --config /etc/broker/broker.yaml --checkpoint b/broker.checkpoint --checkpoint c/broker.checkpoint`,
		Args: exactly(0, "no arguments but --config FILE"),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, a.getenv)
			if err != nil {
				return err
			}
			epoch, err := service.NewEpoch(c.Context(), cfg, checkpoints, dryRun)
			switch {
			case errors.Is(err, service.ErrNoNewLog) && !dryRun:
				return a.continueRecovery(c.Context(), cfg, wait, err)
			case err != nil:
				return err
			case dryRun:
				return a.print(epoch, func(w io.Writer) { writeLoss(w, epoch, false) })
			}
			if a.output == "text" {
				fmt.Fprintf(a.out, "the log %s is open\n", epoch.Origin)
				if err := a.print(nil, func(w io.Writer) { writeLoss(w, epoch, true) }); err != nil {
					return err
				}
			}
			return a.recover(c.Context(), cfg, wait, epoch)
		},
	}
	configFlag(c, &file)
	c.Flags().StringSliceVar(&checkpoints, "checkpoint", nil, "the checkpoint file of another replica; repeatable")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be done, and change nothing")
	c.Flags().DurationVar(&wait, "wait", time.Minute, "how long to search and to end; the broker does the rest when it starts")
	return c
}

// continueRecovery continues a recovery that was interrupted. why is the reason for which
// there is no new log.
func (a *app) continueRecovery(ctx context.Context, cfg *config.Config, wait time.Duration, why error) error {
	r, _, err := recoveryOf(ctx, cfg.Store)
	if err != nil || r == nil || !r.Finished.IsZero() {
		return why
	}
	if a.output == "text" {
		fmt.Fprintf(a.out, "%v: the recovery that began at %s continues\n", why, clock(r.Opened))
	}
	return a.recover(ctx, cfg, wait, &service.Epoch{Since: r.Since, Opened: r.Opened})
}

// recover works on the recovery, and prints how far it came.
func (a *app) recover(ctx context.Context, cfg *config.Config, wait time.Duration, epoch *service.Epoch) error {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	failed := service.Recover(limited, service.Options{Config: cfg, Getenv: a.getenv, Log: slog.New(slog.DiscardHandler)})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if failed != nil && limited.Err() == nil {
		fmt.Fprintf(a.err, "broker: the search could not begin: %v\n  the log is open, and the broker continues when it starts\n", failed)
	}
	r, orphans, err := recoveryOf(ctx, cfg.Store)
	if err != nil {
		return err
	}
	return a.print(newRecoveryJSON(epoch, r, orphans), func(w io.Writer) { writeRecovery(w, r, orphans) })
}

// recoveryJSON is the output of a recovery for programs.
type recoveryJSON struct {
	*service.Epoch
	Finished    time.Time         `json:"finished_at,omitzero"` // zero: the broker continues
	Sessions    int               `json:"sessions_ended"`
	NotSearched map[string]string `json:"not_searched,omitempty"`
	Found       []foundJSON       `json:"found"`
}

type foundJSON struct {
	Issuer      string               `json:"issuer"`
	Target      string               `json:"target"` // in the issuer's system
	Lease       string               `json:"lease,omitempty"`
	Holder      string               `json:"holder,omitempty"`
	Entitlement string               `json:"entitlement,omitempty"`
	Text        string               `json:"text"`
	Outcome     broker.OrphanOutcome `json:"outcome"`
	Expires     time.Time            `json:"expires_at,omitzero"`
	Code        string               `json:"code,omitempty"`
}

func newRecoveryJSON(e *service.Epoch, r *broker.Recovery, orphans []*broker.Orphan) recoveryJSON {
	out := recoveryJSON{Epoch: e, Found: []foundJSON{}}
	if r != nil {
		out.Finished, out.Sessions, out.NotSearched = r.Finished, r.Sessions, r.Trouble
		if e == nil {
			out.Epoch = &service.Epoch{Since: r.Since, Opened: r.Opened}
		}
	}
	for _, o := range orphans {
		out.Found = append(out.Found, foundJSON{o.Issuer, o.Target, o.Lease, o.Holder, o.Entitlement, o.Text, o.Outcome, o.Expires, o.Code})
	}
	return out
}

func (a *app) recoveryCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "recovery STORE-URL",
		Short: "Show what was done after the database was restored to an earlier time",
		Long: `recovery lists the credentials that were found without a lease after the last
"broker audit new-epoch", and how far their end is. It reads the database, also
while the broker runs.`,
		Example: `  broker audit recovery sqlite:/var/lib/broker/broker.db`,
		Args:    exactly(1, "one database"),
		RunE: func(c *cobra.Command, args []string) error {
			url, err := a.logURL(args[0])
			if err != nil {
				return err
			}
			r, orphans, err := recoveryOf(c.Context(), url)
			if err != nil {
				return err
			}
			return a.print(newRecoveryJSON(nil, r, orphans), func(w io.Writer) { writeRecovery(w, r, orphans) })
		},
	}
}

// recoveryOf reads the last recovery of a database; nil: there was none.
func recoveryOf(ctx context.Context, url string) (r *broker.Recovery, orphans []*broker.Orphan, err error) {
	src, err := store.OpenSource(ctx, url)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	rows := src.Recoveries()
	if r, err = rows.Last(ctx); err != nil {
		return nil, nil, err
	}
	const page = 500
	var last *broker.Orphan
	for {
		list, err := rows.Orphans(ctx, last, page)
		if err != nil {
			return nil, nil, err
		}
		if orphans = append(orphans, list...); len(list) < page {
			return r, orphans, nil
		}
		last = list[len(list)-1]
	}
}

// writeLoss writes what a restore to an earlier time means.
func writeLoss(w io.Writer, e *service.Epoch, done bool) {
	c := card{w}
	verb := func(now, later string) string {
		if done {
			return now
		}
		return later
	}
	c.line("lost", "the records after "+clock(e.Since))
	c.line("sessions", fmt.Sprintf("%d %s: people log in again", e.Lost.Sessions, verb("were ended", "would be ended")))
	c.line("tokens", "the broker's own tokens from before "+verb("are", "would be")+" no longer accepted; a service that verifies them without asking accepts them until they expire")
	c.line("check", "these are as they were at the time of the backup:")
	c.line("", fmt.Sprintf("- %s in force: place lost ones again (broker kill), lift those that were lifted", counted(e.Lost.Blocks, "block")))
	c.line("", fmt.Sprintf("- %s: votes and withdrawals since then are lost; so are those on approved requests, which can be collected", counted(e.Lost.Pending, "pending request")))
	c.line("", fmt.Sprintf("- %s: some may have been returned or revoked", counted(e.Lost.Live, "active lease")))
	c.line("", "- limits: uses since then do not count; an Idempotency-Key of that time makes a second credential")
	c.line("", "- passkeys: removed ones count again, and new ones are gone")
	c.line("", fmt.Sprintf("- users and groups of SCIM: start a provisioning cycle; %s, also one that was revoked", counted(e.Lost.Tokens, "SCIM token")))
	c.line("", "- group memberships: compare them with \"broker memberships --differs\"")
	c.line("", "- signing keys: what a lost key signed is no longer verified")
}

func writeRecovery(w io.Writer, r *broker.Recovery, orphans []*broker.Orphan) {
	c := card{w}
	if r == nil {
		c.line("recovery", "none: the log was never opened anew")
		return
	}
	state := "complete since " + clock(r.Finished)
	if r.Finished.IsZero() {
		state = "not complete: the broker continues when it runs"
	}
	c.line("recovery", state)
	c.line("period", clock(r.Since)+" to "+clock(r.Opened)+": its records are lost")
	for _, issuer := range slices.Sorted(maps.Keys(r.Trouble)) {
		c.line("not searched", "issuer "+issuer+": "+r.Trouble[issuer])
	}
	c.line("found", strconv.Itoa(len(orphans)))
	for _, o := range orphans {
		c.line("", orphanLine(o))
	}
}

// orphanLine describes a credential without a lease.
func orphanLine(o *broker.Orphan) string {
	what := o.Text + " (" + o.Target + ")"
	if o.Lease != "" {
		what = o.Lease + " of " + o.Holder + " for " + o.Entitlement
	}
	return "- issuer " + o.Issuer + ": " + what + ": " + outcomeOf(o)
}

func outcomeOf(o *broker.Orphan) string {
	switch o.Outcome {
	case broker.OrphanRevoked:
		return "revoked"
	case broker.OrphanAccepted:
		return "revoked; the issuer does not confirm when that takes effect"
	case broker.OrphanExpires, broker.OrphanUnknown:
		if o.Expires.IsZero() {
			return "WORKS until it is removed"
		}
		return "WORKS until " + clock(o.Expires) + " at the latest"
	}
	if o.Code != "" {
		return "being revoked; the last attempt failed: " + o.Code
	}
	return "being revoked"
}
