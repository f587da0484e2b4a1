// Package service wires a whole broker from the operator's file and runs it: store,
// log, keys, trust, domain, server and listeners.
//
// New opens everything, Run serves until its context ends, and Close releases
// everything that New opened. There is no other wiring: "broker serve", "broker
// dev" and the tests all use this one.
package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"accessbroker.internal/attest"
	"accessbroker.internal/attest/dpop"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
	"accessbroker.internal/broker/directory"
	"accessbroker.internal/broker/inventory"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/broker/recovery"
	"accessbroker.internal/broker/session"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/broker/supplier"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/notify"
	"accessbroker.internal/policy"
	"accessbroker.internal/server"
	"accessbroker.internal/server/inbound"
	"accessbroker.internal/signals"
	"accessbroker.internal/store"
	"accessbroker.internal/tickets"
)

// Options are the operator's settings and the surroundings of one broker.
type Options struct {
	Config *config.Config
	Getenv func(string) string // for reloads and the AWS issuers' own credentials; nil: an empty environment
	Log    *slog.Logger

	// FlushLog, if set, writes log lines that Log keeps back. It is called when a loop
	// ends, even by a panic, which ends the process.
	FlushLog func()

	// Listeners are served in addition to those of the operator's file.
	Listeners []config.Listener

	// Listen opens TCP listeners; nil: inbound.Listen.
	Listen func(network, address string) (net.Listener, error)

	// Ready is called once, when every listener is open: those of the operator's
	// file, then Listeners, metrics and the admin socket. It may be nil.
	Ready func([]net.Listener)

	// DiskReserve is how many bytes the store holds back for revocations on a full
	// disk. Zero means the store's default.
	DiskReserve int64

	// MCP adds tools to the MCP endpoint.
	MCP MCPTools

	// NoSync is for tests: the store does not wait for the disk.
	NoSync bool
}

// A Service is one broker. Its methods are safe for concurrent use.
type Service struct {
	options      Options
	log          *slog.Logger
	store        *store.Store
	sealer       *broker.Sealer
	publisher    *publisher
	keys         *token.Keys
	dpop         *dpop.Verifier
	trust        *attest.Source
	verifier     *attest.Verifier
	workloads    *attest.WorkloadIssuers // nil: no issuer of OIDC tokens is configured
	people       *attest.People          // nil: no provider is configured
	passkeys     *attest.Passkeys
	broker       *broker.Broker
	ledger       *membership.Ledger
	outbox       *notify.Outbox
	directory    *directory.Directory // nil: no source is configured
	scim         *scimService         // with directory
	sessions     *session.Manager
	suppliers    *supplier.Manager
	signals      *signal.Manager
	transmitters []*signals.Transmitter
	tickets      *tickets.Watcher
	campaigns    *campaign.Manager
	recovery     *recovery.Manager
	metrics      *server.Metrics
	server       *server.Server
	loops        []func(context.Context) error // of issuers
	counts       counts
	config       *config.Config // that the broker was started with

	news    *news
	shared  bool   // other replicas may work on the database
	replica string // the name of this one

	newCheckpoint bool // there was no checkpoint file before the start
	served        bool // every listener was open

	reload  sync.Mutex     // serializes reloads and changes of suspensions
	engine  *policy.Engine // in force but for suspensions; guarded by reload
	current *config.Config // whose rules are in force; guarded by reload
	stale   staleRules
	digest  atomic.Pointer[string] // of current

	replicas atomic.Pointer[[]store.Replica] // as they were a moment ago; nil: unknown
}

