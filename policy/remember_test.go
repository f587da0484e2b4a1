package policy

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/broker"
)

var rememberNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// rememberConditions read each attribute of the context. Each is true for some variant of
// the query below and false for another.
var rememberConditions = []string{
	`true`,
	`context.now < datetime("2026-11-23T12:30:00Z")`,
	`context has source_ip && context.source_ip.isInRange(ip("10.0.0.0/8"))`,
	`context.scopes.contains("tickets:read")`,
	`context.ttl <= duration("5m")`,
	`context.duration <= duration("1h")`,
	`context has justification && context.justification like "*ticket*"`,
	`context has ticket`,
	`context.parameters.hasTag("prefix") && context.parameters.getTag("prefix") == "a"`,
	`!context.break_glass`,
	`context has detail && context.detail.actions.contains("read")`,
	`principal in Path::"spiffe://acme.test/agent"`,
	`principal has team && principal.team == "support"`,
	`context == context`,
	`context has on_behalf_of && context.on_behalf_of has agent && context.on_behalf_of.agent in Path::"spiffe://acme.test/agent"`,
	`context has on_behalf_of && context.on_behalf_of.id == "login/ana"`,
	`context has actor`,
	`context.depth < 2`,
}

// rememberVariants change one field of a query each. A new field of Query needs a
// variant.
var rememberVariants = map[string]func(*broker.Query){
	"Principal":     func(q *broker.Query) { q.Principal.Team = "interns" },
	"Action":        func(q *broker.Query) { q.Action = broker.ActionView },
	"Entitlement":   func(q *broker.Query) { q.Entitlement = &broker.Entitlement{Name: "other"} },
	"Scopes":        func(q *broker.Query) { q.Scopes = []string{"tickets:comment"} },
	"TTL":           func(q *broker.Query) { q.TTL = time.Hour },
	"Duration":      func(q *broker.Query) { q.Duration = 5 * time.Hour },
	"Justification": func(q *broker.Query) { q.Justification = "the ticket says so" },
	"Ticket":        func(q *broker.Query) { q.Ticket = "INC-7" },
	"Details":       func(q *broker.Query) { q.Details = []broker.Detail{{Type: "ticket", Actions: []string{"read"}}} },
	"Parameters":    func(q *broker.Query) { q.Parameters = map[string]string{"prefix": "a"} },
	"SourceIP":      func(q *broker.Query) { q.SourceIP = netip.MustParseAddr("10.1.2.3") },
	"BreakGlass":    func(q *broker.Query) { q.BreakGlass = true },
	"Extended":      func(q *broker.Query) { q.Extended = map[string]time.Time{"acme-data": rememberNow.Add(24 * time.Hour)} },
	"OnBehalfOf":    func(q *broker.Query) { q.OnBehalfOf, q.Actor = delegate("spiffe://acme.test/agent/other"), nil },
	"Actor":         func(q *broker.Query) { q.Actor, q.OnBehalfOf = delegate("spiffe://acme.test/agent/other"), nil },
	"Depth":         func(q *broker.Query) { q.Depth = 3 },
	"Request":       func(q *broker.Query) { q.Request = &broker.Request{} },
}

func delegate(id string) *broker.Identity {
	return &broker.Identity{ID: id, TrustDomain: "acme.test", Paths: broker.SPIFFEPaths(id), Kind: broker.KindAgent}
}

func rememberEngine(t *testing.T, cedar string) *Engine {
	t.Helper()
	e, err := Load(Inputs{
		FS: fstest.MapFS{"all.cedar": {Data: []byte(cedar)}}, HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Providers: []string{"login"},
		Catalogue: broker.Catalogue{
			"tickets-api": {Name: "tickets-api", Issuer: "tickets", Scopes: []string{"tickets:comment", "tickets:read"}},
			"other":       {Name: "other", Issuer: "tickets", Scopes: []string{"tickets:read"}},
		},
	})
	if err != nil {
		t.Fatalf("loading %s: %v", cedar, err)
	}
	return e
}

func rememberQuery() broker.Query {
	who := broker.Identity{ID: "spiffe://acme.test/agent/triage", TrustDomain: "acme.test", Kind: broker.KindAgent, Team: "support"}
	who.Paths = broker.SPIFFEPaths(who.ID)
	return broker.Query{Principal: who, Action: broker.ActionRequest, Entitlement: &broker.Entitlement{Name: "tickets-api"}, Scopes: []string{"tickets:read"}, TTL: time.Minute, Duration: time.Minute}
}

// A remembered decision never answers a query on which policy decides otherwise.
func TestRememberedDecisionIsTheDecision(t *testing.T) {
	t.Parallel()
	fields := reflect.TypeOf(broker.Query{})
	if fields.NumField() != len(rememberVariants) {
		t.Fatalf("got %d fields of a query, and %d variants", fields.NumField(), len(rememberVariants))
	}
	remembered := 0
	for _, condition := range rememberConditions {
		e := rememberEngine(t, `@id("p") permit (principal, action == Action::"request", resource) when { `+condition+` };`)
		for first := range rememberVariants {
			base := rememberQuery()
			rememberVariants[first](&base)
			for range 3 {
				_, _ = e.Decide(t.Context(), base, rememberNow)
			}
			for name, change := range rememberVariants {
				for _, now := range []time.Time{rememberNow, rememberNow.Add(time.Hour)} {
					q := base
					change(&q)
					got, gotErr := e.Decide(t.Context(), q, now)
					want, wantErr := e.decide(q, now)
					if !reflect.DeepEqual(got, want) || fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
						t.Errorf("%s, %s after %s: got %+v, %v, want %+v, %v", condition, name, first, got, gotErr, want, wantErr)
					}
				}
			}
		}
		remembered += len(e.decisions.list)
	}
	if remembered == 0 {
		t.Error("no decision is remembered")
	}
}

