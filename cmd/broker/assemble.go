package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/attest"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	svc "accessbroker.internal/internal/service"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/server"
	"accessbroker.internal/store"
)

// A service is a whole broker, put together from settings. It runs in Run.
type service struct {
	settings *settings
	getenv   func(string) string
	log      *slog.Logger
	store    *store.Store
	sealer   *broker.Sealer
	ledger   *ledger
	keys     *token.Keys
	trust    *attest.Source
	verifier *attest.Verifier
	people   *attest.People // nil: nobody can log in
	passkeys *attest.Passkeys
	broker   *broker.Broker
	metrics  *server.Metrics
	server   *server.Server
	loops    []func(context.Context) error // of issuers
	beside   []listenerSettings            // that the operator's file has not
	counts   counts
	reload   sync.Mutex
}

// assemble opens what the settings name. Nothing listens and nothing runs yet,
// but for what the identity source needs to have bundles at all.
func assemble(ctx context.Context, s *settings, getenv func(string) string, log *slog.Logger) (_ *service, err error) {
	v := &service{settings: s, getenv: getenv, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	v.metrics = server.NewMetrics(server.Build(svc.ReadBuild()), v.gauges())
	if v.sealer, err = broker.NewSealer(s.sealKeys...); err != nil {
		return nil, err
	}
	observe := func(c store.Commit) { v.metrics.Committed(c.Members, c.Took) }
	if v.store, err = store.Open(ctx, store.Config{URL: s.store, Observe: observe}); err != nil {
		return nil, err
	}
	if v.ledger, err = openLedger(ctx, v.store, v.sealer, s.externalURL, s.checkpoint, log); err != nil {
		return nil, err
	}
	if v.keys, err = token.OpenKeys(ctx, v.keysConfig(), time.Now()); err != nil {
		return nil, err
	}
	if err := v.openTrust(ctx); err != nil {
		return nil, err
	}
	if err := v.openBroker(ctx); err != nil {
		return nil, err
	}
	if v.people, err = s.openPeople(); err != nil {
		return nil, err
	}
	if v.passkeys, err = s.openPasskeys(); err != nil {
		return nil, err
	}
	v.server, err = server.New(v.callersConfig())
	return v, err
}

func (v *service) keysConfig() token.KeysConfig {
	s := v.settings
	longest := time.Duration(0)
	for _, e := range s.catalogue {
		longest = max(longest, e.MaxTTL)
	}
	return token.KeysConfig{
		Store: v.store, Sealer: v.sealer, Purpose: "token", Algorithm: s.signing.Algorithm,
		RotateEvery: time.Duration(s.signing.RotateEvery), PublishAhead: time.Duration(s.signing.PublishAhead),
		LongestTTL: longest, Log: v.log,
	}
}

// agentWait is how long the broker's start waits for an agent that takes the
// call and does not answer it.
const agentWait = 5 * time.Second

func (v *service) openTrust(ctx context.Context) (err error) {
	s := v.settings
	v.trust, err = attest.Open(ctx, attest.Config{
		TrustDomain: s.trustDomain, TrustDomains: s.trustDomains, WorkloadAPI: s.workloadAPI, Bundles: s.bundles, Log: v.log,
		// Without an agent nobody is let in, but what there is can be ended: by the
		// reaper, by people and by the admin socket.
		StartWithoutAgent: true, StartTimeout: agentWait,
	})
	if err != nil {
		return err
	}
	if v.trust.Generation() == 0 {
		v.log.WarnContext(ctx, "waiting for the Workload API: no workload can authenticate, and nothing is issued to any meanwhile", "address", s.workloadAPI, "err", v.trust.Ready())
	}
	v.verifier = attest.NewVerifier(attest.VerifierConfig{
		Source: v.trust, Audiences: s.audiences,
		OnFailure: func(method broker.Method, cause string) { v.metrics.AttestFailed(string(method), cause) },
	})
	return nil
}

// openBroker makes the domain and gives it its first rules.
func (v *service) openBroker(ctx context.Context) (err error) {
	list, err := v.makeIssuers(ctx)
	if err != nil {
		return err
	}
	if err := v.nobodyLeft(ctx, list); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("asking for the host's name: %w", err)
	}
	wait, err := time.ParseDuration(cmp.Or(passkeyWait, audit.PasskeyWait.String()))
	if err != nil {
		return fmt.Errorf("this program was built with a wait for passkeys that is none: %w", err)
	}
	v.broker, err = broker.New(broker.Config{
		Store: v.store, Issuers: list, Log: v.log, Observe: v.metrics.Observe, Blocks: v.store.Blocks,
		Replica: fmt.Sprintf("%s/%d", host, os.Getpid()), SessionIdle: v.settings.sessionIdle, SessionLasts: v.settings.sessionLasts,
		PasskeyWait: wait,
	})
	if err != nil {
		return err
	}
	_, err = v.adopt(ctx, v.settings, broker.Identity{})
	return err
}

