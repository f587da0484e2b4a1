// Package config reads the operator's file: strict YAML, in which every mistake is
// reported with file, line, column and correction.
//
// A document is the file with its positions (document.go, decode.go); the types of file.go
// are its keys. A checker turns it into a Config, one file for each section.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/notify"
	"accessbroker.internal/policy"
	"accessbroker.internal/store"
)

// A Config is an operator's file without mistakes. Relative paths of the file are joined
// with the file's folder.
type Config struct {
	document *document // nil if the Config is not from a file

	Path           string
	ExternalURL    *url.URL
	UIURL          *url.URL // of the pages
	Hosts          []string // further names of the broker
	Listeners      []Listener
	Metrics        string // address, or "" for none
	AdminSocket    string // path, or "" for none
	SealKeys       [][]byte
	Signing        Signing
	StatusTTL      time.Duration // of status lists
	Admission      Admission
	Drain          Drain
	Limits         Limits
	Proxies        Proxies
	OAuth          OAuth
	CheckpointFile string
	LogFormat      string // "json" or "text"
	LogLevel       slog.Level
	TrustDomain    string
	TrustDomains   []string

	WithoutSVIDs    bool // workloads have OIDC tokens only
	WorkloadIssuers []WorkloadIssuer
	InternalDomains []string
	OrphanGrace     map[broker.Kind]time.Duration
	Audiences       []string
	WorkloadAPI     string
	Bundles         map[string]string // files, by trust domain
	BundleMaxAge    time.Duration     // how long an unreadable bundle stays trusted; 0: derived from its refresh hint
	Store           string            // a URL, perhaps with a password: show it with store.Redacted
	StoreReport     *store.Report     // of Check, with PostgreSQL
	Policies        string            // folder
	Issuers         map[string]Issuer
	Catalogue       broker.Catalogue
	Labels          []broker.WorkloadLabels
	Providers       []Provider
	Aliases         [][]string // accounts of one person each
	SessionIdle     time.Duration
	SessionLasts    time.Duration
	TicketURL       string                     // such as "https://tracker.acme.test/{ticket}"
	Notifiers       map[string]notify.Notifier // by channel; nil: the file has no notify section
	Trackers        map[string]Tracker         // ticket systems
	Transmitters    []Transmitter              // of shared security signals
	SCIM            []SCIMSource               // sorted by name
	Retention       broker.Retention           // of what has ended
	Replicas        Replicas
	Warnings        []string // likely mistakes, with their places
}

// A Listener is an address with the endpoints that the broker serves there.
type Listener struct {
	Address     string
	Plain       bool // without TLS; the operator's file cannot set it
	SVID        bool
	Cert, Key   string
	ClientCerts string   // off, optional or required
	Serve       []string // of services
	Proxy       bool     // its connections begin with a header of the PROXY protocol
}

// Signing configures how the broker signs tokens, and when it rotates the keys.
type Signing struct {
	Algorithm                 string
	RotateEvery, PublishAhead time.Duration
}

// Admission limits the calls of each identity. Zero means the default.
type Admission struct {
	Limit
	Waiting         int   // requests that wait for approval
	ResourceServers Limit // of the introspections of each resource server
}

// A Limit bounds calls. Zero means the default.
type Limit struct {
	PerSecond float64
	Pending   int // calls at the same time
}

// Limits bounds what callers can use before they have proved who they are.
type Limits struct {
	Connections int // in total
	PerAddress  int // of one address
	Unproved    int // bytes of unfinished calls without a proof, in sum
}

// Proxies are the reverse proxies that the broker believes about their clients.
type Proxies struct {
	Networks []netip.Prefix
	Header   string // "forwarded", "x-forwarded-for" or "": none
}

// Drain configures how the broker stops.
type Drain struct {
	Delay   time.Duration // before the listeners close
	Timeout time.Duration // of running calls after that
}

// Load reads an operator's file. Its error joins all mistakes, each with its position in
// the file. A nil getenv is an empty environment.
func Load(path string, getenv func(string) string) (*Config, error) {
	d, err := readDocument(path)
	if err != nil {
		return nil, err
	}
	return d.config(getenv)
}

// Parse is Load for the text of a file.
func Parse(path string, text []byte, getenv func(string) string) (*Config, error) {
	d, err := parseDocument(path, text)
	if err != nil {
		return nil, err
	}
	return d.config(getenv)
}

// Check is Load that also checks the files and host names that a start needs, loads
// the policies, and joins all mistakes. If a name that policies may use is wrong in
// the file, Check does not load them.
func Check(path string, getenv func(string) string) (*Config, *policy.Engine, error) {
	d, err := readDocument(path)
	if err != nil {
		return nil, nil, err
	}
	return d.checkAll(getenv)
}

func (d *document) checkAll(getenv func(string) string) (*Config, *policy.Engine, error) {
	c := d.check(getenv)
	c.surroundings()
	if !c.policyInputsAreValid() {
		return nil, nil, errors.Join(append(c.errs, errors.New("the policies were not checked: fix these mistakes first"))...)
	}
	c.bundles()
	engine, err := c.cfg.Engine()
	return &c.cfg, engine, errors.Join(append(c.errs, err)...)
}

