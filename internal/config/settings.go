package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/notify"
)

// A Config is an operator's file that was read and found to be right. Relative
// paths in it are relative to the file's folder; those here are not.
type Config struct {
	Path           string
	ExternalURL    *url.URL
	UIURL          *url.URL // of the pages
	Listeners      []Listener
	Metrics        string // address, or "" for none
	AdminSocket    string // path, or "" for none
	SealKeys       [][]byte
	Signing        Signing
	Admission      Admission
	CheckpointFile string
	LogFormat      string // "json" or "text"
	LogLevel       slog.Level
	TrustDomain    string
	TrustDomains   []string
	Audiences      []string
	WorkloadAPI    string
	Bundles        map[string]string // files, by trust domain
	Store          string            // a URL
	Policies       string            // folder
	Issuers        map[string]Issuer
	Catalogue      broker.Catalogue
	Marks          []broker.Mark
	Providers      []Provider
	SessionIdle    time.Duration
	SessionLasts   time.Duration
	TicketURL      string                     // such as "https://tracker.acme.test/{ticket}"
	Notifiers      map[string]notify.Notifier // by channel; nil: the file has no notify section
}

// A Listener is one address and what it serves.
type Listener struct {
	Address     string
	Plain       bool // without TLS; the operator's file cannot ask for it
	SVID        bool
	Cert, Key   string
	ClientCerts string   // off, optional or required
	Serve       []string // of api, oauth, log and ui
}

// Signing is how the broker signs its tokens.
type Signing struct {
	Algorithm                 string
	RotateEvery, PublishAhead time.Duration
}

// Admission limits each identity's calls. Zero means the default.
type Admission struct {
	PerSecond float64
	Pending   int
}

// Defaults of what the file leaves open.
const (
	defaultTTL           = 15 * time.Minute
	defaultCollectWithin = time.Hour
	defaultRotateEvery   = 24 * time.Hour
	defaultPublishAhead  = time.Hour
	minPublishAhead      = 10 * time.Minute
	defaultParameterMax  = 256
	longestTTL           = 24 * time.Hour
)

// file gives a path as this process finds it.
func (c *checker) file(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(c.dir, path)
}

func (c *checker) server() {
	f := &c.d.file.Server
	u, err := url.Parse(string(f.ExternalURL))
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		c.bad("server/external_url", "give the URL by which callers reach the broker, such as https://broker.acme.test, without query and fragment")
		u = &url.URL{Scheme: "https", Host: "broker.invalid"} // so that nothing follows from it
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	c.cfg.ExternalURL, c.cfg.UIURL, c.cfg.Metrics, c.cfg.AdminSocket = u, u, f.Metrics, c.file(f.AdminSocket)
	if f.Metrics != "" {
		c.address("server/metrics", f.Metrics)
	}
	if c.cfg.LogFormat = cmp.Or(f.Log.Format, "json"); !slices.Contains([]string{"json", "text"}, c.cfg.LogFormat) {
		c.bad("server/log/format", "choose json or text")
	}
	if err := c.cfg.LogLevel.UnmarshalText([]byte(cmp.Or(f.Log.Level, "info"))); err != nil {
		c.bad("server/log/level", "choose debug, info, warn or error")
	}
	c.cfg.Admission = Admission(f.Admission)
	if f.Admission.PerSecond < 0 || f.Admission.Pending < 0 {
		c.bad("server/admission", "limits are positive; leave them out for 50 calls a second and 20 at once")
	}
	c.cfg.Signing = Signing{
		Algorithm:    cmp.Or(f.Signing.Algorithm, "ES256"),
		RotateEvery:  cmp.Or(time.Duration(f.Signing.RotateEvery), defaultRotateEvery),
		PublishAhead: cmp.Or(time.Duration(f.Signing.PublishAhead), defaultPublishAhead),
	}
	if c.cfg.Signing.PublishAhead < minPublishAhead {
		c.bad("server/signing/publish_ahead", "at least %s: whoever verifies tokens may keep the old keys for five minutes", broker.Short(minPublishAhead))
	}
	if !slices.Contains([]string{"ES256", "RS256", "EdDSA"}, c.cfg.Signing.Algorithm) {
		c.bad("server/signing/algorithm", "choose ES256, RS256 or EdDSA")
	}
}

