package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictyaml"
)

// scenarioSuffix ends the names of scenario files, which are in the policy
// folder:
//
//	scenarios:
//	  - name: triage may read tickets            # required
//	    principal: spiffe://acme.test/agent/triage # required; or login/ana
//	    attested: oidc                           # of a workload; default: spiffe, unless its trust domain has no SVIDs
//	    action: request                          # the default
//	    entitlement: tickets-api                 # required for request, view, revoke and approve
//	    scopes: [tickets:read]
//	    ttl: 10m                                 # default: the entitlement's
//	    duration: 1h                             # default: the entitlement's collect_within, or 1h
//	    justification: customer is waiting
//	    ticket: INC-1
//	    parameters: {prefix: acme}
//	    authorization_details: [{type: ticket, actions: [read]}] # as in JSON
//	    requester: spiffe://acme.test/agent/x    # required for view, revoke and approve
//	    on_behalf_of: login/ana                  # the principal acts for this person or workload
//	    depth: 2                                 # with on_behalf_of; default: 1
//	    source_ip: 10.0.0.1                      # default: unknown
//	    break_glass: true                        # default: false
//	    now: 2026-01-31T12:00:00Z                # default: 2026-01-01T12:00:00Z
//	    expect: permit                           # or deny; required
//	    policies: [agents-read-tickets]          # exactly the determining policies; default: any
//	    reasons: [support agents may read]       # exactly these, in the order of policies; default: any
//	    obligations:                             # exactly these; default: any
//	      approval: 1 of support                 # the owner's group instead of "owner"
//	      deny: "2"                              # also exclude_team, comment, signed, lapse_after, escalate
//	      review: 1 of security                  # from break_glass; also review_within
//	      max_ttl: 10m
//	      max_duration: 8h
//	      justification: required
//	      ticket: ["INC-[0-9]+"]
//	      limit: {agents-read-tickets: 120 per 1h}
//	      max_active: {agents-read-tickets: 5}
//	      supplier: assessed_within=365d, max_risk=medium
//	      delegates: "2"
//
// A scenario tests policy alone. The broker enforces obligations: a scenario
// does not fail if its ttl exceeds max_ttl.
const scenarioSuffix = "_test.yaml"

// ErrNoScenario means that the folder has no scenario. Test returns it, because
// a run that tests nothing must not pass.
var ErrNoScenario = errors.New("the policy folder has no scenario: add some in files named *" + scenarioSuffix)

var scenarioNow = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// scenarioFile is one YAML document.
type scenarioFile struct {
	Scenarios []scenario `yaml:"scenarios"`
}

// A scenario is a scenarioText with its line and its parsed times.
type scenario struct {
	scenarioText
	line          int
	ttl, duration time.Duration
	now           time.Time
}

type scenarioText struct {
	Name          string            `yaml:"name"`
	Principal     string            `yaml:"principal"`
	Attested      string            `yaml:"attested"`
	Action        broker.Action     `yaml:"action"`
	Entitlement   string            `yaml:"entitlement"`
	Scopes        []string          `yaml:"scopes"`
	TTL           string            `yaml:"ttl"`
	Duration      string            `yaml:"duration"`
	Justification string            `yaml:"justification"`
	Ticket        string            `yaml:"ticket"`
	Parameters    map[string]string `yaml:"parameters"`
	Details       []detailText      `yaml:"authorization_details"`
	Requester     string            `yaml:"requester"`
	OnBehalfOf    string            `yaml:"on_behalf_of"`
	Depth         int               `yaml:"depth"`
	SourceIP      netip.Addr        `yaml:"source_ip"`
	BreakGlass    bool              `yaml:"break_glass"`
	Now           string            `yaml:"now"`
	Expect        string            `yaml:"expect"`
	Policies      *[]string         `yaml:"policies"`
	Reasons       *[]string         `yaml:"reasons"`
	Obligations   *obligationsText  `yaml:"obligations"`
}

// obligationsText holds obligations in the notation of their annotations.
type obligationsText struct {
	Approval       string            `yaml:"approval"`
	Deny           string            `yaml:"deny"`
	ExcludeTeam    string            `yaml:"exclude_team"`
	Comment        string            `yaml:"comment"`
	SilentDenial   string            `yaml:"silent_denial"`
	Signed         string            `yaml:"signed"`
	LapseAfter     string            `yaml:"lapse_after"`
	Escalate       string            `yaml:"escalate"`
	Review         string            `yaml:"review"`
	ReviewWithin   string            `yaml:"review_within"`
	MaxTTL         string            `yaml:"max_ttl"`
	MaxDuration    string            `yaml:"max_duration"`
	Justification  string            `yaml:"justification"`
	Ticket         []string          `yaml:"ticket"`
	TicketState    []string          `yaml:"ticket_state"`
	TicketAssignee []string          `yaml:"ticket_assignee"`
	ChangeWindow   string            `yaml:"change_window"`
	Limit          map[string]string `yaml:"limit"`
	MaxActive      map[string]string `yaml:"max_active"`
	Supplier       string            `yaml:"supplier"`
	Delegates      string            `yaml:"delegates"`
}

