// Package egress makes calls for a caller who does not receive the credential. It checks
// each call against the rules of the caller's entitlements, adds the credential, and
// removes the credential from the answer.
//
// Everything that no rule allows is refused.
package egress

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/api"
)

// A Policy has the compiled rules of the entitlements that a caller may use. It is
// immutable and safe for concurrent use.
type Policy struct {
	exact    map[origin][]*rule // rules by the origins that they name
	wildcard map[origin][]*rule // rules by the origins after "*."
	grants   map[string]*grant
}

// A grant has the compiled rules of one entitlement.
type grant struct {
	name     string
	approval bool // policy demands approval
	egress   api.Egress
	limits   limits
}

type limits struct {
	request, answer int64
	total, idle     time.Duration
}

type rule struct {
	grant     *grant
	hosts     []hostPattern
	methods   []string
	paths     []pathPattern
	query     []string // nil: any that carries no credential
	headers   *headerNames
	websocket bool
	networks  []netip.Prefix
	pool      string // names the connections that calls under the rule may use
}

type hostPattern struct {
	origin
	wildcard bool
}

// Compile compiles the rules of the offers that have some.
func Compile(offers []api.Offer) (*Policy, error) {
	p := &Policy{exact: map[origin][]*rule{}, wildcard: map[origin][]*rule{}, grants: map[string]*grant{}}
	for i := range offers {
		if offers[i].Egress == nil {
			continue
		}
		if err := p.add(&offers[i]); err != nil {
			return nil, fmt.Errorf("reading the egress rules of %s: %w", offers[i].Entitlement, err)
		}
	}
	return p, nil
}

func (p *Policy) add(o *api.Offer) (err error) {
	e := o.Egress
	Check(e, func(key, text string) {
		if err == nil {
			err = fmt.Errorf("%s: %s", key, text)
		}
	})
	if err != nil {
		return err
	}
	g := &grant{name: o.Entitlement, approval: needsApproval(o), egress: *e, limits: limits{
		request: e.MaxRequest, answer: e.MaxAnswer, total: time.Duration(e.Timeout), idle: time.Duration(e.IdleTimeout),
	}}
	p.grants[g.name] = g
	for i := range e.Allow {
		r := compileRule(&e.Allow[i], func(string, string) {})
		r.grant = g
		r.pool = fmt.Sprint(g.name, " ", r.networks)
		for _, h := range r.hosts {
			index := p.exact
			if h.wildcard {
				index = p.wildcard
			}
			index[h.origin] = append(index[h.origin], r)
		}
	}
	return nil
}

// needsApproval reports whether each part of an offer needs approval.
func needsApproval(o *api.Offer) bool {
	waits := func(d *api.Decision) bool {
		return d != nil && d.Obligations != nil && len(d.Obligations.Approvals) > 0
	}
	if o.Decision != nil {
		return waits(o.Decision)
	}
	return len(o.Scopes) > 0 && !slices.ContainsFunc(o.Scopes, func(s api.ScopeOffer) bool { return !waits(&s.Decision) })
}

