package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// Defaults of omitted keys.
const (
	defaultTTL           = 15 * time.Minute
	defaultSessionTTL    = time.Hour // of AWS: every role allows it
	defaultCollectWithin = time.Hour
	defaultRotateEvery   = 24 * time.Hour
	defaultPublishAhead  = time.Hour
	minPublishAhead      = 10 * time.Minute
	defaultStatusTTL     = 15 * time.Second
	longestStatusTTL     = time.Hour
	defaultParameterMax  = 256
	longestTTL           = 24 * time.Hour
	defaultConnections   = 4096
	defaultPerAddress    = 1024
	defaultUnproved      = 32 << 20
	minUnproved          = 1 << 20
	defaultDrainDelay    = 5 * time.Second
	defaultDrainTimeout  = 20 * time.Second
	longestDrain         = 5 * time.Minute
	maxWaiting           = 500 // a counter row lists an identity's waiting requests
)

func (c *checker) server() {
	f := &c.d.file.Server
	u := c.externalURL(string(f.ExternalURL))
	c.cfg.ExternalURL, c.cfg.UIURL, c.cfg.Metrics, c.cfg.AdminSocket = u, u, f.Metrics, c.path(f.AdminSocket)
	c.hosts(f.Hosts)
	c.socketLength("server/admin_socket", c.cfg.AdminSocket)
	if f.Metrics != "" {
		c.address("server/metrics", f.Metrics)
	}
	if c.cfg.LogFormat = cmp.Or(f.Log.Format, "json"); !slices.Contains([]string{"json", "text"}, c.cfg.LogFormat) {
		c.report("server/log/format", "choose json or text")
	}
	if err := c.cfg.LogLevel.UnmarshalText([]byte(cmp.Or(f.Log.Level, "info"))); err != nil {
		c.report("server/log/level", "choose debug, info, warn or error")
	}
	c.cfg.Admission = Admission{
		Limit: Limit{f.Admission.PerSecond, f.Admission.Pending}, Waiting: f.Admission.Waiting, ResourceServers: Limit(f.Admission.ResourceServers),
	}
	if f.Admission.PerSecond < 0 || f.Admission.Pending < 0 {
		c.report("server/admission", "limits must be positive; omit them for 50 calls per second and 20 at once")
	}
	if limit := f.Admission.ResourceServers; limit.PerSecond < 0 || limit.Pending < 0 {
		c.report("server/admission/resource_servers", "limits must be positive; omit them for 2000 introspections per second and 100 at once")
	}
	c.drain(f.Drain)
	if n := f.Admission.Waiting; n < 0 || n > maxWaiting {
		c.report("server/admission/waiting_requests", "must be from 1 to %d; omit it for 20", maxWaiting)
	}
	c.limits(f.Limits)
	c.proxies(f.Proxies)
	c.cfg.Signing = Signing{
		Algorithm:    cmp.Or(f.Signing.Algorithm, "ES256"),
		RotateEvery:  cmp.Or(time.Duration(f.Signing.RotateEvery), defaultRotateEvery),
		PublishAhead: cmp.Or(time.Duration(f.Signing.PublishAhead), defaultPublishAhead),
	}
	if c.cfg.Signing.PublishAhead < minPublishAhead {
		c.report("server/signing/publish_ahead", "must be at least %s, because resource servers may cache the keys for five minutes", broker.FormatDuration(minPublishAhead))
	}
	if !slices.Contains([]string{"ES256", "RS256", "EdDSA"}, c.cfg.Signing.Algorithm) {
		c.report("server/signing/algorithm", "choose ES256, RS256 or EdDSA")
	}
	c.cfg.StatusTTL = cmp.Or(time.Duration(f.StatusLists.TTL), defaultStatusTTL)
	if ttl := c.cfg.StatusTTL; ttl < time.Second || ttl > longestStatusTTL || ttl%time.Second != 0 {
		c.report("server/status_lists/ttl", "write whole seconds, from 1s to %s: resource servers refuse a revoked token this much later", broker.FormatDuration(longestStatusTTL))
	}
}

