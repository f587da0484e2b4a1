package service

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/outbound"
	"accessbroker.internal/issuers/ldap"
	"accessbroker.internal/issuers/scim"
	"accessbroker.internal/server"
	"accessbroker.internal/store"
)

// openLedger creates the ledger that all issuers of memberships share.
func (s *Service) openLedger() {
	s.ledger = membership.New(membership.Config{
		Store: s.store, Duties: store.DutiesOf(s.store), List: store.MembershipsIn(s.store).List, Log: s.log, Compared: s.metrics.Compared,
		May: func(ctx context.Context, caller broker.Caller, action broker.Action) bool {
			return s.broker.May(ctx, caller, action)
		},
	})
}

// compares adds the loop that compares an issuer's memberships with its system.
func (s *Service) compares(name string, issuer *membership.Issuer, every time.Duration) *membership.Issuer {
	s.loops = append(s.loops, s.alone("memberships/"+name, nil, func(ctx context.Context) error { return issuer.Run(ctx, every) }))
	return issuer
}

func (s *Service) openSCIM(name string, c *config.SCIMIssuer) (broker.Issuer, error) {
	roots, err := readRoots(c.CAFile)
	if err != nil {
		return nil, err
	}
	cfg := scim.Config{
		Name: name, URL: c.URL, HTTP: outbound.Client(roots, c.AllowPrivate), Match: c.Match, Read: c.Read, RemoveByValue: c.RemoveByValue,
		Ledger: s.ledger, Names: c.Names,
	}
	if c.TokenFile != "" {
		cfg.Token = func() (string, error) { return config.ReadToken(c.TokenFile) }
	}
	if c.Cert != "" {
		transport, ok := cfg.HTTP.Transport.(*http.Transport)
		if !ok {
			return nil, fmt.Errorf("the client for %s takes no certificate", c.URL)
		}
		transport.TLSClientConfig.GetClientCertificate = clientCertificate(c.Cert, c.Key)
	}
	return s.compares(name, scim.New(cfg), c.CompareEvery), nil
}

func (s *Service) openLDAP(name string, c *config.LDAPIssuer) (broker.Issuer, error) {
	roots, err := readRoots(c.CAFile)
	if err != nil {
		return nil, err
	}
	cfg := ldap.Config{
		Name: name, URL: c.URL, StartTLS: c.StartTLS, TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		BindDN: c.BindDN, Password: func() (string, error) { return config.ReadToken(c.PasswordFile) },
		Base: c.Base, PeopleBase: c.PeopleBase, Match: c.Match, IDAttribute: c.IDAttribute, Placeholder: c.Placeholder,
		Ledger: s.ledger, Names: c.Names,
	}
	if c.Cert != "" {
		cfg.TLS.GetClientCertificate = clientCertificate(c.Cert, c.Key)
	}
	return s.compares(name, ldap.New(cfg), c.CompareEvery), nil
}

// readRoots reads a file of certificate authorities; nil without one.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	return config.ReadRoots(path)
}

// clientCertificate reads the broker's certificate for each connection, because another
// program renews it.
func clientCertificate(cert, key string) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		return &pair, nil
	}
}

// readMemberships updates the counts of memberships. If it fails, they keep the old values.
func (c *counts) readMemberships(ctx context.Context, s *store.Store) {
	held, err := store.MembershipsIn(s).Count(ctx)
	if err != nil {
		return
	}
	differ, err := store.MembershipsIn(s).CountDifferences(ctx)
	if err != nil {
		return
	}
	list := []server.MembershipCount{}
	for issuer, n := range held {
		m := server.MembershipCount{Issuer: issuer, Held: n, Differs: map[string]int64{}}
		for _, d := range broker.Differences() {
			m.Differs[string(d)] = 0
		}
		for _, d := range differ {
			if d.Issuer == issuer {
				m.Differs[string(d.Difference)] = d.Count
			}
		}
		list = append(list, m)
	}
	c.memberships.Store(&list)
}

// membershipCounts returns the counts for the gauges. Every issuer of memberships has
// its series from the start.
func (s *Service) membershipCounts() (list []server.MembershipCount) {
	if counted := s.counts.memberships.Load(); counted != nil {
		list = slices.Clone(*counted)
	}
	for name, c := range s.config.Issuers {
		known := slices.ContainsFunc(list, func(m server.MembershipCount) bool { return m.Issuer == name })
		if !c.Joins() || known {
			continue
		}
		m := server.MembershipCount{Issuer: name, Differs: map[string]int64{}}
		for _, d := range broker.Differences() {
			m.Differs[string(d)] = 0
		}
		list = append(list, m)
	}
	return list
}
