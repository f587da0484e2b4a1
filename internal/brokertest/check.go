package brokertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
)

// check verifies what must hold after any test.
func (b *Broker) check() {
	ctx := context.Background() // the test's own is over
	head := b.Store.Head()
	note, err := b.signer.Sign(audit.Checkpoint{Origin: b.signer.Origin(), Size: head.Size, Root: head.Root})
	if err == nil {
		err = b.Store.SaveCheckpoint(ctx, head.Size, note)
	}
	if err != nil {
		b.t.Error(err)
	}
	if _, err := verify.Verify(ctx, b.Store.Source(), verify.Options{Key: b.public}); err != nil {
		b.t.Errorf("the log does not verify: %v", err)
	}
	b.checkLeases(ctx)
	b.checkSecrets()
}

// checkLeases wants the record of every lease.
func (b *Broker) checkLeases(ctx context.Context) {
	issued := map[string]bool{}
	for _, r := range b.Records() {
		if r.Kind == audit.LeaseIssued {
			issued[r.Lease.ID] = true
		}
	}
	for q := (broker.LeaseQuery{Now: time.Now(), Limit: 500}); ; {
		var page []*broker.Lease
		var next broker.LeaseID
		err := b.Store.View(ctx, func(tx broker.Tx) (err error) {
			page, next, err = tx.Leases(q)
			return err
		})
		if err != nil {
			b.t.Error(err)
			return
		}
		for _, l := range page {
			if l.Status != broker.LeaseFailed && !issued[l.ID.String()] {
				b.t.Errorf("lease %s has no record", l.ID)
			}
		}
		if q.Before = next; next.IsZero() {
			return
		}
	}
}

func (b *Broker) checkSecrets() {
	log := strings.Join(b.log.all(), "\n")
	for _, secret := range b.secrets.all() {
		if secret != "" && strings.Contains(log, secret) {
			b.t.Errorf("the log shows a secret: %.20s…", secret)
		}
	}
}

// Records gives the whole log.
func (b *Broker) Records() (all []audit.Record) {
	for item, err := range b.Store.Source().Items(context.Background()) {
		if err != nil {
			b.t.Fatal(err)
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			b.t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func (b *Broker) client(svid *tls.Certificate) *api.Client {
	pool := x509.NewCertPool()
	pool.AddCert(b.CA.X509Authority())
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	if svid != nil {
		config.Certificates = []tls.Certificate{*svid}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	b.t.Cleanup(transport.CloseIdleConnections)
	return &api.Client{BaseURL: b.URL, HTTP: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// ClientWith gives a client that shows any certificate, good or bad.
func (b *Broker) ClientWith(cert tls.Certificate) *api.Client { return b.client(&cert) }

func encodePair(t testing.TB, pair tls.Certificate) (cert, key []byte) {
	t.Helper()
	for _, der := range pair.Certificate {
		cert = append(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
