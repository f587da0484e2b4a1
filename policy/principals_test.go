package policy

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// An identity with other labels than the remembered one must never be evaluated as
// that one. A new field of Identity has to be compared, or listed here with a reason.
func TestPrincipalIsForgottenWhenLabelsDiffer(t *testing.T) {
	t.Parallel()
	notSeen := map[string]string{
		"Proof":    "policies do not see proofs",
		"Once":     "policies do not see proofs",
		"Person":   "TestPersonIsForgottenWhenClaimsDiffer",
		"Accounts": "accounts are those of people",
		"Also":     "further proofs of the same identity, which policies do not see",
	}
	who := broker.Identity{ID: "spiffe://acme.test/agent/triage", TrustDomain: "acme.test", Kind: broker.KindAgent, Team: "support", Accountable: []string{"login/ana"}}
	who.Paths = broker.SPIFFEPaths(who.ID)
	var list principals
	list.keep(&principal{who: who})
	if list.find(&who) == nil {
		t.Fatal("the principal is not remembered")
	}
	renewed := who
	renewed.Proof = broker.Proof{Method: broker.MethodJWTSVID, Expires: time.Unix(1, 0)}
	if list.find(&renewed) == nil {
		t.Error("the principal is forgotten with another proof")
	}
	fields := reflect.TypeOf(who)
	for i := range fields.NumField() {
		name := fields.Field(i).Name
		if notSeen[name] != "" {
			continue
		}
		other := who
		switch f := reflect.ValueOf(&other).Elem().Field(i); f.Kind() {
		case reflect.String:
			f.SetString(f.String() + "x")
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		case reflect.Struct:
			f.Set(reflect.ValueOf(time.Unix(1, 0)))
		case reflect.Slice:
			f.Set(reflect.Append(reflect.MakeSlice(f.Type(), 0, 1), reflect.ValueOf("x").Convert(f.Type().Elem())))
		default:
			t.Fatalf("the field %s of an identity is neither a string nor a list: extend the test", name)
		}
		if list.find(&other) != nil {
			t.Errorf("an identity with another %s is taken for the remembered one", name)
		}
	}
}

func TestPrincipalsAreBounded(t *testing.T) {
	t.Parallel()
	var list principals
	for i := range 3 * maxPrincipals {
		list.keep(&principal{who: broker.Identity{ID: fmt.Sprintf("spiffe://acme.test/%d", i), Kind: broker.KindWorkload}})
		if len(list.byID) > maxPrincipals {
			t.Fatalf("got %d principals, want at most %d", len(list.byID), maxPrincipals)
		}
	}
	list = principals{}
	list.keep(&principal{who: broker.Identity{ID: "spiffe://acme.test/" + strings.Repeat("a", maxID), Kind: broker.KindWorkload}})
	list.keep(&principal{who: broker.Identity{ID: "spiffe://acme.test/a", Kind: broker.KindWorkload}, uids: make([]types.EntityUID, maxUIDs+1)})
	if len(list.byID) != 0 {
		t.Error("a principal that takes much memory is remembered")
	}
	list.keep(&principal{who: broker.Identity{ID: "login/ana", Kind: broker.KindPerson, Person: &broker.Person{Groups: make([]string, maxClaimed/16+1)}}})
	if len(list.byID) != 0 {
		t.Error("a person with many groups is remembered")
	}
	list.keep(&principal{who: broker.Identity{ID: "root", Kind: broker.KindOperator}})
	if len(list.byID) != 0 {
		t.Error("an operator is remembered")
	}
}

// A person with other claims than the remembered ones must never be evaluated as that one. A
// new field of Person has to be compared, or listed here with a reason.
func TestPersonIsForgottenWhenClaimsDiffer(t *testing.T) {
	t.Parallel()
	notSeen := map[string]string{
		"Manager":       "package broker finds the approver",
		"Sponsor":       "package broker notifies the sponsor",
		"Ends":          "package broker checks it with the other facts about the person",
		"StatesEnd":     "as Ends",
		"Claimed":       "policies do not see when something was claimed",
		"Login":         "as Claimed",
		"Name":          "for display",
		"Email":         "for display",
		"EmailVerified": "as Email",
		"Directory":     "where Groups come from",
	}
	who := broker.Identity{ID: "login/ana", Kind: broker.KindPerson, Person: &broker.Person{Provider: "login", Groups: []string{"dba"}}}
	var list principals
	list.keep(&principal{who: who})
	renewed := who
	renewed.Person = &broker.Person{Provider: "login", Groups: []string{"dba"}, Claimed: time.Unix(1, 0), Name: "Ana"}
	if list.find(&renewed) == nil {
		t.Fatal("the person is not remembered")
	}
	compared := 0
	fields := reflect.TypeOf(broker.Person{})
	for i := range fields.NumField() {
		name := fields.Field(i).Name
		if notSeen[name] != "" {
			continue
		}
		compared++
		changed := *who.Person
		switch f := reflect.ValueOf(&changed).Elem().Field(i); f.Kind() {
		case reflect.String:
			f.SetString(f.String() + "x")
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"dba", "oncall"}))
		default:
			t.Fatalf("the field %s of a person is neither a string nor a list: extend the test", name)
		}
		other := who
		other.Person = &changed
		if list.find(&other) != nil {
			t.Errorf("a person with another %s is taken for the remembered one", name)
		}
	}
	none := who
	none.Person = nil
	if list.find(&none) != nil || compared != 2 {
		t.Errorf("a person without claims is taken for the remembered one, or %d fields were compared, want 2", compared)
	}
}