// hostForm is the form of a host name.
var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?$`)

func (c *checker) hosts(list []string) {
	c.cfg.Hosts = neverNil(list)
	for i, host := range c.cfg.Hosts {
		u, err := url.Parse("https://" + host)
		if err != nil || u.Host != host || !isPort(u.Port()) && u.Port() != "" || !hostForm.MatchString(u.Hostname()) && net.ParseIP(u.Hostname()) == nil {
			c.report(fmt.Sprintf("server/hosts/%d", i), "%q is not a host: write a name, or a name and a port, such as broker.acme.svc:8443", host)
		}
	}
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == text
}

func (c *checker) limits(f limitsFile) {
	c.cfg.Limits = Limits{
		Connections: cmp.Or(f.Connections, defaultConnections),
		PerAddress:  cmp.Or(f.PerAddress, defaultPerAddress),
		Unproved:    cmp.Or(f.Unproved, defaultUnproved),
	}
	if f.Connections < 0 || f.PerAddress < 0 || f.Unproved < 0 {
		c.report("server/limits", "limits must be positive; omit them for the defaults")
	}
	if f.Unproved > 0 && f.Unproved < minUnproved {
		c.report("server/limits/unproved_bytes", "must be at least %d, enough for 64 calls", minUnproved)
	}
}

// proxies checks the trusted proxies. A network that contains every address would let
// every client choose its own.
func (c *checker) proxies(f *proxiesFile) {
	if f == nil {
		return
	}
	const key = "server/trusted_proxies"
	if len(f.Networks) == 0 {
		c.report(key+"/networks", "list the addresses or networks of the proxies, such as [10.0.0.7, 10.1.0.0/28]")
	}
	for i, text := range f.Networks {
		n, err := netip.ParsePrefix(text)
		if addr, isAddr := netip.ParseAddr(text); isAddr == nil && addr.Zone() == "" {
			n, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err == nil && n.Bits() == 0 {
			c.report(fmt.Sprintf("%s/networks/%d", key, i), "%q contains every address, so any client could choose its own: list only the proxies", text)
			continue
		}
		if err != nil || n != n.Masked() || n.Addr().Is4In6() {
			c.report(fmt.Sprintf("%s/networks/%d", key, i), "%q is not a network: write an address such as 10.0.0.7, or a network such as 10.1.0.0/28 without bits after its length", text)
			continue
		}
		c.cfg.Proxies.Networks = append(c.cfg.Proxies.Networks, n)
	}
	if c.cfg.Proxies.Header = f.Header; !slices.Contains([]string{"", "forwarded", "x-forwarded-for"}, f.Header) {
		c.report(key+"/header", "choose forwarded (RFC 7239) or x-forwarded-for, whichever the proxies set, or omit it if they use the PROXY protocol")
	}
	uses := f.Header != "" || slices.ContainsFunc(c.d.file.Server.Listeners, func(l listenerFile) bool { return l.Proxy })
	if !uses {
		c.report(key, "write header, or proxy_protocol in a listener: without either, the broker never uses the networks")
	}
}

// drain checks how the broker stops. Process managers kill what does not stop in time.
func (c *checker) drain(f drainFile) {
	c.cfg.Drain = Drain{Delay: defaultDrainDelay, Timeout: cmp.Or(time.Duration(f.Timeout), defaultDrainTimeout)}
	if f.Delay != nil {
		c.cfg.Drain.Delay = time.Duration(*f.Delay)
	}
	if c.cfg.Drain.Delay > longestDrain || c.cfg.Drain.Timeout > longestDrain {
		c.report("server/drain", "delay and timeout must be at most %s", broker.FormatDuration(longestDrain))
	}
}

// externalURL returns the URL of the broker in its one spelling. Browsers and OAuth
// clients would not recognize another one.
func (c *checker) externalURL(text string) *url.URL {
	const key = "server/external_url"
	u, err := broker.NormalURL(text)
	switch {
	case err == nil && u.Scheme == "https":
		if text != u.String() && text != u.String()+"/" {
			c.warn(key, "the broker uses the spelling %s, also as the issuer of its tokens: write it in this way", u)
		}
		return u
	case err == nil:
		err = errors.New("is not an https URL")
	}
	c.report(key, "write the https URL by which callers reach the broker, such as https://broker.acme.test: this one %v", err)
	return &url.URL{Scheme: "https", Host: "broker.invalid"} // avoids mistakes that follow from this one
}

func (c *checker) address(key, address string) {
	_, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		c.report(key, "write host and port, such as 127.0.0.1:9464")
		return
	}
	if n, err := net.LookupPort("tcp", port); err != nil {
		c.report(key, "%q is not a port: write a number from 1 to 65535", port)
	} else if before, ok := c.addresses[address]; ok && n != 0 {
		c.report(key, "%s has the same address: each listener needs its own", strings.ReplaceAll(before, "/", "."))
	}
	c.addresses[address] = key
}

func (c *checker) listeners() {
	f := &c.d.file.Server
	list, key := f.Listeners, "server/listeners/%d"
	switch {
	case f.Listen != "" && len(list) > 0:
		c.report("server/listen", "write listen or listeners, not both: listen is short for one listener")
		return
	case f.Listen != "":
		list, key = []listenerFile{{Listen: f.Listen, TLS: f.TLS, ClientCerts: f.ClientCerts}}, "server"
	case len(list) == 0 && c.d.isRejected("server/listen"):
		return
	case len(list) == 0:
		c.report("server/listeners", "write at least one listener, such as {listen: 0.0.0.0:8443, tls: {svid: true}, client_certs: optional}")
		return
	case f.TLS != nil || f.ClientCerts != "":
		c.report("server/tls", "write tls and client_certs in each of the listeners")
	}
	for i, l := range list {
		at := key
		if strings.Contains(key, "%d") {
			at = fmt.Sprintf(key, i)
		}
		c.cfg.Listeners = append(c.cfg.Listeners, c.listener(at, l))
	}
}

// services are the groups of endpoints that a listener can serve.
var services = []string{"api", "oauth", "log", "ui", "scim", "mcp"}

func (c *checker) listener(key string, l listenerFile) Listener {
	out := Listener{Address: l.Listen, ClientCerts: cmp.Or(l.ClientCerts, "optional")}
	c.address(key+"/listen", l.Listen)
	switch t := l.TLS; {
	case t == nil || !t.SVID && t.Cert == "" && t.Key == "":
		c.report(key+"/tls", "every listener needs TLS: write {svid: true} or {cert: FILE, key: FILE}")
	case t.SVID && (t.Cert != "" || t.Key != ""):
		c.report(key+"/tls", "write svid, or cert and key, not both")
	case !t.SVID && (t.Cert == "" || t.Key == ""):
		c.report(key+"/tls", "cert and key go together: write both")
	default:
		out.SVID, out.Cert, out.Key = t.SVID, c.path(t.Cert), c.path(t.Key)
	}
	if out.Proxy = l.Proxy; l.Proxy && c.d.file.Server.Proxies == nil {
		c.report(key+"/proxy_protocol", "list the proxies in server.trusted_proxies.networks: connections of others are refused")
	}
	if l.Proxy && l.ClientCerts == "" && !c.d.isRejected(key+"/client_certs") {
		c.report(key+"/client_certs", "say what the proxy does: write off if it ends TLS, because a certificate of the proxy would pass for one of its callers; write optional or required only if it passes TLS through")
	}
	if out.SVID && c.noWorkloadAPI() {
		c.report(key+"/tls/svid", "the broker's own SVID comes from attest.workload_api: write that too, or use cert and key")
	}
	if !slices.Contains([]string{"off", "optional", "required"}, out.ClientCerts) {
		c.report(key+"/client_certs", "choose off, optional or required")
	}
	for i, name := range l.Serve {
		if !slices.Contains(services, name) {
			c.report(fmt.Sprintf("%s/serve/%d", key, i), "%q cannot be served: choose from %s", name, strings.Join(services, ", "))
		}
	}
	out.Serve = c.served(key, l.Serve)
	return out
}

// served returns the services of a listener. MCP is another form of the API.
func (c *checker) served(key string, list []string) []string {
	if len(list) == 0 {
		list = services
	}
	enabled := c.d.file.Server.MCP.Enabled
	switch has := slices.Contains(list, "mcp"); {
	case enabled == nil || *enabled:
		if !has && slices.Contains(list, "api") {
			list = append(slices.Clone(list), "mcp")
		}
	case has && !slices.Equal(list, services):
		c.report(key+"/serve", "remove mcp, or server.mcp.enabled: false")
	default:
		list = slices.DeleteFunc(slices.Clone(list), func(name string) bool { return name == "mcp" })
	}
	return list
}

// sealKeyVar is for deployments where a file is inconvenient.
const sealKeyVar = "BROKER_SEAL_KEY"

func (c *checker) sealKeys() {
	for i, k := range c.d.file.Server.SealKeys {
		at := fmt.Sprintf("server/seal_keys/%d", i)
		key, err := readSealKey(c.path(k.File))
		if err != nil {
			c.report(at, "%v", err)
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
		c.report("server/seal_keys", "the broker seals its signing keys: write [{file: FILE}] with 32 random bytes in base64 in the file (head -c 32 /dev/urandom | base64), or set %s", sealKeyVar)
	}
}

// readSealKey reads a seal key. It refuses a file that other users can read.
func readSealKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the seal key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by other users (mode %o): run chmod 600", path, info.Mode().Perm())
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

// sessions checks how long sessions of people last.
func (c *checker) sessions(f sessionsFile) {
	c.cfg.SessionIdle, c.cfg.SessionLasts = time.Duration(f.Idle), time.Duration(f.Lasts)
	const key = "server/sessions"
	switch most := 30 * 24 * time.Hour; {
	case f.Idle < 0 || f.Lasts < 0 || c.cfg.SessionLasts > most:
		c.report(key, "idle and lasts must be positive, and lasts at most %s", broker.FormatDuration(most))
	case f.Idle > 0 && c.cfg.SessionIdle < time.Minute:
		c.report(key+"/idle", "must be at least 1m, because the last use of a session is stored once a minute")
	}
}

// ticket checks the URL of tickets.
func (c *checker) ticket(text string) {
	before, _, found := strings.Cut(text, "{ticket}")
	u, err := url.Parse(before)
	if text != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.Path == "" || u.User != nil || !found) {
		c.report("server/ticket_url", "write an https URL that contains {ticket}, such as https://tracker.acme.test/browse/{ticket}")
	}
	c.cfg.TicketURL = text
}
