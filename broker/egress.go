package broker

import (
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// Egress are the rules under which the credential of an entitlement may be used in calls
// that an edge makes for its holder. Package egress enforces them.
type Egress struct {
	Inject      Injection
	Allow       []EgressRule
	Record      bool  // each call is a record before it is made
	MaxRequest  int64 // bytes of a body
	MaxAnswer   int64
	Timeout     time.Duration // of a call, including all of its answer
	IdleTimeout time.Duration // without a byte from the other side
}

// An Injection is the form in which a call carries the credential.
type Injection struct{ As, Field, Username, Password, Name, Prefix, Service, Region string }

// An EgressRule allows calls. A call must match one rule in all of its parts.
type EgressRule struct {
	Hosts, Methods, Paths []string
	Query                 []string // nil: any parameters that carry no credential
	Headers               []string
	WebSocket             bool
	Addresses             []string
}

// Bounds of what approvers read about the rules.
const (
	maxDescribed     = 20  // rules
	maxDescribedText = 500 // bytes of one
)

// describe returns the calls that the rules allow, for approvers.
func (e *Egress) describe() string {
	lines := []string{"calls through broker proxy and call_api:"}
	for i := range e.Allow {
		if i == maxDescribed {
			lines = append(lines, "  and those of "+strconv.Itoa(len(e.Allow)-i)+" more rules")
			break
		}
		r := &e.Allow[i]
		line := strings.Join(r.Methods, ", ") + " " + strings.Join(r.Paths, ", ") + " on " + strings.Join(r.Hosts, ", ")
		if len(line) > maxDescribedText {
			line = strings.ToValidUTF8(line[:maxDescribedText], "") + "…"
		}
		lines = append(lines, "  "+line)
	}
	return strings.Join(lines, "\n")
}

// Digest returns the digest of the rules. It is part of the entitlement's effect, so that
// approvals of other rules do not apply.
func (e *Egress) Digest() audit.Digest {
	in := &e.Inject
	o := audit.NewObject().
		String("as", in.As).String("field", in.Field).String("username", in.Username).String("password", in.Password).
		String("name", in.Name).String("prefix", in.Prefix).String("service", in.Service).String("region", in.Region).
		String("record", strconv.FormatBool(e.Record)).
		String("max_request", strconv.FormatInt(e.MaxRequest, 10)).String("max_answer", strconv.FormatInt(e.MaxAnswer, 10)).
		Seconds("timeout", e.Timeout).Seconds("idle_timeout", e.IdleTimeout)
	rules := make([]string, len(e.Allow))
	for i := range e.Allow {
		rules[i] = e.Allow[i].digest().String()
	}
	return audit.HashObject("accessbroker/egress/v1", o.StringList("allow", rules))
}

func (r *EgressRule) digest() audit.Digest {
	return audit.HashObject("accessbroker/egress-rule/v1", audit.NewObject().
		StringList("hosts", r.Hosts).StringList("methods", r.Methods).StringList("paths", r.Paths).
		String("any_query", strconv.FormatBool(r.Query == nil)).StringList("query", r.Query).
		StringList("headers", r.Headers).String("websocket", strconv.FormatBool(r.WebSocket)).StringList("addresses", r.Addresses))
}
