package mcp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
)

type listArguments struct {
	Entitlement string `json:"entitlement,omitempty" jsonschema:"the exact name of one entitlement; omit it for all"`
	Search      string `json:"search,omitempty" jsonschema:"words that the name, the description or a scope contains"`
}

// A Listing is the result of list_access.
type Listing struct {
	Caller       string        `json:"caller" jsonschema:"the identity that the broker sees, and whose access this is"`
	Summary      string        `json:"summary"`
	Next         string        `json:"next" jsonschema:"what to do next"`
	Entitlements []Entitlement `json:"entitlements" jsonschema:"in the order of their names"`
	More         int           `json:"more,omitempty" jsonschema:"how many further entitlements fit but were left out; narrow the search"`
}

// An Entitlement is one kind of access that the caller may request.
type Entitlement struct {
	Name       string               `json:"name"`
	Scopes     []Scope              `json:"scopes,omitempty" jsonschema:"name at least one in request_access, unless one is a default"`
	Allowed    string               `json:"allowed,omitempty" jsonschema:"for an entitlement without scopes: as for a scope"`
	Conditions []string             `json:"conditions,omitempty" jsonschema:"for an entitlement without scopes"`
	Obligation *api.Obligations     `json:"obligations,omitempty" jsonschema:"the conditions, as structure"`
	Parameters map[string]Parameter `json:"parameters,omitempty"`

	NeedsDetails bool                  `json:"needs_details,omitempty" jsonschema:"for an entitlement without scopes: as for a scope"`
	DetailTypes  map[string]DetailType `json:"authorization_details_types,omitempty" jsonschema:"the types of fine grants that request_access takes in authorization_details"`

	DefaultTTL string  `json:"default_ttl,omitempty" jsonschema:"how long a credential is valid if request_access has no ttl"`
	MaxTTL     string  `json:"max_ttl,omitempty"`
	Binding    string  `json:"binding,omitempty" jsonschema:"the proof of possession that the credential needs"`
	Revocation string  `json:"revocation,omitempty" jsonschema:"the effect of release_access on a credential: immediate, at_expiry, at_rotation or never"`
	Audience   string  `json:"audience,omitempty" jsonschema:"the resource that accepts the credential"`
	Blocked    bool    `json:"blocked,omitempty" jsonschema:"an operator has stopped all use"`
	Calls      []Call  `json:"calls,omitempty" jsonschema:"the calls that call_api can make with this entitlement"`
	Quotes     []Quote `json:"quotes,omitempty"`
}

// A Call is a kind of calls that call_api can make.
type Call struct {
	Hosts   []string `json:"hosts"`
	Methods []string `json:"methods"`
	Paths   []string `json:"paths" jsonschema:"* matches within one segment, ** the rest"`
	Query   []string `json:"query,omitempty" jsonschema:"the only parameters of the query; any if absent"`
	Headers []string `json:"headers,omitempty" jsonschema:"headers that are sent, in addition to the usual ones"`
}

// callRules returns the rules of an entitlement for a model.
func callRules(e *api.Egress) (list []Call) {
	if e == nil {
		return nil
	}
	for _, r := range e.Allow {
		list = append(list, Call{Hosts: r.Hosts, Methods: r.Methods, Paths: r.Paths, Query: r.Query, Headers: r.Headers})
	}
	return list
}

func (c Call) words() string {
	return strings.Join(c.Methods, ", ") + " of " + strings.Join(c.Paths, ", ") + " on " + strings.Join(c.Hosts, ", ")
}

// A Scope is one part of an entitlement.
type Scope struct {
	Name         string           `json:"name"`
	Default      bool             `json:"default,omitempty" jsonschema:"granted if request_access names no scope"`
	Allowed      string           `json:"allowed" jsonschema:"yes, no, with_details: only with fine grants that policy permits, or emergency: only people may use it, in an emergency"`
	NeedsDetails bool             `json:"needs_details,omitempty" jsonschema:"request_access needs authorization_details; policy decides on each element"`
	Conditions   []string         `json:"conditions,omitempty" jsonschema:"none: granted at once"`
	Obligation   *api.Obligations `json:"obligations,omitempty" jsonschema:"the conditions, as structure"`
	Quotes       []Quote          `json:"quotes,omitempty"`
}

// A Parameter is a value of a request that the entitlement asks for.
type Parameter struct {
	Required  bool    `json:"required,omitempty"`
	Pattern   string  `json:"pattern,omitempty" jsonschema:"a regular expression for the whole value"`
	MaxLength int     `json:"max_length,omitempty"`
	Quotes    []Quote `json:"quotes,omitempty"`
}

// maxListed bounds the entitlements of one answer, so that it fits into a model's context.
const maxListed = 100

func addListAccess(s *Server) {
	add(s, tool("list_access", "List access", `List what you may request from Access Broker, and under which conditions. Call it before request_access, to learn the exact names of entitlements and scopes. It changes nothing and grants nothing.`,
		sdk.ToolAnnotations{ReadOnlyHint: true, IdempotentHint: true}), listAccess)
}

func listAccess(ctx context.Context, c *call, in listArguments) (*Listing, error) {
	offers, err := c.Entitlements(ctx)
	if err != nil {
		return nil, err
	}
	out, calls := &Listing{Caller: c.who.ID, Entitlements: []Entitlement{}}, false
	slices.SortFunc(offers, func(a, b api.Offer) int { return cmp.Compare(a.Entitlement, b.Entitlement) })
	for _, o := range offers {
		switch {
		case !in.fits(o):
		case len(out.Entitlements) == maxListed:
			out.More++
		default:
			e := entitlementOf(o)
			if c.s.calls != nil {
				e.Calls = callRules(o.Egress)
				calls = calls || len(e.Calls) > 0
			}
			out.Entitlements = append(out.Entitlements, e)
		}
	}
	out.Summary, out.Next = out.summarize(in)
	if calls {
		out.Next += " To call an API of one, call call_api at once: it requests what it needs."
	}
	return out, nil
}

