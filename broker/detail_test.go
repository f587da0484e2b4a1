package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// randomDetail returns a detail from a small world, so that many are within others.
func randomDetail(r *rand.Rand) broker.Detail {
	pick := func(items ...string) (some []string) {
		for _, item := range items {
			if r.IntN(2) == 0 {
				some = append(some, item)
			}
		}
		return some
	}
	d := broker.Detail{
		Type: "t", Actions: pick("a", "b", "c"), Locations: pick("l"), DataTypes: pick("d"), Privileges: pick("p"),
		Identifier: []string{"", "x"}[r.IntN(2)], Tool: []string{"", "u"}[r.IntN(2)],
	}
	for _, name := range pick("k", "n", "s") {
		a := broker.ArgumentBound{Name: name}
		switch name {
		case "n":
			a.Number, a.Min = true, r.IntN(4)
			a.Max = a.Min + r.IntN(4)
		case "k":
			a.MaxItems = 1 + r.IntN(3)
		}
		if name != "n" {
			if a.Values = pick("aa", "b"); len(a.Values) == 0 {
				a.MaxLength = 1 + r.IntN(3)
			}
		}
		d.Arguments = append(d.Arguments, a)
	}
	return d
}

// grants returns everything that a detail grants: single uses of it.
func grants(d broker.Detail) (all []string) {
	texts := func(a broker.ArgumentBound) (t []string) {
		for _, v := range []string{"", "a", "aa", "b", "bbb"} {
			if slices.Contains(a.Values, v) || len(a.Values) == 0 && len(v) <= a.MaxLength {
				t = append(t, v)
			}
		}
		return t
	}
	at := d.Type + "|" + d.Identifier + "|" + d.Tool + "|"
	for field, list := range map[string][]string{"action": d.Actions, "location": d.Locations, "datatype": d.DataTypes, "privilege": d.Privileges} {
		for _, item := range list {
			all = append(all, at+field+" "+item)
		}
	}
	for _, a := range d.Arguments {
		for n := -1; n < 10; n++ {
			if a.Number && n >= a.Min && n <= a.Max || a.MaxItems > 0 && n >= 0 && n <= a.MaxItems {
				all = append(all, fmt.Sprintf("%s%s is %d", at, a.Name, n))
			}
		}
		if !a.Number {
			for _, v := range texts(a) {
				all = append(all, fmt.Sprintf("%s%s is %q", at, a.Name, v))
			}
		}
	}
	return all
}

// Within is reflexive and transitive, and what is within another grants nothing more.
func TestDetailsWithinNeverWiden(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	within, chains := 0, 0
	list := make([]broker.Detail, 300)
	for i := range list {
		list[i] = randomDetail(r)
		if !list[i].Within(&list[i]) {
			t.Fatalf("%+v is not within itself", list[i])
		}
	}
	for a := range list {
		for b := range list {
			if a == b || !list[a].Within(&list[b]) {
				continue
			}
			within++
			wider := grants(list[b])
			for _, g := range grants(list[a]) {
				if !slices.Contains(wider, g) {
					t.Fatalf("%s is within %s and grants %s", &list[a], &list[b], g)
				}
			}
			for c := range list {
				if list[b].Within(&list[c]) {
					if chains++; !list[a].Within(&list[c]) {
						t.Fatalf("%+v is within %+v, which is within %+v", list[a], list[b], list[c])
					}
				}
			}
		}
	}
	if within < 100 || chains < 100 {
		t.Errorf("got %d pairs and %d chains, too few to show anything", within, chains)
	}
}

// Without details, a grant is the widest: it is within none that has details.
func TestGrantsWithoutDetailsAreTheWidest(t *testing.T) {
	read := broker.Detail{Type: "t", Actions: []string{"read"}}
	both := broker.Detail{Type: "t", Actions: []string{"change", "read"}}
	for _, one := range []struct {
		details, parent []broker.Detail
		want            bool
	}{
		{nil, nil, true}, {[]broker.Detail{read}, nil, true}, {nil, []broker.Detail{read}, false},
		{[]broker.Detail{read}, []broker.Detail{both}, true}, {[]broker.Detail{both}, []broker.Detail{read}, false},
		{[]broker.Detail{read, both}, []broker.Detail{read}, false}, {[]broker.Detail{read, read}, []broker.Detail{both}, true},
	} {
		if got := broker.DetailsWithin(one.details, one.parent); got != one.want {
			t.Errorf("%v within %v: got %t", one.details, one.parent, got)
		}
	}
}

func TestDetailsAreCanonicalJSON(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		details := []broker.Detail{randomDetail(r), randomDetail(r)}
		text := broker.AppendDetails(nil, details)
		var value any
		if err := json.Unmarshal(text, &value); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		again, err := json.Marshal(value) // sorts keys
		if err != nil || string(again) != string(text) {
			t.Fatalf("got %s, want %s", text, again)
		}
	}
}

const detailPolicies = `
@id("reads") @max_ttl("5m") @limit("9 per 1h")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets")
when { context has detail && context.detail.type == "ticket" && ["read"].containsAll(context.detail.actions) };
@id("refunds") @max_ttl("2m") @justification("required")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets")
when { context has detail && context.detail has tool && context.detail.tool == "refund" && context.detail.arguments.hasTag("amount") && context.detail.arguments.getTag("amount").maximum <= 50 };
@id("never-one") @reason("ticket 666 is under investigation")
forbid (principal, action == Action::"request", resource)
when { context has detail && context.detail has identifier && context.detail.identifier == "TCK-666" };
`

