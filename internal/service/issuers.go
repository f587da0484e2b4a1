package service

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/issuers/aws"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/issuers/vault"
	"accessbroker.internal/store"
)

// openIssuers creates every issuer of the operator's file. That includes retired
// ones, because they still end their leases.
func (s *Service) openIssuers() (map[string]broker.Issuer, error) {
	list := map[string]broker.Issuer{}
	for name, c := range s.config.Issuers {
		issuer, err := s.openIssuer(name, c)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", name, err)
		}
		list[name] = issuer
	}
	return list, nil
}

func (s *Service) openIssuer(name string, c config.Issuer) (broker.Issuer, error) {
	switch {
	case c.Token != nil:
		return token.New(s.config.ExternalURL.String(), c.Token.Audience, s.keys), nil
	case c.Vault != nil:
		issuer, err := s.openVault(name, c.Vault)
		if err == nil {
			s.loops = append(s.loops, issuer.Run)
		}
		return issuer, err
	case c.SCIM != nil:
		return s.openSCIM(name, c.SCIM)
	case c.LDAP != nil:
		return s.openLDAP(name, c.LDAP)
	}
	cfg := *c.AWS
	cfg.Getenv = s.options.Getenv
	if cfg.WebIdentity != nil {
		web := *cfg.WebIdentity
		web.Keys = s.keys
		cfg.WebIdentity = &web
	}
	if c.AWSCAFile != "" {
		var err error
		if cfg.Roots, err = config.ReadRoots(c.AWSCAFile); err != nil {
			return nil, err
		}
	}
	return aws.New(cfg)
}

func (s *Service) openVault(name string, c *config.VaultIssuer) (*vault.Issuer, error) {
	cfg := vault.Config{
		Name: name, Address: c.Address, Namespace: c.Namespace, TokenRole: c.TokenRole, Broker: s.config.ExternalURL.String(), Log: s.log,
		TLS: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if c.TokenFile != "" {
		cfg.Login.Token = func() (string, error) { return config.ReadToken(c.TokenFile) }
	}
	if c.CAFile != "" {
		roots, err := config.ReadRoots(c.CAFile)
		if err != nil {
			return nil, err
		}
		cfg.TLS.RootCAs = roots
	}
	if c.JWT != nil {
		cfg.Login.JWT = &vault.JWTLogin{Mount: c.JWT.Mount, Role: c.JWT.Role, Audience: c.JWT.Audience, SVID: s.fetchJWTSVID}
	}
	if c.Cert != nil {
		cfg.Login.Cert = &vault.CertLogin{Mount: c.Cert.Mount, Role: c.Cert.Role}
		cfg.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.trust.GetCertificate(nil) }
	}
	return vault.New(cfg)
}

// fetchJWTSVID fetches the broker's own JWT-SVID.
func (s *Service) fetchJWTSVID(ctx context.Context, audience string) (string, error) {
	token, _, err := s.trust.FetchJWTSVID(ctx, audience)
	return token, err
}

// checkOrphanedLeases fails the start if an issuer with unended leases was removed or
// replaced.
func (s *Service) checkOrphanedLeases(ctx context.Context, issuers map[string]broker.Issuer) error {
	now := time.Now()
	unended, err := s.store.CountActive(ctx, now)
	if err != nil {
		return err
	}
	for _, u := range unended {
		issuer := issuers[u.Issuer]
		if issuer == nil {
			return fmt.Errorf("%s: issuer %q was removed, but %d of its leases of %q have not ended: restore the issuer with retired: true until they have", s.config.Path, u.Issuer, u.Leases, u.Entitlement)
		}
		foreign, err := s.foreignLease(ctx, issuer, u, now)
		if err != nil {
			return err
		}
		if foreign != nil {
			return fmt.Errorf("%s: issuer %q was replaced by one of another kind or address, which cannot end earlier leases of %q, such as %s: restore the old issuer with retired: true, and give the new one another name", s.config.Path, u.Issuer, u.Entitlement, foreign.ID)
		}
	}
	return nil
}

// foreignLease returns an unended lease that was made by another issuer of the same
// name, or nil. Until an issuer is replaced, it issues every lease under its name,
// so reading the newest leases is enough.
func (s *Service) foreignLease(ctx context.Context, issuer broker.Issuer, of store.Active, now time.Time) (foreign *broker.Lease, err error) {
	const newest = 100
	owner, ok := issuer.(broker.Owner)
	if !ok {
		return nil, nil
	}
	err = s.store.View(ctx, func(tx broker.Tx) error {
		page, _, err := tx.Leases(broker.LeaseQuery{Issuer: of.Issuer, Entitlement: of.Entitlement, Live: true, Now: now, Limit: newest})
		for _, l := range page {
			if !owner.Owns(*l) && (l.Persists || now.Before(l.Expires)) { // a credential that expired needs no issuer
				foreign = l
			}
		}
		return err
	})
	return foreign, err
}
