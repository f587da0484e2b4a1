package service

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"slices"

	"accessbroker.internal/attest"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/server"
)

// openPeople creates the OpenID providers. It returns nil if there are none.
func openPeople(c *config.Config, log *slog.Logger) (*attest.People, error) {
	if len(c.Providers) == 0 {
		return nil, nil
	}
	var configs []attest.ProviderConfig
	for _, p := range c.Providers {
		var roots *x509.CertPool
		if p.CAFile != "" {
			var err error
			if roots, err = config.ReadRoots(p.CAFile); err != nil {
				return nil, err
			}
		}
		configs = append(configs, attest.ProviderConfig{
			Name: p.Name, Issuer: p.Issuer, ClientID: p.ClientID, Roots: roots,
			Secret:      func() (string, error) { return config.ReadSecret(p.SecretFile) },
			RedirectURL: c.UIURL.String() + server.CallbackPath(c.ProviderNames(), p.Name),
			Scopes:      p.Scopes, GroupsClaim: p.GroupsClaim, ManagerClaim: p.ManagerClaim, EndsClaim: p.EndsClaim, SponsorClaim: p.SponsorClaim, Log: log,
			Delegation: p.Delegation,
		})
	}
	return attest.NewPeople(configs...)
}

// subjectTokens returns the verifier of the tokens with which callers act for people; nil: no
// provider issues such tokens.
func (s *Service) subjectTokens() func(context.Context, broker.SubjectToken) (*broker.Delegation, error) {
	delegates := func(p config.Provider) bool { return p.Delegation.IDJAGs || len(p.Delegation.Audiences) > 0 }
	if !slices.ContainsFunc(s.config.Providers, delegates) {
		return nil
	}
	return func(ctx context.Context, t broker.SubjectToken) (*broker.Delegation, error) {
		d, err := s.people.SubjectToken(ctx, t)
		var failure *attest.Failure
		if errors.As(err, &failure) {
			s.metrics.AttestFailed(string(failure.Method), string(failure.Cause))
		}
		return d, err
	}
}

// openPasskeys creates the relying party for the host of the pages. It returns nil
// if the host is an IP address, because passkeys need a name (WebAuthn Level 3,
// section 5.1.3), or if no provider is configured.
func openPasskeys(c *config.Config) (*attest.Passkeys, error) {
	host := c.UIURL.Hostname()
	if _, err := netip.ParseAddr(host); err == nil || len(c.Providers) == 0 {
		return nil, nil
	}
	return attest.NewPasskeys(host, c.UIURL.String())
}