func detailWorld(t *testing.T) (*world, *broker.Rules) {
	t.Helper()
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}})
	t.Cleanup(func() { w.verify(t) })
	catalogue := testCatalogue()
	catalogue["tickets"].Details = map[string]*broker.DetailType{"ticket": ticketType()}
	return w, rulesFor(t, detailPolicies, testGroups, nil, catalogue)
}

func ticketType() *broker.DetailType {
	return &broker.DetailType{
		Actions: []string{"close", "read"}, Identifier: regexp.MustCompile(`^(?:TCK-[0-9]+)$`),
		Tools: map[string]broker.Tool{"look": {}, "refund": {Arguments: map[string]broker.Argument{
			"amount": {ArgumentBound: broker.ArgumentBound{Name: "amount", Number: true, Max: 100}},
		}}},
	}
}

func look(id string, actions ...string) broker.Detail {
	return broker.Detail{Type: "ticket", Identifier: id, Actions: actions, Tool: "look"}
}

func refundOf(id string, most int) broker.Detail {
	return broker.Detail{Type: "ticket", Identifier: id, Actions: []string{"close"}, Tool: "refund", Arguments: []broker.ArgumentBound{{Name: "amount", Number: true, Max: most}}}
}

// Policy decides each element; one denial denies, and the obligations of all add up. The
// grant holds what it was approved for at each collection.
func TestPolicyDecidesEachDetail(t *testing.T) {
	w, rules := detailWorld(t)
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, rules); err != nil {
		t.Fatal(err)
	}
	ask := func(why string, details ...broker.Detail) (*broker.Issued, error) {
		return w.collect(t, agent(noon), broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, Justification: why, Details: details}, noon)
	}
	for name, details := range map[string][]broker.Detail{
		"without details":            nil,
		"an action above":            {look("TCK-1", "close")},
		"one of two elements above":  {look("TCK-1", "read"), look("TCK-2", "close")},
		"an amount above":            {refundOf("TCK-1", 51)},
		"a forbid on one of several": {look("TCK-1", "read"), look("TCK-666", "read"), refundOf("TCK-1", 5)},
	} {
		if _, err := ask("why", details...); !errors.Is(err, broker.ErrDenied) {
			t.Errorf("%s: got %v, want denied", name, err)
		}
	}
	if _, err := ask("", look("TCK-1", "read"), refundOf("TCK-1", 5)); !errors.Is(err, broker.ErrJustificationRequired) {
		t.Errorf("the obligation of one element: got %v", err)
	}
	issued, err := ask("why", refundOf("TCK-1", 5), look("TCK-1", "read"))
	if err != nil {
		t.Fatal(err)
	}
	want := "[ticket TCK-1: close tool refund with amount from 0 to 5 ticket TCK-1: read tool look]"
	text := func(list []broker.Detail) string {
		var words []string
		for i := range list {
			words = append(words, list[i].String())
		}
		return fmt.Sprint(words)
	}
	if got := text(issued.Lease.Details); got != want || text(issued.Request.Details) != want {
		t.Errorf("got details %s, want %s", got, want)
	}
	d := issued.Request.Decision
	if !slices.Equal(d.Policies, []string{"reads", "refunds"}) || d.Obligations.MaxTTL != 2*time.Minute || len(d.Obligations.Limits) != 1 {
		t.Errorf("got decision %+v", d)
	}
	stored := w.stored(t, issued.Request.ID)
	if !broker.EqualDetails(stored.Details, issued.Request.Details) || stored.Digest.IsZero() {
		t.Errorf("got stored details %v", stored.Details)
	}
	// A type that the operator narrows ends what was granted beyond it.
	narrow := testCatalogue()
	narrow["tickets"].Details = map[string]*broker.DetailType{"ticket": ticketType()}
	narrow["tickets"].Details["ticket"].Actions = []string{"read"}
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, rulesFor(t, strings.ReplaceAll(detailPolicies, "close", "read"), testGroups, nil, narrow)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Renew(t.Context(), broker.Self(agent(noon), noon), issued.Lease.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNeedsNewRequest) {
		t.Errorf("after the type was narrowed: got %v, want needs_new_request", err)
	}
}

// An identical ask has identical details, in any order of their lists; others are another
// request, with another digest.
func TestDetailsAreInTheDigest(t *testing.T) {
	w, _ := detailWorld(t)
	catalogue := testCatalogue()
	catalogue["tickets"].Details = map[string]*broker.DetailType{"ticket": ticketType()}
	const policies = `@id("p") @approval("1 of support") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets");`
	rules := rulesFor(t, policies, testGroups, []broker.WorkloadLabels{{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Accountable: []string{"login/ana"}}}, catalogue)
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, rules); err != nil {
		t.Fatal(err)
	}
	ask := func(details ...broker.Detail) *broker.Request {
		t.Helper()
		r, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, Details: details}, broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first, same := ask(look("TCK-1", "read", "close")), ask(look("TCK-1", "close", "read"))
	if same.ID != first.ID || !same.Reused {
		t.Errorf("got another request for identical details")
	}
	for _, other := range []*broker.Request{ask(), ask(look("TCK-1", "read")), ask(look("TCK-2", "read", "close")), ask(refundOf("TCK-1", 5))} {
		if other.ID == first.ID || other.Digest == first.Digest {
			t.Errorf("got the request or the digest of other details: %v", other.Details)
		}
	}
}
