package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A check finds what would stop a start at once.
func TestCheckFindsWhatStopsAStart(t *testing.T) {
	const listener = "127.0.0.1:8443, tls: {svid: true}"
	long := "/run/" + strings.Repeat("b", 103)
	for name, test := range map[string]struct{ from, to, want string }{
		"nothing":             {"metrics:", "metrics:", ""},
		"sockets that fit":    {"  metrics:", "  admin_socket: " + long[:107] + "\n  metrics:", ""},
		"new database":        {"sqlite:broker.db", "sqlite:DIR/new.db", ""},
		"database":            {"sqlite:broker.db", "sqlite:real.db", ""},
		"port":                {listener, strings.Replace(listener, "8443", "65536", 1), `server.listeners.0.listen: "65536" is not a port`},
		"negative port":       {listener, strings.Replace(listener, "8443", "-1", 1), `server.listeners.0.listen: "-1" is not a port`},
		"port of metrics":     {"127.0.0.1:9464", "127.0.0.1:70000", `server.metrics: "70000" is not a port`},
		"unknown port":        {"127.0.0.1:9464", "127.0.0.1:no-such-port", `server.metrics: "no-such-port" is not a port`},
		"same address":        {"127.0.0.1:9464", "127.0.0.1:8443", "server.listeners.0.listen: server.metrics has the same address"},
		"host":                {"127.0.0.1:9464", "broker.invalid:9464", `server.metrics: the host "broker.invalid" has no address`},
		"host of a listener":  {listener, "broker.invalid:8443, tls: {svid: true}", `server.listeners.0.listen: the host "broker.invalid" has no address`},
		"every address":       {listener, strings.Replace(listener, "127.0.0.1", "0.0.0.0", 1), ""},
		"no host":             {listener, strings.Replace(listener, "127.0.0.1", "", 1), ""},
		"name of an address":  {listener, strings.Replace(listener, "127.0.0.1", "localhost", 1), ""},
		"another machine":     {listener, strings.Replace(listener, "127.0.0.1", "192.0.2.1", 1), "server.listeners.0.listen: 192.0.2.1 is not an address of this machine: write one of its addresses, or 0.0.0.0"},
		"metrics elsewhere":   {"127.0.0.1:9464", "198.51.100.7:9464", "server.metrics: 198.51.100.7 is not an address of this machine"},
		"certificate":         {"{svid: true}", "{cert: DIR/none.pem, key: DIR/none.key}", "server.listeners.0.tls: reading the certificate"},
		"certificate not PEM": {"{svid: true}", "{cert: seal.key, key: seal.key}", "server.listeners.0.tls: reading the certificate: DIR/seal.key has no PEM certificate"},
		"key not PEM":         {"{svid: true}", "{cert: a.pem, key: seal.key}", "server.listeners.0.tls: reading the certificate: DIR/seal.key has no PEM private key"},
		"certificate unread":  {"{svid: true}", "{cert: a.pem, key: a.pem}", "server.listeners.0.tls: reading the certificate: DIR/a.pem or DIR/a.pem can't be parsed"},
		"another key":         {"{svid: true}", "{cert: one.pem, key: other.pem}", "server.listeners.0.tls: reading the certificate: the key in DIR/other.pem is not that of the first certificate in DIR/one.pem"},
		"admin socket":        {"  metrics:", "  admin_socket: " + long + "\n  metrics:", "server.admin_socket: the path of a socket has at most 107 bytes, and this one has 108"},
		"file as a socket":    {"  metrics:", "  admin_socket: seal.key\n  metrics:", "seal.key exists and is not a socket"},
		"link as a socket":    {"  metrics:", "  admin_socket: link\n  metrics:", "link exists and is not a socket"},
		"Workload API":        {"unix:///run/spire/agent.sock", "unix://" + long, "attest.workload_api: the path of a socket has at most 107 bytes"},
		"TCP Workload API":    {"unix:///run/spire/agent.sock", "tcp://localhost:8081", "attest.workload_api: \"tcp://localhost:8081\" is not the address of a Workload API"},
		"URL of SQLite":       {"sqlite:broker.db", "sqlite:///var/lib/broker.db", "store: the URL of the store begins with sqlite: and names a server"},
		"query in the store":  {"sqlite:broker.db", "sqlite:broker.db?mode=ro", "is not of the form sqlite:/path/to/broker.db"},
		"URI of SQLite":       {"sqlite:broker.db", "sqlite:file:broker.db", "is not of the form sqlite:/path/to/broker.db"},
		"host in the store":   {"sqlite:broker.db", "sqlite://broker.db", "store: the URL of the store begins with sqlite: and names a server"},
		"another store":       {"sqlite:broker.db", "mysql://broker", `store: the URL of the store has the unknown scheme "mysql"`},
		"password elsewhere":  {"sqlite:broker.db", "mysql://broker:hunter2@db/broker", `store: the URL of the store has the unknown scheme "mysql"`},
		"password in no URL":  {"sqlite:broker.db", "postgres:/broker:hunter2@db/broker", "store: the URL of the store lacks the //"},
		"folder as the store": {"sqlite:broker.db", "sqlite:DIR", "is a folder"},
		"store in no folder":  {"sqlite:broker.db", "sqlite:none/broker.db", "there is no folder DIR/none"},
		"store below a file":  {"sqlite:broker.db", "sqlite:seal.key/broker.db", "not a directory"},
		"another file":        {"sqlite:broker.db", "sqlite:seal.key", "seal.key is not a database"},
		"short file":          {"sqlite:broker.db", "sqlite:short", "short is not a database"},
		"checkpoint":          {"  metrics:", "  checkpoint_file: none/checkpoint\n  metrics:", "server.checkpoint_file: there is no folder DIR/none"},
		"folder checkpoint":   {"  metrics:", "  checkpoint_file: policies\n  metrics:", "is a folder"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := sealedDir(t)
			write := func(name, text string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
			err := errors.Join(
				os.Mkdir(filepath.Join(dir, "policies"), 0o700), os.Symlink("seal.key", filepath.Join(dir, "link")),
				write("policies/a.cedar", `@id("a") permit (principal, action == Action::"audit", resource);`),
				write("a.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
				write("one.pem", certificate(t)), write("other.pem", certificate(t)), write("real.db", "SQLite format 3\x00 and more"), write("short", "SQL"),
			)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(goodConfig, test.from) {
				t.Fatalf("the file does not have %q", test.from)
			}
			text := strings.Replace(goodConfig, test.from, strings.ReplaceAll(test.to, "DIR", dir), 1)
			d, err := parseDocument(filepath.Join(dir, "broker.yaml"), []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = d.checkAll(nil)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), strings.ReplaceAll(test.want, "DIR", dir))) {
				t.Errorf("got error %v, want %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got error %v, which has a password", err)
			}
			if err != nil && strings.Contains(err.Error(), "checkpoint_file") && !strings.Contains(text, "checkpoint_file") {
				t.Errorf("got error %v about a key that the file does not have", err)
			}
		})
	}
}

// A check neither needs nor holds the ports of a running broker.
func TestCheckLeavesPortsAlone(t *testing.T) {
	running, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = running.Close() }()
	dir := sealedDir(t)
	text := strings.Replace(goodConfig, "127.0.0.1:9464", running.Addr().String(), 1)
	d, err := parseDocument(filepath.Join(dir, "broker.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c := d.check(nil)
	if c.surroundings(); len(c.errs) > 0 {
		t.Errorf("got %v about an address in use, want no mistake", c.errs)
	}
}

// certificate returns a new self-signed certificate and its key in PEM.
func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err1 := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	pkcs8, err2 := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}