// New opens everything that the settings name. It starts no listeners and no loops,
// except those with which the source of identities gets its bundles. The caller
// calls Run, or Close.
func New(ctx context.Context, o Options) (_ *Service, err error) {
	s := &Service{options: o, config: o.Config, log: o.Log, news: newNews(), replica: replicaName()}
	s.setCurrent(o.Config)
	if s.options.FlushLog == nil {
		s.options.FlushLog = func() {}
	}
	if s.options.Listen == nil {
		s.options.Listen = inbound.Listen
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.discard())
		}
	}()
	if _, err := os.Lstat(o.Config.CheckpointFile); errors.Is(err, fs.ErrNotExist) {
		s.newCheckpoint = true
	}
	s.metrics = server.NewMetrics(server.Build(ReadBuild()), s.gauges())
	if s.sealer, err = broker.NewSealer(o.Config.SealKeys...); err != nil {
		return nil, err
	}
	observe := func(c store.Commit) { s.metrics.Committed(c.Members, c.Took) }
	if s.store, err = store.Open(ctx, store.Config{URL: o.Config.Store, Reserve: o.DiskReserve, NoSync: o.NoSync, Observe: observe, Changed: s.changed, Log: o.Log}); err != nil {
		return nil, err
	}
	s.shared = s.store.Shared()
	if s.publisher, err = openPublisher(ctx, s.store, s.sealer, o.Config, o.Log); err != nil {
		return nil, err
	}
	s.publisher.share(s.store)
	if s.keys, err = token.OpenKeys(ctx, s.keysConfig(), time.Now()); err != nil {
		return nil, err
	}
	restored, err := s.restored(ctx)
	if err != nil {
		return nil, err
	}
	if s.dpop, err = dpop.New(dpop.Config{External: o.Config.ExternalURL, Secrets: o.Config.SealKeys, Restored: restored}); err != nil {
		return nil, err
	}
	if err := s.openTrust(ctx); err != nil {
		return nil, err
	}
	if err := s.openDirectory(ctx); err != nil {
		return nil, err
	}
	if err := s.openBroker(ctx); err != nil {
		return nil, err
	}
	if err := s.openCampaigns(ctx); err != nil {
		return nil, err
	}
	if s.people, err = openPeople(o.Config, s.log); err != nil {
		return nil, err
	}
	if s.passkeys, err = openPasskeys(o.Config); err != nil {
		return nil, err
	}
	s.server, err = server.New(s.callersConfig())
	s.news.connect()
	return s, err
}

// Close releases everything that New opened. Run does so by itself.
func (s *Service) Close() error {
	if s.store == nil {
		return nil
	}
	return s.store.Close()
}

// discard is Close for a start that was refused. It leaves no new database behind,
// nor the checkpoint of one, with which the next start would be refused.
func (s *Service) discard() error {
	if s.store == nil {
		return nil
	}
	err := s.store.Discard()
	if s.store.Fresh() && s.newCheckpoint {
		if removed := os.Remove(s.config.CheckpointFile); !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}
	return err
}

// Store returns the store.
func (s *Service) Store() *store.Store { return s.store }

// LogKey returns the log's public key, as a note verifier (C2SP signed-note).
func (s *Service) LogKey() string { return s.publisher.public }

// Publish signs a checkpoint over all records that are in the log now. Run does
// so about once a second.
func (s *Service) Publish(ctx context.Context) error { return s.publisher.publish(ctx) }

func (s *Service) keysConfig() token.KeysConfig {
	longest := time.Duration(0)
	for _, e := range s.config.Catalogue {
		longest = max(longest, e.MaxTTL)
	}
	signing := s.config.Signing
	return token.KeysConfig{
		Store: s.store, Sealer: s.sealer, Purpose: "token", Algorithm: signing.Algorithm,
		RotateEvery: signing.RotateEvery, PublishAhead: signing.PublishAhead,
		LongestTTL: longest, Log: s.log, Duties: store.DutiesOf(s.store),
	}
}

// agentWait is how long the start waits for a SPIFFE agent that accepts the call
// and does not answer.
const agentWait = 5 * time.Second

