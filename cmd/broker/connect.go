package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/attest"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
)

// errUnreachable means that no broker answers.
var errUnreachable = errors.New("can't be reached")

// clientFlags locate the broker and the caller's identity.
type clientFlags struct {
	server, brokerID, cert, key, admin, dpop string
	tokenFlags
	person bool
}

func (f *clientFlags) add(c *cobra.Command) {
	f.addServer(c)
	c.Flags().StringVar(&f.cert, "cert", "", "your X.509-SVID, a PEM file (or BROKER_CERT; default: from SPIFFE_ENDPOINT_SOCKET)")
	c.Flags().StringVar(&f.key, "key", "", "the private key of --cert, a PEM file (or BROKER_KEY)")
	f.addTokens(c)
}

func (f *clientFlags) addServer(c *cobra.Command) {
	c.Flags().StringVar(&f.server, "server", "", "the broker's URL (or BROKER_URL)")
	c.Flags().StringVar(&f.brokerID, "broker-id", "", "the broker's SPIFFE ID (or BROKER_ID; default: any in your trust domain)")
}

// addPerson adds the flags of commands for workloads and people.
func (f *clientFlags) addPerson(c *cobra.Command) {
	f.add(c)
	c.Flags().BoolVar(&f.person, "as-person", false, "act as the person who is logged in, even if a workload identity is available")
}

// addCollecting adds the flags of commands that collect credentials.
func (f *clientFlags) addCollecting(c *cobra.Command) {
	f.addPerson(c)
	c.Flags().StringVar(&f.dpop, "dpop", "", "bind the token to the private key in this PEM file, with DPoP proofs (or BROKER_DPOP_KEY)")
}

// addOperator adds the flags of commands for operators and for people whom policy
// permits the same.
func (f *clientFlags) addOperator(c *cobra.Command) {
	f.addServer(c)
	c.Flags().BoolVar(&f.person, "as-person", false, "act as the person who is logged in, instead of using the admin socket")
}

// addAdmin adds the flag of commands that operators can use for other callers.
func (f *clientFlags) addAdmin(c *cobra.Command) {
	c.Flags().StringVar(&f.admin, "admin-socket", "", "act as an operator, through the broker's admin socket")
}

// A clientConfig locates the broker and the caller's identity.
type clientConfig struct {
	server    string
	brokerID  string
	ca        string // PEM file; empty: the Workload API's bundles, or the system's roots
	socket    string // of the Workload API
	cert, key string
	proofs    *tokenProofs // of a workload; nil: it has no token
	dpop      string       // a private key, PEM file; empty: send no proofs of possession
	anonymous bool         // send no certificate
	token     string       // of a person's session
	caller    string       // the person of the session; empty: a workload
}

func (a *app) clientConfig() (clientConfig, error) {
	c := clientConfig{
		server:   a.server(),
		brokerID: cmp.Or(a.client.brokerID, a.getenv("BROKER_ID")),
		ca:       a.getenv("BROKER_CA"),
		socket:   a.getenv("SPIFFE_ENDPOINT_SOCKET"),
		cert:     cmp.Or(a.client.cert, a.getenv("BROKER_CERT")),
		key:      cmp.Or(a.client.key, a.getenv("BROKER_KEY")),
	}
	if err := checkServer(c.server); err != nil {
		return c, err
	}
	var err error
	if c.proofs, err = a.tokenProofs(); err != nil {
		return c, err
	}
	switch {
	case (c.cert == "") != (c.key == ""):
		return c, usage("--cert and --key go together")
	case c.cert != "" && c.proofs != nil:
		return c, usage("use a certificate or a token, not both: a caller has one proof")
	case c.proofs != nil && c.socket != "" && c.ca == "" && c.brokerID == "":
		// Any workload of the trust domain could pose as the broker and use the token.
		return c, usage("set --broker-id or BROKER_ID: a token is sent only to a broker with a known SPIFFE ID")
	case c.socket == "" && c.cert == "" && c.proofs == nil:
		// No workload identity: use the session of a person.
		s, err := a.savedFor(c.server, time.Now())
		if err != nil {
			return c, err
		}
		if s == nil {
			return c, usage("no identity: set SPIFFE_ENDPOINT_SOCKET, --cert and --key, --token-file or --token-from; people run \"broker login\"")
		}
		c.anonymous, c.token, c.caller = true, s.Token, s.Person
	}
	return c, nil
}

// server returns the broker's URL, in the form that saved sessions use.
func (a *app) server() string {
	return strings.TrimSuffix(cmp.Or(a.client.server, a.getenv("BROKER_URL")), "/")
}

// checkServer requires the URL of a broker, which is always https.
func checkServer(server string) error {
	if server == "" {
		return usage("set the broker's URL: --server or BROKER_URL")
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return usage("%q is not the URL of a broker: use https://HOST:PORT", server)
	}
	return nil
}

// withClient calls f with a client for the caller of the flags and environment.
func (a *app) withClient(ctx context.Context, f func(context.Context, *api.Client) error) error {
	cfg, err := a.callerConfig()
	if err != nil {
		return err
	}
	return a.withConfig(ctx, cfg, f)
}

