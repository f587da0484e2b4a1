package broker

import (
	"testing"
	"time"
)

var factNoon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestFaultOfAStanding(t *testing.T) {
	active := func(change func(*Fact)) Fact {
		f := Fact{Source: "file", State: FactActive}
		change(&f)
		return f
	}
	none := active(func(*Fact) {})
	until := func(d time.Duration) Fact { return active(func(f *Fact) { f.Until = factNoon.Add(d) }) }
	from := func(d time.Duration) Fact { return active(func(f *Fact) { f.From = factNoon.Add(d) }) }
	stale := func(d time.Duration) Fact { return active(func(f *Fact) { f.StaleAt = factNoon.Add(d) }) }
	ended := Fact{Source: "scim:corp", State: FactEnded, Cause: "account_disabled"}
	withdrawn := Fact{Source: "scim:corp", State: FactWithdrawn}
	for name, test := range map[string]struct {
		standing Standing
		want     string
	}{
		"no facts":             {Standing{}, ""},
		"active":               {Standing{Facts: []Fact{none}}, ""},
		"just before its end":  {Standing{Facts: []Fact{until(1)}}, ""},
		"exactly at its end":   {Standing{Facts: []Fact{until(0)}}, CauseUntil},
		"just before its time": {Standing{Facts: []Fact{from(1)}}, CauseNotBegun},
		"exactly at its start": {Standing{Facts: []Fact{from(0)}}, ""},
		"just before stale":    {Standing{Facts: []Fact{stale(1)}}, ""},
		"exactly stale":        {Standing{Facts: []Fact{stale(0)}}, CauseStale},
		"ended":                {Standing{Facts: []Fact{none, ended}}, "account_disabled"},
		"withdrawn":            {Standing{Facts: []Fact{withdrawn}}, CauseWithdrawn},
		"stale and ended":      {Standing{Facts: []Fact{stale(0), ended}}, "account_disabled"},
		"ended and stale":      {Standing{Facts: []Fact{ended, stale(0)}}, "account_disabled"},
		"stale, not begun":     {Standing{Facts: []Fact{stale(0), from(1)}}, CauseNotBegun},
		"end under way":        {Standing{Facts: []Fact{none}, Ending: true, Cause: "ticket_closed"}, "ticket_closed"},
		"unknown state":        {Standing{Facts: []Fact{{State: "", Cause: "x"}}}, "x"},
	} {
		if got := test.standing.fault(factNoon); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestUntilIsTheEarliestEnd(t *testing.T) {
	s := Standing{Facts: []Fact{{Until: factNoon.Add(2 * time.Hour)}, {}, {Until: factNoon.Add(time.Hour)}}}
	if got := s.Until(); !got.Equal(factNoon.Add(time.Hour)) {
		t.Errorf("got %v", got)
	}
	if got := (&Standing{Facts: []Fact{{}}}).Until(); !got.IsZero() {
		t.Errorf("without an end: got %v", got)
	}
}

// A standing falls once, and what was granted before never revives.
func TestSettle(t *testing.T) {
	s := Standing{Facts: []Fact{{Source: "file", State: FactActive}}}
	if s.settle(factNoon, false) || !s.Ended.IsZero() || s.Version != 0 {
		t.Fatalf("it holds: %+v", s)
	}
	state := func(state FactState, now time.Time) bool {
		t.Helper()
		if _, err := s.state(Fact{Source: "file", State: state, Cause: "contract_ended"}); err != nil {
			t.Fatal(err)
		}
		return s.settle(now, false)
	}
	if !state(FactEnded, factNoon) || !s.Ending || !s.Ended.Equal(factNoon) || s.Cause != "contract_ended" {
		t.Fatalf("it falls: %+v", s)
	}
	if state(FactEnded, factNoon.Add(time.Second)) {
		t.Errorf("it falls twice: %+v", s)
	}
	if state(FactActive, factNoon.Add(time.Second)) || s.fault(factNoon.Add(time.Second)) == "" {
		t.Errorf("it holds before everything that rested on it has ended: %+v", s)
	}
	s.Ending = false
	if s.settle(factNoon.Add(2*time.Second), false) || !s.Ended.IsZero() || !s.Fallen.Equal(factNoon) || s.fault(factNoon) != "" {
		t.Errorf("it holds again: %+v", s)
	}
}

func TestStaleFactsAreHeld(t *testing.T) {
	s := Standing{Facts: []Fact{{Source: "tickets:jira", State: FactActive, StaleAt: factNoon}}}
	if s.settle(factNoon, true) || !s.Held || s.fault(factNoon) != CauseStale || !s.Due().IsZero() {
		t.Errorf("held: %+v, due %v", s, s.Due())
	}
	before := s.Version
	if s.settle(factNoon.Add(time.Second), true); s.Version != before {
		t.Errorf("held twice: %+v", s)
	}
	if _, err := s.state(Fact{Source: "tickets:jira", State: FactActive, Confirmed: factNoon, StaleAt: factNoon.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if s.settle(factNoon, true) || s.Held || s.fault(factNoon) != "" || !s.Due().Equal(factNoon.Add(time.Hour)) {
		t.Errorf("confirmed: %+v", s)
	}
}

func TestFactsAreBounded(t *testing.T) {
	long := func(n int) string { return string(make([]byte, n)) }
	for name, f := range map[string]Fact{
		"no source":     {State: FactActive},
		"no state":      {Source: "file"},
		"unknown state": {Source: "file", State: "paused", Cause: "x"},
		"no cause":      {Source: "file", State: FactEnded},
		"long cause":    {Source: "file", State: FactEnded, Cause: long(65)},
		"long source":   {Source: long(129), State: FactActive},
		"long details":  {Source: "file", State: FactActive, Details: map[string]string{"title": long(4096)}},
	} {
		if f.checkForm() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, key := range []StandingKey{{}, {FactPerson, ""}, {"planet", "mars"}, {FactTicket, long(2049)}, {FactTicket, "a\nb"}, {FactTicket, "a\x00b"}} {
		if key.checkForm() == nil {
			t.Errorf("%q: accepted", key)
		}
	}
	s := Standing{}
	for i := range maxFacts {
		if _, err := s.state(Fact{Source: string(rune('a' + i)), State: FactActive}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.state(Fact{Source: "z", State: FactActive}); err == nil {
		t.Error("too many sources: accepted")
	}
}
