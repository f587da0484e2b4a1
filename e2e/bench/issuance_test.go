package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The sizes of BenchmarkIssuance: it takes about three minutes.
const (
	turns    = 5
	turnTime = 1500 * time.Millisecond
)

// crowds are the numbers of clients.
var crowds = []int{1, 16, 64}

// A mode is how a client proves its identity and connects.
type mode struct {
	name      string
	target    *target
	floor     *mode                               // with which it is compared; nil: it is a floor itself
	request   func(client, clients, n int) []byte // the n-th of a client; nil: none is left
	config    func(client int) *tls.Config        // nil: no certificate
	reconnect bool                                // a connection for each token
	prepare   func(clients, expected int)         // before a turn of so many requests, as expected; nil: nothing to prepare
}

// ready prepares a turn.
func (m *mode) ready(clients, expected int) {
	if m.prepare != nil {
		m.prepare(clients, expected)
	}
}

// BenchmarkIssuance compares the ways to get a token with the least that a server can
// do for a durable answer (see floor_test.go), in turns: machines are noisy, but all
// measurements of one turn see the same noise. The floor verifies a JWT for each
// token.
//
//   - remembered: the broker has verified the caller's JWT-SVID before;
//   - fresh: each token is for a JWT-SVID that the broker has not seen;
//   - mTLS: the caller's X.509-SVID proves its connection;
//   - reconnect: remembered, with a connection for each token, as is its floor.
//
// With OTHER=/path/to/broker, it measures that build in the same turns. That build must
// accept the operator's file of this package.
func BenchmarkIssuance(b *testing.B) {
	k := newKit(b)
	floor, broker := k.startFloor(), k.startBroker("broker")
	keep := &mode{name: "floor", target: floor, request: remembered(floor)}
	again := &mode{name: "floor, reconnect", target: floor, request: remembered(floor), reconnect: true}
	modes := append([]*mode{keep, again}, k.modes(broker, keep, again, "")...)
	if path := os.Getenv("OTHER"); path != "" {
		modes = append(modes, k.modes(k.startOther(path), keep, again, "other: ")...)
	}
	for _, m := range modes {
		m.ready(crowds[len(crowds)-1], 10_000)
		k.load(m, crowds[len(crowds)-1], warmUp/2)
	}
	b.ResetTimer()
	for _, clients := range crowds {
		k.compare(modes, clients)
	}
	b.StopTimer()
	memory := k.memory(broker) >> 20
	b.Logf("resident memory of the broker: %d MB (target below 100)", memory)
	b.ReportMetric(float64(memory), "MB")
	k.count(b, broker)
}

// compare measures the modes in turns, reports the medians and returns the measurements.
func (k *kit) compare(modes []*mode, clients int) map[*mode][]result {
	k.b.Helper()
	measured := map[*mode][]result{}
	for range turns {
		for _, m := range modes {
			m.ready(clients, int(1.5*lastRate(measured[m.floor])*turnTime.Seconds()))
			measured[m] = append(measured[m], k.load(m, clients, turnTime))
		}
	}
	k.b.Logf("clients: %-3d medians of %d turns %22s %10s %10s %8s      to the floor: rate, CPU, p50", clients, turns, "tokens/s", "CPU/1000", "p50", "p99")
	for _, m := range modes {
		list := measured[m]
		mid := func(f func(result) float64) float64 {
			var values []float64
			for _, r := range list {
				values = append(values, f(r))
			}
			return median(values)
		}
		line := fmt.Sprintf("%-42s %12.0f %8.3f s %8s %8s", m.name, mid(result.rate), mid(result.perThousand), milliseconds(mid(quantile(0.5))), milliseconds(mid(quantile(0.99))))
		if m.floor != nil {
			rate, cpu, p50 := ratios(list, measured[m.floor])
			line += fmt.Sprintf("    %16.2f %5.2f %5.2f", rate, cpu, p50)
			name := strings.NewReplacer(": ", "-").Replace(m.name)
			k.b.ReportMetric(rate, fmt.Sprintf("%s-%d-rate/floor", name, clients))
			k.b.ReportMetric(cpu, fmt.Sprintf("%s-%d-cpu/floor", name, clients))
		}
		k.b.Log(line)
	}
	return measured
}