func (a *app) withConfig(ctx context.Context, cfg clientConfig, f func(context.Context, *api.Client) error) error {
	client, done, err := a.connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	return f(ctx, client)
}

// callerConfig returns the configuration for the caller of the flags and environment,
// a workload or a person.
func (a *app) callerConfig() (clientConfig, error) {
	configOf := a.clientConfig
	if a.client.person {
		configOf = a.personConfig
	}
	c, err := configOf()
	c.dpop = cmp.Or(a.client.dpop, a.getenv("BROKER_DPOP_KEY"))
	return c, err
}

// withClientOrAdmin is withClient, unless the flags select the admin socket.
func (a *app) withClientOrAdmin(ctx context.Context, f func(context.Context, *api.Client) error) error {
	switch {
	case a.client.admin == "":
		return a.withClient(ctx, f)
	case a.client.person:
		return errTwoWays
	}
	return f(ctx, adminClient(a.client.admin, adminWait))
}

var errTwoWays = usage("--as-person and --admin-socket exclude each other")

// withAdmin calls f with a client of the admin socket or, with --as-person, of the
// person who is logged in.
func (a *app) withAdmin(ctx context.Context, socket string, wait time.Duration, f func(context.Context, *api.Client) error) error {
	switch {
	case a.client.person && socket != "":
		return errTwoWays
	case a.client.person:
		return a.withPerson(ctx, f)
	case a.client.server != "" || a.client.brokerID != "":
		// The admin socket may belong to another broker than the one that the flags
		// name.
		return usage("--server and --broker-id need --as-person: the admin socket reaches only the broker of this machine")
	}
	return f(ctx, adminClient(a.adminSocket(socket), wait))
}

// workloadAPIWait bounds the wait for the caller's own SVID.
const workloadAPIWait = 10 * time.Second

// connect returns a client. done stops its background work.
func (a *app) connect(ctx context.Context, cfg clientConfig) (client *api.Client, done func(), err error) {
	client, _, done, err = a.dial(ctx, cfg)
	return client, done, err
}

// dial is connect, and also returns the configuration of TLS, which has the caller's
// certificate.
func (a *app) dial(ctx context.Context, cfg clientConfig) (client *api.Client, t *tls.Config, done func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	source := new(attest.Source) // the zero Source serves certificates from files
	if cfg.socket != "" {
		if err := checkSocket(cfg.socket, "SPIFFE_ENDPOINT_SOCKET"); err != nil {
			return nil, nil, nil, err
		}
		trust := attest.Config{WorkloadAPI: cfg.socket, StartTimeout: workloadAPIWait, TrustDomains: domainOf(cfg.brokerID)}
		if source, err = attest.Open(ctx, trust); err != nil {
			return nil, nil, nil, err
		}
		go func() { _ = source.Run(ctx) }() // renews the SVID; errors show in the calls
	}
	clientTLS := attest.ClientTLS{
		BrokerID: cfg.brokerID, Cert: cfg.cert, Key: cfg.key,
		NoCert: cfg.proofs != nil || cfg.anonymous, WebPKI: cfg.ca != "" || cfg.socket == "",
	}
	if cfg.ca != "" {
		if clientTLS.Roots, err = config.ReadRoots(cfg.ca); err != nil {
			return nil, nil, nil, err
		}
	}
	if t, err = source.ClientTLS(clientTLS); err != nil {
		return nil, nil, nil, err
	}
	transport := &http.Transport{TLSClientConfig: t, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second}
	client = &api.Client{BaseURL: cfg.server, HTTP: &http.Client{Transport: transport}}
	if cfg.proofs != nil {
		client.Token = cfg.proofs.source
	}
	if cfg.dpop != "" {
		if client.ProofKey, err = readProofKey(cfg.dpop); err != nil {
			return nil, nil, nil, err
		}
	}
	if cfg.token != "" {
		client.Token = func(context.Context) (string, error) { return cfg.token, nil }
	}
	return client, t, func() { cancel(); transport.CloseIdleConnections() }, nil
}

// readProofKey reads the private key of --dpop.
func readProofKey(path string) (*api.ProofKey, error) {
	text, err := config.ReadSecret(path)
	if err != nil {
		return nil, fmt.Errorf("reading the key of --dpop: %w", err)
	}
	key, err := api.ParseProofKey([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("reading the key of --dpop: %s: %w", path, err)
	}
	return key, nil
}

// checkSocket reports at once the errors that waiting for the Workload API can't
// resolve. setting is where the address was set.
func checkSocket(address, setting string) error {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return nil
	}
	path = "/" + strings.TrimLeft(path, "/") // unix:/path and unix:///path
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return c.Close()
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no Workload API at %s (%s): check that the SPIFFE agent is running", path, setting)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("this user has no permission for the Workload API at %s (%s)", path, setting)
	}
	return nil
}

// domainOf returns the trust domain of the broker's SPIFFE ID, if it is set. A
// broker of a federated domain is verified with that domain's bundle.
func domainOf(brokerID string) []string {
	domain, _, err := broker.ParseWorkloadID(brokerID)
	if err != nil {
		return nil
	}
	return []string{domain}
}
