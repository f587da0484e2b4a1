package service

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/issuers/vault"
)

// operatorFile is a broker whose SPIFFE agent is not there.
const operatorFile = `
server:
  external_url: https://broker.acme.test
  listen: 127.0.0.1:0
  tls: {svid: true}
  seal_keys: [{file: seal.key}]
attest:
  trust_domain: acme.test
  workload_api: unix:///nonexistent/agent.sock
store: sqlite:broker.db
policies: policies
issuers:
  tickets: {token: {audience: https://tickets.acme.test}}
entitlements:
  tickets-api: {issuer: tickets, scopes: [tickets:read]}
`

func newService(t *testing.T) *Service {
	t.Helper()
	dir := t.TempDir()
	path, seal := filepath.Join(dir, "broker.yaml"), base64.StdEncoding.EncodeToString(make([]byte, broker.SealKeySize))
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "policies"), 0o700), os.WriteFile(filepath.Join(dir, "seal.key"), []byte(seal), 0o600)); err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(path, []byte(operatorFile), nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Options{Config: c, Log: slog.New(slog.DiscardHandler), DiskReserve: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// A broker that has no SVID yet cannot log in to a Vault. The Vault is then
// temporarily unavailable.
func TestVaultIsUnavailableWithoutSVID(t *testing.T) {
	s := newService(t)
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "vault.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*config.VaultIssuer{
		"jwt":  {Address: server.URL, CAFile: ca, TokenRole: "leases", JWT: &config.VaultLogin{Mount: "jwt", Role: "broker", Audience: "vault"}},
		"cert": {Address: server.URL, CAFile: ca, TokenRole: "leases", Cert: &config.VaultLogin{Mount: "cert", Role: "broker"}},
	} {
		issuer, err := s.openVault("vault", c)
		if err != nil {
			t.Fatal(err)
		}
		o := broker.Order{Lease: broker.Lease{Expires: time.Now().Add(time.Hour)}, Entitlement: &broker.Entitlement{Spec: &vault.Spec{}}}
		if _, err := issuer.Prepare(t.Context(), o); !errors.Is(err, broker.ErrIssuerUnavailable) {
			t.Errorf("%s: got %v, want %v", name, err, broker.ErrIssuerUnavailable)
		}
	}
}
