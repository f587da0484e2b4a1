package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/attest"
)

// errUnreachable marks that there was nobody to ask.
var errUnreachable = errors.New("can't be reached")

// clientFlags say where the broker is and who we are.
type clientFlags struct {
	server, brokerID, cert, key, tokenFile, admin string
	person                                        bool
}

func (f *clientFlags) add(c *cobra.Command) {
	f.addServer(c)
	c.Flags().StringVar(&f.cert, "cert", "", "our X.509-SVID, PEM (or BROKER_CERT; default: from SPIFFE_ENDPOINT_SOCKET)")
	c.Flags().StringVar(&f.key, "key", "", "its private key, PEM (or BROKER_KEY)")
	c.Flags().StringVar(&f.tokenFile, "token-file", "", "our JWT-SVID (or BROKER_TOKEN_FILE)")
}

func (f *clientFlags) addServer(c *cobra.Command) {
	c.Flags().StringVar(&f.server, "server", "", "the broker's URL (or BROKER_URL)")
	c.Flags().StringVar(&f.brokerID, "broker-id", "", "the SPIFFE ID that the broker must prove (or BROKER_ID; default: any of our trust domain)")
}

// addPerson is for commands that workloads and people have in common.
func (f *clientFlags) addPerson(c *cobra.Command) {
	f.add(c)
	c.Flags().BoolVar(&f.person, "as-person", false, "do it as the person who is logged in, where a workload could be proved as well")
}

// addOperator is for commands that are the operators', and of people whom policy
// lets do the same.
func (f *clientFlags) addOperator(c *cobra.Command) {
	f.addServer(c)
	c.Flags().BoolVar(&f.person, "as-person", false, "do it as the person who is logged in, if policy lets them, and not by the admin socket")
}

// addAdmin is for commands that operators use on others' behalf, too.
func (f *clientFlags) addAdmin(c *cobra.Command) {
	c.Flags().StringVar(&f.admin, "admin-socket", "", "do it as an operator, by the broker's admin socket")
}

// A clientConfig is what is known of the broker and of us.
type clientConfig struct {
	server    string
	brokerID  string
	ca        string // PEM file; empty: the Workload API's bundles, or the system's roots
	socket    string // of the Workload API
	cert, key string
	tokenFile string
	anonymous bool   // nobody is proved, or a person is by a session
	token     string // of a person's session
}

func (a *app) clientConfig() (clientConfig, error) {
	c := clientConfig{
		server:    a.server(),
		brokerID:  cmp.Or(a.client.brokerID, a.getenv("BROKER_ID")),
		ca:        a.getenv("BROKER_CA"),
		socket:    a.getenv("SPIFFE_ENDPOINT_SOCKET"),
		cert:      cmp.Or(a.client.cert, a.getenv("BROKER_CERT")),
		key:       cmp.Or(a.client.key, a.getenv("BROKER_KEY")),
		tokenFile: cmp.Or(a.client.tokenFile, a.getenv("BROKER_TOKEN_FILE")),
	}
	if err := checkServer(c.server); err != nil {
		return c, err
	}
	switch {
	case (c.cert == "") != (c.key == ""):
		return c, usage("--cert and --key go together")
	case c.cert != "" && c.tokenFile != "":
		return c, usage("give a certificate or a token file, not both: one caller has one proof")
	case c.tokenFile != "" && c.socket != "" && c.ca == "" && c.brokerID == "":
		// Any workload of the trust domain could take the token, and use it.
		return c, usage("say who the broker is before a token is sent to it: --broker-id SPIFFE-ID or BROKER_ID")
	case c.socket == "" && c.cert == "" && c.tokenFile == "":
		// Not a workload: whoever is logged in.
		s, err := a.savedFor(c.server, time.Now())
		if err != nil {
			return c, err
		}
		if s == nil {
			return c, usage("say who you are: SPIFFE_ENDPOINT_SOCKET, --cert and --key, or --token-file; or log in: broker login")
		}
		c.anonymous, c.token = true, s.Token
	}
	return c, nil
}

// server gives the broker's URL, as sessions with it are kept under.
func (a *app) server() string {
	return strings.TrimSuffix(cmp.Or(a.client.server, a.getenv("BROKER_URL")), "/")
}

// checkServer refuses what is not the URL of a broker: none is without TLS.
func checkServer(server string) error {
	if server == "" {
		return usage("say where the broker is: --server URL or BROKER_URL")
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return usage("%q is not the URL of a broker: say https://HOST:PORT", server)
	}
	return nil
}