func (c *checker) address(key, address string) {
	if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
		c.bad(key, "give host and port, such as 127.0.0.1:9464")
	}
}

func (c *checker) listeners() {
	f := &c.d.file.Server
	list, key := f.Listeners, "server/listeners/%d"
	switch {
	case f.Listen != "" && len(list) > 0:
		c.bad("server/listen", "it is short for one listener: give that or listeners, not both")
		return
	case f.Listen != "":
		list, key = []listenerFile{{Listen: f.Listen, TLS: f.TLS, ClientCerts: f.ClientCerts}}, "server"
	case len(list) == 0 && c.d.isLost("server/listen"):
		return
	case len(list) == 0:
		c.bad("server/listeners", "give at least one listener, such as {listen: 0.0.0.0:8443, tls: {svid: true}, client_certs: optional}")
		return
	case f.TLS != nil || f.ClientCerts != "":
		c.bad("server/tls", "tls and client_certs belong to each of the listeners")
	}
	for i, l := range list {
		at := key
		if strings.Contains(key, "%d") {
			at = fmt.Sprintf(key, i)
		}
		c.cfg.Listeners = append(c.cfg.Listeners, c.listener(at, l))
	}
}

// services are the parts of the server that a listener can serve.
var services = []string{"api", "oauth", "log", "ui"}

func (c *checker) listener(key string, l listenerFile) Listener {
	out := Listener{Address: l.Listen, ClientCerts: cmp.Or(l.ClientCerts, "optional")}
	c.address(key+"/listen", l.Listen)
	switch t := l.TLS; {
	case t == nil || !t.SVID && t.Cert == "" && t.Key == "":
		c.bad(key+"/tls", "the broker speaks TLS only: give {svid: true} or {cert: FILE, key: FILE}")
	case t.SVID && (t.Cert != "" || t.Key != ""):
		c.bad(key+"/tls", "give svid, or cert and key, not both")
	case !t.SVID && (t.Cert == "" || t.Key == ""):
		c.bad(key+"/tls", "cert and key go together")
	default:
		out.SVID, out.Cert, out.Key = t.SVID, c.file(t.Cert), c.file(t.Key)
	}
	if out.SVID && c.noWorkloadAPI() {
		c.bad(key+"/tls/svid", "the broker's own SVID comes from attest.workload_api: name it, or give cert and key")
	}
	if !slices.Contains([]string{"off", "optional", "required"}, out.ClientCerts) {
		c.bad(key+"/client_certs", "choose off, optional or required")
	}
	for i, name := range l.Serve {
		if !slices.Contains(services, name) {
			c.bad(fmt.Sprintf("%s/serve/%d", key, i), "%q is not something to serve: choose of %s", name, strings.Join(services, ", "))
		}
	}
	if out.Serve = l.Serve; len(l.Serve) == 0 {
		out.Serve = services
	}
	return out
}

// sealKeyVar holds the seal key where a file is inconvenient.
const sealKeyVar = "BROKER_SEAL_KEY"

func (c *checker) secrets() {
	for i, k := range c.d.file.Server.SealKeys {
		at := fmt.Sprintf("server/seal_keys/%d", i)
		key, err := readSealKey(c.file(k.File))
		if err != nil {
			c.bad(at, "%v", err)
			continue
		}
		c.cfg.SealKeys = append(c.cfg.SealKeys, key)
	}
	if text := c.env(sealKeyVar); text != "" {
		key, err := broker.ParseSealKey(text)
		if err != nil {
			c.errs = append(c.errs, fmt.Errorf("%s: %w", sealKeyVar, err))
		}
		c.cfg.SealKeys = append(c.cfg.SealKeys, key)
	}
	if len(c.cfg.SealKeys) == 0 && len(c.d.file.Server.SealKeys) == 0 {
		c.bad("server/seal_keys", "the broker seals its signing keys: give [{file: FILE}] with 32 random bytes in base64 (head -c 32 /dev/urandom | base64), or %s", sealKeyVar)
	}
}

