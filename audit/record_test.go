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
	by := Requester{ID: "requester", Subject: "login/ana", Actors: []string{"spiffe://acme.test/a"}}
	sum := full.Request.Sum(by, full.Decision)
	for _, other := range []Requester{
		{ID: "another", Subject: by.Subject, Actors: by.Actors}, {ID: by.ID, Subject: "login/bo", Actors: by.Actors}, {ID: by.ID, Subject: by.Subject}, {ID: by.ID},
	} {
		if full.Request.Sum(other, full.Decision) == sum {
			t.Errorf("%+v has the same digest as %+v", other, by)
		}
	}
	for _, facts := range []struct {
		of   any
		omit []string // identifiers, the digest itself, and inputs that only the broker uses
	}{
		{full.Request, []string{"ID", "Digest", "Source", "LapsesAt", "Accountable", "RestsOn", "Until"}},
		{full.Decision, []string{"Permit", "Policies", "Revision", "Code"}},
	} {
		v := reflect.ValueOf(facts.of).Elem()
		checked := 0
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			before := reflect.New(v.Field(i).Type()).Elem()
			before.Set(v.Field(i))
			v.Field(i).SetZero()
			changed := full.Request.Sum(by, full.Decision) != sum
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
	if moved.Sum(by, full.Decision) == sum {
		t.Error("another start has the same digest")
	}
}

// Flags occur in the signed terms only if they are set.
func TestTermsNameTheFlags(t *testing.T) {
	full := fullRecord()
	set := string(full.Request.Terms(Requester{ID: "requester"}, full.Decision).Bytes())
	unset := string((&RequestFacts{}).Terms(Requester{ID: "requester"}, &DecisionFacts{}).Bytes())
	for _, flag := range []string{`"break_glass":"yes"`, `"signed":"yes"`, `"not_before":"2026-11-03T12:00:00Z"`} {
		if !strings.Contains(set, flag) || strings.Contains(unset, flag[:len(flag)-6]) {
			t.Errorf("%s: got %s if set, and %s if not", flag, set, unset)
		}
	}
}

// parseTime reads what time.Parse reads, and nothing else.
func TestParseTime(t *testing.T) {
	t.Parallel()
	good := 0
	for _, s := range []string{
		"2026-11-28T23:59:59.999Z", "0001-01-01T00:00:00.000Z", "2024-02-29T12:00:00.123Z", "9999-12-31T23:59:59.999Z", "0000-01-01T00:00:00.001Z",
		"2026-02-29T12:00:00.000Z", "2026-02-30T12:00:00.000Z", "2026-13-01T00:00:00.000Z", "2026-00-01T00:00:00.000Z", "2026-01-00T00:00:00.000Z",
		"2026-01-01T24:00:00.000Z", "2026-01-01T00:60:00.000Z", "2026-01-01T00:00:60.000Z", "2026-01-01T00:00:00.00Z", "2026-01-01T00:00:00.0000Z",
		"2026-01-01 00:00:00.000Z", "2026-01-01T00:00:00,000Z", "2026-01-01T00:00:00.000z", "+026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.00:Z", "2026-01-01T00:00:00./00Z", "",
	} {
		got, ok := parseTime(s)
		want, err := time.Parse(TimeFormat, s)
		if canonical := err == nil && want.Format(TimeFormat) == s; ok != canonical || ok && !got.Equal(want) {
			t.Errorf("%q: got %v %v, want %v, %v", s, got, ok, want, err)
		}
		if ok {
			good++
			if got.Location() != time.UTC {
				t.Errorf("%q: got location %v", s, got.Location())
			}
		}
	}
	if good != 5 {
		t.Errorf("got %d times, want 5", good)
	}
}