// UnmarshalYAML decodes a scenario and stores its line.
func (s *scenario) UnmarshalYAML(node ast.Node) error {
	s.line = node.GetToken().Position.Line
	return yaml.NodeToValue(node, &s.scenarioText, yaml.Strict())
}

// A Report is the result of running scenarios.
type Report struct {
	Ran      int       `json:"ran"`
	Failures []Failure `json:"failures,omitempty"`
}

// A Failure is a scenario whose decision differs from the expected one.
type Failure struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Name string `json:"name"`
	Text string `json:"text"` // expected, got and the verdicts of policies; several lines
}

// String returns the report as text.
func (r Report) String() string {
	var b strings.Builder
	for _, f := range r.Failures {
		fmt.Fprintf(&b, "%s:%d: %s\n", f.File, f.Line, f.Name)
		for line := range strings.Lines(f.Text) {
			b.WriteString("    " + line)
		}
	}
	fmt.Fprintf(&b, "%d scenarios, %d failed\n", r.Ran, len(r.Failures))
	return b.String()
}

// Test runs the scenarios in a folder, which need not be the policy folder. It
// returns an error if a scenario file is malformed or no scenario exists
// (ErrNoScenario). Scenarios that fail are in the report.
func Test(ctx context.Context, e *Engine, fsys fs.FS) (Report, error) {
	dir, err := readFolder(fsys)
	if err != nil {
		return Report{}, err
	}
	var r Report
	for _, name := range dir.scenarios {
		scenarios, err := readScenarios(fsys, name)
		if err != nil {
			return Report{}, err
		}
		for _, s := range scenarios {
			r.Ran++
			if text := e.run(ctx, s); text != "" {
				r.Failures = append(r.Failures, Failure{name, s.line, s.Name, text})
			}
		}
	}
	if r.Ran == 0 {
		return r, ErrNoScenario
	}
	return r, nil
}

// readScenarios reads and checks one scenario file. A malformed scenario fails the
// whole run, so that it can't be mistaken for one that passed.
func readScenarios(fsys fs.FS, name string) ([]scenario, error) {
	src, err := readSource(fsys, name)
	if err != nil {
		return nil, fmt.Errorf("reading scenarios: %w", err)
	}
	all, err := decodeScenarios(src)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if err := all[i].check(); err != nil {
			return nil, &Problem{File: name, Line: all[i].line, Column: 1, Text: err.Error()}
		}
	}
	return all, nil
}

// decodeScenarios reads every YAML document of the file. If it read only the
// first, the other scenarios would seem to pass.
func decodeScenarios(src *source) (all []scenario, err error) {
	roots, err := strictyaml.Parse(src.text)
	if err != nil {
		return nil, scenarioProblem(src, err)
	}
	for _, root := range roots {
		switch root.(type) {
		case nil, *ast.NullNode, *ast.CommentGroupNode:
			continue
		}
		root, errs := strictyaml.Settle(root, reflect.TypeFor[scenarioFile]())
		if len(errs) > 0 {
			return nil, scenarioProblem(src, errs[0])
		}
		var f scenarioFile
		if err := strictyaml.Decode(root, &f); err != nil {
			return nil, scenarioProblem(src, err)
		}
		all = append(all, f.Scenarios...)
	}
	return all, nil
}

func scenarioProblem(src *source, err error) error {
	p := yamlProblem(src, err)
	return &p
}

func (s *scenario) check() error {
	switch {
	case s.Name == "":
		return errors.New("the scenario has no name: add name")
	case s.Principal == "":
		return errors.New("the scenario has no principal: add principal")
	case s.Expect != "permit" && s.Expect != "deny":
		return fmt.Errorf("expect: %q: write permit or deny", s.Expect)
	case s.Depth != 0 && s.OnBehalfOf == "":
		return errors.New("depth: the principal acts for itself: add on_behalf_of")
	case s.Expect == "deny" && s.Obligations != nil:
		return errors.New("a denial has no obligations: remove obligations")
	}
	_, err := s.obligations()
	return errors.Join(err, s.parseTimes())
}

// parseTimes parses times and durations. The YAML library would decode malformed
// ones as zero.
func (s *scenario) parseTimes() (err error) {
	s.now = scenarioNow
	if s.Now != "" {
		if s.now, err = time.Parse(time.RFC3339, s.Now); err != nil {
			return fmt.Errorf("now: %q: write a time such as 2026-01-31T12:00:00Z", s.Now)
		}
	}
	if s.TTL != "" {
		if s.ttl, err = parseDuration(s.TTL); err != nil {
			return fmt.Errorf("ttl: %w", err)
		}
	}
	if s.Duration != "" {
		if s.duration, err = parseDuration(s.Duration); err != nil {
			return fmt.Errorf("duration: %w", err)
		}
	}
	return nil
}

