package bench

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"accessbroker.internal/api"
)

// BenchmarkBoundIssuance compares the exchange for a token that is bound to a DPoP key with
// that for an unbound one, in turns. Each bound exchange has a proof of its own, which is
// made before the turn.
func BenchmarkBoundIssuance(b *testing.B) {
	k := newKit(b)
	broker := k.startBroker("broker")
	plain := &mode{name: "unbound", target: broker, request: remembered(broker)}
	modes := []*mode{plain}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	for name, key := range map[string]any{"ES256": ec, "Ed25519": private} {
		proofs := k.proofs(broker, key)
		modes = append(modes, &mode{name: "bound-" + name, target: broker, floor: plain, request: proofs.next, prepare: proofs.prepare})
	}
	for _, m := range modes {
		m.ready(clients, 10_000)
		k.load(m, clients, warmUp/2)
	}
	b.ResetTimer()
	k.compare(modes, clients)
	b.StopTimer()
	b.Log("target: a rate of 0.70 or more of the unbound exchange")
	k.count(b, broker)
}

// boundRequests are requests with proofs that the broker has not seen.
type boundRequests struct {
	k     *kit
	t     *target
	key   *api.ProofKey
	list  [][]byte
	used  atomic.Int64
	plain [][]byte
}

func (k *kit) proofs(t *target, private any) *boundRequests {
	k.b.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		k.b.Fatal(err)
	}
	key, err := api.ParseProofKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		k.b.Fatal(err)
	}
	return &boundRequests{k: k, t: t, key: key, plain: t.requests}
}

// nonce returns a nonce of the broker: it answers a call without one with it.
func (r *boundRequests) nonce() string {
	r.k.b.Helper()
	target := "https://" + r.t.address + "/oauth2/token"
	proof, err := r.key.Proof(http.MethodPost, target, "", "")
	if err != nil {
		r.k.b.Fatal(err)
	}
	_, body, _ := bytes.Cut(r.plain[0], []byte("\r\n\r\n"))
	req, err := http.NewRequestWithContext(r.k.b.Context(), http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		r.k.b.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("DPoP", proof)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.k.pool}}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		r.k.b.Fatal(err)
	}
	_ = resp.Body.Close()
	nonce := resp.Header.Get("DPoP-Nonce")
	if nonce == "" {
		r.k.b.Fatalf("the broker answered %s without a nonce", resp.Status)
	}
	return nonce
}

func (r *boundRequests) prepare(clients, expected int) {
	nonce, target := r.nonce(), "https://"+r.t.address+"/oauth2/token"
	r.list = make([][]byte, 0, expected+clients)
	r.used.Store(0)
	for len(r.list) < expected+clients {
		proof, err := r.key.Proof(http.MethodPost, target, nonce, "")
		if err != nil {
			r.k.b.Fatal(err)
		}
		plain := r.plain[len(r.list)%len(r.plain)]
		r.list = append(r.list, []byte(strings.Replace(string(plain), "\r\n\r\n", fmt.Sprintf("\r\nDPoP: %s\r\n\r\n", proof), 1)))
	}
}

func (r *boundRequests) next(int, int, int) []byte {
	n := r.used.Add(1) - 1
	if n >= int64(len(r.list)) {
		return nil
	}
	return r.list[n]
}
