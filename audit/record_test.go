package audit

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// Approvers sign the digest of a request. It covers everything that they decide on:
// a changed field changes the digest.
func TestSumCoversTheRequest(t *testing.T) {
	full := fullRecord()
	sum := full.Request.Sum("requester", full.Decision)
	if other := full.Request.Sum("another", full.Decision); other == sum {
		t.Error("the requester is not covered")
	}
	for _, facts := range []struct {
		of   any
		omit []string // identifiers, the digest itself, and inputs that only the broker uses
	}{
		{full.Request, []string{"ID", "Digest", "Source", "LapsesAt", "Accountable"}},
		{full.Decision, []string{"Permit", "Policies", "Revision", "Code"}},
	} {
		v := reflect.ValueOf(facts.of).Elem()
		checked := 0
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			before := reflect.New(v.Field(i).Type()).Elem()
			before.Set(v.Field(i))
			v.Field(i).SetZero()
			changed := full.Request.Sum("requester", full.Decision) != sum
			v.Field(i).Set(before)
			checked++
			if covered := !slices.Contains(facts.omit, name); changed != covered {
				t.Errorf("%s.%s: got covered %t, want %t", v.Type().Name(), name, changed, covered)
			}
		}
		if checked < 10 {
			t.Errorf("only %d fields of %s were checked", checked, v.Type().Name())
		}
	}
	moved := *full.Request
	moved.NotBefore = moved.NotBefore.Add(time.Hour)
	if moved.Sum("requester", full.Decision) == sum {
		t.Error("another start has the same digest")
	}
}

// Flags occur in the signed terms only if they are set.
func TestTermsNameTheFlags(t *testing.T) {
	full := fullRecord()
	set := string(full.Request.Terms("requester", full.Decision).Bytes())
	unset := string((&RequestFacts{}).Terms("requester", &DecisionFacts{}).Bytes())
	for _, flag := range []string{`"break_glass":"yes"`, `"signed":"yes"`, `"not_before":"2026-11-03T12:00:00Z"`} {
		if !strings.Contains(set, flag) || strings.Contains(unset, flag[:len(flag)-6]) {
			t.Errorf("%s: got %s if set, and %s if not", flag, set, unset)
		}
	}
}
