package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/api"
	"accessbroker.internal/attest/localca"
	"accessbroker.internal/internal/devworld"
)

// Options describe a World. Its zero value is one broker on SQLite.
type Options struct {
	Dir      string // a folder with a short path; default: a new one, which Close removes
	Binary   string // of the broker; default: built
	Replicas int    // default: 1
	Balancer bool   // an HAProxy in front of the replicas

	Postgres  *PostgresOptions // nil: SQLite, for one replica
	Standby   bool             // a streaming standby
	PgBouncer bool
	Relays    bool // each replica connects to PostgreSQL, or to PgBouncer, through a relay of its own

	// StoreURL returns the URL of a replica's store. By default, replicas connect to
	// PgBouncer if there is one, else to PostgreSQL.
	StoreURL func(w *World, replica int) string

	// Edit changes a replica's operator's file before it is written.
	Edit func(replica int, file string) string
}

// A World is a trust domain with a login, a ticket API and a sample catalogue (see
// internal/devworld), and brokers that share one database.
type World struct {
	Dir      string
	CA       *localca.CA
	Dev      *devworld.World
	Replicas []*Broker
	Balancer *HAProxy  // nil: none
	Postgres *Postgres // nil: SQLite
	Standby  *Postgres // nil: none
	Bouncer  *PgBouncer
	Relays   []*Relay // by replica

	o       Options
	created bool // Dir
	pool    *x509.CertPool
	cancel  context.CancelFunc
	others  *errgroup.Group
	mu      sync.Mutex
	idle    []*http.Transport
}

// New creates a world and starts everything except for the replicas and the balancer.
func New(ctx context.Context, o Options) (w *World, err error) {
	w = &World{Dir: o.Dir, o: o}
	w.o.Replicas = max(1, o.Replicas)
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.Dir == "" {
		if w.Dir, err = os.MkdirTemp("", "cluster-"); err != nil {
			return w, err
		}
		w.created = true
	}
	if err := w.surroundings(ctx); err != nil {
		return w, err
	}
	if o.Binary == "" {
		w.o.Binary = filepath.Join(w.Dir, "broker")
		if err := Build(ctx, w.o.Binary); err != nil {
			return w, err
		}
	}
	if err := w.databases(ctx); err != nil {
		return w, err
	}
	return w, w.replicas()
}