// session connects by flags and environment, and calls f.
func (a *app) session(ctx context.Context, f func(context.Context, *api.Client) error) error {
	if a.client.person {
		return a.asPerson(ctx, f)
	}
	cfg, err := a.clientConfig()
	if err != nil {
		return err
	}
	client, done, err := a.connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	return f(ctx, client)
}

// operatorSession is session, or goes by the admin socket if that was asked for.
func (a *app) operatorSession(ctx context.Context, f func(context.Context, *api.Client) error) error {
	switch {
	case a.client.admin == "":
		return a.session(ctx, f)
	case a.client.person:
		return errTwoWays
	}
	return f(ctx, adminClient(a.client.admin, adminWait))
}

var errTwoWays = usage("--as-person and --admin-socket are two ways to do it: choose one")

// asOperator calls f with a client of the admin socket or, if that was asked for,
// for the person who is logged in.
func (a *app) asOperator(ctx context.Context, socket string, wait time.Duration, f func(context.Context, *api.Client) error) error {
	switch {
	case a.client.person && socket != "":
		return errTwoWays
	case a.client.person:
		return a.asPerson(ctx, f)
	case a.client.server != "" || a.client.brokerID != "":
		// Another broker than the one that is meant would be hit.
		return usage("the admin socket is of this machine's broker: --server and --broker-id go with --as-person")
	}
	return f(ctx, adminClient(a.adminSocket(socket), wait))
}

// workloadAPIWait is how long a command waits for its own identity.
const workloadAPIWait = 10 * time.Second

// connect makes a client. done ends what it needs in the background.
func (a *app) connect(ctx context.Context, cfg clientConfig) (client *api.Client, done func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	source := new(attest.Source) // enough for files
	if cfg.socket != "" {
		if err := checkSocket(cfg.socket); err != nil {
			return nil, nil, err
		}
		trust := attest.Config{WorkloadAPI: cfg.socket, StartTimeout: workloadAPIWait, TrustDomains: domainOf(cfg.brokerID)}
		if source, err = attest.Open(ctx, trust); err != nil {
			return nil, nil, err
		}
		go func() { _ = source.Run(ctx) }() // it keeps the SVID fresh; what goes wrong shows in the calls
	}
	config := attest.ClientTLS{
		BrokerID: cfg.brokerID, Cert: cfg.cert, Key: cfg.key,
		NoCert: cfg.tokenFile != "" || cfg.anonymous, WebPKI: cfg.ca != "" || cfg.socket == "",
	}
	if cfg.ca != "" {
		if config.Roots, err = readRoots(cfg.ca); err != nil {
			return nil, nil, err
		}
	}
	t, err := source.ClientTLS(config)
	if err != nil {
		return nil, nil, err
	}
	transport := &http.Transport{TLSClientConfig: t, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second}
	client = &api.Client{BaseURL: cfg.server, HTTP: &http.Client{Transport: transport}}
	if cfg.tokenFile != "" {
		client.Token = func(context.Context) (string, error) { return readToken(cfg.tokenFile) }
	}
	if cfg.token != "" {
		client.Token = func(context.Context) (string, error) { return cfg.token, nil }
	}
	return client, func() { cancel(); transport.CloseIdleConnections() }, nil
}

// checkSocket says at once what waiting for the Workload API does not mend.
func checkSocket(address string) error {
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
		return fmt.Errorf("there is no Workload API at %s (SPIFFE_ENDPOINT_SOCKET): does the SPIFFE agent run?", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("this user may not reach the Workload API at %s (SPIFFE_ENDPOINT_SOCKET)", path)
	}
	return nil
}

// domainOf gives the trust domain of the broker's SPIFFE ID, if that is known:
// a broker of another domain is verified by that domain's bundle.
func domainOf(brokerID string) []string {
	domain, _, ok := strings.Cut(strings.TrimPrefix(brokerID, "spiffe://"), "/")
	if !ok {
		return nil
	}
	return []string{domain}
}

func readRoots(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("reading authorities: %s holds no PEM certificate", path)
	}
	return pool, nil
}

// readToken reads the token file anew for each call, because whoever keeps it
// fresh replaces it.
func readToken(path string) (string, error) {
	const longest = 16 << 10
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the token file: %w", err)
	}
	if len(text) > longest {
		return "", fmt.Errorf("reading the token file: %s is too long for a token", path)
	}
	return strings.TrimSpace(string(text)), nil
}
