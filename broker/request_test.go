package broker

import (
	"errors"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestRequestState(t *testing.T) {
	pending := Request{Status: RequestPending, Lapses: noon.Add(time.Hour)}
	approved := Request{Status: RequestApproved, CollectUntil: noon.Add(time.Hour)}
	for _, c := range []struct {
		name string
		r    Request
		at   time.Time
		want RequestStatus
		err  error
	}{
		{"pending", pending, noon, RequestPending, ErrPending},
		{"just before it lapses", pending, noon.Add(time.Hour - 1), RequestPending, ErrPending},
		{"lapsed on the instant", pending, noon.Add(time.Hour), RequestLapsed, ErrLapsed},
		{"approved", approved, noon, RequestApproved, nil},
		{"grant ended on the instant", approved, noon.Add(time.Hour), RequestEnded, ErrGrantEnded},
		{"denied", Request{Status: RequestDenied}, noon, RequestDenied, ErrDenied},
		{"withdrawn", Request{Status: RequestWithdrawn}, noon, RequestWithdrawn, ErrNotPending},
		{"zero", Request{}, noon, 0, ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.r.State(c.at); got != c.want {
				t.Errorf("got state %d, want %d", got, c.want)
			}
			if err := c.r.collectable(c.at); !errors.Is(err, c.err) {
				t.Errorf("got %v, want %v", err, c.err)
			}
		})
	}
}

func TestWithdraw(t *testing.T) {
	r := Request{Status: RequestPending, Lapses: noon.Add(time.Hour), Version: 1}
	if err := r.withdraw(noon.Add(2 * time.Hour)); !errors.Is(err, ErrNotPending) {
		t.Errorf("withdrawing a lapsed request: got %v, want %v", err, ErrNotPending)
	}
	if err := r.withdraw(noon); err != nil || r.Status != RequestWithdrawn || r.Version != 2 {
		t.Errorf("withdrawing: got %v, %+v, want version 2, withdrawn", err, r)
	}
	if err := r.withdraw(noon); !errors.Is(err, ErrNotPending) {
		t.Errorf("withdrawing twice: got %v, want %v", err, ErrNotPending)
	}
}

func TestCovered(t *testing.T) {
	r := Request{Digest: [32]byte{1}}
	needs := Obligations{Approvals: []ApprovalNeed{{Group: "dba", Count: 2}}}
	add := func(person string, digest byte, yes bool, groups ...string) {
		r.Approvals = append(r.Approvals, Approval{Person: person, Digest: [32]byte{digest}, Approve: yes, Groups: groups})
	}
	if !r.covered(Obligations{}) {
		t.Error("no required approvals: got not covered")
	}
	add("ana", 1, true, "dba")
	add("ben", 2, true, "dba")   // another digest
	add("cleo", 1, false, "dba") // denied
	add("dan", 1, true, "ops")   // another group
	if r.covered(needs) {
		t.Error("one approval of two: got covered")
	}
	add("eve", 1, true, "dba", "ops")
	if !r.covered(needs) {
		t.Error("two approvals of two: got not covered")
	}
}

func TestApplyObligations(t *testing.T) {
	e := &Entitlement{MaxTTL: time.Hour}
	minute := time.Minute
	for _, c := range []struct {
		name  string
		o     Obligations
		ask   Ask
		ttl   time.Duration
		want  time.Duration
		err   error
		allow time.Duration
	}{
		{"no ttl", Obligations{}, Ask{}, 10 * minute, 10 * minute, nil, 0},
		{"no ttl, default above the maximum", Obligations{MaxTTL: 5 * minute}, Ask{}, 10 * minute, 5 * minute, nil, 0},
		{"ttl within the maximum", Obligations{MaxTTL: 5 * minute}, Ask{TTL: 4 * minute}, 4 * minute, 4 * minute, nil, 0},
		{"ttl above the policy maximum", Obligations{MaxTTL: 5 * minute}, Ask{TTL: 6 * minute}, 6 * minute, 0, ErrInvalidTTL, 5 * minute},
		{"ttl above the entitlement maximum", Obligations{}, Ask{TTL: 61 * minute}, time.Hour, 0, ErrInvalidTTL, time.Hour},
		{"no justification", Obligations{Justification: true}, Ask{}, minute, 0, ErrJustificationRequired, 0},
		{"no ticket", Obligations{Tickets: []string{"INC-[0-9]+"}}, Ask{}, minute, 0, ErrTicketRequired, 0},
		{"duration too long", Obligations{MaxDuration: minute}, Ask{Duration: time.Hour}, minute, 0, ErrInvalidTTL, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Request{TTL: c.ttl, Duration: time.Hour}
			err := r.applyObligations(c.o, c.ask, e)
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if err == nil && r.TTL != c.want {
				t.Errorf("got ttl %s, want %s", r.TTL, c.want)
			}
			var refusal *Refusal
			if c.allow > 0 && (!errors.As(err, &refusal) || refusal.Allowed.MaxTTL != c.allow) {
				t.Errorf("got allowed %+v, want %s", refusal, c.allow)
			}
		})
	}
}