func (s *Service) openTrust(ctx context.Context) (err error) {
	c := s.config
	s.trust, err = attest.Open(ctx, attest.Config{
		TrustDomain: c.TrustDomain, TrustDomains: c.TrustDomains, WorkloadAPI: c.WorkloadAPI, Bundles: c.Bundles, BundleMaxAge: c.BundleMaxAge, WithoutSVIDs: c.WithoutSVIDs, Log: s.log,
		// Without an agent, no workload can authenticate. The broker still starts,
		// because the reaper, people and the admin socket can end leases.
		StartWithoutAgent: true, StartTimeout: agentWait,
	})
	if err != nil {
		return err
	}
	if s.trust.Generation() == 0 && !c.WithoutSVIDs {
		s.log.WarnContext(ctx, "waiting for the Workload API: no workload can authenticate, and nothing is issued to workloads", "address", c.WorkloadAPI, "err", s.trust.Ready())
	}
	if err := s.openWorkloads(ctx); err != nil {
		return err
	}
	s.verifier = attest.NewVerifier(attest.VerifierConfig{
		Source: s.trust, Audiences: c.Audiences, Workloads: s.workloads,
		OnFailure: func(method broker.Method, cause string) { s.metrics.AttestFailed(string(method), cause) },
	})
	return nil
}

// The linker sets passkeyWait in test programs, which cannot wait for a day until a
// passkey counts. "broker audit verify" reports the logs of such programs.
var passkeyWait string

// openBroker creates the domain with its first rules.
func (s *Service) openBroker(ctx context.Context) error {
	s.openLedger()
	list, err := s.openIssuers()
	if err != nil {
		return err
	}
	if err := s.checkOrphanedLeases(ctx, list); err != nil {
		return err
	}
	wait, err := time.ParseDuration(cmp.Or(passkeyWait, audit.PasskeyWait.String()))
	if err != nil {
		return fmt.Errorf("this program was built with an invalid passkeyWait: %w", err)
	}
	if err := s.openTickets(); err != nil {
		return err
	}
	cfg := broker.Config{
		Store: s.store, Issuers: list, Log: s.log, Observe: s.metrics.Observe, Reader: s.store, Statuses: s.store, Blocks: s.store.Blocks,
		Duties: store.DutiesOf(s.store), MaxPending: s.config.Admission.Waiting, Retention: s.config.Retention, Tickets: s.tickets, Sources: s.sources(),
	}
	if s.shared {
		cfg.Replica, cfg.RevisionGrace = s.replica, s.config.Replicas.RevisionGrace
	}
	if cfg.Restored, err = s.restored(ctx); err != nil {
		return err
	}
	if s.directory != nil {
		cfg.Directory = s.directory
	}
	s.sessions, err = session.New(session.Config{
		Store: s.store, Log: s.log, Idle: s.config.SessionIdle, Lasts: s.config.SessionLasts, PasskeyWait: wait,
		State: func(ctx context.Context, who broker.Identity, now time.Time) error {
			return s.broker.Facts.StateClaims(ctx, who, now)
		},
		Ended: func(ctx context.Context, person string, created, now time.Time) (bool, error) {
			return s.broker.Facts.SessionEnded(ctx, person, created, now)
		},
		NotifiesPeople: func() bool { return s.broker.Rules().PeopleChannel },
		People:         func() broker.People { return s.broker.Rules().People },
	})
	if err != nil {
		return err
	}
	s.outbox = notify.NewOutbox(notify.OutboxConfig{Store: s.store, Duties: store.DutiesOf(s.store), Log: s.log, Observe: s.metrics.Observe})
	how, err := s.howToStart(ctx)
	if err != nil {
		return err
	}
	revision, err := s.install(ctx, s.config, how, func(rules *broker.Rules, a broker.Adoption) (err error) {
		cfg.Adoption = a
		s.broker, err = broker.New(ctx, cfg, rules, broker.Caller{At: time.Now()})
		return err
	})
	s.metrics.Reloaded(revision, err)
	if err != nil {
		return err
	}
	s.openRecovery(list)
	if s.directory != nil {
		s.directory.Connect(s.broker.Facts)
	}
	if s.suppliers, err = supplier.New(supplier.Config{Store: s.store, Broker: s.broker, Log: s.log}); err != nil {
		return err
	}
	return s.openSignals()
}

