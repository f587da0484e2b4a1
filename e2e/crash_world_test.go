package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"accessbroker.internal/api"
)

// A plainWorld is a broker without SPIRE: its trust bundle and its certificate are
// files, and the test signs the callers' JWT-SVIDs. So it needs no real servers.
type plainWorld struct {
	*world
	signer jose.Signer // of the trust domain
	pool   *x509.CertPool
}

const plainFile = `
server:
  external_url: %[1]s
  listen: "%[2]s"
  tls: {cert: cert.pem, key: key.pem}
  client_certs: off
  admin_socket: %[3]s/admin.sock
  seal_keys: [{file: seal.key}]
  admission: {per_second: 1000, pending: 100}
attest:
  trust_domain: acme.test
  bundles: {acme.test: bundle.json}
store: sqlite:broker.db
policies: policies
issuers:
  tickets: {token: {audience: "https://tickets.acme.test"}}
entitlements:
  tickets-api: {issuer: tickets, scopes: [tickets:read], max_ttl: 15m}
`

func newPlainWorld(t testing.TB) *plainWorld {
	t.Helper()
	dir, err := os.MkdirTemp("", "broker-") // short: sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &plainWorld{world: &world{owner: t, dir: dir, bin: brokerBinary(t)}, pool: x509.NewCertPool()}
	t.Cleanup(w.verify) // registered before the processes, so it runs after their end
	w.listen = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	w.url = "https://" + w.listen
	if err := os.Mkdir(filepath.Join(dir, "policies"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.write(t, "seal.key", base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)))
	w.write(t, "policies/all.cedar", agentsPolicy)
	w.write(t, "broker.yaml", fmt.Sprintf(plainFile, w.url, w.listen, w.dir))
	w.writeKeys(t)
	return w
}

// writeKeys writes the trust bundle and the broker's certificate.
func (w *plainWorld) writeKeys(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Use: "jwt-svid"}}})
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, "bundle.json", string(bundle))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	w.pool.AppendCertsFromPEM(cert)
	w.write(t, "cert.pem", string(cert))
	w.write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
}

// workload returns a client of a workload. It signs a JWT-SVID for each call.
func (w *plainWorld) workload(t testing.TB, id string) *api.Client {
	t.Helper()
	return &api.Client{
		BaseURL: w.url, HTTP: client(t, &tls.Config{RootCAs: w.pool, MinVersion: tls.VersionTLS13}, true),
		Token: func(context.Context) (string, error) {
			now := time.Now()
			return jwt.Signed(w.signer).Claims(jwt.Claims{
				Subject: id, Audience: jwt.Audience{w.url}, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(5 * time.Minute)),
			}).Serialize()
		},
	}
}