// Entitlements returns the names of the entitlements with rules, in order.
func (p *Policy) Entitlements() (names []string) {
	for name := range p.grants {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Rules returns the rules of an entitlement.
func (p *Policy) Rules(entitlement string) (api.Egress, bool) {
	g := p.grants[entitlement]
	if g == nil {
		return api.Egress{}, false
	}
	return g.egress, true
}

// Hosts returns the hosts that rules name, in order, with their ports where these are not
// the default.
func (p *Policy) Hosts() (hosts []string) {
	for o := range p.exact {
		hosts = append(hosts, o.authority())
	}
	for o := range p.wildcard {
		hosts = append(hosts, "*."+o.authority())
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// MatchHost reports whether some rule names a scheme, a host and a port, as CONNECT has the
// latter. The calls inside of the tunnel are checked by Match.
func (p *Policy) MatchHost(scheme, hostport string) bool {
	host, port, refusal := splitAuthority(hostport, defaultPort(scheme))
	return refusal == nil && len(p.rulesOf(origin{scheme, host, port})) > 0
}

// A Target is a call as it will be sent.
type Target struct {
	Scheme      string // https or http
	Host        string // with the port, if it is not the default
	Path        string // percent-encoded
	Query       string
	Entitlement string

	origin origin
	rule   *rule
}

// URL returns the URL that the call is sent to.
func (t Target) URL() string {
	if t.Query == "" {
		return t.Scheme + "://" + t.Host + t.Path
	}
	return t.Scheme + "://" + t.Host + t.Path + "?" + t.Query
}

// Match returns the entitlement whose rules allow a call, and the target of the call. The
// error is a *Refusal. If several entitlements allow the call, Match prefers one whose
// policy demands no approval, then the first by name.
func (p *Policy) Match(method, rawURL string, h http.Header) (entitlement string, target Target, err error) {
	target, refusal := p.match(call{method: method, url: rawURL, header: h}, nil)
	if refusal != nil {
		return "", Target{}, refusal
	}
	return target.Entitlement, target, nil
}

// A call is what a caller wants to be called.
type call struct {
	method      string
	url         string
	header      http.Header
	entitlement string // empty: any
	websocket   bool
}

// match prefers an entitlement of which the edge holds a lease over all others.
func (p *Policy) match(c call, holds func(entitlement string) bool) (t Target, err *Refusal) {
	o, rawPath, query, err := splitURL(c.url)
	if err != nil {
		return t, err
	}
	path, err := canonicalize(rawPath)
	if err != nil {
		return t, err
	}
	if err := checkHeader(c.header); err != nil {
		return t, err
	}
	var best *rule
	var closest *Refusal
	for _, r := range p.rulesOf(o) {
		if c.entitlement != "" && r.grant.name != c.entitlement {
			continue
		}
		if refusal := r.check(c, path.segments, query); refusal != nil {
			if closest == nil || rank(refusal.Code) >= rank(closest.Code) {
				closest = refusal
			}
			continue
		}
		if best == nil || before(r.grant, best.grant, holds) {
			best = r
		}
	}
	switch {
	case best == nil && closest == nil:
		return t, refuse(CodeHost, p.nextHosts(), "No rule allows calls to %s", clip(o.authority()))
	case best == nil && closest.Code == CodeMethod:
		return t, p.refuseMethod(c, o, path.segments)
	case best == nil:
		return t, closest
	}
	t = Target{Scheme: o.scheme, Host: o.authority(), Path: path.sent, Query: query, Entitlement: best.grant.name, origin: o, rule: best}
	if best.grant.egress.Inject.As == api.InjectSigV4 {
		t.Path = escapeForAWS(path.segments)
	}
	return t, nil
}

// before reports whether a grant is preferred over another one.
func before(a, b *grant, holds func(string) bool) bool {
	if a == b {
		return false
	}
	if holds != nil && holds(a.name) != holds(b.name) {
		return holds(a.name)
	}
	if a.approval != b.approval {
		return !a.approval
	}
	return a.name < b.name
}

// rulesOf returns the rules that name an origin.
func (p *Policy) rulesOf(o origin) []*rule {
	rules := p.exact[o]
	if _, parent, ok := strings.Cut(o.host, "."); ok && len(p.wildcard) > 0 {
		if more := p.wildcard[origin{o.scheme, parent, o.port}]; len(more) > 0 {
			rules = slices.Concat(rules, more)
		}
	}
	return rules
}

// check returns why a rule does not allow a call to its host.
func (r *rule) check(c call, path []string, query string) *Refusal {
	if !slices.Contains(r.methods, c.method) {
		return &Refusal{Code: CodeMethod} // refuseMethod states what all rules allow
	}
	if !r.matches(path) {
		return refuse(CodePath, "use a path that the rules of the entitlement list", "No rule allows this path with %s", c.method)
	}
	if c.websocket && !r.websocket {
		return refuse(CodeWebSocket, "call without an upgrade", "No rule allows a WebSocket for this path")
	}
	return checkQuery(query, r.query)
}

// refuseMethod refuses a method that no rule of the host allows. The advice is the methods
// of the rules that match the path, or, without one, of all rules of the host.
func (p *Policy) refuseMethod(c call, o origin, path []string) *Refusal {
	var ofHost, ofPath []string
	for _, r := range p.rulesOf(o) {
		if c.entitlement != "" && r.grant.name != c.entitlement {
			continue
		}
		ofHost = append(ofHost, r.methods...)
		if r.matches(path) {
			ofPath = append(ofPath, r.methods...)
		}
	}
	if len(ofPath) > 0 {
		return refuse(CodeMethod, "use "+oneOf(ofPath), "No rule allows %s for this host and path", clip(c.method))
	}
	return refuse(CodeMethod, "use "+oneOf(ofHost), "No rule allows %s for this host", clip(c.method))
}

// oneOf names alternatives, each once.
func oneOf(names []string) string {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	if len(names) == 1 {
		return names[0]
	}
	return "one of " + strings.Join(names, ", ")
}

// matches reports whether a rule names a path.
func (r *rule) matches(path []string) bool {
	return slices.ContainsFunc(r.paths, func(p pathPattern) bool { return p.match(path) })
}

// rank orders refusals by how much of a rule matched.
func rank(code string) int {
	return slices.Index([]string{CodeHost, CodeMethod, CodePath, CodeWebSocket, CodeQuery}, code)
}

// nextHosts returns the advice for a host that no rule names.
func (p *Policy) nextHosts() string {
	const most = 10
	hosts := p.Hosts()
	switch {
	case len(hosts) == 0:
		return "none of your entitlements has rules for calls; ask the operator of the broker for them"
	case len(hosts) > most:
		return "call one of " + strings.Join(hosts[:most], ", ") + " or another host of your entitlements' rules"
	}
	return "call one of " + strings.Join(hosts, ", ")
}

// clip shortens a text of the caller for a message.
func clip(text string) string {
	const most = 100
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text[:min(len(text), most)])
	return text
}