// obligations returns the expected obligations in the format of describe, sorted. It
// parses them with the parsers of the annotations.
func (s *scenario) obligations() ([]string, error) {
	if s.Obligations == nil {
		return nil, nil
	}
	o := s.Obligations
	items := []struct{ name, value, policy string }{
		{"approval", o.Approval, ""}, {"deny", o.Deny, ""}, {"exclude_team", o.ExcludeTeam, ""}, {"comment", o.Comment, ""}, {"silent_denial", o.SilentDenial, ""},
		{"signed", o.Signed, ""}, {"lapse_after", o.LapseAfter, ""}, {"escalate", o.Escalate, ""}, {"review", o.Review, ""},
		{"review_within", o.ReviewWithin, ""},
		{"max_ttl", o.MaxTTL, ""}, {"max_duration", o.MaxDuration, ""}, {"justification", o.Justification, ""},
		{"supplier", o.Supplier, ""},
		{"change_window", o.ChangeWindow, ""}, {"delegates", o.Delegates, ""},
	}
	for name, values := range map[string][]string{"ticket": o.Ticket, "ticket_state": o.TicketState, "ticket_assignee": o.TicketAssignee} {
		for _, value := range values {
			items = append(items, struct{ name, value, policy string }{name, value, ""})
		}
	}
	for id, v := range o.Limit {
		items = append(items, struct{ name, value, policy string }{"limit", v, id})
	}
	for id, v := range o.MaxActive {
		items = append(items, struct{ name, value, policy string }{"max_active", v, id})
	}
	var sum broker.Obligations
	for _, i := range items {
		if i.value == "" {
			continue
		}
		t := annotations{id: i.policy}
		if err := t.expect(i.name, i.value); err != nil {
			return nil, fmt.Errorf("obligations: %s: %w", i.name, err)
		}
		t.setPolicy()
		silent := sum.SilentDenial || t.SilentDenial // And takes each item for a permit of its own
		delegates := max(sum.Delegates, t.Delegates)
		sum = sum.And(t.Obligations)
		sum.SilentDenial, sum.Delegates = silent, delegates
	}
	return slices.Sorted(slices.Values(describe(sum))), nil
}

// expect parses one expected obligation. Each has the notation of its
// annotation, except review, which has that of @approval.
func (t *annotations) expect(name, value string) error {
	if name != "review" {
		return t.parse(name, value, true)
	}
	err := parseApproval(t, value)
	t.Review, t.Approvals = t.Approvals, nil
	return err
}

// run returns how the decision differs from the expected one, or "" if it does
// not.
func (e *Engine) run(ctx context.Context, s scenario) string {
	q, err := e.scenarioQuery(s)
	if err != nil {
		return err.Error() + "\n"
	}
	d, err := e.decideBoth(ctx, q, s.now)
	if err != nil {
		return fmt.Sprintf("expected %s, got an error: %v\n", s.Expect, err)
	}
	var b strings.Builder
	got := "deny"
	if d.Permit {
		got = "permit"
	}
	if s.Expect != got {
		fmt.Fprintf(&b, "expected %s, got %s\n", s.Expect, got)
	}
	s.compare(&b, d)
	if b.Len() > 0 {
		e.Explain(ctx, q, s.now).writeVerdicts(&b)
	}
	return b.String()
}

// decideBoth decides a query, with both sides of a delegation as the broker does.
func (e *Engine) decideBoth(ctx context.Context, q broker.Query, now time.Time) (broker.Decision, error) {
	d, err := e.Decide(ctx, q, now)
	if err != nil || q.OnBehalfOf == nil {
		return d, err
	}
	subject, err := e.Decide(ctx, q.OfSubject(), now)
	d.Permit = d.Permit && subject.Permit
	d.Policies = slices.Compact(slices.Sorted(slices.Values(slices.Concat(d.Policies, subject.Policies))))
	d.Reasons = slices.Concat(d.Reasons, subject.Reasons)
	d.Obligations = d.Obligations.And(subject.Obligations)
	if !d.Permit {
		d.Obligations = broker.Obligations{}
	}
	return d, err
}

