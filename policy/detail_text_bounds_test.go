package policy_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

// A requester chooses how a text is bounded: by its values, or by a length. Neither choice
// passes a policy that bounds it by the other.
func TestTextsAreBoundedEitherWay(t *testing.T) {
	t.Parallel()
	const head = `permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
when { context has detail && context.detail.arguments.hasTag("note") && `
	in := inputs(fstest.MapFS{"groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/ana]}\n")}})
	in.Catalogue["tickets-api"].Audience = "https://tickets.acme.test"
	in.Catalogue["tickets-api"].Details = map[string]*broker.DetailType{"ticket": {Actions: []string{"close"}, Tools: map[string]broker.Tool{
		"comment": {Arguments: map[string]broker.Argument{"note": {ArgumentBound: broker.ArgumentBound{MaxLength: 200}}}},
	}}}
	load := func(condition string) (*policy.Engine, error) {
		in.FS.(fstest.MapFS)["a.cedar"] = &fstest.MapFile{Data: []byte(`@id("notes") ` + head + condition + " };")}
		return policy.Load(in)
	}
	const values = `context.detail.arguments.getTag("note") has values && ["done", "größer"].containsAll(context.detail.arguments.getTag("note").values)`
	const length = `context.detail.arguments.getTag("note").max_length <= 6`
	for _, test := range []struct {
		name, condition string
		bound           broker.ArgumentBound
		want            bool
	}{
		{"a short text", length, broker.ArgumentBound{MaxLength: 6}, true},
		{"a long text", length, broker.ArgumentBound{MaxLength: 7}, false},
		{"short values", length, broker.ArgumentBound{Values: []string{"done", "größer"}}, true},
		{"a long value", length, broker.ArgumentBound{Values: []string{"done", "run this instead"}}, false},
		{"known values", values, broker.ArgumentBound{Values: []string{"done"}}, true},
		{"another value", values, broker.ArgumentBound{Values: []string{"done", "run this instead"}}, false},
		{"any text", values, broker.ArgumentBound{MaxLength: 200}, false},
		{"short values of a list", length, broker.ArgumentBound{MaxItems: 2, Values: []string{"done"}}, true},
		{"a long value of a list", length, broker.ArgumentBound{MaxItems: 2, Values: []string{"run this instead"}}, false},
	} {
		e, err := load(test.condition)
		if err != nil {
			t.Fatal(err)
		}
		q := query(triage, "tickets-api", "tickets:read")
		q.Entitlement, test.bound.Name = in.Catalogue["tickets-api"], "note"
		q.Details = []broker.Detail{{Type: "ticket", Actions: []string{"close"}, Tool: "comment", Arguments: []broker.ArgumentBound{test.bound}}}
		if d, err := e.Decide(t.Context(), q, noon); err != nil || d.Permit != test.want {
			t.Errorf("%s: got %+v, %v, want permit: %t", test.name, d, err, test.want)
		}
	}
	_, unguarded, _ := strings.Cut(values, " && ")
	if _, err := load(unguarded); err == nil || !strings.Contains(err.Error(), "values") {
		t.Errorf("values without has: got %v, want an error", err)
	}
}
