package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
)

func pendingRequest() *api.Request {
	return &api.Request{
		ID: "req_1", Status: api.StatusPending,
		Approvals: api.Approvals{Needed: []api.Need{{Group: "support", Count: 1}}},
	}
}

// After a wait without a credential, the error says how to continue.
func TestErrorAfterWait(t *testing.T) {
	refused := fmt.Errorf("calling the broker: %w", &url.Error{Op: "Get", URL: "https://broker.test", Err: errors.New("connection refused")})
	for _, test := range []struct {
		name  string
		err   error
		code  int
		texts []string
	}{
		{"pending", &agent.PendingError{Request: pendingRequest()}, exitPending, []string{"pending: needs approval by 1 of support\n", `To continue, run "broker collect req_1".`}},
		{"signal", &agent.PendingError{Request: pendingRequest(), Interrupted: true}, exitPending, []string{"pending: the wait was interrupted, and the request is still pending\n", `To continue, run "broker collect req_1".`}},
		{"broker away", &agent.UnreachableError{RequestID: "req_1", Err: refused}, exitUnreachable, []string{"connection refused", `To continue, run "broker collect req_1".`}},
		{"denied", &api.Error{Code: api.Denied, Status: 403}, exitDenied, []string{"denied"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var screen strings.Builder
			a := &app{terminal: terminal{err: &screen, getenv: func(string) string { return "" }}}
			err := a.waited(test.err)
			if exitCode(err) != test.code {
				t.Errorf("got exit code %d, want %d", exitCode(err), test.code)
			}
			if screen.Len() > 0 {
				t.Errorf("without a terminal, it printed %q", screen.String())
			}
			a.printError(err)
			for _, text := range test.texts {
				if !strings.Contains(err.Error(), text) || strings.Count(screen.String(), text) != 1 {
					t.Errorf("got %v and the screen %q, want %q in both", err, screen.String(), text)
				}
			}
		})
	}
}

func TestProgressOfAWait(t *testing.T) {
	var screen strings.Builder
	if w := (&app{terminal: terminal{err: &screen}}).waiting(time.Minute); w.For != time.Minute || w.Progress != nil {
		t.Errorf("without a terminal: got %v with progress %t", w.For, w.Progress != nil)
	}
	show := progressTo(&screen)
	show(agent.Progress{Request: pendingRequest(), Left: time.Minute})
	show(agent.Progress{Request: pendingRequest(), Left: 30 * time.Second, Err: errors.New("connection refused")})
	decided := pendingRequest()
	decided.Status, decided.Approvals.Given = api.StatusApproved, []api.RecordedVote{{Person: "login/ana\x1b[2J"}}
	show(agent.Progress{Request: decided})
	const want = "request req_1 is pending\n" +
		clearLine + "needs approval by 1 of support (1m left)" +
		clearLine + "the broker can't be reached; trying again (30s left)" +
		clearLine + "approved by login/ana\\x1b[2J\n"
	if screen.String() != want {
		t.Errorf("got %q, want %q", screen.String(), want)
	}
}

// A wait that ends without an approval leaves each fact on the screen once.
func TestScreenAfterWait(t *testing.T) {
	var screen strings.Builder
	show := progressTo(&screen)
	show(agent.Progress{Request: pendingRequest(), Left: time.Minute})
	show(agent.Progress{Request: pendingRequest(), Left: 30 * time.Second})
	screen.WriteString(clearLine)
	(&app{terminal: terminal{err: &screen, getenv: func(string) string { return "" }}}).printError(withResume(&agent.PendingError{Request: pendingRequest()}))
	var visible []string
	for line := range strings.Lines(screen.String()) {
		parts := strings.Split(line, clearLine)
		visible = append(visible, parts[len(parts)-1])
	}
	if text := strings.Join(visible, ""); strings.Count(text, "needs approval by") != 1 || strings.Count(text, "is pending") != 1 {
		t.Errorf("got the screen %q, want each fact once", text)
	}
}

// A page without rows that is not the last one says how to continue.
func TestEmptyPagesContinue(t *testing.T) {
	for next, want := range map[string]string{
		"":      "no leases\n",
		"lse_1": "no leases among the newest that were searched\nmore: --cursor lse_1\n",
	} {
		var out strings.Builder
		if err := (&app{terminal: terminal{out: &out}}).printPage(nil, "leases", []string{"LEASE", "STATUS"}, nil, next); err != nil || out.String() != want {
			t.Errorf("cursor %q: got %q, %v, want %q", next, out.String(), err, want)
		}
	}
}
