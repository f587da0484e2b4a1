package issuers

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"accessbroker.internal/broker"
)

// engine answers as Vault's engines are documented to.
func (f *fakeVault) engine(path, token string) (int, any) {
	leased := func(seconds int, data object) (int, any) {
		lease := fmt.Sprintf("%s/%d", path, f.n)
		f.leases[lease] = token
		return 200, object{"lease_id": lease, "lease_duration": seconds, "renewable": false, "data": data}
	}
	session := object{"access_key": "ASIA1", "secret_key": "secret", "security_token": "token", "session_token": "token", "ttl": 600}
	switch path {
	case "aws/creds/user":
		return leased(600, object{"access_key": "AKIA1", "secret_key": "secret", "security_token": nil})
	case "aws/sts/role", "aws/creds/role":
		return leased(600, session)
	case "aws/sts/long":
		return leased(3600, session)
	case "gcp/roleset/reader/token":
		return 200, object{"data": object{"token": "ya29.secret", "token_ttl": 500, "expires_at_seconds": time.Now().Add(500 * time.Second).Unix()}}
	case "gcp/roleset/reader/key":
		return leased(600, object{"private_key_data": "c2VjcmV0", "key_algorithm": "KEY_ALG_RSA_2048"})
	case "azure/creds/reader":
		return leased(600, object{"client_id": "c", "client_secret": "secret"})
	case "kubernetes/creds/deployer":
		return leased(600, object{"service_account_name": "v-token", "service_account_namespace": "shop", "service_account_token": "ey.secret"})
	case "rabbitmq/creds/shop":
		return leased(600, object{"username": "shop-1", "password": "secret"})
	}
	return 404, "no handler for route"
}

// signed is an SSH certificate as the role of the path makes it.
func (f *fakeVault) signed(path string, body object) (int, any) {
	_, ca, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.t.Error(err)
	}
	signer, err := ssh.NewSignerFromKey(ca)
	if err != nil {
		f.t.Error(err)
	}
	ttl, err := time.ParseDuration(body["ttl"].(string))
	if err != nil {
		f.t.Error(err)
	}
	cert := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.UserCert, ValidBefore: uint64(time.Now().Add(ttl).Unix())}
	switch path {
	case "ssh/sign/long":
		cert.ValidBefore = ssh.CertTimeInfinity
	case "ssh/sign/root":
		cert.ValidPrincipals = []string{"root"}
	case "ssh/sign/ops":
		cert.ValidPrincipals = strings.Split(body["valid_principals"].(string), ",")
	case "ssh/sign/garbage":
		return 200, object{"data": object{"signed_key": "ssh-ed25519 AAAA"}}
	}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		f.t.Error(err)
	}
	return 200, object{"data": object{"signed_key": string(ssh.MarshalAuthorizedKey(cert)), "serial_number": "2a"}}
}

// What other engines make, and what ending it means: nothing is called revoked
// that goes on working, and nothing is given out that ends later than approvers
// were shown, or than its lease.
func TestVaultEngines(t *testing.T) {
	for name, test := range map[string]struct {
		spec  VaultSpec
		kind  string // empty: it is refused
		truth broker.Revocation
		ends  error
	}{
		"a user of AWS":                       {VaultSpec{Path: "aws/creds/user"}, "aws", broker.RevokedImmediate, nil},
		"a session of AWS":                    {VaultSpec{Path: "aws/sts/role"}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"a session that says so":              {VaultSpec{Path: "aws/creds/role", Timed: true}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"a session where a user was promised": {VaultSpec{Path: "aws/creds/role"}, "", "", nil},
		"a session that outlives its lease":   {VaultSpec{Path: "aws/sts/long"}, "", "", nil},
		"a token of Google":                   {VaultSpec{Path: "gcp/roleset/reader/token", Timed: true}, "data", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"a token that was promised to end":    {VaultSpec{Path: "gcp/roleset/reader/token"}, "", "", nil},
		"a key of Google":                     {VaultSpec{Path: "gcp/roleset/reader/key"}, "data", broker.RevokedImmediate, nil},
		"Azure":                               {VaultSpec{Path: "azure/creds/reader"}, "data", broker.RevokedImmediate, nil},
		"Kubernetes":                          {VaultSpec{Path: "kubernetes/creds/deployer", Data: map[string]string{"kubernetes_namespace": "shop"}, Timed: true}, "data", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"Kubernetes that was promised to end": {VaultSpec{Path: "kubernetes/creds/deployer", Data: map[string]string{"kubernetes_namespace": "shop"}}, "", "", nil},
		"RabbitMQ":                            {VaultSpec{Path: "rabbitmq/creds/shop"}, "userpass", broker.RevokedImmediate, nil},
		"a database user that only time ends": {VaultSpec{Path: "database/creds/orders-ro", Timed: true}, "userpass", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"SSH for ever":                        {VaultSpec{Path: "ssh/sign/long", Data: map[string]string{"ttl": "${ttl}"}}, "", "", nil},
		"SSH of everybody":                    {VaultSpec{Path: "ssh/sign/anybody", Data: map[string]string{"ttl": "${ttl}"}}, "", "", nil},
		"SSH of somebody else":                {VaultSpec{Path: "ssh/sign/root", Data: map[string]string{"ttl": "${ttl}", "valid_principals": "deploy"}}, "", "", nil},
		"SSH that is none":                    {VaultSpec{Path: "ssh/sign/garbage", Data: map[string]string{"ttl": "${ttl}"}}, "", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFakeVault(t)
			o := vaultOrder(t, test.spec)
			l, c, err := issue(v, o)
			if test.kind == "" {
				if !errors.Is(err, broker.ErrIssuerRefused) || strings.Contains(err.Error(), "secret") {
					t.Fatalf("%v", err)
				}
				// Nobody gets it, and what there is of it is cleaned up.
				if err := v.Revoke(t.Context(), l); err != nil && !errors.Is(err, broker.ErrNotRevocable) || len(f.leases) != 0 {
					t.Errorf("%d leases are left, %v", len(f.leases), err)
				}
				return
			}
			if err != nil || c.Type != test.kind || c.Revocation != test.truth || c.Expires.After(o.Lease.Expires) {
				t.Fatalf("%q, %q, until %s: %v", c.Type, c.Revocation, c.Expires, err)
			}
			if promised := test.spec.Revocation(); promised != test.truth {
				t.Errorf("approvers were shown %s", promised)
			}
			for range 2 {
				if err := v.Revoke(t.Context(), l); !errors.Is(err, test.ends) {
					t.Errorf("ending it: %v, want %v", err, test.ends)
				}
			}
			if len(f.leases) != 0 {
				t.Errorf("%d leases are left", len(f.leases))
			}
		})
	}
}

// When a static role rotates is told, also if that is after the lease's end.
func TestVaultRotation(t *testing.T) {
	_, v := startFakeVault(t)
	o := vaultOrder(t, VaultSpec{Path: "database/static-creds/orders"})
	o.Lease.Expires = time.Now().Add(30 * time.Second).Truncate(time.Second)
	_, c, err := issue(v, o)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(c.Rotates); left < 80*time.Second || left > 91*time.Second || c.Expires.After(o.Lease.Expires) {
		t.Errorf("it rotates in %s, and its lease ends at %s", left, c.Expires)
	}
}