func TestDecisionThatReadsTheTimeIsNotRemembered(t *testing.T) {
	t.Parallel()
	for _, condition := range []string{rememberConditions[1], `context == context`} {
		e := rememberEngine(t, `@id("p") permit (principal, action == Action::"request", resource) when { `+condition+` };`)
		for range 3 {
			_, _ = e.Decide(t.Context(), rememberQuery(), rememberNow)
		}
		if n := len(e.decisions.list); n != 0 {
			t.Errorf("%s: %d decisions are remembered", condition, n)
		}
	}
}

// An attribute that a later schema adds is not in the key, so it must not be ignored.
func TestDecisionThatReadsMoreThanTheKeyIsNotRemembered(t *testing.T) {
	t.Parallel()
	e := rememberEngine(t, `@id("p") permit (principal, action == Action::"request", resource);`)
	q := rememberQuery()
	_, _ = e.Decide(t.Context(), q, rememberNow)
	if _, ok := e.rememberable(&q); !ok {
		t.Fatal("the decision can't be remembered")
	}
	e.reads["weather"] = true
	if _, ok := e.rememberable(&q); ok {
		t.Error("a decision that reads an attribute outside the key can be remembered")
	}
}

func TestRememberedDecisionsAreBounded(t *testing.T) {
	t.Parallel()
	var d decisions
	for i := range 3 * maxDecisions {
		d.keep(decisionKey{ttl: time.Duration(i)}, broker.Decision{})
		if len(d.list) > maxDecisions {
			t.Fatalf("got %d decisions, want at most %d", len(d.list), maxDecisions)
		}
	}
}

// What is remembered has a bound in bytes, whatever the policies and the scopes.
func TestLargeDecisionIsNotRemembered(t *testing.T) {
	t.Parallel()
	many := make([]string, maxDecision/16+1)
	for name, test := range map[string]struct {
		key   decisionKey
		known broker.Decision
		want  int
	}{
		"usual":         {decisionKey{scopes: "tickets:read"}, broker.Decision{Policies: many[:3]}, 1},
		"many scopes":   {decisionKey{scopes: strings.Repeat("x", maxDecision+1)}, broker.Decision{}, 0},
		"many policies": {decisionKey{}, broker.Decision{Policies: many}, 0},
		"many tickets":  {decisionKey{}, broker.Decision{Obligations: broker.Obligations{Tickets: many}}, 0},
		"many limits":   {decisionKey{}, broker.Decision{Obligations: broker.Obligations{Limits: make([]broker.Limit, maxDecision/48+1)}}, 0},
	} {
		var list decisions
		if list.keep(test.key, test.known); len(list.list) != test.want {
			t.Errorf("%s: got %d remembered, want %d", name, len(list.list), test.want)
		}
	}
}

// The decision on the subject of a delegation is remembered too, until the person's groups, the
// person's end or the actor make another one.
func TestDecisionOnPersonIsRemembered(t *testing.T) {
	t.Parallel()
	ends := rememberNow.Truncate(24 * time.Hour)
	e, err := Load(Inputs{
		FS: fstest.MapFS{
			"all.cedar": {Data: []byte(`
@id("dba") permit (principal in Group::"dba", action == Action::"request", resource);
@id("no-interns") forbid (principal, action == Action::"request", resource) when { context has actor && context.actor.id == "spiffe://acme.test/agent/intern" };`)},
			"groups.yaml": {Data: []byte("dba: {claims: [{provider: login, group: DB}]}\n")},
			"people.yaml": {Data: []byte("login/kim: {ends: " + ends.Format(time.DateOnly) + "}\n")},
		},
		HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Providers: []string{"login"},
		Catalogue: broker.Catalogue{"tickets-api": {Name: "tickets-api", Issuer: "tickets", Scopes: []string{"tickets:read"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	on := func(id, actor string, at time.Time, groups ...string) broker.Decision {
		q := rememberQuery()
		q.Principal = broker.Identity{ID: id, Kind: broker.KindPerson, Person: &broker.Person{Provider: "login", Groups: groups, Claimed: at}}
		q.Actor = delegate("spiffe://acme.test/agent/" + actor)
		got, err := e.Decide(t.Context(), q, at)
		want, wantErr := e.decide(q, at)
		if err != nil || wantErr != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%s by %s: got %+v, %v, want %+v, %v", id, actor, got, err, want, wantErr)
		}
		return got
	}
	for range 3 {
		if !on("login/ana", "triage", rememberNow, "DB").Permit || !on("login/kim", "triage", rememberNow, "DB").Permit {
			t.Fatal("got a denial")
		}
	}
	if n := len(e.decisions.list); n != 2 {
		t.Errorf("got %d remembered decisions, want 2", n)
	}
	if on("login/ana", "triage", rememberNow, "other").Permit || on("login/ana", "triage", rememberNow).Permit {
		t.Error("a person who has left the group is permitted")
	}
	if on("login/ana", "intern", rememberNow, "DB").Permit {
		t.Error("another actor is permitted")
	}
	if d := on("login/kim", "triage", rememberNow.Add(24*time.Hour), "DB"); d.Permit || !d.Lasting {
		t.Errorf("after the person's end: got %+v", d)
	}
	if !on("login/ana", "triage", rememberNow.Add(24*time.Hour), "DB").Permit {
		t.Error("the other person is denied")
	}
}