func lastRate(list []result) float64 {
	if len(list) == 0 {
		return 10_000
	}
	return list[len(list)-1].rate()
}

func milliseconds(ms float64) string { return fmt.Sprintf("%.2f ms", ms) }

// quantile returns a function that returns a quantile of the latencies in milliseconds.
func quantile(q float64) func(result) float64 {
	return func(r result) float64 { return r.at(q).Seconds() * 1e3 }
}

// ratios returns the medians of the ratios of each turn.
func ratios(list, floor []result) (rate, cpu, p50 float64) {
	var rates, cpus, p50s []float64
	for i, r := range list {
		f := floor[i]
		rates, cpus = append(rates, r.rate()/f.rate()), append(cpus, r.perThousand()/f.perThousand())
		p50s = append(p50s, quantile(0.5)(r)/quantile(0.5)(f))
	}
	return median(rates), median(cpus), median(p50s)
}

// modes returns the modes of a broker, with the floors to which they are compared.
func (k *kit) modes(broker *target, keep, again *mode, prefix string) []*mode {
	fresh := &freshRequests{k: k, address: broker.address}
	certificate := exchange(broker.address, url.Values{"grant_type": {"client_credentials"}, "audience": {"tickets-api"}, "scope": {"tickets:read"}})
	return []*mode{
		{name: prefix + "remembered", target: broker, floor: keep, request: remembered(broker)},
		{name: prefix + "fresh", target: broker, floor: keep, request: fresh.next, prepare: fresh.prepare},
		{name: prefix + "mTLS", target: broker, floor: keep, config: k.clientCertificates(),
			request: func(int, int, int) []byte { return certificate }},
		{name: prefix + "reconnect", target: broker, floor: again, request: remembered(broker), reconnect: true},
	}
}

// remembered returns the requests with the kit's tokens, in turn.
func remembered(t *target) func(client, clients, n int) []byte {
	return func(client, clients, n int) []byte { return t.of(client).requests[(client+n*clients)%identities] }
}

// freshRequests are requests with tokens that no server has seen.
type freshRequests struct {
	k       *kit
	address string
	list    [][]byte
	used    atomic.Int64
	made    int
}

func (f *freshRequests) prepare(clients, expected int) {
	f.list, f.list = nil, make([][]byte, 0, expected+clients)
	f.used.Store(0)
	for len(f.list) < expected+clients {
		f.made++
		f.list = append(f.list, tokenRequest(f.address, f.k.token(f.made%identities, fmt.Sprintf(`,"jti":"%d"`, f.made))))
	}
}

func (f *freshRequests) next(int, int, int) []byte {
	n := f.used.Add(1) - 1
	if n >= int64(len(f.list)) {
		return nil
	}
	return f.list[n]
}

// createAuthority creates the X.509 authority of the trust domain, which has the key of the
// JWT authority.
func (k *kit) createAuthority() {
	k.b.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: "acme.test"}}, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.key.Public(), k.key)
	if err != nil {
		k.b.Fatal(err)
	}
	if k.authority, err = x509.ParseCertificate(der); err != nil {
		k.b.Fatal(err)
	}
}

// clientCertificates returns the configuration of each client with an X.509-SVID of
// its own, by the kit's authority.
func (k *kit) clientCertificates() func(int) *tls.Config {
	var configs []*tls.Config
	for i := range crowds[len(crowds)-1] {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			k.b.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 2)), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
			URIs: []*url.URL{{Scheme: "spiffe", Host: "acme.test", Path: fmt.Sprintf("/agent/a%d", i)}}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, template, k.authority, key.Public(), k.key)
		if err != nil {
			k.b.Fatal(err)
		}
		configs = append(configs, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	}
	return func(client int) *tls.Config { return configs[client] }
}