// Start creates a world, and starts the replicas and the balancer.
func Start(ctx context.Context, o Options) (*World, error) {
	w, err := New(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := w.StartBrokers(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// surroundings creates the files of the world, and starts its identities, login and ticket
// API.
func (w *World) surroundings(ctx context.Context) error {
	at, err := devworld.FreeAddresses()
	if err != nil {
		return err
	}
	port, err := FreePort()
	if err != nil {
		return err
	}
	at.Broker = fmt.Sprintf("127.0.0.1:%d", port)
	if w.Dev, err = devworld.New(w.Dir, at); err != nil {
		return err
	}
	if w.CA, err = localca.Open(w.Dev.Path("ca"), devworld.TrustDomain); err != nil {
		return err
	}
	w.pool = x509.NewCertPool()
	w.pool.AppendCertsFromPEM(w.CA.X509Bundle())
	ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx)) // until Close
	w.others, ctx = errgroup.WithContext(ctx)
	return w.Dev.ServeSurroundings(ctx, w.others, w.URL())
}

// URL returns the broker's URL for callers: the balancer's, if there is one.
func (w *World) URL() string { return w.Dev.URL() }

func (w *World) databases(ctx context.Context) (err error) {
	if w.o.Postgres == nil {
		return nil
	}
	if w.Postgres, err = NewPostgres(ctx, w.Dir, *w.o.Postgres); err != nil {
		return err
	}
	if err := w.Postgres.Start(ctx); err != nil {
		return err
	}
	if err := w.Postgres.CreateDatabase(ctx, Database); err != nil {
		return err
	}
	if _, err := run(ctx, w.o.Binary, []string{"STORE=" + w.Postgres.DSN(Owner, Database)}, "store", "migrate", "--store", "env:STORE", "--grant", Role); err != nil {
		return err
	}
	if w.o.Standby {
		if w.Standby, err = w.Postgres.NewStandby(ctx, w.Dir, "standby"); err != nil {
			return err
		}
	}
	if w.o.PgBouncer {
		if w.Bouncer, err = NewPgBouncer(ctx, w.Dir, w.Postgres.Address()); err != nil {
			return err
		}
	}
	return nil
}

// DatabaseAddress returns the address to which a replica connects.
func (w *World) DatabaseAddress(replica int) string {
	switch {
	case replica < len(w.Relays):
		return w.Relays[replica].Address()
	case w.Bouncer != nil:
		return w.Bouncer.Address()
	default:
		return w.Postgres.Address()
	}
}

func (w *World) storeURL(replica int) string {
	switch {
	case w.o.StoreURL != nil:
		return w.o.StoreURL(w, replica)
	case w.Postgres == nil:
		return w.Dev.Database()
	default:
		return DSN(Role, Database, w.DatabaseAddress(replica))
	}
}

// replicas writes the operator's files.
func (w *World) replicas() error {
	file, err := os.ReadFile(w.Dev.ConfigFile())
	if err != nil {
		return err
	}
	for i := range w.o.Replicas {
		if w.o.Relays {
			relay, err := NewRelay(w.DatabaseAddress(i))
			if err != nil {
				return err
			}
			w.Relays = append(w.Relays, relay)
		}
		b := &Broker{Name: fmt.Sprintf("broker-%d", i+1), Binary: w.o.Binary, dir: w.Dir}
		for _, address := range []*string{&b.Address, &b.Proxied, &b.Metrics} {
			port, err := FreePort()
			if err != nil {
				return err
			}
			*address = fmt.Sprintf("127.0.0.1:%d", port)
		}
		text, err := w.operatorFile(b, i, string(file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.ConfigFile(), []byte(text), 0o600); err != nil {
			return err
		}
		w.Replicas = append(w.Replicas, b)
	}
	return nil
}

// operatorFile makes a replica's file from the one of the dev world.
func (w *World) operatorFile(b *Broker, i int, file string) (string, error) {
	listeners := fmt.Sprintf(`  listeners:
    - {listen: "%s", tls: {svid: true}, client_certs: optional}   # for direct calls
    - {listen: "%s", tls: {svid: true}, client_certs: optional, proxy_protocol: true}   # for the load balancer
  trusted_proxies: {networks: [127.0.0.1]}
`, b.Address, b.Proxied)
	for _, edit := range [][2]string{
		{"  listen: " + w.Dev.Broker + "\n", listeners},
		{"  tls: {svid: true}              # the broker's own SVID, from the trust domain below\n", ""},
		{"  client_certs: optional         # callers authenticate with a certificate or a JWT\n", ""},
		{"  metrics: 127.0.0.1:0\n", "  metrics: " + b.Metrics + "\n"},
		{"  admin_socket: admin.sock\n", "  admin_socket: " + b.AdminSocket() + "\n  checkpoint_file: " + b.CheckpointFile() + "\n"},
		{"  log: {format: text, level: warn}\n", "  log: {format: json, level: info}\n"},
		{"store: sqlite:broker.db\n", "store: " + w.storeURL(i) + "\n"},
	} {
		if !strings.Contains(file, edit[0]) {
			return "", fmt.Errorf("the dev world's operator's file does not have %q", edit[0])
		}
		file = strings.Replace(file, edit[0], edit[1], 1)
	}
	if w.o.Edit != nil {
		file = w.o.Edit(i, file)
	}
	return file, nil
}

// StartBrokers starts the replicas and the balancer.
func (w *World) StartBrokers(ctx context.Context) (err error) {
	var all errgroup.Group
	for i, b := range w.Replicas {
		if i == 0 { // it opens the log
			if err := b.Start(ctx); err != nil {
				return err
			}
			continue
		}
		all.Go(func() error { return b.Start(ctx) })
	}
	if err := all.Wait(); err != nil || !w.o.Balancer {
		return err
	}
	var targets []string
	for _, b := range w.Replicas {
		targets = append(targets, b.Proxied)
	}
	_, port, _ := strings.Cut(w.Dev.Broker, ":")
	var n int
	if _, err := fmt.Sscan(port, &n); err != nil {
		return err
	}
	w.Balancer, err = NewHAProxy(ctx, w.Dir, n, targets)
	return err
}

// HTTP returns a client that verifies the brokers' certificates. It keeps connections until
// Close.
func (w *World) HTTP() *http.Client {
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.pool, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}
	w.mu.Lock()
	w.idle = append(w.idle, t)
	w.mu.Unlock()
	return &http.Client{Transport: t, Timeout: 30 * time.Second}
}

// Client returns a client of a replica, or of the balancer if the replica is nil, that
// authenticates as a workload. It signs a JWT-SVID for each call.
func (w *World) Client(b *Broker, id string) *api.Client {
	url := w.URL()
	if b != nil {
		url = "https://" + b.Address
	}
	return &api.Client{BaseURL: url, HTTP: w.HTTP(), Token: func(context.Context) (string, error) {
		return w.CA.JWTSVID(id, localca.JWTTTL, w.URL())
	}}
}

// Environment returns the variables with which the command line calls the broker as an
// identity of the dev world.
func (w *World) Environment(identity string) []string {
	return []string{"SPIFFE_ENDPOINT_SOCKET=unix://" + w.Dev.Socket(identity), "BROKER_URL=" + w.URL(), "BROKER_ID=" + devworld.BrokerID, "BROKER_CA=" + w.Dev.Bundle()}
}

// Close ends everything. It returns an error if a replica did not end in an orderly way.
func (w *World) Close() error {
	var errs []error
	for _, t := range w.idle {
		t.CloseIdleConnections()
	}
	var all errgroup.Group
	for _, b := range w.Replicas {
		if b.process != nil && !b.process.Ended() {
			all.Go(b.Stop)
		}
	}
	errs = append(errs, all.Wait())
	if w.Balancer != nil && w.Balancer.process != nil {
		w.Balancer.Stop()
	}
	for _, r := range w.Relays {
		r.Close()
	}
	if w.Bouncer != nil && w.Bouncer.process != nil {
		w.Bouncer.Stop()
	}
	for _, p := range []*Postgres{w.Standby, w.Postgres} {
		if p != nil {
			p.Stop()
		}
	}
	if w.cancel != nil {
		w.cancel()
		errs = append(errs, w.others.Wait())
	}
	if w.created {
		errs = append(errs, os.RemoveAll(w.Dir))
	}
	return errors.Join(errs...)
}
