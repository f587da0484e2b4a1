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

// engine answers as the documentation of Vault's engines says.
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
			return 400, "AWS makes no session that short"
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
	case "kubernetes/creds/capped":
		return leased(300, serviceAccount(jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(now.Add(590 * time.Second))}))
	case "kubernetes/creds/long":
		return leased(600, serviceAccount(jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(now.Add(time.Hour))}))
	case "kubernetes/creds/ever":
		return leased(600, serviceAccount(jwt.RegisteredClaims{}))
	case "kubernetes/creds/garbage":
		return leased(600, object{"service_account_token": "ey.secret"})
	case "rabbitmq/creds/shop":
		return leased(600, object{"username": "shop-1", "password": "secret"})
	}
	if strings.HasPrefix(path, "plugin/creds/") {
		return leased(600, f.stated(path))
	}
	return 404, "no handler for route"
}

// signed returns an SSH certificate; the role in the path chooses its flaw.
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

// No engine's credential is reported as revoked while it still works, and none is
// issued that outlives its lease or is harder to revoke than approvers were shown.
func TestEngines(t *testing.T) {
	ttl := map[string]string{"ttl": "${ttl}"}
	for name, test := range map[string]struct {
		spec   Spec
		kind   string // empty: the credential is refused
		shown  broker.Revocation
		revoke error // that Revoke returns
	}{
		"AWS user":                              {Spec{Path: "aws/creds/user"}, "aws", broker.RevokedImmediate, nil},
		"AWS session":                           {Spec{Path: "aws/sts/role", Data: ttl}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"AWS session, old field names":          {Spec{Path: "aws/sts/federated"}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"AWS session without lease":             {Spec{Path: "aws/sts/unleased"}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"AWS session without expiry":            {Spec{Path: "aws/sts/silent"}, "", "", nil},
		"AWS session, declared":                 {Spec{Path: "aws/creds/role", AtExpiry: true}, "aws", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"AWS session, undeclared":               {Spec{Path: "aws/creds/role"}, "", "", nil},
		"AWS session outlives lease":            {Spec{Path: "aws/sts/long"}, "", "", nil},
		"AWS session, declared, outlives lease": {Spec{Path: "aws/creds/long", AtExpiry: true}, "", "", nil},
		"AWS session as data, undeclared":       {Spec{Path: "aws/creds/role", Type: "data"}, "", "", nil},
		"Google Cloud token":                    {Spec{Path: "gcp/roleset/reader/token", AtExpiry: true}, "data", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"Google Cloud token, undeclared":        {Spec{Path: "gcp/roleset/reader/token"}, "", "", nil},
		"Google Cloud key":                      {Spec{Path: "gcp/roleset/reader/key"}, "data", broker.RevokedImmediate, nil},
		"Azure":                                 {Spec{Path: "azure/creds/reader"}, "data", broker.RevokedImmediate, nil},
		"Kubernetes":                            {Spec{Path: "kubernetes/creds/deployer", Data: map[string]string{"kubernetes_namespace": "shop"}, AtExpiry: true}, "data", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"Kubernetes, undeclared":                {Spec{Path: "kubernetes/creds/deployer", Data: map[string]string{"kubernetes_namespace": "shop"}}, "", "", nil},
		"Kubernetes outlives lease":             {Spec{Path: "kubernetes/creds/long", Data: map[string]string{"kubernetes_namespace": "shop"}, AtExpiry: true}, "", "", nil},
		"Kubernetes without expiry":             {Spec{Path: "kubernetes/creds/ever", Data: map[string]string{"kubernetes_namespace": "shop"}, AtExpiry: true}, "", "", nil},
		"Kubernetes, not a token":               {Spec{Path: "kubernetes/creds/garbage", Data: map[string]string{"kubernetes_namespace": "shop"}, AtExpiry: true}, "", "", nil},
		"RabbitMQ":                              {Spec{Path: "rabbitmq/creds/shop"}, "userpass", broker.RevokedImmediate, nil},
		"database user, declared at expiry":     {Spec{Path: "database/creds/orders-ro", AtExpiry: true}, "userpass", broker.RevokedAtExpiry, broker.ErrNotRevocable},
		"SSH without expiry":                    {Spec{Path: "ssh/sign/long", Data: ttl}, "", "", nil},
		"SSH without principals":                {Spec{Path: "ssh/sign/anybody", Data: ttl}, "", "", nil},
		"SSH for another principal":             {Spec{Path: "ssh/sign/root", Data: map[string]string{"ttl": "${ttl}", "valid_principals": "deploy"}}, "", "", nil},
		"SSH, not a certificate":                {Spec{Path: "ssh/sign/garbage", Data: ttl}, "", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFake(t)
			o := newOrder(t, test.spec)
			if test.spec.sessions() {
				o.Lease.Expires = o.Lease.Opened.Add(stsMinTTL).Truncate(time.Second)
			}
			l, c, err := issue(v, o)
			if test.kind == "" {
				if !errors.Is(err, broker.ErrIssuerRefused) || strings.Contains(err.Error(), "secret") {
					t.Fatalf("got %v, want %v", err, broker.ErrIssuerRefused)
				}
				// The credential can still be revoked.
				if err := v.Revoke(t.Context(), l); err != nil && !errors.Is(err, broker.ErrNotRevocable) || len(f.leases) != 0 {
					t.Errorf("%d leases are left, %v", len(f.leases), err)
				}
				return
			}
			if err != nil || c.Type != test.kind || c.Revocation != test.shown || c.Expires.After(o.Lease.Expires) {
				t.Fatalf("%q, %q, until %s: %v", c.Type, c.Revocation, c.Expires, err)
			}
			if promised := test.spec.Revocation(); promised != test.shown {
				t.Errorf("approvers were shown revocation %s, want %s", promised, test.shown)
			}
			for range 2 {
				if err := v.Revoke(t.Context(), l); !errors.Is(err, test.revoke) {
					t.Errorf("Revoke: got %v, want %v", err, test.revoke)
				}
			}
			if len(f.leases) != 0 {
				t.Errorf("%d leases are left", len(f.leases))
			}
		})
	}
}

// The next rotation is reported even if it is after the lease's expiry.
func TestStaticRoleReportsRotation(t *testing.T) {
	_, v := startFake(t)
	o := newOrder(t, Spec{Path: "database/static-creds/orders"})
	start := time.Now()
	o.Lease.Expires = start.Add(time.Minute).Truncate(time.Second)
	_, c, err := issue(v, o)
	if err != nil {
		t.Fatal(err)
	}
	const ttl = 90 * time.Second // of the fake
	if c.Rotates.Before(start.Add(ttl-time.Second)) || c.Rotates.After(time.Now().Add(ttl)) || c.Expires.After(o.Lease.Expires) {
		t.Errorf("rotates at %s, and expires at %s, in a lease from %s to %s", c.Rotates, c.Expires, start, o.Lease.Expires)
	}
}

// An AWS session is requested with a margin for a slow call. Vault's clock does not
// matter, because AWS uses its own. Only the shortest session may outlive its
// lease.
func TestSessionTTL(t *testing.T) {
	spec := Spec{Path: "aws/sts/role", Data: map[string]string{"ttl": "${ttl}"}}
	for name, test := range map[string]struct {
		lease, ahead, ttl time.Duration
		refused           bool
	}{
		"hour":                      {lease: time.Hour, ttl: time.Hour - stsCallTime},
		"the shortest":              {lease: stsMinTTL, ttl: stsMinTTL},
		"shorter":                   {lease: stsMinTTL - time.Minute, refused: true},
		"hour, clock ahead":         {lease: time.Hour, ahead: time.Minute, ttl: time.Hour - stsCallTime},
		"hour, clock behind":        {lease: time.Hour, ahead: -time.Minute, ttl: time.Hour - stsCallTime},
		"the shortest, clock ahead": {lease: stsMinTTL, ahead: time.Minute, ttl: stsMinTTL},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFake(t)
			f.ahead = test.ahead
			o := newOrder(t, spec)
			now := time.Now()
			o.Lease.Opened, o.Lease.Expires = now, now.Add(test.lease).Truncate(time.Second)
			l, c, err := issue(v, o)
			if test.refused {
				var h handle
				if json.Unmarshal(l.Handle, &h) != nil || h.Made != madeNothing || !errors.Is(err, broker.ErrInvalidTTL) || len(f.leases) != 0 {
					t.Errorf("the handle says %q, and the error is %v", h.Made, err)
				}
				return
			}
			if err != nil || c.Expires.After(o.Lease.Expires) {
				t.Fatalf("until %s: %v", c.Expires, err)
			}
			if life := c.Expires.Sub(now); life > test.ttl+2*time.Second || life < test.ttl-20*time.Second {
				t.Errorf("valid for %s, want %s", life, test.ttl)
			}
		})
	}
}
