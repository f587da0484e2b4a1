package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
	"accessbroker.internal/internal/handoff"
)

func (a *app) awsCommand() *cobra.Command {
	var f askFlags
	var fresh bool
	c := &cobra.Command{
		Use:   "aws ENTITLEMENT",
		Short: "Print AWS credentials for a credential_process",
		Long: `aws requests a credential and prints it in the format of credential_process, the
interface by which the AWS CLI and SDKs get credentials from another program.
Some run that program for every call while less than 15 minutes are left, so aws
reuses a credential until a third of its lifetime is left, at most 15 minutes.
Between runs, the credential is in a file of mode 0600 in $XDG_RUNTIME_DIR or
~/.cache, sealed with a key from your proof of identity, which is not stored
with it. Processes that run at the same time get the same credential. "broker
return" removes it.

` + exitHelp,
		Example: `  # in ~/.aws/config
  [profile reports]
  credential_process = broker aws reports --scope read --param prefix=acme --why "nightly report"`,
		Args:              exactly(1, "one entitlement"),
		ValidArgsFunction: a.completeEntitlement,
		RunE: func(c *cobra.Command, args []string) error {
			if fresh {
				return a.withCredential(c.Context(), args[0], f, func(ctx context.Context, client *api.Client, credential *api.Credential) error {
					return a.handOverTo(ctx, client, credential, a.printProcess)
				})
			}
			return a.printReusable(c.Context(), args[0], f)
		},
	}
	f.add(c)
	completes(c, "scope", a.completeScope)
	c.Flags().BoolVar(&fresh, "no-reuse", false, "request a new credential, and keep none")
	a.client.addPerson(c)
	return c
}

// printReusable prints the credential of an earlier run if it still serves, and
// otherwise a new one, which it keeps for later runs.
func (a *app) printReusable(ctx context.Context, entitlement string, f askFlags) error {
	ask, err := f.ask(entitlement)
	if err != nil {
		return err
	}
	cfg, err := a.callerConfig()
	if err != nil {
		return err
	}
	client, t, done, err := a.dial(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	place, err := a.keep(ctx, cfg, t, ask, f.wait)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.warnNotReused(err)
		place = nil
	}
	if place != nil {
		defer place.unlock()
		if c := place.load(time.Now()); c != nil && stillActive(ctx, client, c.Lease) {
			return a.printProcess(c)
		}
	}
	credential, err := agent.Obtain(ctx, client, ask, a.waiting(f.wait))
	if err != nil {
		return a.waited(err)
	}
	if err := a.handOverTo(ctx, client, credential, a.printProcess); err != nil || place == nil {
		return err
	}
	now := time.Now()
	if err := place.store(credential, now); err != nil {
		a.warnNotReused(err)
	}
	a.forgetKept(func(f *keptFile) bool { return !now.Before(f.Expires) })
	return nil
}

func (a *app) warnNotReused(err error) {
	fmt.Fprintf(a.err, "broker: the credential is not reused: %s\n", printable(err.Error()))
}

// activeTimeout bounds the question whether a lease is active.
const activeTimeout = 5 * time.Second

// stillActive reports whether the lease of a kept credential is active, as far as the
// broker can be reached: an outage must not take working credentials away.
func stillActive(ctx context.Context, client *api.Client, lease string) bool {
	ctx, cancel := context.WithTimeout(ctx, activeTimeout)
	defer cancel()
	l, err := client.Lease(ctx, lease)
	return err == nil && l.Status == api.LeaseActive || api.Transient(err)
}

func (a *app) printProcess(c *api.Credential) error {
	text, err := handoff.AWSProcess(c)
	if err == nil {
		_, err = io.WriteString(a.out, text)
	}
	return err
}