// readSealKey reads a key that nobody else may read.
func readSealKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the seal key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %o): chmod 600", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the seal key: %w", err)
	}
	key, err := broker.ParseSealKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func (c *checker) attest() {
	f := &c.d.file.Attest
	c.people(f.People)
	c.sessions(c.d.file.Server.Sessions)
	c.ticket(string(c.d.file.Server.TicketURL))
	if c.cfg.Audiences = toStrings(f.Audiences); len(c.cfg.Audiences) == 0 {
		c.cfg.Audiences = []string{c.cfg.ExternalURL.String()}
	}
	if c.d.isLost("attest/trust_domain") || c.d.isLost("attest/trust_domains") {
		return
	}
	c.cfg.TrustDomain = f.TrustDomain
	c.cfg.TrustDomains = f.TrustDomains
	if !trustDomainForm.MatchString(f.TrustDomain) {
		c.bad("attest/trust_domain", "give the broker's own trust domain, such as acme.test")
	}
	if len(f.TrustDomains) == 0 {
		c.cfg.TrustDomains = []string{f.TrustDomain}
	}
	for i, td := range f.TrustDomains {
		if !trustDomainForm.MatchString(td) {
			c.bad(fmt.Sprintf("attest/trust_domains/%d", i), "%q is not a trust domain (lower-case letters, digits, dots, dashes and underscores)", td)
		}
	}
	if !slices.Contains(c.cfg.TrustDomains, f.TrustDomain) {
		c.bad("attest/trust_domains", "it must list the broker's own trust domain, %q, too", f.TrustDomain)
	}
	c.trust(f)
	for i, m := range f.Workloads {
		c.mark(fmt.Sprintf("attest/workloads/%d", i), m)
	}
}

// trustDomainForm is that of SPIFFE-ID, section 2.1.
var trustDomainForm = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)

// noWorkloadAPI says whether the file names none.
func (c *checker) noWorkloadAPI() bool {
	return c.d.file.Attest.WorkloadAPI == "" && !c.d.isLost("attest/workload_api")
}

// trust finds out where bundles come from.
func (c *checker) trust(f *attestFile) {
	switch {
	case f.WorkloadAPI == "" && len(f.Bundles) == 0:
		c.bad("attest", "say where bundles come from: workload_api: unix:///path/to/agent.sock, or bundles: {%s: FILE}", f.TrustDomain)
	case f.WorkloadAPI != "" && len(f.Bundles) > 0:
		c.bad("attest/bundles", "give workload_api or bundles, not both")
	case f.WorkloadAPI != "" && !strings.HasPrefix(string(f.WorkloadAPI), "unix:") && !strings.HasPrefix(string(f.WorkloadAPI), "tcp:"):
		c.bad("attest/workload_api", "give a URL such as unix:///run/spire/agent.sock")
	}
	c.cfg.WorkloadAPI = string(f.WorkloadAPI)
	c.cfg.Bundles = map[string]string{}
	for td, path := range f.Bundles {
		if !slices.Contains(c.cfg.TrustDomains, td) {
			c.bad("attest/bundles/"+td, "the trust domain is not listed in trust_domains")
		}
		c.cfg.Bundles[td] = c.file(path)
	}
	for i, td := range c.cfg.TrustDomains {
		if _, ok := f.Bundles[td]; f.WorkloadAPI == "" && !ok && len(f.Bundles) > 0 {
			c.bad(fmt.Sprintf("attest/trust_domains/%d", i), "there is no bundle of %s", td)
		}
	}
}

func (c *checker) mark(key string, m markFile) {
	kind := broker.Kind(cmp.Or(m.Kind, string(broker.KindWorkload)))
	if kind != broker.KindWorkload && kind != broker.KindAgent {
		c.bad(key+"/kind", "choose workload or agent")
	}
	rest, ok := strings.CutPrefix(string(m.Under), "spiffe://")
	domain, _, _ := strings.Cut(rest, "/")
	if !ok || !slices.Contains(c.cfg.TrustDomains, domain) || strings.HasSuffix(rest, "/") || strings.Contains(rest, "*") {
		c.bad(key+"/under", "give a SPIFFE ID or a prefix of one that ends at a segment, in a listed trust domain: spiffe://%s/agent", c.cfg.TrustDomain)
	}
	if slices.ContainsFunc(c.cfg.Marks, func(other broker.Mark) bool { return other.Under == string(m.Under) }) {
		c.bad(key+"/under", "%s is marked twice: which of them holds?", m.Under)
	}
	c.cfg.Marks = append(c.cfg.Marks, broker.Mark{Under: string(m.Under), Kind: kind, Team: m.Team, Accountable: m.Accountable})
}