// nobodyLeft refuses to start without an issuer that has leases to end, or with
// another one by its name.
func (v *service) nobodyLeft(ctx context.Context, issuers map[string]broker.Issuer) error {
	now := time.Now()
	unended, err := v.store.CountActive(ctx, now)
	if err != nil {
		return err
	}
	for _, u := range unended {
		issuer := issuers[u.Issuer]
		if issuer == nil {
			return fmt.Errorf("%s: issuer %q has %d leases of %q that have not ended, and is not in the file any more: put it back with retired: true until they have", v.settings.path, u.Issuer, u.Leases, u.Entitlement)
		}
		foreign, err := v.foreignLease(ctx, issuer, u, now)
		if err != nil {
			return err
		}
		if foreign != nil {
			return fmt.Errorf("%s: issuer %q is of another kind, or elsewhere, than when it made leases of %q that have not ended, such as %s, and can't end them: put it back as it was, with retired: true, and give the new one another name", v.settings.path, u.Issuer, u.Entitlement, foreign.ID)
		}
	}
	return nil
}

// foreignLease gives a lease that has not ended and that another issuer of this
// name made; nil if there is none. Before it was replaced, that one made all of
// them: looking at the newest is enough.
func (v *service) foreignLease(ctx context.Context, issuer broker.Issuer, of store.Active, now time.Time) (foreign *broker.Lease, err error) {
	const newest = 100
	owner, ok := issuer.(interface{ Owns(broker.Lease) bool })
	if !ok {
		return nil, nil
	}
	err = v.store.View(ctx, func(tx broker.Tx) error {
		page, _, err := tx.Leases(broker.LeaseQuery{Issuer: of.Issuer, Entitlement: of.Entitlement, Live: true, Now: now, Limit: newest})
		for _, l := range page {
			if !owner.Owns(*l) && now.Before(l.Expires) { // those whose time is over need nobody to end them
				foreign = l
			}
		}
		return err
	})
	return foreign, err
}

// adopt lets the rules of the settings decide: they are kept beside the log,
// recorded in it, and only then in force.
func (v *service) adopt(ctx context.Context, s *settings, by broker.Identity) (revision string, err error) {
	defer func() { v.metrics.Reloaded(revision, err) }()
	engine, err := s.engine()
	if err != nil {
		return "", err
	}
	for _, w := range engine.Warnings() {
		v.log.WarnContext(ctx, "policy", "warning", w)
	}
	dir := strings.TrimPrefix(s.store, "sqlite:") + ".rules"
	if err := keepContents(dir, engine.Contents(), engine.Files()); err != nil {
		return "", err
	}
	if err := v.broker.SetRules(ctx, broker.Self(by, time.Now()), engine.Rules()); err != nil {
		return "", err
	}
	v.broker.SetNotifiers(s.notifiers)
	return engine.Revision().String(), nil
}

// callersConfig is for those who prove themselves by SPIFFE.
func (v *service) callersConfig() server.Config {
	c := v.serverConfig(v.verifier.Authenticate, v.verifier.ConnContext)
	c.Remembers = v.verifier.Cached
	if v.people != nil {
		c.People, c.Providers, c.LogoutToken, c.Sealer = v.people, v.settings.providers(), v.people.LogoutToken, v.sealer
	}
	if v.people != nil && v.passkeys != nil {
		c.Passkeys = v.passkeys
	}
	return c
}

