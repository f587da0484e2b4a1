package broker_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// holding returns a caller that proves to hold a key, with a new proof.
func holding(who broker.Identity, key byte, now time.Time) broker.Caller {
	c := broker.Self(who, now)
	proofCount.Add(1)
	c.Key, c.Once, c.OnceUntil = audit.Digest{key}, broker.SpentKey{byte(proofCount.Load()), byte(proofCount.Load() >> 8), 1}, now.Add(7*time.Minute)
	return c
}

var proofCount atomic.Int32

func TestBindingsIntersect(t *testing.T) {
	all := []string{"none", "mtls", "dpop", "dpop or mtls"}
	parse := func(text string) broker.Binding {
		b, err := broker.ParseBinding(text)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	checked := 0
	for _, one := range all {
		for _, other := range all {
			got := parse(one).And(parse(other))
			words := func(s string) []string { return strings.Split(s, " or ") }
			want := slices.DeleteFunc(words(one), func(w string) bool { return !slices.Contains(words(other), w) })
			switch {
			case one == "none":
				want = words(other)
			case other == "none":
				want = words(one)
			case len(want) == 0:
				want = []string{"impossible"}
			}
			if got.String() != strings.Join(want, " or ") || got != parse(other).And(parse(one)) {
				t.Errorf("%s and %s: got %s, want %v", one, other, got, want)
			}
			if got.Impossible() && (!got.And(parse("dpop or mtls")).Impossible() || !got.And(broker.BindingNone).Impossible()) {
				t.Errorf("%s and %s: a further demand makes it possible", one, other)
			}
			checked++
		}
	}
	if checked != 16 {
		t.Errorf("checked %d pairs", checked)
	}
	for _, text := range []string{"", "DPoP", "mtls or", "mtls or mtls", "none or mtls", "mtls,dpop", "mtls  or dpop", "impossible"} {
		if b, err := broker.ParseBinding(text); err == nil {
			t.Errorf("%q: got %s", text, b)
		}
	}
}

// A proof issues once: also with many calls at once, in another process, and after a
// restart.
func TestAProofIssuesOnce(t *testing.T) {
	w := tokenWorld(t)
	caller := holding(agent(noon), 1, noon)
	processes := []*broker.Broker{w.broker, w.restart(t, map[string]broker.Issuer{"tickets": signer{}}), w.restart(t, map[string]broker.Issuer{"tickets": signer{}})}
	var issued, replayed atomic.Int32
	var all sync.WaitGroup
	for i := range 24 {
		all.Go(func() {
			_, _, err := processes[i%len(processes)].AskAndCollect(t.Context(), caller, read("tickets:read"), broker.IdempotencyKey{})
			switch {
			case err == nil:
				issued.Add(1)
			case errors.Is(err, broker.ErrInvalidDPoP):
				replayed.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if issued.Load() != 1 || replayed.Load() != 23 {
		t.Errorf("%d tokens were issued and %d proofs refused, want 1 and 23", issued.Load(), replayed.Load())
	}
	later := caller
	later.At = noon.Add(time.Minute)
	if _, _, err := w.restart(t, map[string]broker.Issuer{"tickets": signer{}}).AskAndCollect(t.Context(), later, read("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrInvalidDPoP) {
		t.Errorf("after a restart: got %v, want %v", err, broker.ErrInvalidDPoP)
	}
	// It is forgotten when no process accepts it any longer.
	if n, err := w.store.Sweep(t.Context(), caller.OnceUntil.Add(time.Second)); err != nil || n < 1 {
		t.Errorf("the sweep deleted %d rows: %v", n, err)
	}
}

// A call that fails does not spend its proof in the database: nothing was issued with it.
func TestARefusedCallSpendsNothing(t *testing.T) {
	w := tokenWorld(t)
	caller := holding(agent(noon), 1, noon)
	if _, _, err := w.broker.AskAndCollect(t.Context(), caller, read("tickets:unknown"), broker.IdempotencyKey{}); err == nil {
		t.Fatal("an unknown scope was granted")
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), caller, read("tickets:read"), broker.IdempotencyKey{}); err != nil {
		t.Error(err)
	}
}

// bindingPolicies permit under a binding: with approval, and in an emergency.
const bindingPolicies = `
@id("read") @binding("dpop") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets")
when { ["tickets:read"].containsAll(context.scopes) };
@id("close") @binding("dpop or mtls") @approval("1 of support") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets")
when { context.scopes.contains("tickets:close") };
@id("emergency") @binding("dpop") @break_glass("security") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets")
when { context.scopes.contains("tickets:close") };
@id("database") @binding("mtls") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"db");
`

// What policy demands, no kind of call evades: a plain ask, an emergency, an extension, a
// collection, a renewal.
func TestPolicyDemandsABinding(t *testing.T) {
	w := newWorld(t, worldConfig{policies: bindingPolicies, issuers: map[string]broker.Issuer{"tickets": signer{}, "db": &system{live: map[string]time.Time{}}}})
	t.Cleanup(func() { w.verify(t) })
	bare, key := broker.Self(agent(noon), noon), func(k byte) broker.Caller { return holding(agent(noon), k, noon) }
	over := agent(noon)
	over.Proof.Method = broker.MethodX509SVID
	certificate := broker.Self(over, noon)
	none := broker.IdempotencyKey{}
	refused := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	emergency := read("tickets:close")
	emergency.BreakGlass = true
	for what, ask := range map[string]broker.Ask{"read": read("tickets:read"), "emergency": emergency} {
		for name, caller := range map[string]broker.Caller{"bare": bare, "certificate": certificate} {
			_, _, err := w.broker.AskAndCollect(t.Context(), caller, ask, none)
			refused(what+" "+name, err, broker.ErrBindingRequired)
			_, err = w.broker.Ask(t.Context(), caller, ask, none)
			refused(what+" "+name+", asking only", err, broker.ErrBindingRequired)
		}
		issued, _, err := w.broker.AskAndCollect(t.Context(), key(1), ask, none)
		if err != nil || issued.Lease.KeyThumbprint != (audit.Digest{1}) || !issued.Lease.Confirm.IsZero() {
			t.Errorf("%s with a key: %v", what, err)
			continue
		}
		_, err = w.broker.Renew(t.Context(), bare, issued.Lease.ID, none)
		refused(what+", renewed without the key", err, broker.ErrBindingRequired)
		extension := ask
		extension.Extends = issued.Lease.Request
		_, _, err = w.broker.AskAndCollect(t.Context(), bare, extension, none)
		refused(what+", extended without the key", err, broker.ErrBindingRequired)
	}
	// Two permits apply: the sets intersect.
	_, err := w.broker.Ask(t.Context(), certificate, read("tickets:read", "tickets:close"), none)
	if err != nil {
		t.Errorf("closing with a certificate: %v", err)
	}
	// Credentials that are not tokens cannot be bound.
	_, err = w.broker.Ask(t.Context(), certificate, broker.Ask{Entitlement: "db"}, none)
	refused("a database", err, broker.ErrDenied)
}

// A collection is decided again: a binding that policy now demands is demanded, and an
// approval of a request with a key is not for another one.
func TestBindingIsDecidedAtEachCollection(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	r := w.ask(t, read("tickets:close"))
	if _, err := w.vote(t, approver("cleo", noon), r, yes, noon); err != nil {
		t.Fatal(err)
	}
	w.adopt(t, closePolicies(`@approval("1 of support") @binding("dpop")`), testGroups)
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrBindingRequired) {
		t.Errorf("without a key: got %v, want %v", err, broker.ErrBindingRequired)
	}
	if _, err := w.broker.Collect(t.Context(), holding(agent(noon), 1, noon), r.ID, broker.IdempotencyKey{}); err != nil {
		t.Error(err)
	}
	ask := func(key byte) *broker.Request {
		r, err := w.broker.Ask(t.Context(), holding(agent(noon), key, noon), read("tickets:close"), broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	one, same, other := ask(1), ask(1), ask(2)
	if one.ID != same.ID || one.ID == other.ID || one.Digest == other.Digest {
		t.Errorf("asks with keys 1, 1 and 2 file %s, %s and %s", one.ID, same.ID, other.ID)
	}
	if demand := one.Decision.Obligations.Binding.String(); demand != "dpop" {
		t.Errorf("approvers see the binding %q, want dpop", demand)
	}
}

// A token that is bound to a certificate may be renewed with the next certificate of the
// same SPIFFE ID, and not without one.
func TestRenewalAfterRotation(t *testing.T) {
	w := tokenWorld(t)
	w.adoptChanged(t, testPolicies, func(r *broker.Rules) { r.Catalogue["tickets"].Binding = broker.BindingMTLS | broker.BindingDPoP })
	over := func(thumbprint byte) broker.Caller {
		who := agent(noon)
		who.Proof = broker.Proof{Method: broker.MethodX509SVID, SHA256: audit.Digest{thumbprint}, Expires: noon.Add(time.Hour)}
		return broker.Self(who, noon)
	}
	issued, _, err := w.broker.AskAndCollect(t.Context(), over(1), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Renew(t.Context(), holding(agent(noon), 1, noon), issued.Lease.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrBindingRequiresMTLS) {
		t.Errorf("with another kind of binding: got %v, want %v", err, broker.ErrBindingRequiresMTLS)
	}
	renewed, err := w.broker.Renew(t.Context(), over(2), issued.Lease.ID, broker.IdempotencyKey{})
	if err != nil || renewed.Lease.Confirm != (audit.Digest{2}) {
		t.Fatalf("after a rotation: got %v", err)
	}
}

// A sub-agent cannot strip the binding of a token: it cannot exchange the token, and if it
// could, its own token would be bound to its own key.
func TestSubAgentsCannotStripABinding(t *testing.T) {
	w := delegationWorld(t)
	exchange := func(who string, from *broker.Issued, key byte) (*broker.Issued, error) {
		t.Helper()
		caller := broker.Self(workload(who, noon), noon)
		if key != 0 {
			caller = holding(workload(who, noon), key, noon)
		}
		// Who presents the token without its key is refused even before.
		if _, err := broker.DelegationOf(t.Context(), w.broker, caller, token(from)); !errors.Is(err, broker.ErrDelegation) {
			t.Errorf("presenting a bound token: got %v, want %v", err, broker.ErrDelegation)
		}
		issued, _, err := w.broker.AskAndCollect(t.Context(), caller, delegated(&broker.Delegation{Parent: from.Lease.ID}, "tickets:read"), broker.IdempotencyKey{})
		return issued, err
	}
	parent, _, err := w.broker.AskAndCollect(t.Context(), holding(workload(triage, noon), 1, noon), delegated(onBehalf("ana", noon), "tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exchange(search, parent, 0); !errors.Is(err, broker.ErrBindingRequired) {
		t.Errorf("an exchange without a key: got %v, want %v", err, broker.ErrBindingRequired)
	}
	child, err := exchange(search, parent, 2)
	if err != nil || child.Lease.KeyThumbprint != (audit.Digest{2}) {
		t.Fatalf("an exchange with a key: %v", err)
	}
	if _, err := w.broker.Renew(t.Context(), broker.Self(workload(search, noon), noon), child.Lease.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrBindingRequired) {
		t.Errorf("a renewal without the key: got %v, want %v", err, broker.ErrBindingRequired)
	}
	if _, err := exchange(fetch, child, 0); !errors.Is(err, broker.ErrBindingRequired) {
		t.Errorf("a second exchange without a key: got %v, want %v", err, broker.ErrBindingRequired)
	}
}
