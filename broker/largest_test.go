package broker_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// longName returns a name of n bytes.
func longName(prefix string, n int) string {
	return fmt.Sprintf("%s%0*d", prefix, broker.MaxName-len(prefix), n)
}

// largestAsk returns a request whose every field has its maximum length, in characters
// with the longest encoding, and a world that accepts it.
func largestAsk(t *testing.T, size, parameters int) (*world, broker.Identity, broker.Ask) {
	t.Helper()
	w := peopleWorld(t, `@approval("1 of support")`)
	rules := testRules(t, closePolicies(`@approval("1 of support")`))
	e := rules.Catalogue["tickets"]
	ask := broker.Ask{
		Entitlement: "tickets", Parameters: map[string]string{},
		Justification: strings.Repeat(`"`, broker.MaxJustification), Ticket: strings.Repeat(`\`, broker.MaxTicket),
	}
	for n := range broker.MaxScopes {
		ask.Scopes = append(ask.Scopes, fmt.Sprintf("s%0*d", broker.MaxScopeLength-1, n))
	}
	e.Scopes, e.Parameters = slices.Clone(ask.Scopes), map[string]broker.Parameter{}
	for n := range parameters {
		name := longName("p", n)
		e.Parameters[name] = broker.Parameter{MaxLength: size, Lines: size > broker.MaxParameter, Required: true}
		ask.Parameters[name] = strings.Repeat(`"`, size)
	}
	rules.Revision[0] ^= 1 // the revision covers the catalogue
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, rules); err != nil {
		t.Fatal(err)
	}
	id := "spiffe://acme.test/agent/"
	return w, workload(id+strings.Repeat("x", 2048-len(id)), noon), ask
}

// Every request that is accepted can be recorded, from the request over the approval
// to the credential.
func TestLargestRequest(t *testing.T) {
	for name, shape := range map[string]struct{ size, parameters int }{
		"most parameters":    {broker.MaxAllParameters / broker.MaxParameters, broker.MaxParameters},
		"longest parameters": {broker.MaxLines, broker.MaxAllParameters / broker.MaxLines},
	} {
		t.Run(name, func(t *testing.T) {
			w, who, ask := largestAsk(t, shape.size, shape.parameters)
			r, err := w.broker.Ask(t.Context(), broker.Self(who, noon), ask, broker.IdempotencyKey{})
			if err != nil {
				t.Fatal(err)
			}
			comment := strings.Repeat(`"`, broker.MaxComment)
			if _, err := w.vote(t, approver("ben", noon), r, broker.Vote{Approve: true, Comment: comment, Scopes: ask.Scopes}, noon); err != nil {
				t.Fatal(err)
			}
			issued, err := w.broker.Collect(t.Context(), broker.Self(who, noon), r.ID, broker.IdempotencyKey{})
			if err != nil {
				t.Fatal(err)
			}
			if l := issued.Lease; !maps.Equal(l.Parameters, ask.Parameters) || !slices.Equal(l.Scopes, ask.Scopes) {
				t.Errorf("got %d scopes and %d parameters, want those of the request", len(l.Scopes), len(l.Parameters))
			}
			wantKinds(t, w, audit.RequestCreated, audit.RequestApproved, audit.LeaseIssued)
		})
	}
}

// A request that exceeds a maximum by one is refused with the name of the field, and
// leaves no record.
func TestRequestAboveTheMaximum(t *testing.T) {
	first := longName("p", 0)
	for name, test := range map[string]struct {
		change func(*broker.Ask)
		want   error
		says   string
	}{
		"one parameter": {func(a *broker.Ask) {
			a.Parameters[first] += "x"
			last := longName("p", 3) // keeps the total within its maximum
			a.Parameters[last] = a.Parameters[last][1:]
		}, broker.ErrInvalidParameter, first + " is longer than 4096 bytes"},
		"all parameters":    {func(a *broker.Ask) { a.Parameters["more"] = "x" }, broker.ErrInvalidParameter, "the parameters are longer than 16384 bytes in total"},
		"parameters":        {func(a *broker.Ask) { a.Parameters = tooManyParameters() }, broker.ErrInvalidParameter, "at most 16 parameters"},
		"justification":     {func(a *broker.Ask) { a.Justification += "x" }, broker.ErrInvalidRequest, "justification is longer than 2000 bytes"},
		"ticket":            {func(a *broker.Ask) { a.Ticket += "x" }, broker.ErrInvalidRequest, "ticket is longer than 128 bytes"},
		"one scope":         {func(a *broker.Ask) { a.Scopes[0] += "x" }, broker.ErrInvalidScope, "a scope must be 1 to 128"},
		"scopes":            {func(a *broker.Ask) { a.Scopes = append(a.Scopes, "x") }, broker.ErrInvalidScope, "at most 32 scopes"},
		"entitlement":       {func(a *broker.Ask) { a.Entitlement = longName("e", 0) + "x" }, broker.ErrInvalidRequest, "the name of the entitlement is malformed"},
		"unknown parameter": {func(a *broker.Ask) { a.Parameters = map[string]string{"other": "x"} }, broker.ErrInvalidParameter, "no parameter of that name"},
	} {
		t.Run(name, func(t *testing.T) {
			w, who, ask := largestAsk(t, broker.MaxLines, broker.MaxAllParameters/broker.MaxLines)
			test.change(&ask)
			_, err := w.broker.Ask(t.Context(), broker.Self(who, noon), ask, broker.IdempotencyKey{})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %v: %s", err, test.want, test.says)
			}
			wantKinds(t, w)
		})
	}
}

// tooManyParameters returns one parameter more than the maximum.
func tooManyParameters() map[string]string {
	p := map[string]string{}
	for n := range broker.MaxParameters + 1 {
		p[fmt.Sprint("p", n)] = "x"
	}
	return p
}