func (v *service) serverConfig(authenticate func(*http.Request, string) (broker.Identity, error), conn func(context.Context, net.Conn) context.Context) server.Config {
	return server.Config{
		Broker: v.broker, Authenticate: authenticate, ConnContext: conn,
		Keys:        func(context.Context) ([]byte, error) { return v.keys.JWKS(time.Now()), nil },
		Algorithms:  func() []string { return v.keys.Algorithms(time.Now()) },
		Log:         v.ledger,
		ExternalURL: v.settings.externalURL.String(), UIURL: v.settings.uiURL.String(), TicketURL: v.settings.ticketURL, SVIDAudiences: v.settings.audiences,
		CallsPerSecond: v.settings.admission.PerSecond, CallsAtOnce: v.settings.admission.Pending,
		Checks: []server.Check{
			{Name: "store", Check: v.store.Ping},
			{Name: "disk", Check: func(context.Context) error { return v.store.Degraded() }},
			{Name: "trust", Check: func(context.Context) error { return v.trust.Ready() }},
		},
		Metrics: v.metrics, Logger: v.log,
	}
}

// Run listens and runs everything until ctx ends, and then drains.
func (v *service) Run(ctx context.Context, ready func([]net.Listener)) error {
	// The listeners end first; what they need goes on until they have.
	loops, stopLoops := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLoops()
	var background errgroup.Group
	for _, run := range append(v.loops, v.store.Run, v.broker.Run, v.keys.Run, v.ledger.Run, v.trust.Run, v.sweep, giveBack) {
		background.Go(func() error { return run(loops) })
	}
	front, ctx := errgroup.WithContext(ctx)
	listeners, err := v.listen(ctx, front)
	if err == nil {
		ready(listeners)
		err = front.Wait()
	} else {
		for _, l := range listeners {
			err = errors.Join(err, l.Close())
		}
	}
	stopLoops()
	return errors.Join(err, background.Wait(), v.close())
}

// listen opens every listener before any of them serves.
func (v *service) listen(ctx context.Context, group *errgroup.Group) (listeners []net.Listener, err error) {
	type served struct {
		l       net.Listener
		handler http.Handler
		tls     *tls.Config
		server  *server.Server
	}
	var all []served
	for _, s := range slices.Concat(v.settings.listeners, v.beside) {
		l, err := net.Listen("tcp", s.address)
		if err != nil {
			return listeners, fmt.Errorf("listening on %s: %w", s.address, err)
		}
		listeners = append(listeners, l)
		if s.plain {
			all = append(all, served{l: l, handler: v.server.Handler(s.audiences...), server: v.server})
			continue
		}
		config, err := v.verifier.ServerTLS(attest.ServerTLS{SVID: s.svid, Cert: s.cert, Key: s.key, ClientCerts: s.clientCerts})
		if err != nil {
			return listeners, err
		}
		// A connection that outlives its certificate would end in refusals.
		all = append(all, served{l, attest.CloseExpiringConnections(v.server.Handler(s.audiences...)), config, v.server})
	}
	if s := v.settings.metrics; s != "" {
		l, err := net.Listen("tcp", s)
		if err != nil {
			return listeners, fmt.Errorf("listening on %s: %w", s, err)
		}
		listeners = append(listeners, l)
		mux := http.NewServeMux()
		mux.Handle("/metrics", v.metrics.Handler())
		mux.Handle("/", v.server.Handler())
		all = append(all, served{l: l, handler: mux, server: v.server})
	}
	if s := v.settings.adminSocket; s != "" {
		l, err := adminListener(s)
		if err != nil {
			return listeners, err
		}
		listeners = append(listeners, l)
		byAdmins := func(r *http.Request, _ string) (broker.Identity, error) { return operatorOf(r) }
		operators, err := server.New(v.serverConfig(byAdmins, adminContext))
		if err != nil {
			return listeners, err
		}
		all = append(all, served{l: l, handler: adminHandler(v, operators.Handler(server.API)), server: operators})
	}
	for _, s := range all {
		group.Go(func() error { return s.server.Serve(ctx, s.l, s.handler, s.tls) })
	}
	return listeners, nil
}