func TestTicketIsAnchored(t *testing.T) {
	// Without a group, "^a|b$" lets "b and more" escape the anchors.
	patterns := []string{"INC-[0-9]+|CHG-[0-9]+"}
	for ticket, ok := range map[string]bool{"INC-1": true, "CHG-2": true, "INC-1 x": false, "x CHG-2": false, "": false} {
		if err := checkTicket(patterns, ticket); (err == nil) != ok {
			t.Errorf("%q: got %v, want accepted %t", ticket, err, ok)
		}
	}
}

func TestCheckForm(t *testing.T) {
	long := make([]byte, 100_000)
	for i := range long {
		long[i] = 'a'
	}
	for name, c := range map[string]struct {
		ask  Ask
		want error
	}{
		"valid":              {Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}, nil},
		"no entitlement":     {Ask{}, ErrInvalidRequest},
		"path as a name":     {Ask{Entitlement: "../x"}, ErrInvalidRequest},
		"negative ttl":       {Ask{Entitlement: "e", TTL: -time.Second}, ErrInvalidTTL},
		"fractional ttl":     {Ask{Entitlement: "e", TTL: time.Millisecond}, ErrInvalidTTL},
		"negative duration":  {Ask{Entitlement: "e", Duration: -1}, ErrInvalidTTL},
		"long duration":      {Ask{Entitlement: "e", Duration: MaxDuration + time.Second}, ErrInvalidTTL},
		"empty scope":        {Ask{Entitlement: "e", Scopes: []string{""}}, ErrInvalidScope},
		"scope with a space": {Ask{Entitlement: "e", Scopes: []string{"a b"}}, ErrInvalidScope},
		"scope with a quote": {Ask{Entitlement: "e", Scopes: []string{`a"`}}, ErrInvalidScope},
		"too many scopes":    {Ask{Entitlement: "e", Scopes: make([]string, MaxScopes+1)}, ErrInvalidScope},
		"long justification": {Ask{Entitlement: "e", Justification: string(long)}, ErrInvalidRequest},
		"terminal escapes":   {Ask{Entitlement: "e", Justification: "\x1b[2J"}, ErrInvalidRequest},
		"multi-line ticket":  {Ask{Entitlement: "e", Ticket: "INC-1\napproved by login/ciso"}, ErrInvalidRequest},
		"ticket with a tab":  {Ask{Entitlement: "e", Ticket: "INC-1\tx"}, ErrInvalidRequest},
		"multi-line reason":  {Ask{Entitlement: "e", Justification: "a\nb\tc"}, nil},
		"not UTF-8":          {Ask{Entitlement: "e", Ticket: "\xff"}, ErrInvalidRequest},
	} {
		if err := c.ask.checkForm(); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestScopesNeverEmpty(t *testing.T) {
	e := &Entitlement{Scopes: []string{"a", "b"}}
	if _, err := e.scopes(nil); !errors.Is(err, ErrInvalidScope) {
		t.Errorf("no scopes and no default: got %v, want %v", err, ErrInvalidScope)
	}
	e.DefaultScopes = []string{"a"}
	if got, err := e.scopes(nil); err != nil || len(got) != 1 {
		t.Errorf("default scopes: got %v, %v, want [a]", got, err)
	}
	for _, bad := range [][]string{{"a", "a"}, {"c"}, {"a", "c"}} {
		if _, err := e.scopes(bad); !errors.Is(err, ErrInvalidScope) {
			t.Errorf("scopes %v: got %v, want %v", bad, err, ErrInvalidScope)
		}
	}
	if got, err := e.scopes([]string{"b", "a"}); err != nil || got[0] != "a" {
		t.Errorf("sorting: got %v, %v, want [a b]", got, err)
	}
}
