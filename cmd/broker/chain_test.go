package main

import (
	"bytes"
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// A chain of long SPIFFE IDs stays a tree: no row is wider than the card, and each row but
// the first of an ID is below it.
func TestChainFitsTheCard(t *testing.T) {
	long := "spiffe://acme.test/agent/" + strings.Repeat("customer-care/", 6) + strings.Repeat("x", 90)
	r := &api.Request{OnBehalfOf: "login/ana", Actors: []string{"spiffe://acme.test/agent/triage", long}, Requester: long}
	var out bytes.Buffer
	card{&out}.chain(r)
	var joined strings.Builder
	for line := range strings.Lines(out.String()) {
		_, row, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if n := len([]rune(row)); n > cardWidth {
			t.Errorf("got %d columns: %q", n, row)
		}
		joined.WriteString(strings.TrimLeft(row, " "))
	}
	if want := "login/ana└─ spiffe://acme.test/agent/triage└─ " + long + "└─ " + long; joined.String() != want {
		t.Errorf("got %q, want %q", joined.String(), want)
	}
}

func TestListsStateOnWhoseBehalf(t *testing.T) {
	columns, rows := withSubjects(requestColumns, [][]string{{"1", "2", "3", "4", "5", "6"}, {"1", "2", "3", "4", "5", "6"}}, []string{"", "login/ana"})
	if got := strings.Join(columns, " "); got != "REQUEST STATUS ENTITLEMENT SCOPES REQUESTER FOR CREATED" {
		t.Errorf("got %s", got)
	}
	if got := strings.Join(rows[0], " ") + "|" + strings.Join(rows[1], " "); got != "1 2 3 4 5 - 6|1 2 3 4 5 login/ana 6" {
		t.Errorf("got %s", got)
	}
	if columns, _ := withSubjects(requestColumns, nil, nil); len(columns) != len(requestColumns) {
		t.Errorf("got %v, want no column", columns)
	}
}
