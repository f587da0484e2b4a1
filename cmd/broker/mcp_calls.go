package main

import (
	"cmp"
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
	*edge
	loaded chan struct{} // closed after the first attempt to read the rules
	log    *slog.Logger
}

// A callFlags has the flags about calls.
type callFlags struct {
	only []string // entitlements
	ca   string
}

func (c *callFlags) add(cmd *cobra.Command, a *app) {
	cmd.Flags().StringSliceVar(&c.only, "entitlement", nil, "make calls only with these entitlements (default: all of the caller that have rules for calls)")
	cmd.Flags().StringVar(&c.ca, "upstream-ca", "", "also trust the authorities in this PEM file for the hosts that are called (BROKER_UPSTREAM_CA)")
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

// newCalls returns the calls of the caller of a client.
func (c *callFlags) newCalls(a *app, client *api.Client, log *slog.Logger) (*mcpCalls, error) {
	roots, err := c.roots(a)
	if err != nil {
		return nil, err
	}
	m := &mcpCalls{log: log, loaded: make(chan struct{})}
	m.edge = newEdge(client, c.only, nil, m.report)
	m.calls.Policy, m.calls.Roots = m.policy, roots
	return m, nil
}

// policy returns the rules in force. The first calls wait for the rules.
func (m *mcpCalls) policy() *egress.Policy {
	<-m.loaded
	return m.source.Policy()
}

// roots returns the authorities for the hosts that are called: those of the system and of
// a file. It returns nil for the system's alone.
func (c *callFlags) roots(a *app) (*x509.CertPool, error) {
	file := cmp.Or(c.ca, a.getenv("BROKER_UPSTREAM_CA"))
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--upstream-ca: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--upstream-ca: %s has no certificate in PEM", file)
	}
	return roots, nil
}

// report logs what happened to a credential.
func (m *mcpCalls) report(event agent.KeptEvent) {
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
	m.log.Log(context.Background(), level, "credential "+event.Kind, args...)
}

// firstLoad bounds the time for the rules before the first call. Without them, nothing
// is allowed until they arrive.
const firstLoad = 10 * time.Second

// while runs f with the calls: it keeps rules and credentials fresh, and returns the
// credentials afterwards.
func (m *mcpCalls) while(ctx context.Context, a *app, f func(context.Context) error) error {
	defer a.endEdge(ctx, m.edge, "the work ended")
	work, stop := context.WithCancel(ctx)
	var loops errgroup.Group
	loops.Go(func() error {
		m.load(work)
		return m.run(work, m.warn)
	})
	err := f(ctx)
	stop()
	return errors.Join(err, loops.Wait())
}

func (m *mcpCalls) load(ctx context.Context) {
	defer close(m.loaded)
	ctx, cancel := context.WithTimeout(ctx, firstLoad)
	defer cancel()
	if err := m.source.Load(ctx); err != nil && ctx.Err() == nil {
		m.warn(err)
	}
}

func (m *mcpCalls) warn(err error) { m.log.Warn("calls", "err", err) }
