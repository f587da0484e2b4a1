package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
)

func digest(b byte) (d Digest) {
	for i := range d {
		d[i] = b
	}
	return d
}

var someTime = time.Date(2026, 11, 3, 12, 0, 0, 123e6, time.UTC)

// fullRecord sets every field and has texts with every kind of escape.
func fullRecord() Record {
	why, opening := Commit("customer 4711 complained\n\t\"twice\" \u2028 \x01")
	party := Party{ID: "spiffe://acme.test/agent/triage", Kind: "agent", Method: "jwt-svid", Attested: "oidc", Proof: digest(1), Expires: someTime, Actors: []string{"login/ana", "spiffe://acme.test/x"}, Accounts: []string{"corp/ana", "login/ana"}, Also: []string{"jwt-svid 00"}}
	decision := DecisionFacts{Permit: true, Policies: []string{"a", "b"}, Revision: digest(2), Manner: []string{"cautious"}, MaxDuration: 2 * time.Hour, Tickets: digest(17), Approvals: []string{"2 of dba"}, Review: []string{"1 of security"}, Signed: true, MaxTTL: time.Hour, Code: "denied"}
	signature := SignatureFacts{AuthenticatorData: []byte{1}, ClientData: []byte("{}"), Credential: []byte{2}, Nonce: digest(16), Signature: []byte{3}}
	return Record{
		Time: someTime, Kind: LeaseIssued, Caller: &party, Subject: &party,
		Request: &RequestFacts{ID: "req_1", Digest: digest(3), Effect: digest(18), BreakGlass: true, NotBefore: someTime, Extends: "req_0", Entitlement: "tickets-api", Scopes: []string{"tickets:read", "ä\"\\"}, TTL: time.Minute,
			Duration: time.Hour, Justification: why, Message: digest(41), Ticket: digest(4), Parameters: digest(5), Details: digest(25), Source: digest(6), LapsesAt: someTime, Key: digest(24), Accountable: []string{"login/ana"}, RestsOn: []string{"person login/ana"}, Until: someTime, Parent: "lse_1"},
		Decision: &decision, Delegated: &decision,
		Approval:   &ApprovalFacts{Decision: "approve", Digest: digest(7), Groups: []string{"dba"}, Comment: digest(8), Scopes: []string{"s"}, TTL: time.Second, Duration: time.Minute},
		Passkey:    &PasskeyFacts{Counts: someTime, Credential: []byte{4}, Public: []byte{5}, RP: "broker.acme.test"},
		Signature:  &signature,
		Lease:      &LeaseFacts{ID: "lse_1", Issuer: "tickets", Type: "bearer", Scopes: []string{"s"}, Expires: someTime, Revocation: "at_expiry", Credential: digest(9), Replaces: "lse_0", Key: digest(25)},
		End:        &EndFacts{How: "returned", Reason: digest(10), ValidUntil: someTime, Fact: "person login/ana", Cause: "ended"},
		Rules:      &RulesFacts{Revision: digest(11), Files: map[string]Digest{"b.cedar": digest(12), "política.cedar": digest(13)}},
		Key:        &KeyFacts{ID: "k", Purpose: "token", Algorithm: "ES256", Public: digest(14)},
		Recovery:   &RecoveryFacts{Since: someTime, Until: someTime, Issuer: "vault", Target: "accessor", Outcome: "revoked", Sessions: 3, Found: 2, Ended: 1},
		Log:        &LogFacts{Origin: "broker.test/log/abcdefgh", Previous: "a\n1\nb\n"},
		Block:      &BlockFacts{Selector: "under spiffe://acme.test/agent", Reason: digest(15)},
		Directory:  &DirectoryFacts{Source: "scim:corp", ID: "usr_1", Op: "changed", Person: "login/ana", Active: true, Manager: "login/bo", Changed: []string{"active"}, Name: digest(20), Added: []string{"login/ana"}, Removed: []string{"login/bo"}, Memberships: []string{"dba scim:corp"}, Expires: someTime},
		Supplier:   &SupplierFacts{Name: "acme-data", ID: "asm_1", Digest: digest(20), Risk: "medium", Answers: digest(21), Evidence: digest(22), Reason: digest(23), From: someTime, Until: someTime},
		Membership: &MembershipFacts{ID: digest(20), System: "crm", Group: "Sales", Member: digest(21), Change: MembershipAdded},
		Fact:       &FactFacts{Subject: "supplier acme-data", Source: "file", State: "ended", Cause: "contract_ended", From: someTime, Until: someTime, Details: digest(19)},
		Signal:     &SignalFacts{Transmitter: "okta", Event: "account_disabled", ID: digest(20), Events: 3, Leases: 4, People: 5},
		Campaign: &CampaignFacts{ID: "cmp_1", Name: "quarterly", Items: 3, Item: 2, Permission: "permit p", Digest: digest(19), Reviewer: "group dba", Verdict: "keep", Left: []string{"s"},
			Reason: digest(20), Seed: digest(21), Second: true, Signed: true, Deadline: someTime, Waiting: 2},
		Call:     &CallFacts{Method: "GET", Target: digest(26)},
		Pruned:   &PrunedFacts{What: PrunedLeases, Rows: 256, Before: someTime, From: someTime, Until: someTime},
		Count:    7,
		Trace:    Trace{TraceID: [16]byte{1, 0xab}, SpanID: [8]byte{2}, Flags: 1},
		Openings: map[string]Opening{"justification": opening},
		From:     netip.MustParseAddr("192.0.2.7"),
	}
}