// compare writes the differences between the decision and the expected one.
func (s *scenario) compare(b *strings.Builder, d broker.Decision) {
	differ := func(what string, expected, got []string) {
		if !slices.Equal(expected, got) {
			fmt.Fprintf(b, "%s: expected [%s], got [%s]\n", what, strings.Join(expected, ", "), strings.Join(got, ", "))
		}
	}
	if s.Policies != nil {
		differ("policies", slices.Sorted(slices.Values(*s.Policies)), d.Policies)
	}
	if s.Reasons != nil {
		differ("reasons", *s.Reasons, d.Reasons)
	}
	if s.Obligations != nil {
		expected, _ := s.obligations() // readScenarios has checked them
		differ("obligations", expected, slices.Sorted(slices.Values(describe(d.Obligations))))
	}
}

// scenarioQuery returns the query that the broker would make.
func (e *Engine) scenarioQuery(s scenario) (broker.Query, error) {
	who, err := e.ParsePrincipal(s.Principal)
	if err != nil {
		return broker.Query{}, fmt.Errorf("principal: %w", err)
	}
	if who.Attested, err = e.ParseAttestation(who, s.Attested); err != nil {
		return broker.Query{}, fmt.Errorf("attested: %w", err)
	}
	q := broker.Query{Principal: who, Action: broker.ActionRequest, SourceIP: s.SourceIP, BreakGlass: s.BreakGlass}
	if s.Action != "" {
		q.Action = s.Action
	}
	if s.Entitlement != "" {
		if err := checkExists(e.known.entitlements, "entitlement", s.Entitlement, "correct the name"); err != nil {
			return broker.Query{}, err
		}
		q.Entitlement = e.in.Catalogue[s.Entitlement]
	}
	switch q.Action {
	case broker.ActionRequest:
		if err := e.setSubject(s, &q); err != nil {
			return q, err
		}
		return s.requestQuery(q)
	case broker.ActionView, broker.ActionRevoke, broker.ActionApprove:
		return e.scenarioOnRequest(s, q)
	}
	return q, nil
}

// setSubject sets on whose behalf the principal asks.
func (e *Engine) setSubject(s scenario, q *broker.Query) error {
	if s.OnBehalfOf == "" {
		return nil
	}
	subject, err := e.ParsePrincipal(s.OnBehalfOf)
	if err != nil {
		return fmt.Errorf("on_behalf_of: %w", err)
	}
	q.OnBehalfOf, q.Depth = &subject, max(s.Depth, 1)
	return nil
}

// requestQuery sets the scopes, TTL and duration with the defaults that the
// broker applies to a request.
func (s *scenario) requestQuery(q broker.Query) (_ broker.Query, err error) {
	if q.Entitlement == nil {
		return q, errors.New("the scenario has no entitlement: add entitlement")
	}
	q.Scopes, q.TTL, q.Duration = s.Scopes, s.ttl, s.duration
	q.Justification, q.Ticket, q.Parameters = s.Justification, s.Ticket, s.Parameters
	if len(q.Scopes) == 0 {
		q.Scopes = q.Entitlement.DefaultScopes
	}
	if q.Details, err = q.Entitlement.CheckDetails(details(s.Details)); err != nil {
		return q, err
	}
	for _, d := range []time.Duration{q.Entitlement.DefaultTTL, q.Entitlement.MaxTTL} {
		if q.TTL == 0 {
			q.TTL = d
		}
	}
	for _, d := range []time.Duration{q.Entitlement.CollectWithin, time.Hour} {
		if q.Duration == 0 {
			q.Duration = d
		}
	}
	return q, nil
}

// scenarioOnRequest sets the request that view, revoke and approve apply to.
func (e *Engine) scenarioOnRequest(s scenario, q broker.Query) (broker.Query, error) {
	if q.Entitlement == nil || s.Requester == "" {
		return q, fmt.Errorf("action %s applies to a request: add requester and entitlement", q.Action)
	}
	requester, err := e.ParsePrincipal(s.Requester)
	if err != nil {
		return q, fmt.Errorf("requester: %w", err)
	}
	q.Request = &broker.Request{Requester: requester, Entitlement: s.Entitlement, Scopes: s.Scopes}
	return q, nil
}

// ParsePrincipal returns the identity that a proof of id would yield, with its
// labels. id is a SPIFFE ID or a person such as "login/ana".
func (e *Engine) ParsePrincipal(id string) (broker.Identity, error) {
	if !strings.HasPrefix(id, spiffeScheme) {
		return e.known.labels.WithLabels(broker.Identity{ID: id, Kind: broker.KindPerson}), e.known.checkPerson(id)
	}
	domain, _, err := broker.ParseWorkloadID(id)
	if err == nil {
		err = e.known.checkDomain(domain)
	}
	if err != nil {
		return broker.Identity{}, err
	}
	who := broker.Identity{ID: id, TrustDomain: broker.TrustDomainOf(id), Paths: broker.SPIFFEPaths(id), Kind: broker.KindWorkload}
	who.Attested = e.assumed(&who)
	return e.known.labels.WithLabels(who), nil
}
