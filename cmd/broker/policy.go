package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/policy"
)

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Test, explain and tighten policies",
		Args:  exactly(0, "a command: test, explain, unused or propose"),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.policyTestCommand(), a.policyExplainCommand(), a.policyUnusedCommand(), a.policyProposeCommand())
	return c
}

func (a *app) policyTestCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "test [DIR]",
		Short: "Run the scenarios (*_test.yaml) of a policy folder",
		Long: `test runs the scenarios of a policy folder and compares each decision with the
expected one. The catalogue and the trust domains come from the operator's file.
A folder without scenarios fails the test.`,
		Example: `  broker policy test --config broker.yaml
  broker policy test ./policies --config broker.yaml`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("policy test takes at most one folder")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			s, err := config.Load(file, a.getenv)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				s.Policies = args[0]
			}
			engine, err := s.Engine()
			if err != nil {
				return err
			}
			report, err := policy.Test(c.Context(), engine, os.DirFS(s.Policies))
			if err != nil {
				return fmt.Errorf("testing %s: %w", s.Policies, err)
			}
			if err := a.print(report, func(w io.Writer) { fmt.Fprintln(w, strings.TrimSpace(report.String())) }); err != nil {
				return err
			}
			if len(report.Failures) > 0 {
				return exitError(exitFailed)
			}
			return nil
		},
	}
	configFlag(c, &file)
	return c
}

func (a *app) policyExplainCommand() *cobra.Command {
	var file, who, attested, subject, ip string
	var f askFlags
	c := &cobra.Command{
		Use:   "explain ENTITLEMENT --as IDENTITY",
		Short: "Show which policies decide a request, and why",
		Example: `  broker policy explain tickets-api --as spiffe://acme.test/agent/triage --scope tickets:close
  broker policy explain tickets-api --as spiffe://acme.test/batch --scope tickets:read --ttl 1h -o json`,
		Args: exactly(1, "one entitlement"),
		RunE: func(c *cobra.Command, args []string) error {
			if who == "" {
				return usage("explain needs the requester: --as spiffe://… or --as login/ana")
			}
			s, err := config.Load(file, a.getenv)
			if err != nil {
				return err
			}
			engine, err := s.Engine()
			if err != nil {
				return err
			}
			engine = a.withSuspensions(c.Context(), s, engine)
			q, err := requestQuery(s, engine, args[0], who, ip, f)
			if err != nil {
				return err
			}
			if q.Principal.Attested, err = engine.ParseAttestation(q.Principal, attested); err != nil {
				return usage("--attested: %v", err)
			}
			if subject != "" {
				principal, err := engine.ParsePrincipal(subject)
				if err != nil {
					return usage("--on-behalf-of must be a SPIFFE ID, or a person such as login/ana: %v", err)
				}
				q.OnBehalfOf, q.Depth = &principal, 1
			}
			explanation := engine.Explain(context.WithoutCancel(c.Context()), q, time.Now())
			return a.print(explanation, func(w io.Writer) { fmt.Fprintln(w, strings.TrimSpace(explanation.String())) })
		},
	}
	f.addPolicyInputs(c)
	configFlag(c, &file)
	c.Flags().StringVar(&who, "as", "", "the requester: a SPIFFE ID, or a person such as login/ana")
	c.Flags().StringVar(&subject, "on-behalf-of", "", "whose rights the requester uses: policy decides on both")
	c.Flags().StringVar(&attested, "attested", "", "how a workload is attested, spiffe or oidc; default: as its trust domain")
	c.Flags().StringVar(&ip, "from", "", "the requester's IP address")
	return c
}

// withSuspensions returns the engine without what access reviews suspend, as the broker on
// this machine decides. Without its database, it returns the engine as it is in git, and
// notes so.
func (a *app) withSuspensions(ctx context.Context, s *config.Config, engine *policy.Engine) *policy.Engine {
	list, err := service.Suspensions(ctx, s)
	if err == nil {
		var suspended *policy.Engine
		if suspended, err = engine.Suspend(list); err == nil {
			return suspended
		}
	}
	fmt.Fprintf(a.err, "what access reviews suspend is not known here: %v\n", err)
	return engine
}

// requestQuery returns the policy query of a request with these flags.
func requestQuery(s *config.Config, engine *policy.Engine, name, who, ip string, f askFlags) (broker.Query, error) {
	e := s.Catalogue[name]
	if e == nil {
		return broker.Query{}, fmt.Errorf("there is no entitlement %q in %s", name, s.Path)
	}
	principal, err := engine.ParsePrincipal(who)
	if err != nil {
		return broker.Query{}, usage("--as must be a SPIFFE ID, or a person such as login/ana: %v", err)
	}
	q := broker.Query{
		Principal: principal, Action: broker.ActionRequest, Entitlement: e, Scopes: f.scopes, TTL: f.ttl, Duration: f.duration,
		Justification: f.why, Ticket: f.ticket, Parameters: f.parameters, BreakGlass: f.breakGlass,
	}
	if q.Details, err = e.CheckDetails(f.details.fine()); err != nil {
		return broker.Query{}, usage("--detail: %v", err)
	}
	if len(q.Scopes) == 0 {
		q.Scopes = e.DefaultScopes
	}
	if q.TTL == 0 {
		q.TTL = e.DefaultTTL
	}
	if q.Duration == 0 {
		q.Duration = e.CollectWithin
	}
	if ip != "" {
		address, err := netip.ParseAddr(ip)
		if err != nil {
			return broker.Query{}, usage("--from: %q is not an IP address: write one such as 192.0.2.1", ip)
		}
		q.SourceIP = address
	}
	return q, nil
}