// callersConfig is the server for workloads and people.
func (s *Service) callersConfig() server.Config {
	c := s.serverConfig(s.verifier.Authenticate, s.verifier.ConnContext)
	c.Remembers = s.verifier.Cached
	c.StatusLists = token.NewStatusLists(token.StatusListsConfig{
		Issuer: s.config.ExternalURL.String(), Keys: s.keys, Lists: s.broker.StatusLists, TTL: s.config.StatusTTL,
	})
	c.Handlers = slices.Concat(c.Handlers, s.ticketHooks(), s.signalHandlers(), s.scimHandlers(), s.mcpHandlers())
	c.Follow = s.followDirectory
	if s.people != nil {
		c.People, c.Providers, c.LogoutToken = s.people, s.config.ProviderNames(), s.people.LogoutToken
		c.SubjectToken = s.subjectTokens()
	}
	if s.people != nil && s.passkeys != nil {
		c.Passkeys = s.passkeys
	}
	return c
}

// hosts returns the hosts by which clients may address the broker, besides its URLs:
// those of the operator's file, and those of the listeners. A listener on all addresses
// has no host of its own; the server accepts the address at which a client reached it.
func (s *Service) hosts() []string {
	list := slices.Clone(s.config.Hosts)
	addresses := []string{s.config.Metrics}
	for _, l := range slices.Concat(s.config.Listeners, s.options.Listeners) {
		addresses = append(addresses, l.Address)
	}
	for _, address := range addresses {
		host, service, err := net.SplitHostPort(address)
		if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
			continue
		}
		if port, err := net.LookupPort("tcp", service); err == nil {
			list = append(list, net.JoinHostPort(host, strconv.Itoa(port)))
		}
	}
	return list
}

// proxies returns the trusted proxies.
func (s *Service) proxies() inbound.Proxies {
	headers := map[string]string{"forwarded": inbound.Forwarded, "x-forwarded-for": inbound.XForwardedFor}
	return inbound.Proxies{Networks: s.config.Proxies.Networks, Header: headers[s.config.Proxies.Header]}
}

func (s *Service) serverConfig(authenticate func(*http.Request, ...string) (broker.Identity, error), conn func(context.Context, net.Conn) context.Context) server.Config {
	c := s.config
	return server.Config{
		Broker: s.broker, Memberships: s.ledger, Sessions: s.sessions, Signals: s.signals, Suppliers: s.suppliers, Authenticate: authenticate, ConnContext: conn, DPoP: s.dpop,
		Campaigns: s.campaigns, ReviewPatch: s.reviewPatch, Duties: store.DutiesOf(s.store),
		Sealer:      s.sealer,
		Keys:        func(context.Context) ([]byte, error) { return s.keys.JWKS(time.Now()), nil },
		Algorithms:  func() []string { return s.keys.Algorithms(time.Now()) },
		Log:         s.publisher,
		History:     s.store,
		Inventory:   inventory.New(inventory.Config{Broker: s.broker, Store: s.store.Inventory()}),
		ExternalURL: c.ExternalURL.String(), UIURL: c.UIURL.String(), Hosts: s.hosts(), TicketURL: c.TicketURL, SVIDAudiences: c.Audiences,
		Clients:       server.Clients{IDs: c.OAuth.Clients, RequireID: c.OAuth.RequireClientID, WithoutSVIDs: c.WithoutSVIDs},
		UnprovedBytes: c.Limits.Unproved, Proxies: s.proxies(),
		DrainDelay: c.Drain.Delay, DrainTimeout: c.Drain.Timeout,
		CallsPerSecond: c.Admission.PerSecond, CallsAtOnce: c.Admission.Pending,
		IntrospectionsPerSecond: c.Admission.ResourceServers.PerSecond, IntrospectionsAtOnce: c.Admission.ResourceServers.Pending,
		Replica: s.replicaGauge,
		Checks: public([]server.Check{
			{Name: "store", Check: s.store.Ping},
			{Name: "disk", Check: func(context.Context) error { return s.store.Degraded() }},
			{Name: "trust", Check: func(context.Context) error { return s.trust.Ready() }},
			{Name: "rules", Check: s.checkRules},
		}),
		Warnings: public(s.readyWarnings()),
		Metrics:  s.metrics, Logger: s.log,
	}
}
