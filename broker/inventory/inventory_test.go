package inventory

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

var start = time.Date(2026, 3, 1, 9, 30, 0, 0, time.UTC)

func TestDaysKeepTheirWindow(t *testing.T) {
	var d Days
	for n := range 200 {
		if n%3 == 0 {
			d.Add(start.AddDate(0, 0, n))
		}
	}
	d.Add(start) // too old to be kept
	last := start.AddDate(0, 0, 198)
	if got := [3]int{d.In(1, last), d.In(30, last), d.In(90, last)}; got != [3]int{1, 10, 30} {
		t.Errorf("got %v", got)
	}
	if len(d) != 31 {
		t.Errorf("%d days are kept", len(d))
	}
	text, err := json.Marshal(d)
	var back Days
	if err == nil {
		err = json.Unmarshal(text, &back)
	}
	if err != nil || !reflect.DeepEqual(back, d) || len(text) > 150 {
		t.Errorf("%s: %v (%v)", text, back, err)
	}
}

// What is added in two halves is what is added at once, wherever the halves part.
func TestTalliesAddUp(t *testing.T) {
	records := someRecords()
	whole := tallied(records)
	for n := range len(records) {
		first, rest := tallied(records[:n]), tallied(records[n:])
		for id, seen := range rest.Seen {
			entry(first.Seen, id).Merge(seen)
		}
		for key, use := range rest.Uses {
			entry(first.Uses, key).Merge(use)
		}
		for name, use := range rest.Policies {
			entry(first.Policies, name).Merge(use)
		}
		for name, use := range rest.Entitlements {
			entry(first.Entitlements, name).Merge(use)
		}
		first.Filed = append(first.Filed, rest.Filed...)
		if got, want := fmt.Sprint(text(t, first)), fmt.Sprint(text(t, whole)); got != want {
			t.Fatalf("in two at %d: got  %s\nwant %s", n, got, want)
		}
	}
}

func text(t *testing.T, tally *Tally) string {
	t.Helper()
	uses := map[string]*Use{}
	for key, use := range tally.Uses {
		uses[key.Identity+" "+key.Entitlement] = use
	}
	body, err := json.Marshal([]any{tally.Seen, uses, tally.Policies, tally.Entitlements, tally.Filed})
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func tallied(records []audit.Record) *Tally {
	tally := NewTally()
	for i := range records {
		tally.AddStored(&records[i])
	}
	return tally
}

func someRecords() (records []audit.Record) {
	id := broker.NewRequestID(start).String()
	for n := range 120 {
		filed := &audit.RequestFacts{ID: id, Entitlement: fmt.Sprintf("e%d", n%3), Scopes: []string{"read", "write"}[:1+n%2], TTL: time.Minute}
		permit := &audit.DecisionFacts{Permit: true, Policies: []string{"p", "q"}[n%2:]}
		r := audit.Record{Time: start.AddDate(0, 0, n), Caller: &audit.Party{ID: fmt.Sprintf("spiffe://acme.test/w%d", n%4), Kind: "workload", Method: "x509-svid"}, Request: filed, Decision: permit}
		r.Kind = []audit.Kind{audit.RequestCreated, audit.LeaseOpened, audit.LeaseIssued, audit.CollectRefused}[n%4]
		if n%9 == 0 {
			r.Kind, r.Decision = audit.RequestDenied, &audit.DecisionFacts{Code: "denied"}
		}
		records = append(records, r)
	}
	return records
}

func TestOnlyWhatPolicyPermittedIsUse(t *testing.T) {
	who := &audit.Party{ID: "login/ana", Kind: "person", Method: "session"}
	facts := &audit.RequestFacts{ID: broker.NewRequestID(start).String(), Entitlement: "db", Scopes: []string{"read", "write"}, TTL: time.Minute}
	permit := &audit.DecisionFacts{Permit: true, Policies: []string{"p"}}
	tally := tallied([]audit.Record{
		{Kind: audit.RequestDenied, Time: start, Caller: who, Request: &audit.RequestFacts{Entitlement: "made up"}, Decision: &audit.DecisionFacts{Code: "denied", Policies: []string{"f"}}, Count: 3},
		{Kind: audit.RequestCreated, Time: start, Caller: who, Request: facts, Decision: permit},
		{Kind: audit.ApprovalGiven, Time: start, Caller: who, Request: facts, Approval: &audit.ApprovalFacts{Groups: []string{"dba"}}},
		{Kind: audit.CollectRefused, Time: start, Caller: who, Request: &audit.RequestFacts{Entitlement: "db"}, Decision: &audit.DecisionFacts{Code: "limit"}},
		{Kind: audit.LeaseOpened, Time: start, Caller: who, Request: &audit.RequestFacts{Entitlement: "db", Scopes: facts.Scopes}, Decision: permit, Lease: &audit.LeaseFacts{Scopes: []string{"read"}}},
		{Kind: audit.LeaseIssued, Time: start, Lease: &audit.LeaseFacts{}},
		{Kind: audit.BlockPlaced, Time: start, Caller: &audit.Party{ID: "root", Kind: "operator"}},
	})
	once := Span{start, start, 1}
	want := Seen{Kind: broker.KindPerson, Records: Span{start, start, 5}, Methods: Names[Span]{{"session", Span{start, start, 5}}},
		Denied: Span{start, start, 3}, Asked: once, Issued: once, Days: Days{DayOf(start): 1}, Votes: Names[Span]{{"dba", once}}}
	if got := tally.Seen["login/ana"]; len(tally.Seen) != 1 || !reflect.DeepEqual(*got, want) {
		t.Errorf("seen: got  %+v\nwant %+v", got, want)
	}
	both, asked := Usage{once, once}, Usage{Asked: once}
	use := Use{Usage: both, Days: Days{DayOf(start): 1}, Scopes: Names[Usage]{{"read", both}, {"write", asked}}, Policies: Names[Usage]{{"p", both}}}
	if got := tally.Uses[UseKey{"login/ana", "db"}]; len(tally.Uses) != 1 || !reflect.DeepEqual(*got, use) {
		t.Errorf("used: got  %+v\nwant %+v", got, use)
	}
	if len(tally.Policies) != 1 || tally.Policies["p"] == nil || len(tally.Entitlements) != 1 {
		t.Errorf("policies %v, entitlements %v", tally.Policies, tally.Entitlements)
	}
}

func TestPlacesAreBounded(t *testing.T) {
	var p Places
	for n := range 100 {
		p.Add(netip.AddrFrom4([4]byte{192, 0, 2, byte(n % 40)}), start.Add(time.Duration(n)*time.Hour))
	}
	if len(p) != MaxPlaces || p.Since(start.Add(90*time.Hour)) != 10 {
		t.Errorf("%d places, %d of them recent", len(p), p.Since(start.Add(90*time.Hour)))
	}
}
