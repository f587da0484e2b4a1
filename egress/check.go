package egress

import (
	"fmt"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/api"
)

// Bounds and defaults of rules.
const (
	MaxRules          = 50
	maxList           = 100
	DefaultMaxRequest = 10 << 20
	DefaultMaxAnswer  = 100 << 20
	MostBytes         = 1 << 40
	DefaultTimeout    = 5 * time.Minute
	MostTimeout       = 24 * time.Hour
	DefaultIdle       = time.Minute
	MostIdle          = time.Hour
)

// Check reports the mistakes of rules. The key is relative to the rules:
// "allow/0/hosts/1".
func Check(e *api.Egress, report func(key, text string)) {
	checkInjection(&e.Inject, report)
	if len(e.Allow) == 0 || len(e.Allow) > MaxRules {
		report("allow", fmt.Sprintf("write 1 to %d rules, such as {hosts: [api.acme.test], methods: [GET], paths: [\"/v1/**\"]}", MaxRules))
	}
	for i := range e.Allow {
		compileRule(&e.Allow[i], func(key, text string) { report(fmt.Sprintf("allow/%d/%s", i, key), text) })
	}
	bound := func(key string, value, most int64, text string) {
		if value <= 0 || value > most {
			report(key, "must be at most "+text)
		}
	}
	bound("max_request", e.MaxRequest, MostBytes, "1TiB")
	bound("max_answer", e.MaxAnswer, MostBytes, "1TiB")
	bound("timeout", int64(e.Timeout), int64(MostTimeout), "24h")
	bound("idle_timeout", int64(e.IdleTimeout), int64(MostIdle), "1h")
}

func checkInjection(in *api.Injection, report func(key, text string)) {
	takes := map[string][]string{
		api.InjectBearer: {"field"}, api.InjectBasic: {"username", "password"},
		api.InjectHeader: {"name", "field", "prefix"}, api.InjectSigV4: {"service", "region"},
	}
	fields, known := takes[in.As]
	if !known {
		report("inject/as", "choose bearer, basic, header or aws-sigv4")
		return
	}
	values := map[string]string{"field": in.Field, "username": in.Username, "password": in.Password, "name": in.Name, "prefix": in.Prefix, "service": in.Service, "region": in.Region}
	for _, key := range []string{"field", "username", "password", "name", "prefix", "service", "region"} {
		if values[key] != "" && !slices.Contains(fields, key) {
			report("inject/"+key, "has no effect with "+in.As+": remove this key")
		}
		if len(values[key]) > 128 || !isFieldValue(values[key]) {
			report("inject/"+key, "must be one line of at most 128 bytes")
		}
	}
	if in.As == api.InjectHeader && (!isToken(in.Name) || isNever(in.Name) && textproto.CanonicalMIMEHeaderKey(in.Name) != "Authorization") {
		report("inject/name", "write the name of the header that carries the credential, such as X-Api-Key")
	}
	if in.As == api.InjectSigV4 {
		for key, text := range map[string]string{"inject/service": in.Service, "inject/region": in.Region} {
			if !isLabel(text) {
				report(key, "write it as AWS does in a signature, such as s3 or eu-central-1")
			}
		}
	}
}

// isLabel reports whether a text is the name of a service or a region.
func isLabel(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// compileRule compiles a rule and reports its mistakes.
func compileRule(r *api.EgressRule, report func(key, text string)) *rule {
	out := &rule{websocket: r.WebSocket}
	each := func(key string, list []string, needed bool, f func(text string) string) {
		if needed && len(list) == 0 || len(list) > maxList {
			report(key, fmt.Sprintf("write 1 to %d of them", maxList))
		}
		for i, text := range list {
			if problem := f(text); problem != "" {
				report(fmt.Sprintf("%s/%d", key, i), problem)
			}
		}
	}
	each("hosts", r.Hosts, true, func(text string) (problem string) {
		h, problem := parseHost(text)
		out.hosts = append(out.hosts, h)
		return problem
	})
	each("methods", r.Methods, true, func(text string) string {
		out.methods = append(out.methods, text)
		return methodProblem(text)
	})
	each("paths", r.Paths, true, func(text string) (problem string) {
		p, problem := parsePath(text)
		out.paths = append(out.paths, p)
		return problem
	})
	each("query", r.Query, false, func(text string) string {
		if text == "" || len(text) > 128 || !isFieldValue(text) {
			return "write the name of a parameter"
		}
		return ""
	})
	if out.query = r.Query; r.Query != nil && len(r.Query) == 0 {
		out.query = []string{}
	}
	each("headers", r.Headers, false, func(text string) string { _, problem := parseHeaders([]string{text}); return problem })
	out.headers, _ = parseHeaders(r.Headers)
	each("addresses", r.Addresses, false, func(text string) (problem string) {
		p, problem := parseNetwork(text)
		out.networks = append(out.networks, p)
		return problem
	})
	if r.WebSocket && !slices.Contains(r.Methods, "GET") {
		report("websocket", "a WebSocket starts with GET (RFC 6455, section 4.1): add GET to the methods")
	}
	return out
}

// methodProblem returns what is wrong with a method of a rule. CONNECT opens a tunnel, and
// TRACE returns the credential.
func methodProblem(m string) string {
	switch {
	case !isToken(m) || m != strings.ToUpper(m) || len(m) > 32:
		return "write a method in upper case, such as GET"
	case slices.Contains([]string{"CONNECT", "TRACE", "TRACK", "DEBUG", "PRI"}, m):
		return m + " can't be allowed: it opens a tunnel or returns the credential"
	}
	return ""
}

// parseNetwork returns a network that a rule names. A wide one would name addresses that
// its author did not think of.
func parseNetwork(text string) (netip.Prefix, string) {
	const advice = "write a network such as 10.1.0.0/16 or fd00:1::/32, or an address"
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), ""
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil || p.Addr().Is4In6():
		return p, advice
	case p != p.Masked():
		return p, "the address has bits outside of the network: write " + p.Masked().String()
	case p.Addr().Is4() && p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 16 && p != uniqueLocal:
		return p, "the network is too wide: " + advice
	}
	return p, ""
}

var uniqueLocal = netip.MustParsePrefix("fc00::/7")

// parseHost returns the origin that a rule names.
func parseHost(text string) (h hostPattern, problem string) {
	const advice = `write a name such as api.acme.test, "*.acme.test" or host:8443; http only as http://host:8080`
	rest := text
	if after, ok := strings.CutPrefix(text, "http://"); ok {
		h.scheme, rest = "http", after
	} else {
		h.scheme, rest = "https", strings.TrimPrefix(text, "https://")
	}
	if after, ok := strings.CutPrefix(rest, "*."); ok {
		h.wildcard, rest = true, after
	}
	host, port, refusal := splitAuthority(rest, defaultPort(h.scheme))
	if refusal != nil || strings.ContainsAny(rest, "/?#") {
		return h, advice
	}
	h.host, h.port = host, port
	if _, err := netip.ParseAddr(host); h.wildcard && (err == nil || !strings.Contains(host, ".")) {
		return h, `write at least two labels after the "*."`
	}
	return h, ""
}
