package vault

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/ssh"

	"accessbroker.internal/broker"
)

// engine answers as Vault's engines are documented to.
func (f *fakeVault) engine(path, token string, body object) (int, any) {
	leased := func(seconds int, data object) (int, any) {
		lease := fmt.Sprintf("%s/%d", path, f.n)
		f.leases[lease] = token
		return 200, object{"lease_id": lease, "lease_duration": seconds, "renewable": false, "data": data}
	}
	session := func(ttl any) object {
		return object{"access_key": "ASIA1", "secret_key": "secret", "security_token": "token", "session_token": "token", "ttl": ttl}
	}
	now := time.Now()
	serviceAccount := func(claims jwt.Claims) object {
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte("of the cluster"))
		if err != nil {
			f.t.Error(err)
		}
		return object{"service_account_name": "v-token", "service_account_namespace": "shop", "service_account_token": token}
	}
	switch path {
	case "aws/creds/user":
		return leased(600, object{"access_key": "AKIA1", "secret_key": "secret", "security_token": nil})
	case "aws/creds/role":
		return leased(600, session(600))
	case "aws/sts/role":
		ttl, _ := body["ttl"].(string)
		asked, err := time.ParseDuration(ttl)
		if err != nil || asked < stsMinTTL {
			return 400, "AWS makes no session for so short a time"
		}
		return leased(300, session(int(asked/time.Second)-int(f.ahead/time.Second))) // its mount has a max_lease_ttl
	case "aws/sts/federated":
		return leased(600, object{"access_key": "ASIA1", "secret_key": "secret", "security_token": "token", "ttl": 600})
	case "aws/sts/unleased":
		return 200, object{"data": session(600)}
	case "aws/sts/long", "aws/creds/long":
		return leased(600, session(3600))
	case "aws/sts/silent":
		return leased(600, session(nil))
	case "gcp/roleset/reader/token":
		return 200, object{"data": object{"token": "ya29.secret", "token_ttl": 500, "expires_at_seconds": now.Add(500 * time.Second).Unix()}}
	case "gcp/roleset/reader/key":
		return leased(600, object{"private_key_data": "c2VjcmV0", "key_algorithm": "KEY_ALG_RSA_2048"})
	case "azure/creds/reader":
		return leased(600, object{"client_id": "c", "client_secret": "secret"})
	case "kubernetes/creds/deployer":
		return leased(600, serviceAccount(jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(now.Add(590 * time.Second))}))
	case "kubernetes/creds/long":
		return leased(600, serviceAccount(jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(now.Add(time.Hour))}))
	case "kubernetes/creds/ever":
		return leased(600, serviceAccount(jwt.RegisteredClaims{}))
	case "kubernetes/creds/garbage":
		return leased(600, object{"service_account_token": "ey.secret"})
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
	ttl := map[string]string{"ttl": "${ttl}"}
	for name, test := range map[string]struct {
		spec  Spec
		kind  string // empty: it is refused
		truth broker.Revocation
		ends  error
	}{
		"a user of AWS":                         {Spec{Path: "aws/creds/user"}, "aws", broker.RevokedImmediate, nil},
		"a session of AWS":                      {Spec{Path: "aws/sts/role", Data: ttl}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"a session in the old words":            {Spec{Path: "aws/sts/federated"}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"a session without a lease":             {Spec{Path: "aws/sts/unleased"}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"a session that does not say its end":   {Spec{Path: "aws/sts/silent"}, "", "", nil},
		"a session that says so":                {Spec{Path: "aws/creds/role", Timed: true}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"a session where a user was promised":   {Spec{Path: "aws/creds/role"}, "", "", nil},
		"a session that outlives its lease":     {Spec{Path: "aws/sts/long"}, "", "", nil},
		"a session that outlives a short lease": {Spec{Path: "aws/creds/long", Timed: true}, "", "", nil},
		"a session as data, promised to end":    {Spec{Path: "aws/creds/role", Type: "data"}, "", "", nil},
		"a token of Google":                     {Spec{Path: "gcp/roleset/reader/token", Timed: true}, "data", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"a token that was promised to end":      {Spec{Path: "gcp/roleset/reader/token"}, "", "", nil},
		"a key of Google":                       {Spec{Path: "gcp/roleset/reader/key"}, "data", broker.RevokedImmediate, nil},
		"Azure":                                 {Spec{Path: "azure/creds/reader"}, "data", broker.RevokedImmediate, nil},
		"Kubernetes":                            {Spec{Path: "kubernetes/creds/deployer", Data: map[string]string{"kubernetes_namespace": "shop"}, Timed: true}, "data", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"Kubernetes that was promised to end":   {Spec{Path: "kubernetes/creds/deployer", Data: map[string]string{"kubernetes_namespace": "shop"}}, "", "", nil},
		"Kubernetes for longer than the lease":  {Spec{Path: "kubernetes/creds/long", Data: map[string]string{"kubernetes_namespace": "shop"}, Timed: true}, "", "", nil},
		"Kubernetes for ever":                   {Spec{Path: "kubernetes/creds/ever", Data: map[string]string{"kubernetes_namespace": "shop"}, Timed: true}, "", "", nil},
		"Kubernetes that can't be read":         {Spec{Path: "kubernetes/creds/garbage", Data: map[string]string{"kubernetes_namespace": "shop"}, Timed: true}, "", "", nil},
		"RabbitMQ":                              {Spec{Path: "rabbitmq/creds/shop"}, "userpass", broker.RevokedImmediate, nil},
		"a database user that only time ends":   {Spec{Path: "database/creds/orders-ro", Timed: true}, "userpass", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"SSH for ever":                          {Spec{Path: "ssh/sign/long", Data: ttl}, "", "", nil},
		"SSH of everybody":                      {Spec{Path: "ssh/sign/anybody", Data: ttl}, "", "", nil},
		"SSH of somebody else":                  {Spec{Path: "ssh/sign/root", Data: map[string]string{"ttl": "${ttl}", "valid_principals": "deploy"}}, "", "", nil},
		"SSH that is none":                      {Spec{Path: "ssh/sign/garbage", Data: ttl}, "", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFakeVault(t)
			o := vaultOrder(t, test.spec)
			if test.spec.sessions() {
				o.Lease.Expires = o.Lease.Opened.Add(stsMinTTL).Truncate(time.Second)
			}
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
	o := vaultOrder(t, Spec{Path: "database/static-creds/orders"})
	o.Lease.Expires = time.Now().Add(30 * time.Second).Truncate(time.Second)
	_, c, err := issue(v, o)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(c.Rotates); left < 80*time.Second || left > 91*time.Second || c.Expires.After(o.Lease.Expires) {
		t.Errorf("it rotates in %s, and its lease ends at %s", left, c.Expires)
	}
}

// Sessions of AWS are asked for with room for a slow call, whatever a Vault's
// clock says: it only counts what AWS gave it. The shortest outlive their lease
// by what AWS does not make shorter.
func TestVaultSessions(t *testing.T) {
	spec := Spec{Path: "aws/sts/role", Data: map[string]string{"ttl": "${ttl}"}}
	for name, test := range map[string]struct {
		lease, ahead, ends time.Duration
		refused            bool
	}{
		"an hour":                   {lease: time.Hour, ends: time.Hour - stsCallTime},
		"the shortest":              {lease: stsMinTTL, ends: stsMinTTL},
		"shorter":                   {lease: stsMinTTL - time.Minute, refused: true},
		"an hour, a clock ahead":    {lease: time.Hour, ahead: time.Minute, ends: time.Hour - stsCallTime},
		"an hour, a clock behind":   {lease: time.Hour, ahead: -time.Minute, ends: time.Hour - stsCallTime},
		"the shortest, clock ahead": {lease: stsMinTTL, ahead: time.Minute, ends: stsMinTTL},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFakeVault(t)
			f.ahead = test.ahead
			o := vaultOrder(t, spec)
			now := time.Now()
			o.Lease.Opened, o.Lease.Expires = now, now.Add(test.lease).Truncate(time.Second)
			l, c, err := issue(v, o)
			if test.refused {
				var h vaultHandle
				if json.Unmarshal(l.Handle, &h) != nil || h.Made != endNothing || !errors.Is(err, broker.ErrInvalidTTL) || len(f.leases) != 0 {
					t.Errorf("it is made %q: %v", h.Made, err)
				}
				return
			}
			if err != nil || c.Expires.After(o.Lease.Expires) {
				t.Fatalf("until %s: %v", c.Expires, err)
			}
			if life := c.Expires.Sub(now); life > test.ends+2*time.Second || life < test.ends-20*time.Second {
				t.Errorf("it lives for %s, want %s", life, test.ends)
			}
		})
	}
}
