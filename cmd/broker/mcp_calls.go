package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
	"accessbroker.internal/egress"
)

// An mcpCalls makes the calls of "broker mcp", with credentials that its one caller does
// not receive.
type mcpCalls struct {
	client    *api.Client
	keeper    *agent.Keeper
	rules     *egress.Source
	transport *egress.Transport
	loaded    chan struct{} // closed after the first attempt to read the rules
	log       *slog.Logger
}

// A callFlags has the flags about calls.
type callFlags struct {
	only []string // entitlements
	ca   string
}

func (c *callFlags) add(cmd *cobra.Command, a *app) {
	cmd.Flags().StringSliceVar(&c.only, "entitlement", nil, "make calls only with these entitlements (default: all of the caller that have rules for calls)")
	cmd.Flags().StringVar(&c.ca, "upstream-ca", "", "also trust the authorities in this PEM file for the hosts that are called")
	completes(cmd, "entitlement", a.completeEntitlement)
}

// args returns the flags for a command line in another folder.
func (c *callFlags) args() (list []string) {
	for _, name := range c.only {
		list = append(list, "--entitlement", name)
	}
	if c.ca != "" {
		list = append(list, "--upstream-ca", absolute(c.ca))
	}
	return list
}

// newCalls returns the calls of the caller of a client. ask returns the request for an
// entitlement's credential; nil: one that names the entitlement alone.
func (c *callFlags) newCalls(client *api.Client, ask func(string) api.Ask, log *slog.Logger) (*mcpCalls, error) {
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	e := &mcpCalls{client: client, log: log, loaded: make(chan struct{}), rules: &egress.Source{Client: client, Only: c.only}}
	e.keeper = agent.NewKeeper(agent.KeeperConfig{Client: client, Ask: ask, Report: e.report})
	e.transport = &egress.Transport{Policy: e.policy, Credentials: e.keeper, Roots: roots}
	return e, nil
}

// policy returns the rules in force. The first calls wait for the rules.
func (e *mcpCalls) policy() *egress.Policy {
	<-e.loaded
	return e.rules.Policy()
}

// roots returns the authorities for the hosts that are called; nil: those of the system.
func (c *callFlags) roots() (*x509.CertPool, error) {
	if c.ca == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.ca)
	if err != nil {
		return nil, fmt.Errorf("--upstream-ca: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--upstream-ca: %s has no certificate in PEM", c.ca)
	}
	return roots, nil
}

// report logs what happened to a credential.
func (e *mcpCalls) report(event agent.KeptEvent) {
	args := []any{"entitlement", event.Entitlement}
	for _, kv := range [][2]string{{"lease", event.Lease}, {"request", event.Request}} {
		if kv[1] != "" {
			args = append(args, kv[0], kv[1])
		}
	}
	level := slog.LevelInfo
	if event.Err != nil {
		level = slog.LevelWarn
		args = append(args, "err", event.Err)
	}
	e.log.Log(context.Background(), level, "credential "+event.Kind, args...)
}

// firstLoad bounds the time for the rules before the first call. Without them, nothing
// is allowed until they arrive.
const firstLoad = 10 * time.Second

// while runs f with the calls: it keeps rules and credentials fresh, and returns the
// credentials afterwards.
func (e *mcpCalls) while(ctx context.Context, f func(context.Context) error) error {
	work, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() error { return e.keeper.Run(work) })
	group.Go(func() error {
		e.load(work)
		return e.rules.Run(work, e.warn)
	})
	err := f(ctx)
	stop()
	e.transport.CloseIdleConnections()
	if failed := e.keeper.Return(ctx, "the work ended"); failed != nil {
		e.warn(failed)
	}
	return errors.Join(err, group.Wait())
}

func (e *mcpCalls) load(ctx context.Context) {
	defer close(e.loaded)
	ctx, cancel := context.WithTimeout(ctx, firstLoad)
	defer cancel()
	if err := e.rules.Load(ctx); err != nil && ctx.Err() == nil {
		e.warn(err)
	}
}

func (e *mcpCalls) warn(err error) { e.log.Warn("calls", "err", err) }