func (c *checker) storage() {
	f := &c.d.file
	path, ok := strings.CutPrefix(string(f.Store), "sqlite:")
	if !ok || path == "" {
		c.bad("store", "give sqlite:/path/to/broker.db")
	}
	path = c.file(path)
	c.cfg.Store = "sqlite:" + path
	c.cfg.CheckpointFile = cmp.Or(c.file(f.Server.Checkpoint), path+".checkpoint")
	if f.Policies == "" {
		c.bad("policies", "name the folder of policies")
	}
	c.cfg.Policies = c.file(f.Policies)
}

var configName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func (c *checker) name(key, name string) {
	if !configName.MatchString(name) {
		c.bad(key, "%q is not a name: lower-case letters, digits, dots, dashes and underscores, 63 at most", name)
	}
}

func (c *checker) entitlements() {
	c.cfg.Catalogue = broker.Catalogue{}
	if len(c.d.file.Entitlements) == 0 {
		c.bad("entitlements", "name at least one thing that can be asked for")
	}
	longest := time.Duration(0)
	for _, name := range slices.Sorted(maps.Keys(c.d.file.Entitlements)) {
		e := c.entitlement("entitlements/"+name, name, c.d.file.Entitlements[name])
		c.cfg.Catalogue[name] = e
		longest = max(longest, min(e.MaxTTL, longestTTL))
	}
	c.overlaps()
	s := c.cfg.Signing
	if err := token.CheckRotation(s.RotateEvery, s.PublishAhead, longest); err != nil {
		c.bad("server/signing", "%v", err)
	}
}

func (c *checker) entitlement(key, name string, f entitlementFile) *broker.Entitlement {
	c.name(key, name)
	issuer, known := c.cfg.Issuers[f.Issuer]
	switch {
	case !known:
		c.bad(key+"/issuer", "there is no issuer %q; there are: %s", f.Issuer, strings.Join(slices.Sorted(maps.Keys(c.cfg.Issuers)), ", "))
	case issuer.Retired:
		c.bad(key+"/issuer", "%q is retired: it makes nothing more", f.Issuer)
	}
	e := &broker.Entitlement{
		Name: name, Issuer: f.Issuer, Description: c.text(key+"/description", f.Description), Owner: f.Owner, System: f.System, Labels: f.Labels,
		Scopes: c.scopes(key+"/scopes", f.Scopes.names), ScopeTexts: c.scopeTexts(key+"/scopes", f.Scopes.adds), DefaultScopes: toStrings(f.DefaultScopes),
		MaxTTL:        time.Duration(cmp.Or(f.MaxTTL, duration(defaultTTL))),
		CollectWithin: time.Duration(cmp.Or(f.CollectWithin, duration(defaultCollectWithin))),
		Binding:       broker.Binding(cmp.Or(f.Binding, string(broker.BindingNone))),
		Revocation:    broker.RevokedAtExpiry,
	}
	e.DefaultTTL = cmp.Or(time.Duration(f.DefaultTTL), min(defaultTTL, e.MaxTTL))
	if e.MaxTTL > longestTTL {
		c.bad(key+"/max_ttl", "at most %s: what lives longer is not ephemeral", broker.Short(longestTTL))
	}
	if e.DefaultTTL > e.MaxTTL && !c.d.isLost(key+"/max_ttl") {
		c.bad(key+"/default_ttl", "it is longer than max_ttl, %s", broker.Short(e.MaxTTL))
	}
	if e.CollectWithin > broker.MaxDuration {
		c.bad(key+"/collect_within", "at most %s", broker.Short(broker.MaxDuration))
	}
	if e.Binding != broker.BindingNone && e.Binding != broker.BindingMTLS {
		c.bad(key+"/binding", "choose none or mtls")
	}
	for i, s := range e.DefaultScopes {
		if !slices.Contains(e.Scopes, s) && !c.d.isLost(key+"/scopes") {
			c.bad(fmt.Sprintf("%s/default_scopes/%d", key, i), "%q is not among its scopes", s)
		}
	}
	e.Parameters = c.parameters(key+"/parameters", f.Parameters)
	if issuer.hasKind() && !slices.ContainsFunc([]string{"/scopes", "/parameters", "/vault", "/aws"}, func(part string) bool { return c.d.isLost(key + part) }) {
		c.spec(key, issuer, f, e)
	}
	if e.DefaultTTL < e.MinTTL && e.MaxTTL >= e.MinTTL {
		c.bad(key+"/default_ttl", "its issuer makes nothing shorter than %s", broker.Short(e.MinTTL))
	}
	return e
}