// Engine loads the policies.
func (c *Config) Engine() (*policy.Engine, error) {
	info, err := os.Stat(c.Policies)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, c.errorf("policies", "the folder %s does not exist: create it or correct the path", c.Policies)
	case err != nil:
		return nil, c.errorf("policies", "reading the folder: %v", err)
	case !info.IsDir():
		return nil, c.errorf("policies", "%s is not a folder: write the folder of the policies", c.Policies)
	}
	engine, err := policy.Load(policy.Inputs{
		FS: os.DirFS(c.Policies), Catalogue: c.Catalogue, Labels: c.Labels, Aliases: c.Aliases,
		HomeDomain: c.TrustDomain, TrustDomains: c.AllDomains(), OIDCDomains: c.OIDCDomains(), Internal: c.InternalDomains, OrphanGrace: c.OrphanGrace, Providers: c.ProviderNames(), Channels: c.Channels(), TicketStates: c.ticketStates(), TicketWindows: c.ticketWindows(),
	})
	if err != nil {
		return nil, fmt.Errorf("policies in %s do not load:\n%w", c.Policies, c.locate(err))
	}
	return engine, nil
}

// errorf returns an error about a key, with its position if the Config is from a file.
func (c *Config) errorf(key, format string, args ...any) error {
	if c.document == nil {
		return fmt.Errorf("%s: %s", strings.ReplaceAll(key, "/", "."), fmt.Sprintf(format, args...))
	}
	return c.document.errorf(key, format, args...)
}

// locate adds the positions in the operator's file to the problems that are there.
func (c *Config) locate(err error) error {
	list, isList := err.(interface{ Unwrap() []error })
	if !isList {
		return err
	}
	errs := slices.Clone(list.Unwrap())
	for i, err := range errs {
		var p *policy.Problem
		if errors.As(err, &p) && p.Key != "" {
			errs[i] = c.errorf(p.Key, "%s", strings.TrimPrefix(p.Text, "owner: "))
		}
	}
	return errors.Join(errs...)
}

// ProviderNames returns the names of the OpenID providers.
func (c *Config) ProviderNames() (names []string) {
	for _, p := range c.Providers {
		names = append(names, p.Name)
	}
	return names
}

// Channels returns the channels that groups can use. It returns nil without a notify
// section.
func (s *Config) Channels() []string {
	if s.Notifiers == nil {
		return nil
	}
	names := slices.AppendSeq([]string{}, maps.Keys(s.Notifiers))
	return slices.DeleteFunc(names, func(name string) bool { return name == broker.PeopleChannel })
}

// NeedsRestart returns the keys whose values differ in fresh and that a reload does
// not replace.
func (c *Config) NeedsRestart(fresh *Config) (changed []string) {
	for _, part := range []struct {
		name       string
		old, fresh any
	}{
		{"server.external_url", c.ExternalURL, fresh.ExternalURL},
		{"server.hosts", c.Hosts, fresh.Hosts},
		{"server.listeners", c.Listeners, fresh.Listeners},
		{"server.metrics", c.Metrics, fresh.Metrics},
		{"server.admin_socket", c.AdminSocket, fresh.AdminSocket},
		{"server.seal_keys", c.SealKeys, fresh.SealKeys},
		{"server.signing", c.Signing, fresh.Signing},
		{"server.status_lists", c.StatusTTL, fresh.StatusTTL},
		{"server.admission", c.Admission, fresh.Admission},
		{"server.drain", c.Drain, fresh.Drain},
		{"server.limits", c.Limits, fresh.Limits},
		{"server.trusted_proxies", c.Proxies, fresh.Proxies},
		{"server.oauth", c.OAuth, fresh.OAuth},
		{"server.checkpoint_file", c.CheckpointFile, fresh.CheckpointFile},
		{"server.log", []any{c.LogFormat, c.LogLevel}, []any{fresh.LogFormat, fresh.LogLevel}},
		{"attest.trust_domain", c.TrustDomain, fresh.TrustDomain},
		{"attest.trust_domains", c.TrustDomains, fresh.TrustDomains},
		{"attest.audiences", c.Audiences, fresh.Audiences},
		{"attest.workload_api", c.WorkloadAPI, fresh.WorkloadAPI},
		{"attest.oidc_workloads", c.WorkloadIssuers, fresh.WorkloadIssuers},
		{"attest.people", c.Providers, fresh.Providers},
		{"server.sessions", []time.Duration{c.SessionIdle, c.SessionLasts}, []time.Duration{fresh.SessionIdle, fresh.SessionLasts}},
		{"server.ticket_url", c.TicketURL, fresh.TicketURL},
		{"attest.bundles", c.Bundles, fresh.Bundles},
		{"attest.bundle_max_age", c.BundleMaxAge, fresh.BundleMaxAge},
		{"store", c.Store, fresh.Store},
		{"issuers", c.Issuers, fresh.Issuers},
		{"tickets", c.Trackers, fresh.Trackers},
		{"signals", c.Transmitters, fresh.Transmitters},
		{"scim", c.SCIM, fresh.SCIM},
		{"retention", c.Retention, fresh.Retention},
		{"replicas", c.Replicas, fresh.Replicas},
	} {
		if !reflect.DeepEqual(part.old, part.fresh) {
			changed = append(changed, part.name)
		}
	}
	return changed
}
