package broker

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// Requests with any different obligation are not identical.
func TestObligationsDiffer(t *testing.T) {
	fields := slices.DeleteFunc(reflect.VisibleFields(reflect.TypeFor[Obligations]()), func(f reflect.StructField) bool { return f.Anonymous })
	if len(fields) == 0 {
		t.Fatal("obligations have no fields")
	}
	for _, f := range fields {
		var one, other Obligations
		if !one.equal(&other) {
			t.Fatal("equal obligations differ")
		}
		field := reflect.ValueOf(&other).Elem().FieldByIndex(f.Index)
		switch field.Kind() {
		case reflect.Slice:
			field.Set(reflect.MakeSlice(field.Type(), 1, 1))
		case reflect.Bool:
			field.SetBool(true)
		case reflect.Struct:
			field.Field(0).SetInt(7)
		case reflect.Uint8:
			field.SetUint(7)
		default:
			field.SetInt(7)
		}
		if one.equal(&other) {
			t.Errorf("%s makes no difference", f.Name)
		}
	}
}

// Requests that permit different access are not identical.
func TestRequestsDiffer(t *testing.T) {
	same := func() *Request {
		return &Request{TTL: time.Minute, Duration: time.Hour, Scopes: []string{"read"}, Parameters: map[string]string{"a": "b"}, Justification: "x", Requester: Identity{ID: "spiffe://acme.test/a", Accountable: []string{"login/ana"}}}
	}
	for name, change := range map[string]func(*Request){
		"ttl": func(r *Request) { r.TTL++ }, "duration": func(r *Request) { r.Duration++ }, "effect": func(r *Request) { r.Effect[0]++ },
		"break-glass": func(r *Request) { r.BreakGlass = true }, "start": func(r *Request) { r.NotBefore = time.Unix(1, 0) }, "extended request": func(r *Request) { r.Extends[0]++ },
		"parameters": func(r *Request) { r.Parameters["a"] = "c" }, "team": func(r *Request) { r.Requester.Team = "x" }, "owner": func(r *Request) { r.Requester.Accountable = nil },
		"kind": func(r *Request) { r.Requester.Kind = KindAgent }, "obligations": func(r *Request) { r.Decision.Obligations.Signed = true },
		"subject": func(r *Request) { r.Delegation = &Delegation{Subject: Identity{ID: "login/ana"}} },
		"scopes":  func(r *Request) { r.Scopes = nil }, "entitlement": func(r *Request) { r.Entitlement = "x" }, "requester": func(r *Request) { r.Requester.ID += "b" },
	} {
		changed := same()
		change(changed)
		if newWaiting(same(), time.Time{}).groupsWith(newWaiting(changed, time.Time{})) {
			t.Errorf("%s makes no difference", name)
		}
	}
	texts := same()
	texts.Justification, texts.Ticket, texts.Digest[0] = "y", "INC-1", 1
	if !newWaiting(same(), time.Time{}).groupsWith(newWaiting(texts, time.Time{})) {
		t.Error("requests that differ in their texts are not identical")
	}
}

func TestRisk(t *testing.T) {
	rules := &Rules{Catalogue: Catalogue{
		"revocable": {Revocation: RevokedImmediate}, "expiring": {Revocation: RevokedAtExpiry}, "rotated": {Revocation: RevokedAtRotation}, "lasting": {Revocation: RevokedNever},
	}}
	short := Request{Entitlement: "revocable", TTL: 10 * time.Minute, Duration: time.Hour}
	for name, test := range map[string]struct {
		change func(*Request)
		want   Risk
	}{
		"revocable and short":         {func(*Request) {}, RiskLow},
		"one approval":                {func(r *Request) { r.Decision.Obligations.Approvals = []ApprovalNeed{{"dba", 1}} }, RiskLow},
		"not revocable":               {func(r *Request) { r.Entitlement = "expiring" }, RiskMedium},
		"long":                        {func(r *Request) { r.Duration = 8 * time.Hour }, RiskMedium},
		"several approvals":           {func(r *Request) { r.Decision.Obligations.Approvals = []ApprovalNeed{{"dba", 1}, {"ops", 1}} }, RiskMedium},
		"excluded team":               {func(r *Request) { r.Decision.Obligations.ExcludeTeam = true }, RiskMedium},
		"rotated":                     {func(r *Request) { r.Entitlement = "rotated" }, RiskHigh},
		"neither expires nor revoked": {func(r *Request) { r.Entitlement = "lasting" }, RiskHigh},
		"signed":                      {func(r *Request) { r.Decision.Obligations.Signed = true }, RiskHigh},
		"break-glass":                 {func(r *Request) { r.BreakGlass = true }, RiskHigh},
		"unknown entitlement":         {func(r *Request) { r.Entitlement = "gone" }, RiskLow},
	} {
		r := short
		test.change(&r)
		if got, reasons := rules.Risk(&r); got != test.want || (len(reasons) == 0) != (got == RiskLow) {
			t.Errorf("%s: got %d for %q, want %d", name, got, reasons, test.want)
		}
	}
}

// Requests with large parameters do not take the memory of the broker, and do not keep
// small ones out of the inboxes.
func TestLargeWaitingRequestsShareABudget(t *testing.T) {
	var room waitingRoom
	large := &Request{Parameters: map[string]string{"csr": strings.Repeat("x", 16<<10)}}
	kept := 0
	for range 2 * maxLargeWaiting / (16 << 10) {
		if room.admits(large) {
			kept++
		}
		if !room.admits(&Request{Justification: strings.Repeat("x", MaxJustification), Parameters: map[string]string{"a": "b"}}) {
			t.Fatalf("after %d large requests, a small one has no room", kept)
		}
	}
	if most := maxLargeWaiting / (16 << 10); kept == 0 || kept > most || !room.full {
		t.Errorf("got %d large requests kept, full %t, want at most %d and a full room", kept, room.full, most)
	}
}