func (v *service) close() error {
	var errs []error
	if v.trust != nil {
		errs = append(errs, v.trust.Close())
	}
	if v.store != nil {
		errs = append(errs, v.store.Close())
	}
	return errors.Join(errs...)
}

const sweepEvery = 15 * time.Second

// sweep removes what is past its time, and counts for the gauges.
func (v *service) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		v.counts.read(ctx, v.store, v.log)
		if _, err := v.store.Sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			v.log.ErrorContext(ctx, "sweeping the store", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// counts are what gauges show: read now and then, because counting a million
// leases is too much for every scrape.
type counts struct{ active, pending, stuck, overdue atomic.Int64 }

func (c *counts) read(ctx context.Context, s *store.Store, log *slog.Logger) {
	active, err := s.CountActive(ctx, time.Now())
	if err != nil {
		if ctx.Err() == nil {
			log.ErrorContext(ctx, "counting leases", "err", err)
		}
		return
	}
	n := int64(0)
	for _, a := range active {
		n += a.Leases
	}
	c.active.Store(n)
	pending, err := s.CountPending(ctx, time.Now())
	if err != nil {
		return
	}
	n = 0
	for _, p := range pending {
		n += p
	}
	c.pending.Store(n)
	if stuck, err := s.CountStuck(ctx, time.Now()); err == nil { // what can't be counted now is counted next time
		c.stuck.Store(stuck)
	}
	c.overdue.Store(countOverdue(ctx, s))
}

// countOverdue looks at the uses of the broken glass that nobody reviewed.
func countOverdue(ctx context.Context, s *store.Store) (n int64) {
	now := time.Now()
	_ = s.View(ctx, func(tx broker.Tx) error { // what can't be counted now is counted next time
		open, err := tx.Reviews()
		for _, of := range open {
			for _, due := range of.Open {
				if !now.Before(due) {
					n++
				}
			}
		}
		return err
	})
	return n
}

func (v *service) gauges() server.Gauges {
	g := server.Gauges{
		LeasesActive:     func() float64 { return float64(v.counts.active.Load()) },
		LeasesStuck:      func() float64 { return float64(v.counts.stuck.Load()) },
		ApprovalsPending: func() float64 { return float64(v.counts.pending.Load()) },
		ReviewsOverdue:   func() float64 { return float64(v.counts.overdue.Load()) },
		AuditRecords:     func() float64 { return float64(v.store.Head().Size) },
		AuditUnpublished: func() float64 { return v.ledger.unpublished() },
	}
	if v.settings.workloadAPI != "" {
		g.SVIDExpires = func() float64 { return v.trust.SVIDTimeLeft().Seconds() }
	}
	return g
}

// reloadBy reads the operator's file again and lets its rules decide. What
// needs a restart is refused, so that nobody believes that it took effect.
func (v *service) reloadBy(ctx context.Context, by broker.Identity) (string, error) {
	v.reload.Lock()
	defer v.reload.Unlock()
	d, err := readConfig(v.settings.path)
	if err != nil {
		return "", err
	}
	s, err := d.understand(v.getenv)
	if err != nil {
		return "", err
	}
	if changed := v.settings.needsRestart(s); len(changed) > 0 {
		return "", fmt.Errorf("%s: these need a restart: %s", filepath.Base(s.path), strings.Join(changed, ", "))
	}
	revision, err := v.adopt(ctx, s, by)
	if err == nil {
		v.settings = s
	}
	return revision, err
}

func (v *service) resealKeys(ctx context.Context) (int, error) {
	n, err := v.keys.Reseal(ctx)
	if err != nil {
		return n, err
	}
	done, err := v.ledger.reseal(ctx, v.sealer)
	if done {
		n++
	}
	return n, err
}

func (v *service) listKeys() any {
	list := []keyLine{}
	for _, k := range v.keys.List() {
		list = append(list, keyLine(k))
	}
	return list
}