// fits reports whether the arguments select an offer.
func (in listArguments) fits(o api.Offer) bool {
	if in.Entitlement != "" && in.Entitlement != o.Entitlement {
		return false
	}
	text := strings.ToLower(o.Entitlement + " " + o.Description)
	for _, s := range o.Scopes {
		text += " " + strings.ToLower(s.Scope+" "+s.Description)
	}
	for word := range strings.FieldsSeq(strings.ToLower(in.Search)) {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

func (l *Listing) summarize(in listArguments) (summary, next string) {
	switch n := len(l.Entitlements); {
	case n == 0 && in != (listArguments{}):
		return "Nothing that you may request fits these arguments.", "Call list_access without arguments for everything that you may request."
	case n == 0:
		return "You may request nothing: policy permits no entitlement to you.", stop
	case n == 1:
		summary = "You may request 1 entitlement."
	default:
		summary = fmt.Sprintf("You may request %d entitlements.", n)
	}
	return summary, "To use one, call request_access with its name, the scopes that your task needs and no more, and what its conditions ask for."
}

func entitlementOf(o api.Offer) Entitlement {
	e := Entitlement{
		Name: o.Entitlement, Binding: o.Binding, Revocation: o.Revocation, Audience: o.Audience, Blocked: o.Blocked,
		Quotes: quote(nil, "operator", o.Description),
	}
	if o.DefaultTTL > 0 {
		e.DefaultTTL = o.DefaultTTL.String()
	}
	if o.MaxTTL > 0 {
		e.MaxTTL = o.MaxTTL.String()
	}
	if o.Decision != nil {
		e.Allowed, e.Conditions, e.Obligation = allowed(o.Decision.Permit, false, o.NeedsDetails), conditions(o.Decision.Obligations), o.Decision.Obligations
		e.Quotes, e.NeedsDetails = reasons(e.Quotes, o.Decision), o.NeedsDetails
	}
	for _, s := range o.Scopes {
		e.Scopes = append(e.Scopes, Scope{
			Name: s.Scope, Default: s.Default, Allowed: allowed(s.Decision.Permit, s.BreakGlassOnly, s.NeedsDetails), NeedsDetails: s.NeedsDetails,
			Conditions: conditions(s.Decision.Obligations), Obligation: s.Decision.Obligations,
			Quotes: reasons(quote(nil, "operator", s.Description), &s.Decision),
		})
	}
	slices.SortStableFunc(e.Scopes, func(a, b Scope) int { return cmp.Compare(a.Name, b.Name) })
	for name, p := range o.Parameters {
		if e.Parameters == nil {
			e.Parameters = map[string]Parameter{}
		}
		e.Parameters[name] = Parameter{Required: p.Required, Pattern: p.Pattern, MaxLength: p.MaxLength, Quotes: quote(nil, "operator", p.Description)}
	}
	e.DetailTypes = detailTypes(o.DetailTypes)
	return e
}

// reasons adds the texts of the policies that decided.
func reasons(list []Quote, d *api.Decision) []Quote {
	for _, reason := range d.Reasons {
		list = quote(list, "policy", reason)
	}
	return list
}

func allowed(permit, emergency, details bool) string {
	switch {
	case permit:
		return "yes"
	case details:
		return withDetails
	case emergency:
		return "emergency"
	}
	return "no"
}

// withDetails means that policy refuses a request without authorization_details, and may
// permit one with them.
const withDetails = "with_details"

func (l *Listing) words() string {
	var b strings.Builder
	fmt.Fprintf(&b, "You are %s. %s\n", quoted(l.Caller), l.Summary)
	for _, e := range l.Entitlements {
		fmt.Fprintf(&b, "\n%s", e.Name)
		if e.MaxTTL != "" {
			fmt.Fprintf(&b, " (a credential is valid for at most %s)", e.MaxTTL)
		}
		if e.Blocked {
			b.WriteString(": blocked by an operator; do not request it")
		}
		if e.Allowed != "" {
			writeAllowed(&b, e.Allowed, e.Conditions)
		}
		for _, s := range e.Scopes {
			fmt.Fprintf(&b, "\n- scope %s", s.Name)
			if s.Default {
				b.WriteString(" (default)")
			}
			writeAllowed(&b, s.Allowed, s.Conditions)
		}
		for _, name := range slices.Sorted(maps.Keys(e.Parameters)) {
			fmt.Fprintf(&b, "\n- parameter %s", name)
			if e.Parameters[name].Required {
				b.WriteString(" (required)")
			}
		}
		for _, c := range e.Calls {
			b.WriteString("\n- call_api: " + c.words())
		}
		for _, name := range slices.Sorted(maps.Keys(e.DetailTypes)) {
			b.WriteString("\n- " + typeInWords(name, e.DetailTypes[name].Schema))
		}
	}
	if l.More > 0 {
		fmt.Fprintf(&b, "\n\n%d more were left out: narrow the search.", l.More)
	}
	fmt.Fprintf(&b, "\n\nNext: %s", l.Next)
	return b.String()
}

func writeAllowed(b *strings.Builder, allowed string, conditions []string) {
	switch {
	case allowed == "emergency":
		b.WriteString(": only in an emergency that a person declares; you cannot request it")
	case allowed == withDetails:
		b.WriteString(": needs authorization_details; policy decides on each element")
	case allowed != "yes":
		b.WriteString(": refused")
	case len(conditions) == 0:
		b.WriteString(": granted at once")
	default:
		b.WriteString(": " + strings.Join(conditions, "; "))
	}
}
