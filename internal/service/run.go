package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/attest"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/server"
	"accessbroker.internal/server/inbound"
	"accessbroker.internal/store"
)

// Run serves until ctx ends, drains, hands its background work over to other replicas, and
// closes the service.
func (s *Service) Run(ctx context.Context) error {
	// The loops outlive the listeners, because calls that drain need them.
	loops, stopLoops := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLoops()
	var background errgroup.Group
	for _, run := range append(s.loops, s.store.Run, s.broker.Run, s.outbox.Run, s.keys.Run, s.publisher.Run, s.trust.Run, s.tickets.Run, s.sweep, returnMemory, s.follow, s.announce,
		s.alone("suppliers", nil, s.suppliers.Run),
		s.alone("retention", nil, s.store.NewPruner(s.config.Retention, s.metrics.Pruned).Run),
		s.alone("recovery", nil, s.recovery.Run),
		s.alone("access reviews", s.campaigns.Resume, s.campaigns.Run),
	) {
		background.Go(func() error {
			defer s.options.FlushLog()
			return run(loops)
		})
	}
	err := s.serve(ctx)
	stopLoops()
	end := s.Close
	if !s.served {
		end = s.discard
	}
	err = errors.Join(err, background.Wait())
	if handed := store.HandOver(ctx, s.store); handed != nil {
		s.log.WarnContext(ctx, "other replicas take over the background work when its claims end", "err", handed)
	}
	err = errors.Join(err, end())
	s.log.InfoContext(ctx, "stopped")
	return err
}

// An endpoint is an open listener with its handler.
type endpoint struct {
	listener net.Listener
	handler  http.Handler
	tls      *tls.Config // nil: without TLS
	server   *server.Server
}

// serve opens every listener before it serves the first call.
func (s *Service) serve(ctx context.Context) error {
	endpoints, err := s.listen()
	var listeners []net.Listener
	for _, d := range endpoints {
		listeners = append(listeners, d.listener)
	}
	if err != nil {
		for _, l := range listeners {
			err = errors.Join(err, l.Close())
		}
		return err
	}
	s.served = true
	s.logStart(ctx, listeners)
	if s.options.Ready != nil {
		s.options.Ready(listeners)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		s.log.InfoContext(ctx, "shutting down: waiting for running calls")
		return nil
	})
	for _, d := range endpoints {
		if socket, ok := d.listener.(*Socket); ok {
			group.Go(func() error { return socket.Watch(ctx, s.log) })
		}
		group.Go(func() error { return d.server.Serve(ctx, d.listener, d.handler, d.tls) })
	}
	return group.Wait()
}

// logStart logs one line that identifies the build, the configuration and the listeners.
func (s *Service) logStart(ctx context.Context, listeners []net.Listener) {
	addresses := make([]string, len(listeners))
	for i, l := range listeners {
		addresses[i] = l.Addr().String()
	}
	build := ReadBuild()
	s.log.InfoContext(ctx, "started", "version", build.Version, "commit", build.Commit, "date", build.Date, "go", build.Go,
		"file", s.config.Path, "revision", s.broker.Rules().Revision.String(), "store", store.Redacted(s.config.Store), "listeners", addresses)
	if has, needs := openFiles(), s.config.Limits.Connections+ownFiles; has < needs {
		s.log.WarnContext(ctx, "the limit of open files is too low for the limit of connections: at the limit, the broker accepts no connection and can't reach its issuers; set LimitNOFILE of the unit (ulimit -n) to the needed number, or lower server.limits.connections",
			"limit", has, "needed", needs, "connections", s.config.Limits.Connections)
	}
}

// ownFiles is how many files the broker needs in addition to its clients' connections:
// the database with its readers, connections to issuers and agents, and listeners.
const ownFiles = 256

// listen opens the listeners. With an error, it returns those that are open.
func (s *Service) listen() (endpoints []endpoint, err error) {
	limits := inbound.NewLimits(s.config.Limits.Connections, s.config.Limits.PerAddress)
	for _, l := range slices.Concat(s.config.Listeners, s.options.Listeners) {
		d, err := s.listenTCP(l, limits)
		if d.listener != nil {
			endpoints = append(endpoints, d)
		}
		if err != nil {
			return endpoints, err
		}
	}
	if address := s.config.Metrics; address != "" {
		l, err := s.listener(address, inbound.Config{Limits: inbound.NewLimits(mostScrapes, 0)})
		if err != nil {
			return endpoints, err
		}
		mux := http.NewServeMux()
		mux.Handle("/metrics", s.server.OnlyOwnHosts(s.metrics.Handler()))
		mux.Handle("/", s.server.Handler())
		endpoints = append(endpoints, endpoint{listener: l, handler: mux, server: s.server})
	}
	if path := s.config.AdminSocket; path != "" {
		l, err := ListenSocket(path)
		if err != nil {
			return endpoints, fmt.Errorf("opening the admin socket: %w", err)
		}
		endpoints = append(endpoints, endpoint{listener: l})
		d := &endpoints[len(endpoints)-1]
		byOperator := operatorAlone
		if d.server, err = server.New(s.serverConfig(byOperator, adminContext)); err != nil {
			return endpoints, err
		}
		d.handler = s.adminHandler(d.server.Handler(server.API))
	}
	return endpoints, nil
}

// mostScrapes bounds the connections of the listener for metrics, which does not take
// part in the limits of callers: it must answer when they are exhausted.
const mostScrapes = 64

// listener opens a TCP listener.
func (s *Service) listener(address string, cfg inbound.Config) (net.Listener, error) {
	l, err := s.options.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}
	cfg.OnRefuse = s.metrics.RefusedConnection
	return inbound.New(l, cfg), nil
}

func (s *Service) listenTCP(c config.Listener, limits *inbound.Limits) (d endpoint, err error) {
	cfg := inbound.Config{Limits: limits, Proxies: s.proxies(), ProxyProtocol: c.Proxy}
	if d.listener, err = s.listener(c.Address, cfg); err != nil {
		return d, err
	}
	var parts []server.Audience
	for _, name := range c.Serve {
		parts = append(parts, server.Audience(name))
	}
	d.server, d.handler = s.server, s.server.Handler(parts...)
	if c.Plain {
		return d, nil
	}
	// A connection that outlived its client's certificate would only be refused.
	d.handler = attest.CloseExpiringConnections(d.handler)
	d.tls, err = s.verifier.ServerTLS(attest.ServerTLS{SVID: c.SVID, Cert: c.Cert, Key: c.Key, ClientCerts: c.ClientCerts})
	return d, err
}

const sweepEvery = 15 * time.Second

// sweep deletes expired rows and counts for the gauges.
func (s *Service) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		s.counts.read(ctx, s.store, s.log)
		if err := s.sweepOnce(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "sweeping the store", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sweepOnce sweeps, or follows the replica that does.
func (s *Service) sweepOnce(ctx context.Context) error {
	duty := store.DutiesOf(s.store).Hold(ctx, "sweep")
	defer duty.End()
	if !duty.Has("sweep") {
		return store.FollowSweep(ctx, s.store, time.Now())
	}
	_, err := s.store.Sweep(duty.Context(), time.Now())
	return err
}

const returnMemoryEvery = time.Minute

// returnMemory returns the memory of a burst, such as a thousand callers that
// arrive at once to wait, to the system. With the collector tuned to run rarely,
// Go would keep it.
func returnMemory(ctx context.Context) error {
	tick := time.NewTicker(returnMemoryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			debug.FreeOSMemory()
		}
	}
}