func mustEntry(t testing.TB, r Record) *Entry {
	t.Helper()
	e, err := r.Entry()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEntryIsCanonical(t *testing.T) {
	for _, r := range []Record{fullRecord(), {Kind: PolicyLoaded}, {Kind: LeaseRevoked, End: &EndFacts{}, Lease: &LeaseFacts{ID: "x"}}} {
		leaf := mustEntry(t, r).Leaf()
		if want := canonicalize(t, leaf); string(want) != string(leaf) {
			t.Errorf("got\n%s\nRFC 8785 requires\n%s", leaf, want)
		}
		if bytes.Contains(leaf, []byte("null")) {
			t.Errorf("%s contains null", leaf)
		}
	}
}

// canonicalize implements RFC 8785 for JSON without floats, independently of the
// encoder.
func canonicalize(t *testing.T, b []byte) []byte {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, b)
	}
	return appendAny(t, nil, v)
}

func appendAny(t *testing.T, b []byte, v any) []byte {
	switch v := v.(type) {
	case string:
		return appendPlain(b, v)
	case json.Number:
		return append(b, v...)
	case bool:
		return fmt.Append(b, v)
	case []any:
		for i, e := range v {
			b = appendAny(t, append(b, "[,"[min(i, 1)]), e)
		}
		return append(b, ']')
	case map[string]any:
		keys := []string{}
		for k := range v {
			keys = append(keys, k)
		}
		slices.SortFunc(keys, func(a, b string) int { return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b))) })
		b = append(b, '{')
		for i, k := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendAny(t, append(appendPlain(b, k), ':'), v[k])
		}
		return append(b, '}')
	}
	t.Fatalf("a record can't contain %T", v)
	return nil
}

func appendPlain(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		if i := strings.IndexRune("\b\t\n\f\r\"\\", r); i >= 0 {
			b = append(b, '\\', `btnfr"\`[i])
		} else if r < ' ' {
			b = fmt.Appendf(b, `\u%04x`, r)
		} else {
			b = append(b, string(r)...)
		}
	}
	return append(b, '"')
}

func TestSetTimeChangesOnlyTheTime(t *testing.T) {
	r := fullRecord()
	want := string(mustEntry(t, r).Leaf())
	r.Time = time.Time{}
	e := mustEntry(t, r)
	e.SetTime(someTime)
	if string(e.Leaf()) != want {
		t.Errorf("got\n%s\nwant\n%s", e.Leaf(), want)
	}
}
