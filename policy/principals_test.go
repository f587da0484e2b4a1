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
		"Person":   "people are not remembered",
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
	list.keep(&principal{who: broker.Identity{ID: "login/ana", Kind: broker.KindPerson}})
	if len(list.byID) != 0 {
		t.Error("a person is remembered")
	}
}
