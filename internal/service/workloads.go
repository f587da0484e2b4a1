package service

import (
	"context"
	"crypto/x509"
	"log/slog"

	"accessbroker.internal/attest"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/server"
	"accessbroker.internal/store"
)

// openWorkloads creates the issuers of OIDC tokens of workloads, if there are any. One that
// does not respond does not keep the broker from starting: Run tries again.
func (s *Service) openWorkloads(ctx context.Context) (err error) {
	if s.workloads, err = newWorkloads(s.config, s.log); err != nil || s.workloads == nil {
		return err
	}
	s.loops = append(s.loops, s.workloads.Run)
	ctx, cancel := context.WithTimeout(ctx, agentWait)
	defer cancel()
	_ = s.workloads.Refresh(ctx) // logged, and shown by /readyz
	return nil
}

// newWorkloads returns the issuers; nil: there are none.
func newWorkloads(c *config.Config, log *slog.Logger) (*attest.WorkloadIssuers, error) {
	if len(c.WorkloadIssuers) == 0 {
		return nil, nil
	}
	var configs []attest.WorkloadIssuerConfig
	for _, i := range c.WorkloadIssuers {
		var roots *x509.CertPool
		if i.CAFile != "" {
			var err error
			if roots, err = config.ReadRoots(i.CAFile); err != nil {
				return nil, err
			}
		}
		one := attest.WorkloadIssuerConfig{
			Name: i.Name, Issuer: i.Issuer, Audience: i.Audience, Algorithms: i.Algorithms, MaxLifetime: i.MaxLifetime, Reusable: i.Reusable,
			JWKSURI: i.JWKSURI, JWKSFile: i.JWKSFile, Roots: roots, Rules: i.Rules, Log: log,
		}
		if i.BearerFile != "" {
			one.Bearer = func() (string, error) { return config.ReadSecret(i.BearerFile) }
		}
		configs = append(configs, one)
	}
	return attest.NewWorkloadIssuers(configs...)
}

// readyWarnings are the checks of faults that do not stop the broker.
func (s *Service) readyWarnings() []server.Check {
	list := []server.Check{{Name: "trust", Check: func(context.Context) error { return s.trust.Degraded() }}}
	if s.shared {
		list = append(list, server.Check{Name: "rules", Check: s.warnOfRules})
	}
	if s.workloads != nil {
		list = append(list, server.Check{Name: "oidc_workloads", Check: func(context.Context) error { return s.workloads.Degraded() }})
	}
	return list
}

// public makes checks name no host or role of the database, because anyone may call /readyz.
func public(checks []server.Check) []server.Check {
	for i, c := range checks {
		checks[i].Check = func(ctx context.Context) error { return store.Public(c.Check(ctx)) }
	}
	return checks
}