func (c *checker) scopes(key string, list []string) []string {
	if len(list) > broker.MaxScopes {
		c.bad(key, "at most %d", broker.MaxScopes)
	}
	sorted := slices.Sorted(slices.Values(list))
	for i, s := range list {
		if s == "" || len(s) > broker.MaxScopeLength || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			c.bad(fmt.Sprintf("%s/%d", key, i), "%q is not a scope (RFC 6749, section 3.3)", s)
		}
	}
	if len(slices.Compact(slices.Clone(sorted))) != len(sorted) {
		c.bad(key, "a scope is listed twice")
	}
	return sorted
}

func (c *checker) parameters(key string, list map[string]parameterFile) map[string]broker.Parameter {
	if len(list) == 0 {
		return nil
	}
	if len(list) > broker.MaxParameters {
		c.bad(key, "at most %d", broker.MaxParameters)
	}
	out := map[string]broker.Parameter{}
	for _, name := range slices.Sorted(maps.Keys(list)) {
		at, f := key+"/"+name, list[name]
		c.name(at, name)
		// Alone first, for "a)|(?:.*" would close the group; and without the
		// group, "^a|b$" would let "b and more" through.
		pattern, err := regexp.Compile(f.Pattern)
		if err == nil {
			pattern, err = regexp.Compile("^(?:" + f.Pattern + ")$")
		}
		if err != nil || f.Pattern == "" {
			c.bad(at+"/pattern", "give a regular expression (RE2) that the whole value must match, such as \"[a-z0-9-]{1,40}\"")
		}
		most := broker.MaxParameter
		if f.Lines {
			most = broker.MaxLines
		}
		if f.MaxLength < 0 || f.MaxLength > most {
			c.bad(at+"/max_length", "between 1 and %d bytes", most)
			f.MaxLength = 0 // issuers try what the longest value leads to
		}
		out[name] = broker.Parameter{Pattern: pattern, MaxLength: cmp.Or(f.MaxLength, defaultParameterMax), Lines: f.Lines, Required: f.Required, Description: c.text(at+"/description", f.Description)}
	}
	return out
}

// overlaps refuses two entitlements whose tokens a resource server could not
// tell apart.
func (c *checker) overlaps() {
	names := slices.Sorted(maps.Keys(c.cfg.Catalogue))
	for i, a := range names {
		for _, b := range names[i+1:] {
			one, other := c.cfg.Catalogue[a], c.cfg.Catalogue[b]
			if one.Audience == "" || one.Audience != other.Audience {
				continue
			}
			shared := slices.IndexFunc(one.Scopes, func(s string) bool { return slices.Contains(other.Scopes, s) })
			if shared >= 0 {
				c.bad("entitlements/"+b+"/scopes", "%s has the scope %q for the same audience, %s: their tokens could not be told apart", a, one.Scopes[shared], one.Audience)
			} else if len(one.Scopes) == 0 && len(other.Scopes) == 0 {
				c.bad("entitlements/"+b, "%s is for the same audience, and neither has scopes: their tokens could not be told apart", a)
			}
		}
	}
}
