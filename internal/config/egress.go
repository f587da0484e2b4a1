package config

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/egress"
)

type egressFile struct {
	Inject      injectFile       `yaml:"inject"`
	Allow       []egressRuleFile `yaml:"allow"`
	Record      bool             `yaml:"record"`
	MaxRequest  size             `yaml:"max_request"`
	MaxAnswer   size             `yaml:"max_answer"`
	Timeout     duration         `yaml:"timeout"`
	IdleTimeout duration         `yaml:"idle_timeout"`
}

type injectFile struct {
	As       string `yaml:"as"`
	Field    string `yaml:"field"`
	Username string `yaml:"username"`
	Password string `yaml:"password"`
	Name     string `yaml:"name"`
	Prefix   string `yaml:"prefix"`
	Service  string `yaml:"service"`
	Region   string `yaml:"region"`
}

type egressRuleFile struct {
	Hosts     []string `yaml:"hosts"`
	Methods   []string `yaml:"methods"`
	Paths     []string `yaml:"paths"`
	Query     []string `yaml:"query"`
	Headers   []string `yaml:"headers"`
	WebSocket bool     `yaml:"websocket"`
	Addresses []string `yaml:"addresses"`
}

// A size is a number of bytes, such as "10MiB".
type size int64

// units are the suffixes of sizes, with the binary logarithms of what they stand for.
var units = []struct {
	suffix string
	shift  int
}{{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}, {"", 0}}

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (s *size) UnmarshalYAML(node ast.Node) error {
	text := node.GetToken().Value
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n <= 0 || n > math.MaxInt64>>u.shift {
			break
		}
		*s = size(n << u.shift)
		return nil
	}
	return &yaml.SyntaxError{Message: `a size is a positive number of bytes, such as 65536, "64KiB", "10MiB" or "2GiB"`, Token: node.GetToken()}
}

// egress checks the rules under which an edge may use the credential of an entitlement.
func (c *checker) egress(key string, f *egressFile, issuer Issuer, e *broker.Entitlement) *broker.Egress {
	if f == nil {
		return nil
	}
	out := &broker.Egress{
		Inject: broker.Injection(f.Inject), Record: f.Record,
		MaxRequest: int64(cmp.Or(f.MaxRequest, egress.DefaultMaxRequest)), MaxAnswer: int64(cmp.Or(f.MaxAnswer, egress.DefaultMaxAnswer)),
		Timeout: time.Duration(cmp.Or(f.Timeout, duration(egress.DefaultTimeout))), IdleTimeout: time.Duration(cmp.Or(f.IdleTimeout, duration(egress.DefaultIdle))),
	}
	for _, rule := range f.Allow {
		r := broker.EgressRule(rule)
		if r.Methods == nil {
			r.Methods = []string{"GET", "HEAD"}
		}
		r.Headers, r.Addresses = neverNil(r.Headers), neverNil(r.Addresses)
		out.Allow = append(out.Allow, r)
	}
	egress.Check(egress.RulesOf(out), func(at, text string) { c.report(key+"/"+at, "%s", text) })
	c.injection(key, out.Inject.As, issuer, e)
	return out
}

// injection checks that the credential of an entitlement fits into a call.
func (c *checker) injection(key, as string, issuer Issuer, e *broker.Entitlement) {
	switch {
	case issuer.Joins():
		c.report(key, "a membership is no credential that a call could carry: remove this key")
	case e.Binding != broker.BindingNone:
		c.report(key, "a call can't carry a token that is bound to a key of its holder: write binding: none, or remove this key")
	case issuer.Token != nil && !slices.Contains([]string{api.InjectBearer, api.InjectHeader}, as):
		c.report(key+"/inject/as", "a token is sent as bearer or header")
	case issuer.AWS != nil && as != api.InjectSigV4:
		c.report(key+"/inject/as", "keys of AWS are never sent: write aws-sigv4")
	}
}
